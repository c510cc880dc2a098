//! The decisions, as pure functions of an AdmissionRequest.

use base64::Engine as _;
use ebb_api::autoscaling::{Metric, PodAutoscaler};
use ebb_api::caching::Image;
use ebb_api::config::{Configs, Data};
use ebb_api::field_error::{CURRENT, FieldErrors};
use ebb_api::networking::{Certificate, Ingress, ServerlessService};
use ebb_api::serving::{Configuration, DomainMapping, Revision, Route, Service};
use ebb_api::{defaults, validation as rules};
use k8s_openapi::api::core::v1::ConfigMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::plan::exact_patch;

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The object may be stored, after these changes (a JSON patch) and with these warnings.
    Allowed(Vec<Value>, Vec<String>),
    /// It may not, for this reason.
    Denied(String),
}

impl Verdict {
    fn allowed() -> Self {
        Self::Allowed(Vec::new(), Vec::new())
    }

    /// The `response` of an AdmissionReview.
    pub fn into_response(self) -> Value {
        match self {
            Self::Denied(message) => json!({
                "allowed": false,
                "status": {"status": "Failure", "reason": "BadRequest", "code": 400, "message": message}
            }),
            Self::Allowed(patch, warnings) => {
                let mut response = json!({"allowed": true});
                if !patch.is_empty() {
                    let text = Value::Array(patch).to_string();
                    response["patchType"] = json!("JSONPatch");
                    response["patch"] = json!(base64::engine::general_purpose::STANDARD.encode(text));
                }
                if !warnings.is_empty() {
                    response["warnings"] = json!(warnings);
                }
                response
            }
        }
    }
}

struct Asked<K> {
    object: K,
    old: Option<K>,
    user: Option<String>,
}

fn read<K: DeserializeOwned>(request: &Value) -> Result<Asked<K>, String> {
    let parse = |value: &Value| serde_json::from_value::<K>(value.clone()).map_err(|e| e.to_string());
    let old = &request["oldObject"];
    Ok(Asked {
        object: parse(&request["object"]).map_err(|e| format!("the object cannot be read: {e}"))?,
        // What is stored already must never be in the way.
        old: if old.is_object() { parse(old).ok() } else { None },
        user: request["userInfo"]["username"].as_str().map(str::to_owned),
    })
}

/// Whether there is nothing to decide: the object goes, or only its status is written.
pub(super) fn passes(request: &Value) -> bool {
    let going = request["object"]["metadata"]["deletionTimestamp"].is_string();
    let sub_resource = request["subResource"].as_str().is_some_and(|s| !s.is_empty());
    going || sub_resource || !request["object"].is_object()
}

/// The kind of the request, and the namespace and name that the object itself may lack.
fn normalise(request: &Value) -> Value {
    let mut request = request.clone();
    let namespace = request["namespace"].clone();
    if let Some(metadata) = request["object"]["metadata"].as_object_mut() {
        metadata.entry("namespace").or_insert(namespace);
    }
    request
}

/// Fills in an object.
pub fn defaulting(request: &Value, configs: &Configs) -> Verdict {
    if passes(request) {
        return Verdict::allowed();
    }
    let request = &normalise(request);
    let result = match request["kind"]["kind"].as_str().unwrap_or_default() {
        "Service" => fill::<Service>(request, |a| {
            defaults::service(&mut a.object, a.old.as_ref(), configs, a.user.as_deref());
        }),
        "Configuration" => fill::<Configuration>(request, |a| {
            defaults::configuration(&mut a.object, a.old.as_ref(), configs, a.user.as_deref());
        }),
        "Revision" => {
            fill::<Revision>(request, |a| defaults::revision(&mut a.object, a.old.as_ref(), configs))
        }
        "Route" => {
            fill::<Route>(request, |a| defaults::route(&mut a.object, a.old.as_ref(), a.user.as_deref()))
        }
        "DomainMapping" => fill::<DomainMapping>(request, |a| {
            defaults::domain_mapping(&mut a.object, a.old.as_ref(), a.user.as_deref());
        }),
        "Ingress" => fill::<Ingress>(request, |a| defaults::ingress(&mut a.object)),
        "PodAutoscaler" => {
            fill::<PodAutoscaler>(request, |a| defaults::pod_autoscaler(&mut a.object, configs))
        }
        _ => Ok(Vec::new()),
    };
    match result {
        Ok(patch) => Verdict::Allowed(patch, Vec::new()),
        Err(message) => Verdict::Denied(format!("mutation failed: {message}")),
    }
}

/// The JSON patch of what `change` changes. Only that: what this program does not know of an object stays as it is.
fn fill<K>(request: &Value, change: impl FnOnce(&mut Asked<K>)) -> Result<Vec<Value>, String>
where
    K: DeserializeOwned + Serialize,
{
    // Such as a number where a string belongs: the schema is asked next, and its refusal names the field.
    let Ok(mut asked) = read::<K>(request) else { return Ok(Vec::new()) };
    let before = serde_json::to_value(&asked.object).map_err(|e| e.to_string())?;
    change(&mut asked);
    let after = serde_json::to_value(&asked.object).map_err(|e| e.to_string())?;
    let mut ops = Vec::new();
    if let Some(changes) = exact_patch(&before, &after) {
        operations("", &request["object"], &changes, &mut ops);
    }
    Ok(ops)
}

/// Writes a merge patch on `live` as JSON patch operations.
fn operations(path: &str, live: &Value, changes: &Value, ops: &mut Vec<Value>) {
    let Some(changes) = changes.as_object() else { return };
    for (key, change) in changes {
        let at = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
        match (live.get(key), change) {
            (None, Value::Null) => {}
            (Some(_), Value::Null) => ops.push(json!({"op": "remove", "path": at})),
            (Some(found), Value::Object(_)) if found.is_object() => operations(&at, found, change, ops),
            (None, value) => ops.push(json!({"op": "add", "path": at, "value": value})),
            (Some(_), value) => ops.push(json!({"op": "replace", "path": at, "value": value})),
        }
    }
}

/// Checks an object.
pub fn validation(request: &Value, configs: &Configs) -> Verdict {
    if passes(request) {
        return Verdict::allowed();
    }
    let request = &normalise(request);
    let result = match request["kind"]["kind"].as_str().unwrap_or_default() {
        "Service" => read::<Service>(request).map(|a| rules::service(&a.object, a.old.as_ref(), configs)),
        "Configuration" => {
            read::<Configuration>(request).map(|a| rules::configuration(&a.object, a.old.as_ref(), configs))
        }
        "Revision" => read::<Revision>(request).map(|a| rules::revision(&a.object, a.old.as_ref(), configs)),
        "Route" => read::<Route>(request).map(|a| rules::route(&a.object, a.old.as_ref())),
        "DomainMapping" => {
            read::<DomainMapping>(request).map(|a| rules::domain_mapping(&a.object, a.old.as_ref()))
        }
        "Certificate" => read::<Certificate>(request).map(|a| rules::certificate(&a.object)),
        "Image" => read::<Image>(request).map(|a| rules::image(&a.object)),
        "Ingress" => read::<Ingress>(request).map(|a| rules::ingress(&a.object)),
        "Metric" => read::<Metric>(request).map(|a| rules::metric(&a.object, configs)),
        "PodAutoscaler" => read::<PodAutoscaler>(request).map(|a| rules::pod_autoscaler(&a.object, configs)),
        "ServerlessService" => {
            read::<ServerlessService>(request).map(|a| rules::serverless_service(&a.object))
        }
        _ => return Verdict::allowed(),
    };
    verdict(result)
}

/// Checks a ConfigMap of the platform.
pub fn config_maps(request: &Value) -> Verdict {
    if passes(request) {
        return Verdict::allowed();
    }
    let object = &request["object"];
    verdict(serde_json::from_value::<ConfigMap>(object.clone()).map_err(|e| e.to_string()).map(|map| {
        let metadata = &map.metadata;
        let (name, data) = (metadata.name.as_deref().unwrap_or_default(), map.data.unwrap_or_default());
        rules::config_map(name, metadata.annotations.as_ref(), &data).also(log_templates(&data))
    }))
}

/// A template that no sidecar can parse would keep every new pod from starting.
fn log_templates(data: &Data) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (key, text) in
        data.iter().filter(|(key, _)| key.starts_with("logging.") && key.ends_with("log-template"))
    {
        if let Err(problem) = ebb_http::log::Template::parse(text) {
            errors.add(FieldErrors::new(problem.to_string(), &[CURRENT]).via_key(key).via_field("data"));
        }
    }
    errors
}

fn verdict(result: Result<FieldErrors, String>) -> Verdict {
    match result {
        Ok(errors) if errors.is_ok() => Verdict::Allowed(Vec::new(), errors.warnings()),
        Ok(errors) => Verdict::Denied(format!("validation failed: {}", errors.errors())),
        Err(message) => Verdict::Denied(format!("validation failed: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(object: Value, old: Value) -> Value {
        json!({
            "uid": "1", "kind": {"group": "serving.knative.dev", "version": "v1", "kind": "Service"},
            "operation": "CREATE", "namespace": "default", "userInfo": {"username": "jo"},
            "object": object, "oldObject": old
        })
    }

    fn hello() -> Value {
        json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"},
            "spec": {"template": {"spec": {"containers": [{"image": "hello"}]}}}
        })
    }

    #[test]
    fn a_patch_adds_what_is_missing_and_no_more() {
        let Verdict::Allowed(patch, _) = defaulting(&request(hello(), Value::Null), &Configs::default())
        else {
            panic!("it is allowed");
        };
        let paths: Vec<&str> = patch.iter().filter_map(|op| op["path"].as_str()).collect();
        assert!(paths.contains(&"/metadata/annotations"), "{paths:?}");
        assert!(paths.contains(&"/spec/traffic"), "{paths:?}");
        assert!(paths.contains(&"/spec/template/spec/timeoutSeconds"), "{paths:?}");
        assert!(!paths.contains(&"/metadata"), "{paths:?}");
        let response = Verdict::Allowed(patch, Vec::new()).into_response();
        assert_eq!(response["patchType"], "JSONPatch");
    }

    #[test]
    fn bad_objects_are_refused_with_the_path() {
        let mut object = hello();
        object["spec"]["template"]["spec"]["containers"][0]["lifecycle"] =
            json!({"preStop": {"exec": {"command": ["x"]}}});
        object["spec"]["traffic"] = json!([{"percent": 100, "latestRevision": true}]);
        let Verdict::Denied(message) = validation(&request(object, Value::Null), &Configs::default()) else {
            panic!("it is refused");
        };
        assert!(
            message.contains("must not set the field(s): spec.template.spec.containers[0].lifecycle"),
            "{message}"
        );
        let response = Verdict::Denied(message).into_response();
        assert_eq!(
            (response["allowed"].as_bool(), response["status"]["code"].as_i64()),
            (Some(false), Some(400))
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_to_the_schema_and_refused_after_it() {
        let mut object = hello();
        object["spec"]["traffic"] = json!("all");
        let request = request(object, Value::Null);
        assert_eq!(defaulting(&request, &Configs::default()), Verdict::allowed());
        assert!(matches!(validation(&request, &Configs::default()), Verdict::Denied(_)));
    }

    #[test]
    fn a_log_template_that_no_sidecar_can_use_is_refused_with_its_key() {
        let map = |template: Option<&str>| {
            let mut data = json!({"logging.enable-request-log": "true"});
            if let Some(template) = template {
                data["logging.request-log-template"] = json!(template);
            }
            config_maps(&request(
                json!({"metadata": {"name": "config-observability"}, "data": data}),
                Value::Null,
            ))
        };
        assert_eq!(map(None), Verdict::allowed());
        assert_eq!(map(Some("{{.Request.Method}} {{.TraceID}}")), Verdict::allowed());
        for bad in ["{{.Request.Nonsense}}", ""] {
            let Verdict::Denied(message) = map(Some(bad)) else { panic!("{bad:?} is refused") };
            assert!(message.contains("logging.request-log-template"), "{message}");
        }
        // What is allowed without the key can be parsed as well.
        let usual = ebb_api::config::REQUEST_LOG_TEMPLATE;
        assert_eq!(map(Some(usual)), Verdict::allowed());
    }

    #[test]
    fn status_writes_and_deletions_pass() {
        let mut object = hello();
        object["spec"]["traffic"] = json!("all");
        let mut status = request(object.clone(), Value::Null);
        status["subResource"] = json!("status");
        assert_eq!(validation(&status, &Configs::default()), Verdict::allowed());
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(validation(&request(object, Value::Null), &Configs::default()), Verdict::allowed());
    }
}
