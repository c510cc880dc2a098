//! A request to a Service at zero, until its answer.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use serde_json::{Value, json};
use testkit::http;

use crate::bare;
use crate::figures::distribution;
use crate::platform::{Platform, Target};

/// So many Services take turns, since each needs its window to be at zero again.
const SERVICES: usize = 20;

/// On a cluster a bare Deployment's start is measured before each request: fewer wait for each other.
const SERVICES_ON_CLUSTER: usize = 5;

pub(crate) fn run(n: usize, target: &Target) -> Result<Value> {
    let runtime = tokio::runtime::Runtime::new()?;
    let platform = runtime.block_on(Platform::start(target))?;
    let on_cluster = platform.process().is_none();
    let services = if on_cluster { SERVICES_ON_CLUSTER } else { SERVICES }.min(n);
    // Tasks of a kubelet have periods of about a second: requests must meet each of their phases.
    let jitter = if on_cluster { 0..1500 } else { 50..250 };
    for i in 0..services {
        runtime.block_on(platform.create(&format!("cold-{i}")))?;
    }
    if on_cluster {
        runtime.block_on(bare::create(&platform))?;
    }
    let (mut total, mut bare) = (Vec::new(), Vec::new());
    let mut parts: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let mut lost = 0;
    while total.len() + lost < n {
        runtime.block_on(platform.wait_zero())?;
        for i in 0..services.min(n - total.len() - lost) {
            if on_cluster {
                std::thread::sleep(Duration::from_millis(rand::rng().random_range(jitter.clone())));
                bare.push(runtime.block_on(bare::zero_to_one(&platform))?);
            }
            std::thread::sleep(Duration::from_millis(rand::rng().random_range(jitter.clone())));
            let host = platform.host(&format!("cold-{i}"));
            match http::get_with(platform.gateway, &host, "/", &[("ebb-timing", "1")]) {
                Ok(answer) if answer.status == 200 => {
                    for value in answer.headers.get_all("server-timing") {
                        for (name, took) in server_timing(value.to_str().unwrap_or_default()) {
                            parts.entry(name).or_default().push(took);
                        }
                    }
                    total.push(answer.took);
                }
                _ => lost += 1,
            }
        }
    }
    runtime.block_on(platform.stop())?;
    let mut figures =
        json!({"bench": "cold-start", "unit": "ms", "lost": lost, "total": distribution(&total)});
    if on_cluster {
        figures["bare_deployment_to_ready"] = distribution(&bare);
    } else {
        let app = app_alone(20)?;
        let mut app_sorted = app.clone();
        app_sorted.sort();
        let own = app_sorted[app_sorted.len() / 2];
        let share: Vec<Duration> = total.iter().map(|t| t.saturating_sub(own)).collect();
        figures["platform_share"] = distribution(&share);
        figures["app_alone"] = distribution(&app);
    }
    for (name, samples) in parts {
        figures[format!("part_{name}")] = distribution(&samples);
    }
    Ok(figures)
}

/// `name;dur=1.5, other;dur=2` as durations.
fn server_timing(value: &str) -> Vec<(String, Duration)> {
    let part = |part: &str| {
        let mut fields = part.trim().split(';');
        let name = fields.next()?.to_string();
        let ms: f64 = fields.find_map(|f| f.trim().strip_prefix("dur="))?.parse().ok()?;
        (ms >= 0.0).then(|| (name, Duration::from_secs_f64(ms / 1e3)))
    };
    value.split(',').filter_map(part).collect()
}

/// The app without any platform: from the start of the process to the first connection that it takes.
fn app_alone(n: usize) -> Result<Vec<Duration>> {
    let project = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello");
    let folder = std::env::current_exe()?.with_file_name("bench-hello");
    let built = Command::new("cargo")
        .current_dir(project)
        .args(["build", "--quiet", "--release", "--target-dir"])
        .arg(&folder)
        .status()?;
    ensure!(built.success(), "building examples/hello failed");
    let mut samples = Vec::new();
    for _ in 0..n {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let start = Instant::now();
        let mut app = Command::new(folder.join("release/hello"))
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()
            .context("starting the example")?;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_micros(100));
        }
        samples.push(start.elapsed());
        app.kill()?;
        app.wait()?;
    }
    Ok(samples)
}
