//! From `create` to Ready.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::figures::distribution;
use crate::platform::{Platform, Target};

const AT_ONCE: usize = 50;

pub(crate) fn run(n: usize, target: &Target) -> Result<Value> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let platform = Platform::start(target).await?;
        let mut single = Vec::new();
        for i in 0..n {
            single.push(platform.create(&format!("one-{i}")).await?);
        }
        platform.wait_zero().await?;
        let start = Instant::now();
        let names: Vec<String> = (0..AT_ONCE).map(|i| format!("many-{i}")).collect();
        let many: Vec<Duration> = try_join_all(names.iter().map(|name| platform.create(name))).await?;
        let last = start.elapsed();
        platform.stop().await?;
        Ok(json!({
            "bench": "create", "unit": "ms",
            "one": distribution(&single),
            "fifty_at_once": distribution(&many),
            "fifty_at_once_last": (last.as_secs_f64() * 1e5).round() / 100.0,
        }))
    })
}
