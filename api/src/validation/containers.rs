//! One container.

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvFromSource, EnvVar, Volume};
use std::collections::BTreeMap;

use super::{image, mounts, only, probes, security};
use crate::config::Features;
use crate::field_error::{CURRENT, FieldErrors};
use crate::meta::ebb::QUEUE_PROXY;
use crate::schema::CONTAINER_FIELDS;

/// Ports of the sidecar.
const RESERVED_PORTS: &[i32] = &[8012, 8013, 8022, 9090, 9091, 8008, 8112];
const RESERVED_ENV: &[&str] = &["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];

/// What a container is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    User,
    Sidecar,
    Init,
}

/// Checks a container; `port` is the serving port if it is the one that serves.
pub(super) fn check(
    container: &Container,
    role: Role,
    port: Option<&ContainerPort>,
    volumes: &BTreeMap<&str, &Volume>,
    features: &Features,
) -> FieldErrors {
    if *container == Container::default() {
        return FieldErrors::missing(CURRENT);
    }
    let mut errors = only(container, CONTAINER_FIELDS);
    let found = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (field, probe) in found {
        let Some(probe) = probe else { continue };
        errors.add(match role {
            Role::Init => FieldErrors::new("field not allowed in an init container", &[field]),
            Role::Sidecar if !features.enabled("multi-container-probing") => {
                only(probe, &[]).via_field(field)
            }
            _ if field == "readinessProbe" => probes::readiness(probe, port).via_field(field),
            _ => probes::check(probe, port).via_field(field),
        });
    }
    if role == Role::Init && container.lifecycle.is_some() {
        errors.add(FieldErrors::new("field not allowed in an init container", &["lifecycle"]));
    }
    if container.name == QUEUE_PROXY {
        errors.add(FieldErrors::new(format!("{QUEUE_PROXY:?} is a reserved container name"), &["name"]));
    }
    for (at, env) in container.env.iter().flatten().enumerate() {
        errors.add(env_var(env, role, features).via_field_index("env", at));
    }
    for (at, source) in container.env_from.iter().flatten().enumerate() {
        errors.add(env_from(source, at).via_field("envFrom"));
    }
    errors.add(image::check(container.image.as_deref().unwrap_or_default()));
    // Of a container that serves only the first port counts; that it has more is said for all containers together.
    let ports = container.ports.iter().flatten().take(if role == Role::Init { usize::MAX } else { 1 });
    for port in ports {
        errors.add(container_port(port, role).via_field("ports"));
    }
    if let Some(resources) = &container.resources {
        errors.add(only(resources, &["limits", "requests"]).via_field("resources"));
        for (kind, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
            for (name, amount) in amounts.iter().flatten() {
                if crate::quantity::parse(&amount.0).is_none_or(|n| n < 0.0) {
                    errors.add(FieldErrors::invalid(&amount.0, name).via_field(kind).via_field("resources"));
                }
            }
        }
    }
    if let Some(context) = &container.security_context {
        errors.add(security::container(context, features).via_field("securityContext"));
    }
    let policy = container.termination_message_policy.as_deref().unwrap_or_default();
    if !matches!(policy, "" | "File" | "FallbackToLogsOnError") {
        errors.add(FieldErrors::invalid(policy, "terminationMessagePolicy"));
    }
    errors.add(
        mounts::list(container.volume_mounts.as_deref().unwrap_or_default(), volumes, features)
            .via_field("volumeMounts"),
    );
    errors
}

fn env_var(env: &EnvVar, role: Role, features: &Features) -> FieldErrors {
    let mut errors = only(env, &["name", "value", "valueFrom"]);
    if env.name.is_empty() {
        errors.add(FieldErrors::missing("name"));
    } else if RESERVED_ENV.contains(&env.name.as_str()) && !(role != Role::User && env.name == "PORT") {
        errors.add(FieldErrors::new(format!("{:?} is a reserved environment variable", env.name), &["name"]));
    }
    if let Some(source) = &env.value_from {
        let mut allowed = vec!["configMapKeyRef", "secretKeyRef"];
        if features.allowed("kubernetes.podspec-fieldref") {
            allowed.extend(["fieldRef", "resourceFieldRef"]);
        }
        errors.add(only(source, &allowed).via_field("valueFrom"));
    }
    errors
}

/// Which of the two is meant has to be said, by a path without an index, as Knative has it.
fn env_from(source: &EnvFromSource, at: usize) -> FieldErrors {
    let errors = only(source, &["configMapRef", "secretRef", "prefix"]).via_index(at);
    errors.also(match (&source.config_map_ref, &source.secret_ref) {
        (Some(_), Some(_)) => FieldErrors::multiple_one_of(&["configMapRef", "secretRef"]),
        (None, None) => FieldErrors::missing_one_of(&["configMapRef", "secretRef"]),
        _ => FieldErrors::none(),
    })
}

fn container_port(port: &ContainerPort, role: Role) -> FieldErrors {
    let mut errors = only(port, &["containerPort", "name", "protocol"]);
    let number = port.container_port;
    if RESERVED_PORTS.contains(&number) {
        let text = format!("{number} is a reserved port");
        errors.add(
            FieldErrors::invalid(&text, "containerPort")
                .with_details(&format!("{text}, please use a different value")),
        );
    }
    if !(0..=65535).contains(&number) {
        errors.add(FieldErrors::out_of_bounds(number, 0, 65535, "containerPort"));
    }
    if role == Role::Init {
        return errors;
    }
    if let Some(protocol) = port.protocol.as_deref().filter(|p| !matches!(*p, "" | "TCP")) {
        errors.add(FieldErrors::invalid(protocol, "protocol"));
    }
    let name = port.name.as_deref().unwrap_or_default();
    if !matches!(name, "" | "h2c" | "http1") {
        errors.add(
            FieldErrors::new(format!("Port name {name} is not allowed"), &[CURRENT])
                .with_details("Name must be empty, or one of: 'h2c', 'http1'"),
        );
    }
    errors
}
