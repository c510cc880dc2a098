use serde_json::json;

use super::*;

fn deployments() -> ResourceInfo {
    ResourceInfo {
        group: "apps".into(),
        version: "v1".into(),
        kind: "Deployment".into(),
        plural: "deployments".into(),
        namespaced: true,
        subresources: vec!["status".into(), "scale".into()],
        schema: Schema::builtin("apps", "v1", "Deployment").expect("built in"),
        builtin: true,
    }
}

fn widgets() -> ResourceInfo {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer", "description": "How big."},
            "object": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}},
        "metadata": {"type": "object"}}});
    ResourceInfo {
        group: "stable.example.com".into(),
        version: "v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
        namespaced: false,
        subresources: vec!["status".into()],
        schema: Schema::from_crd(&schema).unwrap(),
        builtin: false,
    }
}

/// Every reference of a document must lead somewhere.
fn dangling(doc: &Value, at: &Value, out: &mut Vec<String>) {
    match at {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref")
                && doc.pointer(reference.trim_start_matches('#')).is_none()
            {
                out.push(reference.clone());
            }
            map.values().for_each(|v| dangling(doc, v, out));
        }
        Value::Array(items) => items.iter().for_each(|v| dangling(doc, v, out)),
        _ => {}
    }
}

#[test]
fn references_lead_somewhere() {
    for (group, resources) in [("apps", vec![deployments()]), ("stable.example.com", vec![widgets()])] {
        let doc = v3_group(group, "v1", &resources);
        let mut out = Vec::new();
        dangling(&doc, &doc, &mut out);
        assert_eq!(out, Vec::<String>::new());
    }
}

#[test]
fn builtin_kinds_offer_strategic_merge_and_keep_their_merge_keys() {
    let doc = v3_group("apps", "v1", &[deployments()]);
    let patch = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
    let schemas = &doc["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert!(containers["description"].as_str().unwrap().starts_with("List of containers"));
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let scale = &doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["patch"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");
    assert_eq!(
        schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["oneOf"],
        json!([{"type": "integer"}, {"type": "string"}])
    );
}

#[test]
fn custom_kinds_do_not_offer_strategic_merge() {
    let doc = v3_group("stable.example.com", "v1", &[widgets()]);
    let patch = &doc["paths"]["/apis/stable.example.com/v1/widgets/{name}"]["patch"];
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_null());
    assert!(patch["requestBody"]["content"]["application/merge-patch+json"].is_object());
    let schema = &doc["components"]["schemas"]["com.example.stable.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["description"], "How big.");
    assert!(schema["properties"]["metadata"]["allOf"][0]["$ref"].as_str().unwrap().ends_with("ObjectMeta"));
    let embedded = &schema["properties"]["spec"]["properties"]["object"]["properties"];
    assert!(embedded["metadata"]["allOf"].is_array());
}
