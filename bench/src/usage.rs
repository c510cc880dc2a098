//! What a process uses, as Linux accounts for it.

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
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    // Clock ticks are hundredths of a second on every Linux that Rust runs on.
    Ok((ticks(11) + ticks(12)) * 10)
}
