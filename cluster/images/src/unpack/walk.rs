//! Paths inside a layer, walked by hand so that no symlink leads out.

use std::{
    collections::{HashSet, VecDeque},
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::{Rights, Unpacked, entry::Refused};
use crate::{ImageError, error::Context};

/// Symlinks followed for one path; the kernel's own limit.
const MAX_HOPS: usize = 40;

pub(super) struct Tree<'a> {
    root: &'a Path,
    lowers: &'a [PathBuf],
    pub(super) rights: Rights,
    /// Paths (relative) that this layer itself brought: a whiteout beside them means the layers below only.
    own: HashSet<PathBuf>,
    /// Folders' times are set last, for making their entries changes them.
    folder_times: Vec<(PathBuf, i64)>,
    depends_on_lower: bool,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path, lowers: &'a [PathBuf], rights: Rights) -> Result<Self, ImageError> {
        // Whatever the umask, `/` of a container is for all to enter.
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).at("set mode of", root)?;
        Ok(Self {
            root,
            lowers,
            rights,
            own: HashSet::new(),
            folder_times: Vec::new(),
            depends_on_lower: false,
        })
    }

    pub(super) fn absolute(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    pub(super) fn set_own(&mut self, path: &Path) {
        self.own.insert(path.to_path_buf());
    }

    pub(super) fn is_own(&self, path: &Path) -> bool {
        self.own.contains(path)
    }

    pub(super) fn later_time(&mut self, path: &Path, seconds: i64) {
        self.folder_times.push((path.to_path_buf(), seconds));
    }

    pub(super) fn leans_on_lower(&mut self) {
        self.depends_on_lower = true;
    }

    pub(super) fn finish(self) -> Result<Unpacked, ImageError> {
        for (path, seconds) in &self.folder_times {
            let absolute = self.absolute(path);
            // It may have been replaced or removed by a later entry.
            if fs::symlink_metadata(&absolute).is_ok_and(|m| m.is_dir()) {
                set_time(&absolute, *seconds)?;
            }
        }
        Ok(Unpacked { depends_on_lower: self.depends_on_lower })
    }

    /// The folder that `folders` leads to, relative to the root and free of symlinks; missing ones are made.
    pub(super) fn folder(&mut self, folders: &[OsString]) -> Result<PathBuf, Refused> {
        let mut todo: VecDeque<OsString> = folders.iter().cloned().collect();
        let mut real = PathBuf::new();
        let mut hops = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                // Only symlinks bring these; above the root is the root, as for chroot.
                real.pop();
                continue;
            }
            let next = real.join(&part);
            let target = match self.at(&next)? {
                Some(meta) if meta.is_dir() => None,
                Some(meta) if meta.is_symlink() => Some(self.absolute(&next)),
                Some(meta) if is_whiteout(&meta) => {
                    // Deleted, and now a folder again: nothing of the layers below shines through.
                    let absolute = self.absolute(&next);
                    fs::remove_file(&absolute).at("replace", &absolute)?;
                    make_folder(&absolute)?;
                    self.set_opaque(&next)?;
                    None
                }
                Some(_) => return Err(Refused::Entry("is below something that is no folder".into())),
                None => {
                    self.depends_on_lower = true;
                    self.below(&next)?
                }
            };
            let Some(link) = target else {
                real = next;
                continue;
            };
            hops += 1;
            if hops > MAX_HOPS {
                return Err(Refused::Entry("leads through too many symlinks".into()));
            }
            let target = fs::read_link(&link).at("read symlink", &link)?;
            for component in target.components().rev() {
                match component {
                    Component::RootDir | Component::Prefix(_) => real = PathBuf::new(),
                    Component::CurDir => {}
                    Component::ParentDir => todo.push_front("..".into()),
                    Component::Normal(part) => todo.push_front(part.to_owned()),
                }
            }
        }
        Ok(real)
    }

    /// Makes the folder `path`, which this layer has no entry for, as the layers below have it; or gives the symlink
    /// that they have in its place.
    fn below(&mut self, path: &Path) -> Result<Option<PathBuf>, Refused> {
        let found = self.lower(path);
        if let Some((place, meta)) = &found
            && meta.is_symlink()
        {
            return Ok(Some(place.clone()));
        }
        let absolute = self.absolute(path);
        make_folder(&absolute)?;
        if let Some((_, meta)) = found.filter(|(_, meta)| meta.is_dir()) {
            self.set_owner(&absolute, meta.uid(), meta.gid())?;
            fs::set_permissions(&absolute, meta.permissions()).at("set mode of", &absolute)?;
            self.later_time(path, meta.mtime());
        }
        Ok(None)
    }

    /// What the layers below have at `path`, as a mount of them would show it.
    pub(super) fn lower(&self, path: &Path) -> Option<(PathBuf, Metadata)> {
        for layer in self.lowers {
            let mut place = layer.clone();
            let mut opaque = false;
            let mut parts = path.components().peekable();
            while let Some(part) = parts.next() {
                place.push(part);
                let Ok(meta) = fs::symlink_metadata(&place) else { break };
                if is_whiteout(&meta) {
                    return None;
                }
                if parts.peek().is_none() {
                    return Some((place, meta));
                }
                if !meta.is_dir() {
                    return None;
                }
                opaque |= is_opaque(&place, self.rights);
            }
            if opaque {
                return None;
            }
        }
        None
    }

    /// What this layer has at `path` (relative, its folder walked before).
    pub(super) fn at(&self, path: &Path) -> Result<Option<Metadata>, ImageError> {
        let absolute = self.absolute(path);
        match fs::symlink_metadata(&absolute) {
            Ok(meta) => Ok(Some(meta)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).at("look at", &absolute),
        }
    }

    pub(super) fn white_out(&mut self, path: &Path) -> Result<(), ImageError> {
        let absolute = self.absolute(path);
        if self.at(path)?.is_some() {
            // A folder made only to hold something, or an earlier whiteout: hide what is below it.
            return if fs::symlink_metadata(&absolute).is_ok_and(|m| m.is_dir()) {
                self.set_opaque(path)
            } else {
                Ok(())
            };
        }
        rustix::fs::mknodat(CWD, &absolute, FileType::CharacterDevice, Mode::empty(), 0)
            .at("make whiteout", &absolute)
    }

    pub(super) fn set_opaque(&self, path: &Path) -> Result<(), ImageError> {
        let absolute = self.absolute(path);
        rustix::fs::lsetxattr(&absolute, self.rights.opaque_attribute(), b"y", XattrFlags::empty()).context(|| {
            format!(
                "cannot mark {} as opaque: the store needs a file system with extended attributes, such as ext4, xfs or btrfs",
                absolute.display()
            )
        })
    }

    pub(super) fn set_owner(&self, absolute: &Path, uid: u32, gid: u32) -> Result<(), ImageError> {
        if self.rights.root {
            std::os::unix::fs::lchown(absolute, Some(uid), Some(gid)).at("change owner of", absolute)?;
        }
        Ok(())
    }
}

pub(super) fn make_folder(absolute: &Path) -> Result<(), ImageError> {
    fs::create_dir(absolute).at("make folder", absolute)?;
    fs::set_permissions(absolute, fs::Permissions::from_mode(0o755)).at("set mode of", absolute)
}

pub(super) fn set_time(absolute: &Path, seconds: i64) -> Result<(), ImageError> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, absolute, &times, AtFlags::SYMLINK_NOFOLLOW).at("set time of", absolute)
}

fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(place: &Path, rights: Rights) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::lgetxattr(place, rights.opaque_attribute(), &mut value[..]).is_ok_and(|n| n == 1)
        && value == *b"y"
}

/// A name in a tar as components: relative, without `.`; `..` is refused.
pub(super) fn components(name: &[u8]) -> Result<Vec<OsString>, Refused> {
    let mut parts = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Refused::Entry("has '..' in its path".into())),
            part if part.contains(&0) => return Err(Refused::Entry("has a NUL in its path".into())),
            part => parts.push(OsStr::from_bytes(part).to_owned()),
        }
    }
    Ok(parts)
}
