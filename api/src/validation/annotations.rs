//! Annotations with a meaning.

use std::collections::BTreeMap;

use crate::config::Configs;
use crate::field_error::{CURRENT, FieldErrors};
use crate::meta::autoscaling as keys;
use crate::meta::{Keys, networking, serving};
use crate::{duration, quantity};

type Annotations<'a> = Option<&'a BTreeMap<String, String>>;

const HOUR: i64 = 3_600_000_000_000;
const SECOND: i64 = 1_000_000_000;

/// Checks `autoscaling.knative.dev/*`.
pub(super) fn autoscaling(found: Annotations<'_>, configs: &Configs) -> FieldErrors {
    class(found)
        .also(scale_bounds(found, configs))
        .also(numbers(found))
        .also(durations(found))
        .also(metric(found, configs))
        .also(algorithm(found))
        .also(initial_scale(found, configs))
}

/// Checks `mesh.ebb.dev/mtls`.
pub(super) fn mtls(found: Annotations<'_>) -> FieldErrors {
    match crate::mtls::said(found) {
        Ok(_) => FieldErrors::none(),
        Err(message) => FieldErrors::new(format!("invalid value: {message}"), &[crate::meta::ebb::MTLS_MODE]),
    }
}

/// Checks that there is no key under `networking.knative.dev` that means nothing on a revision.
pub(super) fn networking(found: Annotations<'_>) -> FieldErrors {
    let known = [
        networking::INGRESS_CLASS,
        networking::CERTIFICATE_CLASS,
        networking::DISABLE_EXTERNAL_DOMAIN_TLS,
        networking::HTTP_PROTOCOL,
    ];
    let mut errors = FieldErrors::none();
    for (key, _) in found.into_iter().flatten().filter(|(key, _)| key.starts_with("networking.knative.dev")) {
        if !known.iter().any(|keys| keys.0.contains(&key.as_str())) {
            errors.add(FieldErrors::invalid_key(key, CURRENT, ""));
        }
    }
    errors
}

fn class(found: Annotations<'_>) -> FieldErrors {
    match keys::CLASS.get(found) {
        Some((key, value)) if value.ends_with(".knative.dev") && value != keys::KPA && value != keys::HPA => {
            FieldErrors::invalid(value, key)
        }
        _ => FieldErrors::none(),
    }
}

fn whole(found: Annotations<'_>, key: Keys) -> Result<i64, FieldErrors> {
    let Some((key, value)) = key.get(found) else { return Ok(0) };
    match value.parse::<i64>() {
        Ok(n) if (0..=i64::from(i32::MAX)).contains(&n) => Ok(n),
        Err(e)
            if !matches!(
                e.kind(),
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow
            ) =>
        {
            Err(FieldErrors::invalid(value, key))
        }
        _ => Err(FieldErrors::out_of_bounds(value, 0, i32::MAX, key)),
    }
}

fn scale_bounds(found: Annotations<'_>, configs: &Configs) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut read = |key| {
        whole(found, key).unwrap_or_else(|e| {
            errors.add(e);
            0
        })
    };
    let (min, max) = (read(keys::MIN_SCALE), read(keys::MAX_SCALE));
    if max != 0 && max < min {
        let message = format!("max-scale={max} is less than min-scale={min}");
        errors.add(FieldErrors::new(message, &[keys::MAX_SCALE.key(), keys::MIN_SCALE.key()]));
    }
    let limit = i64::from(configs.autoscaler.max_scale_limit);
    if let Some((key, _)) = keys::MAX_SCALE.get(found).filter(|_| limit != 0) {
        if max > limit {
            errors.add(FieldErrors::out_of_bounds(max, 1, limit, key));
        } else if max == 0 {
            errors
                .add(FieldErrors::new(format!("max-scale=0 (unlimited), must be less than {limit}"), &[key]));
        }
    }
    if let Some((key, value)) = keys::ACTIVATION_SCALE.get(found) {
        match value.parse::<i64>() {
            Err(_) => errors.add(FieldErrors::invalid(value, key)),
            Ok(n) if min > n => {
                errors.add(FieldErrors::new(
                    format!("min-scale={min} is greater than activation-scale={n}"),
                    &[key],
                ));
            }
            Ok(n) if max != 0 && max < n => {
                errors.add(FieldErrors::new(
                    format!("max-scale={max} is less than activation-scale={n}"),
                    &[key],
                ));
            }
            Ok(n) if n < 2 => {
                errors.add(FieldErrors::new(format!("activation-scale={n} must be greater than 1"), &[key]));
            }
            Ok(_) => {}
        }
    }
    errors
}

fn numbers(found: Annotations<'_>) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (key, low, high) in [
        (keys::PANIC_WINDOW_PERCENTAGE, 1, 100),
        (keys::PANIC_THRESHOLD_PERCENTAGE, 110, 1000),
        (keys::TARGET_UTILIZATION_PERCENTAGE, 1, 100),
    ] {
        let Some((key, value)) = key.get(found) else { continue };
        match value.parse::<f64>() {
            Ok(n) if (f64::from(low)..=f64::from(high)).contains(&n) => {}
            Ok(n) if !n.is_nan() => errors.add(FieldErrors::out_of_bounds(value, low, high, key)),
            _ => errors.add(FieldErrors::invalid(value, key)),
        }
    }
    if let Some((key, value)) = keys::TARGET.get(found) {
        match value.parse::<f64>() {
            Ok(n) if n >= 0.01 => {}
            Ok(n) if !n.is_nan() => {
                errors.add(FieldErrors::new(format!("target {value} should be at least 0.01"), &[key]));
            }
            _ => errors.add(FieldErrors::invalid(value, key)),
        }
    }
    if let Some((key, value)) = keys::TARGET_BURST_CAPACITY.get(found)
        && !value.parse::<f64>().is_ok_and(|n| n >= 0.0 || n == -1.0)
    {
        errors.add(FieldErrors::invalid(value, key));
    }
    errors
}

fn durations(found: Annotations<'_>) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (key, low, low_text, whole_seconds) in [
        (keys::WINDOW, 6 * SECOND, "6s", true),
        (keys::SCALE_TO_ZERO_POD_RETENTION, 0, "0s", false),
        (keys::SCALE_DOWN_DELAY, 0, "0s", true),
    ] {
        let Some((key, value)) = key.get(found) else { continue };
        match duration::parse_nanos(value) {
            None => errors.add(FieldErrors::invalid(value, key)),
            Some(n) if !(low..=HOUR).contains(&n) => {
                errors.add(FieldErrors::out_of_bounds(value, low_text, "1h0m0s", key));
            }
            Some(n) if whole_seconds && n % SECOND != 0 => {
                errors.add(FieldErrors::new("must be specified with at most second precision", &[key]));
            }
            Some(_) => {}
        }
    }
    errors
}

fn metric(found: Annotations<'_>, configs: &Configs) -> FieldErrors {
    let Some((key, metric)) = keys::METRIC.get(found) else { return FieldErrors::none() };
    let class = keys::CLASS.value(found).unwrap_or(&configs.autoscaler.pod_autoscaler_class);
    let good = match class {
        keys::KPA => matches!(metric, "concurrency" | "rps"),
        keys::HPA => !metric.is_empty(),
        _ => true,
    };
    if good { FieldErrors::none() } else { FieldErrors::invalid(metric, key) }
}

/// Only of a class that is named is it known that another algorithm makes no sense; one that is the default may change.
fn algorithm(found: Annotations<'_>) -> FieldErrors {
    let Some((key, value)) = keys::METRIC_AGGREGATION_ALGORITHM.get(found) else {
        return FieldErrors::none();
    };
    if matches!(value, "" | "linear" | "weighted-exponential" | "weightedExponential") {
        return FieldErrors::none();
    }
    match keys::CLASS.value(found) {
        Some(keys::KPA) => FieldErrors::invalid(value, key),
        Some(_) => FieldErrors::none(),
        None => FieldErrors::invalid(value, key)
            .with_details("linear is taken; weighted-exponential is the other choice")
            .as_warnings(),
    }
}

fn initial_scale(found: Annotations<'_>, configs: &Configs) -> FieldErrors {
    let Some((key, value)) = keys::INITIAL_SCALE.get(found) else { return FieldErrors::none() };
    match value.parse::<i32>() {
        Err(_) => FieldErrors::invalid(value, key),
        Ok(n) if n < 0 => FieldErrors::invalid(value, &format!("{key} must be greater than 0")),
        Ok(0) if !configs.autoscaler.allow_zero_initial_scale => {
            FieldErrors::invalid(value, &format!("{key}=0 not allowed by cluster"))
        }
        Ok(_) => FieldErrors::none(),
    }
}

/// Checks the resources of the sidecar.
pub(super) fn queue_resources(found: Annotations<'_>) -> FieldErrors {
    let mut errors = FieldErrors::none();
    if let Some((key, value)) = serving::QUEUE_RESOURCE_PERCENTAGE.get(found) {
        let old = "a share of the app's resources is deprecated; set the resources themselves by the other annotations";
        errors.add(FieldErrors::new(old, &[CURRENT]).via_key(key).as_warnings());
        match value.parse::<f64>() {
            Ok(n) if (0.1..=100.0).contains(&n) => {}
            Ok(n) => errors.add(FieldErrors::out_of_bounds(n, 0.1, 100, CURRENT).via_key(key)),
            Err(_) => errors.add(FieldErrors::invalid(value, CURRENT).via_key(key)),
        }
    }
    for key in [
        serving::QUEUE_CPU_REQUEST,
        serving::QUEUE_CPU_LIMIT,
        serving::QUEUE_MEMORY_REQUEST,
        serving::QUEUE_MEMORY_LIMIT,
        serving::QUEUE_EPHEMERAL_STORAGE_REQUEST,
        serving::QUEUE_EPHEMERAL_STORAGE_LIMIT,
    ] {
        if let Some((key, value)) = key.get(found).filter(|(_, v)| quantity::parse(v).is_none()) {
            errors.add(FieldErrors::invalid(value, CURRENT).via_key(key));
        }
    }
    errors
}

/// Checks the progress deadline.
pub(super) fn progress_deadline(found: Annotations<'_>) -> FieldErrors {
    positive_seconds(found, serving::PROGRESS_DEADLINE, "progress-deadline")
}

/// Checks the rollout duration.
pub(super) fn rollout_duration(found: Annotations<'_>) -> FieldErrors {
    positive_seconds(found, serving::ROLLOUT_DURATION, "rollout-duration")
}

fn positive_seconds(found: Annotations<'_>, key: Keys, short: &str) -> FieldErrors {
    let Some((key, value)) = key.get(found).filter(|(_, v)| !v.is_empty()) else {
        return FieldErrors::none();
    };
    match duration::parse_nanos(value) {
        None => FieldErrors::invalid(value, key),
        Some(n) if n % SECOND != 0 => {
            FieldErrors::new(format!("{short}={value} is not at second precision"), &[key])
        }
        Some(n) if n < 0 => FieldErrors::new(format!("{short}={value} must be positive"), &[key]),
        Some(_) => FieldErrors::none(),
    }
}
