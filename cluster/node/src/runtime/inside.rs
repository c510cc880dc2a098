//! Paths as a container sees them: below a root filesystem whose symbolic links its image has chosen. The kernel
//! resolves them (openat2(2) with RESOLVE_IN_ROOT), so that none leads out, also not by a race.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};

/// What is made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
}

/// As many symbolic links as the kernel follows.
const LINKS: usize = 40;

/// Opens the place `path` below `root` (for mounting on it), making what is missing of it.
pub(super) fn ensure(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    walk(root, path, kind, LINKS)
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

fn open(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside)
}

fn walk(root: BorrowedFd<'_>, path: &Path, kind: Kind, left: usize) -> io::Result<OwnedFd> {
    match open(root, path) {
        Err(rustix::io::Errno::NOENT) if left > 0 => {}
        other => return Ok(other?),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let folder = walk(root, parent, Kind::Folder, left - 1)?;
    // A link to what is not there yet: that is made, as container engines do.
    if let Ok(target) = readlinkat(&folder, name, Vec::new()) {
        use std::os::unix::ffi::OsStrExt;
        let target = parent.join(std::ffi::OsStr::from_bytes(target.as_bytes()));
        return walk(root, &target, kind, left - 1);
    }
    let made = match kind {
        Kind::Folder => mkdirat(&folder, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            openat(&folder, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(open(folder.as_fd(), Path::new(name))?),
        Err(error) => Err(error.into()),
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
}
