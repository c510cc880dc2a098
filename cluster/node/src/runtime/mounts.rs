//! What a container sees as its files.
//!
//! Two halves. [`stage`] runs ahead of time, in the mount namespace of a process that waits: on a folder of its own it
//! builds /proc (masked) and /dev, which are the same for every container. [`assemble`] runs at the start: the image's
//! overlay, into which the staged parts are moved, sysfs and message queues (which belong to the pod's namespaces), and
//! the pod's files; [`enter`] makes that the root.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, fchdir, mkdir, pivot_root, symlinkat};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::inside::{self, Kind};
use super::privilege::Privilege;
use super::protocol::Overlay;
use super::sys::{MountChange, set_mount};
use crate::spec::{Bind, Container, MASKED, READ_ONLY, SubPath};

/// A refusal with the step that was refused.
type Result<T> = std::result::Result<T, String>;

fn at<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("cannot {what}: {error}")
}

const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// The parts of every container, under `base` (a folder that exists).
#[derive(Debug)]
pub(super) struct Stage {
    base: PathBuf,
    privilege: Privilege,
    /// Its own cgroups are there to be shown.
    cgroups: bool,
}

/// Builds the parts in the calling process's mount namespace, of which nothing is seen outside.
pub(super) fn stage(base: &Path, privilege: Privilege) -> Result<Stage> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(at("cut off the mounts"))?;
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("container"), base, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755,size=64k"))
        .map_err(at("mount a tmpfs"))?;
    // Its mounts move away, which those of a shared parent may not.
    mount(none, base, none, MsFlags::MS_PRIVATE, none).map_err(at("make a mount private"))?;
    for name in ["root", "proc", "dev", "sys", "cgroup"] {
        mkdir(&base.join(name), Mode::from_bits_truncate(0o755)).map_err(at("make a folder"))?;
    }
    let stage = Stage { base: base.to_owned(), privilege, cgroups: false };
    mount(Some("proc"), &base.join("proc"), Some("proc"), strict, none).map_err(at("mount /proc"))?;
    stage.devices(strict)?;
    stage.mask("/proc")?;
    Ok(stage)
}

impl Stage {
    /// Where a path of the container is while it is staged.
    fn place(&self, path: &str) -> PathBuf {
        self.base.join(path.trim_start_matches('/'))
    }

    /// Hides and protects what is below `top`.
    fn mask(&self, top: &str) -> Result<()> {
        let below = |path: &&&str| path.starts_with(top);
        for path in MASKED.iter().filter(below) {
            let place = self.place(path);
            let Ok(found) = fs::metadata(&place) else { continue };
            let masked = if found.is_dir() {
                mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::MS_RDONLY, Some("size=0k"))
            } else {
                let null = self.place("/dev/null");
                mount(Some(&null), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            };
            masked.map_err(at(format_args!("hide {path}")))?;
        }
        for path in READ_ONLY.iter().filter(below) {
            let place = self.place(path);
            if !place.exists() {
                continue;
            }
            let copy = clone_tree(&place).map_err(at(format_args!("copy {path}")))?;
            set_mount(copy.as_fd(), MountChange { read_only: true, ..MountChange::default() })
                .and_then(|()| attach(copy.as_fd(), CWD, &place))
                .map_err(at(format_args!("protect {path}")))?;
        }
        Ok(())
    }

    fn devices(&self, strict: MsFlags) -> Result<()> {
        let dev = self.place("/dev");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
        mount(Some("tmpfs"), &dev, Some("tmpfs"), flags, Some("mode=755,size=65536k"))
            .map_err(at("mount /dev"))?;
        for (name, major, minor) in NODES {
            self.node(
                &dev.join(name),
                SFlag::S_IFCHR,
                0o666,
                makedev(major, minor),
                &Path::new("/dev").join(name),
            )?;
        }
        for (target, name) in LINKS {
            symlinkat(target, CWD, &dev.join(name)).map_err(at(format_args!("make the link /dev/{name}")))?;
        }
        for name in ["pts", "shm", "mqueue"] {
            mkdir(&dev.join(name), Mode::from_bits_truncate(0o755)).map_err(at("make a folder of /dev"))?;
        }
        let options = match self.privilege.maps_groups() {
            true => "newinstance,ptmxmode=0666,mode=0620,gid=5",
            false => "newinstance,ptmxmode=0666,mode=0620",
        };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("devpts"), &dev.join("pts"), Some("devpts"), flags, Some(options))
            .map_err(at("mount /dev/pts"))?;
        mount(Some("shm"), &dev.join("shm"), Some("tmpfs"), strict, Some("mode=1777,size=65536k"))
            .map_err(at("mount /dev/shm"))?;
        Ok(())
    }

    /// Shows a container its own cgroups, read-only: programs look there for how much they may use.
    pub(super) fn show_cgroups(&mut self, groups: &[(&str, PathBuf)]) -> Result<()> {
        let place = self.base.join("cgroup");
        let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let several = groups.iter().any(|(name, _)| !name.is_empty());
        if several {
            mount(Some("tmpfs"), &place, Some("tmpfs"), strict, Some("mode=755,size=64k"))
                .map_err(at("mount /sys/fs/cgroup"))?;
        }
        for (name, folder) in groups {
            let target = if name.is_empty() { place.clone() } else { place.join(name) };
            if several {
                mkdir(&target, Mode::from_bits_truncate(0o755))
                    .map_err(at("make a folder of /sys/fs/cgroup"))?;
            }
            clone_tree(folder)
                .and_then(|copy| {
                    let change = MountChange {
                        read_only: true,
                        propagation: MsFlags::MS_PRIVATE.bits(),
                        ..MountChange::default()
                    };
                    set_mount(copy.as_fd(), change)?;
                    attach(copy.as_fd(), CWD, &target)
                })
                .map_err(at(format_args!("show the cgroup {}", folder.display())))?;
        }
        if several {
            let flags = strict | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, &place, None::<&str>, flags, None::<&str>)
                .map_err(at("protect /sys/fs/cgroup"))?;
        }
        self.cgroups = !groups.is_empty();
        Ok(())
    }

    /// A device node; where the kernel lets this user make none, the machine's own is shown.
    fn node(&self, place: &Path, kind: SFlag, mode: u32, device: u64, own: &Path) -> Result<()> {
        if self.privilege.makes_devices() {
            return mknod(place, kind, Mode::from_bits_truncate(mode), device)
                .and_then(|()| {
                    nix::sys::stat::fchmodat(
                        CWD,
                        place,
                        Mode::from_bits_truncate(mode),
                        nix::sys::stat::FchmodatFlags::FollowSymlink,
                    )
                })
                .map_err(at(format_args!("make the device {}", own.display())));
        }
        fs::write(place, "").map_err(at("make a place for a device"))?;
        mount(Some(own), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(at(format_args!("show the device {}", own.display())))
    }

    /// Every device of the machine, for a privileged container.
    fn all_devices(&self, folder: &Path) -> Result<()> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let target = self.place(&folder.to_string_lossy());
        for entry in fs::read_dir(folder).map_err(at("read /dev"))?.flatten() {
            let (own, name) = (entry.path(), entry.file_name());
            let Ok(found) = fs::symlink_metadata(&own) else { continue };
            let place = target.join(&name);
            let kind = found.file_type();
            if kind.is_dir() && !["pts", "shm", "mqueue", "fd"].iter().any(|known| *known == name) {
                let _ = fs::create_dir(&place);
                self.all_devices(&own)?;
            } else if (kind.is_char_device() || kind.is_block_device())
                && !place.exists()
                && name != "console"
            {
                let flag = if kind.is_char_device() { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
                self.node(&place, flag, found.mode() & 0o7777, found.rdev(), &own)?;
            }
        }
        Ok(())
    }

    /// Puts a container's files together; the calling process is in the pod's namespaces already. Returns the root.
    pub(super) fn assemble(&self, container: &Container, overlay: &Overlay) -> Result<OwnedFd> {
        let root_path = self.base.join("root");
        mount_overlay(overlay, &root_path, self.privilege)?;
        let root: OwnedFd = fs::File::open(&root_path).map_err(at("open the root filesystem"))?.into();
        let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let none = None::<&str>;
        let open = container.privileged || container.unmasked_proc;
        if open {
            umount2(&self.place("/proc"), MntFlags::MNT_DETACH).map_err(at("unmount /proc"))?;
            mount(Some("proc"), &self.place("/proc"), Some("proc"), strict, none)
                .map_err(at("mount /proc"))?;
        }
        self.system_files(container)?;
        if !open {
            self.mask("/sys")?;
        }
        mount(Some("mqueue"), &self.place("/dev/mqueue"), Some("mqueue"), strict, none)
            .map_err(at("mount /dev/mqueue"))?;
        if container.privileged {
            self.all_devices(Path::new("/dev"))?;
        }
        let groups = self.place("/sys/fs/cgroup");
        // A kernel without cgroups has no such folder; the machine's own /sys shows the machine's own.
        if self.cgroups && container.net.is_some() && groups.is_dir() {
            move_mount(CWD, self.base.join("cgroup"), CWD, &groups, MoveMountFlags::empty())
                .map_err(at("move /sys/fs/cgroup"))?;
        }
        for name in ["proc", "dev", "sys"] {
            let target = inside::ensure_plain(root.as_fd(), name).map_err(|error| {
                format!("cannot mount /{name}: the image's /{name} is no plain folder: {error}")
            })?;
            move_mount(CWD, self.base.join(name), target, "", MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
                .map_err(at(format_args!("move /{name}")))?;
        }
        for wanted in container.ordered_binds() {
            bind(root.as_fd(), wanted)?;
        }
        if !container.process.cwd.is_empty() {
            // A working folder that the image lacks is made, as container engines do.
            inside::ensure(root.as_fd(), Path::new(&container.process.cwd), Kind::Folder)
                .map_err(at(format_args!("make the working folder {}", container.process.cwd)))?;
        }
        Ok(root)
    }

    /// /sys shows a network namespace; mounting it afresh is refused where that is the machine's.
    fn system_files(&self, container: &Container) -> Result<()> {
        let place = self.place("/sys");
        let read_only = !container.privileged;
        if container.net.is_some() {
            let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            flags.set(MsFlags::MS_RDONLY, read_only);
            return mount(Some("sysfs"), &place, Some("sysfs"), flags, None::<&str>)
                .map_err(at("mount /sys"));
        }
        let copy = clone_tree(Path::new("/sys")).map_err(at("copy /sys"))?;
        let change =
            MountChange { read_only, propagation: MsFlags::MS_PRIVATE.bits(), propagation_below: true };
        set_mount(copy.as_fd(), change)
            .and_then(|()| attach(copy.as_fd(), CWD, &place))
            .map_err(at("show the machine's /sys"))
    }
}

/// A root folder with nothing in it, in the calling process's mount namespace.
pub(super) fn nothing(base: &Path) -> Result<OwnedFd> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(at("cut off the mounts"))?;
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pause"), base, Some("tmpfs"), strict, Some("mode=755,size=0k"))
        .map_err(at("mount a tmpfs"))?;
    Ok(fs::File::open(base).map_err(at("open a tmpfs"))?.into())
}

/// Makes `root` the root of the calling process's mount namespace, and lets go of everything else in it.
pub(super) fn enter(root: &OwnedFd, read_only: bool) -> Result<()> {
    fchdir(root).map_err(at("enter the root filesystem"))?;
    if read_only {
        let change = MountChange { read_only: true, ..MountChange::default() };
        set_mount(root.as_fd(), change).map_err(at("make the root filesystem read-only"))?;
    }
    // The old root comes to lie on the new one, where it is taken off again: no folder is needed for it.
    pivot_root(".", ".").map_err(at("change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("leave the old root"))?;
    chdir("/").map_err(at("enter the new root"))
}

/// Shows a file read-only at another place, in the calling process's mount namespace.
pub(super) fn show_read_only(file: &Path, place: &Path) -> io::Result<()> {
    fs::File::create(place)?;
    let copy = clone_tree(file)?;
    set_mount(copy.as_fd(), MountChange { read_only: true, ..MountChange::default() })?;
    attach(copy.as_fd(), CWD, place)
}

/// A copy of the mounts at `path` that is nowhere yet.
fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

fn attach(copy: BorrowedFd<'_>, folder: BorrowedFd<'_>, place: &Path) -> io::Result<()> {
    Ok(move_mount(copy, "", folder, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn bind(root: BorrowedFd<'_>, wanted: &Bind) -> Result<()> {
    let what = format!("mount {} at {}", wanted.source.display(), wanted.target);
    let copy = match &wanted.sub_path {
        None => clone_tree(&wanted.source).map_err(at(&what))?,
        Some(sub) => part_of(&wanted.source, sub)?,
    };
    let found = rustix::fs::fstat(&copy).map_err(at(&what))?;
    let folder = rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir();
    let kind = if folder { Kind::Folder } else { Kind::File };
    let propagation = if wanted.propagate { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
    let change =
        MountChange { read_only: wanted.read_only, propagation: propagation.bits(), propagation_below: true };
    set_mount(copy.as_fd(), change).map_err(at(&what))?;
    let target = inside::ensure(root, Path::new(&wanted.target), kind).map_err(at(&what))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(copy, "", target, "", flags).map_err(at(&what))
}

/// What a volume has at a place that its own containers may be changing: found by the kernel, which never leaves the volume, and copied from
/// what was found, not by its name.
fn part_of(volume: &Path, sub: &SubPath) -> Result<OwnedFd> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::CrossesDevices => format!("subPath {:?} leads out of its volume", sub.path),
        _ => format!("subPath {:?}: {error}", sub.path),
    };
    let root = fs::File::open(volume).map_err(at(format_args!("open {}", volume.display())))?;
    let place = inside::below(root.as_fd(), Path::new(&sub.path), sub.make).map_err(fail)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(place.as_fd(), "", flags).map_err(|error| fail(error.into()))
}

/// The options of one mount(2) call may not exceed a page, and image stores have long paths: layers are given relative
/// to their common parent.
fn mount_overlay(overlay: &Overlay, target: &Path, privilege: Privilege) -> Result<()> {
    let fail = |what: &str, error: &dyn std::fmt::Display| {
        format!("cannot mount the root filesystem: {what}: {error}")
    };
    for folder in [&overlay.upper, &overlay.work] {
        fs::create_dir_all(folder).map_err(|error| fail(&folder.display().to_string(), &error))?;
    }
    let parent = common_parent(&overlay.lower);
    let lower: Vec<String> = overlay
        .lower
        .iter()
        .map(|layer| escape(&layer.strip_prefix(&parent).unwrap_or(layer).display().to_string()))
        .collect();
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        escape(&overlay.upper.display().to_string()),
        escape(&overlay.work.display().to_string())
    );
    if !privilege.makes_devices() {
        options.push_str(",userxattr");
    }
    if options.len() > 4000 {
        return Err(fail("too many layers for one mount", &overlay.lower.len()));
    }
    chdir(&parent).map_err(|error| fail(&parent.display().to_string(), &error))?;
    let try_mount =
        |options: &str| mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options));
    // What a container wrote goes with it, so nothing of it needs to reach the disk, least of all at its end: volatile,
    // where the kernel knows that (5.10).
    let mounted = match try_mount(&format!("{options},volatile")) {
        Err(nix::errno::Errno::EINVAL) => try_mount(&options),
        other => other,
    };
    let _ = chdir("/");
    mounted.map_err(|error| fail("overlay", &error))
}

/// A path as an option of overlayfs.
fn escape(path: &str) -> String {
    path.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let mut parent = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/")).to_owned();
    while !paths.iter().all(|path| path.starts_with(&parent) && path != &parent) {
        match parent.parent() {
            Some(up) => parent = up.to_owned(),
            None => return PathBuf::from("/"),
        }
    }
    parent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_from_their_common_parent() {
        let paths = ["/data/images/layers/a/fs", "/data/images/layers/b/fs"].map(PathBuf::from);
        assert_eq!(common_parent(&paths), Path::new("/data/images/layers"));
        assert_eq!(common_parent(&paths[..1]), Path::new("/data/images/layers/a"));
        assert_eq!(common_parent(&["/a".into(), "/b".into()]), Path::new("/"));
        assert_eq!(escape("/a:b,c"), "/a\\:b\\,c");
    }
}
