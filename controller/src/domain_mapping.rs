//! DomainMapping -> KIngress for a host name of the user's own.
//!
//! A host belongs to the namespace that a ClusterDomainClaim of its name says. Where `autocreate-cluster-domain-claims` lets a mapping make
//! its claim, that carries the mapping's uid; when such a claim's mapping is gone, so is the claim. Nothing has to wait for that: a
//! mapping is deleted at once, also where no controller runs.

use ebb_api::conditions::{Conditioned, ConditionedObject, READY};
use ebb_api::config::{CLUSTER_DOMAIN, Configs};
use ebb_api::meta::networking::{CERTIFICATE_CLASS, INGRESS_CLASS};
use ebb_api::meta::serving as keys;
use ebb_api::names;
use ebb_api::networking::{
    Certificate, ClusterDomainClaim, ClusterDomainClaimSpec, HttpIngressPath, HttpIngressRuleValue, Ingress,
    IngressBackendSplit, IngressRule, IngressSpec, IngressTls, IngressVisibility,
};
use ebb_api::serving::{Addressable, DomainMapping, DomainMappingStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;

use crate::certificate::{self, Progress};
use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, controlled_by, label, owner};

/// What a DomainMapping's plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The DomainMapping.
    pub mapping: &'a DomainMapping,
    /// The claim of its name.
    pub claim: Option<&'a ClusterDomainClaim>,
    /// The Ingress of its name.
    pub ingress: Option<&'a Ingress>,
    /// The Certificate of its name.
    pub certificate: Option<&'a Certificate>,
    /// What it refers to.
    pub target: Target<'a>,
}

/// What a DomainMapping refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// There is no such object.
    Missing,
    /// Only Services and Routes can be mapped.
    Unknown,
    /// A Service of Kubernetes.
    Service,
    /// A Service or Route of Knative, by its address.
    Address(Option<&'a str>),
}

/// The name of a mapping's Ingress, and of its Certificate.
pub fn child_name(mapping: &str) -> String {
    names::child(mapping, "")
}

/// Deletes a claim that was made for a mapping that is no more. `mapping` is the one that has its name and namespace.
pub fn release(claim: &ClusterDomainClaim, mapping: Option<&DomainMapping>) -> Plan {
    let mut plan = Plan::default();
    if mapping.is_none() && label(&claim.metadata, keys::DOMAIN_MAPPING_UID).is_some() {
        plan.delete(claim);
    }
    plan
}

/// Decides about a DomainMapping.
pub fn plan(observed: &Observed<'_>, configs: &Configs, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mapping = observed.mapping;
    if mapping.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = mapping.status.clone().unwrap_or_default();
    status.manage(now).initialize();
    if status.observed_generation() != mapping.metadata.generation {
        status.manage(now).mark_unknown("IngressReady", "IngressNotConfigured", NOT_RECONCILED);
    }
    status.set_observed_generation(mapping.metadata.generation);
    let mut secure = configs.network.default_external_scheme == "https";
    if claimed(&mut plan, observed, configs, &mut status, now) {
        let (tls, redirects) = certify(&mut plan, observed, configs, &mut status, &mut secure, now);
        match resolve(observed) {
            Ok(()) => {
                status.manage(now).mark_true("ReferenceResolved");
                let wanted = ingress(mapping, tls, redirects, configs);
                serve(&mut plan, observed, &wanted, &mut status, now);
            }
            Err(message) => {
                status.manage(now).mark_false("ReferenceResolved", "ResolveFailed", &message);
            }
        }
    }
    let url = configs.network.external_url(if secure { "https" } else { "http" }, &mapping.name_any());
    status.url = Some(url.clone());
    status.address = Some(Addressable { url: Some(url), ..Addressable::default() });
    if status.is_true(READY) && !mapping.status.as_ref().is_some_and(|s| s.is_true(READY)) {
        plan.note("Ready", format!("{} is served", status.url.as_deref().unwrap_or_default()));
    }
    plan.set_status(mapping.status.as_ref(), &status);
    plan
}

const NOT_RECONCILED: &str = "Ingress has not yet been reconciled.";

/// Whether the host is the mapping's to serve.
fn claimed(
    plan: &mut Plan,
    observed: &Observed<'_>,
    configs: &Configs,
    status: &mut DomainMappingStatus,
    now: Timestamp,
) -> bool {
    let host = observed.mapping.name_any();
    let namespace = observed.mapping.namespace().unwrap_or_default();
    let refused = match observed.claim {
        Some(claim) if claim.spec.namespace == namespace => None,
        Some(_) => Some("The domain name is already in use by another DomainMapping".to_owned()),
        None if configs.network.autocreate_cluster_domain_claims => {
            let uid = observed.mapping.metadata.uid.clone().unwrap_or_default();
            let claim = ClusterDomainClaim {
                metadata: ObjectMeta {
                    name: Some(host.clone()),
                    labels: Some(BTreeMap::from([(keys::DOMAIN_MAPPING_UID.to_owned(), uid)])),
                    ..ObjectMeta::default()
                },
                spec: ClusterDomainClaimSpec { namespace },
            };
            plan.note("Created", format!("Created ClusterDomainClaim {host:?}"));
            plan.ensure(None, &claim, Compare::Exists);
            // Somebody else's may be there first: what comes back by the watch counts.
            status.manage(now).mark_unknown("DomainClaimed", "Claiming", "The domain is being claimed.");
            return false;
        }
        None => Some(format!(
            "no ClusterDomainClaim found for domain {host:?}: have an administrator make one for this namespace, or set autocreate-cluster-domain-claims in config-network"
        )),
    };
    match refused {
        None => status.manage(now).mark_true("DomainClaimed"),
        Some(message) => status.manage(now).mark_false("DomainClaimed", "DomainAlreadyClaimed", &message),
    };
    status.is_true("DomainClaimed")
}

/// The certificate of the host, if it can be served, and whether plain HTTP may be redirected to it.
fn certify(
    plan: &mut Plan,
    observed: &Observed<'_>,
    configs: &Configs,
    status: &mut DomainMappingStatus,
    secure: &mut bool,
    now: Timestamp,
) -> (Option<IngressTls>, bool) {
    let mapping = observed.mapping;
    let host = mapping.name_any();
    let tls = |secret: String| IngressTls {
        hosts: vec![host.clone()],
        secret_name: secret,
        secret_namespace: mapping.namespace(),
    };
    if let Some(own) = &mapping.spec.tls {
        let message = "TLS certificate was provided externally";
        let mut manager = status.manage(now);
        manager.mark_true_because("CertificateProvisioned", "CertificateExternallyProvided", message);
        *secure = true;
        return (Some(tls(own.secret_name.clone())), true);
    }
    if !certificate::wanted(mapping.metadata.annotations.as_ref(), configs) {
        certificate::not_enabled(status, "external-domain-tls is not enabled", now);
        return (None, false);
    }
    let name = child_name(&host);
    let of = (keys::DOMAIN_MAPPING_UID, mapping.metadata.uid.clone().unwrap_or_default());
    let wanted = certificate::make(mapping, of, &name, &host, &host, configs);
    let uid = mapping.metadata.uid.as_deref();
    let progress = Progress::towards(plan, observed.certificate, &wanted, uid, configs);
    progress.mark(status, now);
    *secure |= progress.is_secure(configs);
    ((progress == Progress::Ready).then(|| tls(name)), true)
}

/// Whether what is referred to can be served, or why not.
fn resolve(observed: &Observed<'_>) -> Result<(), String> {
    let reference = &observed.mapping.spec.reference;
    let namespace = observed.mapping.namespace().unwrap_or_default();
    let (kind, name) = (&reference.kind, &reference.name);
    if reference.namespace.as_deref().is_some_and(|other| !other.is_empty() && other != namespace) {
        return Err(format!("{kind} {name:?} must be in same namespace as DomainMapping, {namespace:?}"));
    }
    match observed.target {
        Target::Missing => Err(format!("{kind} {name:?} not found")),
        Target::Unknown => Err(format!(
            "a {kind} of {:?} cannot be mapped: refer to a Service or Route of serving.knative.dev, or to a Service of Kubernetes",
            reference.api_version.as_deref().unwrap_or_default()
        )),
        Target::Address(None) => Err(format!("address not set for {kind} {name:?}: it is not ready yet")),
        Target::Service | Target::Address(Some(_)) => Ok(()),
    }
}

/// Writes the Ingress and takes over what the gateway says.
fn serve(
    plan: &mut Plan,
    observed: &Observed<'_>,
    wanted: &Ingress,
    status: &mut DomainMappingStatus,
    now: Timestamp,
) {
    let name = wanted.name_any();
    let live = observed.ingress;
    if live.is_some_and(|i| !controlled_by(&i.metadata, observed.mapping.metadata.uid.as_deref())) {
        let message = format!("There is an existing Ingress {name:?} that we do not own.");
        status.manage(now).mark_false("IngressReady", "NotOwned", &message);
        return;
    }
    if live.is_none() {
        plan.note("Created", format!("Created Ingress {name:?}"));
    }
    plan.ensure(live, wanted, Compare::Exact(&[]));
    let current = live.is_some_and(|i| {
        i.spec == wanted.spec && i.status_ref().is_some_and(|s| s.observed_generation() == i.generation())
    });
    if current {
        status.manage(now).propagate("IngressReady", live.and_then(|i| i.condition(READY)));
    } else {
        status.manage(now).mark_unknown("IngressReady", "IngressNotConfigured", NOT_RECONCILED);
    }
}

/// The target is reached by its cluster-local host, through the same gateway: whatever splits it has apply.
fn ingress(mapping: &DomainMapping, tls: Option<IngressTls>, redirects: bool, configs: &Configs) -> Ingress {
    let host = mapping.name_any();
    let namespace = mapping.namespace().unwrap_or_default();
    let target = &mapping.spec.reference.name;
    let found = mapping.metadata.annotations.as_ref();
    let class = INGRESS_CLASS.value(found).unwrap_or(&configs.network.ingress_class).to_owned();
    let mut annotations = found.cloned().unwrap_or_default();
    annotations.retain(|key, _| {
        !CLIENT_ANNOTATIONS.contains(&key.as_str())
            && !INGRESS_CLASS.0.contains(&key.as_str())
            && !CERTIFICATE_CLASS.0[1..].contains(&key.as_str())
    });
    annotations.insert(INGRESS_CLASS.key().into(), class);
    let mut labels = mapping.metadata.labels.clone().unwrap_or_default();
    labels.insert(keys::DOMAIN_MAPPING_UID.into(), mapping.metadata.uid.clone().unwrap_or_default());
    labels.insert(keys::DOMAIN_MAPPING_NAMESPACE.into(), namespace.clone());
    let split = IngressBackendSplit {
        service_namespace: namespace.clone(),
        service_name: target.clone(),
        service_port: IntOrString::Int(80),
        percent: 100,
        append_headers: BTreeMap::from([("K-Original-Host".to_owned(), host.clone())]),
    };
    let path = HttpIngressPath {
        rewrite_host: Some(format!("{target}.{namespace}.svc.{CLUSTER_DOMAIN}")),
        splits: vec![split],
        ..HttpIngressPath::default()
    };
    Ingress {
        metadata: ObjectMeta {
            name: Some(child_name(&host)),
            namespace: Some(namespace),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(owner(mapping)),
            ..ObjectMeta::default()
        },
        spec: IngressSpec {
            rules: vec![IngressRule {
                hosts: vec![host],
                visibility: IngressVisibility::ExternalIP,
                http: Some(HttpIngressRuleValue { paths: vec![path] }),
            }],
            tls: tls.into_iter().collect(),
            http_option: Some(certificate::http_option(found, redirects, configs)),
        },
        status: None,
    }
}

#[cfg(test)]
mod tests;
