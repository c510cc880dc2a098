//! The way to zero, and what is said about a revision meanwhile.
//!
//! Wanting zero is not enough to be at zero: a request that is on its way to a pod must still find one. So
//! 1. a revision that has been Active for a stable window without load becomes Inactive, which points its public
//!    Service at the activators;
//! 2. the activators must be seen to be in the path: by a probe through the public endpoints, unless they are always
//!    there (target burst capacity -1);
//! 3. data planes get time to notice: max(grace, retention) since Inactive, or the activators have already been in
//!    the path for the grace and the retention has passed.
//!
//! A revision that never came up within its progress deadline (and 30 s for the deadline to be diagnosed) goes to
//! zero as failed. All of it is decided by [`step`] and [`activity`]; neither does IO.

use std::time::Duration;

use serde::Serialize;

/// The settings of the way to zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Protocol {
    /// enable-scale-to-zero; without, the last pod stays.
    pub enabled: bool,
    /// The stable window.
    pub stable_window: Duration,
    /// scale-to-zero-grace-period.
    pub grace: Duration,
    /// scale-to-zero-pod-retention-period; none for an unreachable revision.
    pub retention: Duration,
    /// After how long an activation has failed: progress deadline and [`ACTIVATION_BUFFER`].
    pub activation_timeout: Duration,
    /// The activators never leave the path.
    pub always_proxied: bool,
}

/// Time for the Deployment to say that its progress deadline passed, and for the Revision to find out why, before
/// the evidence is scaled away.
pub const ACTIVATION_BUFFER: Duration = Duration::from_secs(30);

impl Default for Protocol {
    /// Knative's defaults.
    fn default() -> Self {
        Self {
            enabled: true,
            stable_window: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            retention: Duration::ZERO,
            activation_timeout: Duration::from_secs(600) + ACTIVATION_BUFFER,
            always_proxied: false,
        }
    }
}

/// What the condition Active says, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Unknown: pods are wanted, and not enough of them are ready.
    Activating(Duration),
    /// True.
    Active(Duration),
    /// False.
    Inactive(Duration),
}

impl Activity {
    /// Since when.
    pub fn since(self) -> Duration {
        match self {
            Activity::Activating(at) | Activity::Active(at) | Activity::Inactive(at) => at,
        }
    }

    /// Whether the condition is False.
    pub fn is_inactive(self) -> bool {
        matches!(self, Activity::Inactive(_))
    }

    /// Whether the condition is Unknown.
    pub fn is_activating(self) -> bool {
        matches!(self, Activity::Activating(_))
    }
}

/// What is known about the public endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Path {
    /// The ServerlessService is in Proxy mode and its endpoints were seen to be activators by a probe.
    pub confirmed: bool,
    /// Since when the activators are in the path, as far as known.
    pub proxied_since: Option<Duration>,
}

/// What is to be done about a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The scale that the revision is to have now as far as the rest of the platform is concerned; none: unknown.
    /// `Some(0)` without `apply` means "on the way to zero": Inactive, but the pods stay.
    pub want: Option<u32>,
    /// Whether the scale may be written.
    pub apply: bool,
    /// A probe through the public endpoints is needed before this can go on.
    pub probe: bool,
    /// When to look again if nothing else happens.
    pub recheck: Option<Duration>,
    /// Where on the way this is.
    pub stage: Stage,
}

/// Where a revision is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Pods are wanted.
    Scaling,
    /// Nothing is known yet.
    Unknown,
    /// Scale to zero is off: the last pod stays.
    ZeroDisabled,
    /// Pods are coming up; they get the progress deadline.
    Activating,
    /// They did not come up.
    ActivationFailed,
    /// No load, but not for a stable window yet: one pod stays.
    Idle,
    /// Marked Inactive now.
    Deactivating,
    /// Waiting until the activators are in the path.
    AwaitingActivator,
    /// Waiting for the pod retention period.
    Retention,
    /// Waiting for the grace period.
    Grace,
    /// At zero.
    Zero,
}

/// How soon to look again while an answer is awaited that comes by itself.
const SOON: Duration = Duration::from_secs(1);

/// Decides how far the way to zero may be gone. `desired` is within the bounds already.
pub fn step(
    protocol: &Protocol,
    desired: Option<u32>,
    activity: Activity,
    path: Path,
    now: Duration,
) -> Step {
    let hold = |want, stage, recheck| Step { want, apply: false, probe: false, recheck, stage };
    let apply = |want, stage| Step { want: Some(want), apply: true, probe: false, recheck: None, stage };
    match desired {
        Some(0) => {}
        Some(wanted) => return apply(wanted, Stage::Scaling),
        // Nothing measured: only an activation that fails needs attention.
        None if activity.is_activating() && protocol.enabled => {}
        None => return hold(None, Stage::Unknown, None),
    }
    if !protocol.enabled {
        return apply(1, Stage::ZeroDisabled);
    }
    let passed = now.saturating_sub(activity.since());
    match activity {
        Activity::Activating(since) => {
            if passed >= protocol.activation_timeout {
                apply(0, Stage::ActivationFailed)
            } else {
                hold(None, Stage::Activating, Some(since + protocol.activation_timeout))
            }
        }
        Activity::Active(since) => {
            if passed >= protocol.stable_window {
                hold(Some(0), Stage::Deactivating, Some(now + SOON))
            } else {
                Step { recheck: Some(since + protocol.stable_window), ..apply(1, Stage::Idle) }
            }
        }
        Activity::Inactive(since) => {
            if !protocol.always_proxied && !path.confirmed {
                return Step { probe: true, ..hold(Some(0), Stage::AwaitingActivator, Some(now + SOON)) };
            }
            if passed >= protocol.grace.max(protocol.retention) {
                return apply(0, Stage::Zero);
            }
            if passed < protocol.retention {
                return hold(Some(0), Stage::Retention, Some(since + protocol.retention));
            }
            // Activators that were in the path long before need no further grace.
            let proxied = path.proxied_since.unwrap_or(since).min(since);
            if now.saturating_sub(proxied) >= protocol.grace {
                return apply(0, Stage::Zero);
            }
            hold(Some(0), Stage::Grace, Some(proxied + protocol.grace))
        }
    }
}

/// What the condition Active becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The condition.
    pub activity: Activity,
    /// Inactive because the activation failed, not because of no traffic.
    pub timed_out: bool,
    /// The revision has now had its initial scale.
    pub initialized: bool,
}

/// Facts about a revision's pods and what was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    /// [`Step::want`].
    pub want: Option<u32>,
    /// Pods ready.
    pub ready: u32,
    /// Pods that make it Active: its minimum, its initial scale until that was reached, at least one (unless the
    /// initial scale is zero).
    pub threshold: u32,
    /// The public Service is known.
    pub has_service: bool,
    /// It had its initial scale before.
    pub initialized: bool,
}

/// Works out the condition Active, by Knative's table (`computeActiveCondition`).
pub fn activity(before: Activity, scene: Scene, now: Duration) -> Standing {
    let Scene { want, ready, threshold, has_service, initialized } = scene;
    let initialized = initialized || (ready >= threshold && has_service);
    let mut timed_out = false;
    let next = if want == Some(0) || threshold == 0 {
        timed_out = before.is_activating() && threshold > 0;
        Activity::Inactive(now)
    } else if ready < threshold {
        if want > Some(0) || !before.is_inactive() {
            Activity::Activating(now)
        } else {
            Activity::Inactive(now)
        }
    } else if want > Some(0) || !before.is_inactive() {
        Activity::Active(now)
    } else {
        before
    };
    let same = std::mem::discriminant(&next) == std::mem::discriminant(&before);
    Standing { activity: if same { before } else { next }, timed_out, initialized }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn ago(seconds: u64) -> Duration {
        NOW - Duration::from_secs(seconds)
    }

    fn confirmed() -> Path {
        Path { confirmed: true, proxied_since: None }
    }

    #[test]
    fn load_is_applied_whatever_the_activity() {
        for activity in [Activity::Activating(NOW), Activity::Active(NOW), Activity::Inactive(NOW)] {
            let step = step(&Protocol::default(), Some(3), activity, Path::default(), NOW);
            assert_eq!((step.want, step.apply), (Some(3), true));
        }
    }

    #[test]
    fn the_whole_way() {
        let protocol = Protocol::default();
        let at = |activity, path| step(&protocol, Some(0), activity, path, NOW);

        let idle = at(Activity::Active(ago(59)), Path::default());
        assert_eq!((idle.want, idle.apply, idle.stage), (Some(1), true, Stage::Idle));
        assert_eq!(idle.recheck, Some(ago(59) + protocol.stable_window));

        let leaving = at(Activity::Active(ago(60)), Path::default());
        assert_eq!((leaving.want, leaving.apply, leaving.stage), (Some(0), false, Stage::Deactivating));

        let unconfirmed = at(Activity::Inactive(ago(600)), Path::default());
        assert!(unconfirmed.probe && !unconfirmed.apply, "never without the activator in the path");

        let waiting = at(Activity::Inactive(ago(29)), confirmed());
        assert_eq!((waiting.apply, waiting.stage), (false, Stage::Grace));
        assert_eq!(waiting.recheck, Some(ago(29) + protocol.grace));

        let zero = at(Activity::Inactive(ago(30)), confirmed());
        assert_eq!((zero.want, zero.apply, zero.stage), (Some(0), true, Stage::Zero));
    }

    #[test]
    fn activators_long_in_the_path_need_no_grace() {
        let path = Path { confirmed: true, proxied_since: Some(ago(100)) };
        let zero = step(&Protocol::default(), Some(0), Activity::Inactive(NOW), path, NOW);
        assert_eq!(zero.stage, Stage::Zero);
        let kept = Protocol { retention: Duration::from_secs(10), ..Protocol::default() };
        let held = step(&kept, Some(0), Activity::Inactive(ago(9)), path, NOW);
        assert_eq!((held.apply, held.stage), (false, Stage::Retention));
        assert_eq!(step(&kept, Some(0), Activity::Inactive(ago(10)), path, NOW).stage, Stage::Zero);
    }

    #[test]
    fn retention_longer_than_grace() {
        let protocol = Protocol { retention: Duration::from_secs(120), ..Protocol::default() };
        assert_eq!(
            step(&protocol, Some(0), Activity::Inactive(ago(119)), confirmed(), NOW).stage,
            Stage::Retention
        );
        assert_eq!(
            step(&protocol, Some(0), Activity::Inactive(ago(120)), confirmed(), NOW).stage,
            Stage::Zero
        );
    }

    #[test]
    fn always_proxied_needs_no_probe() {
        let protocol = Protocol { always_proxied: true, ..Protocol::default() };
        let zero = step(&protocol, Some(0), Activity::Inactive(ago(30)), Path::default(), NOW);
        assert!(zero.apply && !zero.probe);
    }

    #[test]
    fn zero_can_be_forbidden() {
        let protocol = Protocol { enabled: false, ..Protocol::default() };
        let step = step(&protocol, Some(0), Activity::Inactive(ago(9999)), confirmed(), NOW);
        assert_eq!((step.want, step.apply, step.stage), (Some(1), true, Stage::ZeroDisabled));
    }

    #[test]
    fn a_failed_activation_goes_to_zero_after_the_deadline() {
        let protocol = Protocol::default();
        for desired in [None, Some(0)] {
            let waiting = step(&protocol, desired, Activity::Activating(ago(629)), Path::default(), NOW);
            assert_eq!((waiting.want, waiting.apply, waiting.stage), (None, false, Stage::Activating));
            let failed = step(&protocol, desired, Activity::Activating(ago(630)), Path::default(), NOW);
            assert_eq!((failed.want, failed.apply, failed.stage), (Some(0), true, Stage::ActivationFailed));
        }
    }

    #[test]
    fn nothing_known_changes_nothing() {
        for activity in [Activity::Active(ago(9999)), Activity::Inactive(ago(9999))] {
            let step = step(&Protocol::default(), None, activity, confirmed(), NOW);
            assert_eq!((step.want, step.apply, step.stage), (None, false, Stage::Unknown));
        }
    }

    #[test]
    fn the_table_of_the_active_condition() {
        use Activity::{Activating, Active, Inactive};
        let t = ago(5);
        // want, ready, threshold, before, after
        for (want, ready, threshold, before, after) in [
            (Some(0), 0, 1, Active(t), Inactive(NOW)),
            (Some(0), 3, 1, Inactive(t), Inactive(t)),
            (Some(1), 0, 1, Inactive(t), Activating(NOW)),
            (Some(3), 1, 2, Active(t), Activating(NOW)),
            (Some(1), 1, 1, Activating(t), Active(NOW)),
            (Some(1), 1, 1, Active(t), Active(t)),
            (None, 0, 1, Inactive(t), Inactive(t)),
            (None, 0, 1, Activating(t), Activating(t)),
            (None, 0, 1, Active(t), Activating(NOW)),
            (None, 1, 1, Inactive(t), Inactive(t)),
            (None, 0, 0, Activating(t), Inactive(NOW)),
            (None, 1, 1, Activating(t), Active(NOW)),
            (None, 1, 1, Active(t), Active(t)),
        ] {
            let scene = Scene { want, ready, threshold, has_service: true, initialized: true };
            assert_eq!(
                activity(before, scene, NOW).activity,
                after,
                "{want:?} {ready} {threshold} {before:?}"
            );
        }
    }

    #[test]
    fn a_failed_activation_is_told_from_no_traffic() {
        let scene = Scene { want: Some(0), ready: 0, threshold: 1, has_service: true, initialized: false };
        assert!(activity(Activity::Activating(ago(700)), scene, NOW).timed_out);
        assert!(!activity(Activity::Active(ago(700)), scene, NOW).timed_out);
        let none_needed = Scene { threshold: 0, want: None, ..scene };
        let standing = activity(Activity::Activating(ago(1)), none_needed, NOW);
        assert!(!standing.timed_out && standing.initialized, "initial scale zero is reached at once");
    }

    proptest! {
        #[test]
        fn zero_only_by_the_protocol(passed in 0u64..2000, kind in 0u8..3, is_confirmed in any::<bool>(),
                                     proxied in proptest::option::of(0u64..2000), always in any::<bool>(),
                                     grace in 0u64..60, retention in 0u64..120) {
            let protocol = Protocol {
                grace: Duration::from_secs(grace), retention: Duration::from_secs(retention),
                always_proxied: always, ..Protocol::default()
            };
            let since = ago(passed);
            let before = match kind {
                0 => Activity::Activating(since), 1 => Activity::Active(since), _ => Activity::Inactive(since),
            };
            let path = Path { confirmed: is_confirmed, proxied_since: proxied.map(ago) };
            let step = step(&protocol, Some(0), before, path, NOW);
            if step.apply && step.want == Some(0) {
                match before {
                    Activity::Active(_) => prop_assert!(false, "an active revision was scaled to zero"),
                    Activity::Activating(_) => prop_assert!(passed >= 630),
                    Activity::Inactive(_) => {
                        prop_assert!(is_confirmed || always);
                        prop_assert!(passed >= retention);
                        prop_assert!(passed.max(proxied.unwrap_or(0)) >= grace);
                    }
                }
            } else {
                prop_assert!(step.recheck.is_some(), "whatever waits is looked at again");
                prop_assert!(step.recheck > Some(NOW) || step.recheck.is_none());
            }
        }
    }
}
