//! Route -> KIngress and the Services of its name, from the traffic it asks for.

mod ingress;
mod rollout;
mod tls;
mod traffic;

use ebb_api::conditions::{Conditioned, ConditionedObject, READY};
use ebb_api::config::{CLUSTER_DOMAIN, Configs};
use ebb_api::meta::networking::{CLUSTER_LOCAL, VISIBILITY};
use ebb_api::meta::serving as keys;
use ebb_api::names;
use ebb_api::networking::{Certificate, Ingress, IngressTls};
use ebb_api::serving::{Addressable, Configuration, Revision, Route, RouteStatus, TrafficTarget};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, controlled_by, label, owner};

pub use rollout::Rollout;
pub use traffic::{Problem, Resolved, Target};

const NOT_RECONCILED: &str = "Ingress has not yet been reconciled.";

/// What a Route's plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The Route.
    pub route: &'a Route,
    /// Configurations that it names, and those of the revisions that it names.
    pub configurations: &'a BTreeMap<String, Arc<Configuration>>,
    /// Revisions that it names, those that are the latest ready ones of these Configurations, and those that a rollout has under way.
    pub revisions: &'a BTreeMap<String, Arc<Revision>>,
    /// The Ingress of its name.
    pub ingress: Option<&'a Ingress>,
    /// Services of the names it wants, whoever owns them, and those that it owns.
    pub services: &'a BTreeMap<String, Arc<Service>>,
    /// The Certificates that it owns, those of the names it wants, whoever owns them, and the wildcards of the namespace.
    pub certificates: &'a [Arc<Certificate>],
    /// The namespace of the components.
    pub system_namespace: &'a str,
}

/// A Route's names and hosts: its own under `None`, and one for each tag.
pub(crate) struct Host {
    pub(crate) tag: Option<String>,
    /// The name of the placeholder Service, which is the first label of the cluster-local host.
    pub(crate) name: String,
    pub(crate) external: Option<String>,
    /// Whether clients from outside shall come by TLS.
    pub(crate) secure: bool,
}

impl Host {
    fn local(&self, namespace: &str) -> String {
        format!("{}.{namespace}.svc.{CLUSTER_DOMAIN}", self.name)
    }

    fn url(&self, namespace: &str, configs: &Configs) -> String {
        match &self.external {
            Some(host) if self.secure => configs.network.external_url("https", host),
            Some(host) => configs.network.external_url(&configs.network.default_external_scheme, host),
            None => format!("http://{}", self.local(namespace)),
        }
    }

    /// What is wrong with the host that the templates made.
    fn problem(&self) -> Option<String> {
        let host = self.external.as_deref()?;
        let problems = names::dns1123_subdomain(host);
        let all = || format!("domain name error: invalid domain name {host:?}: {}", problems.join(", "));
        (!problems.is_empty()).then(all)
    }
}

/// Decides about a Route.
pub fn plan(observed: &Observed<'_>, configs: &Configs, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let route = observed.route;
    if route.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let namespace = route.namespace().unwrap_or_default();
    let mut status = route.status.clone().unwrap_or_default();
    status.manage(now).initialize();
    if status.observed_generation() != route.metadata.generation {
        // What was said of the Ingress was about what was asked before.
        status.manage(now).mark_unknown("IngressReady", "IngressNotConfigured", NOT_RECONCILED);
    }
    status.set_observed_generation(route.metadata.generation);

    let mut hosts = hosts(observed, configs);
    if let Some(bad) = hosts.iter().find_map(Host::problem) {
        status.manage(now).mark_false("AllTrafficAssigned", "ErrorConfig", &bad);
        plan.set_status(route.status.as_ref(), &status);
        return plan;
    }
    let tls = tls::certify(&mut plan, observed, &mut hosts, configs, &mut status, now);
    if let Some(own) = hosts.first() {
        status.url = Some(own.url(&namespace, configs));
        let url = Some(format!("http://{}", own.local(&namespace)));
        status.address = Some(Addressable { url, ..Addressable::default() });
    }

    match traffic::resolve(route, observed.configurations, observed.revisions) {
        // What was served before goes on being served.
        Err(problem) => {
            problem.mark(&mut status, now);
            let said =
                |status: &RouteStatus| status.condition("AllTrafficAssigned").and_then(|c| c.message.clone());
            if status.is_false("AllTrafficAssigned") && route.status.as_ref().and_then(said) != said(&status)
            {
                plan.warn("TrafficNotAssigned", said(&status).unwrap_or_default());
            }
            // Without an Ingress there is nothing to wait for from the gateway yet.
            if observed.ingress.is_none() {
                status.manage(now).mark_unknown("IngressReady", "", "");
            }
        }
        Ok(resolved) => {
            status.manage(now).mark_true("AllTrafficAssigned");
            status.traffic = status_traffic(&resolved, &Rollout::default(), &hosts, &namespace, configs);
            let owned = placeholders(&mut plan, observed, &hosts, &mut status, now);
            if owned {
                serve(&mut plan, observed, &resolved, (&hosts, tls), configs, &mut status, now);
            }
        }
    }
    if status.is_true(READY) && !route.status.as_ref().is_some_and(|s| s.is_true(READY)) {
        plan.note("Ready", format!("{} is served", status.url.as_deref().unwrap_or_default()));
    }
    plan.set_status(route.status.as_ref(), &status);
    plan
}

/// Writes the Ingress and takes over what the gateway says.
fn serve(
    plan: &mut Plan,
    observed: &Observed<'_>,
    resolved: &Resolved,
    (hosts, tls): (&[Host], Vec<IngressTls>),
    configs: &Configs,
    status: &mut RouteStatus,
    now: Timestamp,
) {
    let route = observed.route;
    let settled = route.status.as_ref().is_some_and(|s| s.is_true("IngressReady"));
    let is_there = |name: &str| observed.revisions.contains_key(name);
    let (rollout, next) = rollout::next(route, observed.ingress, resolved, configs, (is_there, settled), now);
    let wanted = ingress::make(route, resolved, hosts, tls, &rollout, configs);
    match observed.ingress {
        Some(live) if !controlled_by(&live.metadata, route.metadata.uid.as_deref()) => {
            let message = format!("There is an existing Ingress {:?} that we do not own.", live.name_any());
            status.manage(now).mark_false("IngressReady", "NotOwned", &message);
            return;
        }
        live => {
            if live.is_none() {
                plan.note("Created", format!("Created Ingress {:?}", route.name_any()));
            }
            plan.ensure(live, &wanted, Compare::Exact(&[]));
        }
    }
    let current = observed.ingress.is_some_and(|i| {
        i.spec == wanted.spec && i.status_ref().is_some_and(|s| s.observed_generation() == i.generation())
    });
    tell(plan, observed.ingress.and_then(Rollout::of).as_ref(), &rollout);
    if !rollout.is_done() {
        let message = "A gradual rollout of the latest revision(s) is in progress.";
        status.manage(now).mark_unknown("IngressReady", "RolloutInProgress", message);
        let namespace = route.namespace().unwrap_or_default();
        status.traffic = status_traffic(resolved, &rollout, hosts, &namespace, configs);
        next.into_iter().for_each(|after| plan.again(after));
    } else if current {
        status.manage(now).propagate("IngressReady", observed.ingress.and_then(|i| i.condition(READY)));
    } else {
        status.manage(now).mark_unknown("IngressReady", "IngressNotConfigured", NOT_RECONCILED);
    }
}

/// Tells the user when traffic begins to move to another revision, and when all of it has.
fn tell(plan: &mut Plan, before: Option<&Rollout>, now: &Rollout) {
    let Some(before) = before else { return };
    let newest = |rollout: &Rollout| -> BTreeSet<String> {
        let all = rollout.configurations.iter().filter_map(|f| f.revisions.last());
        all.map(|share| share.revision_name.clone()).collect()
    };
    let (from, to) = (newest(before), newest(now));
    let join = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    if !now.is_done() && (before.is_done() || from != to) {
        plan.note("RolloutStarted", format!("Traffic moves gradually to {}", join(&to)));
    } else if now.is_done() && !before.is_done() {
        plan.note("RolloutFinished", format!("All traffic of the latest revision goes to {}", join(&to)));
    } else if from != to && !to.is_empty() {
        plan.note("TrafficMoved", format!("Traffic of the latest revision goes to {}", join(&to)));
    }
}

fn hosts(observed: &Observed<'_>, configs: &Configs) -> Vec<Host> {
    let route = observed.route;
    let (name, namespace) = (route.name_any(), route.namespace().unwrap_or_default());
    let domain = configs.domain.domain_for(route.metadata.labels.as_ref());
    let local = label(&route.metadata, VISIBILITY) == Some(CLUSTER_LOCAL)
        || domain == format!("svc.{CLUSTER_DOMAIN}");
    let tags: BTreeSet<&str> =
        route.spec.traffic.iter().filter_map(|t| t.tag.as_deref()).filter(|t| !t.is_empty()).collect();
    std::iter::once(None)
        .chain(tags.into_iter().map(Some))
        .map(|tag| {
            let own = tag.map_or_else(|| name.clone(), |t| configs.network.tag_name(&name, t));
            // A single tag can be kept inside by a label on its Service.
            let hidden = local
                || observed
                    .services
                    .get(&own)
                    .is_some_and(|s| label(&s.metadata, VISIBILITY).is_some_and(|v| !v.is_empty()));
            let host = || {
                let (labels, annotations) =
                    (route.metadata.labels.as_ref(), route.metadata.annotations.as_ref());
                configs.network.host(&own, &namespace, &domain, labels, annotations)
            };
            Host { tag: tag.map(str::to_owned), external: (!hidden).then(host), name: own, secure: false }
        })
        .collect()
}

fn status_traffic(
    resolved: &Resolved,
    rollout: &Rollout,
    hosts: &[Host],
    namespace: &str,
    configs: &Configs,
) -> Vec<TrafficTarget> {
    let mut traffic = Vec::new();
    for target in &resolved.targets {
        let tag = target.tag.clone();
        let url = hosts.iter().find(|h| tag.is_some() && h.tag == tag).map(|h| h.url(namespace, configs));
        let of = |revision: &str, percent: i64| TrafficTarget {
            url: url.clone(),
            tag: tag.clone(),
            revision_name: Some(revision.to_owned()),
            configuration_name: None,
            latest_revision: Some(target.latest),
            percent: Some(percent),
        };
        let moving = rollout.shares(tag.as_deref(), target.configuration.as_deref());
        match moving.filter(|_| target.latest) {
            Some(shares) => traffic.extend(shares.iter().map(|s| of(&s.revision_name, s.percent))),
            None => traffic.push(of(&target.revision, target.percent)),
        }
    }
    traffic
}

/// The Services by which clients inside the cluster reach the Route and its tags. Whether all names are the Route's to have.
fn placeholders(
    plan: &mut Plan,
    observed: &Observed<'_>,
    hosts: &[Host],
    status: &mut RouteStatus,
    now: Timestamp,
) -> bool {
    let route = observed.route;
    let uid = route.metadata.uid.as_deref();
    for host in hosts {
        let live = observed.services.get(&host.name).map(AsRef::as_ref);
        if live.is_some_and(|s| !controlled_by(&s.metadata, uid)) {
            let message =
                format!("There is an existing placeholder Service {:?} that we do not own.", host.name);
            status.manage(now).mark_false("IngressReady", "NotOwned", &message);
            return false;
        }
        if live.is_none() {
            plan.note("Created", format!("Created placeholder service {:?}", host.name));
        }
        plan.ensure(live, &placeholder(route, host, observed.system_namespace), Compare::Covers);
    }
    for (name, service) in observed.services {
        if controlled_by(&service.metadata, uid) && !hosts.iter().any(|h| h.name == *name) {
            plan.delete(&**service);
        }
    }
    true
}

fn placeholder(route: &Route, host: &Host, system_namespace: &str) -> Service {
    let mut labels = route.metadata.labels.clone().unwrap_or_default();
    // Visibility can be set on a placeholder by itself, so it is not written there.
    labels.remove(VISIBILITY);
    labels.insert(keys::ROUTE.into(), route.name_any());
    let mut annotations = route.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|k, _| !CLIENT_ANNOTATIONS.contains(&k.as_str()));
    Service {
        metadata: ObjectMeta {
            name: Some(host.name.clone()),
            namespace: route.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(owner(route)),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ExternalName".into()),
            external_name: Some(format!("gateway-internal.{system_namespace}.svc.{CLUSTER_DOMAIN}")),
            session_affinity: Some("None".into()),
            ports: Some(vec![ServicePort {
                name: Some("http2".into()),
                port: 80,
                protocol: Some("TCP".into()),
                target_port: Some(IntOrString::Int(80)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests;
