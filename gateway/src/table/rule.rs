//! What becomes of requests of one kind.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Key, Match};

/// Whose rule it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Of which kind.
    pub kind: Kind,
    /// Which one.
    pub key: Key,
}

/// Kinds of objects with routes. An Ingress has its hosts for itself, and before any HTTPRoute; HTTPRoutes share theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A KIngress.
    Ingress,
    /// Gateway API's HTTPRoute.
    HttpRoute,
    /// Gateway API's Gateway, which has certificates only.
    Gateway,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Ingress => "Ingress",
            Kind::HttpRoute => "HTTPRoute",
            Kind::Gateway => "Gateway",
        };
        write!(f, "{kind} {}", self.key)
    }
}

/// Requests of one kind, and where they go.
#[derive(Debug)]
pub struct Rule<B> {
    /// Which requests.
    pub matches: Match,
    /// What is done to all of them.
    pub changes: Changes,
    /// They go elsewhere instead.
    pub redirect: Option<Redirect>,
    /// How long they may take in all.
    pub timeout: Option<Duration>,
    /// How long a backend may take for one.
    pub backend_timeout: Option<Duration>,
    /// Between which backends they are shared.
    pub splits: Vec<Split<B>>,
    /// The hash of the object, for probes.
    pub hash: HeaderValue,
    /// Whose rule it is.
    pub owner: Arc<Owner>,
}

/// One share of a rule's requests.
#[derive(Debug)]
pub struct Split<B> {
    /// Draws below this (and not below the split before) are this split's; the last one's is the sum.
    pub upto: u32,
    /// Where they go; none where what was named cannot be used.
    pub backend: Option<B>,
    /// What is done to these requests besides.
    pub changes: Changes,
    /// Which Revision it is, as far as its headers say.
    pub revision: Option<Arc<Key>>,
}

/// What is done to a request and its answer on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// To the request's headers.
    pub request: Edits,
    /// To the answer's headers.
    pub response: Edits,
    /// The Host that the backend sees instead.
    pub host: Option<HeaderValue>,
    /// The path that the backend sees instead.
    pub path: Option<PathChange>,
}

/// Changes of headers, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Taken away.
    pub remove: Vec<HeaderName>,
    /// Put in place of what was there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Put beside what was there.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl Edits {
    /// Makes them.
    pub fn apply(&self, to: &mut HeaderMap) {
        for name in &self.remove {
            to.remove(name);
        }
        for (name, value) in &self.set {
            to.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            to.append(name.clone(), value.clone());
        }
    }
}

/// Another path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// This one, whatever was asked for.
    Whole(String),
    /// This in place of the prefix that matched.
    Prefix(String),
}

impl PathChange {
    /// The path that comes of `path`, of which the first `matched` bytes matched.
    pub fn of(&self, path: &str, matched: usize) -> String {
        match self {
            PathChange::Whole(whole) => whole.clone(),
            PathChange::Prefix(prefix) => {
                let rest = path.get(matched..).unwrap_or_default();
                let prefix = prefix.trim_end_matches('/');
                let slash = if prefix.is_empty() && !rest.starts_with('/')
                    || !rest.is_empty() && !rest.starts_with('/')
                {
                    "/"
                } else {
                    ""
                };
                format!("{prefix}{slash}{rest}")
            }
        }
    }

    /// As [`PathChange::of`], with the query that was there.
    pub fn target(&self, from: &PathAndQuery, matched: usize) -> Option<PathAndQuery> {
        let path = self.of(from.path(), matched);
        match from.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        }
        .try_into()
        .ok()
    }
}

/// Where else requests go. What it leaves out stays as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Only those from outside that came without TLS.
    pub plain_only: bool,
    /// Another scheme.
    pub scheme: Option<&'static str>,
    /// Another host.
    pub host: Option<String>,
    /// Another port.
    pub port: Option<u16>,
    /// Another path.
    pub path: Option<PathChange>,
    /// How it is said.
    pub status: StatusCode,
}

impl Redirect {
    /// To the same by https.
    pub const HTTPS: Self = Self {
        plain_only: true,
        scheme: Some("https"),
        host: None,
        port: None,
        path: None,
        status: StatusCode::MOVED_PERMANENTLY,
    };

    /// Where to, of a request to `authority` (as it came, with a port perhaps). `https` is the port at which clients reach this gateway by TLS,
    /// where it is not the scheme's own: for the redirect that leads to the same place.
    pub fn location(
        &self,
        secure: bool,
        authority: &str,
        target: &PathAndQuery,
        matched: usize,
        https: Option<u16>,
    ) -> String {
        let came = if secure { "https" } else { "http" };
        let scheme = self.scheme.unwrap_or(came);
        let (asked, asked_port) = split_port(authority);
        let host = self.host.as_deref().unwrap_or(asked);
        // With another scheme the port is that scheme's own; with the same one, that of the request.
        let port = match (self.port, self.scheme) {
            (Some(port), _) => Some(port),
            (None, Some(_)) if self.plain_only => https,
            (None, Some(_)) => None,
            (None, None) => asked_port,
        };
        let own = if scheme == "https" { 443 } else { 80 };
        let port = port.filter(|port| *port != own).map(|port| format!(":{port}")).unwrap_or_default();
        let target = match &self.path {
            Some(path) => {
                path.target(target, matched).map_or_else(|| "/".to_owned(), |target| target.to_string())
            }
            None => target.to_string(),
        };
        format!("{scheme}://{host}{port}{target}")
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        // The last colon of a bare IPv6 address is inside its brackets.
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

impl<B> Rule<B> {
    /// Draws a share. `random` is uniform over all of `u32`.
    pub(super) fn draw(&self, random: u32) -> Option<usize> {
        let total = self.splits.last().map_or(0, |split| split.upto);
        // Multiply and shift maps 2^32 draws on `total` shares evenly to one in 40 million.
        let drawn = ((u64::from(random) * u64::from(total)) >> 32) as u32;
        self.splits.iter().position(|split| drawn < split.upto)
    }

    /// The rule's requests come back to this gateway under another host; where they are looked up next.
    pub fn next_host(&self) -> Option<&str> {
        self.changes.host.as_ref().and_then(|host| host.to_str().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_in_place_of_another() {
        let change = |to: &str, path: &str, matched| PathChange::Prefix(to.to_owned()).of(path, matched);
        for (to, path, matched, expected) in [
            ("/new", "/old/x", 4, "/new/x"),
            ("/new/", "/old/x", 4, "/new/x"),
            ("/new", "/old", 4, "/new"),
            ("/", "/old/x", 4, "/x"),
            ("/", "/old", 4, "/"),
            ("", "/old", 4, "/"),
            ("/new", "/x", 0, "/new/x"),
        ] {
            assert_eq!(change(to, path, matched), expected, "{to} {path}");
        }
        let query = PathAndQuery::from_static("/old/x?a=b");
        let target = PathChange::Whole("/y".to_owned()).target(&query, 4).expect("a path");
        assert_eq!(target, "/y?a=b");
    }

    #[test]
    fn redirects_keep_what_they_do_not_say() {
        let target = PathAndQuery::from_static("/old/x?a=b");
        assert_eq!(
            Redirect::HTTPS.location(false, "h.example:8080", &target, 0, None),
            "https://h.example/old/x?a=b"
        );
        assert_eq!(
            Redirect::HTTPS.location(false, "h.example:8080", &target, 0, Some(8443)),
            "https://h.example:8443/old/x?a=b"
        );
        let none = Redirect { plain_only: false, scheme: None, ..Redirect::HTTPS };
        assert_eq!(
            none.location(false, "h.example:8080", &target, 0, Some(1)),
            "http://h.example:8080/old/x?a=b"
        );
        assert_eq!(none.location(true, "[::1]", &target, 0, None), "https://[::1]/old/x?a=b");
        let all = Redirect {
            host: Some("other.example".to_owned()),
            port: Some(8443),
            path: Some(PathChange::Prefix("/new".to_owned())),
            scheme: Some("https"),
            ..none
        };
        assert_eq!(
            all.location(false, "h.example", &target, 4, Some(1)),
            "https://other.example:8443/new/x?a=b"
        );
    }
}
