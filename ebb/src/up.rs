//! `ebb up`: the platform in the foreground, until Ctrl-C.

use std::process::ExitCode;
use std::time::Instant;

use cluster::rootless::Door;

use crate::cli::UpArgs;
use crate::platform::{Options, Platform};
use crate::progress::duration;
use crate::settings::Running;
use crate::signals::Signals;

/// Starts, says `ready`, waits for Ctrl-C or SIGTERM, stops cleanly.
pub(crate) async fn run(args: UpArgs, door: Option<Door>) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let dir = args.data_dir.resolve()?;
    // Before the start, so that a signal during it is not lost.
    let mut signals = Signals::watch()?;
    let options = Options {
        data_dir: dir.clone(),
        api_port: args.api_port,
        gateway_port: args.gateway_port,
        gateway_tls_port: args.gateway_tls_port,
        registry_port: args.registry_port,
        bare: args.bare,
        door: door.clone(),
    };
    let platform = Platform::start_unless(options, &mut signals).await?;
    let ports = platform.ports();
    let running = Running {
        // As its user sees it: in namespaces of its own, this process has another number.
        pid: door.map_or_else(std::process::id, |door| door.outside_pid()),
        api_port: ports.api,
        gateway_port: ports.gateway,
        gateway_tls_port: ports.gateway_tls,
        registry_port: ports.registry,
    };
    let failed = match running.write(&dir) {
        Ok(()) => {
            println!(
                "ready in {}: gateway http://localhost:{}, registry localhost:{}, export KUBECONFIG={}",
                duration(started.elapsed()),
                ports.gateway,
                ports.registry,
                platform.kubeconfig().display()
            );
            tokio::select! {
                _ = signals.asked() => None,
                failed = platform.failed() => Some(failed),
            }
        }
        Err(failed) => Some(failed),
    };
    eprintln!("stopping: pods end first (a second Ctrl-C does not wait for them)");
    Running::remove(&dir);
    tokio::select! {
        () = platform.shutdown() => {}
        _ = signals.asked() => eprintln!("not waiting any longer; the next `ebb up` cleans up what is left"),
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}
