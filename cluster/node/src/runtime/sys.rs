//! The few system calls that no library here wraps, and nothing else: all of the runtime's `unsafe`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

/// Which side of a [`fork`] this is.
pub(super) enum Fork {
    /// The caller, with the new process and a descriptor of it.
    Parent(Pid, OwnedFd),
    /// The new process. It must end by [`exit`] or exec, never by returning into the parent's code.
    Child,
}

/// A new process that is a copy of this one, in the new namespaces `flags` asks for.
///
/// Only for processes with a single thread: a copy of one of several threads would inherit locks that nobody unlocks.
pub(super) fn fork(flags: CloneFlags) -> io::Result<Fork> {
    let mut pidfd: RawFd = -1;
    // With CLONE_PARENT the signal is the caller's own, and none may be named.
    let signal = if flags.contains(CloneFlags::CLONE_PARENT) { 0 } else { libc::SIGCHLD };
    let flags = libc::c_long::from(flags.bits() | libc::CLONE_PIDFD | signal);
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the child runs on a copy of this stack and shares
    // no memory with us. The process has one thread (the helper never starts another), so no lock is held by a thread
    // that the child lacks. `pidfd` outlives the call; the third argument is its place on all architectures.
    #[allow(unsafe_code)]
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, &raw mut pidfd, 0_usize, 0_usize) };
    match pid {
        0 => Ok(Fork::Child),
        -1 => Err(io::Error::last_os_error()),
        pid => {
            // SAFETY: the kernel has just made this descriptor for us.
            #[allow(unsafe_code)]
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent(Pid::from_raw(pid as i32), pidfd))
        }
    }
}

/// Ends this process at once, without the exit handlers of the program it is a copy of.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code)
    }
}

/// Closes every descriptor from `first` on.
pub(super) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: only called in a new process that owns none of these descriptors: what the parent's values refer to are
    // the parent's own copies.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves `from` to the number `to`, closed at exec or not; what was there is closed.
pub(super) fn place(from: OwnedFd, to: RawFd, close_on_exec: bool) -> io::Result<OwnedFd> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    if from.as_raw_fd() == to {
        // SAFETY: F_SETFD changes a flag of a descriptor that `from` keeps open.
        #[allow(unsafe_code)]
        let result =
            unsafe { libc::fcntl(to, libc::F_SETFD, if close_on_exec { libc::FD_CLOEXEC } else { 0 }) };
        return if result == -1 { Err(io::Error::last_os_error()) } else { Ok(from) };
    }
    // SAFETY: `from` is open; in the new processes that call this, nothing owns `to`.
    #[allow(unsafe_code)]
    let placed = unsafe {
        if libc::dup3(from.as_raw_fd(), to, flags) == -1 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(to)
    };
    Ok(placed)
}

/// What [`set_mount`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MountChange {
    /// Refuse writes.
    pub(super) read_only: bool,
    /// `MS_PRIVATE`, `MS_SLAVE` or 0 for what is.
    pub(super) propagation: u64,
    /// Also the mounts below it.
    pub(super) propagation_below: bool,
}

/// Changes the mount that `mount` refers to (mount_setattr(2), Linux 5.12).
pub(super) fn set_mount(mount: BorrowedFd<'_>, change: MountChange) -> io::Result<()> {
    let set = |attributes: &libc::mount_attr, recursive: bool| {
        let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
        // SAFETY: the path is a constant and the structure outlives the call, whose length is given with it.
        #[allow(unsafe_code)]
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                flags,
                std::ptr::from_ref(attributes),
                size_of::<libc::mount_attr>(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    let none = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
    if change.propagation != 0 {
        set(&libc::mount_attr { propagation: change.propagation, ..none }, change.propagation_below)?;
    }
    if change.read_only {
        set(&libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, ..none }, false)?;
    }
    Ok(())
}

/// Loads a seccomp filter for this process and what it becomes.
pub(super) fn load_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads `len` instructions from `filter`, which both outlive the call, and writes nothing.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0_usize, std::ptr::from_ref(&program))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// setrlimit(2) by number.
pub(super) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure outlives the call.
    #[allow(unsafe_code, clippy::useless_conversion)]
    let result = unsafe { libc::setrlimit(resource.into(), std::ptr::from_ref(&limit)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Restores the default action of a signal. By the system call itself: the C library hides two of them.
pub(super) fn default_signal(number: i32) {
    // `struct sigaction` of the kernel with nothing set, whose handler 0 is the default; no architecture's is larger.
    let action = [0_u64; 4];
    // SAFETY: the kernel reads no more than the structure, writes nothing, and no handler is installed. SIGKILL, SIGSTOP
    // and numbers that are none are refused.
    #[allow(unsafe_code)]
    unsafe {
        libc::syscall(libc::SYS_rt_sigaction, number, action.as_ptr(), 0_usize, 8_usize);
    }
}

/// Blots out the arguments that ps shows of this process, which are those of the one that it is a copy of.
pub(super) fn forget_arguments() {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // proc(5): fields 48 and 49; what follows the name begins with field 3.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(45);
    let mut number = || fields.next().and_then(|field| field.parse::<usize>().ok()).unwrap_or(0);
    let (start, end) = (number(), number());
    if start == 0 || end <= start {
        return;
    }
    // SAFETY: the kernel says that this process's arguments are there, on its own writable stack. Nobody reads them any more: the helper has a
    // single thread, and has parsed them; no Rust reference leads into them.
    #[allow(unsafe_code)]
    unsafe {
        std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(start), 0, end - start);
    }
}

/// The name that ps shows.
pub(super) fn rename(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}
