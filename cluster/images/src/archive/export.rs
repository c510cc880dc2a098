//! One archive that both `docker load` and readers of OCI layouts (`ctr images import`, `podman load`, `skopeo`) take.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
    sync::Arc,
};

use serde_json::json;

use crate::{
    Digest, ImageError, Origin, Reference, Store,
    error::Context,
    manifest::{Descriptor, Manifest, OCI_INDEX},
};

/// A name in the store, and the one to write instead of it.
type Named = (String, Option<String>);

impl Store {
    /// Writes the images `names` into the archive `path`, as an OCI layout that is a `docker save` archive at the same time. Digests are
    /// kept. A local name without a registry is written as Docker's tools complete it, `docker.io/library/foo:v1`. The same images make
    /// the same bytes. The file appears only when it is whole.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] for a name that is not here, [`ImageError::Io`].
    pub async fn export(self: &Arc<Self>, names: &[&str], path: &Path) -> Result<(), ImageError> {
        self.export_named(names.iter().map(|name| ((*name).to_owned(), None)).collect(), path).await
    }

    /// As [`Self::export`], each image under the name beside it, written as it is: `localhost/foo:v1` stays that.
    ///
    /// # Errors
    /// As [`Self::export`], and [`ImageError::InvalidName`].
    pub async fn export_as(self: &Arc<Self>, names: &[(&str, &str)], path: &Path) -> Result<(), ImageError> {
        let names = names.iter().map(|(here, there)| {
            let there = Reference::parse(there)?;
            Ok(((*here).to_owned(), Some(format!("{}:{}", there.name(), there.tag_or_latest()))))
        });
        self.export_named(names.collect::<Result<_, ImageError>>()?, path).await
    }

    async fn export_named(self: &Arc<Self>, names: Vec<Named>, path: &Path) -> Result<(), ImageError> {
        let (store, path) = (self.clone(), path.to_path_buf());
        let _content_stays = self.growth.clone().read_owned().await;
        let export = move || store.export_blocking(&names, &path);
        tokio::task::spawn_blocking(export).await.map_err(|e| ImageError::Internal(e.to_string()))?
    }

    fn export_blocking(&self, names: &[Named], path: &Path) -> Result<(), ImageError> {
        let mut blobs = BTreeSet::new();
        let mut entries = Vec::new();
        let mut docker: BTreeMap<Digest, (Vec<String>, serde_json::Value)> = BTreeMap::new();
        for (name, written) in names {
            let (digest, origin) = self.find(name)?;
            let full = match written {
                Some(written) => written.clone(),
                None => full_name(&Reference::parse(name)?, origin),
            };
            self.collect(&digest, &mut blobs)?;
            let (manifest, size) = self.manifest(&digest)?;
            entries.push(Descriptor {
                annotations: Some(BTreeMap::from([
                    ("io.containerd.image.name".to_owned(), full.clone()),
                    (
                        "org.opencontainers.image.ref.name".to_owned(),
                        full.rsplit(':').next().unwrap_or_default().to_owned(),
                    ),
                ])),
                ..Descriptor::new(manifest.media_type(), digest.clone(), size)
            });
            let (id, image) = self.platform_manifest(name, &digest)?;
            let place = |d: &Descriptor| format!("blobs/sha256/{}", d.digest.hex());
            let layers: Vec<String> = image.layers.iter().map(place).collect();
            let known = docker
                .entry(id)
                .or_insert_with(|| (vec![], json!({ "Config": place(&image.config), "Layers": layers })));
            known.0.push(full);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        let docker: Vec<serde_json::Value> = docker
            .into_values()
            .map(|(names, mut image)| {
                image["RepoTags"] = json!(names);
                image
            })
            .collect();
        let temporary = path.with_extension("partial");
        let written = self.write_archive(&temporary, &blobs, &index, &json!(docker));
        written.and_then(|()| fs::rename(&temporary, path).at("write", path)).inspect_err(|_| {
            // The error is what matters.
            let _ = fs::remove_file(&temporary);
        })
    }

    fn collect(&self, digest: &Digest, blobs: &mut BTreeSet<Digest>) -> Result<(), ImageError> {
        if !blobs.insert(digest.clone()) {
            return Ok(());
        }
        let (manifest, _) = self.manifest(digest)?;
        match &manifest {
            // Variants that were never fetched cannot be written; readers take such a layout.
            Manifest::Index(index) => index
                .manifests
                .iter()
                .filter(|d| self.has_blob(&d.digest))
                .try_for_each(|d| self.collect(&d.digest, blobs)),
            Manifest::Image(_) => {
                blobs.extend(manifest.children().into_iter().map(|d| d.digest.clone()));
                Ok(())
            }
        }
    }

    fn write_archive(
        &self,
        path: &Path,
        blobs: &BTreeSet<Digest>,
        index: &serde_json::Value,
        docker: &serde_json::Value,
    ) -> Result<(), ImageError> {
        let file = fs::File::create(path).at("create", path)?;
        let mut tar = tar::Builder::new(std::io::BufWriter::with_capacity(256 << 10, file));
        let mut add = |name: &str, size: u64, content: &mut dyn std::io::Read| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(size);
            tar.append_data(&mut header, name, content).at("write", path)
        };
        for (name, document) in [
            ("oci-layout", &json!({"imageLayoutVersion": "1.0.0"})),
            ("index.json", index),
            ("manifest.json", docker),
        ] {
            let bytes = document.to_string();
            add(name, bytes.len() as u64, &mut bytes.as_bytes())?;
        }
        for digest in blobs {
            let blob = self.blob_path(digest);
            let mut file = fs::File::open(&blob).at("open blob", &blob)?;
            let size = file.metadata().at("look at", &blob)?.len();
            add(&format!("blobs/sha256/{}", digest.hex()), size, &mut file)?;
        }
        let mut file = tar.into_inner().at("write", path)?;
        file.flush().at("write", path)?;
        file.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all()).at("write", path)
    }
}

/// The name to give to others: a local repository `foo`, however it was written, is `docker.io/library/foo`.
fn full_name(reference: &Reference, origin: Origin) -> String {
    let tag = reference.tag_or_latest();
    if origin == Origin::Local && reference.is_loopback() {
        let local = reference.local_repository();
        let path = if local.contains('/') { local } else { format!("library/{local}") };
        return format!("docker.io/{path}:{tag}");
    }
    format!("{}:{tag}", reference.name())
}
