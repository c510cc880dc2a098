//! The CustomResourceDefinitions of every kind.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{autoscaling, caching, networking, serving};

/// All CRDs, those that others depend on first.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        caching::Image::crd(),
        networking::Certificate::crd(),
        networking::ClusterDomainClaim::crd(),
        networking::Ingress::crd(),
        networking::ServerlessService::crd(),
        autoscaling::Metric::crd(),
        autoscaling::PodAutoscaler::crd(),
        serving::Configuration::crd(),
        serving::DomainMapping::crd(),
        serving::Revision::crd(),
        serving::Route::crd(),
        serving::Service::crd(),
    ];
    for crd in &mut all {
        let labels = crd.metadata.labels.get_or_insert_with(Default::default);
        labels.insert("app.kubernetes.io/name".into(), "ebb".into());
        labels.insert("knative.dev/crd-install".into(), "true".into());
    }
    all
}

#[cfg(test)]
mod tests;
