//! Garbage collection: what no name leads to goes.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Store, image};
use crate::{Digest, ImageError, error::Context, manifest::Manifest};

/// Content younger than this stays even if nothing leads to it yet: a push uploads layers before their manifest.
const GRACE: Duration = Duration::from_secs(3600);

/// What [`Store::collect_garbage`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: usize,
    /// Unpacked layers removed.
    pub layers: usize,
    /// Bytes of the blobs removed; unpacked layers are not counted.
    pub bytes: u64,
}

impl Store {
    /// Removes content that neither a name nor a manifest of a local repository nor one of `in_use` (digests of images that
    /// containers run, as in [`Image::digest`](super::Image)) leads to, if it is older than an hour. With `untagged`, local manifests without
    /// a tag count for nothing unless they are in `in_use`. Waits for transfers under way.
    ///
    /// # Errors
    /// [`ImageError::Io`]; what was removed until then stays removed.
    pub async fn collect_garbage(
        self: &Arc<Self>,
        in_use: &[String],
        untagged: bool,
    ) -> Result<Collected, ImageError> {
        let in_use: Vec<Digest> = in_use.iter().filter_map(|d| d.parse().ok()).collect();
        let _nothing_grows = self.growth.clone().write_owned().await;
        let store = self.clone();
        let work = move || store.sweep(&in_use, untagged, SystemTime::now(), GRACE);
        tokio::task::spawn_blocking(work).await.map_err(|e| ImageError::Internal(e.to_string()))?
    }

    fn sweep(
        &self,
        in_use: &[Digest],
        untagged: bool,
        now: SystemTime,
        grace: Duration,
    ) -> Result<Collected, ImageError> {
        if untagged {
            let keep: HashSet<&Digest> = in_use.iter().collect();
            self.change(|state| {
                for repository in state.repositories.values_mut() {
                    let tagged: HashSet<Digest> =
                        repository.tags.values().map(|t| t.digest.clone()).collect();
                    repository.manifests.retain(|d, _| tagged.contains(d) || keep.contains(d));
                }
                state.repositories.retain(|_, r| !r.manifests.is_empty() || !r.tags.is_empty());
            })?;
        }
        let state = self.state();
        let mut marked = Marked::default();
        let local = state
            .repositories
            .values()
            .flat_map(|r| r.manifests.keys().chain(r.tags.values().map(|t| &t.digest)));
        for digest in local.chain(state.pulled.values().map(|t| &t.digest)).chain(in_use) {
            self.mark(digest, &mut marked);
        }
        let mut collected = Collected::default();
        let old = |meta: &fs::Metadata| {
            meta.modified().is_ok_and(|m| now.duration_since(m).is_ok_and(|age| age >= grace))
        };
        for (name, path) in entries(&self.root.join("blobs/sha256"))? {
            let Ok(meta) = fs::metadata(&path) else { continue };
            if !marked.blobs.contains(&name) && old(&meta) {
                fs::remove_file(&path).at("remove", &path)?;
                collected.blobs += 1;
                collected.bytes += meta.len();
            }
        }
        for (name, path) in entries(&self.root.join("layers"))? {
            if !marked.layers.contains(&name) {
                // Out of the way first: a half removed layer must never be found by its name.
                let tmp = self.tmp();
                fs::rename(&path, &tmp).at("move away", &path)?;
                fs::remove_dir_all(&tmp).at("remove", &tmp)?;
                collected.layers += 1;
            }
        }
        for (_, path) in entries(&self.root.join("partial"))? {
            if fs::metadata(&path).is_ok_and(|meta| old(&meta)) {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        self.uploads.drop_older(GRACE * 24);
        self.forget_ready();
        self.forget_locks();
        Ok(collected)
    }

    /// Whether any name or local manifest leads to `digest`.
    pub(crate) fn is_used(&self, digest: &Digest) -> bool {
        let state = self.state();
        let mut marked = Marked::default();
        let local = state
            .repositories
            .values()
            .flat_map(|r| r.manifests.keys().chain(r.tags.values().map(|t| &t.digest)));
        for root in local.chain(state.pulled.values().map(|t| &t.digest)) {
            self.mark(root, &mut marked);
        }
        marked.blobs.contains(digest.hex())
    }

    fn mark(&self, digest: &Digest, marked: &mut Marked) {
        if !marked.blobs.insert(digest.hex().to_owned()) {
            return;
        }
        // Gone or unreadable content leads nowhere; ensure() reports it to whoever needs it.
        let Ok((manifest, _)) = self.manifest(digest) else { return };
        match &manifest {
            Manifest::Index(index) => index.manifests.iter().for_each(|d| self.mark(&d.digest, marked)),
            Manifest::Image(image) => {
                marked.blobs.extend(manifest.children().iter().map(|d| d.digest.hex().to_owned()));
                let config =
                    self.read_blob(&image.config.digest).and_then(|bytes| image::parse_config(&bytes));
                for link in
                    config.ok().and_then(|config| image::chain(image, &config).ok()).unwrap_or_default()
                {
                    marked.layers.insert(link.chained_name());
                    marked.layers.insert(link.diff_id.hex().to_owned());
                }
            }
        }
    }
}

#[derive(Default)]
struct Marked {
    blobs: BTreeSet<String>,
    layers: BTreeSet<String>,
}

fn entries(folder: &Path) -> Result<Vec<(String, std::path::PathBuf)>, ImageError> {
    let list = fs::read_dir(folder).at("list", folder)?;
    list.map(|entry| {
        entry.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).at("list", folder)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_nothing_leads_to_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let kept = store.import_binary(b"kept", "kept:v1", "/kept", &["/kept"]).unwrap();
        let held = store.import_binary(b"held", "held:v1", "/held", &["/held"]).unwrap();
        store.import_binary(b"gone", "gone:v1", "/gone", &["/gone"]).unwrap();
        for name in ["held:v1", "gone:v1"] {
            store.remove(name).unwrap();
        }
        let later = SystemTime::now() + GRACE * 2;
        let in_use = [held.parse().unwrap()];
        assert_eq!(store.sweep(&in_use, true, SystemTime::now(), GRACE).unwrap().blobs, 0, "all is young");
        // Layer, config and manifest of `gone`.
        assert_eq!(store.sweep(&in_use, true, later, GRACE).unwrap().blobs, 3);
        assert!(store.has_blob(&held.parse().unwrap()));
        assert_eq!(store.sweep(&[], true, later, GRACE).unwrap().blobs, 3);
        assert!(store.has_blob(&kept.parse().unwrap()) && !store.has_blob(&held.parse().unwrap()));
    }

    #[test]
    fn what_was_pulled_can_be_forgotten_and_a_local_image_of_the_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let local = store.import_binary(b"mine", "app:v1", "/app", &["/app"]).unwrap();
        let reference = crate::Reference::parse("docker.io/library/app:v1").unwrap();
        store.record_pulled(&reference, &local.parse().unwrap()).unwrap();
        let pulled =
            || store.list().into_iter().filter(|image| image.origin == crate::Origin::Pulled).count();
        assert_eq!((store.list().len(), pulled()), (2, 1));
        assert!(store.forget_pulled(&reference.to_string()).unwrap());
        assert_eq!((store.list().len(), pulled()), (1, 0));
        assert!(!store.forget_pulled(&reference.to_string()).unwrap(), "only once");
        assert!(store.find("app:v1").is_ok());
    }
}
