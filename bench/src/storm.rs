//! Many requests meet platforms that idle at zero.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;
use serde_json::{Value, json};
use testkit::http;

use crate::figures::distribution;
use crate::platform::{Platform, Target};

const REQUESTS: usize = 1000;
const SERVICES: usize = 100;

pub(crate) fn run(n: usize, target: &Target) -> Result<Value> {
    let runtime = tokio::runtime::Runtime::new()?;
    let platform = runtime.block_on(Platform::start(target))?;
    let names: Vec<String> = (0..SERVICES).map(|i| format!("storm-{i}")).collect();
    for chunk in names.chunks(20) {
        runtime.block_on(try_join_all(chunk.iter().map(|name| platform.create(name))))?;
    }
    let (mut one, mut hundred) = (Vec::new(), Vec::new());
    let mut lost = 0;
    let mut note =
        |tally: http::Tally| lost += tally.iter().filter(|(k, _)| *k != "200").map(|(_, n)| n).sum::<usize>();
    for _ in 0..n {
        runtime.block_on(platform.wait_zero())?;
        let start = Instant::now();
        note(http::many(
            platform.gateway,
            &platform.host("storm-0"),
            "/",
            REQUESTS,
            REQUESTS,
            http::by_status,
        ));
        one.push(start.elapsed());
        runtime.block_on(platform.wait_zero())?;
        let start = Instant::now();
        let gateway = platform.gateway;
        let threads: Vec<_> = names
            .iter()
            .map(|name| {
                let host = platform.host(name);
                std::thread::spawn(move || http::many(gateway, &host, "/", 1, 1, http::by_status))
            })
            .collect();
        for thread in threads {
            note(thread.join().unwrap_or_else(|_| http::Tally::from([("panicked".into(), 1)])));
        }
        hundred.push(start.elapsed());
    }
    runtime.block_on(platform.stop())?;
    let longest = |all: &[Duration]| distribution(all);
    Ok(json!({
        "bench": "storm", "unit": "ms", "lost": lost,
        "thousand_requests_at_one_service_last": longest(&one),
        "hundred_services_at_once_last": longest(&hundred),
    }))
}
