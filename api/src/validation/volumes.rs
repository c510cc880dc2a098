//! Volumes.

use k8s_openapi::api::core::v1::{KeyToPath, Volume, VolumeProjection};
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
    let mut known: Vec<&str> = VOLUME_SOURCES.to_vec();
    known.extend(
        FLAGGED_VOLUME_SOURCES.iter().filter(|(_, flag)| features.allowed(flag)).map(|(field, _)| *field),
    );
    let mut allowed = known.clone();
    allowed.push("name");
    let mut errors = only(volume, &allowed);
    let set: Vec<String> = match serde_json::to_value(volume) {
        Ok(serde_json::Value::Object(map)) => {
            map.into_iter().map(|(k, _)| k).filter(|k| k != "name").collect()
        }
        _ => Vec::new(),
    };
    match set.len() {
        0 => errors.add(FieldErrors::missing_one_of(&known)),
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
    if let Some(claim) = &volume.persistent_volume_claim
        && claim.read_only != Some(true)
        && !features.allowed("kubernetes.podspec-persistent-volume-write")
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
    errors
}
