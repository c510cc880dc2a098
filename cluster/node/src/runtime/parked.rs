//! Processes that become containers.
//!
//! Such a process is made ahead of time, in a pid and a mount namespace and cgroups of its own, builds what every
//! container has ([`mounts::stage`]), and waits. Handed a [`Bundle`] and the pod's namespaces, it does the rest itself
//! and becomes the container's program. So a start costs the helper two messages, and starts run side by side.
//!
//! It is a copy of the helper, ends with it (its channel, and PR_SET_PDEATHSIG), and reports why when it fails.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setsid};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};

use super::cgroups::{Cgroups, Limit};
use super::mounts::{self, Stage};
use super::privilege::Privilege;
use super::protocol::{Bundle, Failure, Handed, Received, Report, read_body};
use super::seccomp::Profiles;
use super::sys::{self, Fork};
use super::{process, seqpacket, terminal};
use crate::spec::{Container, Process, Seccomp, User};

/// What all such processes of a helper need to know.
#[derive(Debug)]
pub(super) struct Setup {
    /// A folder to mount on; each process does that in a mount namespace of its own.
    pub(super) stage: PathBuf,
    pub(super) cgroups: Cgroups,
    pub(super) privilege: Privilege,
    pub(super) profiles: Profiles,
}

/// A process on its way to become a program.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// What it says; closed when it becomes the program or ends.
    pub(super) channel: OwnedFd,
    /// Its cgroup, if it has one of its own.
    pub(super) cgroup: Option<String>,
}

impl Spawned {
    /// Makes it what is described; the descriptors are as [`Handed`] says.
    pub(super) fn claim(&self, handed: Handed, fds: &[OwnedFd]) -> io::Result<()> {
        let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let bytes = serde_json::to_vec(&handed).map_err(io::Error::other)?;
        Ok(seqpacket::send(self.channel.as_fd(), &bytes, &raw)?)
    }
}

/// Which processes a new one sees.
#[derive(Debug)]
pub(super) enum Space {
    /// Only those that come from it.
    Own,
    /// The machine's.
    Machine,
    /// Those that this one sees.
    Of(OwnedFd),
}

/// Makes a process that waits.
pub(super) fn park(setup: &Setup, cgroup: Option<String>, space: &Space) -> io::Result<Spawned> {
    let group = cgroup.clone();
    let life = |channel: &OwnedFd| {
        sys::close_from(CHANNEL + 1)
            .map_err(|error| Failure::new(format!("cannot close descriptors: {error}")))?;
        sys::rename(c"parked");
        let prepared = prepare(setup, group.as_deref());
        let mut buffer = [0; 1024];
        let (length, fds) = seqpacket::receive(channel.as_fd(), &mut buffer)
            .map_err(|error| Failure::new(format!("cannot receive: {error}")))?;
        let handed = serde_json::from_slice::<Handed>(&buffer[..length]).ok();
        let Some(received) = handed.and_then(|handed| handed.sort(fds)) else {
            // The helper has ended without needing this process.
            sys::exit(0);
        };
        become_container(setup, &prepared?, group.as_deref(), received, channel)
    };
    let spawned = match space {
        Space::Own => spawn(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID, life),
        Space::Machine => spawn(CloneFlags::CLONE_NEWNS, life),
        Space::Of(first) => spawn_among(Some(first), CloneFlags::CLONE_NEWNS, life),
    };
    spawned.map(|spawned| Spawned { cgroup, ..spawned })
}

/// Makes a process that containers share their processes with: the first of its namespace. It has no files and no rights, and waits for those that
/// nobody else waits for.
pub(super) fn hold(setup: &Setup) -> io::Result<Spawned> {
    let life = |channel: &OwnedFd| {
        sys::close_from(CHANNEL + 1)
            .map_err(|error| Failure::new(format!("cannot close descriptors: {error}")))?;
        sys::rename(c"pause");
        sys::forget_arguments();
        let nobody = Process {
            user: User { uid: NOBODY, gid: NOBODY, groups: Vec::new() },
            no_new_privileges: true,
            seccomp: Seccomp::RuntimeDefault,
            oom_score_adj: Some(-998),
            ..Process::default()
        };
        process::set_oom_score(&nobody);
        mounts::enter(&mounts::nothing(&setup.stage)?, true)?;
        process::become_user(&nobody, setup.privilege, &setup.profiles)?;
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        let ready = serde_json::to_vec(&Report::Ready { mount_us: 0, create_us: 0 }).unwrap_or_default();
        seqpacket::send(channel.as_fd(), &ready, &[])
            .map_err(|error| Failure::new(format!("the helper is gone: {error}")))?;
        // Its end says that all is done.
        let _ = sys::close_from(CHANNEL);
        process::reap_for_ever()
    };
    spawn(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID, life)
}

/// As whom a process runs that has nothing to do with users.
const NOBODY: u32 = 65535;

/// Makes a process in a running container, which becomes what is described.
pub(super) fn exec(
    setup: &Setup,
    container: &OwnedFd,
    host_pid: bool,
    cgroup: Option<String>,
    received: Received,
) -> io::Result<Spawned> {
    let life = |channel: &OwnedFd| become_exec(setup, container, cgroup.as_deref(), received, channel);
    spawn_among((!host_pid).then_some(container), CloneFlags::empty(), life)
}

fn spawn(
    flags: CloneFlags,
    life: impl FnOnce(&OwnedFd) -> Result<std::convert::Infallible, Failure>,
) -> io::Result<Spawned> {
    let (channel, theirs) = seqpacket::pair()?;
    match sys::fork(flags)? {
        Fork::Parent(pid, pidfd) => Ok(Spawned { pid, pidfd, channel, cgroup: None }),
        Fork::Child => child(theirs, life),
    }
}

/// [`spawn`] in the pid namespace of another process.
///
/// Only children are born into a pid namespace that a process enters, and not every process may return from one: so a
/// process in between enters it, and its child is made a child of the helper (CLONE_PARENT).
fn spawn_among(
    other: Option<&OwnedFd>,
    flags: CloneFlags,
    life: impl FnOnce(&OwnedFd) -> Result<std::convert::Infallible, Failure>,
) -> io::Result<Spawned> {
    let (channel, theirs) = seqpacket::pair()?;
    let (births, midwife) = seqpacket::pair()?;
    match sys::fork(CloneFlags::empty())? {
        Fork::Parent(between, _) => {
            drop(midwife);
            let mut buffer = [0; 64];
            let received = seqpacket::receive(births.as_fd(), &mut buffer);
            let _ = waitpid(between, None);
            let (length, mut fds) = received?;
            let told = serde_json::from_slice::<Result<i32, i32>>(&buffer[..length]);
            match (told, fds.pop()) {
                (Ok(Ok(pid)), Some(pidfd)) => {
                    Ok(Spawned { pid: Pid::from_raw(pid), pidfd, channel, cgroup: None })
                }
                (Ok(Err(errno)), _) => Err(io::Error::from_raw_os_error(errno)),
                _ => Err(io::Error::other("the process in between ended")),
            }
        }
        Fork::Child => {
            // Until it is the container's program, processes of the container may not look into it: what it runs is the
            // machine's.
            let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
            let entered = match other {
                None => Ok(()),
                Some(other) => setns(other, CloneFlags::CLONE_NEWPID).map_err(io::Error::from),
            };
            let told = match entered.and_then(|()| sys::fork(flags | CloneFlags::CLONE_PARENT)) {
                Ok(Fork::Child) => child(theirs, life),
                Ok(Fork::Parent(pid, pidfd)) => (Ok(pid.as_raw()), Some(pidfd)),
                Err(error) => (Err(error.raw_os_error().unwrap_or_default()), None),
            };
            let fds: Vec<i32> = told.1.iter().map(AsRawFd::as_raw_fd).collect();
            let bytes = serde_json::to_vec(&told.0).unwrap_or_default();
            let _ = seqpacket::send(midwife.as_fd(), &bytes, &fds);
            sys::exit(0)
        }
    }
}

/// The number of the channel in a new process.
const CHANNEL: i32 = 3;

/// The whole life of a new process: nothing returns or unwinds from here into the helper's code.
fn child(channel: OwnedFd, life: impl FnOnce(&OwnedFd) -> Result<std::convert::Infallible, Failure>) -> ! {
    let lived = catch_unwind(AssertUnwindSafe(|| {
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        let _ = setsid();
        let Ok(channel) = sys::place(channel, CHANNEL, true) else { sys::exit(70) };
        let Err(failure) = life(&channel);
        if let Ok(bytes) = serde_json::to_vec(&Report::Failed(failure)) {
            let _ = seqpacket::send(channel.as_fd(), &bytes, &[]);
        }
    }));
    sys::exit(if lived.is_ok() { 1 } else { 70 })
}

fn prepare(setup: &Setup, cgroup: Option<&str>) -> Result<Stage, Failure> {
    if let Some(cgroup) = cgroup {
        setup.cgroups.enter(cgroup).map_err(|error| Failure::new(error.to_string()))?;
    }
    let mut stage = mounts::stage(&setup.stage, setup.privilege)?;
    if let Some(cgroup) = cgroup {
        stage.show_cgroups(&setup.cgroups.shown(cgroup))?;
        // From now on, these are the roots of all that the container is told about cgroups.
        unshare(CloneFlags::CLONE_NEWCGROUP)
            .map_err(|error| Failure::new(format!("cannot make a cgroup namespace: {error}")))?;
    }
    Ok(stage)
}

fn become_container(
    setup: &Setup,
    stage: &Stage,
    cgroup: Option<&str>,
    received: Received,
    channel: &OwnedFd,
) -> Result<std::convert::Infallible, Failure> {
    let begun = Instant::now();
    let bundle: Bundle = read_body(received.body)
        .map_err(|error| Failure::new(format!("cannot read the container: {error}")))?;
    let container = &bundle.container;
    let limits = match cgroup {
        Some(cgroup) => limits(setup, cgroup, container)?,
        None => Vec::new(),
    };
    let namespaces = [
        (&received.net, CloneFlags::CLONE_NEWNET, "network"),
        (&received.ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
        (&received.uts, CloneFlags::CLONE_NEWUTS, "uts"),
    ];
    for (namespace, kind, name) in namespaces {
        if let Some(namespace) = namespace {
            setns(namespace, kind)
                .map_err(|error| Failure::new(format!("cannot join the {name} namespace: {error}")))?;
        }
    }
    process::set_oom_score(&container.process);
    let mounting = Instant::now();
    let root = stage.assemble(container, &bundle.overlay)?;
    mounts::enter(&root, container.read_only_root)?;
    drop(root);
    let mount_us = micros(mounting);
    streams(received.stdin, received.stdout, received.stderr)?;
    drop((received.net, received.ipc, received.uts));
    let master = terminal_of(&container.process)?;
    if let Some(master) = &master {
        terminal::show_console(master)
            .map_err(|error| Failure::new(format!("cannot make /dev/console: {error}")))?;
    }
    // Only now: what has been done up to here is the platform's work and not the container's.
    for mut limit in limits {
        limit.set().map_err(|error| Failure::new(error.to_string()))?;
    }
    finish(
        setup,
        &container.process,
        channel,
        master,
        |create_us| Report::Ready { mount_us, create_us },
        begun,
    )
}

fn become_exec(
    setup: &Setup,
    container: &OwnedFd,
    cgroup: Option<&str>,
    received: Received,
    channel: &OwnedFd,
) -> Result<std::convert::Infallible, Failure> {
    let begun = Instant::now();
    let wanted: Process = read_body(received.body)
        .map_err(|error| Failure::new(format!("cannot read the process: {error}")))?;
    if let Some(cgroup) = cgroup {
        setup.cgroups.join(cgroup).map_err(|error| Failure::new(error.to_string()))?;
    }
    process::set_oom_score(&wanted);
    let mut all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    all.set(CloneFlags::CLONE_NEWCGROUP, cgroup.is_some());
    setns(container, all).map_err(|error| {
        Failure::new(format!("cannot enter the container, which may have ended: {error}"))
    })?;
    streams(received.stdin, received.stdout, received.stderr)?;
    sys::close_from(CHANNEL + 1)
        .map_err(|error| Failure::new(format!("cannot close descriptors: {error}")))?;
    let master = terminal_of(&wanted)?;
    finish(setup, &wanted, channel, master, |create_us| Report::Ready { mount_us: 0, create_us }, begun)
}

fn limits(setup: &Setup, cgroup: &str, container: &Container) -> Result<Vec<Limit>, Failure> {
    if container.privileged {
        setup
            .cgroups
            .allow_devices(cgroup)
            .map_err(|error| Failure::new(format!("cannot allow all devices: {error}")))?;
    }
    setup.cgroups.limits(cgroup, &container.limits).map_err(|error| Failure::new(error.to_string()))
}

/// Standard input stays the helper's /dev/null when none is given.
fn streams(stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> Result<(), Failure> {
    for (number, stream) in [(0, stdin), (1, stdout), (2, stderr)] {
        if let Some(stream) = stream {
            let placed = sys::place(stream, number, false);
            // It stays open when the handle goes.
            std::mem::forget(
                placed.map_err(|error| Failure::new(format!("cannot set a standard stream: {error}")))?,
            );
        }
    }
    Ok(())
}

fn terminal_of(process: &Process) -> Result<Option<OwnedFd>, Failure> {
    if !process.terminal {
        return Ok(None);
    }
    let taken = terminal::take(&process.user);
    taken.map(Some).map_err(|error| Failure::new(format!("cannot make a terminal: {error}")))
}

fn finish(
    setup: &Setup,
    wanted: &Process,
    channel: &OwnedFd,
    master: Option<OwnedFd>,
    ready: impl FnOnce(u64) -> Report,
    begun: Instant,
) -> Result<std::convert::Infallible, Failure> {
    process::become_user(wanted, setup.privilege, &setup.profiles)?;
    // Becoming another user has cleared it.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let bytes = serde_json::to_vec(&ready(micros(begun))).unwrap_or_default();
    let masters: Vec<i32> = master.iter().map(AsRawFd::as_raw_fd).collect();
    seqpacket::send(channel.as_fd(), &bytes, &masters)
        .map_err(|error| Failure::new(format!("the helper is gone: {error}")))?;
    drop(master);
    Err(process::run(wanted))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
