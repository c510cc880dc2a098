//! What a process costs, as the kernel accounts for it.

use std::path::Path;

use anyhow::{Context, Result};

/// Resident memory.
pub(crate) fn rss_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// Of it, what is not pages of the executable's file, which all processes of a machine that run it share.
pub(crate) fn own_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "RssAnon:")
}

fn status_kib(pid: u32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with(key)).with_context(|| format!("no {key}"))?;
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).with_context(|| format!("{key} no number"))
}

/// Processor time so far, user and system.
pub(crate) fn cpu_ms(pid: u32) -> Result<u64> {
    let (user, kernel) = cpu_parts_ms(pid)?;
    Ok(user + kernel)
}

/// Processor time so far in the program itself, and in the kernel on its behalf.
pub(crate) fn cpu_parts_ms(pid: u32) -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    // Clock ticks are hundredths of a second on every Linux that Rust runs on.
    Ok((ticks(11) * 10, ticks(12) * 10))
}

/// All processes of a name (of at most 15 letters, as the kernel keeps it).
pub(crate) fn processes(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        if std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether a process was started with this in its environment.
pub(crate) fn has_environment(pid: u32, variable: &str) -> bool {
    let all = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    all.split(|b| *b == 0).any(|one| one == variable.as_bytes())
}

/// Puts `pid` where `like` is as to its share of the processor, so that neither is favoured.
pub(crate) fn share_cpu(pid: u32, like: u32) -> Result<()> {
    let groups = std::fs::read_to_string(format!("/proc/{like}/cgroup"))?;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mount = match controllers {
            "" => "/sys/fs/cgroup".to_owned(),
            all if all.split(',').any(|c| c == "cpu") => "/sys/fs/cgroup/cpu".to_owned(),
            _ => continue,
        };
        let procs = Path::new(&mount).join(path.trim_start_matches('/')).join("cgroup.procs");
        if procs.exists() {
            std::fs::write(&procs, pid.to_string())
                .with_context(|| format!("writing {}", procs.display()))?;
        }
    }
    Ok(())
}
