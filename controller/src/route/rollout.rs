//! Moving the traffic of a Configuration gradually from one latest revision to the next.
//!
//! The state is an annotation of the Ingress, so that it survives restarts and any replica can go on with it: for each Configuration that a
//! tag (or the untagged host) follows, its revisions from the oldest to the newest with their shares. A new revision begins with 1 %,
//! taken from the newest of those before. How long the gateway takes to serve that first step is measured, and no step is shorter: the rest of
//! the time is divided into even steps of at least 1 %. Each is taken from the newest of the revisions before. A further revision during a
//! rollout is put on top: it begins with 1 %, and the steps start anew.

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

const SECOND: i64 = 1_000_000_000;

/// The shares of all Configurations that a Route follows, sorted by tag and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The Configurations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configurations: Vec<Following>,
}

/// The share of one Configuration at one host, and how its revisions share that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Following {
    /// The Configuration.
    pub configuration_name: String,
    /// The tag; empty for the Route's own host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// Its share of the host's traffic; the shares of the revisions sum up to it.
    pub percent: i64,
    /// From the oldest to the newest; one where nothing moves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<Share>,
    /// When and how much moves.
    #[serde(default)]
    pub step_params: Steps,
}

/// A revision's share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The revision.
    pub revision_name: String,
    /// Its share of the host's traffic.
    pub percent: i64,
}

/// Times are in nanoseconds since the epoch, 0 where not known yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Steps {
    /// When the newest revision got its first share.
    #[serde(default, rename = "starttime", skip_serializing_if = "is_zero")]
    pub start_time: i64,
    /// When the next step is due.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub next_step_time: i64,
    /// From one step to the next, in nanoseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub step_duration: i64,
    /// What moves at a step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub step_size: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it so
fn is_zero(n: &i64) -> bool {
    *n == 0
}

impl Rollout {
    /// Everything at the newest revisions, as the Route asks for it.
    pub(super) fn goal(resolved: &Resolved) -> Self {
        let mut configurations = Vec::new();
        let tags = resolved.tags().into_iter().map(Some);
        for tag in std::iter::once(None).chain(tags) {
            for target in resolved.group(tag).into_iter().filter(|t| t.latest && t.percent > 0) {
                configurations.push(Following {
                    configuration_name: target.configuration.unwrap_or_default(),
                    tag: tag.unwrap_or_default().to_owned(),
                    percent: target.percent,
                    revisions: vec![Share { revision_name: target.revision, percent: target.percent }],
                    step_params: Steps::default(),
                });
            }
        }
        configurations.sort_by(|a, b| a.key().cmp(&b.key()));
        Self { configurations }
    }

    /// What an Ingress says of it; nothing that does not add up.
    pub fn of(ingress: &Ingress) -> Option<Self> {
        let found: Self = serde_json::from_str(annotation(&ingress.metadata, ROLLOUT)?).ok()?;
        found.configurations.iter().all(Following::is_sound).then_some(found)
    }

    /// The shares of the revisions of a Configuration at a host, while there is more than one.
    pub(super) fn shares(&self, tag: Option<&str>, configuration: Option<&str>) -> Option<&[Share]> {
        let key = (tag.unwrap_or_default(), configuration.unwrap_or_default());
        let found = self.configurations.iter().find(|f| f.key() == key)?;
        (!found.is_done()).then_some(found.revisions.as_slice())
    }

    /// Whether nothing moves.
    pub fn is_done(&self) -> bool {
        self.configurations.iter().all(Following::is_done)
    }

    /// All revisions that have a share.
    pub fn revisions(&self) -> impl Iterator<Item = &str> {
        self.configurations.iter().flat_map(|f| &f.revisions).map(|share| share.revision_name.as_str())
    }

    /// The next state on the way to `self` from `before`, and when to look again.
    fn step(self, before: Option<Self>, now: i64) -> (Self, Option<i64>) {
        let mut before = before.unwrap_or_default().configurations;
        let mut next: Option<i64> = None;
        let configurations = self.configurations.into_iter().map(|goal| {
            let at = before.iter().position(|f| f.key() == goal.key());
            // A share of 1 % cannot be divided.
            let Some(at) = at.filter(|_| goal.percent > 1) else { return goal };
            let stepped = goal.step(before.swap_remove(at), now);
            let due = Some(stepped.step_params.next_step_time).filter(|due| *due > 0);
            next = next.into_iter().chain(due).min();
            stepped
        });
        (Self { configurations: configurations.collect() }, next)
    }

    /// The gateway serves what was asked of it: where a rollout has just begun, its steps can be worked out.
    fn served(&mut self, now: i64, seconds: f64) {
        for found in &mut self.configurations {
            let steps = &found.step_params;
            if steps.step_duration == 0 && steps.start_time > 0 {
                let took = ((now - steps.start_time) as f64 / SECOND as f64).ceil().max(1.0);
                found.divide(now, took, seconds);
            }
        }
    }

    /// Takes out revisions that are no more; the newest gets what they had.
    fn without(&mut self, gone: impl Fn(&str) -> bool) {
        for found in &mut self.configurations {
            let Some(newest) = found.revisions.pop() else { continue };
            found.revisions.retain(|share| !gone(&share.revision_name));
            let others: i64 = found.revisions.iter().map(|share| share.percent).sum();
            found.revisions.push(Share { percent: found.percent - others, ..newest });
        }
    }
}

impl Following {
    fn key(&self) -> (&str, &str) {
        (&self.tag, &self.configuration_name)
    }

    fn is_done(&self) -> bool {
        self.revisions.len() < 2
    }

    fn is_sound(&self) -> bool {
        let total: i64 = self.revisions.iter().map(|share| share.percent).sum();
        (0..=100).contains(&self.percent)
            && (0..=self.percent).contains(&self.step_params.step_size)
            && self.revisions.iter().all(|share| share.percent >= 0)
            && total == self.percent
    }

    /// `self` is the goal, with the newest revision alone.
    fn step(mut self, mut before: Self, now: i64) -> Self {
        before.resize(self.percent);
        let (Some(newest), Some(last)) = (self.revisions.first().cloned(), before.revisions.last()) else {
            return self;
        };
        if last.revision_name == newest.revision_name {
            if !before.is_done() {
                self.revisions = before.revisions;
                self.step_params = before.step_params;
                // Else the gateway does not serve the first step yet.
                if self.step_params.step_size > 0 {
                    self.advance(now);
                }
            }
            return self;
        }
        self.step_params = Steps { start_time: now, ..Steps::default() };
        let mut revisions = before.revisions;
        // It may have been the newest before, and have a share still.
        let had = revisions.iter().position(|s| s.revision_name == newest.revision_name);
        let mut percent = had.map_or(0, |at| revisions.remove(at).percent);
        if percent == 0 {
            percent = 1;
            if let Some(giver) = revisions.iter_mut().rev().find(|share| share.percent > 0) {
                giver.percent -= 1;
            }
        }
        revisions.retain(|share| share.percent > 0);
        revisions.push(Share { percent, ..newest });
        self.revisions = revisions;
        self
    }

    /// Takes another share: more goes to the newest revision, less is taken from the oldest.
    fn resize(&mut self, percent: i64) {
        let mut less = self.percent - percent;
        if let Some(newest) = self.revisions.last_mut().filter(|_| less < 0) {
            newest.percent -= less;
        }
        for share in &mut self.revisions {
            let taken = share.percent.min(less.max(0));
            share.percent -= taken;
            less -= taken;
        }
        self.revisions.retain(|share| share.percent > 0);
        self.percent = percent;
    }

    /// Moves a step's share if it is time.
    fn advance(&mut self, now: i64) {
        if now < self.step_params.next_step_time {
            return;
        }
        let Some(mut newest) = self.revisions.pop() else { return };
        let mut left = self.step_params.step_size;
        while let Some(giver) = self.revisions.last_mut().filter(|_| left > 0) {
            let taken = giver.percent.min(left);
            giver.percent -= taken;
            left -= taken;
            newest.percent += taken;
            if giver.percent > 0 {
                break;
            }
            self.revisions.pop();
        }
        self.revisions.push(newest);
        if self.is_done() {
            self.step_params = Steps::default();
        } else {
            self.step_params.next_step_time = now + self.step_params.step_duration;
        }
    }

    /// Works out the steps: `took` seconds is the least that one takes, and the first has been made already.
    #[allow(clippy::cast_possible_truncation)] // seconds of days at most, in nanoseconds
    fn divide(&mut self, now: i64, took: f64, seconds: f64) {
        let seconds = (seconds - took).max(1.0);
        let left = (self.percent - 1) as f64;
        let count = (seconds / took).max(1.0).min(left.max(1.0));
        let duration = (seconds / count * SECOND as f64) as i64;
        self.step_params.step_size = (left / count).round() as i64;
        self.step_params.step_duration = duration;
        self.step_params.next_step_time = now + duration;
    }
}

/// How long a Route's rollouts take, in seconds. The annotation wins over the platform's setting, also to say "at once" by 0s.
fn seconds(route: &Route, configs: &Configs) -> u64 {
    ROLLOUT_DURATION
        .value(route.metadata.annotations.as_ref())
        .and_then(duration::parse)
        .unwrap_or(configs.network.rollout_duration)
        .as_secs()
}

/// The shares that are to be served now, and when they change next. `is_there` says whether a revision still exists, `settled` whether
/// the Route has noted already that the gateway serves all.
pub(super) fn next(
    route: &Route,
    ingress: Option<&Ingress>,
    resolved: &Resolved,
    configs: &Configs,
    (is_there, settled): (impl Fn(&str) -> bool, bool),
    now: Timestamp,
) -> (Rollout, Option<Duration>) {
    use ebb_api::conditions::ConditionedObject;

    let goal = Rollout::goal(resolved);
    let seconds = seconds(route, configs);
    let Some((ingress, mut before)) = ingress.and_then(|i| Some((i, Rollout::of(i)?))) else {
        return (goal, None);
    };
    if seconds == 0 {
        return (goal, None);
    }
    let now = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
    if ingress.is_ready() && !settled {
        before.served(now, seconds as f64);
    }
    before.without(|name| !is_there(name));
    let (next, due) = goal.step(Some(before), now);
    (next, due.map(|due| Duration::from_nanos(u64::try_from(due - now).unwrap_or_default())))
}

#[cfg(test)]
mod tests;
