//! What this process may do to the machine: everything, or only what its user namespace owns.

use std::fs;

/// As whom containers are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Root of the machine.
    Root,
    /// Root of a user namespace only. No device nodes can be made, and cgroups are limited only where some are delegated.
    UserNamespace {
        /// Only one user exists in it (no subordinate ids): all containers run as that one.
        single: bool,
    },
}

impl Privilege {
    /// That of the calling process.
    #[must_use]
    pub fn detect() -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        Self::parse(&read("uid_map"), &read("gid_map"))
    }

    /// From the texts of uid_map and gid_map (user_namespaces(7)).
    #[must_use]
    pub fn parse(uid_map: &str, gid_map: &str) -> Self {
        let whole = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
        let size = |map: &str| -> u64 {
            map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
        };
        if whole(uid_map) {
            return Self::Root;
        }
        Self::UserNamespace { single: size(uid_map) <= 1 || size(gid_map) <= 1 }
    }

    /// Whether mknod(2) works.
    #[must_use]
    pub fn makes_devices(self) -> bool {
        self == Self::Root
    }

    /// Whether other groups than one exist, so that they can be given to processes and files.
    #[must_use]
    pub fn maps_groups(self) -> bool {
        !matches!(self, Self::UserNamespace { single: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_tell() {
        let all = "         0          0 4294967295\n";
        assert_eq!(Privilege::parse(all, all), Privilege::Root);
        let one = "         0       1000          1\n";
        assert_eq!(Privilege::parse(one, one), Privilege::UserNamespace { single: true });
        let many = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(Privilege::parse(many, many), Privilege::UserNamespace { single: false });
    }
}
