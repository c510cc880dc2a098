//! `ebb build`: an image of a binary or a project, into the registry of the running platform.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use cluster::images::build::{BuildRequest, build};
use cluster::images::{Progress, ProgressSender, Store};
use serde_json::json;

use crate::cli::{BuildArgs, Output};
use crate::platform::Platform;
use crate::progress::Stage;
use crate::registry::Registry;

/// Builds into a store of its own and pushes, since the platform's store belongs to its process.
pub(crate) async fn run(args: BuildArgs) -> anyhow::Result<ExitCode> {
    let running = args.data_dir.running()?;
    let stage = Stage::begin(format!("build {}", args.path.display()));
    let scratch =
        tempfile::Builder::new().prefix("ebb-build-").tempdir().context("cannot make a temporary folder")?;
    let store = Store::open(scratch.path())?;
    let request = BuildRequest { path: args.path.clone(), tag: args.tag.clone(), ..BuildRequest::default() };
    build(&store, request, Some(notes(&stage))).await?;
    stage.note("pushing");
    let digest = Registry::new(running.registry_port).push(&store, &args.tag).await?;
    stage.done(&args.tag);
    match args.output {
        Output::Text => println!("{}@{digest}", args.tag),
        Output::Json => println!("{}", json!({"image": args.tag, "digest": digest})),
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds into the store of a platform in this process.
pub(crate) async fn into_store(platform: &Platform, path: &Path, tag: &str) -> anyhow::Result<String> {
    let request = BuildRequest { path: path.into(), tag: tag.into(), ..BuildRequest::default() };
    Ok(build(platform.images(), request, None).await?)
}

/// Shows what a build does as notes of the stage.
fn notes(stage: &Stage) -> ProgressSender {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let show = stage.notes();
    tokio::spawn(async move {
        while let Some(progress) = receiver.recv().await {
            if let Progress::Building { message } = progress {
                show(&message);
            }
        }
    });
    sender
}
