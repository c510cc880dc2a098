//! How a process becomes the one it is to be: user, groups, capabilities, limits, system calls, and the program itself.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Gid, Uid, access, chdir, execve, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::privilege::Privilege;
use super::protocol::Failure;
use super::seccomp::Profiles;
use super::sys;
use crate::spec::{Process, User};

/// Gives up everything that the process is not to have. What is left to do is [`run`].
pub(super) fn become_user(
    process: &Process,
    privilege: Privilege,
    profiles: &Profiles,
) -> Result<(), Failure> {
    let at = |what: &'static str| {
        move |error: &dyn std::fmt::Display| Failure::new(format!("cannot {what}: {error}"))
    };
    for limit in &process.rlimits {
        sys::set_limit(limit.resource, limit.soft, limit.hard)
            .map_err(|error| at("set a resource limit")(&error))?;
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let (user, bits) = identity(process, privilege);
    own_streams(&user);
    // A folder that only root may enter, or only the user: either is enough.
    let cwd = if process.cwd.is_empty() { "/" } else { process.cwd.as_str() };
    let entered = chdir(cwd);
    // A filter can be loaded by the mighty, or by those who can never become it: now or at the end.
    if !process.no_new_privileges {
        profiles.load(process.seccomp, bits)?;
    }
    bound(bits).map_err(|error| at("give up capabilities")(&error))?;
    if privilege.maps_groups() {
        let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        setgroups(&groups).map_err(|error| at("set supplementary groups")(&error))?;
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let unmapped = |what: &str, number: u32, error: Errno| match (error, privilege) {
        (Errno::EINVAL, Privilege::UserNamespace { .. }) => Failure::new(format!(
            "cannot run as {what} {number}: without root, only ids that /etc/subuid and /etc/subgid give to this user exist \
             (newuidmap and newgidmap must be installed)"
        )),
        _ => Failure::new(format!("cannot become {what} {number}: {error}")),
    };
    setresgid(gid, gid, gid).map_err(|error| unmapped("group", user.gid, error))?;
    // Another user than root loses all capabilities by this; which they can gain again is bounded.
    setresuid(uid, uid, uid).map_err(|error| unmapped("user", user.uid, error))?;
    if user.uid == 0 {
        let set = CapabilitySet::from_bits_retain(bits);
        let sets = CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets).map_err(|error| at("set capabilities")(&error))?;
    }
    if entered.is_err() {
        chdir(cwd).map_err(|error| {
            Failure::new(format!("cannot enter the working folder {cwd}: {}", text(error)))
        })?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|error| at("set no_new_privs")(&error))?;
        profiles.load(process.seccomp, bits)?;
    }
    Ok(())
}

/// Who the process can be. Where only one user exists, everybody is that one: then who was to be no root at least has
/// none of root's capabilities.
fn identity(process: &Process, privilege: Privilege) -> (User, u64) {
    let bits = process.capability_bits();
    if privilege.maps_groups() {
        return (process.user.clone(), bits);
    }
    (User::default(), if process.user.uid == 0 { bits } else { 0 })
}

/// Removes what is not in `bits` from what this process and its children can ever have.
fn bound(bits: u64) -> rustix::io::Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) if bits & (1 << number) == 0 => {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // Behind the last one that the kernel knows.
            Err(_) => break,
        }
    }
    Ok(())
}

/// Pipes and terminals belong to the user, who can then open them again by name (/dev/stderr). Devices are left alone:
/// they are the machine's.
fn own_streams(user: &User) {
    if user.uid == 0 {
        return;
    }
    for stream in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        let Ok(found) = rustix::fs::fstat(stream) else { continue };
        let kind = rustix::fs::FileType::from_raw_mode(found.st_mode);
        if matches!(kind, rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket) {
            give(stream, user);
        }
    }
}

/// Gives an open file to a user, if that exists here.
pub(super) fn give(file: BorrowedFd<'_>, user: &User) {
    let _ = rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(user.uid)), None);
}

/// How readily this process is ended when memory runs out; lowering it may not be allowed, which is no failure.
pub(super) fn set_oom_score(process: &Process) {
    if let Some(score) = process.oom_score_adj {
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
}

/// Waits for children that others have left to this process, and for nothing else.
pub(super) fn reap_for_ever() -> ! {
    let mut ended = nix::sys::signal::SigSet::empty();
    ended.add(nix::sys::signal::Signal::SIGCHLD);
    let _ = ended.thread_block();
    loop {
        while matches!(nix::sys::wait::wait(), Ok(_) | Err(Errno::EINTR)) {}
        let _ = ended.wait();
    }
}

/// Becomes the program. Returns only why not.
pub(super) fn run(process: &Process) -> Failure {
    let environment = process.environment();
    let strings = |list: &[String]| -> Result<Vec<CString>, Failure> {
        let zero =
            |_| Failure { program: true, message: "a zero byte in an argument or a variable".to_owned() };
        list.iter().map(|text| CString::new(text.as_str()).map_err(zero)).collect()
    };
    let (args, env) = match (strings(&process.args), strings(&environment)) {
        (Ok(args), Ok(env)) => (args, env),
        (Err(failure), _) | (_, Err(failure)) => return failure,
    };
    let Some(name) = process.args.first() else {
        return Failure { program: true, message: "no command specified".to_owned() };
    };
    let mut denied = None;
    for candidate in candidates(name, &environment) {
        let Ok(path) = CString::new(candidate.as_str()) else { continue };
        let Err(error) = execve(&path, &args, &env);
        match error {
            // Nothing there: the next folder of PATH, unless this was the only place.
            Errno::ENOENT | Errno::ENOTDIR if access(candidate.as_str(), AccessFlags::F_OK).is_err() => {}
            Errno::EACCES => denied = Some(error),
            error => return explain(name, &candidate, error),
        }
    }
    explain(name, name, denied.unwrap_or(Errno::ENOENT))
}

/// Where a program may be, as execvp(3) looks for it.
fn candidates(name: &str, environment: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = environment.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let folder = |folder: &str| if folder.is_empty() { ".".to_owned() } else { folder.to_owned() };
    path.split(':').map(|part| format!("{}/{name}", folder(part))).collect()
}

/// The wording of the container runtimes that users know.
fn explain(name: &str, path: &str, error: Errno) -> Failure {
    let message = match error {
        Errno::ENOENT if !name.contains('/') && name == path => {
            format!("exec: {name:?}: executable file not found in $PATH")
        }
        Errno::ENOENT if Path::new(path).exists() => format!(
            "exec: {name:?}: no such file or directory: {path} exists, but not the interpreter or loader that it names"
        ),
        Errno::ENOENT => format!("exec: {name:?}: stat {path}: no such file or directory"),
        Errno::EACCES => format!("exec: {name:?}: permission denied"),
        Errno::ENOEXEC => format!("exec {path}: exec format error (made for another kind of processor?)"),
        error => format!("exec: {name:?}: {}", text(error)),
    };
    Failure { program: true, message }
}

/// The kernel's words without its constant's name.
fn text(error: Errno) -> String {
    error.desc().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_in_path() {
        let env = ["A=b".to_owned(), "PATH=/x::/y".to_owned()];
        assert_eq!(candidates("tool", &env), ["/x/tool", "./tool", "/y/tool"]);
        assert_eq!(candidates("./tool", &env), ["./tool"]);
    }

    #[test]
    fn the_only_user_there_is() {
        let user = User { uid: 1000, gid: 1000, groups: vec![5] };
        let process =
            Process { user: user.clone(), capabilities: vec!["CAP_KILL".to_owned()], ..Process::default() };
        assert_eq!(identity(&process, Privilege::Root), (user, 1 << 5));
        let single = Privilege::UserNamespace { single: true };
        assert_eq!(identity(&process, single), (User::default(), 0));
        let root = Process { user: User::default(), ..process };
        assert_eq!(identity(&root, single), (User::default(), 1 << 5));
    }

    #[test]
    fn failures_are_worded_as_users_know_them() {
        let not_found = explain("tool", "tool", Errno::ENOENT);
        assert_eq!(not_found.message, "exec: \"tool\": executable file not found in $PATH");
        assert!(not_found.program);
        let missing = explain("/nothing", "/nothing", Errno::ENOENT).message;
        assert_eq!(missing, "exec: \"/nothing\": stat /nothing: no such file or directory");
        assert!(explain("/bin/x", "/bin/x", Errno::EACCES).message.ends_with("permission denied"));
        assert!(explain("/", "/", Errno::ENOENT).message.contains("loader"), "what exists lacks its loader");
    }
}
