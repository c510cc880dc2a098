//! From `create` to Ready, next to bare Deployments of the same image on the same platform, in turns.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::bare;
use crate::figures::distribution;
use crate::platform::{Platform, Target};

const AT_ONCE: [(usize, &str); 2] = [(20, "twenty"), (50, "fifty")];

pub(crate) fn run(n: usize, target: &Target) -> Result<Value> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let platform = Platform::start(target).await?;
        let (mut single, mut bare_single) = (Vec::new(), Vec::new());
        for i in 0..n {
            single.push(platform.create(&format!("one-{i}")).await?);
            platform.wait_zero().await?;
            let name = format!("bare-{i}");
            bare_single.push(bare::create_to_ready(&platform, &name).await?);
            bare::delete(&platform, &[name]).await?;
        }
        let mut figures = json!({
            "bench": "create", "unit": "ms",
            "one": distribution(&single), "bare_deployment_one": distribution(&bare_single),
        });
        for (at_once, key) in AT_ONCE {
            let names: Vec<String> = (0..at_once).map(|i| format!("bare-{key}-{i}")).collect();
            let start = Instant::now();
            let bare: Vec<Duration> =
                try_join_all(names.iter().map(|name| bare::create_to_ready(&platform, name))).await?;
            figures[format!("bare_deployments_{key}_at_once")] = distribution(&bare);
            figures[format!("bare_deployments_{key}_at_once_last")] = ms(start);
            bare::delete(&platform, &names).await?;
            let names: Vec<String> = (0..at_once).map(|i| format!("many-{key}-{i}")).collect();
            let start = Instant::now();
            let many: Vec<Duration> = try_join_all(names.iter().map(|name| platform.create(name))).await?;
            figures[format!("{key}_at_once")] = distribution(&many);
            figures[format!("{key}_at_once_last")] = ms(start);
            platform.wait_zero().await?;
        }
        platform.stop().await?;
        Ok(figures)
    })
}

fn ms(start: Instant) -> Value {
    json!((start.elapsed().as_secs_f64() * 1e5).round() / 100.0)
}
