//! The PodAutoscaler: how many pods one revision gets.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::conditions::{Condition, conditioned};
use crate::networking::ProtocolType;

/// Whether a route leads to the scaled object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Reachability {
    /// Not known yet, as while it is being activated.
    #[default]
    #[serde(rename = "")]
    Unknown,
    /// A route leads to it.
    Reachable,
    /// No route leads to it: bounds such as min-scale do not count.
    Unreachable,
}

impl Reachability {
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it so
    fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }
}

/// What a PodAutoscaler wants; the details are in its annotations.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autoscaling.internal.knative.dev",
    version = "v1alpha1",
    kind = "PodAutoscaler",
    plural = "podautoscalers",
    namespaced,
    status = "PodAutoscalerStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "PodAutoscaler asks for the right number of pods of one scalable object.",
    shortname = "kpa",
    shortname = "pa",
    category = "knative-internal",
    category = "autoscaling",
    printcolumn(name = "DesiredScale", type_ = "integer", json_path = ".status.desiredScale"),
    printcolumn(name = "ActualScale", type_ = "integer", json_path = ".status.actualScale"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PodAutoscalerSpec {
    /// Requests that one pod may have in flight; 0 for no limit.
    #[serde(default)]
    pub container_concurrency: i64,
    /// The object with a scale subresource: the revision's Deployment.
    #[schemars(schema_with = "crate::schema::object_reference")]
    pub scale_target_ref: ObjectReference,
    /// Whether a route leads to it.
    #[serde(default, skip_serializing_if = "Reachability::is_unknown")]
    pub reachability: Reachability,
    /// The revision's protocol.
    #[serde(default)]
    pub protocol_type: ProtocolType,
}

/// What is known about a PodAutoscaler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodAutoscalerStatus {
    /// The generation of the spec that this status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What was last observed; `Ready` sums it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Further state that the reconciler wants to tell or to keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The public Service of the revision.
    #[serde(default)]
    pub service_name: String,
    /// The Service that provides the revision's load.
    #[serde(default)]
    pub metrics_service_name: String,
    /// Pods wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_scale: Option<i32>,
    /// Pods ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual_scale: Option<i32>,
}

conditioned!(PodAutoscaler, PodAutoscalerStatus, ["Active", "SKSReady", "ScaleTargetInitialized"]);
