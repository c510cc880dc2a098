//! What this process may do, and what containers therefore can have.

use crate::cgroup::Hierarchies;
use crate::error::Error;
use crate::runtime::Privilege;

/// The node's rights.
#[derive(Debug)]
pub(crate) struct Rights {
    /// The capabilities that containers can be given, a bit each.
    pub(crate) capabilities: u64,
    /// Whether containers get cgroups.
    pub(crate) cgroups: bool,
    /// The controllers whose limits are not enforced.
    pub(crate) unenforced: Vec<&'static str>,
}

const NEEDED: [(u32, &str); 9] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
];

/// All controllers, for a node that may make no cgroups.
const ALL: [&str; 3] = ["cpu", "memory", "pids"];

/// The first Linux with all that the runtime asks of it; the last of that was mount_setattr(2).
const KERNEL: (u32, u32) = (5, 12);

impl Rights {
    /// Looks, and makes the cgroup below which all containers of the node are.
    ///
    /// # Errors
    /// [`Error::Unprivileged`] with all that is missing. In a user namespace, cgroups are nothing that must be there.
    pub(crate) fn find(hierarchies: &Hierarchies, cgroup: &str) -> Result<Self, Error> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let privilege = Privilege::detect();
        let cgroups = if hierarchies.v1.is_empty() && hierarchies.v2.is_none() {
            Err("a mounted cgroup hierarchy (mount -t cgroup2 none /sys/fs/cgroup)".to_owned())
        } else {
            hierarchies.prepare(cgroup).map_err(|error| format!("the right to make cgroups ({error})"))
        };
        let unenforced = if cgroups.is_ok() { hierarchies.unenforced(cgroup) } else { ALL.to_vec() };
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self::judge(&status, kernel.trim(), privilege, cgroups, unenforced)
    }

    fn judge(
        status: &str,
        kernel: &str,
        privilege: Privilege,
        cgroups: Result<(), String>,
        unenforced: Vec<&'static str>,
    ) -> Result<Self, Error> {
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0)
        };
        let (effective, bounding) = (set("CapEff:"), set("CapBnd:"));
        let lacking = NEEDED.iter().filter(|(bit, _)| effective & (1 << bit) == 0);
        let mut missing: Vec<String> = lacking.map(|(_, name)| format!("the capability {name}")).collect();
        if release(kernel).is_some_and(|found| found < KERNEL) {
            missing.push(format!("Linux {}.{} or newer (this is {kernel})", KERNEL.0, KERNEL.1));
        }
        let has_cgroups = cgroups.is_ok();
        if let (Err(what), Privilege::Root) = (cgroups, privilege) {
            missing.push(what);
        }
        if !missing.is_empty() {
            return Err(Error::Unprivileged { missing: missing.join(", ") });
        }
        Ok(Self { capabilities: effective & bounding, cgroups: has_cgroups, unenforced })
    }
}

/// The first two numbers of a kernel's release.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "Name:\tx\nCapEff:\t000001ffffffffff\nCapBnd:\t000001fffeffffff\n";

    #[test]
    fn root_needs_everything_and_a_user_namespace_no_cgroups() {
        let judge = |status: &str, privilege, cgroups: Result<(), String>| {
            Rights::judge(status, "6.1.0-13-amd64", privilege, cgroups, vec!["cpu"])
        };
        let rights = judge(ROOT, Privilege::Root, Ok(())).unwrap();
        assert_eq!(rights.capabilities, 0x1ff_feff_ffff, "what the bounding set lacks cannot be given");
        let refused = judge(ROOT, Privilege::Root, Err("cgroups".to_owned())).unwrap_err().to_string();
        assert!(refused.contains("cgroups"), "{refused}");
        let user = Privilege::UserNamespace { single: true };
        let rights = judge(ROOT, user, Err("cgroups".to_owned())).unwrap();
        assert!(!rights.cgroups && rights.unenforced == ["cpu"]);
        let refused = judge("CapEff:\t0000000000000000\n", user, Ok(())).unwrap_err().to_string();
        assert!(refused.contains("CAP_SYS_ADMIN"), "{refused}");
    }

    #[test]
    fn old_kernels_are_named() {
        let judge = |kernel: &str| Rights::judge(ROOT, kernel, Privilege::Root, Ok(()), Vec::new());
        assert!(judge("5.4.0-150-generic").unwrap_err().to_string().contains("Linux 5.12"));
        assert!(judge("5.12.0").is_ok() && judge("6.18.44-fc").is_ok() && judge("odd").is_ok());
    }
}
