//! DomainMapping -> KIngress for a host name of the user's own.

use ebb_api::conditions::{Conditioned, ConditionedObject, READY};
use ebb_api::config::{CLUSTER_DOMAIN, Configs};
use ebb_api::meta::networking::INGRESS_CLASS;
use ebb_api::meta::serving as keys;
use ebb_api::networking::{
    ClusterDomainClaim, ClusterDomainClaimSpec, HttpIngressPath, HttpIngressRuleValue, HttpOption, Ingress,
    IngressBackendSplit, IngressRule, IngressSpec, IngressTls, IngressVisibility,
};
use ebb_api::serving::{Addressable, DomainMapping};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;

use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, controlled_by, owner};

/// What a DomainMapping's plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The DomainMapping.
    pub mapping: &'a DomainMapping,
    /// The claim of its name.
    pub claim: Option<&'a ClusterDomainClaim>,
    /// The Ingress of its name.
    pub ingress: Option<&'a Ingress>,
    /// Whether the object it refers to is there (a Service or Route of Knative, or a Service of Kubernetes).
    pub target: bool,
}

/// Decides about a DomainMapping.
pub fn plan(observed: &Observed<'_>, configs: &Configs, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mapping = observed.mapping;
    if mapping.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let host = mapping.name_any();
    let namespace = mapping.namespace().unwrap_or_default();
    let mut status = mapping.status.clone().unwrap_or_default();
    let scheme =
        if mapping.spec.tls.is_some() { "https" } else { configs.network.default_external_scheme.as_str() };
    let url = configs.network.external_url(scheme, &host);
    status.url = Some(url.clone());
    status.address = Some(Addressable { url: Some(url), ..Addressable::default() });
    status.set_observed_generation(mapping.metadata.generation);
    status.manage(now).initialize();
    {
        let mut manager = status.manage(now);
        if mapping.spec.tls.is_some() {
            let message = "TLS certificate was provided by an existing secret";
            manager.mark_true_because("CertificateProvisioned", "TLSCertificateProvidedExternally", message);
        } else {
            let message = "external-domain-tls is not enabled";
            manager.mark_true_because("CertificateProvisioned", "TLSNotEnabled", message);
        }
    }
    let claimed = match observed.claim {
        Some(claim) if claim.spec.namespace == namespace => true,
        Some(_) => {
            let message = format!("The domain name is already in use by another namespace: {host:?}");
            status.manage(now).mark_false("DomainClaimed", "DomainAlreadyClaimed", &message);
            false
        }
        None if configs.network.autocreate_cluster_domain_claims => {
            let claim = ClusterDomainClaim {
                metadata: ObjectMeta { name: Some(host.clone()), ..ObjectMeta::default() },
                spec: ClusterDomainClaimSpec { namespace: namespace.clone() },
            };
            plan.ensure(None, &claim, Compare::Exists);
            true
        }
        None => {
            let message = format!("no ClusterDomainClaim found for domain {host:?}");
            status.manage(now).mark_false("DomainClaimed", "DomainClaimNotOwned", &message);
            false
        }
    };
    if claimed {
        status.manage(now).mark_true("DomainClaimed");
    }
    let reference = &mapping.spec.reference;
    if observed.target {
        status.manage(now).mark_true("ReferenceResolved");
    } else {
        let message = format!("{} {:?} not found", reference.kind, reference.name);
        status.manage(now).mark_false("ReferenceResolved", "ResolveFailed", &message);
    }
    if claimed && observed.target {
        let wanted = ingress(mapping, configs);
        match observed.ingress {
            Some(live) if !controlled_by(&live.metadata, mapping.metadata.uid.as_deref()) => {
                let message = format!("There is an existing Ingress {host:?} that we do not own.");
                status.manage(now).mark_false("IngressReady", "NotOwned", &message);
            }
            live => {
                plan.ensure(live, &wanted, Compare::Exact(&[]));
                let current = live.is_some_and(|i| {
                    i.spec == wanted.spec
                        && i.status_ref().is_some_and(|s| s.observed_generation() == i.generation())
                });
                if current {
                    status.manage(now).propagate("IngressReady", live.and_then(|i| i.condition(READY)));
                } else {
                    let message = "Ingress has not yet been reconciled.";
                    status.manage(now).mark_unknown("IngressReady", "IngressNotConfigured", message);
                }
            }
        }
    }
    plan.set_status(mapping.status.as_ref(), &status);
    plan
}

/// The target is reached by its cluster-local host, through the same gateway: whatever splits it has apply.
fn ingress(mapping: &DomainMapping, configs: &Configs) -> Ingress {
    let host = mapping.name_any();
    let namespace = mapping.namespace().unwrap_or_default();
    let target = &mapping.spec.reference.name;
    let found = mapping.metadata.annotations.as_ref();
    let class = INGRESS_CLASS.value(found).unwrap_or(&configs.network.ingress_class).to_owned();
    let mut annotations = found.cloned().unwrap_or_default();
    annotations
        .retain(|k, _| !CLIENT_ANNOTATIONS.contains(&k.as_str()) && !INGRESS_CLASS.0.contains(&k.as_str()));
    annotations.insert(INGRESS_CLASS.key().into(), class);
    let mut labels = mapping.metadata.labels.clone().unwrap_or_default();
    labels.insert(keys::DOMAIN_MAPPING_UID.into(), mapping.metadata.uid.clone().unwrap_or_default());
    labels.insert(keys::DOMAIN_MAPPING_NAMESPACE.into(), namespace.clone());
    let split = IngressBackendSplit {
        service_namespace: namespace.clone(),
        service_name: target.clone(),
        service_port: IntOrString::Int(80),
        percent: 100,
        append_headers: BTreeMap::new(),
    };
    let path = HttpIngressPath {
        rewrite_host: Some(format!("{target}.{namespace}.svc.{CLUSTER_DOMAIN}")),
        splits: vec![split],
        append_headers: BTreeMap::from([("K-Original-Host".to_owned(), host.clone())]),
        ..HttpIngressPath::default()
    };
    Ingress {
        metadata: ObjectMeta {
            name: Some(host.clone()),
            namespace: Some(namespace),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(owner(mapping)),
            ..ObjectMeta::default()
        },
        spec: IngressSpec {
            rules: vec![IngressRule {
                hosts: vec![host.clone()],
                visibility: IngressVisibility::ExternalIP,
                http: Some(HttpIngressRuleValue { paths: vec![path] }),
            }],
            tls: mapping
                .spec
                .tls
                .iter()
                .map(|t| IngressTls {
                    hosts: vec![host.clone()],
                    secret_name: t.secret_name.clone(),
                    secret_namespace: mapping.namespace(),
                })
                .collect(),
            http_option: Some(HttpOption::Enabled),
        },
        status: None,
    }
}

#[cfg(test)]
mod tests;
