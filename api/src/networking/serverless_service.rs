//! The ServerlessService (SKS): a revision's Services, led to pods or to activators.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::ProtocolType;
use crate::conditions::{Condition, conditioned};

/// Where the public Service leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SksMode {
    /// To the revision's pods.
    Serve,
    /// To activators.
    #[default]
    Proxy,
}

/// What a ServerlessService wants.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "ServerlessService",
    plural = "serverlessservices",
    namespaced,
    status = "ServerlessServiceStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "ServerlessService keeps a revision's public Service pointed either at its own pods or at activators.",
    shortname = "sks",
    category = "knative-internal",
    category = "networking",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Activators", type_ = "integer", json_path = ".spec.numActivators"),
    printcolumn(name = "ServiceName", type_ = "string", json_path = ".status.serviceName"),
    printcolumn(name = "PrivateServiceName", type_ = "string", json_path = ".status.privateServiceName"),
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
pub struct ServerlessServiceSpec {
    /// Where the public Service leads.
    #[serde(default)]
    pub mode: SksMode,
    /// The object that is made serverless: the revision's Deployment.
    #[schemars(schema_with = "crate::schema::object_reference")]
    pub object_ref: ObjectReference,
    /// The revision's protocol.
    #[serde(default)]
    pub protocol_type: ProtocolType,
    /// How many activators back the revision; 0 means all.
    #[serde(default)]
    pub num_activators: i32,
}

/// What is known about a ServerlessService.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerlessServiceStatus {
    /// The generation of the spec that this status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What was last observed; `Ready` sums it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Further state that the reconciler wants to tell or to keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The public Service: pods or activators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// The private Service: always the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_service_name: Option<String>,
}

conditioned!(ServerlessService, ServerlessServiceStatus, ["EndpointsPopulated"]);
