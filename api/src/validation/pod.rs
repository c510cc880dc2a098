//! The pod of a revision.

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};
use std::collections::BTreeSet;

use super::containers::{self, Role};
use super::{only, security, volumes};
use crate::config::Features;
use crate::field_error::FieldErrors;
use crate::names;
use crate::schema::{FLAGGED_POD_FIELDS, POD_FIELDS};

/// Checks the pod's spec.
pub(super) fn spec(pod: &PodSpec, features: &Features) -> FieldErrors {
    let mut allowed: Vec<&str> = POD_FIELDS.to_vec();
    allowed.extend(
        FLAGGED_POD_FIELDS.iter().filter(|(_, flag, _)| features.allowed(flag)).map(|(field, ..)| *field),
    );
    if security::of_pods(features) {
        allowed.push("securityContext");
    }
    let mut errors = only(pod, &allowed);
    // To go without the token is always possible, to have it is the default.
    if pod.automount_service_account_token == Some(true) {
        errors.add(FieldErrors::disallowed("automountServiceAccountToken"));
    }
    let context = pod.security_context.as_ref();
    if let Some(context) = context {
        errors.add(security::pod(context, features).via_field("securityContext"));
    }
    let all = [("containers", Some(&pod.containers)), ("initContainers", pod.init_containers.as_ref())];
    for (field, containers) in all {
        for (at, container) in containers.into_iter().flatten().enumerate() {
            let found = security::warn(context, container.security_context.as_ref(), features);
            errors.add(found.via_field_index(field, at));
        }
    }

    let inits = pod.init_containers.as_deref().unwrap_or_default();
    let mounted: BTreeSet<&str> = inits
        .iter()
        .chain(&pod.containers)
        .flat_map(|c| c.volume_mounts.iter().flatten())
        .map(|m| m.name.as_str())
        .collect();
    let (by_name, found) = volumes::list(pod.volumes.as_deref().unwrap_or_default(), &mounted, features);
    errors.add(found.via_field("volumes"));

    if !inits.is_empty() && !features.enabled("kubernetes.podspec-init-containers") {
        let message =
            format!("pod spec support for init-containers is off, but found {} init containers", inits.len());
        errors.add(FieldErrors::new(message, &["initContainers"]));
    } else {
        let mut seen: BTreeSet<&str> = pod.containers.iter().map(|c| c.name.as_str()).collect();
        for (at, container) in inits.iter().enumerate() {
            let mut found = unique(container, &mut seen);
            found.add(containers::check(container, Role::Init, None, &by_name, features));
            errors.add(found.via_field_index("initContainers", at));
        }
    }

    let (port, found) = serving_port(&pod.containers);
    errors.add(found.via_field("containers[*]"));
    match pod.containers.as_slice() {
        [] => errors.add(FieldErrors::missing("containers")),
        [only] => {
            let found = containers::check(only, Role::User, Some(&port), &by_name, features);
            errors.add(found.via_field_index("containers", 0));
        }
        many if !features.enabled("multi-container") => {
            let message = format!("multi-container is off, but found {} containers", many.len());
            errors.add(FieldErrors::new(message, &["containers"]));
        }
        many => {
            let mut seen = BTreeSet::new();
            for (at, container) in many.iter().enumerate() {
                let mut found = unique(container, &mut seen);
                let serves = container.ports.as_ref().is_some_and(|p| !p.is_empty());
                let (role, port) = if serves { (Role::User, Some(&port)) } else { (Role::Sidecar, None) };
                found.add(containers::check(container, role, port, &by_name, features));
                errors.add(found.via_field_index("containers", at));
            }
        }
    }
    if let Some(name) = pod.service_account_name.as_deref().filter(|n| !n.is_empty()) {
        for problem in names::dns1123_subdomain(name) {
            errors.add(FieldErrors::invalid(name, "serviceAccountName").with_details(&problem));
        }
    }
    errors
}

fn unique<'a>(container: &'a Container, seen: &mut BTreeSet<&'a str>) -> FieldErrors {
    if container.name.is_empty() || seen.insert(&container.name) {
        return FieldErrors::none();
    }
    FieldErrors::new(format!("duplicate container name {:?}", container.name), &["name"])
}

/// The one port of all containers, with its defaults.
fn serving_port(containers: &[Container]) -> (ContainerPort, FieldErrors) {
    let ports: Vec<&ContainerPort> = containers.iter().flat_map(|c| c.ports.iter().flatten()).collect();
    let mut port = ports.last().map(|p| (*p).clone()).unwrap_or_default();
    if port.name.as_ref().is_none_or(String::is_empty) {
        port.name = Some("http".into());
    }
    if port.container_port == 0 {
        port.container_port = 8080;
    }
    let errors = match ports.len() {
        0 if containers.len() > 1 => FieldErrors::missing("ports"),
        0 | 1 => FieldErrors::none(),
        _ => FieldErrors::new("more than one container port is set", &["ports"])
            .with_details("Only a single port is allowed across all containers"),
    };
    (port, errors)
}
