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
mod up;

use std::process::ExitCode;

use clap::Parser;
use cluster::rootless::{self, Entered};

/// Objects as trees of JSON are many small allocations, made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The container helper must be single-threaded: nothing may come before this.
    if std::env::args().nth(1).as_deref() == Some("container-helper") {
        cluster::container_helper();
    }
    let cli = cli::Cli::parse();
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
    cli::logging(&cli);
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start the async runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli::run(cli, door)) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
