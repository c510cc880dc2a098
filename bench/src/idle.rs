//! What the platform costs when nothing happens: time to be ready, memory, processor time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::{Process, http};

use crate::figures::distribution;
use crate::platform::{Platform, Target, ebb};

pub(crate) fn run(n: usize, target: &Target) -> Result<Value> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let process = Process::start(&ebb()?)?;
        first.push(process.ready_after());
        let process = process.restart()?;
        again.push(process.ready_after());
        process.stop()?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let empty = Process::start(&ebb()?)?;
    std::thread::sleep(Duration::from_secs(2));
    let before = cpu_ms(empty.pid())?;
    std::thread::sleep(Duration::from_secs(10));
    let cpu = cpu_ms(empty.pid())? - before;
    let (up, up_own) = (rss_kib(empty.pid())?, own_kib(empty.pid())?);
    empty.stop()?;
    let platform = runtime.block_on(Platform::start(target))?;
    runtime.block_on(platform.create("idle"))?;
    let answer = http::get(platform.gateway, &platform.host("idle"), "/")?;
    ensure!(answer.status == 200, "{answer:?}");
    let sidecar = processes("queue-proxy")?;
    let sidecar = *sidecar.iter().max_by_key(|pid| rss_kib(**pid).ok()).context("no queue-proxy runs")?;
    let (sidecar_rss, sidecar_own) = (rss_kib(sidecar)?, own_kib(sidecar)?);
    let with_one = rss_kib(platform.process().context("not started here")?.pid())?;
    runtime.block_on(platform.stop())?;
    Ok(json!({
        "bench": "idle",
        "up_to_ready_new_folder_ms": distribution(&first),
        "up_to_ready_again_ms": distribution(&again),
        "ebb_up_rss_kib": up, "ebb_up_with_one_service_rss_kib": with_one,
        "queue_proxy_rss_kib": sidecar_rss, "queue_proxy_own_kib": sidecar_own, "ebb_up_own_kib": up_own,
        "ebb_up_idle_cpu_ms_per_s": cpu as f64 / 10.0,
    }))
}

fn rss_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// Of it, what is not pages of the executable's file, which all processes of a machine that run it share.
fn own_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "RssAnon:")
}

fn status_kib(pid: u32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with(key)).with_context(|| format!("no {key}"))?;
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).with_context(|| format!("{key} no number"))
}

/// Processor time so far, user and system.
fn cpu_ms(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    // Clock ticks are hundredths of a second on every Linux that Rust runs on.
    Ok((ticks(11) + ticks(12)) * 10)
}

fn processes(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        if std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name) {
            found.push(pid);
        }
    }
    Ok(found)
}
