//! How many pods a revision should have: Knative's pod autoscaler as a pure function.
//!
//! `decide` takes what is fixed ([`Spec`]), what is remembered ([`State`]), what was seen ([`Samples`]) and the
//! time, and answers a [`Decision`] that carries the next state and its own explanation. It never decides how a
//! revision gets to zero: wanting zero is only the wish, [`crate::zero`] is the protocol.

use std::fmt;
use std::time::Duration;

use crate::window::Algorithm;

mod delay;
mod reason;

pub use delay::WindowedMax;
pub use reason::{Limit, Reason};

/// What a revision is scaled by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metric {
    /// Requests in flight.
    #[default]
    Concurrency,
    /// Requests per second.
    Rps,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::Concurrency => "concurrency",
            Metric::Rps => "rps",
        })
    }
}

/// Everything about a revision's scaling that comes from its annotations and the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// What is measured.
    pub metric: Metric,
    /// How a window becomes a number.
    pub algorithm: Algorithm,
    /// What one pod is aimed at: total x utilization, at least 0.01.
    pub target: f64,
    /// What one pod can take.
    pub total: f64,
    /// The long window.
    pub stable_window: Duration,
    /// The short window.
    pub panic_window: Duration,
    /// Panic starts when the pods wanted by the panic window are this many times the ready ones.
    pub panic_threshold: f64,
    /// Growth in one decision, as a factor of the ready pods.
    pub max_up_rate: f64,
    /// Shrinking in one decision, as a divisor of the ready pods.
    pub max_down_rate: f64,
    /// Spare capacity below which the activator stays in the path; -1 is always, 0 only at zero.
    pub burst: f64,
    /// What one activator takes.
    pub activator_capacity: f64,
    /// The smallest scale above zero; 0 and 1 mean none.
    pub activation_scale: u32,
    /// How long a lower wish must last before it counts.
    pub scale_down_delay: Duration,
    /// Lower bound; ignored while unreachable.
    pub min: u32,
    /// Upper bound; 0 is none.
    pub max: u32,
    /// Lower bound until the revision has had that many pods once.
    pub initial: u32,
    /// Whether a route points to the revision.
    pub reachable: bool,
}

impl Default for Spec {
    /// Knative's defaults.
    fn default() -> Self {
        Self {
            metric: Metric::Concurrency,
            algorithm: Algorithm::Linear,
            target: 70.0,
            total: 100.0,
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            panic_threshold: 2.0,
            max_up_rate: 1000.0,
            max_down_rate: 2.0,
            burst: 211.0,
            activator_capacity: 100.0,
            activation_scale: 0,
            scale_down_delay: Duration::ZERO,
            min: 0,
            max: 0,
            initial: 1,
            reachable: true,
        }
    }
}

impl Spec {
    /// The bounds that hold now. `initialized`: the revision has once had its initial scale.
    pub fn bounds(&self, initialized: bool) -> (u32, u32) {
        let mut min = if self.reachable { self.min } else { 0 };
        if self.initial > 1 && !initialized && self.reachable {
            min = min.max(self.initial);
        }
        (min, self.max)
    }

    /// Excess burst capacity before anything was measured: whether the initial scale could take the burst.
    pub fn initial_burst(&self) -> i64 {
        if self.burst <= 0.0 {
            self.burst as i64
        } else {
            (f64::from(self.initial) * self.total - self.burst) as i64
        }
    }

    /// How many activators stand before `ready` pods.
    pub fn activators(&self, ready: u32) -> u32 {
        const AT_LEAST: u32 = 2;
        if self.burst == 0.0 {
            return AT_LEAST;
        }
        let cover = f64::from(ready) * self.total + self.burst.max(0.0);
        ((cover / self.activator_capacity.max(1.0)).ceil() as u32).max(AT_LEAST)
    }
}

/// What a revision's autoscaler remembers from one decision to the next.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// Set while in panic.
    pub panic: Option<Panic>,
    /// The wishes of the scale-down delay.
    pub delay: WindowedMax,
}

/// Panic mode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Panic {
    /// When the threshold was last crossed.
    pub since: Duration,
    /// The largest scale decided in this panic: panic never shrinks.
    pub most: u32,
}

impl State {
    /// The state of an autoscaler that meets a revision with `ready` pods. With more than one it starts in panic:
    /// it has no history, and must not take the pods away before it has one.
    pub fn starting(ready: u32, now: Duration) -> Self {
        Self {
            panic: (ready > 1).then_some(Panic { since: now, most: ready }),
            delay: WindowedMax::default(),
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Samples {
    /// Pods ready now.
    pub ready: u32,
    /// The two averages, or none when nothing was measured for a stable window.
    pub observed: Option<Observed>,
    /// The revision has once had its initial scale.
    pub initialized: bool,
}

/// The load of the revision over its two windows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Observed {
    /// Average over the stable window.
    pub stable: f64,
    /// Average over the panic window.
    pub panic: f64,
}

/// Who the revision's public endpoints are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// The pods themselves.
    Serve,
    /// Activators.
    #[default]
    Proxy,
}

/// One decision, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Pods wanted within the bounds; none when nothing is known: then nothing must be changed.
    pub desired: Option<u32>,
    /// Whether clients may reach the pods directly.
    pub mode: Mode,
    /// How many activators should stand in the path in Proxy mode.
    pub num_activators: u32,
    /// Spare capacity beyond the target burst; negative keeps the activator in the path.
    pub excess_burst: i64,
    /// Whether the autoscaler is in panic.
    pub panicking: bool,
    /// What led here.
    pub reason: Reason,
    /// What to remember.
    pub state: State,
}

/// Decides. See the module's documentation; the numbered steps are those of Knative's autoscaler.
pub fn decide(spec: &Spec, state: &State, samples: &Samples, now: Duration) -> Decision {
    let (min, max) = spec.bounds(samples.initialized);
    let Some(observed) = samples.observed else {
        return Decision {
            desired: None,
            mode: Mode::Proxy,
            num_activators: spec.activators(samples.ready),
            excess_burst: spec.initial_burst(),
            panicking: state.panic.is_some(),
            reason: Reason::nothing_known(samples.ready),
            state: state.clone(),
        };
    };
    let mut reason = Reason::new(spec, samples.ready, observed);
    let ready = f64::from(samples.ready.max(1));

    // The rates: at least one pod can always be added, and an unreachable revision may go at once.
    let most = (spec.max_up_rate * ready).ceil();
    let least = if spec.reachable { (ready / spec.max_down_rate).floor() } else { 0.0 };
    let raw_stable = (observed.stable / spec.target).ceil();
    let raw_panic = (observed.panic / spec.target).ceil();
    reason.want_stable = raw_stable as u32;
    reason.want_panic = raw_panic as u32;
    let mut stable = raw_stable.max(least).min(most) as u32;
    let mut panic = raw_panic.max(least).min(most) as u32;
    if raw_stable > most || raw_panic > most {
        reason.limit(Limit::UpRate(most as u32));
    } else if raw_stable < least {
        reason.limit(Limit::DownRate(least as u32));
    }

    if spec.activation_scale > 1 {
        if raw_stable > 0.0 && stable < spec.activation_scale {
            stable = spec.activation_scale;
            reason.limit(Limit::ActivationScale(spec.activation_scale));
        }
        if raw_panic > 0.0 {
            panic = panic.max(spec.activation_scale);
        }
    }

    let mut next = state.clone();
    let over = raw_panic / ready >= spec.panic_threshold;
    match &mut next.panic {
        None if over => next.panic = Some(Panic { since: now, most: 0 }),
        Some(current) if over => current.since = now,
        Some(current) if current.since + spec.stable_window < now => next.panic = None,
        _ => {}
    }
    let mut desired = stable;
    if let Some(current) = &mut next.panic {
        current.most = current.most.max(stable).max(panic);
        desired = current.most;
        reason.limit(Limit::Panic(desired));
    }

    if spec.reachable && !spec.scale_down_delay.is_zero() {
        next.delay.record(now, desired, spec.scale_down_delay);
        let delayed = next.delay.current().unwrap_or(desired);
        if delayed != desired {
            reason.limit(Limit::ScaleDownDelay(delayed));
            desired = delayed;
        }
    } else {
        next.delay = WindowedMax::default();
    }

    let excess_burst = if spec.burst == 0.0 {
        0
    } else if spec.burst > 0.0 {
        (f64::from(samples.ready) * spec.total - spec.burst - observed.panic).floor() as i64
    } else {
        -1
    };

    if desired < min {
        desired = min;
        reason.limit(if min > spec.min { Limit::InitialScale(min) } else { Limit::MinScale(min) });
    }
    if max != 0 && desired > max {
        desired = max;
        reason.limit(Limit::MaxScale(max));
    }

    Decision {
        desired: Some(desired),
        mode: if desired > 0 && excess_burst >= 0 { Mode::Serve } else { Mode::Proxy },
        num_activators: spec.activators(samples.ready),
        excess_burst,
        panicking: next.panic.is_some(),
        reason,
        state: next,
    }
}

#[cfg(test)]
mod tests;
