//! Figures of the machine and of the running containers: `/stats/summary`, of which the parts that metrics-server reads are there.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cgroup::Usage;
use crate::context::Context;

/// What a second of processor time is in `/proc/stat` (USER_HZ, which is the same on all Linux machines).
const TICKS: u64 = 100;

pub(crate) async fn summary(State(context): State<Arc<Context>>) -> Json<Value> {
    let mut pods = Vec::new();
    for pod in &context.pods {
        let (namespace, name) = pod.key();
        let live: Vec<_> = pod.live.lock().values().cloned().collect();
        let containers: Vec<Value> = live
            .iter()
            .filter_map(|container| {
                let mut told = figures(&context.runtime.stats(&container.id)?);
                told["name"] = container.spec.name.clone().into();
                told["startTime"] = container.started.to_string().into();
                Some(told)
            })
            .collect();
        pods.push(json!({
            "podRef": { "name": name, "namespace": namespace, "uid": pod.uid }, "containers": containers,
        }));
    }
    let mut node = json!({});
    if let Some((usage, booted)) = machine() {
        node = figures(&usage);
        node["startTime"] = booted.to_string().into();
    }
    node["nodeName"] = context.node_name.clone().into();
    Json(json!({ "node": node, "pods": pods }))
}

fn figures(usage: &Usage) -> Value {
    // Each has a time of its own: between the first container's reading and the last's some have passed.
    let now = Timestamp::now();
    json!({
        "cpu": { "time": now, "usageCoreNanoSeconds": usage.cpu_ns },
        "memory": {
            "time": now, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.working_set_bytes,
        },
    })
}

/// All that runs on the machine, what is no part of the cluster as well (what a node's root control group tells elsewhere), since it was started.
fn machine() -> Option<(Usage, Timestamp)> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    parse(&stat, &memory)
}

fn parse(stat: &str, memory: &str) -> Option<(Usage, Timestamp)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq; what comes after is of others, or in these already.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&field| ticks.get(field)).sum();
    let bytes = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    let (all, free, available) = (bytes("MemTotal")?, bytes("MemFree")?, bytes("MemAvailable")?);
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let usage = Usage {
        cpu_ns: busy * (1_000_000_000 / TICKS),
        memory_bytes: all.saturating_sub(free),
        working_set_bytes: all.saturating_sub(available),
    };
    Some((usage, Timestamp::from_second(booted).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_from_proc() {
        let stat = "cpu  100 20 30 4000 50 6 7 8 9 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nbtime 1000\n";
        let memory = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n";
        let usage = Usage { cpu_ns: 1_630_000_000, memory_bytes: 900 * 1024, working_set_bytes: 600 * 1024 };
        assert_eq!(parse(stat, memory), Some((usage, Timestamp::from_second(1000).unwrap())));
        assert_eq!(parse("", memory), None);
        assert!(machine().is_some());
    }
}
