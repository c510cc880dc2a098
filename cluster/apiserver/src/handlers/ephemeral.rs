//! pods/ephemeralcontainers: containers added to a running pod to look into it (`kubectl debug`). They are added and never changed.

use cluster_schema::FieldError;
use serde_json::Value;

use crate::meta;

const FIELD: &str = "spec.ephemeralContainers";
/// What an ephemeral container may not have: nothing waits for it, and nothing is set aside for it.
const FORBIDDEN: [&str; 6] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"];

fn list<'a>(pod: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    pod["spec"][name].as_array().into_iter().flatten()
}

/// The old pod with the new ephemeral containers, and who says so.
pub(crate) fn only(old: &Value, new: &Value) -> Value {
    let mut merged = old.clone();
    meta::carry("ephemeralContainers", &new["spec"], &mut merged["spec"]);
    meta::carry("managedFields", &new["metadata"], &mut merged["metadata"]);
    merged
}

/// Whether the pod may have these ephemeral containers after those.
pub(crate) fn check(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let find =
        |pod: &'static str| move |name: &Value, of: &Value| list(of, pod).any(|known| known["name"] == *name);
    for before in list(old, "ephemeralContainers") {
        let name = before["name"].as_str().unwrap_or_default();
        match list(new, "ephemeralContainers").find(|container| container["name"] == before["name"]) {
            None => errors.push(FieldError::forbidden(
                FIELD,
                format!("existing ephemeral containers \"{name}\" may not be removed\n"),
            )),
            Some(after) if after != before => {
                errors.push(FieldError::forbidden(
                    FIELD,
                    format!("existing ephemeral containers \"{name}\" may not be changed\n"),
                ));
            }
            Some(_) => {}
        }
    }
    for (place, container) in list(new, "ephemeralContainers").enumerate() {
        let field = |name: &str| format!("{FIELD}[{place}].{name}");
        let name = &container["name"];
        let earlier = list(new, "ephemeralContainers").take(place).any(|other| other["name"] == *name);
        if earlier || find("containers")(name, new) || find("initContainers")(name, new) {
            errors.push(FieldError::duplicate(field("name"), name));
        }
        if container["image"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(field("image"), ""));
        }
        for forbidden in FORBIDDEN {
            if container
                .get(forbidden)
                .is_some_and(|value| !value.as_object().is_some_and(serde_json::Map::is_empty))
            {
                errors.push(FieldError::forbidden(
                    field(forbidden),
                    "cannot be set for an Ephemeral Container",
                ));
            }
        }
        let target = &container["targetContainerName"];
        if target.as_str().is_some_and(|name| !name.is_empty())
            && !find("containers")(target, new)
            && !find("initContainers")(target, new)
        {
            errors.push(FieldError::invalid(
                field("targetContainerName"),
                target,
                "must be a container of the pod",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ephemeral: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "i"}], "ephemeralContainers": ephemeral}})
    }

    fn errors(old: Value, new: Value) -> Vec<String> {
        let mut errors = Vec::new();
        check(&pod(new), &pod(old), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn they_are_added_and_never_changed() {
        let one = json!([{"name": "d", "image": "i"}]);
        assert!(errors(json!([]), one.clone()).is_empty());
        assert!(
            errors(
                one.clone(),
                json!([{"name": "d", "image": "i"}, {"name": "e", "image": "i", "targetContainerName": "a"}])
            )
            .is_empty()
        );
        assert!(errors(one.clone(), json!([]))[0].contains("may not be removed"));
        assert!(errors(one, json!([{"name": "d", "image": "j"}]))[0].contains("may not be changed"));
    }

    #[test]
    fn what_they_may_not_be() {
        let said = |container: Value| errors(json!([]), json!([container])).join("; ");
        assert!(said(json!({"name": "a", "image": "i"})).contains("spec.ephemeralContainers[0].name"));
        assert!(said(json!({"name": "d"})).contains("spec.ephemeralContainers[0].image"));
        assert!(said(json!({"name": "d", "image": "i", "ports": [{"containerPort": 1}]})).contains("ports"));
        assert!(
            said(json!({"name": "d", "image": "i", "targetContainerName": "x"}))
                .contains("targetContainerName")
        );
        assert!(said(json!({"name": "d", "image": "i", "resources": {}})).is_empty());
    }

    #[test]
    fn nothing_else_of_the_pod_changes() {
        let old = pod(json!([]));
        let mut new = pod(json!([{"name": "d", "image": "i"}]));
        new["spec"]["containers"][0]["image"] = "other".into();
        let merged = only(&old, &new);
        assert_eq!(merged["spec"]["containers"][0]["image"], "i");
        assert_eq!(merged["spec"]["ephemeralContainers"][0]["name"], "d");
    }
}
