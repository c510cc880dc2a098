//! `ebb image export`: the images that a cluster runs, made of this very binary without a container engine.
//!
//! Two images in one archive: the components, which are this program with another first argument, and the sidecar that this program
//! carries inside itself. What is tried here is thereby what runs there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use cluster::images::Store;
use ebb_api::manifests::Images;

use crate::platform::SIDECAR;
use crate::progress::{Stage, size};

/// This program, also when its file was replaced by another build since it started.
const SELF: &str = "/proc/self/exe";

/// Writes the archive.
pub(crate) async fn run(file: &Path, images: &Images) -> anyhow::Result<()> {
    let stage = Stage::begin(format!("export {}", file.display()));
    let scratch =
        tempfile::Builder::new().prefix("ebb-export-").tempdir().context("cannot make a temporary folder")?;
    let store = Store::open(scratch.path())?;
    let (ebb, sidecar) = (images.ebb(), images.queue_proxy());
    stage.note("packing the components and the sidecar");
    let making = store.clone();
    tokio::task::spawn_blocking(move || {
        making.import_program(&PathBuf::from(SELF), "ebb:export", "/ebb", labels())?;
        making.import_binary(SIDECAR, "queue-proxy:export", "/queue-proxy", &["/queue-proxy"])
    })
    .await
    .context("packing")??;
    stage.note("writing the archive");
    let names = [("ebb:export", ebb.as_str()), ("queue-proxy:export", sidecar.as_str())];
    store.export_as(&names, file).await?;
    let written = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    stage.done(size(written));
    for image in store.list() {
        let name = if image.repository == "ebb" { &ebb } else { &sidecar };
        println!("{name}@{} {}", image.digest, size(image.size));
    }
    Ok(())
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("org.opencontainers.image.title".to_owned(), "ebb".to_owned()),
        ("org.opencontainers.image.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("org.opencontainers.image.licenses".to_owned(), env!("CARGO_PKG_LICENSE").to_owned()),
    ])
}
