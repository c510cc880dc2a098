//! The cgroup hierarchies of this machine: version 1, version 2 or both.
//!
//! Only what the node needs besides the runtime: finding them, reading figures, killing and removing what is below
//! the node's own prefix.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Hierarchies {
    /// Version 1: controller name to mount point.
    pub v1: BTreeMap<String, PathBuf>,
    /// The version 2 mount, also where it only rides along with version 1.
    pub v2: Option<PathBuf>,
}

/// What containers are limited by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Figures of one cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time used, nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged, bytes.
    pub memory_bytes: u64,
    /// Memory charged without reclaimable file pages, bytes: what eviction and `kubectl top` count.
    pub working_set_bytes: u64,
}

impl Hierarchies {
    /// Reads the mounts of the calling process.
    pub fn detect() -> std::io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Reads the text of a mountinfo file (proc(5)).
    #[must_use]
    pub fn parse(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount_point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let kind = right.next().unwrap_or_default();
            let options = right.nth(1).unwrap_or_default();
            match kind {
                "cgroup2" => found.v2 = Some(mount_point.into()),
                "cgroup" => {
                    for option in options.split(',') {
                        let name = option.strip_prefix("name=").unwrap_or(option);
                        if !matches!(name, "rw" | "ro" | "noprefix" | "xattr" | "clone_children") {
                            found.v1.insert(name.to_owned(), mount_point.into());
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Whether containers are governed by version 2 alone.
    #[must_use]
    pub fn unified(&self) -> bool {
        self.v2.is_some() && !self.v1.contains_key("memory")
    }

    fn file(&self, controller: &str, cgroup: &str, name: &str) -> Option<PathBuf> {
        let root = if self.unified() { self.v2.as_ref()? } else { self.v1.get(controller)? };
        Some(root.join(cgroup.trim_start_matches('/')).join(name))
    }

    /// How often the out-of-memory killer struck in this cgroup.
    #[must_use]
    pub fn oom_kills(&self, cgroup: &str) -> u64 {
        let name = if self.unified() { "memory.events" } else { "memory.oom_control" };
        self.file("memory", cgroup, name)
            .and_then(|path| fs::read_to_string(path).ok())
            .and_then(|text| keyed(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// CPU and memory of a cgroup; None when it is gone.
    #[must_use]
    pub fn usage(&self, cgroup: &str) -> Option<Usage> {
        let read =
            |controller: &str, name: &str| fs::read_to_string(self.file(controller, cgroup, name)?).ok();
        if self.unified() {
            let memory = read("memory", "memory.current")?.trim().parse().ok()?;
            let cache = keyed(&read("memory", "memory.stat")?, "inactive_file").unwrap_or(0);
            let cpu = keyed(&read("cpu", "cpu.stat")?, "usage_usec").unwrap_or(0) * 1000;
            return Some(Usage {
                cpu_ns: cpu,
                memory_bytes: memory,
                working_set_bytes: memory.saturating_sub(cache),
            });
        }
        let memory: u64 = read("memory", "memory.usage_in_bytes")?.trim().parse().ok()?;
        let cache = keyed(&read("memory", "memory.stat")?, "total_inactive_file").unwrap_or(0);
        let cpu = read("cpuacct", "cpuacct.usage").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Some(Usage { cpu_ns: cpu, memory_bytes: memory, working_set_bytes: memory.saturating_sub(cache) })
    }

    /// Makes the group that all containers are below, with its share of the processor.
    ///
    /// To the kernel, the group is one among the tasks and groups beside it, each with a weight of 1024 (version 1): with the default, all
    /// containers together would get no more than one busy thread of this very process, which is busiest just when containers start.
    ///
    /// # Errors
    /// The kernel's; version 2 without a delegated cpu controller is none.
    pub fn favour(&self, cgroup: &str, cpus: usize) -> std::io::Result<()> {
        let weight = 4096 * cpus as u64;
        let Some(shares) = self.file("cpu", cgroup, if self.unified() { "cpu.weight" } else { "cpu.shares" })
        else {
            return Ok(());
        };
        if let Some(folder) = shares.parent() {
            fs::create_dir_all(folder)?;
        }
        match self.unified() {
            // Weights of version 2 go from 1 to 10000, 100 is the default.
            true if shares.exists() => fs::write(shares, (weight * 100 / 1024).min(10_000).to_string()),
            true => Ok(()),
            false => fs::write(shares, weight.to_string()),
        }
    }

    /// Makes the group that all containers are below, and passes on to it what the machine has.
    ///
    /// # Errors
    /// The kernel's: no hierarchy is writable. A controller that is not to be had is none, see
    /// [`Hierarchies::unenforced`].
    pub fn prepare(&self, cgroup: &str) -> std::io::Result<()> {
        let relative = cgroup.trim_start_matches('/');
        if !self.unified() {
            let wanted = CONTROLLERS.iter().filter_map(|controller| self.v1.get(*controller));
            for root in wanted {
                fs::create_dir_all(root.join(relative))?;
            }
            return Ok(());
        }
        let Some(root) = &self.v2 else { return Ok(()) };
        let mut folder = root.clone();
        for part in Path::new(relative) {
            for controller in CONTROLLERS {
                // What a group above does not have, or what may not be changed here, is missing below.
                let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        for controller in CONTROLLERS {
            let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        Ok(())
    }

    /// The controllers that containers below this group do not have, so that their limits are not enforced.
    #[must_use]
    pub fn unenforced(&self, cgroup: &str) -> Vec<&'static str> {
        let passed_on = match (&self.v2, self.unified()) {
            (Some(root), true) => {
                let path = root.join(cgroup.trim_start_matches('/')).join("cgroup.subtree_control");
                fs::read_to_string(path).unwrap_or_default()
            }
            _ => self.v1.keys().cloned().collect::<Vec<_>>().join(" "),
        };
        let has = |controller: &&str| passed_on.split_whitespace().any(|name| name == *controller);
        CONTROLLERS.into_iter().filter(|controller| !has(controller)).collect()
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.values().chain(self.v2.as_ref())
    }

    /// [`Hierarchies::kill_and_remove`] for the groups right below `parent` whose names begin so.
    pub fn kill_and_remove_named(&self, parent: &str, beginning: &str) -> usize {
        let relative = parent.trim_start_matches('/');
        let names: std::collections::BTreeSet<String> = self
            .roots()
            .flat_map(|root| folders(&root.join(relative)))
            .filter_map(|folder| folder.file_name().map(|name| name.to_string_lossy().into_owned()))
            .filter(|name| name.starts_with(beginning))
            .collect();
        names.iter().map(|name| self.kill_and_remove(&format!("{parent}/{name}"))).sum()
    }

    /// Kills every process below the cgroup in every hierarchy, waits for them to be gone (up to 2 s) and removes it.
    /// Returns how many processes were killed.
    pub fn kill_and_remove(&self, cgroup: &str) -> usize {
        let relative = cgroup.trim_start_matches('/');
        if relative.is_empty() {
            return 0;
        }
        let mut killed = 0;
        for round in 0..200 {
            let mut alive = 0;
            for root in self.roots() {
                for pid in processes(&root.join(relative)) {
                    alive += 1;
                    if round == 0 {
                        killed += 1;
                    }
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            if alive == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // A process that has just ended keeps its cgroup busy until its parent has noticed.
        for _ in 0..100 {
            let left = self.roots().map(|root| root.join(relative)).filter(|folder| {
                remove(folder);
                folder.exists()
            });
            if left.count() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        killed
    }
}

/// The number after `key` in a file of `key number` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

fn processes(folder: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_to_string(folder.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .filter(|pid| *pid > 1)
        .collect();
    for child in folders(folder) {
        found.extend(processes(&child));
    }
    found
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|e| e.path())
        .collect()
}

fn remove(folder: &Path) {
    for child in folders(folder) {
        remove(&child);
    }
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_one_with_a_version_two_mount_beside_it() {
        let found = Hierarchies::parse(
            "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
        );
        assert!(!found.unified());
        assert_eq!(found.v1["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.v1.keys().collect::<Vec<_>>(), ["cpu", "cpuacct", "memory", "systemd"]);
    }

    #[test]
    fn version_two_alone() {
        let found = Hierarchies::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(found.unified());
        assert_eq!(
            found.file("memory", "/a/b", "memory.events").unwrap(),
            Path::new("/sys/fs/cgroup/a/b/memory.events")
        );
    }

    #[test]
    fn what_is_not_passed_on_is_not_enforced() {
        let root = tempfile::tempdir().unwrap();
        let found = Hierarchies { v2: Some(root.path().to_owned()), ..Hierarchies::default() };
        found.prepare("/a/b").unwrap();
        let wished = fs::read_to_string(root.path().join("a/b/cgroup.subtree_control")).unwrap();
        assert_eq!(wished, "+pids", "each was asked for, and a plain file keeps the last");
        fs::write(root.path().join("a/b/cgroup.subtree_control"), "cpuset cpu pids\n").unwrap();
        assert_eq!(found.unenforced("/a/b"), ["memory"]);
        let old = Hierarchies::parse("35 31 0:32 / /m rw - cgroup cgroup rw,memory\n");
        assert_eq!(old.unenforced("/a"), ["cpu", "pids"]);
    }

    /// The texts are those of the kernel's Documentation/admin-guide/cgroup-v2.rst.
    #[test]
    fn what_version_two_says() {
        let root = tempfile::tempdir().unwrap();
        let found = Hierarchies { v2: Some(root.path().to_owned()), ..Hierarchies::default() };
        let group = root.path().join("node/c1");
        fs::create_dir_all(&group).unwrap();
        for (name, text) in [
            ("memory.events", "low 0\nhigh 0\nmax 21\noom 2\noom_kill 2\noom_group_kill 1\n"),
            ("memory.current", "10485760\n"),
            (
                "memory.stat",
                "anon 4194304\nfile 6291456\ninactive_anon 0\ninactive_file 2097152\nactive_file 4194304\n",
            ),
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 0\n"),
        ] {
            fs::write(group.join(name), text).unwrap();
        }
        assert_eq!(found.oom_kills("/node/c1"), 2, "processes killed, not events or groups");
        let usage = Usage { cpu_ns: 1_500_000, memory_bytes: 10 << 20, working_set_bytes: 8 << 20 };
        assert_eq!(found.usage("/node/c1"), Some(usage));
        assert_eq!(found.usage("/node/gone"), None);
        // Without the controller there is no file, and that is no error.
        found.favour("/node", 2).unwrap();
        fs::write(root.path().join("node/cpu.weight"), "100\n").unwrap();
        found.favour("/node", 2).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("node/cpu.weight")).unwrap(), "800");
    }

    #[test]
    fn keyed_matches_whole_names() {
        assert_eq!(keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
    }
}
