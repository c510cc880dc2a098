//! The right of a namespace to a domain name.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a ClusterDomainClaim says; its name is the domain.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "ClusterDomainClaim",
    plural = "clusterdomainclaims",
    derive = "Default",
    derive = "PartialEq",
    doc = "ClusterDomainClaim reserves a domain name, cluster-wide, for one namespace.",
    shortname = "cdc",
    category = "knative-internal",
    category = "networking"
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDomainClaimSpec {
    /// The namespace that may map the domain.
    pub namespace: String,
}
