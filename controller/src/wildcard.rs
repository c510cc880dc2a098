//! Namespace -> one Certificate for all its hosts of a domain, where `namespace-wildcard-cert-selector` chooses it.

use ebb_api::config::Configs;
use ebb_api::meta::networking::{CERTIFICATE_CLASS, WILDCARD_DOMAIN};
use ebb_api::networking::{Certificate, CertificateSpec};
use ebb_api::selector;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::plan::{Compare, Plan, controlled_by, label};

/// The Certificates of a namespace that are the wildcard of some domain have this entry in the index.
pub(crate) const ENTRY: &str = "wildcard";

/// Decides about a namespace; `certificates` are those in it that are the wildcard of a domain, whoever made them.
pub fn plan(namespace: &Namespace, certificates: &[Arc<Certificate>], configs: &Configs) -> Plan {
    let mut plan = Plan::default();
    if namespace.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let uid = namespace.metadata.uid.as_deref();
    let labels = namespace.metadata.labels.as_ref();
    let chosen = configs
        .network
        .namespace_wildcard_cert_selector
        .as_ref()
        .is_some_and(|wanted| selector::matches(wanted, labels));
    let domains: Vec<&str> = configs.domain.with_wildcard().filter(|_| chosen).collect();
    for domain in &domains {
        let host = configs.network.host("*", &namespace.name_any(), domain, None, None);
        // With another template the hosts of a namespace have no wildcard in common.
        if !host.starts_with("*.") {
            plan.warn(
                "NoWildcard",
                format!(
                    "domain-template makes {host:?} of *: a wildcard certificate needs {{{{.Name}}}}. first"
                ),
            );
            continue;
        }
        let ours = certificates.iter().find(|c| {
            controlled_by(&c.metadata, uid) && label(&c.metadata, WILDCARD_DOMAIN) == Some(*domain)
        });
        // A user's own is as good.
        if ours.is_none() && certificates.iter().any(|c| c.spec.dns_names.contains(&host)) {
            continue;
        }
        plan.ensure(
            ours.map(AsRef::as_ref),
            &certificate(namespace, domain, &host, configs),
            Compare::Exact(&[]),
        );
    }
    for found in certificates.iter().filter(|c| controlled_by(&c.metadata, uid)) {
        if !label(&found.metadata, WILDCARD_DOMAIN).is_some_and(|domain| domains.contains(&domain)) {
            plan.delete(&**found);
        }
    }
    plan
}

fn certificate(namespace: &Namespace, domain: &str, host: &str, configs: &Configs) -> Certificate {
    let found = namespace.metadata.annotations.as_ref();
    let class = CERTIFICATE_CLASS.value(found).unwrap_or(&configs.network.certificate_class).to_owned();
    let name = host.trim_start_matches("*.").to_owned();
    let owner = namespace.controller_owner_ref(&()).into_iter();
    Certificate {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: namespace.metadata.name.clone(),
            labels: Some(BTreeMap::from([(WILDCARD_DOMAIN.to_owned(), domain.to_owned())])),
            annotations: Some(BTreeMap::from([(CERTIFICATE_CLASS.key().to_owned(), class)])),
            // A namespace goes with all that is in it anyway: nothing has to wait for that.
            owner_references: Some(
                owner.map(|o| OwnerReference { block_owner_deletion: None, ..o }).collect(),
            ),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec { dns_names: vec![host.to_owned()], domain: None, secret_name: name },
        status: None,
    }
}

/// The wildcard Certificate of a domain, among `certificates`, that is for a host, too.
pub(crate) fn covering<'a>(
    host: &str,
    domain: &str,
    certificates: &'a [Arc<Certificate>],
) -> Option<&'a Certificate> {
    let (_, rest) = host.split_once('.')?;
    let covers = |c: &&Arc<Certificate>| {
        label(&c.metadata, WILDCARD_DOMAIN) == Some(domain)
            && c.spec.dns_names.iter().any(|name| name.strip_prefix("*.") == Some(rest))
    };
    certificates.iter().find(covers).map(AsRef::as_ref)
}

#[cfg(test)]
mod tests;
