//! The helper's children that have become what they were to become, or failed to.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::runtime::cgroups::Cgroups;
use crate::runtime::parked::Spawned;
use crate::runtime::protocol::Exit;

/// Whose first process a child is.
pub(super) enum Of {
    Container {
        id: String,
    },
    Exec {
        id: String,
        cgroup: Option<String>,
    },
    /// It only has to be waited for.
    Nobody,
}

pub(super) struct Child {
    pub(super) spawned: Spawned,
    pub(super) of: Of,
}

/// All of them, by process number; a number is not given away again before its child is reaped.
#[derive(Default)]
pub(super) struct Children {
    all: HashMap<i32, Child>,
    named: HashMap<String, i32>,
}

impl Children {
    pub(super) fn add(&mut self, child: Child) {
        let pid = child.spawned.pid.as_raw();
        if let Of::Container { id } | Of::Exec { id, .. } = &child.of {
            self.named.insert(id.clone(), pid);
        }
        self.all.insert(pid, child);
    }

    pub(super) fn polled(&self) -> impl Iterator<Item = (i32, PollFd<'_>)> {
        self.all
            .iter()
            .map(|(pid, child)| (*pid, PollFd::new(child.spawned.pidfd.as_fd(), PollFlags::POLLIN)))
    }

    pub(super) fn pidfd(&self, pid: i32) -> Option<&OwnedFd> {
        self.all.get(&pid).map(|child| &child.spawned.pidfd)
    }

    pub(super) fn signal(&self, id: &str, signal: i32) -> Result<(), String> {
        let pid = self.named.get(id).ok_or("no such process")?;
        let child = self.all.get(pid).ok_or("no such process")?;
        let signal = Signal::try_from(signal).map_err(|error| error.to_string())?;
        // The process is our own child and not reaped yet, so its number cannot have been given away.
        kill(child.spawned.pid, signal).map_err(|error| error.to_string())
    }

    /// Takes an ended child out; None if it has not ended after all.
    pub(super) fn reap(&mut self, pid: i32, cgroups: &Cgroups) -> Option<(Child, Exit)> {
        let child = self.all.get(&pid)?;
        let (code, signal) = match waitpid(child.spawned.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => (code, None),
            Ok(WaitStatus::Signaled(_, signal, _)) => (128 + signal as i32, Some(signal as i32)),
            Ok(_) => return None,
            Err(_) => (255, None),
        };
        let killed = signal == Some(Signal::SIGKILL as i32);
        let struck =
            |cgroup: &Option<String>| cgroup.as_ref().is_some_and(|cgroup| cgroups.oom_kills(cgroup) > 0);
        let oom = match &child.of {
            // Also when it was a child of the first process that was killed, and that ended because of it.
            Of::Container { .. } => code != 0 && struck(&child.spawned.cgroup),
            Of::Exec { cgroup, .. } => killed && struck(cgroup),
            Of::Nobody => false,
        };
        let child = self.all.remove(&pid)?;
        if let Of::Container { id } | Of::Exec { id, .. } = &child.of {
            self.named.remove(id);
        }
        Some((child, Exit { code, signal, oom }))
    }

    /// Kills all and waits for them, in whatever order they end: the first process of a namespace of processes ends only when all others in it
    /// are gone, and what was executed in it is our child, too, and stays until we ask for it.
    pub(super) fn end(&mut self) {
        for child in self.all.values() {
            let _ = kill(child.spawned.pid, Signal::SIGKILL);
        }
        let mut left: HashSet<Pid> = self.all.drain().map(|(_, child)| child.spawned.pid).collect();
        while !left.is_empty() {
            match waitpid(None, None) {
                Ok(ended) => _ = ended.pid().map(|pid| left.remove(&pid)),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        self.named.clear();
    }
}
