//! The question: an `AdmissionReview` of `admission.k8s.io/v1`.

use serde_json::{Map, Value, json};

use crate::Attributes;

/// The request without the objects, as match conditions see it.
pub(crate) fn attributes(attrs: &Attributes) -> Value {
    let mut user = Map::new();
    user.insert("username".into(), attrs.user_info.username.clone().into());
    if !attrs.user_info.uid.is_empty() {
        user.insert("uid".into(), attrs.user_info.uid.clone().into());
    }
    if !attrs.user_info.groups.is_empty() {
        user.insert("groups".into(), attrs.user_info.groups.clone().into());
    }
    if !attrs.user_info.extra.is_null() {
        user.insert("extra".into(), attrs.user_info.extra.clone());
    }
    let kind = json!({"group": attrs.gvk.group, "version": attrs.gvk.version, "kind": attrs.gvk.name});
    let resource =
        json!({"group": attrs.gvr.group, "version": attrs.gvr.version, "resource": attrs.gvr.name});
    let mut request = json!({
        "uid": attrs.uid,
        "kind": kind.clone(),
        "resource": resource.clone(),
        "requestKind": kind,
        "requestResource": resource,
        "operation": attrs.operation.as_str(),
        "userInfo": user,
        "dryRun": attrs.dry_run,
    });
    let mut optional = |key: &str, value: Value| {
        if !value.is_null() && value != "" {
            request[key] = value;
        }
    };
    optional("subResource", attrs.sub_resource.clone().into());
    optional("requestSubResource", attrs.sub_resource.clone().into());
    optional("name", attrs.name.clone().into());
    optional("namespace", attrs.namespace.clone().into());
    optional("options", attrs.options.clone());
    request
}

/// The whole review, as bytes to send. Absent objects are null, as upstream.
pub(crate) fn request(attrs: &Attributes, obj: &Value) -> Vec<u8> {
    let mut request = attributes(attrs);
    request["object"] = obj.clone();
    request["oldObject"] = attrs.old_object.clone();
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request});
    review.to_string().into_bytes()
}
