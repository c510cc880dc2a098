//! How fast it may go: stabilization windows and the policies of `spec.behavior`.

use std::time::Duration;

use k8s_openapi::{
    api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec},
    jiff::Timestamp,
};

use super::metrics::Tolerance;
use crate::quantity;

const DOWN_WINDOW: i32 = 300;
const TOLERANCE: f64 = 0.1;
/// The longest window that the API allows.
const LONGEST: Duration = Duration::from_secs(3600);

/// What was wanted and done, as far back as a window may reach. Like Kubernetes', it does not outlive the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    wanted: Vec<(Timestamp, i32)>,
    /// Positive for pods that were added.
    changes: Vec<(Timestamp, i32)>,
}

impl History {
    /// Before anything is known, what there is counts as wanted: a restart of the controller is no reason to go down.
    pub(crate) fn begin(&mut self, replicas: i32, now: Timestamp) {
        if self.wanted.is_empty() {
            self.wanted.push((now, replicas));
        }
    }

    pub(crate) fn rescaled(&mut self, change: i32, now: Timestamp) {
        self.changes.retain(|(at, _)| *at + LONGEST > now);
        self.changes.push((now, change));
    }

    fn changed(&self, period_seconds: i32, now: Timestamp, counts: impl Fn(i32) -> bool) -> i64 {
        let period = seconds(period_seconds);
        let recent = self.changes.iter().filter(|(at, change)| *at + period > now && counts(*change));
        recent.map(|(_, change)| i64::from(change.unsigned_abs())).sum()
    }
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// The rules of one direction.
struct Rules {
    window: Duration,
    policies: Vec<HPAScalingPolicy>,
    select: Select,
}

#[derive(Clone, Copy, PartialEq)]
enum Select {
    Most,
    Least,
    Disabled,
}

fn policy(type_: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds: 15 }
}

impl Rules {
    fn new(given: Option<&HPAScalingRules>, window: i32, policies: &[HPAScalingPolicy]) -> Self {
        let own = given.and_then(|rules| rules.policies.clone()).filter(|policies| !policies.is_empty());
        Self {
            window: seconds(given.and_then(|rules| rules.stabilization_window_seconds).unwrap_or(window)),
            policies: own.unwrap_or_else(|| policies.to_vec()),
            select: match given.and_then(|rules| rules.select_policy.as_deref()) {
                Some("Min") => Select::Least,
                Some("Disabled") => Select::Disabled,
                _ => Select::Most,
            },
        }
    }

    fn up(spec: &HorizontalPodAutoscalerSpec) -> Self {
        let given = spec.behavior.as_ref().and_then(|behavior| behavior.scale_up.as_ref());
        Self::new(given, 0, &[policy("Pods", 4), policy("Percent", 100)])
    }

    fn down(spec: &HorizontalPodAutoscalerSpec) -> Self {
        let given = spec.behavior.as_ref().and_then(|behavior| behavior.scale_down.as_ref());
        Self::new(given, DOWN_WINDOW, &[policy("Percent", 100)])
    }
}

/// From `spec.behavior`, or a tenth either way.
pub(crate) fn tolerance(spec: &HorizontalPodAutoscalerSpec) -> Tolerance {
    let of = |rules: Option<&HPAScalingRules>| {
        let given = rules.and_then(|rules| rules.tolerance.as_ref()).and_then(quantity::milli);
        given.map_or(TOLERANCE, |milli| milli as f64 / 1000.0)
    };
    let behavior = spec.behavior.as_ref();
    Tolerance {
        down: of(behavior.and_then(|behavior| behavior.scale_down.as_ref())),
        up: of(behavior.and_then(|behavior| behavior.scale_up.as_ref())),
    }
}

/// What is wanted, held to what was wanted within the windows; with the reason and the message of AbleToScale where that makes a difference.
pub(crate) fn stabilize(
    spec: &HorizontalPodAutoscalerSpec,
    history: &mut History,
    current: i32,
    wanted: i32,
    now: Timestamp,
) -> (i32, Option<(&'static str, &'static str)>) {
    let (up, down) = (Rules::up(spec).window, Rules::down(spec).window);
    let within = |window: Duration| history.wanted.iter().filter(move |(at, _)| *at + window > now);
    let lowest = within(up).map(|(_, n)| *n).chain([wanted]).min().unwrap_or(wanted);
    let highest = within(down).map(|(_, n)| *n).chain([wanted]).max().unwrap_or(wanted);
    let stable = current.max(lowest).min(highest);
    let longest = up.max(down);
    history.wanted.retain(|(at, _)| *at + longest > now);
    history.wanted.push((now, wanted));
    let why = match stable.cmp(&wanted) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Less => Some((
            "ScaleUpStabilized",
            "recent recommendations were lower than current one, applying the lowest recent recommendation",
        )),
        std::cmp::Ordering::Greater => Some((
            "ScaleDownStabilized",
            "recent recommendations were higher than current one, applying the highest recent recommendation",
        )),
    };
    (stable, why)
}

/// What is wanted within bounds and rates; with the reason and the message of ScalingLimited where that makes a difference.
pub(crate) fn limit(
    spec: &HorizontalPodAutoscalerSpec,
    history: &History,
    current: i32,
    wanted: i32,
    now: Timestamp,
) -> (i32, Option<(&'static str, &'static str)>) {
    let added = |period: i32| history.changed(period, now, |change| change > 0);
    let removed = |period: i32| history.changed(period, now, |change| change < 0);
    let present = i64::from(current);
    if wanted > current {
        let rules = Rules::up(spec);
        let reach = rules.policies.iter().map(|policy| {
            let start = present - added(policy.period_seconds) + removed(policy.period_seconds);
            if policy.type_ == "Pods" {
                start + i64::from(policy.value)
            } else {
                // Rounded up, or one pod at ten percent would stay one for ever.
                (start * (100 + i64::from(policy.value)) + 99).div_euclid(100)
            }
        });
        let reach = match rules.select {
            // Where nothing is said, a single pod becomes four at most, not five.
            _ if spec.behavior.is_none() => Some((2 * present).max(4)),
            Select::Most => reach.max(),
            Select::Least => reach.min(),
            Select::Disabled => None,
        };
        let reach = i32::try_from(reach.unwrap_or(present).max(present)).unwrap_or(i32::MAX);
        let (most, why) = if reach < spec.max_replicas {
            (
                reach,
                (
                    "ScaleUpLimit",
                    "the desired replica count is increasing faster than the maximum scale rate",
                ),
            )
        } else {
            (spec.max_replicas, super::plan::TOO_MANY)
        };
        return if wanted > most { (most, Some(why)) } else { (wanted, None) };
    }
    if wanted < current {
        let rules = Rules::down(spec);
        let reach = rules.policies.iter().map(|policy| {
            let start = present + removed(policy.period_seconds) - added(policy.period_seconds);
            if policy.type_ == "Pods" {
                start - i64::from(policy.value)
            } else {
                start * (100 - i64::from(policy.value)) / 100
            }
        });
        let reach = match rules.select {
            Select::Most => reach.min(),
            Select::Least => reach.max(),
            Select::Disabled => None,
        };
        let reach = i32::try_from(reach.unwrap_or(present).min(present)).unwrap_or(i32::MIN);
        let least = spec.min_replicas.unwrap_or(1);
        let (least, why) = if reach > least {
            (
                reach,
                (
                    "ScaleDownLimit",
                    "the desired replica count is decreasing faster than the maximum scale rate",
                ),
            )
        } else {
            (least, super::plan::TOO_FEW)
        };
        return if wanted < least { (least, Some(why)) } else { (wanted, None) };
    }
    (wanted, None)
}
