//! Distributions, and how they are printed.

use std::time::Duration;

use serde_json::{Value, json};

/// p50, p90, p95, p99, smallest and largest of some durations, in milliseconds with two decimals.
pub(crate) fn distribution(samples: &[Duration]) -> Value {
    let mut ms: Vec<f64> = samples.iter().map(|d| d.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    if ms.is_empty() {
        return json!({"n": 0});
    }
    let at = |q: f64| {
        // Nearest rank: the smallest sample with at least the share q at or below it.
        let rank = (q * ms.len() as f64).ceil().max(1.0) as usize - 1;
        (ms[rank.min(ms.len() - 1)] * 100.0).round() / 100.0
    };
    json!({"n": ms.len(), "p50": at(0.5), "p90": at(0.9), "p95": at(0.95), "p99": at(0.99), "min": at(0.0), "max": at(1.0)})
}

/// What the figures were measured on.
pub(crate) fn machine() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, m)| m);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let memory = read("/proc/meminfo");
    let kib: u64 = memory.lines().next().and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    format!("{model}, {cores} cores, {} GiB, Linux {}", kib >> 20, kernel.trim())
}

/// A line for each figure.
pub(crate) fn table(figures: &Value) -> String {
    let mut lines = Vec::new();
    for (name, value) in figures.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(parts) => {
                let parts: Vec<String> = parts.iter().map(|(k, v)| format!("{k} {v}")).collect();
                lines.push(format!("{name:<28} {}", parts.join("  ")));
            }
            None => lines.push(format!("{name:<28} {value}")),
        }
    }
    lines.join("\n")
}
