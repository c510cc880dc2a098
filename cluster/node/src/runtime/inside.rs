//! Paths as a container sees them: below a root filesystem whose symbolic links its image has chosen. The kernel
//! resolves them (openat2(2) with RESOLVE_IN_ROOT), so that none leads out, also not by a race.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use rustix::process::umask;

/// What is made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
}

/// As many symbolic links as the kernel follows.
const LINKS: usize = 40;

/// How often a path is looked at again that the kernel cannot resolve because files are being moved or mounted meanwhile, anywhere.
const AGAIN: usize = 128;

/// Opens the place `path` below `root` (for mounting on it), making what is missing of it. A link that leads out is taken to be meant below
/// the root, as it is for those inside.
pub(super) fn ensure(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    Tree { root, resolve: ResolveFlags::IN_ROOT, mode: Mode::from_raw_mode(0o755) }.ensure(path, kind, LINKS)
}

/// Opens the place `path` below a volume, whose containers may be changing it at this moment. Links that lead out of the volume are refused.
/// With `make`, folders that are missing are made as open as the volume itself.
pub(super) fn below(volume: BorrowedFd<'_>, path: &Path, make: bool) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(volume)?.st_mode);
    let tree = Tree { root: volume, resolve: ResolveFlags::BENEATH, mode };
    if !make {
        return Ok(tree.open(path)?);
    }
    let usual = umask(Mode::empty());
    let place = tree.ensure(path, Kind::Folder, LINKS);
    umask(usual);
    place
}

/// [`ensure`] for a folder of the root itself that must not be a symbolic link.
pub(super) fn ensure_plain(root: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    let no_links = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(root, name, flags, Mode::empty(), no_links)?)
}

/// Files below a folder, and what becomes of links that lead out of it.
struct Tree<'a> {
    root: BorrowedFd<'a>,
    resolve: ResolveFlags,
    /// Of folders that are made.
    mode: Mode,
}

impl Tree<'_> {
    fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let resolve = self.resolve | ResolveFlags::NO_MAGICLINKS;
        let mut opened = Err(rustix::io::Errno::AGAIN);
        for _ in 0..AGAIN {
            opened = openat2(self.root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
            if !matches!(opened, Err(rustix::io::Errno::AGAIN)) {
                break;
            }
        }
        opened
    }

    fn ensure(&self, path: &Path, kind: Kind, left: usize) -> io::Result<OwnedFd> {
        match self.open(path) {
            Err(rustix::io::Errno::NOENT) if left > 0 => {}
            other => return Ok(other?),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let folder = self.ensure(parent, Kind::Folder, left - 1)?;
        // A link to what is not there yet: that is made, as container engines do.
        if let Ok(target) = readlinkat(&folder, name, Vec::new()) {
            use std::os::unix::ffi::OsStrExt;
            let target = parent.join(std::ffi::OsStr::from_bytes(target.as_bytes()));
            return self.ensure(&target, kind, left - 1);
        }
        let made = match kind {
            Kind::Folder => mkdirat(&folder, name, self.mode),
            Kind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
                openat(&folder, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {
                let inside = Tree { root: folder.as_fd(), resolve: self.resolve, mode: self.mode };
                Ok(inside.open(Path::new(name))?)
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir, create_dir_all};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn missing_places_are_made_also_behind_links_and_never_outside() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        create_dir_all(root.join("real/deep")).unwrap();
        create_dir(folder.path().join("outside")).unwrap();
        symlink("/real", root.join("link")).unwrap();
        symlink("../../../../outside", root.join("escape")).unwrap();
        symlink("/run/resolve/conf", root.join("real/dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let handle = File::open(&root).unwrap();
        let at = |path: &str, kind| ensure(handle.as_fd(), Path::new(path), kind);
        at("/link/new/file", Kind::File).unwrap();
        assert!(root.join("real/new/file").is_file());
        at("/escape/here", Kind::Folder).unwrap();
        assert!(root.join("outside/here").is_dir(), "the link leads below the root");
        assert!(!folder.path().join("outside/here").exists());
        at("/link/dangling", Kind::File).unwrap();
        assert!(root.join("run/resolve/conf").is_file());
        assert!(at("/loop/x", Kind::File).is_err());
        assert!(ensure_plain(handle.as_fd(), "link").is_err(), "/proc may not be a link");
        ensure_plain(handle.as_fd(), "proc").unwrap();
    }

    #[test]
    fn nothing_is_made_or_found_outside_a_volume() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (volume, outside) = (folder.path().join("volume"), folder.path().join("outside"));
        create_dir_all(volume.join("real")).unwrap();
        create_dir(&outside).unwrap();
        std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o777)).unwrap();
        symlink(&outside, volume.join("absolute")).unwrap();
        symlink("../outside", volume.join("relative")).unwrap();
        symlink("real", volume.join("link")).unwrap();
        let handle = File::open(&volume).unwrap();
        let at = |path: &str, make| below(handle.as_fd(), Path::new(path), make);
        for path in ["absolute/x", "relative/x", "absolute", "relative"] {
            let refused = at(path, true).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::CrossesDevices, "{path}: {refused}");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(at("new", false).unwrap_err().kind(), io::ErrorKind::NotFound);
        at("link/new/er", true).unwrap();
        let mode = std::fs::metadata(volume.join("real/new/er")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o777, "whoever may write to the volume may write there");
    }
}
