//! `ebb image`: what the registry of the running platform holds, and what a cluster needs.

use std::process::ExitCode;

use anyhow::Context;
use cluster::images::Store;
use comfy_table::{Table, presets};
use serde_json::json;

use crate::cli::{ImageCommand, Output};
use crate::progress::{Stage, count, size};
use crate::registry::Registry;

pub(crate) async fn run(command: ImageCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImageCommand::Load { data_dir, file, tag } => {
            let registry = Registry::new(data_dir.running()?.registry_port);
            let stage = Stage::begin(format!("load {}", file.display()));
            let scratch = tempfile::Builder::new()
                .prefix("ebb-load-")
                .tempdir()
                .context("cannot make a temporary folder")?;
            let store = Store::open(scratch.path())?;
            let names = store.load_archive(&file, tag.as_deref()).await?;
            for name in &names {
                stage.note(format!("pushing {name}"));
                let digest = registry.push(&store, name).await?;
                println!("{name}@{digest}");
            }
            stage.done(count(names.len(), "image"));
        }
        ImageCommand::List { data_dir, output } => {
            let images = Registry::new(data_dir.running()?.registry_port).list().await?;
            match output {
                Output::Json => {
                    let all: Vec<_> = images
                        .iter()
                        .map(|i| json!({"name": i.name, "digest": i.digest, "size": i.size}))
                        .collect();
                    println!("{}", serde_json::to_string_pretty(&all)?);
                }
                Output::Text => {
                    let mut table = Table::new();
                    table.load_style(presets::NOTHING).set_header(["IMAGE", "DIGEST", "SIZE"]);
                    for image in images {
                        let digest = image.digest.get(..19).unwrap_or(&image.digest).to_string();
                        table.add_row([image.name, digest, size(image.size)]);
                    }
                    // As kubectl's tables: at the margin, three blanks between.
                    for column in table.column_iter_mut() {
                        column.set_padding((0, 3));
                    }
                    println!("{}", table.trim_fmt());
                }
            }
        }
        ImageCommand::Export { file, images } => crate::export::run(&file, &images.resolve()).await?,
    }
    Ok(ExitCode::SUCCESS)
}
