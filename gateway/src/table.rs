//! The route table: an immutable snapshot of all Ingresses, and the pure function from a request to its target.
//!
//! - A host is looked up exactly, without port, case or trailing dot. Rules for inside the cluster are in the local
//!   table only; the local table has all rules.
//! - Of a host's paths the longest prefix wins, and of equal prefixes the one with more required headers, so that the
//!   order in which somebody wrote them does not matter.
//! - A split is drawn by weight from a random number: 0 is never, 100 is always.
//! - When two Ingresses claim one host, the older one has it.
//!
//! The table is generic over what a backend is (`B`), so that it can be built and tested without any network.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

mod build;
mod hash;

pub use build::{Builder, Problem};
pub use hash::ingress_hash;

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

/// All routes. See the module's documentation.
#[derive(Debug)]
pub struct Table<B> {
    external: HashMap<Box<str>, Arc<Vec<Rule<B>>>>,
    local: HashMap<Box<str>, Arc<Vec<Rule<B>>>>,
    /// The hash and generation that each Ingress is served with.
    pub served: BTreeMap<Key, Served>,
    /// The Secret of each host that has a certificate.
    pub certificates: BTreeMap<String, Key>,
    /// Ingresses that cannot be served, or not as they were written.
    pub problems: BTreeMap<Key, Problem>,
}

/// As what an Ingress is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Its `metadata.generation`.
    pub generation: i64,
    /// The hash that a probe gets.
    pub hash: String,
    /// The hosts to probe, with whether they are only visible inside.
    pub hosts: Vec<(String, Side)>,
}

/// What becomes of requests with one prefix of one host.
#[derive(Debug)]
pub struct Rule<B> {
    prefix: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The Host that the backend sees instead.
    pub rewrite_host: Option<HeaderValue>,
    /// Headers for all splits.
    pub append: Vec<(HeaderName, HeaderValue)>,
    splits: Vec<Split<B>>,
    total: u32,
    /// The hash of the Ingress.
    pub hash: HeaderValue,
    /// Plain HTTP from outside is redirected to https.
    pub redirect: bool,
    /// Whose rule it is.
    pub ingress: Arc<Key>,
}

/// One share of a rule's requests.
#[derive(Debug)]
pub struct Split<B> {
    /// Draws below this (and not below the split before) are this split's.
    upto: u32,
    /// Where they go.
    pub backend: B,
    /// Headers for this split.
    pub append: Vec<(HeaderName, HeaderValue)>,
}

/// The parts of a request that decide about its way.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    /// Which listener.
    pub side: Side,
    /// The Host header or the authority, as it came.
    pub host: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
}

/// Where a request goes.
#[derive(Debug)]
pub enum Outcome<'a, B> {
    /// To this split by this rule.
    Forward(&'a Rule<B>, &'a Split<B>),
    /// No rule has this host.
    UnknownHost,
    /// The host exists, but only for clients inside the cluster.
    OnlyLocal,
    /// The host exists, but none of its paths matches.
    UnknownPath,
    /// The rule has no backend with a share.
    NoBackend(&'a Rule<B>),
}

impl<B> Default for Table<B> {
    fn default() -> Self {
        Self {
            external: HashMap::new(),
            local: HashMap::new(),
            served: BTreeMap::new(),
            certificates: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }
}

/// Finds the target of a request. `random` is uniform over all of `u32`.
pub fn route<'a, B>(table: &'a Table<B>, request: &RequestParts<'_>, random: u32) -> Outcome<'a, B> {
    let mut buffer = String::new();
    let host = normalize(request.host, &mut buffer);
    let hosts = match request.side {
        Side::External => &table.external,
        Side::Local => &table.local,
    };
    let Some(rules) = hosts.get(host) else {
        let elsewhere = request.side == Side::External && table.local.contains_key(host);
        return if elsewhere { Outcome::OnlyLocal } else { Outcome::UnknownHost };
    };
    let Some(rule) = rules.iter().find(|rule| rule.matches(request)) else { return Outcome::UnknownPath };
    match rule.draw(random) {
        Some(split) => Outcome::Forward(rule, split),
        None => Outcome::NoBackend(rule),
    }
}

impl<B> Table<B> {
    /// How many hosts are served, outside and inside.
    pub fn hosts(&self) -> (usize, usize) {
        (self.external.len(), self.local.len())
    }

    /// The hash of the Ingress that has a host on a side.
    pub fn hash_of(&self, side: Side, host: &str) -> Option<&HeaderValue> {
        let mut buffer = String::new();
        let hosts = if side == Side::External { &self.external } else { &self.local };
        hosts.get(normalize(host, &mut buffer))?.first().map(|rule| &rule.hash)
    }

    /// Some hosts that are served on a side, sorted: for the body of a 404.
    pub fn some_hosts(&self, side: Side, most: usize) -> Vec<&str> {
        let hosts = if side == Side::External { &self.external } else { &self.local };
        let mut names: Vec<&str> = hosts.keys().map(AsRef::as_ref).collect();
        names.sort_unstable();
        names.truncate(most);
        names
    }

    /// All backends.
    pub fn backends(&self) -> impl Iterator<Item = &B> {
        self.local
            .values()
            .flat_map(|rules| rules.iter())
            .flat_map(|rule| rule.splits.iter().map(|split| &split.backend))
    }
}

impl<B> Rule<B> {
    fn matches(&self, request: &RequestParts<'_>) -> bool {
        request.path.starts_with(self.prefix.as_str())
            && self
                .headers
                .iter()
                .all(|(name, value)| request.headers.get_all(name).iter().any(|got| got == value))
    }

    fn draw(&self, random: u32) -> Option<&Split<B>> {
        // Multiply and shift maps 2^32 draws on `total` shares evenly to one in 40 million.
        let drawn = ((u64::from(random) * u64::from(self.total)) >> 32) as u32;
        self.splits.iter().find(|split| drawn < split.upto)
    }

    /// The rule's requests come back to this gateway under another host; where they are looked up next.
    pub fn next_host(&self) -> Option<&str> {
        self.rewrite_host.as_ref().and_then(|host| host.to_str().ok())
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
