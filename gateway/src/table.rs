//! The route table: an immutable snapshot of all Ingresses, and the pure function from a request to its target.
//!
//! - A host is looked up exactly, without port, case or trailing dot, then by the nearest wildcard. Rules for inside the
//!   cluster are in the local table only; the local table has all rules.
//! - Of a host's paths the longest prefix wins, and of equal prefixes the one with more required headers, so that the
//!   order in which somebody wrote them does not matter. A KIngress's path is a literal prefix, as its API says.
//! - A split is drawn by weight from a random number: 0 is never, 100 is always.
//! - When two Ingresses claim one host, the older one has it; HTTPRoutes of one host are served together.
//!
//! [`Routes`] is the writer's side: it takes one object at a time and changes only what that object had or gets, so that a
//! change costs the same at ten thousand hosts as at ten.
//!
//! The table is generic over what a backend is (`B`), so that it can be built and tested without any network.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method};

mod hash;
mod ingress;
mod matching;
mod routes;
mod rule;
mod shards;

pub use hash::ingress_hash;
pub use ingress::{Problem, compile};
pub use matching::{Match, PathMatch};
pub use routes::{Certificate, Claims, Compiled, Routes, Served, Touched};
pub use rule::{Changes, Edits, Kind, Owner, PathChange, Redirect, Rule, Split};
pub use shards::Shards;

/// The namespace and name of an Ingress or a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// A key.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A port of a Service, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// The Service's port number.
    Number(u16),
    /// The Service port's name.
    Name(String),
}

/// A port of a Service: what a split points to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    /// The Service.
    pub service: Key,
    /// Its port.
    pub port: Port,
}

/// Which listener a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// From outside the cluster: only rules that are visible there.
    External,
    /// From inside the cluster: all rules.
    Local,
}

/// All routes. See the module's documentation. A copy is cheap, also when one of the two is changed.
#[derive(Debug)]
pub struct Table<B> {
    external: Hosts<B>,
    local: Hosts<B>,
    /// Whether any host of either side begins with `*`.
    wildcards: bool,
}

/// Each host's rules in the order in which they count.
type Hosts<B> = Shards<Rules<B>>;
/// Rules in the order in which they count.
pub type Rules<B> = Arc<[Arc<Rule<B>>]>;

/// The host of rules for hosts that no other rule names.
const ANY: &str = "*";

/// The parts of a request that decide about its way.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    /// Which listener.
    pub side: Side,
    /// The Host header or the authority, as it came.
    pub host: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// The query.
    pub query: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// Whether it came over TLS.
    pub secure: bool,
}

/// Where a request goes.
#[derive(Debug)]
pub enum Outcome<'a, B> {
    /// To the backend of the rule's split with this index.
    Forward(&'a Arc<Rule<B>>, usize),
    /// Elsewhere, the client shall know.
    Redirect(&'a Arc<Rule<B>>, &'a Redirect),
    /// No rule has this host.
    UnknownHost,
    /// The host exists, but only for clients inside the cluster.
    OnlyLocal,
    /// The host exists, but none of its paths matches.
    UnknownPath,
    /// The rule has no backend with a share.
    NoBackend(&'a Rule<B>),
    /// The backend that was drawn cannot be used.
    BadBackend(&'a Rule<B>),
}

impl<B> Default for Table<B> {
    fn default() -> Self {
        Self { external: Shards::default(), local: Shards::default(), wildcards: false }
    }
}

impl<B> Clone for Table<B> {
    fn clone(&self) -> Self {
        Self { external: self.external.clone(), local: self.local.clone(), wildcards: self.wildcards }
    }
}

/// Finds the target of a request. `random` is uniform over all of `u32`.
pub fn route<'a, B>(table: &'a Table<B>, request: &RequestParts<'_>, random: u32) -> Outcome<'a, B> {
    let mut buffer = String::new();
    let host = normalize(request.host, &mut buffer);
    let Some(rules) = table.rules(request.side, host) else {
        let elsewhere = request.side == Side::External && table.rules(Side::Local, host).is_some();
        return if elsewhere { Outcome::OnlyLocal } else { Outcome::UnknownHost };
    };
    let Some(rule) = rules.iter().find(|rule| rule.matches.matches(request)) else {
        return Outcome::UnknownPath;
    };
    if let Some(redirect) = &rule.redirect
        && !(redirect.plain_only && (request.secure || request.side == Side::Local))
    {
        return Outcome::Redirect(rule, redirect);
    }
    match rule.draw(random) {
        None => Outcome::NoBackend(rule),
        Some(split) if rule.splits[split].backend.is_none() => Outcome::BadBackend(rule),
        Some(split) => Outcome::Forward(rule, split),
    }
}

/// What is for the name that a TLS client asks for: what is for that host itself, else for the wildcard in place of its first label, else
/// for all hosts (`*`). Hosts are in lower case; the name may be in any.
///
/// A certificate's wildcard stands for one label, a rule's ([`route`]) for any number.
pub fn certified<'a, V>(hosts: &'a Shards<V>, name: &str) -> Option<&'a V> {
    let name = name.to_ascii_lowercase();
    let wildcard = || hosts.get(&format!("*.{}", name.split_once('.')?.1));
    hosts.get(&name).or_else(wildcard).or_else(|| hosts.get(ANY))
}

impl<B> Table<B> {
    fn side(&self, side: Side) -> &Hosts<B> {
        if side == Side::External { &self.external } else { &self.local }
    }

    /// The rules of a host, else of the wildcard that is nearest to it.
    fn rules(&self, side: Side, host: &str) -> Option<&Rules<B>> {
        let hosts = self.side(side);
        if let Some(rules) = hosts.get(host) {
            return Some(rules);
        }
        if !self.wildcards {
            return None;
        }
        let mut buffer = String::with_capacity(host.len() + 1);
        let mut rest = host;
        while let Some((_, parent)) = rest.split_once('.') {
            buffer.clear();
            buffer.push_str("*.");
            buffer.push_str(parent);
            if let Some(rules) = hosts.get(&buffer) {
                return Some(rules);
            }
            rest = parent;
        }
        hosts.get(ANY)
    }

    /// How many hosts are served, outside and inside.
    pub fn hosts(&self) -> (usize, usize) {
        (self.external.len(), self.local.len())
    }

    /// The hash of the object that has a host on a side.
    pub fn hash_of(&self, side: Side, host: &str) -> Option<&HeaderValue> {
        let mut buffer = String::new();
        self.rules(side, normalize(host, &mut buffer))?.first().map(|rule| &rule.hash)
    }

    /// Some hosts that are served on a side: for the body of a 404.
    pub fn some_hosts(&self, side: Side, most: usize) -> Vec<&str> {
        let mut names: Vec<&str> = self.side(side).iter().map(|(name, _)| name).take(most).collect();
        names.sort_unstable();
        names
    }
}

/// A host as the table has it: without port and trailing dot, in lower case. Allocates only for upper case.
fn normalize<'a>(host: &'a str, buffer: &'a mut String) -> &'a str {
    let name = match host.rfind(':') {
        // The last colon of a bare IPv6 address is inside its brackets.
        Some(at) if !host[at..].contains(']') => &host[..at],
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        *buffer = name.to_ascii_lowercase();
        buffer
    } else {
        name
    }
}

#[cfg(test)]
mod tests;
