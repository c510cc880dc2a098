//! `config-autoscaler`: the defaults and bounds of scaling.

use std::time::Duration;

use super::reader::Reader;
use super::{ConfigError, Data};
use crate::duration::format;
use crate::meta::autoscaling::KPA;

/// The shortest stable window.
pub const WINDOW_MIN: Duration = Duration::from_secs(6);
/// The longest stable window.
pub const WINDOW_MAX: Duration = Duration::from_secs(3600);
/// The smallest target.
pub const TARGET_MIN: f64 = 0.01;

/// How revisions scale unless their annotations say otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Autoscaler {
    /// The class of PodAutoscalers without one.
    pub pod_autoscaler_class: String,
    /// Whether revisions may go to zero.
    pub enable_scale_to_zero: bool,
    /// Whether initial-scale may be zero.
    pub allow_zero_initial_scale: bool,
    /// How many times more pods one decision may ask for.
    pub max_scale_up_rate: f64,
    /// How many times fewer pods one decision may ask for.
    pub max_scale_down_rate: f64,
    /// The share of the target that is aimed at, 0 to 1.
    pub container_concurrency_target_fraction: f64,
    /// Concurrency for each pod where the revision has no limit.
    pub container_concurrency_target_default: f64,
    /// Requests per second for each pod under the metric rps.
    pub rps_target_default: f64,
    /// Spare capacity below which the activator stays in the path; -1 always.
    pub target_burst_capacity: f64,
    /// Requests that one activator can hold.
    pub activator_capacity: f64,
    /// The panic window as a percentage of the stable one.
    pub panic_window_percentage: f64,
    /// The percentage of what the pods carry that starts panic.
    pub panic_threshold_percentage: f64,
    /// The stable window.
    pub stable_window: Duration,
    /// How long less load is watched before pods go.
    pub scale_down_delay: Duration,
    /// How long the last pods stay after the activator is in the path.
    pub scale_to_zero_grace_period: Duration,
    /// How long the last pod stays at least.
    pub scale_to_zero_pod_retention_period: Duration,
    /// Pods before a revision is first Ready.
    pub initial_scale: i32,
    /// The fewest pods.
    pub min_scale: i32,
    /// The most pods; 0 for no bound.
    pub max_scale: i32,
    /// The highest max-scale that a revision may ask for; 0 for no bound.
    pub max_scale_limit: i32,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            pod_autoscaler_class: KPA.into(),
            enable_scale_to_zero: true,
            allow_zero_initial_scale: false,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            container_concurrency_target_fraction: 0.7,
            container_concurrency_target_default: 100.0,
            rps_target_default: 200.0,
            target_burst_capacity: 211.0,
            activator_capacity: 100.0,
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            stable_window: Duration::from_secs(60),
            scale_down_delay: Duration::ZERO,
            scale_to_zero_grace_period: Duration::from_secs(30),
            scale_to_zero_pod_retention_period: Duration::ZERO,
            initial_scale: 1,
            min_scale: 0,
            max_scale: 0,
            max_scale_limit: 0,
        }
    }
}

impl Autoscaler {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut r = Reader::new(data);
        r.string("pod-autoscaler-class", &mut c.pod_autoscaler_class);
        r.bool("enable-scale-to-zero", &mut c.enable_scale_to_zero);
        r.bool("allow-zero-initial-scale", &mut c.allow_zero_initial_scale);
        r.float("max-scale-up-rate", &mut c.max_scale_up_rate);
        r.float("max-scale-down-rate", &mut c.max_scale_down_rate);
        r.float("container-concurrency-target-percentage", &mut c.container_concurrency_target_fraction);
        r.float("container-concurrency-target-default", &mut c.container_concurrency_target_default);
        r.float("requests-per-second-target-default", &mut c.rps_target_default);
        r.float("target-burst-capacity", &mut c.target_burst_capacity);
        r.float("activator-capacity", &mut c.activator_capacity);
        r.float("panic-window-percentage", &mut c.panic_window_percentage);
        r.float("panic-threshold-percentage", &mut c.panic_threshold_percentage);
        r.int32("initial-scale", &mut c.initial_scale);
        r.int32("min-scale", &mut c.min_scale);
        r.int32("max-scale", &mut c.max_scale);
        r.int32("max-scale-limit", &mut c.max_scale_limit);
        r.duration("stable-window", &mut c.stable_window);
        r.duration("scale-down-delay", &mut c.scale_down_delay);
        r.duration("scale-to-zero-grace-period", &mut c.scale_to_zero_grace_period);
        r.duration("scale-to-zero-pod-retention-period", &mut c.scale_to_zero_pod_retention_period);
        // A value up to 1 is taken as a fraction, a greater one as a percentage.
        if c.container_concurrency_target_fraction > 1.0 {
            c.container_concurrency_target_fraction /= 100.0;
        }
        c.check(&mut r);
        r.finish(c)
    }

    fn check(&self, r: &mut Reader<'_>) {
        let fraction = self.container_concurrency_target_fraction;
        r.check(!self.scale_to_zero_grace_period.is_zero(), "scale-to-zero-grace-period", || {
            "must be positive".into()
        });
        r.check(self.scale_down_delay.subsec_nanos() == 0, "scale-down-delay", || {
            "must be specified with at most second precision".into()
        });
        let tbc = self.target_burst_capacity;
        r.check(tbc >= 0.0 || tbc == -1.0, "target-burst-capacity", || {
            format!("must be either non-negative or -1 (for unlimited), was: {tbc}")
        });
        r.check(fraction > 0.0 && fraction <= 1.0, "container-concurrency-target-percentage", || {
            format!("{} is outside of valid range of (0, 100]", fraction * 100.0)
        });
        let least = fraction * self.container_concurrency_target_default;
        r.check(least >= TARGET_MIN, "container-concurrency-target-default", || {
            format!("with the target percentage yields a target concurrency of {least}, can't be less than {TARGET_MIN}")
        });
        r.check(self.rps_target_default >= TARGET_MIN, "requests-per-second-target-default", || {
            format!("must be at least {TARGET_MIN}, was: {}", self.rps_target_default)
        });
        r.check(self.activator_capacity >= 1.0, "activator-capacity", || {
            format!("must be at least 1, was: {}", self.activator_capacity)
        });
        r.check(self.max_scale_up_rate > 1.0, "max-scale-up-rate", || {
            format!("must be greater than 1.0, was: {}", self.max_scale_up_rate)
        });
        r.check(self.max_scale_down_rate > 1.0, "max-scale-down-rate", || {
            format!("must be greater than 1.0, was: {}", self.max_scale_down_rate)
        });
        r.check((WINDOW_MIN..=WINDOW_MAX).contains(&self.stable_window), "stable-window", || {
            format!("must be in [6s; 1h0m0s] range, was: {}", format(self.stable_window))
        });
        r.check(self.stable_window.subsec_nanos() == 0, "stable-window", || {
            "must be specified with at most second precision".into()
        });
        r.check((1.0..=100.0).contains(&self.panic_window_percentage), "panic-window-percentage", || {
            format!("must be in [1, 100] interval, was: {}", self.panic_window_percentage)
        });
        r.check(
            (110.0..=1000.0).contains(&self.panic_threshold_percentage),
            "panic-threshold-percentage",
            || format!("must be in [110, 1000] interval, was: {}", self.panic_threshold_percentage),
        );
        let least = i32::from(!self.allow_zero_initial_scale);
        r.check(self.initial_scale >= least, "initial-scale", || {
            format!(
                "must be at least 0 (or at least 1 when allow-zero-initial-scale is false), was: {}",
                self.initial_scale
            )
        });
        r.check(self.min_scale >= 0, "min-scale", || format!("must be at least 0, was: {}", self.min_scale));
        r.check(self.max_scale_limit >= 0, "max-scale-limit", || {
            format!("must be at least 0, was: {}", self.max_scale_limit)
        });
        let limit = self.max_scale_limit;
        r.check(self.max_scale >= 0 && (limit == 0 || (1..=limit).contains(&self.max_scale)), "max-scale", || {
            format!("must be in [1, max-scale-limit ({limit})] when there is a limit and not negative, was: {}", self.max_scale)
        });
        r.check(self.max_scale == 0 || self.min_scale <= self.max_scale, "min-scale", || {
            format!("min-scale ({}) must be less than max-scale ({})", self.min_scale, self.max_scale)
        });
    }
}
