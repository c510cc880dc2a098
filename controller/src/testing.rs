//! Objects for tests of plans.

use ebb_api::config::Configs;
use ebb_api::defaults;
use ebb_api::serving::{Configuration, Revision, Route, Service};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::plan::{Change, Plan};

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("a time")
}

pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("it parses")
}

pub(crate) fn ksvc(spec: Value) -> Service {
    let mut object: Service = object(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "default", "uid": "ksvc-uid", "generation": 1}, "spec": spec
    }));
    defaults::service(&mut object, None, &Configs::default(), Some("jo"));
    object
}

pub(crate) fn hello() -> Service {
    ksvc(json!({"template": {"spec": {"containers": [{"image": "hello:v1"}]}}}))
}

pub(crate) fn configuration() -> Configuration {
    let mut object = crate::service::configuration(&hello());
    object.metadata.uid = Some("cfg-uid".into());
    object.metadata.generation = Some(1);
    object
}

pub(crate) fn route() -> Route {
    let mut object = crate::service::route(&hello());
    object.metadata.uid = Some("route-uid".into());
    object.metadata.generation = Some(1);
    object
}

/// The revision of generation `n`.
pub(crate) fn revision(n: i64) -> Revision {
    let mut configuration = configuration();
    configuration.metadata.generation = Some(n);
    let mut object = crate::configuration::make(&configuration, at(n));
    object.metadata.uid = Some(format!("rev-{n}-uid"));
    object.metadata.generation = Some(1);
    object
}

pub(crate) fn with_status<K: DeserializeOwned + serde::Serialize>(object: &K, status: Value) -> K {
    let mut value = serde_json::to_value(object).expect("JSON");
    value["status"] = status;
    self::object(value)
}

pub(crate) fn ready(status: &str, reason: Option<&str>) -> Value {
    json!({
        "observedGeneration": 1,
        "conditions": [{"type": "Ready", "status": status, "reason": reason, "message": reason.map(|r| format!("{r}!"))}]
    })
}

/// kind/name of what a plan makes, changes and deletes.
pub(crate) fn summary(plan: &Plan) -> Vec<String> {
    plan.first
        .iter()
        .chain(&plan.then)
        .map(|change| match change {
            Change::Create(t, _) => format!("create {}/{}", t.resource.kind, t.name),
            Change::Patch(t, _) => format!("patch {}/{}", t.resource.kind, t.name),
            Change::Delete(t, _) => format!("delete {}/{}", t.resource.kind, t.name),
        })
        .collect()
}

/// status and reason of a condition that a plan writes.
pub(crate) fn condition(plan: &Plan, type_: &str) -> (String, String) {
    let status = plan.status.as_ref().expect("a status is written");
    let found = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == type_);
    let found = found.unwrap_or_else(|| panic!("no condition {type_} in {status}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

pub(crate) fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}
