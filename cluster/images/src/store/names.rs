//! What names mean: `names.json`, whole in memory, rewritten at each change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::Store;
use crate::{
    Digest, ImageError, Reference,
    error::Context,
    manifest::{Descriptor, Manifest},
};

/// All names. Local repositories are what was built, loaded or pushed here; pulled names are copies of what a registry has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct State {
    #[serde(default)]
    pub(crate) repositories: BTreeMap<String, Repository>,
    /// By the full reference, `docker.io/library/foo:v1`.
    #[serde(default)]
    pub(crate) pulled: BTreeMap<String, Tagged>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Repository {
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, Tagged>,
    /// Manifests with or without a tag. One that lost its tag stays: a Revision may name it by digest.
    #[serde(default)]
    pub(crate) manifests: BTreeMap<Digest, Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tagged {
    pub(crate) digest: Digest,
    pub(crate) at: jiff::Timestamp,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) media_type: String,
    pub(crate) size: u64,
    /// Subject, type and annotations: what the referrers API answers with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Entry {
    pub(crate) fn new(manifest: &Manifest, media_type: &str, size: u64) -> Self {
        let subject = manifest.subject().map(|d| d.digest.clone());
        let refers = subject.is_some();
        Self {
            media_type: media_type.to_owned(),
            size,
            subject,
            artifact_type: manifest.artifact_type().filter(|_| refers).map(str::to_owned),
            annotations: manifest.annotations().filter(|_| refers).cloned(),
        }
    }

    pub(crate) fn descriptor(&self, digest: &Digest) -> Descriptor {
        Descriptor {
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
            ..Descriptor::new(&self.media_type, digest.clone(), self.size)
        }
    }
}

/// How an image came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Built, loaded from a file, or pushed.
    Local,
    /// Pulled from a registry.
    Pulled,
}

/// One name in the store, for listings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// Repository: local (`foo`) or with its registry (`docker.io/library/foo`) if pulled.
    pub repository: String,
    /// Tag; empty for an image pulled by its digest.
    pub tag: String,
    /// Digest of its manifest or index.
    pub digest: String,
    /// Bytes of manifest, config and layers as transferred; of an index, those parts that are here.
    pub size: u64,
    /// When the name got this digest, RFC 3339.
    pub created: String,
    /// How it came here.
    pub origin: Origin,
}

pub(super) fn read(root: &Path) -> Result<State, ImageError> {
    let path = root.join("names.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            ImageError::corrupt(
                path.display().to_string(),
                format!("{e}; move it away to start with no names, and load or push the images again"),
            )
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
        Err(e) => Err(e).at("read", &path),
    }
}

fn write(root: &Path, state: &State) -> Result<(), ImageError> {
    let bytes = serde_json::to_vec_pretty(state).map_err(|e| ImageError::Internal(e.to_string()))?;
    let (path, temporary) = (root.join("names.json"), root.join("tmp/names.json"));
    let mut file = fs::File::create(&temporary).at("write", &temporary)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).at("write", &temporary)?;
    fs::rename(&temporary, &path).at("replace", &path)?;
    fs::File::open(root).and_then(|dir| dir.sync_all()).at("sync", root)
}

impl Store {
    /// Changes names: on disk first, then for readers, who never wait for the disk. Blocks; not for async callers.
    pub(crate) fn change<T>(&self, edit: impl FnOnce(&mut State) -> T) -> Result<T, ImageError> {
        let _one_at_a_time = self.writer.lock();
        let mut next = State::clone(&self.state());
        let result = edit(&mut next);
        write(&self.root, &next)?;
        *self.state.write() = Arc::new(next);
        Ok(result)
    }

    /// Records a manifest that is in the blobs under a local repository, and its tags.
    pub(crate) fn record(
        &self,
        repository: &str,
        tags: &[&str],
        digest: &Digest,
        entry: Entry,
    ) -> Result<(), ImageError> {
        self.change(|state| {
            let repository = state.repositories.entry(repository.to_owned()).or_default();
            repository.manifests.insert(digest.clone(), entry);
            for tag in tags {
                repository
                    .tags
                    .insert((*tag).to_owned(), Tagged { digest: digest.clone(), at: jiff::Timestamp::now() });
            }
        })
    }

    pub(crate) fn record_pulled(&self, reference: &Reference, digest: &Digest) -> Result<(), ImageError> {
        let name = reference.to_string();
        if self.state().pulled.get(&name).is_some_and(|t| t.digest == *digest) {
            return Ok(());
        }
        self.change(|state| {
            state.pulled.insert(name, Tagged { digest: digest.clone(), at: jiff::Timestamp::now() });
        })
    }

    /// What a name means here, local names first. A digest means itself, if its content is here.
    pub(crate) fn lookup(&self, reference: &Reference) -> Option<(Digest, Origin)> {
        let state = self.state();
        let repository = self.local_repository(reference);
        if let Some(digest) = &reference.digest {
            let local = state.repositories.get(&repository).is_some_and(|r| r.manifests.contains_key(digest));
            let origin = if local { Origin::Local } else { Origin::Pulled };
            return self.has_blob(digest).then(|| (digest.clone(), origin));
        }
        let local = state.repositories.get(&repository).and_then(|r| r.tags.get(reference.tag_or_latest()));
        let pulled = || state.pulled.get(&reference.to_string()).map(|t| (t.digest.clone(), Origin::Pulled));
        local.map(|t| (t.digest.clone(), Origin::Local)).or_else(pulled)
    }

    /// Every name in the store, sorted by repository and tag.
    pub fn list(&self) -> Vec<ImageSummary> {
        let state = self.state();
        let summary = |repository: &str, tag: &str, tagged: &Tagged, origin| ImageSummary {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: tagged.digest.to_string(),
            size: self.size(&tagged.digest),
            created: tagged.at.to_string(),
            origin,
        };
        let local = state.repositories.iter().flat_map(|(name, repository)| {
            repository.tags.iter().map(|(tag, tagged)| summary(name, tag, tagged, Origin::Local))
        });
        let pulled = state.pulled.iter().filter_map(|(name, tagged)| {
            let reference = Reference::parse(name).ok()?;
            Some(summary(
                &reference.name(),
                reference.tag.as_deref().unwrap_or_default(),
                tagged,
                Origin::Pulled,
            ))
        });
        let mut all: Vec<_> = local.chain(pulled).collect();
        all.sort_by(|a, b| {
            (&a.repository, &a.tag, a.origin as u8).cmp(&(&b.repository, &b.tag, b.origin as u8))
        });
        all
    }

    /// Gives the image `source` the further local name `target`. Blocks on the disk.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] if there is no `source`; [`ImageError::InvalidName`].
    pub fn tag(&self, source: &str, target: &str) -> Result<(), ImageError> {
        let (digest, _) = self.find(source)?;
        let target = Reference::parse(target)?;
        let (manifest, size) = self.manifest(&digest)?;
        let entry = Entry::new(&manifest, manifest.media_type(), size);
        self.record(&self.local_repository(&target), &[target.tag_or_latest()], &digest, entry)
    }

    /// Forgets a name, the local one if there are both. Content goes at the next [`Store::collect_garbage`] unless another name has it.
    /// A name with a digest removes that manifest and all its tags. Blocks on the disk.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] if there is no such name.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let reference = Reference::parse(name)?;
        let repository = self.local_repository(&reference);
        let removed = self.change(|state| {
            let local = match &reference.digest {
                Some(digest) => remove_manifest(state, &repository, digest),
                None => remove_tag(state, &repository, reference.tag_or_latest()),
            };
            local || state.pulled.remove(&reference.to_string()).is_some()
        })?;
        if removed { Ok(()) } else { Err(absent(name)) }
    }

    /// Forgets that an image was pulled by this name; a local image of the same name stays. Whether it was known. Blocks on the disk.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`]; [`ImageError::Io`].
    pub fn forget_pulled(&self, name: &str) -> Result<bool, ImageError> {
        let reference = Reference::parse(name)?;
        self.change(|state| state.pulled.remove(&reference.to_string()).is_some())
    }

    pub(crate) fn find(&self, name: &str) -> Result<(Digest, Origin), ImageError> {
        self.lookup(&Reference::parse(name)?).ok_or_else(|| absent(name))
    }

    fn size(&self, digest: &Digest) -> u64 {
        fn add(store: &Store, digest: &Digest, seen: &mut BTreeSet<Digest>) -> u64 {
            let Ok((manifest, size)) = store.manifest(digest) else { return 0 };
            if !seen.insert(digest.clone()) {
                return 0;
            }
            size + match &manifest {
                Manifest::Index(index) => index.manifests.iter().map(|d| add(store, &d.digest, seen)).sum(),
                Manifest::Image(_) => manifest
                    .children()
                    .iter()
                    .filter(|d| seen.insert(d.digest.clone()))
                    .map(|d| d.size)
                    .sum::<u64>(),
            }
        }
        add(self, digest, &mut BTreeSet::new())
    }
}

/// Removes a manifest with its tags; whether it was there.
pub(crate) fn remove_manifest(state: &mut State, repository: &str, digest: &Digest) -> bool {
    let Some(found) = state.repositories.get_mut(repository) else { return false };
    found.tags.retain(|_, t| t.digest != *digest);
    let removed = found.manifests.remove(digest).is_some();
    drop_empty(state, repository);
    removed
}

/// Removes a tag, and leaves its manifest to be named by digest; whether it was there.
pub(crate) fn remove_tag(state: &mut State, repository: &str, tag: &str) -> bool {
    let Some(found) = state.repositories.get_mut(repository) else { return false };
    found.tags.remove(tag).is_some()
}

fn drop_empty(state: &mut State, repository: &str) {
    if state.repositories.get(repository).is_some_and(|r| r.tags.is_empty() && r.manifests.is_empty()) {
        state.repositories.remove(repository);
    }
}

fn absent(name: &str) -> ImageError {
    ImageError::NotFound {
        image: name.to_owned(),
        detail: "no image of this name is in the store; list them to see what is".into(),
    }
}
