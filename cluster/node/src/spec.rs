//! What one container is to be, from values that are already resolved: the runtime's input.
//!
//! Defaults (capabilities, devices, masked and read-only paths, mounts) are containerd's, which is what images are
//! tested with. Pure: reads nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What containerd grants a container that asks for nothing.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Paths that are hidden from a container: they tell about the machine.
pub const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];

/// Paths that a container may read but not write: they change the machine.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Who a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A file or folder of the machine that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the machine.
    pub source: PathBuf,
    /// What of the source; None for all of it.
    pub sub_path: Option<SubPath>,
    /// In the container, absolute.
    pub target: String,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether later mounts below `source` on the machine appear in the container.
    pub propagate: bool,
}

/// A place inside a volume. Links that lead out of the volume are refused when it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubPath {
    /// Relative to the volume.
    pub path: String,
    /// Whether folders that are missing are made.
    pub make: bool,
}

/// The process of a container or of an exec.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`; a PATH is added when there is none.
    pub env: Vec<String>,
    /// Working folder.
    pub cwd: String,
    /// Who it runs as.
    pub user: User,
    /// Capabilities, see [`capabilities`].
    pub capabilities: Vec<String>,
    /// Whether set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// Limits of setrlimit(2); what is not named is inherited from the node.
    pub rlimits: Vec<Rlimit>,
    /// How readily the kernel ends it when memory runs out, -1000 to 1000; None for the node's own value.
    pub oom_score_adj: Option<i32>,
}

/// A seccomp profile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// All system calls.
    #[default]
    Unconfined,
    /// The runtime's own profile: what containerd's default profile allows.
    RuntimeDefault,
}

/// A limit of setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on, by number.
    pub resource: u32,
    /// What holds.
    pub soft: u64,
    /// What the process may raise `soft` to.
    pub hard: u64,
}

/// The processes that a container sees beside its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Processes {
    /// None: its first process is number 1.
    #[default]
    Own,
    /// The machine's.
    Machine,
    /// Those of another container of this runtime, by its id, or of a pod (`Runtime::hold_processes`). They all end with the first one's.
    Of(String),
}

/// Limits, in the units of cgroup version 1; the runtime converts them for version 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Relative CPU weight, 1024 a core.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each 100 ms.
    pub cpu_quota_us: Option<i64>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Processes and threads.
    pub pids: Option<i64>,
}

/// Everything about one container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Container {
    /// Its first process.
    pub process: Process,
    /// Whether the root filesystem refuses writes.
    pub read_only_root: bool,
    /// The pod's network namespace; None for the machine's.
    pub net: Option<PathBuf>,
    /// The pod's ipc namespace; None for the machine's.
    pub ipc: Option<PathBuf>,
    /// The pod's uts namespace; None for the machine's.
    pub uts: Option<PathBuf>,
    /// Which processes are visible.
    pub processes: Processes,
    /// Files and folders.
    pub binds: Vec<Bind>,
    /// All devices, nothing masked.
    pub privileged: bool,
    /// Whether /proc is shown unmasked (`procMount: Unmasked`).
    pub unmasked_proc: bool,
    /// Limits.
    pub limits: Limits,
}

impl Container {
    /// The binds in the order in which they are mounted: one at /a must come before one at /a/b, or it would hide it.
    #[must_use]
    pub fn ordered_binds(&self) -> Vec<&Bind> {
        let mut binds: Vec<&Bind> = self.binds.iter().collect();
        binds.sort_by_key(|bind| bind.target.split('/').filter(|part| !part.is_empty()).count());
        binds
    }
}

impl Process {
    /// The environment with what every process gets: a PATH, and with a terminal its kind.
    #[must_use]
    pub fn environment(&self) -> Vec<String> {
        let mut env = self.env.clone();
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.insert(0, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        }
        if self.terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        env
    }

    /// The capabilities as a bit set, capability n as bit n; unknown names count for nothing.
    #[must_use]
    pub fn capability_bits(&self) -> u64 {
        let bit = |name: &String| ALL_CAPABILITIES.iter().position(|known| known == name);
        self.capabilities.iter().filter_map(bit).fold(0, |set, bit| set | 1 << bit)
    }
}

/// The capability set of a container: `add` and `drop` are names without `CAP_`, or `ALL`. What `available` (the
/// node's own bounding set, bit n for capability n) lacks cannot be granted: it is left out of `ALL` and an error when
/// asked for by name.
pub fn capabilities(
    privileged: bool,
    add: &[String],
    drop: &[String],
    available: u64,
) -> Result<Vec<String>, String> {
    let has = |name: &str| {
        ALL_CAPABILITIES
            .iter()
            .position(|known| *known == name)
            .is_some_and(|bit| available & (1 << bit) != 0)
    };
    let full = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    let everything = || ALL_CAPABILITIES.iter().filter(|name| has(name)).map(|name| (*name).to_owned());
    if privileged {
        return Ok(everything().collect());
    }
    let is_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut set: BTreeSet<String> =
        DEFAULT_CAPABILITIES.iter().filter(|name| has(name)).map(|name| (*name).to_owned()).collect();
    if is_all(drop) {
        set.clear();
    }
    if is_all(add) {
        set.extend(everything());
    }
    for name in add.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")).map(full) {
        if !ALL_CAPABILITIES.contains(&name.as_str()) {
            return Err(format!("unknown capability {name:?}"));
        }
        if !has(&name) {
            return Err(format!(
                "the node itself does not have the capability {name}, so it cannot grant it"
            ));
        }
        set.insert(name);
    }
    for name in drop.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")).map(full) {
        set.remove(&name);
    }
    Ok(set.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn capabilities_add_and_drop() {
        let only = capabilities(false, &names(&["NET_BIND_SERVICE"]), &names(&["ALL"]), ALL).unwrap();
        assert_eq!(only, ["CAP_NET_BIND_SERVICE"]);
        let all = capabilities(false, &names(&["ALL"]), &names(&["SYS_ADMIN"]), ALL).unwrap();
        assert_eq!(all.len(), 40);
        assert!(!all.contains(&"CAP_SYS_ADMIN".to_owned()));
        assert_eq!(capabilities(false, &[], &[], ALL).unwrap().len(), 14);
    }

    #[test]
    fn what_the_node_lacks_cannot_be_granted() {
        let without_resource = ALL & !(1 << 24);
        let privileged = capabilities(true, &[], &[], without_resource).unwrap();
        assert_eq!(privileged.len(), 40);
        let refused = capabilities(false, &names(&["SYS_RESOURCE"]), &[], without_resource).unwrap_err();
        assert!(refused.contains("CAP_SYS_RESOURCE"), "{refused}");
        assert!(capabilities(false, &names(&["FLY"]), &[], ALL).is_err());
    }

    #[test]
    fn binds_go_from_the_root_downwards() {
        let bind = |target: &str| Bind {
            source: "/s".into(),
            sub_path: None,
            target: target.to_owned(),
            read_only: true,
            propagate: false,
        };
        let container =
            Container { binds: vec![bind("/a/b/"), bind("/a"), bind("/dev/shm")], ..Container::default() };
        let targets: Vec<&str> = container.ordered_binds().iter().map(|bind| bind.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/a/b/", "/dev/shm"]);
    }

    #[test]
    fn capabilities_are_bits() {
        let process =
            Process { capabilities: names(&["CAP_CHOWN", "CAP_KILL", "CAP_MADE_UP"]), ..Process::default() };
        assert_eq!(process.capability_bits(), 0b10_0001);
    }

    #[test]
    fn every_process_has_a_path_and_a_terminal_its_kind() {
        let mut process = Process { env: names(&["A=b"]), terminal: true, ..Process::default() };
        let env = process.environment();
        assert!(env[0].starts_with("PATH=/usr/local/sbin:") && env.contains(&"TERM=xterm".to_owned()));
        process.env = names(&["PATH=/x", "TERM=vt100"]);
        assert_eq!(process.environment(), ["PATH=/x", "TERM=vt100"]);
    }
}
