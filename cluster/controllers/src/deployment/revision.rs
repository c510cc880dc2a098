//! Names and annotations of ReplicaSets: template hash, revision, desired size.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::PodTemplateSpec,
};

use crate::meta;

/// The label that tells the pods of one template from those of another.
pub(crate) const HASH: &str = "pod-template-hash";
/// The revision of a ReplicaSet, and on the Deployment the current one; `kubectl rollout` reads it.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a ReplicaSet that was rolled back to.
pub(crate) const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's size when the ReplicaSet was scaled last; a difference means that the Deployment was scaled since.
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// `DESIRED` plus maxSurge.
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that do not belong on its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// A hash of template and collision count in Kubernetes' alphabet, which forms no words.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    // Maps of k8s-openapi are ordered, so that equal templates have equal JSON.
    let json = serde_json::to_vec(template).unwrap_or_default();
    let fnv = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619);
    let mut hash = json.iter().fold(2_166_136_261, fnv);
    if collisions != 0 {
        hash = collisions.to_le_bytes().iter().fold(hash, fnv);
    }
    const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digits = hash.to_string();
    digits.bytes().map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()])).collect()
}

/// The template without the hash label that its ReplicaSet adds.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH);
    }
    meta.creation_timestamp = None;
    meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
    template
}

/// Whether the ReplicaSet runs the Deployment's present template.
pub(crate) fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = deployment.spec.as_ref().map(|spec| bare(&spec.template));
    let held = set.spec.as_ref().and_then(|spec| spec.template.as_ref()).map(bare);
    wanted.is_some() && wanted == held
}

pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    meta::annotation(set, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// The annotations a ReplicaSet of the Deployment should have in `revision`; what it has and the Deployment has not, stays.
pub(crate) fn annotations(
    deployment: &Deployment,
    held: Option<&ReplicaSet>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut annotations = held.and_then(|set| set.metadata.annotations.clone()).unwrap_or_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let old = annotations.get(REVISION).cloned();
    let older = old.as_deref().and_then(|old| old.parse::<i64>().ok()).unwrap_or(0);
    if older < revision {
        annotations.insert(REVISION.to_owned(), revision.to_string());
        if let Some(old) = old.filter(|_| older > 0) {
            let history = annotations.entry(HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old);
        }
    }
    annotations
}
