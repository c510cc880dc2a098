//! The pod of a revision.

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSecurityContext, PodSpec};
use std::collections::BTreeSet;

use super::containers::{self, Role};
use super::{only, volumes};
use crate::config::{Features, Flag};
use crate::field_error::FieldErrors;
use crate::names;
use crate::schema::{FLAGGED_POD_FIELDS, POD_FIELDS};

/// Checks the pod's spec.
pub(super) fn spec(pod: &PodSpec, features: &Features) -> FieldErrors {
    let secure = matches!(features.get("secure-pod-defaults"), Flag::Enabled | Flag::AllowRootBounded);
    let mut allowed: Vec<&str> = POD_FIELDS.to_vec();
    allowed.extend(
        FLAGGED_POD_FIELDS.iter().filter(|(_, flag, _)| features.allowed(flag)).map(|(field, ..)| *field),
    );
    // These have messages of their own below.
    allowed.push("initContainers");
    if secure {
        allowed.push("securityContext");
    }
    let mut errors = only(pod, &allowed);
    if let Some(context) = pod.security_context.as_ref().filter(|_| allowed.contains(&"securityContext")) {
        errors.add(security_context(context).via_field("securityContext"));
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

    if !inits.is_empty() && !features.allowed("kubernetes.podspec-init-containers") {
        let message =
            format!("pod spec support for init-containers is off, but found {} init containers", inits.len());
        errors.add(FieldErrors::new(message, &["initContainers"]));
    } else {
        for (at, container) in inits.iter().enumerate() {
            errors.add(
                containers::check(container, Role::Init, None, &by_name, features)
                    .via_field_index("initContainers", at),
            );
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
            let mut seen: BTreeSet<&str> = inits.iter().map(|c| c.name.as_str()).collect();
            for (at, container) in many.iter().enumerate() {
                let mut found = FieldErrors::none();
                if !container.name.is_empty() && !seen.insert(&container.name) {
                    found.add(FieldErrors::new(
                        format!("duplicate container name {:?}", container.name),
                        &["name"],
                    ));
                }
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

fn security_context(context: &PodSecurityContext) -> FieldErrors {
    let mut errors = only(
        context,
        &[
            "runAsUser",
            "runAsGroup",
            "runAsNonRoot",
            "fsGroup",
            "supplementalGroups",
            "seccompProfile",
            "fsGroupChangePolicy",
        ],
    );
    for (field, id) in [
        ("runAsUser", context.run_as_user),
        ("runAsGroup", context.run_as_group),
        ("fsGroup", context.fs_group),
    ] {
        errors.add(containers::id(field, id));
    }
    for (at, group) in context.supplemental_groups.iter().flatten().enumerate() {
        errors.add(containers::id("", Some(*group)).via_field_index("supplementalGroups", at));
    }
    errors
}
