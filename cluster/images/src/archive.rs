//! Images as files: `docker save` archives and OCI image layouts, in one file or a folder.
//!
//! Sources: OCI image specification, image-layout.md; Docker image specification v1.2 (`manifest.json`).

mod docker;
mod export;
mod layout;
mod source;

use std::{path::Path, sync::Arc};

use crate::{Digest, ImageError, Reference, Store, manifest::Manifest, store::Entry};
use source::Source;

/// An image found in an archive.
struct Found {
    digest: Digest,
    names: Vec<Reference>,
}

impl Store {
    /// Loads the images of the archive or folder `path`: what `docker save`, `podman save`, `docker buildx -o type=oci`, `ko`, `skopeo` and
    /// [`Store::export`] write, plain or compressed. They become local names: `tag`, if given and there is one image; else the names
    /// in the archive. Gives the names. If it is both kinds in one, the OCI part counts, for it keeps digests.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] if it is no such archive, is damaged, or brings no name and none is given; [`ImageError::Io`].
    pub async fn load_archive(
        self: &Arc<Self>,
        path: &Path,
        tag: Option<&str>,
    ) -> Result<Vec<String>, ImageError> {
        let tag = tag.map(Reference::parse).transpose()?;
        let (store, path) = (self.clone(), path.to_path_buf());
        let load = move || store.load_blocking(&path, tag.as_ref());
        tokio::task::spawn_blocking(load).await.map_err(|e| ImageError::Internal(e.to_string()))?
    }

    fn load_blocking(&self, path: &Path, tag: Option<&Reference>) -> Result<Vec<String>, ImageError> {
        let what = path.display().to_string();
        let source = Source::open(self, path)?;
        let mut found = match layout::read(self, &source)? {
            Some(found) => found,
            None => docker::read(self, &source)?.ok_or_else(|| {
                ImageError::invalid(
                    &what,
                    "it is neither a `docker save` archive (manifest.json) nor an OCI layout (index.json)",
                )
            })?,
        };
        if let Some(tag) = tag {
            match found.as_mut_slice() {
                [only] => only.names = vec![tag.clone()],
                several => {
                    return Err(ImageError::invalid(
                        &what,
                        format!(
                            "it has {} images, so they cannot all get the name {tag}; load it without a name",
                            several.len()
                        ),
                    ));
                }
            }
        }
        if found.iter().all(|f| f.names.is_empty()) {
            return Err(ImageError::invalid(&what, "its images have no names; give one"));
        }
        let mut names = Vec::new();
        for image in &found {
            let (manifest, size) = self.manifest(&image.digest)?;
            let entry = Entry::new(&manifest, manifest.media_type(), size);
            for name in &image.names {
                let (repository, tag) = (self.local_repository(name), name.tag_or_latest());
                self.record(&repository, &[tag], &image.digest, entry.clone())?;
                names.push(format!("{repository}:{tag}"));
            }
        }
        Ok(names)
    }

    /// Checks that an image is whole: for an index, what is here of it must have the variant for this machine.
    fn check_whole(&self, what: &str, digest: &Digest) -> Result<(), ImageError> {
        let (_, manifest) = self.platform_manifest(what, digest)?;
        match Manifest::Image(manifest).children().iter().find(|d| !self.has_blob(&d.digest)) {
            None => Ok(()),
            Some(missing) => {
                Err(ImageError::invalid(what, format!("blob {} is missing in it", missing.digest)))
            }
        }
    }
}
