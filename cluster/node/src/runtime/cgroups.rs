//! Cgroups of containers: made, joined and given their device rules ahead of time by the process that waits to become a
//! container; limited when it becomes one; removed by the helper.
//!
//! Joining is what a start must not do: it waits for all processors to pass a quiescent state, 10 ms now and then.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::devices;
use crate::cgroup::Hierarchies;
use crate::spec::Limits;

/// The version 1 controllers that containers have groups in.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "devices", "memory", "pids"];

/// Devices of containers as version 1 writes them; version 2 has a program of the same meaning in [`devices`].
const DEVICE_RULES: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// The groups of this node's containers.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    hierarchies: Hierarchies,
}

impl Cgroups {
    pub(super) fn new(hierarchies: Hierarchies) -> Self {
        Self { hierarchies }
    }

    fn folders(&self, cgroup: &str) -> Vec<PathBuf> {
        let relative = cgroup.trim_start_matches('/');
        if self.hierarchies.unified() {
            return self.hierarchies.v2.iter().map(|root| root.join(relative)).collect();
        }
        let mut roots: Vec<&PathBuf> =
            CONTROLLERS.iter().filter_map(|controller| self.hierarchies.v1.get(*controller)).collect();
        // Controllers that are mounted together.
        roots.sort();
        roots.dedup();
        roots.into_iter().map(|root| root.join(relative)).collect()
    }

    fn folder(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        let root = match self.hierarchies.unified() {
            true => self.hierarchies.v2.as_ref(),
            false => self.hierarchies.v1.get(controller),
        };
        root.map(|root| root.join(cgroup.trim_start_matches('/')))
    }

    /// Makes the groups with the devices that every container may use, and puts the calling process there.
    pub(super) fn enter(&self, cgroup: &str) -> io::Result<()> {
        for folder in self.folders(cgroup) {
            create(&folder)?;
        }
        if self.hierarchies.unified() {
            if let Some(folder) = self.folder("", cgroup) {
                devices::restrict(&folder)?;
            }
        } else if let Some(folder) = self.folder("devices", cgroup) {
            fs::write(folder.join("devices.deny"), "a")?;
            for rule in DEVICE_RULES {
                // What the group above may not use, this one may not either.
                ignore(fs::write(folder.join("devices.allow"), rule), io::ErrorKind::PermissionDenied)?;
            }
        }
        self.join(cgroup)
    }

    /// The groups as a container sees them below /sys/fs/cgroup: name and folder; in version 2 there is one without a name.
    pub(super) fn shown(&self, cgroup: &str) -> Vec<(&str, PathBuf)> {
        let relative = cgroup.trim_start_matches('/');
        if self.hierarchies.unified() {
            return self.hierarchies.v2.iter().map(|root| ("", root.join(relative))).collect();
        }
        let known = |name: &&'static str| Some((*name, self.hierarchies.v1.get(*name)?.join(relative)));
        CONTROLLERS.iter().filter_map(known).collect()
    }

    /// Puts the calling process into groups that exist.
    pub(super) fn join(&self, cgroup: &str) -> io::Result<()> {
        self.folders(cgroup).iter().try_for_each(|folder| write(&folder.join("cgroup.procs"), "0"))
    }

    /// All devices of the machine, for a privileged container.
    pub(super) fn allow_devices(&self, cgroup: &str) -> io::Result<()> {
        if self.hierarchies.unified() {
            return self.folder("", cgroup).map_or(Ok(()), |folder| devices::release(&folder));
        }
        match self.folder("devices", cgroup) {
            Some(folder) => write(&folder.join("devices.allow"), "a"),
            None => Ok(()),
        }
    }

    /// The limits, opened while the files can be seen and to be set when the process has its own work behind it.
    pub(super) fn limits(&self, cgroup: &str, limits: &Limits) -> io::Result<Vec<Limit>> {
        let mut opened = Vec::new();
        for (controller, file, value) in files(limits, self.hierarchies.unified()) {
            let Some(folder) = self.folder(controller, cgroup) else { continue };
            let path = folder.join(file);
            match fs::OpenOptions::new().write(true).open(&path) {
                Ok(file) => opened.push(Limit { file, value, path }),
                // No such controller here, which the node has said once, or a kernel without swap accounting.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(named(&error, &value, &path)),
            }
        }
        Ok(opened)
    }

    /// Removes the groups. False while processes are left in them, which are killed.
    pub(super) fn remove(&self, cgroup: &str) -> bool {
        let mut gone = true;
        for folder in self.folders(cgroup) {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    gone = false;
                    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                    let pids = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1);
                    for pid in pids {
                        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    }
                }
                _ => {}
            }
        }
        gone
    }

    pub(super) fn oom_kills(&self, cgroup: &str) -> u64 {
        self.hierarchies.oom_kills(cgroup)
    }
}

/// One limit of a container.
#[derive(Debug)]
pub(super) struct Limit {
    file: fs::File,
    value: String,
    path: PathBuf,
}

impl Limit {
    pub(super) fn set(&mut self) -> io::Result<()> {
        self.file.write_all(self.value.as_bytes()).map_err(|error| named(&error, &self.value, &self.path))
    }
}

/// Controller, file and value.
fn files(limits: &Limits, unified: bool) -> Vec<(&'static str, &'static str, String)> {
    const PERIOD: i64 = 100_000;
    let mut files = Vec::new();
    if unified {
        if let Some(shares) = limits.cpu_shares {
            // The conversion that kubelet's ecosystem agreed on: 2..262144 onto 1..10000.
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            files.push(("cpu", "cpu.weight", weight.to_string()));
        }
        if let Some(quota) = limits.cpu_quota_us {
            files.push(("cpu", "cpu.max", format!("{quota} {PERIOD}")));
        }
        if let Some(memory) = limits.memory {
            files.push(("memory", "memory.max", memory.to_string()));
            files.push(("memory", "memory.swap.max", "0".to_owned()));
            // One process of a container killed for memory takes the others with it, as kubelet asks for.
            files.push(("memory", "memory.oom.group", "1".to_owned()));
        }
        if let Some(pids) = limits.pids {
            files.push(("pids", "pids.max", pids.to_string()));
        }
        return files;
    }
    if let Some(shares) = limits.cpu_shares {
        files.push(("cpu", "cpu.shares", shares.to_string()));
    }
    if let Some(quota) = limits.cpu_quota_us {
        files.push(("cpu", "cpu.cfs_period_us", PERIOD.to_string()));
        files.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
    }
    if let Some(memory) = limits.memory {
        files.push(("memory", "memory.limit_in_bytes", memory.to_string()));
        files.push(("memory", "memory.memsw.limit_in_bytes", memory.to_string()));
    }
    if let Some(pids) = limits.pids {
        files.push(("pids", "pids.max", pids.to_string()));
    }
    files
}

/// A plain write: files of cgroups are never created or truncated.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let named = |error: io::Error| named(&error, text, path);
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(named)?;
    file.write_all(text.as_bytes()).map_err(named)
}

fn named(error: &io::Error, text: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {text:?} to {}: {error}", path.display()))
}

fn create(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
    .map_err(|error| io::Error::new(error.kind(), format!("cannot make {}: {error}", folder.display())))
}

fn ignore(result: io::Result<()>, kind: io::ErrorKind) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LIMITS: Limits =
        Limits { cpu_shares: Some(1024), cpu_quota_us: Some(50_000), memory: Some(64 << 20), pids: Some(9) };

    /// Files as the kernel would make them, and what is in them after the limits are set.
    fn written(unified: bool, names: &[&str]) -> BTreeMap<String, String> {
        let root = tempfile::tempdir().unwrap();
        let mut hierarchies = Hierarchies::default();
        match unified {
            true => hierarchies.v2 = Some(root.path().to_owned()),
            false => {
                for name in ["cpu", "memory", "pids"] {
                    hierarchies.v1.insert(name.to_owned(), root.path().join("all"));
                }
            }
        }
        let folder = root.path().join(if unified { "a/b" } else { "all/a/b" });
        fs::create_dir_all(&folder).unwrap();
        names.iter().for_each(|name| fs::write(folder.join(name), "").unwrap());
        let limits = Cgroups::new(hierarchies).limits("/a/b", &LIMITS).unwrap();
        limits.into_iter().for_each(|mut limit| limit.set().unwrap());
        let read = |name: &&str| ((*name).to_owned(), fs::read_to_string(folder.join(name)).unwrap());
        names.iter().map(read).collect()
    }

    #[test]
    fn limits_of_version_two() {
        let names = ["cpu.weight", "cpu.max", "memory.max", "memory.oom.group", "pids.max"];
        let files = written(true, &names);
        assert_eq!(files.into_values().collect::<Vec<_>>(), ["50000 100000", "39", "67108864", "1", "9"]);
    }

    #[test]
    fn limits_of_version_one() {
        let names =
            ["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "memory.limit_in_bytes", "pids.max"];
        let files = written(false, &names);
        assert_eq!(files.into_values().collect::<Vec<_>>(), ["100000", "50000", "1024", "67108864", "9"]);
    }
}
