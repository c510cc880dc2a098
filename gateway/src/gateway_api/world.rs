//! Which routes hang on which listeners, and who may name what. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use super::types::{
    GROUP, Gateway, GatewayClass, HTTPRoute, Labels, Listener, ObjectRef, ParentRef, ReferenceGrant,
    RouteKind,
};
use crate::table::Key;

/// Everything of Gateway API that there is, and what it refers to.
#[derive(Debug, Default)]
pub struct World {
    /// Classes by name.
    pub classes: BTreeMap<String, GatewayClass>,
    /// Gateways.
    pub gateways: BTreeMap<Key, Gateway>,
    /// Routes.
    pub routes: BTreeMap<Key, HTTPRoute>,
    /// Grants.
    pub grants: BTreeMap<Key, ReferenceGrant>,
    /// The labels of namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// Services with the numbers of their ports.
    pub services: BTreeMap<Key, BTreeSet<u16>>,
    /// Where this gateway can be reached.
    pub addresses: Vec<super::types::Address>,
}

/// The name of the controller in classes that are ours.
pub const CONTROLLER: &str = "ebb.dev/gateway";
/// Ports that a listener may name: those of the Service `gateway`, and those behind it.
const HTTP_PORTS: [i32; 2] = [80, 8080];
const HTTPS_PORTS: [i32; 2] = [443, 8443];

/// A reason and a message.
pub type Why = (&'static str, String);

/// Hosts of a route at one parent, with whether they are for TLS.
pub type Hosts = BTreeSet<(String, bool)>;

impl World {
    /// The Gateway that a route's parent is, if it is one of ours.
    pub fn parent(&self, parent: &ParentRef, namespace: &str) -> Option<(Key, &Gateway)> {
        let of = |given: &Option<String>, usual: &str| given.as_deref().is_none_or(|given| given == usual);
        if !of(&parent.group, GROUP) || !of(&parent.kind, "Gateway") {
            return None;
        }
        let key = Key::new(parent.namespace.as_deref().unwrap_or(namespace), parent.name.as_str());
        let gateway = self.gateways.get(&key)?;
        self.is_ours(gateway).then_some((key, gateway))
    }

    /// Whether a Gateway is of a class of ours.
    pub fn is_ours(&self, gateway: &Gateway) -> bool {
        let class = self.classes.get(&gateway.spec.gateway_class_name);
        class.is_some_and(|class| class.spec.controller_name == CONTROLLER)
    }

    /// The hosts that a route has at a parent.
    ///
    /// # Errors
    /// When it has none, with the condition's reason.
    pub fn attach(
        &self,
        route: &HTTPRoute,
        parent: &ParentRef,
        at: &Key,
        gateway: &Gateway,
    ) -> Result<Hosts, Why> {
        let named = |listener: &&Listener| {
            parent.section_name.as_ref().is_none_or(|name| *name == listener.name)
                && parent.port.is_none_or(|port| port == listener.port)
        };
        let listeners: Vec<&Listener> =
            gateway.spec.listeners.iter().filter(named).filter(|listener| usable(listener).is_ok()).collect();
        if listeners.is_empty() {
            return Err((
                "NoMatchingParent",
                format!("the Gateway {at} has no such listener that can be used"),
            ));
        }
        let namespace = route.namespace().unwrap_or_default();
        let open: Vec<&Listener> = listeners
            .into_iter()
            .filter(|listener| self.allows(listener, &at.namespace, &namespace))
            .collect();
        if open.is_empty() {
            let why = format!(
                "allowedRoutes of the Gateway {at} does not take HTTPRoutes of namespace {namespace}"
            );
            return Err(("NotAllowedByListeners", why));
        }
        let mut hosts = Hosts::new();
        for listener in open {
            let secure = listener.protocol == "HTTPS";
            hosts.extend(
                common(listener.hostname.as_deref(), &route.spec.hostnames).into_iter().map(|h| (h, secure)),
            );
        }
        if hosts.is_empty() {
            let why = format!("none of spec.hostnames is among those of the listeners of the Gateway {at}");
            return Err(("NoMatchingListenerHostname", why));
        }
        Ok(hosts)
    }

    fn allows(&self, listener: &Listener, own: &str, namespace: &str) -> bool {
        let Some(allowed) = &listener.allowed_routes else { return own == namespace };
        let kind = |kind: &RouteKind| {
            kind.kind == "HTTPRoute" && kind.group.as_deref().is_none_or(|group| group == GROUP)
        };
        if !allowed.kinds.is_empty() && !allowed.kinds.iter().any(kind) {
            return false;
        }
        let from = allowed.namespaces.as_ref();
        match from.and_then(|from| from.from.as_deref()).unwrap_or("Same") {
            "All" => true,
            "Selector" => {
                let labels = self.namespaces.get(namespace);
                from.and_then(|from| from.selector.as_ref()).zip(labels).is_some_and(|(selector, labels)| {
                    let of = |name: &str| labels.get(name).map(String::as_str);
                    selector
                        .match_labels
                        .iter()
                        .flatten()
                        .all(|(name, value)| of(name) == Some(value.as_str()))
                        && selector.match_expressions.iter().flatten().all(|wanted| {
                            let values = wanted.values.as_deref().unwrap_or_default();
                            let has = |value: &str| values.iter().any(|known| known == value);
                            match wanted.operator.as_str() {
                                "In" => of(&wanted.key).is_some_and(has),
                                "NotIn" => !of(&wanted.key).is_some_and(has),
                                "Exists" => of(&wanted.key).is_some(),
                                "DoesNotExist" => of(&wanted.key).is_none(),
                                _ => false,
                            }
                        })
                })
            }
            _ => own == namespace,
        }
    }

    /// Whether an object of this kind and namespace may name another.
    pub fn may_name(&self, from: (&str, &str), namespace: &str, to: (&str, &str), named: &Key) -> bool {
        namespace == named.namespace
            || self.grants.iter().filter(|(key, _)| key.namespace == named.namespace).any(|(_, grant)| {
                grant
                    .spec
                    .from
                    .iter()
                    .any(|f| (f.group.as_str(), f.kind.as_str()) == from && f.namespace == namespace)
                    && grant.spec.to.iter().any(|t| {
                        (t.group.as_str(), t.kind.as_str()) == to
                            && t.name.as_ref().is_none_or(|name| *name == named.name)
                    })
            })
    }

    /// The Secret that a listener names.
    ///
    /// # Errors
    /// When it may not, with the condition's reason.
    pub fn secret(&self, reference: &ObjectRef, namespace: &str) -> Result<Key, Why> {
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        if kind != "Secret" || reference.group.as_deref().is_some_and(|group| !group.is_empty()) {
            return Err((
                "InvalidCertificateRef",
                format!("{kind} is no kind for certificates here: name a Secret"),
            ));
        }
        let key = Key::new(reference.namespace.as_deref().unwrap_or(namespace), reference.name.as_str());
        if !self.may_name((GROUP, "Gateway"), namespace, ("", "Secret"), &key) {
            let why = format!(
                "no ReferenceGrant in {} lets Gateways of {namespace} name the Secret {key}",
                key.namespace
            );
            return Err(("RefNotPermitted", why));
        }
        Ok(key)
    }
}

/// Whether a listener can be served.
///
/// # Errors
/// With the condition's reason.
pub fn usable(listener: &Listener) -> Result<(), Why> {
    let (ports, name) = match listener.protocol.as_str() {
        "HTTP" => (HTTP_PORTS, "http"),
        "HTTPS" => (HTTPS_PORTS, "https"),
        other => return Err(("UnsupportedProtocol", format!("protocol {other} is neither HTTP nor HTTPS"))),
    };
    if !ports.contains(&listener.port) {
        return Err((
            "PortUnavailable",
            format!("for {name} the gateway has the ports {} and {} only", ports[0], ports[1]),
        ));
    }
    let mode = listener.tls.as_ref().and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate");
    if listener.protocol == "HTTPS" && mode != "Terminate" {
        return Err(("UnsupportedProtocol", format!("tls.mode {mode} is not supported: use Terminate")));
    }
    Ok(())
}

/// The hosts that both a listener and a route are for: of two the narrower.
pub fn common(listener: Option<&str>, route: &[String]) -> Vec<String> {
    let listener = listener.filter(|host| !host.is_empty()).map(str::to_ascii_lowercase);
    match (listener, route) {
        (None, []) => vec!["*".to_owned()],
        (Some(listener), []) => vec![listener],
        (None, hosts) => hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
        (Some(listener), hosts) => hosts
            .iter()
            .map(|host| host.to_ascii_lowercase())
            .filter_map(|host| {
                if host == listener || within(&host, &listener) {
                    Some(host)
                } else if within(&listener, &host) {
                    Some(listener.clone())
                } else {
                    None
                }
            })
            .collect(),
    }
}

/// Whether a host, perhaps a wildcard itself, is of a wildcard.
fn within(host: &str, wildcard: &str) -> bool {
    let Some(suffix) = wildcard.strip_prefix('*') else { return false };
    host.strip_suffix(suffix).is_some_and(|label| !label.is_empty())
}
