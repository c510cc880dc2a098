//! The `ebb` command: a serverless platform in one process, and the tools around it.

mod build;
mod cli;
mod client;
mod demo;
mod export;
mod image;
mod install;
mod platform;
mod progress;
mod registry;
mod settings;
mod signals;
mod up;

use std::process::ExitCode;

use clap::Parser;
use cluster::rootless::{self, Entered};
use settings::Misuse;
use signals::Interrupted;

/// Bad arguments or settings, as in sysexits.h.
const EX_USAGE: u8 = 64;

/// Objects as trees of JSON are many small allocations, made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives back what the calling thread's heap does not need.
fn tidy() {
    #[allow(unsafe_code)]
    // SAFETY: asks nothing of its caller.
    unsafe {
        libmimalloc_sys::mi_collect(false);
    }
}

fn main() -> ExitCode {
    // The container helper must be single-threaded: nothing may come before this.
    if std::env::args().nth(1).as_deref() == Some("container-helper") {
        cluster::container_helper();
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            let _ = told.print();
            return ExitCode::from(if told.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    ebb_component::threads::tidy_by(tidy);
    // The cluster's components are this program too; they log, and end, in their own way.
    if let Some(component) = cli.component() {
        return component();
    }
    // Forks, and so before anything that starts a thread.
    let door = match cli.runs_pods().then(rootless::enter).transpose() {
        Ok(None | Some(Entered::Unneeded)) => None,
        Ok(Some(Entered::Inside(door))) => Some(door),
        Ok(Some(Entered::Ended(code))) => return code,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(e) = cli::logging(&cli) {
        eprintln!("error: {}", ebb_component::told(e.as_ref()));
        return ExitCode::from(EX_USAGE);
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    let runtime = match ebb_component::threads::runtime().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start the async runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::run(cli, door)) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {}", ebb_component::told(e.as_ref()));
            let interrupted = e.downcast_ref::<Interrupted>().map(|i| i.code);
            let misused = e.downcast_ref::<Misuse>().map(|_| EX_USAGE);
            interrupted.or(misused).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}
