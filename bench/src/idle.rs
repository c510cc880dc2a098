//! What the platform costs when nothing happens: time to be ready, memory, processor time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::{Process, http};

use crate::figures::distribution;
use crate::platform::{Platform, Target, ebb};
use crate::usage::{cpu_ms, own_kib, processes, rss_kib};

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
