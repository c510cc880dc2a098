//! Policies, pods and namespaces, and what they come to for a pod. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::model::{Allow, Isolation, Peer, Peers, Policy, Port, Ports, Range, Rule, Transport};
use super::select::{Labels, Selector};

/// What policies ask of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its address, once it has one of its own.
    pub address: Option<Ipv4Addr>,
    /// The ports that its containers name: name, protocol, number.
    pub ports: Vec<(String, Transport, u16)>,
}

impl PodFacts {
    /// Those of an object; the address is left out, as the node knows it first.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let containers = pod
            .spec
            .iter()
            .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let transport = Transport::parse(port.protocol.as_deref())?;
            Some((port.name.clone()?, transport, u16::try_from(port.container_port).ok()?))
        });
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            address: None,
            ports: ports.collect(),
        }
    }

    fn port(&self, transport: Transport, name: &str) -> Option<u16> {
        self.ports.iter().find(|(n, t, _)| n == name && *t == transport).map(|(.., number)| *number)
    }
}

/// All that decides. Pods are named by their uid.
#[derive(Debug, Clone, Default)]
pub struct World {
    namespaces: BTreeMap<String, Labels>,
    pods: HashMap<String, PodFacts>,
    by_address: HashMap<Ipv4Addr, String>,
    policies: BTreeMap<String, BTreeMap<String, Policy>>,
}

impl World {
    /// A pod came or changed; an address that it has already stays. Returns whether anything that policies ask about is new.
    pub fn set_pod(&mut self, uid: &str, mut facts: PodFacts) -> bool {
        let before = self.pods.get(uid);
        facts.address = facts.address.or(before.and_then(|pod| pod.address));
        if before == Some(&facts) {
            return false;
        }
        if let Some(address) = facts.address {
            self.by_address.insert(address, uid.to_owned());
        }
        self.pods.insert(uid.to_owned(), facts);
        true
    }

    /// A pod has an address now, or none any more.
    pub fn set_address(&mut self, uid: &str, address: Option<Ipv4Addr>) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if let Some(old) = pod.address
            && self.by_address.get(&old).is_some_and(|owner| owner == uid)
        {
            self.by_address.remove(&old);
        }
        pod.address = address;
        if let Some(address) = address {
            self.by_address.insert(address, uid.to_owned());
        }
    }

    /// A pod is gone.
    pub fn remove_pod(&mut self, uid: &str) {
        self.set_address(uid, None);
        self.pods.remove(uid);
    }

    /// The namespace of a pod.
    #[must_use]
    pub fn namespace_of(&self, uid: &str) -> Option<&str> {
        self.pods.get(uid).map(|pod| pod.namespace.as_str())
    }

    /// A namespace came or changed. Returns whether its labels are new.
    pub fn set_namespace(&mut self, namespace: &Namespace) -> bool {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        self.namespaces.insert(name, labels.clone()).as_ref() != Some(&labels)
    }

    /// All namespaces but these are gone.
    pub fn keep_namespaces(&mut self, names: &BTreeSet<String>) {
        self.namespaces.retain(|name, _| names.contains(name));
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// A policy came or changed.
    pub fn set_policy(&mut self, policy: &NetworkPolicy) {
        let (namespace, name) = key(policy);
        let parsed = Policy::of(&policy.spec.clone().unwrap_or_default());
        self.policies.entry(namespace).or_default().insert(name, parsed);
    }

    /// A policy is gone.
    pub fn remove_policy(&mut self, namespace: &str, name: &str) {
        if let Some(policies) = self.policies.get_mut(namespace) {
            policies.remove(name);
            if policies.is_empty() {
                self.policies.remove(namespace);
            }
        }
    }

    /// These are all policies there are.
    pub fn set_policies<'a>(&mut self, policies: impl IntoIterator<Item = &'a NetworkPolicy>) {
        self.policies.clear();
        policies.into_iter().for_each(|policy| self.set_policy(policy));
    }

    /// Namespaces in which a pod's rules depend on other pods.
    pub fn entangled(&self) -> impl Iterator<Item = &str> {
        let entangled = |policies: &BTreeMap<String, Policy>| policies.values().any(Policy::names_pods);
        self.policies.iter().filter(move |(_, policies)| entangled(policies)).map(|(name, _)| name.as_str())
    }

    /// What all policies come to for a pod. One that is not known is not restricted.
    #[must_use]
    pub fn isolation(&self, uid: &str) -> Isolation {
        let mut isolation = Isolation::default();
        let Some(pod) = self.pods.get(uid) else { return isolation };
        let policies = self.policies.get(&pod.namespace).into_iter().flat_map(BTreeMap::values);
        for policy in policies.filter(|policy| policy.pods.matches(&pod.labels)) {
            if let Some(rules) = &policy.ingress {
                let allowed = isolation.ingress.get_or_insert_default();
                for rule in rules {
                    allowed.extend(self.incoming(pod, rule));
                }
            }
            if let Some(rules) = &policy.egress {
                let allowed = isolation.egress.get_or_insert_default();
                for rule in rules {
                    self.outgoing(pod, rule, allowed);
                }
            }
        }
        isolation
    }

    /// Whether a connection is allowed by both ends' policies; ends that are no pods have none.
    #[must_use]
    pub fn admits(&self, from: Ipv4Addr, to: Ipv4Addr, transport: Transport, port: u16) -> bool {
        if self.policies.is_empty() || from == to {
            return true;
        }
        let covered = |allowed: Option<BTreeSet<Allow>>, peer: Ipv4Addr| {
            allowed.is_none_or(|allowed| allowed.iter().any(|allow| allow.covers(peer, transport, port)))
        };
        let isolation = |address: &Ipv4Addr| self.by_address.get(address).map(|uid| self.isolation(uid));
        isolation(&from).is_none_or(|sender| covered(sender.egress, to))
            && isolation(&to).is_none_or(|receiver| covered(receiver.ingress, from))
    }

    /// Ports of `pod` by their names; peers as they are.
    fn incoming(&self, pod: &PodFacts, rule: &Rule) -> Option<Allow> {
        let ports = match &rule.ports {
            None => Ports::All,
            Some(ports) => Ports::Some(
                ports
                    .iter()
                    .filter_map(|port| match port {
                        Port::Range(range) => Some(*range),
                        Port::Named(transport, name) => {
                            pod.port(*transport, name).map(|number| Range::one(*transport, number))
                        }
                    })
                    .collect(),
            ),
        };
        let nothing = matches!(&ports, Ports::Some(ranges) if ranges.is_empty());
        (!nothing).then(|| Allow { peers: self.peers(pod, rule.peers.as_deref()), ports })
    }

    /// A named port is each peer's own: what is allowed is told for each number.
    fn outgoing(&self, pod: &PodFacts, rule: &Rule, allowed: &mut BTreeSet<Allow>) {
        let peers = || self.peers(pod, rule.peers.as_deref());
        let Some(ports) = &rule.ports else {
            allowed.insert(Allow { peers: peers(), ports: Ports::All });
            return;
        };
        let numbers = ports.iter().filter_map(|port| match port {
            Port::Range(range) => Some(*range),
            Port::Named(..) => None,
        });
        let numbers: BTreeSet<Range> = numbers.collect();
        if !numbers.is_empty() {
            allowed.insert(Allow { peers: peers(), ports: Ports::Some(numbers) });
        }
        let mut named: BTreeMap<Range, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for port in ports {
            let Port::Named(transport, name) = port else { continue };
            for (address, other) in self.selected(pod, rule.peers.as_deref()) {
                if let Some(number) = other.port(*transport, name) {
                    named.entry(Range::one(*transport, number)).or_default().insert(address);
                }
            }
        }
        for (range, addresses) in named {
            let peers = Peers::Some { addresses, blocks: BTreeSet::new() };
            allowed.insert(Allow { peers, ports: Ports::Some(BTreeSet::from([range])) });
        }
    }

    fn peers(&self, pod: &PodFacts, peers: Option<&[Peer]>) -> Peers {
        let Some(given) = peers else { return Peers::Anyone };
        let blocks = given.iter().filter_map(|peer| match peer {
            Peer::Block(block) => Some(block.clone()),
            Peer::Pods { .. } => None,
        });
        Peers::Some {
            addresses: self.selected(pod, peers).map(|(address, _)| address).collect(),
            blocks: blocks.collect(),
        }
    }

    /// Pods with an address that any of the peers selects; all of them if the rule names no peers.
    fn selected<'a>(
        &'a self,
        pod: &'a PodFacts,
        peers: Option<&'a [Peer]>,
    ) -> impl Iterator<Item = (Ipv4Addr, &'a PodFacts)> {
        let selectors: Vec<(Option<&Selector>, &Selector)> = peers
            .unwrap_or_default()
            .iter()
            .filter_map(|peer| match peer {
                Peer::Pods { namespaces, pods } => Some((namespaces.as_ref(), pods)),
                Peer::Block(_) => None,
            })
            .collect();
        let everybody = peers.is_none();
        // Without pods to look for there is no use in going through all of them.
        let pods = (everybody || !selectors.is_empty()).then(|| self.pods.values());
        pods.into_iter().flatten().filter_map(move |other| {
            let address = other.address?;
            let chosen = everybody
                || selectors.iter().any(|(namespaces, pods)| {
                    let there = match namespaces {
                        None => other.namespace == pod.namespace,
                        Some(selector) => self
                            .namespaces
                            .get(&other.namespace)
                            .is_some_and(|labels| selector.matches(labels)),
                    };
                    there && pods.matches(&other.labels)
                });
            chosen.then_some((address, other))
        })
    }
}

fn key(policy: &NetworkPolicy) -> (String, String) {
    let metadata = &policy.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
