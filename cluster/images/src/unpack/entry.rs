//! One entry of a layer's tar.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use tar::EntryType;

use super::walk::{Tree, components, make_folder, set_time};
use crate::{ImageError, error::Context, store};

/// Why an entry was not applied.
pub(super) enum Refused {
    /// The entry is to blame.
    Entry(String),
    /// The system is.
    Disk(ImageError),
}

impl From<ImageError> for Refused {
    fn from(error: ImageError) -> Self {
        Self::Disk(error)
    }
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

pub(super) fn apply<R: Read>(tree: &mut Tree<'_>, entry: &mut tar::Entry<'_, R>) -> Result<(), Refused> {
    let kind = entry.header().entry_type();
    if kind.is_pax_global_extensions() {
        return Ok(());
    }
    let mut parts = components(&entry.path_bytes())?;
    let Some(name) = parts.pop() else {
        // The root folder itself.
        return if kind.is_dir() {
            attributes(tree, Path::new(""), entry)
        } else {
            Err(Refused::Entry("has no name".into()))
        };
    };
    let folder = tree.folder(&parts)?;
    let name_bytes = name.as_bytes();
    if name_bytes == OPAQUE {
        return Ok(tree.set_opaque(&folder)?);
    }
    if name_bytes.starts_with(AUFS) {
        return Ok(());
    }
    if let Some(hidden) = name_bytes.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Refused::Entry("is a whiteout of no name".into()));
        }
        let path = folder.join(OsStr::from_bytes(hidden));
        return if tree.is_own(&path) { Ok(()) } else { Ok(tree.white_out(&path)?) };
    }
    let path = folder.join(&name);
    make(tree, &path, kind, entry)?;
    tree.set_own(&path);
    Ok(())
}

fn make<R: Read>(
    tree: &mut Tree<'_>,
    path: &Path,
    kind: EntryType,
    entry: &mut tar::Entry<'_, R>,
) -> Result<(), Refused> {
    let absolute = tree.absolute(path);
    if kind.is_dir() {
        match tree.at(path)? {
            Some(meta) if meta.is_dir() => {}
            Some(_) => {
                // A file of this layer, or a whiteout: either way what is below is to be hidden.
                fs::remove_file(&absolute).at("replace", &absolute)?;
                make_folder(&absolute)?;
                tree.set_opaque(path)?;
            }
            None => make_folder(&absolute)?,
        }
        return attributes(tree, path, entry);
    }
    clear(tree, path)?;
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            // Private until it has its owner: no window with setuid or a wrong reader.
            let mut file = fs::File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&absolute)
                .at("create", &absolute)?;
            store::copy(entry, &mut file).at("write", &absolute)?;
        }
        EntryType::Symlink => {
            let target = entry
                .link_name_bytes()
                .filter(|t| !t.is_empty())
                .ok_or_else(|| Refused::Entry("is a symlink to nothing".into()))?;
            std::os::unix::fs::symlink(OsStr::from_bytes(&target), &absolute)
                .at("make symlink", &absolute)?;
        }
        EntryType::Link => {
            let target =
                entry.link_name_bytes().ok_or_else(|| Refused::Entry("is a hard link to nothing".into()))?;
            let target = linked(tree, &target)?;
            let target = tree.absolute(&target);
            // Never follows a symlink: the link is to what the name is.
            fs::hard_link(&target, &absolute).at("make hard link", &absolute)?;
            return Ok(());
        }
        EntryType::Fifo => special(&absolute, FileType::Fifo, 0)?,
        EntryType::Char | EntryType::Block => {
            if !tree.rights.root {
                tracing::debug!(path = %path.display(), "device left out: only root may make it");
                return Ok(());
            }
            let number = |n: std::io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
            let device = rustix::fs::makedev(
                number(entry.header().device_major()),
                number(entry.header().device_minor()),
            );
            let kind =
                if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
            special(&absolute, kind, device)?;
        }
        other => {
            return Err(Refused::Entry(format!(
                "is of type {:?}, which no layer can have",
                other.as_byte() as char
            )));
        }
    }
    attributes(tree, path, entry)
}

/// What a hard link points to, in this layer. A file that only the layers below have is copied up, as it would be by a
/// tool that unpacks onto them.
fn linked(tree: &mut Tree<'_>, target: &[u8]) -> Result<PathBuf, Refused> {
    let mut parts = components(target)?;
    let name = parts.pop().ok_or_else(|| Refused::Entry("is a hard link to the root folder".into()))?;
    let path = tree.folder(&parts)?.join(name);
    match tree.at(&path)? {
        Some(meta) if meta.is_dir() => Err(Refused::Entry("is a hard link to a folder".into())),
        Some(_) => Ok(path),
        None => {
            let missing =
                || Refused::Entry(format!("is a hard link to {:?}, which does not exist", path.display()));
            let (place, meta) = tree.lower(&path).filter(|(_, meta)| meta.is_file()).ok_or_else(missing)?;
            let absolute = tree.absolute(&path);
            fs::copy(&place, &absolute).at("copy up", &absolute)?;
            use std::os::unix::fs::MetadataExt;
            tree.set_owner(&absolute, meta.uid(), meta.gid())?;
            fs::set_permissions(&absolute, meta.permissions()).at("set mode of", &absolute)?;
            set_time(&absolute, meta.mtime())?;
            tree.leans_on_lower();
            Ok(path)
        }
    }
}

/// Removes what an earlier entry of the same layer, or a whiteout, left at `path`.
fn clear(tree: &Tree<'_>, path: &Path) -> Result<(), ImageError> {
    let absolute = tree.absolute(path);
    match tree.at(path)? {
        None => Ok(()),
        Some(meta) if meta.is_dir() => fs::remove_dir_all(&absolute).at("replace", &absolute),
        Some(_) => fs::remove_file(&absolute).at("replace", &absolute),
    }
}

fn special(absolute: &Path, kind: FileType, device: u64) -> Result<(), ImageError> {
    rustix::fs::mknodat(CWD, absolute, kind, Mode::RUSR | Mode::WUSR, device)
        .at("make special file", absolute)
}

/// Owner, mode, extended attributes and time, in this order: a change of owner clears setuid and capabilities.
fn attributes<R: Read>(
    tree: &mut Tree<'_>,
    path: &Path,
    entry: &mut tar::Entry<'_, R>,
) -> Result<(), Refused> {
    let absolute = tree.absolute(path);
    let bad = |e: std::io::Error| Refused::Entry(format!("has a damaged header: {e}"));
    let id = |n: u64| u32::try_from(n).map_err(|_| Refused::Entry("has an owner out of range".into()));
    let kind = entry.header().entry_type();
    let (uid, gid) = (id(entry.header().uid().map_err(bad)?)?, id(entry.header().gid().map_err(bad)?)?);
    tree.set_owner(&absolute, uid, gid)?;
    if !kind.is_symlink() {
        let mode = entry.header().mode().map_err(bad)? & 0o7777;
        fs::set_permissions(&absolute, fs::Permissions::from_mode(mode)).at("set mode of", &absolute)?;
    }
    let mut seconds = i64::try_from(entry.header().mtime().map_err(bad)?).unwrap_or(0);
    if let Some(extensions) = entry.pax_extensions().map_err(bad)? {
        for extension in extensions {
            let extension = extension.map_err(bad)?;
            let key = extension.key_bytes();
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                extended(tree, &absolute, name, extension.value_bytes())?;
            } else if key == b"mtime"
                && let Some(whole) =
                    extension.value().ok().and_then(|v| v.split('.').next()).and_then(|v| v.parse().ok())
            {
                seconds = whole;
            }
        }
    }
    if kind.is_dir() {
        tree.later_time(path, seconds);
        Ok(())
    } else {
        Ok(set_time(&absolute, seconds)?)
    }
}

fn extended(tree: &Tree<'_>, absolute: &Path, name: &[u8], value: &[u8]) -> Result<(), ImageError> {
    // An image must not speak to overlayfs on its own, and SELinux labels are the host's business.
    if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") || name == b"security.selinux" {
        return Ok(());
    }
    match rustix::fs::lsetxattr(absolute, name, value, XattrFlags::empty()) {
        Ok(()) => Ok(()),
        // A file system or a user that cannot have it: the file is as good as it gets here.
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(_) if !tree.rights.root => Ok(()),
        Err(e) => Err(e).at("set an extended attribute of", absolute),
    }
}
