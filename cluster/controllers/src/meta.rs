//! Small questions about objects that several controllers ask: owners, selectors, readiness.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference, Time},
    jiff::Timestamp,
};
use kube::Resource;

pub(crate) type Labels = BTreeMap<String, String>;

/// The owner that controls the object, if one does.
pub(crate) fn controller_of(object: &impl Resource) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// A reference that makes `owner` the controlling owner of another object.
pub(crate) fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

pub(crate) fn uid(object: &impl Resource) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(object: &impl Resource) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

pub(crate) fn annotation<'a>(object: &'a impl Resource, key: &str) -> Option<&'a str> {
    object.meta().annotations.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn created(object: &impl Resource) -> Option<Timestamp> {
    object.meta().creation_timestamp.as_ref().map(|time| time.0)
}

/// `now` as Kubernetes writes times: whole seconds.
pub(crate) fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The time from `now` until `then`; zero when it has passed.
pub(crate) fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

/// Whether a label selector selects these labels. An empty selector selects everything; an operator that is none selects nothing.
pub(crate) fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let exact = selector.match_labels.iter().flatten().all(|(key, value)| get(key) == Some(value));
    exact
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = get(&requirement.key);
            let listed = value.is_some_and(|value| requirement.values.iter().flatten().any(|v| v == value));
            match requirement.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

pub(crate) fn is_empty_selector(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Ready since when, if the pod is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Option<Timestamp>> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready =
        conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map(|time| time.0))
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// The pod's containers have ended for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts for its ReplicaSet: neither ended nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Ready for at least `min_ready_seconds`; else when it will be, if it is ready at all.
pub(crate) fn availability(
    pod: &Pod,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Result<(), Option<Duration>> {
    let since = ready_since(pod).ok_or(None)?;
    if min_ready_seconds <= 0 {
        return Ok(());
    }
    // A time so late that nothing can be added to it is none that comes.
    let at = since.unwrap_or(now).checked_add(Duration::from_secs(min_ready_seconds.unsigned_abs().into()));
    match at {
        Ok(at) if at <= now => Ok(()),
        Ok(at) => Err(Some(until(at, now))),
        Err(_) => Err(None),
    }
}

/// A pod made from a template, owned by `owner`; the API server completes the name.
pub(crate) fn pod_from<K: Resource<DynamicType = ()>>(template: &PodTemplateSpec, owner: &K) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    let mut pod = Pod { spec: template.spec.clone(), ..Pod::default() };
    pod.metadata.generate_name = Some(format!("{}-", prefix(name(owner))));
    pod.metadata.namespace = owner.meta().namespace.clone();
    pod.metadata.labels = from.labels;
    pod.metadata.annotations = from.annotations;
    pod.metadata.finalizers = from.finalizers;
    pod.metadata.owner_references = Some(vec![controller_ref(owner)]);
    pod
}

/// So much of a name that a random suffix of five still makes a DNS label.
fn prefix(name: &str) -> &str {
    let end = name.len().min(57);
    name.get(..end).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    #[test]
    fn selectors() {
        let labels = Labels::from([("app".to_owned(), "a".to_owned())]);
        let requirement = |key: &str, operator: &str, values: &[&str]| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|&v| v.to_owned()).collect()),
            }]),
            match_labels: None,
        };
        let cases = [
            (requirement("app", "In", &["a", "b"]), true),
            (requirement("app", "In", &["b"]), false),
            (requirement("app", "NotIn", &["a"]), false),
            (requirement("tier", "NotIn", &["a"]), true),
            (requirement("app", "Exists", &[]), true),
            (requirement("tier", "Exists", &[]), false),
            (requirement("tier", "DoesNotExist", &[]), true),
            (requirement("app", "Unheard", &[]), false),
            (LabelSelector::default(), true),
            (LabelSelector { match_labels: Some(labels.clone()), match_expressions: None }, true),
        ];
        for (selector, expected) in cases {
            assert_eq!(selects(&selector, Some(&labels)), expected, "{selector:?}");
        }
    }
}
