//! One container.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvFromSource, EnvVar, SecurityContext, Volume, VolumeMount,
};
use std::collections::{BTreeMap, BTreeSet};

use super::{only, probes};
use crate::config::Features;
use crate::field_error::{CURRENT, FieldErrors};
use crate::meta::ebb::QUEUE_PROXY;
use crate::schema::CONTAINER_FIELDS;

/// Ports of the sidecar.
const RESERVED_PORTS: &[i32] = &[8012, 8013, 8022, 9090, 9091, 8008, 8112];
const RESERVED_ENV: &[&str] = &["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
const RESERVED_PATHS: &[&str] = &["/", "/dev", "/dev/log"];

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
    if container.name == QUEUE_PROXY {
        errors.add(FieldErrors::new(format!("{QUEUE_PROXY:?} is a reserved container name"), &["name"]));
    }
    for (at, env) in container.env.iter().flatten().enumerate() {
        errors.add(env_var(env, role, features).via_field_index("env", at));
    }
    for (at, source) in container.env_from.iter().flatten().enumerate() {
        errors.add(env_from(source).via_field_index("envFrom", at));
    }
    errors.add(image(container.image.as_deref().unwrap_or_default()));
    if let Some(port) = container.ports.as_ref().and_then(|p| p.first()) {
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
        errors.add(security_context(context, features).via_field("securityContext"));
    }
    let policy = container.termination_message_policy.as_deref().unwrap_or_default();
    if !matches!(policy, "" | "File" | "FallbackToLogsOnError") {
        errors.add(FieldErrors::invalid(policy, "terminationMessagePolicy"));
    }
    errors.add(
        mounts(container.volume_mounts.as_deref().unwrap_or_default(), volumes, features)
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

fn env_from(source: &EnvFromSource) -> FieldErrors {
    let errors = only(source, &["configMapRef", "secretRef", "prefix"]);
    errors.also(match (&source.config_map_ref, &source.secret_ref) {
        (Some(_), Some(_)) => FieldErrors::multiple_one_of(&["configMapRef", "secretRef"]),
        (None, None) => FieldErrors::missing_one_of(&["configMapRef", "secretRef"]),
        _ => FieldErrors::none(),
    })
}

fn image(image: &str) -> FieldErrors {
    if image.is_empty() {
        return FieldErrors::missing("image");
    }
    match image_problem(image) {
        None => FieldErrors::none(),
        Some(problem) => FieldErrors::new("Failed to parse image reference", &["image"])
            .with_details(&format!("image: {image:?}, error: could not parse reference: {problem}")),
    }
}

/// Why this is not `[registry[:port]/]repository[:tag][@digest]`.
fn image_problem(image: &str) -> Option<String> {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Some(format!("{digest} is not sha256: with 64 hexadecimal digits"));
        }
    }
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[slash..].find(':') {
        Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        let good = tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if tag.is_empty() || tag.len() > 128 || tag.starts_with(['.', '-']) || !good {
            return Some(format!("{tag:?} is not a tag"));
        }
    }
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    };
    if registry.is_some_and(|r| {
        !r.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '[' | ']'))
    }) {
        return Some(format!("{name:?} has a bad registry"));
    }
    let good = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-'))
    };
    if !repository.split('/').all(good) {
        return Some(format!(
            "repository can only contain the characters `abcdefghijklmnopqrstuvwxyz0123456789_-./`: {repository}"
        ));
    }
    None
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

/// Checks a user or group id.
pub(super) fn id(field: &str, id: Option<i64>) -> FieldErrors {
    match id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        Some(id) => FieldErrors::out_of_bounds(id, 0, i32::MAX, field),
        None => FieldErrors::none(),
    }
}

fn security_context(context: &SecurityContext, features: &Features) -> FieldErrors {
    let mut errors = only(
        context,
        &[
            "allowPrivilegeEscalation",
            "capabilities",
            "readOnlyRootFilesystem",
            "runAsGroup",
            "runAsNonRoot",
            "runAsUser",
            "seccompProfile",
        ],
    );
    if let Some(capabilities) = &context.capabilities {
        let mut extra = capabilities.clone();
        if features.allowed("kubernetes.containerspec-addcapabilities") {
            extra.add = None;
        }
        // Binding a low port harms nobody and comes with the restricted profile.
        extra.add = extra.add.map(|a| a.into_iter().filter(|c| c != "NET_BIND_SERVICE").collect());
        errors.add(only(&extra, &["drop"]).via_field("capabilities"));
    }
    errors.add(id("runAsUser", context.run_as_user));
    errors.add(id("runAsGroup", context.run_as_group));
    errors
}

fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

fn mounts(mounts: &[VolumeMount], volumes: &BTreeMap<&str, &Volume>, features: &Features) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut seen = BTreeSet::new();
    for (at, mount) in mounts.iter().enumerate() {
        let mut allowed = vec!["name", "mountPath", "readOnly", "subPath"];
        if features.enabled("kubernetes.podspec-volumes-mount-propagation") {
            allowed.push("mountPropagation");
        }
        let mut found = only(mount, &allowed);
        let volume = volumes.get(mount.name.as_str());
        if volume.is_none() {
            found.add(FieldErrors::new("volumeMount has no matching volume", &["name"]));
        }
        let path = clean(&mount.mount_path);
        if mount.mount_path.is_empty() {
            found.add(FieldErrors::missing("mountPath"));
        } else if RESERVED_PATHS.contains(&path.as_str()) {
            found.add(FieldErrors::new(format!("mountPath {path:?} is a reserved path"), &["mountPath"]));
        } else if !path.starts_with('/') {
            found.add(FieldErrors::invalid(&mount.mount_path, "mountPath"));
        } else if !seen.insert(path) {
            found.add(FieldErrors::invalid(format!("{:?} must be unique", mount.mount_path), "mountPath"));
        }
        let writable = volume.is_some_and(|v| {
            v.empty_dir.is_some() || v.persistent_volume_claim.is_some() || v.ephemeral.is_some()
        });
        if !writable && mount.read_only != Some(true) {
            found.add(FieldErrors::new(
                "volume mount should be readOnly for this type of volume",
                &["readOnly"],
            ));
        }
        let read_only_claim = volume
            .and_then(|v| v.persistent_volume_claim.as_ref())
            .is_some_and(|c| c.read_only == Some(true) && mount.read_only != Some(true));
        if read_only_claim {
            found.add(FieldErrors::new("volume is readOnly but volume mount is not", &["readOnly"]));
        }
        errors.add(found.via_index(at));
    }
    errors
}
