//! What a setting has put into a Deployment and wants there no more.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

type Amounts = Option<BTreeMap<String, Quantity>>;

/// What makes `live` as `wanted` where a setting left something that is wanted no more, in whose place the API server would put nothing by
/// itself: a comparison of what is wanted with what is there does not see it.
pub(super) fn patch(live: &Deployment, wanted: &Deployment) -> Option<Value> {
    fn pod(deployment: &Deployment) -> Option<&PodSpec> {
        deployment.spec.as_ref()?.template.spec.as_ref()
    }
    fn amounts(container: &Container, of: fn(&ResourceRequirements) -> &Amounts) -> Vec<&String> {
        container
            .resources
            .as_ref()
            .and_then(|r| of(r).as_ref())
            .into_iter()
            .flat_map(BTreeMap::keys)
            .collect()
    }
    let (live, new) = (pod(live)?, pod(wanted)?);
    let mut gone = serde_json::Map::new();
    if live.affinity.is_some() && new.affinity.is_none() {
        gone.insert("affinity".into(), Value::Null);
    }
    if live.runtime_class_name.is_some() && new.runtime_class_name.is_none() {
        gone.insert("runtimeClassName".into(), Value::Null);
    }
    let more = |new: &Container| {
        let before = live.containers.iter().find(|c| c.name == new.name);
        before.is_some_and(|before| {
            let parts: [fn(&ResourceRequirements) -> &Amounts; 2] = [|r| &r.requests, |r| &r.limits];
            parts.iter().any(|of| {
                let new = amounts(new, *of);
                amounts(before, *of).iter().any(|name| !new.contains(name))
            })
        })
    };
    if gone.is_empty() && !new.containers.iter().any(more) {
        return None;
    }
    // A list is replaced whole by a merge patch, and with it the containers' resources.
    let mut patch = json!({"spec": wanted.spec});
    patch["spec"]["template"]["spec"].as_object_mut()?.extend(gone);
    Some(patch)
}
