//! What is told about classes, Gateways and routes. Pure; a condition's time moves only when its status does.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

use super::types::{
    GROUP, Gateway, GatewayClass, GatewayClassStatus, GatewayStatus, HTTPRoute, HttpRouteStatus, Listener,
    ListenerStatus, ParentRef, ParentStatus, RouteKind,
};
use super::world::{CONTROLLER, Why, World, usable};
use crate::table::Key;

/// One condition to be told: its type, its reason when it holds, and whether it does.
type Told = (&'static str, &'static str, Result<(), Why>);

fn conditions(
    before: &[Condition],
    told: Vec<Told>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    told.into_iter()
        .map(|(type_, good, result)| {
            let (status, reason, message) = match result {
                Ok(()) => ("True", good, String::new()),
                Err((reason, message)) => ("False", reason, message),
            };
            condition(before, (type_, status), (reason, message), generation, now)
        })
        .collect()
}

fn condition(
    before: &[Condition],
    (type_, status): (&str, &str),
    (reason, message): Why,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let same = before.iter().find(|known| known.type_ == type_ && known.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: same.map_or(Time(now), |known| known.last_transition_time.clone()),
    }
}

/// A host of a route is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Whose, and the mend.
    pub why: String,
    /// Whether no host is left to the route.
    pub all: bool,
}

/// Of a class of ours.
pub fn class(class: &GatewayClass, now: Timestamp) -> GatewayClassStatus {
    let before = class.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let told = vec![("Accepted", "Accepted", Ok(()))];
    GatewayClassStatus { conditions: conditions(before, told, class.metadata.generation, now) }
}

/// Of a Gateway of ours. `has` says whether a Secret holds a certificate that can be used.
pub fn gateway(
    world: &World,
    key: &Key,
    gateway: &Gateway,
    has: impl Fn(&Key) -> bool,
    now: Timestamp,
) -> GatewayStatus {
    let before = gateway.status.clone().unwrap_or_default();
    let generation = gateway.metadata.generation;
    let mut listeners = Vec::new();
    for listener in &gateway.spec.listeners {
        let accepted = usable(listener);
        let resolved = certificates(world, key, listener, &has);
        let programmed = match (&accepted, &resolved) {
            (Err((_, why)), _) | (_, Err((_, why))) => Err(("Invalid", why.clone())),
            _ => Ok(()),
        };
        let known = before.listeners.iter().find(|known| known.name == listener.name);
        let known = known.map(|known| known.conditions.as_slice()).unwrap_or_default();
        let told = vec![
            ("Accepted", "Accepted", accepted),
            ("ResolvedRefs", "ResolvedRefs", resolved),
            ("Programmed", "Programmed", programmed),
        ];
        listeners.push(ListenerStatus {
            name: listener.name.clone(),
            supported_kinds: vec![RouteKind { group: Some(GROUP.to_owned()), kind: "HTTPRoute".to_owned() }],
            attached_routes: attached(world, key, gateway, listener),
            conditions: conditions(known, told, generation, now),
        });
    }
    let any = gateway.spec.listeners.iter().any(|listener| usable(listener).is_ok());
    let accepted = if any {
        Ok(())
    } else {
        Err(("ListenersNotValid", "none of the listeners can be served; their conditions say why".to_owned()))
    };
    let programmed = match &accepted {
        Err((_, why)) => Err(("Invalid", why.clone())),
        Ok(()) => Ok(()),
    };
    let told = vec![("Accepted", "Accepted", accepted), ("Programmed", "Programmed", programmed)];
    GatewayStatus {
        addresses: world.addresses.clone(),
        conditions: conditions(&before.conditions, told, generation, now),
        listeners,
    }
}

fn certificates(
    world: &World,
    key: &Key,
    listener: &Listener,
    has: &impl Fn(&Key) -> bool,
) -> Result<(), Why> {
    if listener.protocol != "HTTPS" {
        return Ok(());
    }
    let references = listener.tls.as_ref().map(|tls| tls.certificate_refs.as_slice()).unwrap_or_default();
    if references.is_empty() {
        return Err(("InvalidCertificateRef", "tls.certificateRefs names no Secret".to_owned()));
    }
    for reference in references {
        let secret = world.secret(reference, &key.namespace)?;
        if !has(&secret) {
            let why = format!(
                "the Secret {secret} is missing, or has no certificate in tls.crt with its key in tls.key"
            );
            return Err(("InvalidCertificateRef", why));
        }
    }
    Ok(())
}

/// How many routes hang on a listener.
fn attached(world: &World, key: &Key, gateway: &Gateway, listener: &Listener) -> i32 {
    let hangs = |route: &&HTTPRoute| {
        let namespace = route.namespace().unwrap_or_default();
        route.spec.parent_refs.iter().any(|parent| {
            let named = parent.section_name.as_ref().is_none_or(|name| *name == listener.name);
            let parent = ParentRef { section_name: Some(listener.name.clone()), ..parent.clone() };
            named
                && world.parent(&parent, &namespace).is_some_and(|(at, _)| at == *key)
                && world.attach(route, &parent, key, gateway).is_ok()
        })
    };
    i32::try_from(world.routes.values().filter(hangs).count()).unwrap_or(i32::MAX)
}

/// Of a route: what others said stays. `taken` says which of its hosts it is not asked for.
pub fn route(
    route: &HTTPRoute,
    parents: &[(ParentRef, Result<(), Why>)],
    resolved: &Result<(), Why>,
    taken: Option<&Taken>,
    now: Timestamp,
) -> HttpRouteStatus {
    const TAKEN: &str = "HostTaken";
    let before = route.status.clone().unwrap_or_default();
    let (ours, others): (Vec<_>, Vec<_>) =
        before.parents.into_iter().partition(|parent| parent.controller_name == CONTROLLER);
    let mut all = others;
    for (parent, accepted) in parents {
        let known = ours.iter().find(|known| known.parent_ref == *parent);
        let known = known.map(|known| known.conditions.as_slice()).unwrap_or_default();
        let accepted = match taken.filter(|taken| taken.all) {
            Some(taken) => accepted.clone().and(Err((TAKEN, taken.why.clone()))),
            None => accepted.clone(),
        };
        let partly = accepted.is_ok();
        let told =
            vec![("Accepted", "Accepted", accepted), ("ResolvedRefs", "ResolvedRefs", resolved.clone())];
        let generation = route.metadata.generation;
        let mut conditions = conditions(known, told, generation, now);
        if let Some(taken) = taken.filter(|_| partly) {
            let why = (TAKEN, taken.why.clone());
            conditions.push(condition(known, ("PartiallyInvalid", "True"), why, generation, now));
        }
        all.push(ParentStatus {
            parent_ref: parent.clone(),
            controller_name: CONTROLLER.to_owned(),
            conditions,
        });
    }
    HttpRouteStatus { parents: all }
}
