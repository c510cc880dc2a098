//! From a digest to an image that can be mounted.

use std::{path::PathBuf, sync::Arc};

use oci_spec::image::ImageConfiguration;
use sha2::{Digest as _, Sha256};

use super::Store;
use crate::{
    Digest, ImageError, Progress, ProgressSender,
    error::Context,
    manifest::{Descriptor, ImageManifest, Manifest, select},
    report,
    unpack::{self, Unpacked},
};

/// An image that is here, unpacked and ready to be mounted.
#[derive(Debug, Clone)]
pub struct Image {
    /// The reference it was asked for by, completed: `docker.io/library/foo:v1`.
    pub reference: String,
    /// Digest the reference stands for (of an index, if it names one): `sha256:...`.
    pub digest: String,
    /// Digest of the manifest for this machine's platform; the same as `digest` unless that is an index.
    pub manifest_digest: String,
    /// Digest of the image's configuration, which Docker calls the image's ID.
    pub id: String,
    /// Entrypoint, environment, user and so on.
    pub config: Arc<ImageConfiguration>,
    /// Unpacked layers, topmost first as overlayfs's `lowerdir` wants them. An image may have none.
    pub layers: Vec<PathBuf>,
}

impl Store {
    /// The image with manifest or index `digest`, unpacked. Callers at the same time wait for one unpacking.
    ///
    /// # Errors
    /// [`ImageError::Corrupt`] and [`ImageError::Io`] if content is gone or damaged; [`ImageError::NotFound`] if an index has
    /// nothing for this machine.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        reference: String,
        digest: &Digest,
        progress: Option<&ProgressSender>,
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.ready.get(digest) {
            return Ok(Image { reference, ..image.clone() });
        }
        let image = self
            .preparations
            .run(digest.to_string(), || {
                let (store, reference, digest, progress) =
                    (self.clone(), reference.clone(), digest.clone(), progress.cloned());
                async move {
                    let _content_stays = store.growth.clone().read_owned().await;
                    let image = store.unpack_image(&reference, &digest, progress.as_ref()).await?;
                    store.ready.insert(digest, image.clone());
                    Ok(image)
                }
            })
            .await?;
        Ok(Image { reference, ..image })
    }

    /// The manifest for this machine behind `digest`.
    pub(crate) fn platform_manifest(
        &self,
        image: &str,
        digest: &Digest,
    ) -> Result<(Digest, ImageManifest), ImageError> {
        let (mut digest, mut manifest) = (digest.clone(), self.manifest(digest)?.0);
        // An index may hold indexes; more than a few levels is a mistake or malice.
        for _ in 0..4 {
            match manifest {
                Manifest::Image(found) => return Ok((digest, found)),
                Manifest::Index(index) => {
                    let chosen = select(&index, &self.platform)
                        .ok_or_else(|| self.no_platform(image, &index.manifests))?;
                    digest = chosen.digest.clone();
                    manifest = self.manifest(&digest)?.0;
                }
            }
        }
        Err(ImageError::invalid(format!("image {image:?}"), "its indexes are nested too deep"))
    }

    pub(crate) fn no_platform(&self, image: &str, offered: &[Descriptor]) -> ImageError {
        let offered: Vec<_> = offered
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .map(|p| format!("{}/{}", p.os, p.architecture))
            .collect();
        ImageError::NotFound {
            image: image.to_owned(),
            detail: format!(
                "it has no variant for {}/{}, only {}; build it for this platform",
                self.platform.os,
                self.platform.architecture,
                if offered.is_empty() {
                    "variants without a platform".to_owned()
                } else {
                    offered.join(", ")
                }
            ),
        }
    }

    pub(crate) fn forget_ready(&self) {
        self.ready.clear();
    }

    pub(crate) fn layer_path(&self, name: &str) -> PathBuf {
        self.root.join("layers").join(name)
    }

    async fn unpack_image(
        self: &Arc<Self>,
        reference: &str,
        digest: &Digest,
        progress: Option<&ProgressSender>,
    ) -> Result<Image, ImageError> {
        let (manifest_digest, manifest) = self.platform_manifest(reference, digest)?;
        let config = parse_config(&self.read_blob(&manifest.config.digest)?)?;
        let chain =
            chain(&manifest, &config).map_err(|e| ImageError::invalid(format!("image {reference:?}"), e))?;
        let mut layers: Vec<PathBuf> = Vec::with_capacity(chain.len());
        for link in &chain {
            let layer = self.unpack_layer(link, &layers, progress).await?;
            layers.insert(0, layer);
        }
        Ok(Image {
            reference: reference.to_owned(),
            digest: digest.to_string(),
            manifest_digest: manifest_digest.to_string(),
            id: manifest.config.digest.to_string(),
            config: Arc::new(config),
            layers,
        })
    }

    /// Unpacks one layer unless that was done before. `lowers` are the layers below it, topmost first.
    async fn unpack_layer(
        self: &Arc<Self>,
        link: &Link,
        lowers: &[PathBuf],
        progress: Option<&ProgressSender>,
    ) -> Result<PathBuf, ImageError> {
        let (plain, chained) = (self.layer_path(link.diff_id.hex()), self.layer_path(&link.chained_name()));
        let lock = self.lock_of(&format!("layer {}", link.diff_id));
        let _one = lock.lock().await;
        if let Some(done) = [&plain, &chained].into_iter().find(|p| p.is_dir()) {
            return Ok(done.clone());
        }
        report(progress, || Progress::Unpacking { digest: link.blob.to_string() });
        let (store, blob, diff_id, lowers) =
            (self.clone(), link.blob.clone(), link.diff_id.clone(), lowers.to_vec());
        let work = move || {
            let tmp = store.tmp();
            let result = unpack::unpack(&store.blob_path(&blob), &tmp, &lowers, &diff_id, store.rights)
                .and_then(|unpacked| {
                    let place =
                        if unpacked == (Unpacked { depends_on_lower: true }) { chained } else { plain };
                    std::fs::rename(&tmp, &place).at("place layer", &place)?;
                    Ok(place)
                });
            if result.is_err() {
                // The next start empties the folder anyway.
                let _ = std::fs::remove_dir_all(&tmp);
            }
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| ImageError::Internal(e.to_string()))?
    }
}

/// One layer: its blob, its diff ID and its place in the chain.
pub(crate) struct Link {
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
    chain_id: Digest,
}

impl Link {
    /// The folder of a layer whose content depends on those below; see `unpack`.
    pub(crate) fn chained_name(&self) -> String {
        format!("{}.chained", self.chain_id.hex())
    }
}

/// Pairs layers with diff IDs, bottom first. Chain IDs as in the OCI image specification, config.md.
pub(crate) fn chain(manifest: &ImageManifest, config: &ImageConfiguration) -> Result<Vec<Link>, String> {
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers.len() {
        return Err(format!(
            "its manifest has {} layers but its config {} diff IDs",
            manifest.layers.len(),
            diff_ids.len()
        ));
    }
    let mut parent: Option<Digest> = None;
    let mut links = Vec::with_capacity(diff_ids.len());
    for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
        let diff_id: Digest = diff_id.parse()?;
        let chain_id = match &parent {
            None => diff_id.clone(),
            Some(parent) => Digest::from_hash(
                Sha256::new().chain_update(parent.as_str()).chain_update(" ").chain_update(diff_id.as_str()),
            ),
        };
        links.push(Link { blob: layer.digest.clone(), diff_id, chain_id: chain_id.clone() });
        parent = Some(chain_id);
    }
    Ok(links)
}

/// Reads an image's configuration, forgiving what old tools leave out or set to null.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfiguration, ImageError> {
    let invalid = |e: serde_json::Error| ImageError::invalid("the image's configuration", e);
    let mut json: serde_json::Value = serde_json::from_slice(bytes).map_err(invalid)?;
    if let Some(object) = json.as_object_mut() {
        object.retain(|_, v| !v.is_null());
        let host = crate::Platform::host();
        object.entry("architecture").or_insert_with(|| host.architecture.into());
        object.entry("os").or_insert_with(|| host.os.into());
        object.entry("rootfs").or_insert_with(|| serde_json::json!({"type": "layers", "diff_ids": []}));
        if let Some(config) = object.get_mut("config").and_then(|c| c.as_object_mut()) {
            config.retain(|_, v| !v.is_null());
        }
    }
    serde_json::from_value(json).map_err(invalid)
}
