//! A change of one route among thousands: from the write to the first answer that follows it, under load that must lose nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ebb_api::networking::Ingress;
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use testkit::PATIENCE;

use crate::figures::distribution;
use crate::platform::{Platform, Target};
use crate::proxy::load::{self, Ask, Client};

/// So many are created at a time.
const AT_ONCE: usize = 20;
const CHANGES: usize = 100;
/// The load beside the changes.
const LANES: usize = 8;
const RATE: f64 = 400.0;
const TURN: Duration = Duration::from_secs(1);

pub(crate) fn run(hosts: usize, target: &Target) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let platform = Platform::start(target).await?;
        let annotations = json!({
            "autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1",
            "autoscaling.knative.dev/target-burst-capacity": "0",
        });
        platform.create_with("routed", annotations).await?;
        let ingresses: Api<Ingress> = platform.namespaced();
        let pattern = ingresses.get("routed").await?;

        let few = changes(&platform, &ingresses, &pattern).await?;
        let start = Instant::now();
        let made = futures::stream::iter(0..hosts).map(|i| {
            let (ingresses, one) = (&ingresses, of(&pattern, &format!("route-{i}")));
            async move { anyhow::Ok(ingresses.create(&PostParams::default(), &one?).await.map(drop)?) }
        });
        made.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let created = start.elapsed();
        if let Some(last) = hosts.checked_sub(1) {
            served(&platform, &format!("route-{last}.routes.test"), 200).await?;
        }
        let many = changes(&platform, &ingresses, &pattern).await?;
        platform.stop().await?;
        Ok(json!({
            "bench": "routes", "unit": "ms", "hosts": hosts, "created_after": created.as_secs_f64() * 1e3,
            "change_with_few": distribution(&few.seen), "change_with_all": distribution(&many.seen),
            "after_the_answer_with_few": distribution(&few.after), "after_the_answer_with_all": distribution(&many.after),
            "answers_beside": few.answers + many.answers, "lost": few.lost + many.lost,
        }))
    })
}

/// An Ingress to the same backend by another name and host.
fn of(pattern: &Ingress, name: &str) -> Result<Ingress> {
    let mut path = pattern.spec.rules.iter().find_map(|rule| rule.http.as_ref()?.paths.first().cloned());
    let path = path.take().context("the Route's Ingress has no path")?;
    Ok(serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": name, "annotations": pattern.metadata.annotations},
        "spec": {"rules": [{"hosts": [format!("{name}.routes.test")], "visibility": "ExternalIP", "http": {"paths": [path]}}]},
    }))?)
}

#[derive(Default)]
struct Changes {
    /// From the write.
    seen: Vec<Duration>,
    /// From the write's answer.
    after: Vec<Duration>,
    answers: u64,
    lost: u64,
}

/// Switches one host to a redirect and back, again and again.
async fn changes(platform: &Platform, ingresses: &Api<Ingress>, pattern: &Ingress) -> Result<Changes> {
    const NAME: &str = "changing";
    let host = format!("{NAME}.routes.test");
    ingresses.create(&PostParams::default(), &of(pattern, NAME)?).await?;
    served(platform, &host, 200).await?;
    let done = Arc::new(AtomicBool::new(false));
    let beside = {
        let ask = Ask { address: platform.gateway, host: platform.host("routed"), h2: false, lanes: LANES };
        let done = done.clone();
        tokio::spawn(async move {
            let (mut answers, mut lost) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let outcome = load::run(&ask, TURN, Some(RATE)).await?;
                answers += outcome.answers;
                lost += outcome.failed;
            }
            anyhow::Ok((answers, lost))
        })
    };
    let mut all = Changes::default();
    let mut client = Client::connect(platform.gateway).await?;
    for n in 0..CHANGES {
        let (option, expected) = if n % 2 == 0 { ("Redirected", 301) } else { ("Enabled", 200) };
        let patch = Patch::Merge(json!({"spec": {"httpOption": option}}));
        let (params, start) = (PatchParams::default(), Instant::now());
        let mut write = std::pin::pin!(ingresses.patch(NAME, &params, &patch));
        let mut written = None;
        loop {
            // Asking goes on while the write is under way.
            if written.is_none()
                && let std::task::Poll::Ready(answer) = futures::poll!(&mut write)
            {
                answer?;
                written = Some(Instant::now());
            }
            let status = client.status(&host).await?;
            if status == expected {
                break;
            }
            if status != 200 && status != 301 {
                all.lost += 1;
            }
            ensure!(start.elapsed() < PATIENCE, "a change was not seen");
        }
        all.seen.push(start.elapsed());
        if written.is_none() {
            write.await?;
        }
        all.after.push(written.map_or(Duration::ZERO, |written| written.elapsed()));
    }
    done.store(true, Ordering::Relaxed);
    let (answers, lost) = beside.await??;
    all.answers = answers;
    all.lost += lost;
    ingresses.delete(NAME, &kube::api::DeleteParams::default()).await?;
    Ok(all)
}

/// Waits until a host answers so.
async fn served(platform: &Platform, host: &str, expected: u16) -> Result<()> {
    let start = Instant::now();
    let mut client = Client::connect(platform.gateway).await?;
    while client.status(host).await? != expected {
        if start.elapsed() > PATIENCE {
            bail!("{host} does not answer {expected}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
