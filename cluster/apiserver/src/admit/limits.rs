//! LimitRanges: what they fill into a new pod's containers, and what they refuse.

use std::collections::BTreeSet;

use cluster_schema::quantity;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::handlers::Ctx;
use crate::meta;

const STORAGE: &str = "/limitranges";
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn items<'a>(value: &'a Value, list: &str) -> &'a [Value] {
    value[list].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn amount(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => quantity::to_f64(text),
        other => other.as_f64(),
    }
}

/// The limits of a namespace, of one type.
fn limits(ranges: &[Value], kind: &str) -> Vec<Value> {
    let all = ranges.iter().flat_map(|range| items(&range["spec"], "limits"));
    all.filter(|limit| limit["type"] == kind).cloned().collect()
}

/// Admission of a new pod or claim: fills in, then refuses.
pub(crate) fn admit(ctx: &Ctx, object: &mut Value) -> Result<(), ApiError> {
    let (_, ranges) = ctx.server.store.list(STORAGE, Some(&ctx.namespace));
    if ranges.is_empty() {
        return Ok(());
    }
    let ranges: Vec<Value> = ranges.iter().map(|range| range.value.clone()).collect();
    let errors = if ctx.resource.kind == "Pod" {
        fill(&ranges, object);
        pod_errors(&ranges, object)
    } else {
        let requests = &object["spec"]["resources"]["requests"];
        claim_errors(&ranges, requests)
    };
    match errors.as_slice() {
        [] => Ok(()),
        [only] => Err(ApiError::forbidden(ctx.resource.subject(meta::name(object)), only)),
        several => {
            let cause = format!("[{}]", several.join(", "));
            Err(ApiError::forbidden(ctx.resource.subject(meta::name(object)), cause))
        }
    }
}

/// Requests and limits that containers leave open, from the ranges' defaults, noted in an annotation.
fn fill(ranges: &[Value], pod: &mut Value) {
    let limits = limits(ranges, "Container");
    let mut notes = Vec::new();
    for (list, what) in [("initContainers", "init container"), ("containers", "container")] {
        for container in meta::items_mut(&mut pod["spec"], list) {
            let name = meta_name(container);
            for (defaults, side, word) in
                [("defaultRequest", "requests", "request"), ("default", "limits", "limit")]
            {
                let mut set = BTreeSet::new();
                for limit in &limits {
                    for (resource, value) in limit[defaults].as_object().into_iter().flatten() {
                        if container["resources"][side].get(resource).is_none() {
                            container["resources"][side][resource] = value.clone();
                            set.insert(resource.clone());
                        }
                    }
                }
                if !set.is_empty() {
                    let set: Vec<String> = set.into_iter().collect();
                    notes.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if pod["spec"]["initContainers"].is_null()
        && let Some(spec) = pod["spec"].as_object_mut()
    {
        spec.remove("initContainers");
    }
    if !notes.is_empty() {
        if !pod["metadata"]["annotations"].is_object() {
            meta::set(pod, "annotations", json!({}));
        }
        pod["metadata"]["annotations"][ANNOTATION] =
            format!("LimitRanger plugin set: {}", notes.join("; ")).into();
    }
}

fn meta_name(container: &Value) -> String {
    container["name"].as_str().unwrap_or_default().to_owned()
}

fn pod_errors(ranges: &[Value], pod: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let (containers, inits) = (items(&pod["spec"], "containers"), items(&pod["spec"], "initContainers"));
    for limit in ranges.iter().flat_map(|range| items(&range["spec"], "limits")) {
        match limit["type"].as_str() {
            Some("Container") => {
                for container in containers.iter().chain(inits) {
                    errors.extend(bounds(
                        limit,
                        &container["resources"]["requests"],
                        &container["resources"]["limits"],
                    ));
                }
            }
            Some("Pod") => errors.extend(bounds(limit, &total(pod, "requests"), &total(pod, "limits"))),
            _ => {}
        }
    }
    errors
}

/// What a pod asks for as a whole: its containers together, or an init container if that is more.
pub(super) fn total(pod: &Value, side: &str) -> Value {
    let mut sum = serde_json::Map::new();
    let add = |sum: &mut serde_json::Map<String, Value>, container: &Value, most: bool| {
        for (resource, value) in container["resources"][side].as_object().into_iter().flatten() {
            let (Some(held), Some(more)) = (sum.get(resource), value.as_str()) else {
                sum.insert(resource.clone(), value.clone());
                continue;
            };
            let held = held.as_str().unwrap_or("0").to_owned();
            let new = if most {
                if quantity::to_f64(more) > quantity::to_f64(&held) { more.to_owned() } else { held }
            } else {
                quantity::sum(&held, more).unwrap_or(held)
            };
            sum.insert(resource.clone(), new.into());
        }
    };
    let (inits, containers) = (items(&pod["spec"], "initContainers"), items(&pod["spec"], "containers"));
    let sidecar = |container: &&Value| container["restartPolicy"] == "Always";
    for container in containers.iter().chain(inits.iter().filter(sidecar)) {
        add(&mut sum, container, false);
    }
    for container in inits.iter().filter(|container| !sidecar(container)) {
        add(&mut sum, container, true);
    }
    sum.into()
}

/// How requests and limits break one limit's bounds.
fn bounds(limit: &Value, requests: &Value, limits: &Value) -> Vec<String> {
    let kind = limit["type"].as_str().unwrap_or_default();
    let mut errors = Vec::new();
    let each = |bound: &str| limit[bound].as_object().cloned().unwrap_or_default();
    for (resource, least) in each("min") {
        let head = format!("minimum {resource} usage per {kind} is {}", text(&least));
        let (request, limit) = (&requests[&resource], &limits[&resource]);
        if request.is_null() {
            errors.push(format!("{head}.  No request is specified"));
        } else if amount(request) < amount(&least) {
            errors.push(format!("{head}, but request is {}", text(request)));
        } else if !limit.is_null() && amount(limit) < amount(&least) {
            errors.push(format!("{head}, but limit is {}", text(limit)));
        }
    }
    for (resource, most) in each("max") {
        let head = format!("maximum {resource} usage per {kind} is {}", text(&most));
        let (request, limit) = (&requests[&resource], &limits[&resource]);
        if limit.is_null() {
            errors.push(format!("{head}.  No limit is specified"));
        } else if amount(limit) > amount(&most) {
            errors.push(format!("{head}, but limit is {}", text(limit)));
        } else if !request.is_null() && amount(request) > amount(&most) {
            errors.push(format!("{head}, but request is {}", text(request)));
        }
    }
    for (resource, most) in each("maxLimitRequestRatio") {
        let head = format!("{resource} max limit to request ratio per {kind} is {}", text(&most));
        let request = amount(&requests[&resource]).filter(|request| *request > 0.0);
        let limit = amount(&limits[&resource]).filter(|limit| *limit > 0.0);
        match (request, limit) {
            (None, _) => errors.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => errors.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) if amount(&most).is_some_and(|most| limit / request > most) => {
                errors.push(format!("{head}, but provided ratio is {:.6}", limit / request));
            }
            _ => {}
        }
    }
    errors
}

fn claim_errors(ranges: &[Value], requests: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in limits(ranges, "PersistentVolumeClaim") {
        for (bound, word, wrong) in
            [("min", "minimum", std::cmp::Ordering::Less), ("max", "maximum", std::cmp::Ordering::Greater)]
        {
            for (resource, value) in limit[bound].as_object().into_iter().flatten() {
                let head = format!("{word} {resource} usage per PersistentVolumeClaim is {}", text(value));
                let request = &requests[resource];
                if request.is_null() {
                    errors.push(format!("{head}.  No request is specified"));
                } else if amount(request).partial_cmp(&amount(value)) == Some(wrong) {
                    errors.push(format!("{head}, but request is {}", text(request)));
                }
            }
        }
    }
    errors
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Vec<Value> {
        vec![json!({"spec": {"limits": [
            {"type": "Container", "default": {"cpu": "200m"}, "defaultRequest": {"cpu": "100m", "memory": "16Mi"}, "max": {"cpu": "1"},
             "min": {"cpu": "10m"}, "maxLimitRequestRatio": {"cpu": "4"}},
            {"type": "Pod", "max": {"cpu": "1500m"}}]}})]
    }

    #[test]
    fn defaults_are_filled_in_and_noted() {
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {}}]}});
        fill(&ranges(), &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "200m"}, "requests": {"cpu": "100m", "memory": "16Mi"}})
        );
        let note = "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c";
        assert_eq!(pod["metadata"]["annotations"][ANNOTATION], note);
        assert!(pod["spec"].get("initContainers").is_none());
    }

    #[test]
    fn bounds_are_told_as_upstream_tells_them() {
        let pod = |limit: &str, request: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": limit}, "requests": {"cpu": request}}}]}});
        assert_eq!(
            pod_errors(&ranges(), &pod("2", "2")),
            [
                "maximum cpu usage per Container is 1, but limit is 2",
                "maximum cpu usage per Pod is 1500m, but limit is 2"
            ]
        );
        assert_eq!(
            pod_errors(&ranges(), &pod("1", "100m")),
            ["cpu max limit to request ratio per Container is 4, but provided ratio is 10.000000"]
        );
        assert!(pod_errors(&ranges(), &pod("1", "500m")).is_empty());
    }
}
