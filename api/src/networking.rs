//! `networking.internal.knative.dev`: what the controller asks of the data plane.

mod certificate;
mod domain_claim;
mod ingress;
mod serverless_service;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use certificate::{Certificate, CertificateSpec, CertificateStatus, Http01Challenge};
pub use domain_claim::{ClusterDomainClaim, ClusterDomainClaimSpec};
pub use ingress::{
    HeaderMatch, HttpIngressPath, HttpIngressRuleValue, HttpOption, Ingress, IngressBackendSplit,
    IngressRule, IngressSpec, IngressStatus, IngressTls, IngressVisibility, LoadBalancerIngressStatus,
    LoadBalancerStatus,
};
pub use serverless_service::{ServerlessService, ServerlessServiceSpec, ServerlessServiceStatus, SksMode};

/// The API group of all kinds here.
pub const GROUP: &str = "networking.internal.knative.dev";

/// The application protocol of a revision, as its port's name says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolType {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 in cleartext with prior knowledge.
    H2c,
}

impl ProtocolType {
    /// The name of the Kubernetes Service port: `http` or `http2`.
    #[must_use]
    pub fn service_port_name(self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::H2c => "http2",
        }
    }
}
