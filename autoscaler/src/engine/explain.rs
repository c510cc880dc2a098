//! Why there are as many pods as there are, as a user may ask.

use std::time::Duration;

use ebb_api::conditions::Status;
use serde::{Serialize, Serializer};

use crate::core::{Mode, Reason};
use crate::zero::Stage;

/// One decision that changed something.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub at: Duration,
    /// Pods wanted by the load within the bounds.
    pub desired: Option<u32>,
    /// Pods wanted considering the way to zero.
    pub want: Option<u32>,
    /// Pods ready then.
    pub ready: u32,
    /// Who the public endpoints were to be.
    #[serde(serialize_with = "mode")]
    pub mode: Mode,
    /// Whether in panic.
    pub panicking: bool,
    /// Where on the way.
    pub stage: Stage,
    /// Why.
    pub reason: String,
}

/// The answer to "why are there N?".
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The namespace.
    pub namespace: String,
    /// The revision.
    pub revision: String,
    /// Pods wanted by the load within the bounds.
    pub desired: Option<u32>,
    /// The Deployment's replicas.
    pub replicas: Option<u32>,
    /// Pods ready.
    pub ready: u32,
    /// The condition Active.
    pub active: Status,
    /// Where the revision is.
    pub stage: Option<Stage>,
    /// Who the public endpoints are to be.
    #[serde(serialize_with = "mode")]
    pub mode: Mode,
    /// Whether in panic.
    pub panicking: bool,
    /// Spare capacity beyond the target burst capacity.
    pub excess_burst_capacity: Option<i64>,
    /// The last decision in one line.
    pub why: String,
    /// The numbers behind it.
    pub reason: Option<Reason>,
    /// The last decisions that changed something, the newest first.
    pub decisions: Vec<Entry>,
}

fn rfc3339<S: Serializer>(at: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&super::status::timestamp(*at))
}

fn mode<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match mode {
        Mode::Serve => "Serve",
        Mode::Proxy => "Proxy",
    })
}
