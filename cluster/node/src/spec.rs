//! The OCI runtime specification of one container, from values that are already resolved.
//!
//! Defaults (capabilities, devices, masked and read-only paths, mounts) are containerd's, which is what images are
//! tested with. Pure: reads nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

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

const MASKED: [&str; 10] = [
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

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Who a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A file or folder of the machine that the container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the machine.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: String,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether later mounts below `source` on the machine appear in the container.
    pub propagate: bool,
}

/// The process of a container or of an exec.
#[derive(Debug, Clone, Default)]
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
}

/// Limits, in the units of cgroup version 1; the runtime converts them for version 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// Its first process.
    pub process: Process,
    /// The mounted root filesystem.
    pub rootfs: PathBuf,
    /// Whether the root filesystem refuses writes.
    pub read_only_root: bool,
    /// The pod's network namespace; None for the machine's.
    pub net: Option<PathBuf>,
    /// The pod's ipc namespace; None for the machine's.
    pub ipc: Option<PathBuf>,
    /// The pod's uts namespace; None for the machine's.
    pub uts: Option<PathBuf>,
    /// Whether the machine's processes are visible.
    pub host_pid: bool,
    /// Files and folders.
    pub binds: Vec<Bind>,
    /// All devices, nothing masked.
    pub privileged: bool,
    /// Whether /proc is shown unmasked (`procMount: Unmasked`).
    pub unmasked_proc: bool,
    /// Absolute path in each cgroup hierarchy.
    pub cgroup: String,
    /// Limits.
    pub limits: Limits,
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

/// The OCI `process` object.
#[must_use]
pub fn process(process: &Process) -> Value {
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.insert(0, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    if process.terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    let capabilities = &process.capabilities;
    let mut value = json!({
        "terminal": process.terminal,
        "user": { "uid": process.user.uid, "gid": process.user.gid, "additionalGids": process.user.groups },
        "args": process.args,
        "env": env,
        "cwd": if process.cwd.is_empty() { "/" } else { process.cwd.as_str() },
        "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        "noNewPrivileges": process.no_new_privileges,
    });
    if process.user.groups.is_empty()
        && let Some(user) = value.get_mut("user").and_then(Value::as_object_mut)
    {
        user.remove("additionalGids");
    }
    value
}

/// The whole `config.json`.
#[must_use]
pub fn config(container: &Container) -> Value {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if !container.host_pid {
        namespaces.push(json!({ "type": "pid" }));
    }
    for (kind, path) in [("network", &container.net), ("ipc", &container.ipc), ("uts", &container.uts)] {
        if let Some(path) = path {
            namespaces.push(json!({ "type": kind, "path": path }));
        }
    }
    let mut linux = json!({
        "cgroupsPath": container.cgroup,
        "namespaces": namespaces,
        "resources": resources(container),
        "rootfsPropagation": "private",
    });
    if !container.privileged && !container.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    json!({
        "ociVersion": "1.0.2",
        "process": process(&container.process),
        "root": { "path": container.rootfs, "readonly": container.read_only_root },
        "mounts": mounts(container),
        "linux": linux,
    })
}

fn mounts(container: &Container) -> Vec<Value> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": source, "options": options });
    let sys_mode = if container.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ];
    // sysfs shows a network namespace, and mounting it afresh is refused where that is the machine's.
    if container.net.is_some() {
        mounts.push(mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_mode]));
    } else {
        mounts.push(mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", sys_mode]));
    }
    // The order of destinations: a bind at /a must come before one at /a/b, or it would hide it.
    let mut binds: Vec<&Bind> = container.binds.iter().collect();
    binds.sort_by_key(|bind| bind.target.split('/').filter(|part| !part.is_empty()).count());
    for bind in binds {
        mounts.retain(|existing| existing["destination"] != json!(bind.target));
        let mode = if bind.read_only { "ro" } else { "rw" };
        let propagation = if bind.propagate { "rslave" } else { "rprivate" };
        mounts.push(json!({
            "destination": bind.target, "type": "bind", "source": bind.source,
            "options": ["rbind", propagation, mode],
        }));
    }
    mounts
}

fn resources(container: &Container) -> Value {
    let limits = &container.limits;
    let mut resources = json!({});
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = limits.cpu_shares {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    if let Some(quota) = limits.cpu_quota_us {
        cpu.insert("quota".to_owned(), json!(quota));
        cpu.insert("period".to_owned(), json!(100_000));
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(memory) = limits.memory {
        resources["memory"] = json!({ "limit": memory });
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        if let Some(major) = major {
            rule["major"] = json!(major);
        }
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    resources["devices"] = if container.privileged {
        json!([{ "allow": true, "access": "rwm" }])
    } else {
        let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
        rules.push(rule("c", None, None, "m"));
        rules.push(rule("b", None, None, "m"));
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
            rules.push(rule("c", Some(major), Some(minor), "rwm"));
        }
        rules.push(rule("c", Some(136), None, "rwm"));
        Value::Array(rules)
    };
    resources
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
    fn binds_go_from_the_root_downwards_and_replace_defaults() {
        let bind = |target: &str| Bind {
            source: "/s".into(),
            target: target.to_owned(),
            read_only: true,
            propagate: false,
        };
        let container =
            Container { binds: vec![bind("/a/b"), bind("/a"), bind("/dev/shm")], ..Container::default() };
        let spec = config(&container);
        let targets: Vec<&str> =
            spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(targets.iter().filter(|t| **t == "/dev/shm").count(), 1);
        let at = |target: &str| targets.iter().position(|t| *t == target).unwrap();
        assert!(at("/a") < at("/a/b"));
    }

    #[test]
    fn the_specification_is_one_that_the_library_reads() {
        let container = Container {
            process: Process {
                args: names(&["/x"]),
                capabilities: names(&["CAP_KILL"]),
                ..Process::default()
            },
            net: Some("/proc/1/ns/net".into()),
            limits: Limits {
                cpu_shares: Some(2),
                cpu_quota_us: Some(1000),
                memory: Some(1 << 20),
                pids: Some(5),
            },
            ..Container::default()
        };
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(config(&container)).unwrap();
        assert_eq!(parsed.process().as_ref().unwrap().args().as_ref().unwrap(), &names(&["/x"]));
    }
}
