//! The certificates of a Route's hosts: one for each that is served to the outside, unless the namespace has one for all.

use ebb_api::config::Configs;
use ebb_api::meta::networking::{CERTIFICATE_TYPE, EXTERNAL_DOMAIN};
use ebb_api::meta::serving as keys;
use ebb_api::names;
use ebb_api::networking::IngressTls;
use ebb_api::serving::RouteStatus;
use jiff::Timestamp;
use kube::ResourceExt;

use super::{Host, Observed};
use crate::certificate::{self, Progress};
use crate::plan::{Plan, controlled_by, label};
use crate::wildcard;

/// Asks for the certificates, notes how far they are, and answers those that can be served. Hosts are told whether clients shall
/// come by TLS.
pub(super) fn certify(
    plan: &mut Plan,
    observed: &Observed<'_>,
    hosts: &mut [Host],
    configs: &Configs,
    status: &mut RouteStatus,
    now: Timestamp,
) -> Vec<IngressTls> {
    let route = observed.route;
    if hosts.iter().all(|host| host.external.is_none()) {
        certificate::not_enabled(status, "TLS is not enabled for cluster-local", now);
    } else if !certificate::wanted(route.metadata.annotations.as_ref(), configs) {
        // Certificates that are there stay: new ones may take their time, and be limited in number.
        certificate::not_enabled(status, "external-domain-tls is not enabled", now);
        return Vec::new();
    }
    let uid = route.metadata.uid.as_deref();
    let domain = configs.domain.domain_for(route.metadata.labels.as_ref());
    let base = format!("route-{}", uid.unwrap_or_default());
    let (mut tls, mut used) = (Vec::new(), Vec::new());
    let mut worst: Option<Progress> = None;
    for host in hosts {
        let Some(external) = host.external.clone() else { continue };
        let (progress, name, secret) = match wildcard::covering(&external, &domain, observed.certificates) {
            Some(found) => {
                let name = found.name_any();
                (Progress::of(Some(found), &name, configs), name, found.spec.secret_name.clone())
            }
            None => {
                let name = match &host.tag {
                    Some(tag) => names::child(&base, &format!("-{tag}")),
                    None => base.clone(),
                };
                let of = (keys::ROUTE, route.name_any());
                let wanted = certificate::make(route, of, &name, &external, &domain, configs);
                let live = observed.certificates.iter().find(|c| c.name_any() == name).map(AsRef::as_ref);
                (Progress::towards(plan, live, &wanted, uid, configs), name.clone(), name)
            }
        };
        used.push(name);
        host.secure = progress.is_secure(configs);
        if progress == Progress::Ready {
            tls.push(IngressTls {
                hosts: vec![external],
                secret_name: secret,
                secret_namespace: route.metadata.namespace.clone(),
            });
        }
        worst = worst.max(Some(progress));
    }
    worst.into_iter().for_each(|worst| worst.mark(status, now));
    for found in observed.certificates {
        let external = label(&found.metadata, CERTIFICATE_TYPE) == Some(EXTERNAL_DOMAIN);
        if external && controlled_by(&found.metadata, uid) && !used.contains(&found.name_any()) {
            plan.note(
                "Deleted",
                format!("Deleted Certificate {:?} of a host that is no more", found.name_any()),
            );
            plan.delete(&**found);
        }
    }
    tls
}

#[cfg(test)]
mod tests;
