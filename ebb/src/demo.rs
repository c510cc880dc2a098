//! `ebb demo`: the main job, seen from outside, each step checked.

mod steps;
mod timing;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use cluster::rootless::Door;
use comfy_table::{Table, presets};

use crate::cli::DemoArgs;
use crate::platform::{Options, Platform};
use crate::progress::{Stage, duration};
use crate::signals::Signals;

/// A line of the table at the end.
struct Row {
    step: &'static str,
    result: String,
}

/// Runs every step; the exit code is 0 only when each came out right.
pub(crate) async fn run(args: DemoArgs, door: Option<Door>) -> anyhow::Result<ExitCode> {
    let folder =
        tempfile::Builder::new().prefix("ebb-demo-").tempdir().context("cannot make a temporary folder")?;
    println!("ebb demo: a platform of its own in {}", folder.path().display());
    let outcome = in_folder(folder.path(), door).await;
    if args.keep {
        println!("kept: {}", folder.keep().display());
    }
    let rows = outcome?;
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["step", "result"]);
    for row in rows {
        table.add_row([row.step.to_string(), row.result]);
    }
    println!("\n{table}");
    Ok(ExitCode::SUCCESS)
}

async fn in_folder(folder: &Path, door: Option<Door>) -> anyhow::Result<Vec<Row>> {
    let mut signals = Signals::watch()?;
    let stage = Stage::begin("start the platform");
    let options = Options {
        data_dir: folder.join("data"),
        api_port: 0,
        gateway_port: 0,
        gateway_tls_port: Some(0),
        registry_port: 0,
        bare: false,
        door,
    };
    let platform = Platform::start_unless(options, &mut signals).await?;
    let took = stage.done(format!("gateway on port {}", platform.ports().gateway));
    let mut rows = vec![Row { step: "ebb up", result: format!("ready after {}", duration(took)) }];
    // Whatever comes out, the platform is stopped in good order.
    let outcome = tokio::select! {
        outcome = steps::all(&platform, folder, &mut rows) => outcome,
        interrupted = signals.asked() => Err(interrupted.into()),
        failed = platform.failed() => Err(failed),
    };
    let stage = Stage::begin("clean up");
    tokio::select! {
        () = platform.shutdown() => stage.done("pods, network and mounts are gone"),
        // Who asks twice does not want to wait.
        interrupted = signals.asked() => return Err(interrupted.into()),
    };
    outcome.map(|()| rows)
}
