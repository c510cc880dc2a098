//! `docker save`: `manifest.json`, a config and plain layers for each image. It has no manifests, so one is made.

use serde::Deserialize;

use super::{Found, source::Source, source::compression};
use crate::{
    Digest, ImageError, Reference, Store,
    manifest::{Descriptor, ImageManifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST},
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn images(store: &Store, source: &Source) -> Result<Option<Vec<Image>>, ImageError> {
    let Some(document) = source.document(store, "manifest.json")? else { return Ok(None) };
    serde_json::from_slice(&document)
        .map(Some)
        .map_err(|e| source.invalid(format!("its manifest.json cannot be read: {e}")))
}

fn references(image: &Image, source: &Source) -> Result<Vec<Reference>, ImageError> {
    let tags = image.repo_tags.iter().flatten();
    tags.map(|name| Reference::parse(name).map_err(|e| source.invalid(e))).collect()
}

/// Names in `manifest.json` with the digest of the config, for archives that are an OCI layout as well.
pub(super) fn names(store: &Store, source: &Source) -> Result<Vec<Found>, ImageError> {
    let mut names = Vec::new();
    let Some(images) = images(store, source)? else { return Ok(names) };
    for image in &images {
        if let Some(config) = source.document(store, &image.config)? {
            names.push(Found { digest: Digest::of(&config), names: references(image, source)? });
        }
    }
    Ok(names)
}

pub(super) fn read(store: &Store, source: &Source) -> Result<Option<Vec<Found>>, ImageError> {
    let Some(images) = images(store, source)? else { return Ok(None) };
    images.iter().map(|image| one(store, source, image)).collect::<Result<_, _>>().map(Some)
}

fn one(store: &Store, source: &Source, image: &Image) -> Result<Found, ImageError> {
    let missing = |name: &str| source.invalid(format!("its manifest.json names {name}, which is missing"));
    let (config, config_size) =
        source.store_blob(store, &image.config, None)?.ok_or_else(|| missing(&image.config))?;
    let parsed = crate::store::parse_config(&store.read_blob(&config)?)?;
    let diff_ids = parsed.rootfs().diff_ids();
    if diff_ids.len() != image.layers.len() {
        return Err(source.invalid(format!(
            "{} has {} layers but {} diff IDs",
            image.config,
            image.layers.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::new();
    for name in &image.layers {
        let (digest, size) = source.store_blob(store, name, None)?.ok_or_else(|| missing(name))?;
        let kind = format!("{OCI_LAYER}{}", compression(&store.blob_path(&digest))?.suffix());
        layers.push(Descriptor::new(&kind, digest, size));
    }
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(OCI_CONFIG, config, config_size),
        layers,
        subject: None,
        annotations: None,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|e| ImageError::Internal(e.to_string()))?;
    Ok(Found { digest: store.put_blob(&bytes)?, names: references(image, source)? })
}
