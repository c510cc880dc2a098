//! From a PodAutoscaler's annotations and the configuration to what the decision core needs.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_api::autoscaling::{PodAutoscaler, Reachability};
use ebb_api::config;
use ebb_api::duration;
use ebb_api::meta::{Keys, autoscaling as keys, serving};

use crate::core::{Metric, Spec};
use crate::window::Algorithm;
use crate::zero::{ACTIVATION_BUFFER, Protocol};

/// Everything that governs one revision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// For the decision core.
    pub spec: Spec,
    /// For the way to zero.
    pub protocol: Protocol,
}

/// The parts of the configuration that matter here.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// `config-autoscaler`.
    pub autoscaler: config::Autoscaler,
    /// `config-deployment`'s progress deadline.
    pub progress_deadline: Duration,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            autoscaler: config::Autoscaler::default(),
            progress_deadline: config::Deployment::default().progress_deadline,
        }
    }
}

/// Whether this autoscaler is the one to scale it (class kpa, or no class where that is the default).
pub fn is_ours(pa: &PodAutoscaler, defaults: &Defaults) -> bool {
    class_of(pa, defaults) == keys::KPA
}

/// The class of a PodAutoscaler: its annotation's, else the configured one.
fn class_of<'a>(pa: &'a PodAutoscaler, defaults: &'a Defaults) -> &'a str {
    let class = keys::CLASS.value(pa.metadata.annotations.as_ref());
    class.unwrap_or(&defaults.autoscaler.pod_autoscaler_class)
}

/// Works out the settings. Annotations were checked at admission; one that cannot be read counts as absent.
pub fn settings(pa: &PodAutoscaler, defaults: &Defaults) -> Settings {
    let config = &defaults.autoscaler;
    let annotations = Annotations(pa.metadata.annotations.as_ref());
    let reachable = pa.spec.reachability != Reachability::Unreachable;

    let metric = match keys::METRIC.value(annotations.0) {
        Some("rps") => Metric::Rps,
        _ => Metric::Concurrency,
    };
    let limit = pa.spec.container_concurrency as f64;
    let (mut total, mut utilization) = match metric {
        Metric::Rps => (config.rps_target_default, config.container_concurrency_target_fraction),
        Metric::Concurrency if limit > 0.0 => (limit, config.container_concurrency_target_fraction),
        Metric::Concurrency => {
            (config.container_concurrency_target_default, config.container_concurrency_target_fraction)
        }
    };
    if let Some(target) = annotations.float(keys::TARGET) {
        total = if metric == Metric::Concurrency && limit > 0.0 { target.min(limit) } else { target };
    }
    if let Some(percent) = annotations.float(keys::TARGET_UTILIZATION_PERCENTAGE) {
        utilization = percent / 100.0;
    }

    let stable_window = annotations.duration(keys::WINDOW).unwrap_or(config.stable_window);
    let panic_percent =
        annotations.float(keys::PANIC_WINDOW_PERCENTAGE).unwrap_or(config.panic_window_percentage);
    let panic_window = (stable_window.as_secs_f64() * panic_percent / 100.0).round().max(1.0);
    let burst = annotations.float(keys::TARGET_BURST_CAPACITY).unwrap_or(config.target_burst_capacity);
    let count = |key, default: i32| annotations.count(key).unwrap_or(u32::try_from(default).unwrap_or(0));
    let initial = match annotations.count(keys::INITIAL_SCALE) {
        Some(0) if !config.allow_zero_initial_scale => None,
        given => given,
    };

    let spec = Spec {
        metric,
        algorithm: match keys::METRIC_AGGREGATION_ALGORITHM.value(annotations.0) {
            Some("weighted-exponential" | "weightedExponential") => Algorithm::WeightedExponential,
            _ => Algorithm::Linear,
        },
        target: (total * utilization).max(0.01),
        total,
        stable_window,
        panic_window: Duration::from_secs_f64(panic_window),
        panic_threshold: annotations
            .float(keys::PANIC_THRESHOLD_PERCENTAGE)
            .unwrap_or(config.panic_threshold_percentage)
            / 100.0,
        max_up_rate: config.max_scale_up_rate,
        max_down_rate: config.max_scale_down_rate,
        burst,
        activator_capacity: config.activator_capacity,
        activation_scale: annotations.count(keys::ACTIVATION_SCALE).unwrap_or(0),
        scale_down_delay: annotations.duration(keys::SCALE_DOWN_DELAY).unwrap_or(config.scale_down_delay),
        min: count(keys::MIN_SCALE, config.min_scale),
        max: count(keys::MAX_SCALE, config.max_scale),
        initial: initial.unwrap_or(u32::try_from(config.initial_scale).unwrap_or(1)),
        reachable,
    };
    let protocol = Protocol {
        enabled: config.enable_scale_to_zero,
        stable_window,
        grace: config.scale_to_zero_grace_period,
        retention: if reachable {
            annotations
                .duration(keys::SCALE_TO_ZERO_POD_RETENTION)
                .unwrap_or(config.scale_to_zero_pod_retention_period)
        } else {
            Duration::ZERO
        },
        activation_timeout: annotations
            .duration(serving::PROGRESS_DEADLINE)
            .unwrap_or(defaults.progress_deadline)
            + ACTIVATION_BUFFER,
        always_proxied: burst == -1.0,
    };
    Settings { spec, protocol }
}

#[derive(Clone, Copy)]
struct Annotations<'a>(Option<&'a BTreeMap<String, String>>);

impl Annotations<'_> {
    fn float(self, key: Keys) -> Option<f64> {
        key.value(self.0)?.parse().ok().filter(|value: &f64| value.is_finite())
    }

    fn count(self, key: Keys) -> Option<u32> {
        key.value(self.0)?.parse().ok()
    }

    fn duration(self, key: Keys) -> Option<Duration> {
        key.value(self.0).and_then(duration::parse)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pa(annotations: serde_json::Value, concurrency: i64) -> PodAutoscaler {
        serde_json::from_value(json!({
            "apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "PodAutoscaler",
            "metadata": {"name": "r", "namespace": "n", "annotations": annotations},
            "spec": {"containerConcurrency": concurrency, "protocolType": "http1",
                     "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "r-deployment"}},
        }))
        .expect("a pod autoscaler")
    }

    fn spec(annotations: serde_json::Value, concurrency: i64) -> Spec {
        settings(&pa(annotations, concurrency), &Defaults::default()).spec
    }

    #[test]
    fn defaults_are_knatives() {
        assert_eq!(settings(&pa(json!({}), 0), &Defaults::default()), Settings::default());
    }

    #[test]
    fn targets() {
        for (annotations, concurrency, total, target) in [
            (json!({}), 0, 100.0, 70.0),
            (json!({}), 10, 10.0, 7.0),
            (json!({"autoscaling.knative.dev/target": "5"}), 10, 5.0, 3.5),
            (json!({"autoscaling.knative.dev/target": "50"}), 10, 10.0, 7.0),
            (json!({"autoscaling.knative.dev/target": "50"}), 0, 50.0, 35.0),
            (json!({"autoscaling.knative.dev/metric": "rps"}), 10, 200.0, 140.0),
            (
                json!({"autoscaling.knative.dev/metric": "rps", "autoscaling.knative.dev/target": "50"}),
                10,
                50.0,
                35.0,
            ),
            (json!({"autoscaling.knative.dev/target-utilization-percentage": "100"}), 0, 100.0, 100.0),
            (json!({"autoscaling.knative.dev/target": "0.01"}), 0, 0.01, 0.01),
        ] {
            let spec = spec(annotations.clone(), concurrency);
            assert!(
                (spec.total - total).abs() < 1e-9 && (spec.target - target).abs() < 1e-9,
                "{annotations} {spec:?}"
            );
        }
    }

    #[test]
    fn windows_bounds_and_aliases() {
        let spec = spec(
            json!({"autoscaling.knative.dev/window": "6s", "autoscaling.knative.dev/minScale": "2",
                   "autoscaling.knative.dev/max-scale": "5", "autoscaling.knative.dev/initial-scale": "0",
                   "autoscaling.knative.dev/activation-scale": "3"}),
            0,
        );
        assert_eq!(spec.panic_window, Duration::from_secs(1));
        assert_eq!((spec.min, spec.max, spec.initial, spec.activation_scale), (2, 5, 1, 3));
    }

    #[test]
    fn nobody_retains_for_an_unreachable_revision() {
        let mut pa = pa(json!({"autoscaling.knative.dev/scale-to-zero-pod-retention-period": "1m"}), 0);
        assert_eq!(settings(&pa, &Defaults::default()).protocol.retention, Duration::from_secs(60));
        pa.spec.reachability = Reachability::Unreachable;
        assert_eq!(settings(&pa, &Defaults::default()).protocol.retention, Duration::ZERO);
    }

    #[test]
    fn classes() {
        let mut pa = pa(json!({}), 0);
        assert!(is_ours(&pa, &Defaults::default()));
        pa.metadata.annotations =
            Some([("autoscaling.knative.dev/class".to_owned(), keys::HPA.to_owned())].into());
        assert!(!is_ours(&pa, &Defaults::default()));
    }

    #[test]
    fn every_key_counts_for_revisions_that_are_there() {
        for (key, value) in [
            ("enable-scale-to-zero", "false"),
            ("container-concurrency-target-default", "50"),
            ("container-concurrency-target-percentage", "50"),
            ("requests-per-second-target-default", "50"),
            ("target-burst-capacity", "0"),
            ("activator-capacity", "50"),
            ("stable-window", "30s"),
            ("panic-window-percentage", "50"),
            ("panic-threshold-percentage", "300"),
            ("max-scale-up-rate", "10"),
            ("max-scale-down-rate", "10"),
            ("scale-down-delay", "5s"),
            ("scale-to-zero-grace-period", "5s"),
            ("scale-to-zero-pod-retention-period", "5s"),
            ("initial-scale", "3"),
            ("min-scale", "2"),
            ("max-scale", "5"),
            ("pod-autoscaler-class", keys::HPA),
        ] {
            let metric = if key.starts_with("requests") { "rps" } else { "concurrency" };
            let pa = pa(json!({"autoscaling.knative.dev/metric": metric}), 0);
            let data = config::Data::from([(key.to_owned(), value.to_owned())]);
            let autoscaler = config::Autoscaler::parse(&data).expect("a good value");
            let (before, after) = (Defaults::default(), Defaults { autoscaler, ..Defaults::default() });
            let seen = |defaults: &Defaults| (settings(&pa, defaults), is_ours(&pa, defaults));
            assert_ne!(seen(&before), seen(&after), "{key}");
        }
        let later = Defaults { progress_deadline: Duration::from_secs(7), ..Defaults::default() };
        let waits = |defaults| settings(&pa(json!({}), 0), defaults).protocol.activation_timeout;
        assert_ne!(waits(&Defaults::default()), waits(&later));
    }
}
