//! The files of an archive, wherever they are. A tar's members come in any order, so they are taken out first; names in the
//! tar never become paths on disk.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{Digest, ImageError, Store, digest::Hashing, error::Context, store::copy, unpack::decompress};

/// Documents in an archive (indexes, manifest.json) are not larger than this.
const MAX_DOCUMENT: u64 = 16 << 20;
const MAX_MEMBERS: usize = 100_000;

pub(super) struct Source {
    what: String,
    /// Member name to file; a folder has none and is looked into.
    members: BTreeMap<String, Member>,
    folder: Option<PathBuf>,
    /// Taken out members, removed at the end.
    scratch: Option<PathBuf>,
}

enum Member {
    File(PathBuf, Digest),
    /// Old `docker save` writes a layer that occurs twice as a symlink.
    Link(String),
}

impl Source {
    pub(super) fn open(store: &Store, path: &Path) -> Result<Self, ImageError> {
        let what = path.display().to_string();
        if path.is_dir() {
            return Ok(Self {
                what,
                members: BTreeMap::new(),
                folder: Some(path.to_path_buf()),
                scratch: None,
            });
        }
        let scratch = store.tmp();
        fs::create_dir(&scratch).at("make folder", &scratch)?;
        let mut source =
            Self { what, members: BTreeMap::new(), folder: None, scratch: Some(scratch.clone()) };
        let file = fs::File::open(path).at("open", path)?;
        let (reader, _) = decompress(file).at("read", path)?;
        let mut archive = tar::Archive::new(reader);
        for (number, entry) in archive.entries().at("read", path)?.enumerate() {
            let mut entry = entry.map_err(|e| match number {
                // What the library found there instead is of no use to anybody.
                0 => source.invalid("it is no tar archive".to_owned()),
                _ => source.invalid(format!("it is damaged: {e}")),
            })?;
            if number >= MAX_MEMBERS {
                return Err(source.invalid(format!("it has more than {MAX_MEMBERS} members")));
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let kind = entry.header().entry_type();
            if kind.is_symlink() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = resolve(&name, &String::from_utf8_lossy(&target));
                source.members.insert(name, Member::Link(target));
            } else if kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).trim_start_matches("./").to_owned();
                source.members.insert(name, Member::Link(target));
            } else if kind.is_file() {
                let place = scratch.join(number.to_string());
                let mut to = Hashing::new(fs::File::create(&place).at("create", &place)?);
                copy(&mut entry, &mut to)
                    .context(|| format!("cannot take {name:?} out of {}", source.what))?;
                let (file, digest, _) = to.finish();
                // It may become a blob by a rename.
                file.sync_all().at("sync", &place)?;
                source.members.insert(name, Member::File(place, digest));
            }
        }
        Ok(source)
    }

    pub(super) fn invalid(&self, detail: impl ToString) -> ImageError {
        ImageError::invalid(&self.what, detail)
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    fn member(&self, name: &str) -> Option<(&Path, &Digest)> {
        let mut name = name;
        for _ in 0..8 {
            match self.members.get(name)? {
                Member::File(path, digest) => return Some((path, digest)),
                Member::Link(target) => name = target,
            }
        }
        None
    }

    fn in_folder(&self, name: &str) -> Option<PathBuf> {
        let folder = self.folder.as_ref()?;
        let inside = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        let path = folder.join(name);
        // A link out of the folder would read files that its maker may not know of.
        let stays = || Some(path.canonicalize().ok()?.starts_with(folder.canonicalize().ok()?));
        (inside && stays() == Some(true) && path.is_file()).then_some(path)
    }

    /// A document, if it is there.
    pub(super) fn document(&self, store: &Store, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let path = match self.member(name) {
            Some((path, _)) if path.exists() => path.to_path_buf(),
            // It was one of an image's blobs and has moved there.
            Some((_, digest)) => store.blob_path(digest),
            None => match self.in_folder(name) {
                Some(path) => path,
                None => return Ok(None),
            },
        };
        let mut bytes = Vec::new();
        let file = fs::File::open(&path).at("open", &path)?;
        file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).at("read", &path)?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(self.invalid(format!("its {name} is larger than {MAX_DOCUMENT} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Puts a member into the store's blobs; `None` if it is not there.
    pub(super) fn store_blob(
        &self,
        store: &Store,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<Option<(Digest, u64)>, ImageError> {
        let wrong = |found: &Digest| expected.is_some_and(|e| e != found);
        if let Some((path, digest)) = self.member(name) {
            if wrong(digest) {
                return Err(self.invalid(format!("its member {name} has digest {digest}")));
            }
            if path.exists() {
                let size = fs::metadata(path).at("look at", path)?.len();
                store.adopt(path, digest)?;
                return Ok(Some((digest.clone(), size)));
            }
            // Moved there already, for another image of the same archive.
            let blob = store.blob_path(digest);
            return Ok(Some((digest.clone(), fs::metadata(&blob).at("look at", &blob)?.len())));
        }
        match self.in_folder(name) {
            Some(path) => store.copy_blob(&path, expected).map(Some),
            None => Ok(None),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(scratch) = &self.scratch {
            // The next start empties the store's temporary folder anyway.
            let _ = fs::remove_dir_all(scratch);
        }
    }
}

/// A symlink's target as a member name: `../x/layer.tar` beside `y/layer.tar` is `x/layer.tar`.
fn resolve(member: &str, target: &str) -> String {
    let mut parts: Vec<&str> = member.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The first bytes of a file tell how it is compressed.
pub(super) fn compression(path: &Path) -> Result<crate::unpack::Compression, ImageError> {
    debug_assert!(!path.as_os_str().as_bytes().is_empty());
    let file = fs::File::open(path).at("open", path)?;
    decompress(file).map(|(_, compression)| compression).at("read", path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn links_are_resolved_among_member_names() {
        assert_eq!(super::resolve("y/layer.tar", "../x/layer.tar"), "x/layer.tar");
        assert_eq!(super::resolve("y/layer.tar", "../../../../etc/passwd"), "etc/passwd");
        assert_eq!(super::resolve("a", "./b"), "b");
    }
}
