//! Waiting for one process, and passing signals on to it.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What a user or a supervisor sends to end or tell a program something.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

fn watched() -> SigSet {
    PASSED_ON.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// Keeps the signals that [`mind`] waits for until it is called; gives what was blocked before, for [`release`]. Must come before the fork,
/// so that no signal is lost between the two. Process 1 of a namespace receives only what it has blocked or handles.
pub(crate) fn keep() -> nix::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&watched()), Some(&mut before))?;
    Ok(before)
}

/// In the child: back to what was before [`keep`].
pub(crate) fn release(before: &SigSet) -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(before), None)
}

/// Passes signals on to `child` and reaps all children until it has ended; gives its exit code, as a shell would (128 + signal).
pub(crate) fn mind(child: Pid) -> i32 {
    let watched = watched();
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == child => return code,
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => break,
                Err(_) => return 1,
                Ok(_) => {}
            }
        }
        match watched.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            // A child that has just ended is reaped in the next round.
            Ok(signal) => drop(kill(child, signal)),
        }
    }
}
