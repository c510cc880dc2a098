//! What is known of Services and their endpoints: one immutable entry for each Service, replaced when it or one of its slices changes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::{core::v1, discovery::v1::EndpointSlice};
use parking_lot::RwLock;

/// On a Service whose NodePort somebody else serves, for example the process that it stands for.
const NO_NODE_PORT_PROXY: &str = "cluster.local/no-node-port-proxy";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
pub(crate) type Key = (String, String);

/// What Services are served for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }

    /// As in an SRV name.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Tcp => "_tcp",
            Self::Udp => "_udp",
        }
    }
}

/// How a Service is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    Cluster(Ipv4Addr),
    Headless,
    /// Another name (type ExternalName).
    External(String),
    /// No address yet, or none of IPv4.
    None,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
    pub(crate) node_port: Option<u16>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Ipv4Addr,
    pub(crate) hostname: Option<String>,
    pub(crate) ready: bool,
    /// On its way out but still answering: the last resort when nothing is ready.
    pub(crate) draining: bool,
    /// Port numbers by the Service's port name and protocol.
    pub(crate) ports: Vec<(String, Protocol, u16)>,
}

impl Endpoint {
    /// Its label under the Service's name: the hostname, or the address with dashes.
    pub(crate) fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| self.address.to_string().replace('.', "-"))
    }
}

/// One Service and its endpoints, at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) address: Address,
    pub(crate) ports: Vec<Port>,
    /// Session affinity by client address, and how long it lasts.
    pub(crate) affinity: Option<Duration>,
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Service {
    pub(crate) fn ready(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.ready)
    }

    /// Where connections to a port go: to ready endpoints, or to draining ones if there is none.
    pub(crate) fn targets(&self, port: &Port) -> Vec<(Ipv4Addr, u16)> {
        let of = |wanted: fn(&Endpoint) -> bool| -> Vec<(Ipv4Addr, u16)> {
            let endpoints = self.endpoints.iter().filter(|endpoint| wanted(endpoint));
            endpoints
                .filter_map(|endpoint| {
                    let ports = endpoint.ports.iter();
                    let mut ports =
                        ports.filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
                    ports.next().map(|(_, _, number)| (endpoint.address, *number))
                })
                .collect()
        };
        let ready = of(|endpoint| endpoint.ready);
        if ready.is_empty() { of(|endpoint| endpoint.draining) } else { ready }
    }

    fn build(service: &v1::Service, slices: &BTreeMap<String, EndpointSlice>) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let external =
            (spec.type_.as_deref() == Some("ExternalName")).then(|| spec.external_name.clone()).flatten();
        let address = match (external, spec.cluster_ip.as_deref()) {
            (Some(name), _) => Address::External(name),
            (None, Some("None")) => Address::Headless,
            (None, address) => address.and_then(|ip| ip.parse().ok()).map_or(Address::None, Address::Cluster),
        };
        let annotations = service.metadata.annotations.as_ref();
        let unproxied =
            annotations.and_then(|held| held.get(NO_NODE_PORT_PROXY)).is_some_and(|value| value == "true");
        let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                number: number(port.port)?,
                node_port: port.node_port.and_then(number).filter(|_| !unproxied),
            })
        });
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(10_800);
            Duration::from_secs(seconds.unsigned_abs().into())
        });
        let mut seen = HashSet::new();
        let endpoints = slices.values().filter(|slice| slice.address_type == "IPv4").flat_map(endpoints);
        Some(Self {
            namespace: service.metadata.namespace.clone()?,
            name: service.metadata.name.clone()?,
            address,
            ports: ports.collect(),
            affinity,
            // An endpoint that moves from one slice to another is for a moment in both.
            endpoints: endpoints
                .filter(|endpoint| seen.insert((endpoint.address, endpoint.ports.clone())))
                .collect(),
        })
    }
}

fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = Endpoint> {
    let port = |port: &k8s_openapi::api::discovery::v1::EndpointPort| {
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port?).ok()?))
    };
    let ports: Vec<_> = slice.ports.iter().flatten().filter_map(port).collect();
    slice.endpoints.iter().filter_map(move |endpoint| {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        // Unset means ready: a slice that somebody wrote by hand.
        let ready = conditions.ready.unwrap_or(true);
        Some(Endpoint {
            address: endpoint.addresses.first()?.parse().ok()?,
            hostname: endpoint.hostname.clone().filter(|name| !name.is_empty()),
            ready,
            draining: conditions.serving.unwrap_or(ready) && conditions.terminating == Some(true),
            ports: ports.clone(),
        })
    })
}

/// What a change made of a Service.
pub(crate) struct Changed {
    pub(crate) key: Key,
    pub(crate) service: Option<Arc<Service>>,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Index {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    raw: HashMap<Key, v1::Service>,
    /// Slices by Service, then by name.
    slices: HashMap<Key, BTreeMap<String, EndpointSlice>>,
    services: HashMap<String, HashMap<String, Arc<Service>>>,
    /// Who has an address: Services by ClusterIP, headless ones by their endpoints.
    owners: HashMap<Ipv4Addr, Vec<Key>>,
}

impl Index {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.inner.read().services.get(namespace)?.get(name).cloned()
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.inner.read().services.contains_key(namespace)
    }

    /// The Services that an address is a ClusterIP or an endpoint of.
    pub(crate) fn owners(&self, address: Ipv4Addr) -> Vec<Arc<Service>> {
        let inner = self.inner.read();
        let keys = inner.owners.get(&address).into_iter().flatten();
        keys.filter_map(|(namespace, name)| inner.services.get(namespace)?.get(name).cloned()).collect()
    }

    /// Names of all Services, and of all slices, that are known.
    pub(crate) fn keys(&self) -> (Vec<Key>, Vec<Key>) {
        let inner = self.inner.read();
        let slices = inner.slices.iter();
        let slices = slices
            .flat_map(|((namespace, _), slices)| slices.keys().map(|name| (namespace.clone(), name.clone())));
        (inner.raw.keys().cloned().collect(), slices.collect())
    }

    pub(crate) fn put_service(&self, service: v1::Service) -> Option<Changed> {
        let key = (service.metadata.namespace.clone()?, service.metadata.name.clone()?);
        let mut inner = self.inner.write();
        inner.raw.insert(key.clone(), service);
        inner.rebuild(key)
    }

    pub(crate) fn remove_service(&self, key: &Key) -> Option<Changed> {
        let mut inner = self.inner.write();
        inner.raw.remove(key);
        inner.rebuild(key.clone())
    }

    pub(crate) fn put_slice(&self, slice: EndpointSlice) -> Vec<Changed> {
        let (namespace, name) = (slice.metadata.namespace.clone(), slice.metadata.name.clone());
        let Some((namespace, name)) = namespace.zip(name) else { return Vec::new() };
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).cloned();
        let mut inner = self.inner.write();
        // Its label may have named another Service before.
        let mut touched = inner.drop_slice(&namespace, &name, service.as_deref());
        if let Some(service) = service {
            let key = (namespace, service);
            inner.slices.entry(key.clone()).or_default().insert(name, slice);
            touched.push(key);
        }
        touched.into_iter().filter_map(|key| inner.rebuild(key)).collect()
    }

    pub(crate) fn remove_slice(&self, key: &Key) -> Vec<Changed> {
        let mut inner = self.inner.write();
        let touched = inner.drop_slice(&key.0, &key.1, None);
        touched.into_iter().filter_map(|key| inner.rebuild(key)).collect()
    }
}

impl Inner {
    /// Takes a slice from all Services but `except`; answers those that had it.
    fn drop_slice(&mut self, namespace: &str, name: &str, except: Option<&str>) -> Vec<Key> {
        let mut touched = Vec::new();
        self.slices.retain(|key, slices| {
            if key.0 == namespace && Some(key.1.as_str()) != except && slices.remove(name).is_some() {
                touched.push(key.clone());
            }
            !slices.is_empty()
        });
        touched
    }

    fn rebuild(&mut self, key: Key) -> Option<Changed> {
        let nothing = BTreeMap::new();
        let slices = self.slices.get(&key).unwrap_or(&nothing);
        let made = self.raw.get(&key).and_then(|service| Service::build(service, slices)).map(Arc::new);
        let old = self.services.get(&key.0).and_then(|names| names.get(&key.1)).cloned();
        if old == made {
            return None;
        }
        for address in old.iter().flat_map(|old| owned(old)) {
            if let Some(owners) = self.owners.get_mut(&address) {
                owners.retain(|owner| *owner != key);
                if owners.is_empty() {
                    self.owners.remove(&address);
                }
            }
        }
        for address in made.iter().flat_map(|made| owned(made)) {
            let owners = self.owners.entry(address).or_default();
            if !owners.contains(&key) {
                owners.push(key.clone());
            }
        }
        let names = self.services.entry(key.0.clone()).or_default();
        match &made {
            Some(service) => drop(names.insert(key.1.clone(), Arc::clone(service))),
            None => drop(names.remove(&key.1)),
        }
        if names.is_empty() {
            self.services.remove(&key.0);
        }
        Some(Changed { key, service: made })
    }
}

fn owned(service: &Service) -> Vec<Ipv4Addr> {
    match service.address {
        Address::Cluster(address) => vec![address],
        Address::Headless => service.endpoints.iter().map(|endpoint| endpoint.address).collect(),
        Address::External(_) | Address::None => Vec::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn service(namespace: &str, name: &str, spec: Value) -> v1::Service {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}))
            .unwrap()
    }

    /// A slice `name` of Service `service` with one port `http`; endpoints are address, hostname and readiness.
    pub(crate) fn slice(
        namespace: &str,
        name: &str,
        service: &str,
        port: u16,
        endpoints: &[(&str, Option<&str>, bool)],
    ) -> EndpointSlice {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(address, hostname, ready)| {
                json!({"addresses": [address], "hostname": hostname, "conditions": {"ready": ready}})
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name, "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        }))
        .unwrap()
    }

    #[test]
    fn endpoints_follow_their_slices() {
        let index = Index::default();
        assert!(
            index.put_slice(slice("ns", "a", "web", 8080, &[("10.0.0.1", None, true)])).is_empty(),
            "no service yet"
        );
        let spec = json!({"clusterIP": "10.9.0.1", "ports": [{"name": "http", "port": 80}]});
        let made = index.put_service(service("ns", "web", spec.clone())).unwrap().service.unwrap();
        assert_eq!(made.targets(&made.ports[0]), [("10.0.0.1".parse().unwrap(), 8080)]);
        assert!(index.put_service(service("ns", "web", spec)).is_none(), "nothing changed");
        let moved = index.put_slice(slice("ns", "a", "other", 8080, &[("10.0.0.1", None, true)]));
        assert!(moved[0].service.as_ref().unwrap().endpoints.is_empty());
        assert_eq!(index.owners("10.9.0.1".parse().unwrap()).len(), 1);
        assert!(index.remove_service(&("ns".into(), "web".into())).unwrap().service.is_none());
        assert!(index.owners("10.9.0.1".parse().unwrap()).is_empty());
        assert!(!index.has_namespace("ns"));
    }

    #[test]
    fn draining_endpoints_are_the_last_resort() {
        let index = Index::default();
        index.put_service(service(
            "ns",
            "web",
            json!({"clusterIP": "10.9.0.1", "ports": [{"name": "http", "port": 80}]}),
        ));
        let mut dying =
            slice("ns", "a", "web", 8080, &[("10.0.0.1", None, false), ("10.0.0.2", None, false)]);
        let conditions = dying.endpoints[0].conditions.as_mut().unwrap();
        conditions.serving = Some(true);
        conditions.terminating = Some(true);
        let made = index.put_slice(dying).remove(0).service.unwrap();
        assert_eq!(made.targets(&made.ports[0]), [("10.0.0.1".parse().unwrap(), 8080)]);
        let ready = slice("ns", "b", "web", 8080, &[("10.0.0.3", None, true)]);
        let made = index.put_slice(ready).remove(0).service.unwrap();
        assert_eq!(made.targets(&made.ports[0]), [("10.0.0.3".parse().unwrap(), 8080)]);
    }

    #[test]
    fn node_ports_can_be_left_to_others() {
        let index = Index::default();
        let mut with = service(
            "ns",
            "web",
            json!({"clusterIP": "10.9.0.1", "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        let made = index.put_service(with.clone()).unwrap().service.unwrap();
        assert_eq!(made.ports[0].node_port, Some(30080));
        with.metadata.annotations = Some([(NO_NODE_PORT_PROXY.to_owned(), "true".to_owned())].into());
        let made = index.put_service(with).unwrap().service.unwrap();
        assert_eq!(made.ports[0].node_port, None);
    }
}
