//! Where containers see volumes.

use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use std::collections::{BTreeMap, BTreeSet};

use super::only;
use crate::config::Features;
use crate::field_error::FieldErrors;

const PROPAGATION: &str = "kubernetes.podspec-volumes-mount-propagation";
const RESERVED_PATHS: &[&str] = &["/", "/dev", "/dev/log"];

/// Checks the mounts of a container.
pub(super) fn list(
    mounts: &[VolumeMount],
    volumes: &BTreeMap<&str, &Volume>,
    features: &Features,
) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut seen = BTreeSet::new();
    for (at, mount) in mounts.iter().enumerate() {
        let mut allowed = vec!["name", "mountPath", "readOnly", "subPath"];
        if features.allowed(PROPAGATION) {
            allowed.push("mountPropagation");
        }
        let mut found = only(mount, &allowed);
        found.add(propagation(mount, features));
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

fn propagation(mount: &VolumeMount, features: &Features) -> FieldErrors {
    let Some(given) = mount.mount_propagation.as_deref() else { return FieldErrors::none() };
    let mut errors = FieldErrors::none();
    let mut refuse = |message: &str| errors.add(FieldErrors::new(message, &["mountPropagation"]));
    if !features.enabled(PROPAGATION) {
        refuse(&format!(
            "Volume Mount Propagation support is disabled, but found volume mount {} with mount propagation",
            mount.name
        ));
    }
    if !matches!(given, "None" | "HostToContainer") {
        refuse("mount propagation should be set to None or HostToContainer");
    }
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
