//! Terminals: a pair in the container's own devpts; the process gets the slave, whoever talks to it the master.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};

use super::process;
use super::sys::place;
use crate::spec::User;

/// Makes the calling process, which must lead a session and be inside the container, the owner of a new terminal: its
/// standard streams and what /dev/tty is to it. Returns the master.
pub(super) fn take(user: &User) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = open("/dev/pts/ptmx", flags, Mode::empty())?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    process::give(slave.as_fd(), user);
    ioctl_tiocsctty(&slave)?;
    for number in 0..3 {
        // Standard streams stay open when their handles go.
        std::mem::forget(place(slave.try_clone()?, number, false)?);
    }
    Ok(master)
}

/// Shows a container's terminal as its /dev/console.
pub(super) fn show_console(master: &OwnedFd) -> io::Result<()> {
    let name = ptsname(master, Vec::new())?;
    let name = name.to_str().map_err(io::Error::other)?;
    let console = Path::new("/dev/console");
    std::fs::write(console, "")?;
    mount(Some(Path::new(name)), console, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}
