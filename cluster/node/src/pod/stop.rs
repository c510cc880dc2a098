//! Whether a process can hear the signal that asks it to end.

/// Whether the first process of a pid namespace has no handler for `signal`, so that the kernel drops it (pid_namespaces(7)).
///
/// A process that cannot be looked at is taken to listen.
pub(super) fn ignores(pid: i32, signal: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| catches(&status, signal) == Some(false))
}

/// Whether the mask `SigCgt` of a `/proc/PID/status` has the signal; `None` without such a line.
fn catches(status: &str, signal: i32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    let bit = u32::try_from(signal).ok()?.checked_sub(1)?;
    Some(mask.checked_shr(bit).unwrap_or(0) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_counts_from_one() {
        let status = "Name:\tx\nSigIgn:\t0000000000004000\nSigCgt:\t0000000000004001\n";
        assert_eq!(catches(status, 15), Some(true));
        assert_eq!(catches(status, 1), Some(true));
        assert_eq!(catches(status, 2), Some(false));
        assert_eq!(catches(status, 0), None);
        assert_eq!(catches("Name:\tx\n", 15), None);
    }

    #[test]
    fn a_process_without_a_handler_is_deaf_and_a_missing_one_is_not() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(ignores(me, nix::libc::SIGUSR2), "the test runner handles no SIGUSR2");
        assert!(!ignores(0, nix::libc::SIGTERM));
    }
}
