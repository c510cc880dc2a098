//! Probes.

use k8s_openapi::api::core::v1::{ContainerPort, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::only;
use crate::field_error::FieldErrors;

/// Checks a probe; `port` is the serving port if its container is the one that serves.
pub(super) fn check(probe: &Probe, port: Option<&ContainerPort>) -> FieldErrors {
    let mut errors = only(
        probe,
        &[
            "exec",
            "failureThreshold",
            "grpc",
            "httpGet",
            "initialDelaySeconds",
            "periodSeconds",
            "successThreshold",
            "tcpSocket",
            "terminationGracePeriodSeconds",
            "timeoutSeconds",
        ],
    );
    let mut handlers = Vec::new();
    if let Some(get) = &probe.http_get {
        handlers.push("httpGet");
        errors.add(only(get, &["host", "httpHeaders", "path", "port", "scheme"]).via_field("httpGet"));
        errors.add(probe_port(&get.port, port, "httpGet.port"));
    }
    if let Some(tcp) = &probe.tcp_socket {
        handlers.push("tcpSocket");
        errors.add(probe_port(&tcp.port, port, "tcpSocket.port"));
    }
    if probe.exec.is_some() {
        handlers.push("exec");
    }
    if probe.grpc.is_some() {
        handlers.push("grpc");
    }
    match handlers.len() {
        0 => errors.add(FieldErrors::missing_one_of(&["httpGet", "tcpSocket", "exec", "grpc"])),
        1 => {}
        _ => errors.add(FieldErrors::multiple_one_of(&handlers)),
    }
    errors
}

fn probe_port(given: &IntOrString, serving: Option<&ContainerPort>, path: &str) -> FieldErrors {
    match (given, serving) {
        (IntOrString::String(name), Some(port)) if !name.is_empty() && port.name.as_ref() != Some(name) => {
            FieldErrors::invalid(name, path).with_details("Probe port must match container port")
        }
        (IntOrString::Int(0), None) => {
            FieldErrors::invalid("0", path).with_details("Probe port must be specified")
        }
        (IntOrString::Int(n), _) if !(0..=65535).contains(n) => FieldErrors::out_of_bounds(n, 0, 65535, path),
        _ => FieldErrors::none(),
    }
}

/// Checks a readiness probe, which may have a period of 0: as often as the platform sees fit.
pub(super) fn readiness(probe: &Probe, port: Option<&ContainerPort>) -> FieldErrors {
    let mut errors = check(probe, port);
    let period = probe.period_seconds.unwrap_or_default();
    let (timeout, failures) =
        (probe.timeout_seconds.unwrap_or_default(), probe.failure_threshold.unwrap_or_default());
    for (field, value, least) in [
        ("periodSeconds", period, 0),
        ("initialDelaySeconds", probe.initial_delay_seconds.unwrap_or_default(), 0),
        ("successThreshold", probe.success_threshold.unwrap_or_default(), 1),
    ] {
        if value < least {
            errors.add(FieldErrors::out_of_bounds(value, least, i32::MAX, field));
        }
    }
    for (field, value) in [("failureThreshold", failures), ("timeoutSeconds", timeout)] {
        if period == 0 && value != 0 {
            let message = format!("{field} is disallowed when periodSeconds is zero");
            errors.add(FieldErrors::new(message, &[field]));
        } else if period != 0 && value < 1 {
            errors.add(FieldErrors::out_of_bounds(value, 1, i32::MAX, field));
        }
    }
    errors
}
