//! The Metric: whose load is to be collected.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::conditions::{Condition, conditioned};

/// What a Metric wants.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autoscaling.internal.knative.dev",
    version = "v1alpha1",
    kind = "Metric",
    plural = "metrics",
    namespaced,
    status = "MetricStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "Metric asks the autoscaler to collect the load of one revision.",
    category = "knative-internal",
    category = "autoscaling",
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
pub struct MetricSpec {
    /// The stable window in nanoseconds, as Go's `time.Duration` is written.
    pub stable_window: i64,
    /// The panic window in nanoseconds.
    pub panic_window: i64,
    /// The Service whose pods report.
    pub scrape_target: String,
}

/// What is known about a Metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// The generation of the spec that this status speaks about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What was last observed; `Ready` sums it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Further state that the reconciler wants to tell or to keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

conditioned!(Metric, MetricStatus, []);
