//! The Revision: one immutable snapshot of code and configuration.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

use crate::conditions::{Condition, conditioned};
use crate::networking::ProtocolType;

/// What a Configuration stamps out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionTemplateSpec {
    /// Labels and annotations of the revision, and its name if the user wants to give it.
    #[schemars(schema_with = "crate::schema::template_metadata")]
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The revision.
    #[schemars(schema_with = "crate::schema::revision_spec")]
    #[serde(default)]
    pub spec: RevisionSpec,
}

/// A pod's spec (the part that serverless workloads may use) and the limits of its requests.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Revision",
    plural = "revisions",
    namespaced,
    status = "RevisionStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "Revision is one immutable snapshot of code and configuration; it is stamped out by a Configuration.",
    shortname = "rev",
    category = "all",
    category = "knative",
    category = "serving",
    printcolumn(
        name = "Config Name",
        type_ = "string",
        json_path = ".metadata.labels['serving\\.knative\\.dev/configuration']"
    ),
    printcolumn(
        name = "Generation",
        type_ = "string",
        json_path = ".metadata.labels['serving\\.knative\\.dev/configurationGeneration']"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Actual Replicas", type_ = "integer", json_path = ".status.actualReplicas"),
    printcolumn(name = "Desired Replicas", type_ = "integer", json_path = ".status.desiredReplicas")
)]
#[serde(rename_all = "camelCase", try_from = "serde_json::Value")]
pub struct RevisionSpec {
    /// The pod.
    #[serde(flatten)]
    pub pod: PodSpec,
    /// Requests that one pod may have in flight; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_concurrency: Option<i64>,
    /// Seconds that a request may take altogether.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Seconds until the first byte of a response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_start_timeout_seconds: Option<i64>,
    /// Seconds without a byte from the app after which a request is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<i64>,
}

/// As written: quantities may be bare numbers there, which a typed pod spec does not take.
impl TryFrom<Value> for RevisionSpec {
    type Error = serde_json::Error;

    fn try_from(mut value: Value) -> Result<Self, Self::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Limits {
            container_concurrency: Option<i64>,
            timeout_seconds: Option<i64>,
            response_start_timeout_seconds: Option<i64>,
            idle_timeout_seconds: Option<i64>,
        }
        if value.is_null() {
            return Ok(Self::default());
        }
        quantities_to_strings(&mut value);
        let limits = Limits::deserialize(&value)?;
        Ok(Self {
            pod: serde_json::from_value(value)?,
            container_concurrency: limits.container_concurrency,
            timeout_seconds: limits.timeout_seconds,
            response_start_timeout_seconds: limits.response_start_timeout_seconds,
            idle_timeout_seconds: limits.idle_timeout_seconds,
        })
    }
}

/// Rewrites each quantity of a pod spec that was given as a number into its string.
fn quantities_to_strings(pod: &mut Value) {
    fn to_string(value: &mut Value) {
        if value.is_number() {
            *value = Value::String(value.to_string());
        }
    }
    for list in ["containers", "initContainers"] {
        for container in pod.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            for kind in ["limits", "requests"] {
                let amounts =
                    container.pointer_mut(&format!("/resources/{kind}")).and_then(Value::as_object_mut);
                amounts.into_iter().flat_map(|m| m.values_mut()).for_each(to_string);
            }
            for env in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
                env.pointer_mut("/valueFrom/resourceFieldRef/divisor").into_iter().for_each(to_string);
            }
        }
    }
    for volume in pod.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        volume.pointer_mut("/emptyDir/sizeLimit").into_iter().for_each(to_string);
    }
}

/// The port on which the app serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPort {
    /// The number; 8080 unless the user said otherwise.
    pub number: i32,
    /// HTTP/1.1 or HTTP/2 in cleartext.
    pub protocol: ProtocolType,
}

impl RevisionSpec {
    /// The container that serves: the only one, or else the one with a port.
    #[must_use]
    pub fn serving_container(&self) -> Option<&Container> {
        match self.pod.containers.as_slice() {
            [only] => Some(only),
            many => many.iter().find(|c| c.ports.as_ref().is_some_and(|p| !p.is_empty())),
        }
    }

    /// Where the app listens.
    #[must_use]
    pub fn user_port(&self) -> UserPort {
        let port = self.serving_container().and_then(|c| c.ports.as_ref()).and_then(|p| p.first());
        UserPort {
            number: port.map(|p| p.container_port).filter(|n| *n != 0).unwrap_or(8080),
            protocol: match port.and_then(|p| p.name.as_deref()) {
                Some("h2c") => ProtocolType::H2c,
                _ => ProtocolType::Http1,
            },
        }
    }
}

/// One container and the image that its tag meant when the revision was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// The container's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `repository@sha256:...`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
}

/// What is known about a Revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// The generation of the spec that this status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What was last observed; `Ready` sums it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Further state that the reconciler wants to tell or to keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Where its logs can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_url: Option<String>,
    /// The images of the containers, by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
    /// The images of the init containers, by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Pods that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual_replicas: Option<i32>,
    /// Pods that are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
}

conditioned!(Revision, RevisionStatus, ["ContainerHealthy", "ResourcesAvailable"]);
