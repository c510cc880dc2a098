//! `ebb up`: the platform in the foreground, until Ctrl-C.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use cluster::rootless::Door;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::UpArgs;
use crate::platform::{Options, Platform};
use crate::progress::duration;
use crate::settings::Running;

/// Starts, says `ready`, waits for Ctrl-C or SIGTERM, stops cleanly.
pub(crate) async fn run(args: UpArgs, door: Option<Door>) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let dir = args.data_dir.resolve()?;
    // Before the start, so that a signal during it is not lost.
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let options = Options {
        data_dir: dir.clone(),
        api_port: args.api_port,
        gateway_port: args.gateway_port,
        registry_port: args.registry_port,
        bare: args.bare,
        door: door.clone(),
    };
    let platform = tokio::select! {
        platform = Platform::start(options) => platform?,
        _ = interrupt.recv() => return Ok(ExitCode::from(130)),
        _ = terminate.recv() => return Ok(ExitCode::from(143)),
    };
    let ports = platform.ports();
    let running = Running {
        // As its user sees it: in namespaces of its own, this process has another number.
        pid: door.map_or_else(std::process::id, |door| door.outside_pid()),
        api_port: ports.api,
        gateway_port: ports.gateway,
        registry_port: ports.registry,
    };
    running.write(&dir)?;
    println!(
        "ready in {}: gateway http://localhost:{}, registry localhost:{}, export KUBECONFIG={}",
        duration(started.elapsed()),
        ports.gateway,
        ports.registry,
        platform.kubeconfig().display()
    );
    let failed = tokio::select! {
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        failed = platform.failed() => Some(failed),
    };
    eprintln!("stopping: pods end first (a second Ctrl-C does not wait for them)");
    Running::remove(&dir);
    tokio::select! {
        () = platform.shutdown() => {}
        _ = interrupt.recv() => eprintln!("not waiting any longer; the next `ebb up` cleans up what is left"),
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}
