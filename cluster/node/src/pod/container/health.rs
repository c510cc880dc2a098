//! What becomes of a container's readiness and life while it runs: its postStart hook and its probes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Probe};
use tokio::sync::mpsc;

use super::Live;
use crate::context::Context;
use crate::pod::probe::{self, Judge, Schedule, Timing};
use crate::pod::state::Event;

/// postStart and the startup probe, then readiness and liveness side by side.
pub(super) async fn watch(
    context: Arc<Context>,
    pod: Arc<Pod>,
    index: usize,
    live: Arc<Live>,
    events: mpsc::UnboundedSender<Event>,
) {
    let name = live.spec.name.clone();
    let hook = live.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    if let Some(hook) = hook {
        let outcome = match probe::of_hook(&live.spec, hook, live.address) {
            Ok(check) => probe::perform(&context, &live, &check, Duration::from_secs(3600)).await,
            Err(message) => Err(message),
        };
        if let Err(message) = outcome {
            context.events.warning(
                &pod,
                Some(&name),
                "FailedPostStartHook",
                format!("PostStartHook failed: {message}"),
            );
            let _ = events.send(Event::Unhealthy(index, live.id.clone(), None));
            return;
        }
    }
    let health = Health { context, pod, index, live: Arc::clone(&live), events };
    if let Some(startup) = live.spec.startup_probe.clone() {
        let passed = health.probe("Startup", &startup, Some).await;
        if passed != Some(true) {
            health.unhealthy("startup", &startup);
            return;
        }
    }
    health.send(Event::StartedUp(index, live.id.clone()));
    let readiness = async {
        match live.spec.readiness_probe.clone() {
            Some(readiness) => {
                let _: Option<()> = health
                    .probe("Readiness", &readiness, |verdict| {
                        health.send(Event::Readiness(index, live.id.clone(), verdict));
                        None
                    })
                    .await;
            }
            None => health.send(Event::Readiness(index, live.id.clone(), true)),
        }
    };
    let liveness = async {
        if let Some(liveness) = live.spec.liveness_probe.clone() {
            let watched = health.probe("Liveness", &liveness, |verdict| (!verdict).then_some(()));
            tokio::select! {
                failed = watched => {
                    if failed.is_some() {
                        health.unhealthy("liveness", &liveness);
                    }
                }
                () = live.stopping.cancelled() => {}
            }
        }
    };
    tokio::join!(readiness, liveness);
}

struct Health {
    context: Arc<Context>,
    pod: Arc<Pod>,
    index: usize,
    live: Arc<Live>,
    events: mpsc::UnboundedSender<Event>,
}

impl Health {
    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn unhealthy(&self, kind: &str, probe: &Probe) {
        let name = &self.live.spec.name;
        let message = format!("Container {name} failed {kind} probe, will be restarted");
        self.context.events.normal(&self.pod, Some(name), "Killing", message);
        self.send(Event::Unhealthy(self.index, self.live.id.clone(), probe.termination_grace_period_seconds));
    }

    /// Looks until `on_verdict` gives a value.
    async fn probe<T>(
        &self,
        kind: &str,
        spec: &Probe,
        mut on_verdict: impl FnMut(bool) -> Option<T>,
    ) -> Option<T> {
        let timing = Timing::of(spec);
        let check = match probe::of_probe(&self.live.spec, spec, self.live.address) {
            Ok(check) => check,
            Err(message) => {
                let name = &self.live.spec.name;
                self.context.events.warning(
                    &self.pod,
                    Some(name),
                    "Unhealthy",
                    format!("{kind} probe: {message}"),
                );
                std::future::pending().await
            }
        };
        let (mut schedule, mut judge) = (Schedule::new(timing), Judge::new(timing));
        let begun = tokio::time::Instant::now();
        loop {
            let (at, counts) = schedule.next(begun.elapsed());
            tokio::time::sleep_until(begun + at).await;
            let result = probe::perform(&self.context, &self.live, &check, timing.timeout).await;
            if let (Err(message), true) = (&result, counts) {
                let name = &self.live.spec.name;
                let message = format!("{kind} probe failed: {message}");
                self.context.events.warning(&self.pod, Some(name), "Unhealthy", message);
            }
            if result.is_ok() {
                schedule.succeeded();
            } else if !counts {
                continue;
            }
            if let Some(verdict) = judge.result(result.is_ok())
                && let Some(value) = on_verdict(verdict)
            {
                return Some(value);
            }
        }
    }
}
