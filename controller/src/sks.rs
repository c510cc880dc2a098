//! ServerlessService -> a public Service whose endpoints are either the revision's pods or activators, and a private Service whose
//! endpoints are always the pods.
//!
//! The public Service has no selector: its EndpointSlices are written here, from the slices of the private Service and of
//! the activators. Without a ready pod it leads to activators whatever the mode says, and without an activator to
//! the pods, so that it is empty only if there is nothing at all. Where Kubernetes takes neither a pod nor an activator for ready, it has
//! most likely lost sight of nodes that work: it leads to the activators that are not ready either, since they try each pod before they use it.

use ebb_api::conditions::Conditioned;
use ebb_api::meta::networking as keys;
use ebb_api::networking::{ProtocolType, ServerlessService, SksMode};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, controlled_by, owner};

/// Label: the Service of an EndpointSlice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const PER_SLICE: usize = 1000;

/// What a ServerlessService's plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The ServerlessService.
    pub sks: &'a ServerlessService,
    /// The selector of the pods, if the Deployment is there.
    pub selector: Option<&'a BTreeMap<String, String>>,
    /// The Service of its name.
    pub public: Option<&'a Service>,
    /// The Service of its name with `-private`.
    pub private: Option<&'a Service>,
    /// The slices of the public Service.
    pub public_slices: &'a [Arc<EndpointSlice>],
    /// The slices of the private Service.
    pub private_slices: &'a [Arc<EndpointSlice>],
    /// The slices of the activators' Service.
    pub activator_slices: &'a [Arc<EndpointSlice>],
}

/// The name of the private Service.
pub fn private_name(sks: &str) -> String {
    ebb_api::names::child(sks, "-private")
}

/// Decides about a ServerlessService.
pub fn plan(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let sks = observed.sks;
    if sks.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let uid = sks.metadata.uid.as_deref();
    let name = sks.name_any();
    let mut status = sks.status.clone().unwrap_or_default();
    status.manage(now).initialize();
    for live in [observed.public, observed.private].into_iter().flatten() {
        if !controlled_by(&live.metadata, uid) {
            let message = format!("Resource {} of type Service is not owned by SKS", live.name_any());
            status.manage(now).mark_false("EndpointsPopulated", "NotOwned", &message);
            plan.set_status(sks.status.as_ref(), &status);
            return plan;
        }
    }

    plan.ensure(observed.public, &public_service(sks), Compare::Covers);
    status.service_name = Some(name.clone());
    if let Some(selector) = observed.selector {
        plan.ensure(observed.private, &private_service(sks, selector), Compare::Covers);
        status.private_service_name = Some(private_name(&name));
    }

    let pods = ready(observed.private_slices);
    let mut activators = ready(observed.activator_slices);
    if activators.is_empty() && pods.is_empty() {
        activators = standing(observed.activator_slices);
    }
    let activators = subset(activators, &name, sks.spec.num_activators);
    let to_pods = match sks.spec.mode {
        _ if activators.is_empty() => true,
        _ if pods.is_empty() => false,
        SksMode::Serve => true,
        SksMode::Proxy => false,
    };
    slices(&mut plan, sks, if to_pods { &pods } else { &activators }, observed.public_slices);

    let mut conditions = status.manage(now);
    if pods.is_empty() {
        let message = if observed.selector.is_none() { "the Deployment is not there yet" } else { "" };
        conditions.mark_unknown("EndpointsPopulated", "NoHealthyBackends", message);
    } else {
        conditions.mark_true("EndpointsPopulated");
    }
    if pods.is_empty() || sks.spec.mode == SksMode::Proxy {
        conditions.mark_true("ActivatorEndpointsPopulated");
    } else {
        conditions.mark_false(
            "ActivatorEndpointsPopulated",
            "ActivatorEndpointsRemoved",
            "Revision is backed by its own pods",
        );
    }
    status.set_observed_generation(sks.metadata.generation);
    plan.set_status(sks.status.as_ref(), &status);
    plan
}

/// The ready endpoints of slices.
fn ready(slices: &[Arc<EndpointSlice>]) -> Vec<Endpoint> {
    endpoints(slices, |conditions| conditions.ready != Some(false))
}

/// The endpoints of slices, ready or not, that are not on their way out.
fn standing(slices: &[Arc<EndpointSlice>]) -> Vec<Endpoint> {
    endpoints(slices, |conditions| conditions.terminating != Some(true))
}

/// The endpoints of slices that are wanted, sorted by address, each once.
fn endpoints(slices: &[Arc<EndpointSlice>], wanted: impl Fn(&EndpointConditions) -> bool) -> Vec<Endpoint> {
    let mut all: Vec<Endpoint> = slices
        .iter()
        .filter(|s| s.metadata.deletion_timestamp.is_none())
        .flat_map(|s| s.endpoints.iter())
        .filter(|e| e.conditions.as_ref().is_none_or(&wanted))
        .filter(|e| !e.addresses.is_empty())
        .map(|e| Endpoint {
            addresses: e.addresses.iter().take(1).cloned().collect(),
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            node_name: e.node_name.clone(),
            target_ref: e.target_ref.clone(),
            ..Endpoint::default()
        })
        .collect();
    all.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    all.dedup_by(|a, b| a.addresses == b.addresses);
    all
}

/// `count` of the endpoints (all when 0), by rendezvous hashing: where an activator comes or goes, only revisions that it
/// gains or loses move.
fn subset(mut all: Vec<Endpoint>, key: &str, count: i32) -> Vec<Endpoint> {
    let count = usize::try_from(count).unwrap_or_default();
    if count == 0 || all.len() <= count {
        return all;
    }
    all.sort_by_cached_key(|e| {
        let mut hash = Sha256::new();
        hash.update(key.as_bytes());
        hash.update([0]);
        hash.update(e.addresses.first().map_or("", String::as_str).as_bytes());
        std::cmp::Reverse(hash.finalize().to_vec())
    });
    all.truncate(count);
    all.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    all
}

fn child_meta(sks: &ServerlessService, name: String, labels: &[(&str, &str)]) -> ObjectMeta {
    let mut all = sks.metadata.labels.clone().unwrap_or_default();
    all.insert(keys::SKS.into(), sks.name_any());
    all.extend(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    let mut annotations = sks.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|k, _| !CLIENT_ANNOTATIONS.contains(&k.as_str()));
    ObjectMeta {
        name: Some(name),
        namespace: sks.metadata.namespace.clone(),
        labels: Some(all),
        annotations: Some(annotations),
        owner_references: Some(owner(sks)),
        ..ObjectMeta::default()
    }
}

fn http_port(protocol: ProtocolType) -> i32 {
    i32::from(match protocol {
        ProtocolType::Http1 => ebb_http::ports::HTTP1,
        ProtocolType::H2c => ebb_http::ports::H2C,
    })
}

fn service_port(name: &str, port: i32, target: i32) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port,
        protocol: Some("TCP".into()),
        target_port: Some(IntOrString::Int(target)),
        app_protocol: (name == "http2").then(|| "kubernetes.io/h2c".to_owned()),
        ..ServicePort::default()
    }
}

fn public_service(sks: &ServerlessService) -> Service {
    let protocol = sks.spec.protocol_type;
    Service {
        metadata: child_meta(sks, sks.name_any(), &[(keys::SERVICE_TYPE, "Public")]),
        spec: Some(ServiceSpec {
            ports: Some(vec![
                service_port(protocol.service_port_name(), 80, http_port(protocol)),
                service_port("https", 443, i32::from(ebb_http::ports::MTLS)),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn private_service(sks: &ServerlessService, selector: &BTreeMap<String, String>) -> Service {
    let protocol = sks.spec.protocol_type;
    Service {
        metadata: child_meta(sks, private_name(&sks.name_any()), &[(keys::SERVICE_TYPE, "Private")]),
        spec: Some(ServiceSpec {
            ports: Some(vec![
                service_port(protocol.service_port_name(), 80, http_port(protocol)),
                service_port("https", 443, i32::from(ebb_http::ports::MTLS)),
                service_port("http-autometric", 9090, i32::from(ebb_http::ports::AUTOSCALE_METRICS)),
                service_port("http-usermetric", 9091, i32::from(ebb_http::ports::USER_METRICS)),
                service_port("http-queueadm", 8022, i32::from(ebb_http::ports::ADMIN)),
            ]),
            selector: Some(selector.clone()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn slices(plan: &mut Plan, sks: &ServerlessService, endpoints: &[Endpoint], live: &[Arc<EndpointSlice>]) {
    let protocol = sks.spec.protocol_type;
    let name = sks.name_any();
    let port = |name: &str, port: i32| EndpointPort {
        name: Some(name.into()),
        port: Some(port),
        protocol: Some("TCP".into()),
        ..EndpointPort::default()
    };
    // An empty slice stays: that it is empty is known then, and not that it is late.
    let chunks: Vec<&[Endpoint]> =
        if endpoints.is_empty() { vec![&[][..]] } else { endpoints.chunks(PER_SLICE).collect() };
    let mut wanted = Vec::new();
    for (at, chunk) in chunks.into_iter().enumerate() {
        let labels =
            [(SERVICE_NAME, name.as_str()), (MANAGED_BY, "ebb-controller"), (keys::SERVICE_TYPE, "Public")];
        let ipv6 = chunk.first().and_then(|e| e.addresses.first()).is_some_and(|a| a.contains(':'));
        let slice = EndpointSlice {
            metadata: child_meta(sks, ebb_api::names::public_slice(&name, at), &labels),
            address_type: if ipv6 { "IPv6" } else { "IPv4" }.into(),
            endpoints: chunk.to_vec(),
            ports: Some(vec![
                port(protocol.service_port_name(), http_port(protocol)),
                port("https", i32::from(ebb_http::ports::MTLS)),
            ]),
        };
        let found = live.iter().find(|s| s.metadata.name == slice.metadata.name).map(AsRef::as_ref);
        plan.ensure(found, &slice, Compare::Covers);
        wanted.push(slice.name_any());
    }
    for stale in live.iter().filter(|s| !wanted.contains(&s.name_any())) {
        if controlled_by(&stale.metadata, sks.metadata.uid.as_deref()) {
            plan.delete(&**stale);
        }
    }
}

#[cfg(test)]
mod tests;
