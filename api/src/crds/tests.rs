use serde_json::Value;

use super::*;
use crate::serving::Service;

fn walk(path: &str, schema: &Value, problems: &mut Vec<String>) {
    let Some(map) = schema.as_object() else { return };
    for forbidden in ["$ref", "definitions", "$schema", "oneOf", "nullable_", "additionalItems", "const"] {
        if map.contains_key(forbidden) {
            problems.push(format!("{path}: {forbidden}"));
        }
    }
    let open = map.contains_key("x-kubernetes-preserve-unknown-fields")
        || map.contains_key("x-kubernetes-int-or-string");
    match map.get("type") {
        None if !open => problems.push(format!("{path}: no type")),
        Some(Value::Array(_)) => problems.push(format!("{path}: several types")),
        _ => {}
    }
    for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, problems);
    }
    if let Some(items) = map.get("items") {
        walk(&format!("{path}[]"), items, problems);
    }
    if let Some(values) = map.get("additionalProperties") {
        walk(&format!("{path}{{}}"), values, problems);
    }
}

#[test]
fn schemas_are_structural_and_small() {
    for crd in crds() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let value = serde_json::to_value(&crd).expect("a CRD is JSON");
        let mut problems = Vec::new();
        for version in value["spec"]["versions"].as_array().expect("versions") {
            walk(&name, &version["schema"]["openAPIV3Schema"], &mut problems);
        }
        assert!(problems.is_empty(), "{problems:#?}");
        let size = value.to_string().len();
        assert!(size < 120_000, "{name} has {size} bytes");
    }
}

#[test]
fn a_service_reads_as_users_write_it() {
    let service: Service = serde_json::from_value(serde_json::json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "hello"},
        "spec": {"template": {
            "metadata": {"creationTimestamp": null, "annotations": {"autoscaling.knative.dev/min-scale": "1"}},
            "spec": {
                "containers": [{"image": "hello", "resources": {"limits": {"cpu": 1, "memory": "64Mi"}}}],
                "containerConcurrency": 10
            }
        }}
    }))
    .expect("it parses");
    let spec = &service.spec.template.spec;
    assert_eq!(spec.container_concurrency, Some(10));
    assert_eq!(spec.user_port().number, 8080);
    let limits = spec.pod.containers[0].resources.as_ref().and_then(|r| r.limits.as_ref()).expect("limits");
    assert_eq!(limits["cpu"].0, "1");
    let back = serde_json::to_value(&service).expect("it writes");
    assert_eq!(back["spec"]["template"]["spec"]["containerConcurrency"], 10);
    assert_eq!(back["spec"]["template"]["spec"]["containers"][0]["image"], "hello");
    assert!(back.get("status").is_none());
}

#[test]
fn names_and_columns_are_knatives() {
    let all = crds();
    let ksvc = all.iter().find(|c| c.spec.names.kind == "Service").expect("there is a Service");
    assert_eq!(ksvc.metadata.name.as_deref(), Some("services.serving.knative.dev"));
    assert_eq!(ksvc.spec.names.short_names.clone().unwrap_or_default(), ["kservice", "ksvc"]);
    assert_eq!(ksvc.spec.names.categories.clone().unwrap_or_default(), ["all", "knative", "serving"]);
    let version = &ksvc.spec.versions[0];
    let columns: Vec<_> =
        version.additional_printer_columns.iter().flatten().map(|c| c.name.to_uppercase()).collect();
    assert_eq!(columns, ["URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON"]);
    assert!(version.subresources.as_ref().is_some_and(|s| s.status.is_some() && s.scale.is_none()));
}

/// All properties under a schema, those of lists and maps at the path of the list or map itself.
fn paths(at: &str, schema: &Value, out: &mut std::collections::BTreeMap<String, Value>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        out.insert(path.clone(), property.clone());
        paths(&path, property, out);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            paths(at, &schema[inner], out);
        }
    }
}

/// Field paths of our CRDs by kind.
fn fields() -> std::collections::BTreeMap<String, std::collections::BTreeMap<String, Value>> {
    let mut all = std::collections::BTreeMap::new();
    for crd in crds() {
        let value = serde_json::to_value(&crd).expect("a CRD is JSON");
        let mut found = std::collections::BTreeMap::new();
        paths("", &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut found);
        all.insert(crd.spec.names.kind, found);
    }
    all
}

#[test]
fn every_field_of_knative_is_there() {
    let ours = fields();
    let open = |found: &std::collections::BTreeMap<String, Value>, path: &str| {
        path.match_indices('.').any(|(at, _)| {
            found.get(&path[..at]).is_some_and(|property| {
                let key = "x-kubernetes-preserve-unknown-fields";
                property[key] == true || property["items"][key] == true
            })
        })
    };
    let (mut kind, mut missing, mut seen) = ("", Vec::new(), 0);
    for line in include_str!("knative-fields.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            kind = name.trim_end_matches(']');
            continue;
        }
        let (parent, children) = line.split_once(": ").expect("a parent and its fields");
        let holders: &[(&str, &str)] = match kind {
            "RevisionSpec" => &[
                ("Revision", "spec."),
                ("Service", "spec.template.spec."),
                ("Configuration", "spec.template.spec."),
            ],
            kind => &[(kind, "")],
        };
        for (child, (holder, prefix)) in children.split(' ').flat_map(|c| holders.iter().map(move |h| (c, h)))
        {
            let path = format!(
                "{prefix}{}{child}",
                if parent == "." { String::new() } else { format!("{parent}.") }
            );
            seen += 1;
            let found = &ours[*holder];
            if !found.contains_key(&path) && !open(found, &path) {
                missing.push(format!("{holder}: {path}"));
            }
        }
    }
    assert!(seen > 500, "{seen}");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_field_is_described() {
    let mut bare = Vec::new();
    for (kind, found) in fields() {
        for (path, property) in found {
            if property["description"].as_str().is_none_or(str::is_empty) && path != "metadata" {
                bare.push(format!("{kind}: {path}"));
            }
        }
    }
    assert!(bare.is_empty(), "{bare:#?}");
}

#[test]
fn no_short_name_is_that_of_a_kind_of_kubernetes() {
    for crd in crds() {
        for name in crd.spec.names.short_names.iter().flatten() {
            assert!(!["ing", "svc", "cm", "rs", "csr", "sc", "hpa"].contains(&name.as_str()), "{name}");
        }
    }
}
