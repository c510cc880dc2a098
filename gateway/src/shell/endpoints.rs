//! From Services and EndpointSlices to the content of an upstream. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ebb_http::ports;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;

use crate::table::{BackendKey, Key, Port};
use crate::upstream::{Address, Content};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Services and EndpointSlices as far as they matter here.
#[derive(Debug)]
pub(crate) struct Endpoints {
    internal_name: String,
    activators: Key,
    peer_activator: Arc<str>,
    trust_domain: String,
    services: HashMap<Key, ServiceView>,
    slices: HashMap<Key, (Key, SliceView)>,
    by_service: HashMap<Key, BTreeSet<Key>>,
}

#[derive(Debug, Clone, PartialEq)]
struct ServiceView {
    external_name: Option<String>,
    ports: Vec<PortView>,
}

#[derive(Debug, Clone, PartialEq)]
struct PortView {
    name: Option<String>,
    number: u16,
    /// Its protocol is said to be HTTP/2 without TLS.
    h2c: bool,
}

impl PortView {
    fn new(name: Option<&String>, number: i32, protocol: Option<&String>) -> Option<Self> {
        let h2c = protocol.is_some_and(|protocol| protocol == "kubernetes.io/h2c");
        Some(Self { name: name.cloned(), number: u16::try_from(number).ok()?, h2c })
    }
}

#[derive(Debug, Clone, PartialEq)]
struct SliceView {
    ports: Vec<PortView>,
    /// Addresses with whether they are ready and not on their way out.
    addresses: Vec<(IpAddr, bool)>,
}

impl Endpoints {
    pub(crate) fn new(internal_name: String, system_namespace: &str, trust_domain: &str) -> Self {
        Self {
            internal_name,
            activators: Key::new(system_namespace, "activator"),
            peer_activator: format!("spiffe://{trust_domain}/ns/{system_namespace}/sa/activator").into(),
            trust_domain: trust_domain.to_owned(),
            services: HashMap::new(),
            slices: HashMap::new(),
            by_service: HashMap::new(),
        }
    }

    /// Takes a Service over; answers with its key if that changed something.
    pub(crate) fn set_service(&mut self, service: &Service) -> Option<Key> {
        let key = Key::new(service.namespace().unwrap_or_default(), service.name_any());
        let spec = service.spec.as_ref();
        let view = ServiceView {
            external_name: spec
                .filter(|spec| spec.type_.as_deref() == Some("ExternalName"))
                .and_then(|spec| spec.external_name.clone()),
            ports: spec
                .and_then(|spec| spec.ports.as_ref())
                .into_iter()
                .flatten()
                .filter_map(|port| PortView::new(port.name.as_ref(), port.port, port.app_protocol.as_ref()))
                .collect(),
        };
        (self.services.insert(key.clone(), view.clone()) != Some(view)).then_some(key)
    }

    pub(crate) fn forget_service(&mut self, key: &Key) -> bool {
        self.services.remove(key).is_some()
    }

    /// Takes an EndpointSlice over; answers with the Service's key if that changed something.
    pub(crate) fn set_slice(&mut self, slice: &EndpointSlice) -> Option<Key> {
        let namespace = slice.namespace().unwrap_or_default();
        let service = Key::new(namespace.as_str(), slice.labels().get(SERVICE_NAME)?.as_str());
        let id = Key::new(namespace, slice.name_any());
        let mut addresses = Vec::new();
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
            let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
            addresses.extend(
                endpoint
                    .addresses
                    .iter()
                    .filter_map(|ip| ip.parse().ok())
                    .map(|ip| (ip, ready && !terminating)),
            );
        }
        let ports = slice.ports.iter().flatten();
        let view = SliceView {
            ports: ports
                .filter_map(|port| PortView::new(port.name.as_ref(), port.port?, port.app_protocol.as_ref()))
                .collect(),
            addresses,
        };
        let entry = (service.clone(), view);
        if self.slices.get(&id) == Some(&entry) {
            return None;
        }
        self.forget_slice(&id);
        self.by_service.entry(service.clone()).or_default().insert(id.clone());
        self.slices.insert(id, entry);
        Some(service)
    }

    pub(crate) fn forget_slice(&mut self, id: &Key) -> Option<Key> {
        let (service, _) = self.slices.remove(id)?;
        if let Some(ids) = self.by_service.get_mut(&service) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_service.remove(&service);
            }
        }
        Some(service)
    }

    /// Whether a change of this Service's endpoints changes how all others are spoken to.
    pub(crate) fn is_activators(&self, service: &Key) -> bool {
        *service == self.activators
    }

    /// The ready addresses of a Service's port `name`.
    pub(crate) fn sockets(&self, service: &Key, name: &str, fallback: u16) -> Vec<SocketAddr> {
        let mut all = BTreeSet::new();
        for slice in self.slices_of(service) {
            let port = slice
                .ports
                .iter()
                .find(|port| port.name.as_deref() == Some(name))
                .map_or(fallback, |port| port.number);
            all.extend(
                slice.addresses.iter().filter(|entry| entry.1).map(|entry| SocketAddr::new(entry.0, port)),
            );
        }
        all.into_iter().collect()
    }

    /// What a Service port is made of. Endpoints with a mesh port (`https`, the mesh's number) are spoken to by that,
    /// with the identity that must be behind the address; others in plaintext by the port that was asked for.
    pub(crate) fn content(&self, backend: &BackendKey) -> Content {
        let service = self.services.get(&backend.service);
        if let Some(name) = service.and_then(|service| service.external_name.as_deref()) {
            if name.trim_end_matches('.') == self.internal_name {
                return Content::Gateway;
            }
            // Any other name would have to be resolved; nothing in the platform makes such Services.
            return Content::default();
        }
        let name = match &backend.port {
            Port::Name(name) => Some(name.clone()),
            Port::Number(number) => service
                .and_then(|service| service.ports.iter().find(|port| port.number == *number))
                .and_then(|port| port.name.clone()),
        };
        let h2c = service
            .is_some_and(|service| service.ports.iter().any(|port| port.h2c && port.name == name))
            || name.as_deref().is_some_and(|name| name == "http2" || name.starts_with("h2c"));
        let activators: HashSet<IpAddr> = self
            .slices_of(&self.activators)
            .flat_map(|slice| slice.addresses.iter().map(|entry| entry.0))
            .collect();
        let pods: Arc<str> =
            format!("spiffe://{}/ns/{}/*", self.trust_domain, backend.service.namespace).into();
        let mut all = BTreeSet::new();
        for slice in self.slices_of(&backend.service) {
            let Some((port, mesh)) = choose(slice, name.as_deref()) else { continue };
            let h2 = h2c || (!mesh && port.h2c);
            for (ip, _) in slice.addresses.iter().filter(|entry| entry.1) {
                let peer = if activators.contains(ip) { &self.peer_activator } else { &pods };
                all.insert(Address {
                    socket: SocketAddr::new(*ip, port.number),
                    peer: mesh.then(|| peer.clone()),
                    h2,
                });
            }
        }
        Content::Endpoints(all.into_iter().collect())
    }

    fn slices_of(&self, service: &Key) -> impl Iterator<Item = &SliceView> {
        self.by_service
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|id| self.slices.get(id))
            .map(|entry| &entry.1)
    }
}

/// The port of a slice to use, and whether it is the mesh's.
fn choose<'a>(slice: &'a SliceView, name: Option<&str>) -> Option<(&'a PortView, bool)> {
    let mesh =
        slice.ports.iter().find(|port| port.name.as_deref() == Some("https") && port.number == ports::MTLS);
    if let Some(port) = mesh {
        return Some((port, true));
    }
    let named =
        slice.ports.iter().find(|port| port.name.as_deref().unwrap_or_default() == name.unwrap_or_default());
    match named {
        Some(port) => Some((port, false)),
        None if slice.ports.len() == 1 => Some((&slice.ports[0], false)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}))
            .expect("a service")
    }

    fn slice(namespace: &str, name: &str, service: &str, ports: Value, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
        .expect("a slice")
    }

    fn mesh_ports() -> Value {
        json!([{"name": "http", "port": 8012}, {"name": "https", "port": 8112}])
    }

    fn endpoints() -> Endpoints {
        Endpoints::new(
            "gateway-internal.ebb-system.svc.cluster.local".to_owned(),
            "ebb-system",
            "cluster.local",
        )
    }

    fn key(service: &str) -> BackendKey {
        BackendKey { service: Key::new("default", service), port: Port::Number(80) }
    }

    fn found(content: Content) -> Vec<(String, Option<String>)> {
        match content {
            Content::Gateway => vec![("gateway".to_owned(), None)],
            Content::Endpoints(all) => all
                .into_iter()
                .map(|address| (address.socket.to_string(), address.peer.map(|peer| peer.to_string())))
                .collect(),
        }
    }

    #[test]
    fn the_mesh_port_with_the_identity_behind_the_address() {
        let mut all = endpoints();
        let pod = json!([{"addresses": ["10.0.0.7"]}, {"addresses": ["10.0.0.4"]}]);
        assert!(all.set_slice(&slice("default", "r-1", "r", mesh_ports(), pod.clone())).is_some());
        assert!(all.set_slice(&slice("default", "r-1", "r", mesh_ports(), pod)).is_none(), "nothing new");
        all.set_slice(&slice(
            "ebb-system",
            "activator-1",
            "activator",
            mesh_ports(),
            json!([{"addresses": ["10.0.0.4"]}]),
        ));
        assert_eq!(
            found(all.content(&key("r"))),
            [
                (
                    "10.0.0.4:8112".to_owned(),
                    Some("spiffe://cluster.local/ns/ebb-system/sa/activator".to_owned())
                ),
                ("10.0.0.7:8112".to_owned(), Some("spiffe://cluster.local/ns/default/*".to_owned())),
            ]
        );
    }

    #[test]
    fn a_plain_service_by_the_port_asked_for() {
        let mut all = endpoints();
        all.set_service(&service(
            "plain",
            json!({"ports": [{"name": "web", "port": 80}, {"name": "admin", "port": 81}]}),
        ));
        let ports = json!([{"name": "admin", "port": 9001}, {"name": "web", "port": 9000}]);
        all.set_slice(&slice("default", "p-1", "plain", ports, json!([{"addresses": ["10.0.0.9"]}])));
        assert_eq!(found(all.content(&key("plain"))), [("10.0.0.9:9000".to_owned(), None)]);
        let by_name = BackendKey { port: Port::Name("admin".to_owned()), ..key("plain") };
        assert_eq!(found(all.content(&by_name)), [("10.0.0.9:9001".to_owned(), None)]);
    }

    #[test]
    fn http2_by_the_ports_name_or_its_protocol() {
        for (port, of_slice, expected) in [
            (json!({"name": "http2", "port": 80}), json!({"name": "http2", "port": 9000}), true),
            (
                json!({"name": "web", "port": 80, "appProtocol": "kubernetes.io/h2c"}),
                json!({"name": "web", "port": 9000}),
                true,
            ),
            (json!({"port": 80}), json!({"port": 9000, "appProtocol": "kubernetes.io/h2c"}), true),
            (
                json!({"name": "web", "port": 80, "appProtocol": "http"}),
                json!({"name": "web", "port": 9000}),
                false,
            ),
        ] {
            let mut all = endpoints();
            all.set_service(&service("plain", json!({"ports": [port]})));
            let slice =
                slice("default", "p-1", "plain", json!([of_slice]), json!([{"addresses": ["10.0.0.9"]}]));
            all.set_slice(&slice);
            let Content::Endpoints(found) = all.content(&key("plain")) else { panic!("endpoints") };
            assert_eq!(found[0].h2, expected, "{port} {of_slice}");
        }
    }

    #[test]
    fn only_what_is_ready_and_stays() {
        let mut all = endpoints();
        let some = json!([
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": true, "terminating": true}}]);
        all.set_slice(&slice("default", "r-1", "r", mesh_ports(), some));
        assert_eq!(found(all.content(&key("r"))).len(), 1);
        assert!(all.forget_slice(&Key::new("default", "r-1")).is_some());
        assert_eq!(found(all.content(&key("r"))), []);
    }

    #[test]
    fn a_name_of_the_gateway_itself() {
        let mut all = endpoints();
        let name = "gateway-internal.ebb-system.svc.cluster.local";
        all.set_service(&service("route", json!({"type": "ExternalName", "externalName": name})));
        assert_eq!(all.content(&key("route")), Content::Gateway);
        all.set_service(&service("route", json!({"type": "ExternalName", "externalName": "example.com"})));
        assert_eq!(all.content(&key("route")), Content::default());
    }
}
