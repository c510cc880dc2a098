//! Unpacks one layer into a folder that overlayfs takes as a `lowerdir`.
//!
//! A layer's tar speaks of deletions by names: `.wh.NAME` removes NAME of the layers below, `.wh..wh..opq` all that they have
//! in a folder (OCI image specification, layer.md). overlayfs wants a character device 0/0 and an extended attribute instead.
//!
//! # A tar is hostile
//! Names with `..` are refused. Symlinks in the layer may point anywhere, for they mean something only inside the container;
//! but when an entry's path leads through one, it is followed as `chroot` would, by `walk`, and never by the kernel: nothing
//! outside the folder is ever opened, changed or linked to. Device nodes are made only by full root.
//!
//! # Layers that lean on those below
//! Layers are kept by diff ID and shared by all images that have them. That is wrong for the rare layer that names `a/b/c` but
//! brings no entry for `a` or `a/b`: whether these are symlinks, and with which mode and owner they are made (overlayfs takes
//! a folder's attributes from the topmost layer that has it), depends on the layers below. Such a layer is kept by chain ID.

mod compression;
mod entry;
mod walk;

use std::{fs, io::Read, path::Path, path::PathBuf};

pub(crate) use compression::{Compression, decompress};
use walk::Tree;

use crate::{Digest, ImageError, digest::Hashing, error::Context};

/// What this process may do to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    /// May give files to any user and make devices. Without it, all files belong to whoever runs this, and overlayfs is
    /// told of opaque folders by `user.overlay.opaque`, as its mount option `userxattr` wants.
    pub(crate) root: bool,
}

impl Rights {
    /// Root in a user namespace that has all users counts as such; root in a smaller one does not.
    pub(crate) fn of_this_process() -> Self {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
        Self { root: rustix::process::geteuid().is_root() && (map.is_empty() || whole) }
    }

    fn opaque_attribute(self) -> &'static str {
        if self.root { "trusted.overlay.opaque" } else { "user.overlay.opaque" }
    }
}

/// What was found out while unpacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// The result is right only above the same layers.
    pub(crate) depends_on_lower: bool,
}

/// Unpacks the layer `blob` (plain, gzip or zstd) into `to`, which must not exist, and checks that its tar has digest `diff_id`.
/// `lowers` are the layers below, topmost first. On an error, what is in `to` is to be removed.
pub(crate) fn unpack(
    blob: &Path,
    to: &Path,
    lowers: &[PathBuf],
    diff_id: &Digest,
    rights: Rights,
) -> Result<Unpacked, ImageError> {
    let invalid = |detail: String| ImageError::invalid(format!("layer {diff_id}"), detail);
    let file = fs::File::open(blob).at("open layer", blob)?;
    let (reader, _) = decompress(file).at("read layer", blob)?;
    fs::create_dir(to).at("make folder", to)?;
    let mut tree = Tree::new(to, lowers, rights)?;
    let mut archive = tar::Archive::new(Hashing::new(reader));
    for entry in archive.entries().at("read layer", blob)? {
        let mut entry = entry.map_err(|e| invalid(e.to_string()))?;
        entry::apply(&mut tree, &mut entry).map_err(|e| match e {
            entry::Refused::Entry(why) => {
                invalid(format!("entry {:?} {why}", entry.path_bytes().escape_ascii().to_string()))
            }
            entry::Refused::Disk(error) => error,
        })?;
    }
    // The digest covers all, also what follows the end of the archive.
    let mut rest = archive.into_inner();
    drain(&mut rest).at("read layer", blob)?;
    let (_, found, _) = rest.finish();
    if found != *diff_id {
        return Err(ImageError::corrupt(
            format!("layer {diff_id}"),
            format!("its content has diff ID {found}; build or push the image again"),
        ));
    }
    tree.finish()
}

fn drain(reader: &mut impl Read) -> std::io::Result<()> {
    std::io::copy(reader, &mut std::io::sink()).map(drop)
}

#[cfg(test)]
mod tests;
