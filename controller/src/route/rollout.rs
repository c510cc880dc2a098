//! Moving the latest revision's traffic gradually from the one before.
//!
//! The state is an annotation of the Ingress: from which revision to which, since when, for how long. The share of the new one
//! begins at 1 % and grows evenly to all of the target's share. A newer revision that comes during a rollout starts another
//! from whichever of the two has more.

use ebb_api::config::Configs;
use ebb_api::duration;
use ebb_api::meta::networking::ROLLOUT;
use ebb_api::meta::serving::ROLLOUT_DURATION;
use ebb_api::networking::Ingress;
use ebb_api::serving::Route;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::Resolved;
use crate::plan::annotation;

/// A rollout under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The revision before.
    pub from: String,
    /// The latest revision.
    pub to: String,
    /// When it began, in seconds since the epoch.
    pub started: i64,
    /// How long it takes, in seconds.
    pub seconds: u64,
}

impl Rollout {
    fn progress(&self, now: Timestamp) -> f64 {
        let elapsed = (now.as_second() - self.started).max(0) as f64;
        if self.seconds == 0 { 1.0 } else { (elapsed / self.seconds as f64).min(1.0) }
    }

    /// How `percent` is shared: to the old and to the new revision.
    pub fn split(&self, percent: i64, now: Timestamp) -> (i64, i64) {
        #[allow(clippy::cast_possible_truncation)] // at most 100
        let grown = (self.progress(now) * percent as f64).floor() as i64;
        let new = grown.clamp(1.min(percent), percent);
        (percent - new, new)
    }

    /// When the share changes next.
    pub fn next_step(&self, now: Timestamp) -> Duration {
        let left = self.started + i64::try_from(self.seconds).unwrap_or(i64::MAX / 2) - now.as_second();
        let step = (self.seconds / 100).max(1);
        Duration::from_secs(step.min(u64::try_from(left).unwrap_or_default().max(1)))
    }
}

/// The rollout that is under way now, if any.
pub(super) fn step(
    route: &Route,
    ingress: Option<&Ingress>,
    resolved: &Resolved,
    configs: &Configs,
    now: Timestamp,
) -> Option<Rollout> {
    let seconds = ROLLOUT_DURATION
        .value(route.metadata.annotations.as_ref())
        .and_then(duration::parse)
        .unwrap_or(configs.network.rollout_duration)
        .as_secs();
    let target = resolved.targets.iter().find(|t| t.latest && t.percent > 1)?;
    let ingress = ingress?;
    if seconds == 0 {
        return None;
    }
    let running: Option<Rollout> =
        annotation(&ingress.metadata, ROLLOUT).and_then(|r| serde_json::from_str(r).ok());
    let next = match running {
        Some(running) if running.to == target.revision => running,
        Some(running) => {
            let from = if running.progress(now) < 0.5 { running.from } else { running.to };
            Rollout { from, to: target.revision.clone(), started: now.as_second(), seconds }
        }
        None => {
            let served = route.status.as_ref()?.traffic.iter().find(|t| t.latest_revision == Some(true))?;
            let from = served.revision_name.clone()?;
            Rollout { from, to: target.revision.clone(), started: now.as_second(), seconds }
        }
    };
    (next.from != next.to && next.progress(now) < 1.0).then_some(next)
}
