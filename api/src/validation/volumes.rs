//! Volumes.

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, ImageVolumeSource, KeyToPath, Volume, VolumeProjection,
};
use std::collections::{BTreeMap, BTreeSet};

use super::only;
use crate::config::Features;
use crate::field_error::FieldErrors;
use crate::names;
use crate::schema::{FLAGGED_VOLUME_SOURCES, VOLUME_SOURCES};

/// Checks the volumes of a pod of which `mounted` are used, and gives them by name.
pub(super) fn list<'a>(
    volumes: &'a [Volume],
    mounted: &BTreeSet<&str>,
    features: &Features,
) -> (BTreeMap<&'a str, &'a Volume>, FieldErrors) {
    let mut errors = FieldErrors::none();
    let mut by_name = BTreeMap::new();
    for (at, volume) in volumes.iter().enumerate() {
        let mut found = FieldErrors::none();
        if by_name.insert(volume.name.as_str(), volume).is_some() {
            found.add(FieldErrors::new(format!("duplicate volume name {:?}", volume.name), &["name"]));
        }
        if !mounted.contains(volume.name.as_str()) {
            found.add(FieldErrors::new(format!("volume with name {:?} not mounted", volume.name), &["name"]));
        }
        if volume.name.is_empty() {
            found.add(FieldErrors::missing("name"));
        } else if !names::is_dns1123_label(&volume.name) {
            found.add(FieldErrors::invalid(&volume.name, "name"));
        }
        found.add(source(volume, features));
        errors.add(found.via_index(at));
    }
    (by_name, errors)
}

fn source(volume: &Volume, features: &Features) -> FieldErrors {
    let flag = |field: &str| FLAGGED_VOLUME_SOURCES.iter().find(|(f, _)| *f == field).map(|(_, flag)| *flag);
    let sources = || VOLUME_SOURCES.iter().copied().chain(FLAGGED_VOLUME_SOURCES.iter().map(|(f, _)| *f));
    let mut allowed: Vec<&str> =
        sources().filter(|field| flag(field).is_none_or(|flag| features.allowed(flag))).collect();
    allowed.push("name");
    let mut errors = only(volume, &allowed);
    let set: Vec<String> = match serde_json::to_value(volume) {
        Ok(serde_json::Value::Object(map)) => {
            map.into_iter().map(|(k, _)| k).filter(|k| k != "name").collect()
        }
        _ => Vec::new(),
    };
    for field in set.iter().filter(|field| flag(field).is_some_and(|flag| !features.enabled(flag))) {
        errors.add(FieldErrors::new(disabled(field, volume), &[field]));
    }
    match set.len() {
        0 => {
            let known: Vec<&str> =
                sources().filter(|field| flag(field).is_none_or(|flag| features.enabled(flag))).collect();
            errors.add(FieldErrors::missing_one_of(&known));
        }
        1 => {}
        _ => errors.add(FieldErrors::multiple_one_of(&set.iter().map(String::as_str).collect::<Vec<_>>())),
    }
    if let Some(secret) = &volume.secret {
        errors.add(items(secret.items.as_deref()));
    }
    if let Some(map) = &volume.config_map {
        errors.add(items(map.items.as_deref()));
    }
    if let Some(dir) = &volume.empty_dir {
        let medium = dir.medium.as_deref().unwrap_or_default();
        if !matches!(medium, "" | "Memory") {
            errors.add(FieldErrors::invalid(medium, "medium").via_field("emptyDir"));
        }
        if let Some(limit) =
            dir.size_limit.as_ref().filter(|l| crate::quantity::parse(&l.0).is_none_or(|n| n < 0.0))
        {
            errors.add(FieldErrors::invalid(&limit.0, "sizeLimit").via_field("emptyDir"));
        }
    }
    if let Some(image) = &volume.image {
        errors.add(image_volume(image).via_field("image"));
    }
    if let Some(claim) = &volume.persistent_volume_claim
        && claim.read_only != Some(true)
        && !features.enabled("kubernetes.podspec-persistent-volume-write")
    {
        let message = format!(
            "Persistent volume write support is disabled, but found persistent volume claim {} that is not read-only",
            claim.claim_name
        );
        errors.add(FieldErrors::new(message, &["persistentVolumeClaim"]));
    }
    for (at, projection) in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()).enumerate() {
        errors.add(projected(projection).via_field_index("projected", at));
    }
    errors
}

/// That a source needs its flag.
fn disabled(field: &str, volume: &Volume) -> String {
    let kind = match field {
        "persistentVolumeClaim" => {
            let claim = volume.persistent_volume_claim.as_ref().map_or("", |c| c.claim_name.as_str());
            return format!(
                "Persistent volume claim support is disabled, but found persistent volume claim {claim}"
            );
        }
        "csi" => "CSI",
        "emptyDir" => "EmptyDir",
        "ephemeral" => "Ephemeral",
        "hostPath" => "HostPath",
        "image" => "Image",
        other => other,
    };
    format!("{kind} volume support is disabled, but found {kind} volume {}", volume.name)
}

fn image_volume(image: &ImageVolumeSource) -> FieldErrors {
    let mut errors = only(image, &["reference", "pullPolicy"]);
    if image.reference.as_ref().is_none_or(String::is_empty) {
        errors.add(FieldErrors::missing("reference"));
    }
    let policy = image.pull_policy.as_deref().unwrap_or_default();
    if !matches!(policy, "" | "IfNotPresent" | "Always" | "Never") {
        errors.add(FieldErrors::invalid(policy, "pullPolicy"));
    }
    errors
}

fn items(items: Option<&[KeyToPath]>) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (at, item) in items.unwrap_or_default().iter().enumerate() {
        for (field, value) in [("key", &item.key), ("path", &item.path)] {
            if value.is_empty() {
                errors.add(FieldErrors::missing(field).via_field_index("items", at));
            }
        }
    }
    errors
}

fn projected(projection: &VolumeProjection) -> FieldErrors {
    const KNOWN: &[&str] = &["secret", "configMap", "serviceAccountToken", "downwardAPI"];
    let mut errors = only(projection, KNOWN);
    let set: Vec<&str> = [
        ("secret", projection.secret.is_some()),
        ("configMap", projection.config_map.is_some()),
        ("serviceAccountToken", projection.service_account_token.is_some()),
        ("downwardAPI", projection.downward_api.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect();
    match set.len() {
        0 => errors.add(FieldErrors::missing_one_of(KNOWN)),
        1 => {}
        _ => errors.add(FieldErrors::multiple_one_of(&set)),
    }
    if let Some(secret) = &projection.secret {
        if secret.name.is_empty() {
            errors.add(FieldErrors::missing("name").via_field("secret"));
        }
        errors.add(items(secret.items.as_deref()).via_field("secret"));
    }
    if let Some(map) = &projection.config_map {
        if map.name.is_empty() {
            errors.add(FieldErrors::missing("name").via_field("configMap"));
        }
        errors.add(items(map.items.as_deref()).via_field("configMap"));
    }
    if projection.service_account_token.as_ref().is_some_and(|t| t.path.is_empty()) {
        errors.add(FieldErrors::missing("path").via_field("serviceAccountToken"));
    }
    for (at, file) in projection.downward_api.iter().flat_map(|d| d.items.iter().flatten()).enumerate() {
        errors.add(downward_file(file).via_field_index("items", at).via_field("downwardAPI"));
    }
    errors
}

fn downward_file(file: &DownwardAPIVolumeFile) -> FieldErrors {
    let mut errors = FieldErrors::none();
    match (&file.field_ref, &file.resource_field_ref) {
        (None, None) => errors.add(FieldErrors::missing_one_of(&["fieldRef", "resourceFieldRef"])),
        (Some(_), Some(_)) => errors.add(FieldErrors::new(
            "Within a single item, cannot set both",
            &["resourceFieldRef", "fieldRef"],
        )),
        _ => {}
    }
    if file.path.is_empty() {
        errors.add(FieldErrors::missing("path"));
    }
    errors
}
