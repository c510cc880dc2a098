//! `ebb build`: an image of a binary or a project, into the registry of the running platform or an archive.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use cluster::images::build::{BuildRequest, build};
use cluster::images::{Progress, ProgressSender, Store};
use serde_json::json;

use crate::cli::{BuildArgs, Destination, Output};
use crate::platform::Platform;
use crate::progress::{Stage, size};
use crate::registry::Registry;

/// Builds into a store of its own and pushes, since the platform's store belongs to its process; or writes an archive.
pub(crate) async fn run(args: BuildArgs) -> anyhow::Result<ExitCode> {
    // Before the build, which may take long.
    let running = match &args.output {
        Destination::Registry(output) => Some((args.data_dir.running()?, *output)),
        Destination::File(_) => None,
    };
    let stage = Stage::begin(format!("build {}", args.path.display()));
    let scratch =
        tempfile::Builder::new().prefix("ebb-build-").tempdir().context("cannot make a temporary folder")?;
    let store = Store::open(scratch.path())?;
    let request = BuildRequest {
        path: args.path.clone(),
        tag: args.tag.clone(),
        binary: args.bin.clone(),
        ..BuildRequest::default()
    };
    let built = build(&store, request, Some(notes(&stage))).await?;
    match (running, &args.output) {
        (Some((running, output)), _) => {
            stage.note("pushing");
            let digest = Registry::new(running.registry_port).push(&store, &args.tag).await?;
            stage.done(&args.tag);
            match output {
                Output::Text => println!("{}@{digest}", args.tag),
                Output::Json => println!("{}", json!({"image": args.tag, "digest": digest})),
            }
        }
        (None, Destination::File(file)) => {
            stage.note("writing the archive");
            store.export_as(&[(&args.tag, &args.tag)], file).await?;
            let written = std::fs::metadata(file).map_or(0, |m| m.len());
            stage.done(format!("{}, {}", file.display(), size(written)));
            println!("{}@{built}", args.tag);
        }
        (None, Destination::Registry(_)) => anyhow::bail!("no registry to push to"),
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
