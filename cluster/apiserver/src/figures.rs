//! What the server counts of itself, for `GET /metrics`: by Kubernetes' own names where it has them.
//!
//! Labels are bounded whatever clients send: verbs and subresources are of a fixed list, resources those that are defined, and of clients the
//! first [`CLIENTS`] are told apart.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::store::Store;

/// So many clients are told apart; the others are `other`.
const CLIENTS: usize = 64;
/// So many series are kept; more resources than that are counted as `other`.
const SERIES: usize = 8192;
const OTHER: &str = "other";
/// The code of a request whose client went away before the answer.
const GONE: u16 = 499;
const SUBRESOURCES: [&str; 13] = [
    "",
    "status",
    "scale",
    "binding",
    "eviction",
    "token",
    "finalize",
    "log",
    "exec",
    "attach",
    "portforward",
    "ephemeralcontainers",
    "approval",
];

/// One kind of request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Request {
    client: Arc<str>,
    verb: &'static str,
    /// `group/plural`.
    resource: Arc<str>,
    subresource: &'static str,
}

/// A request that is under way, and counted when it ends, by whatever: a client that has seen in its watch what it wrote may not wait for the
/// answer.
pub(crate) struct Counted<'a> {
    figures: &'a Figures,
    request: Option<Request>,
    pub(crate) code: u16,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.figures.answered(request, self.code);
        }
    }
}

/// The counts.
#[derive(Default)]
pub(crate) struct Figures {
    clients: Mutex<HashMap<String, Arc<str>>>,
    requests: Mutex<HashMap<(Request, u16), u64>>,
    /// Events that were sent to watchers, by `group/plural`.
    events: Mutex<HashMap<Arc<str>, Arc<AtomicU64>>>,
}

impl Figures {
    /// What a request will be counted as. `agent` is its client's own name of itself.
    pub(crate) fn request(
        &self,
        agent: Option<&str>,
        verb: &str,
        apply: bool,
        resource: &Arc<str>,
        subresource: &str,
    ) -> Request {
        let verb = match verb {
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" => "POST",
            "update" => "PUT",
            "patch" if apply => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => OTHER,
        };
        let subresource = SUBRESOURCES.into_iter().find(|known| *known == subresource).unwrap_or(OTHER);
        Request { client: self.client(agent), verb, resource: resource.clone(), subresource }
    }

    /// `kubectl` of `kubectl/v1.35.0 (linux/amd64)`.
    fn client(&self, agent: Option<&str>) -> Arc<str> {
        let agent = agent.unwrap_or_default();
        let end = agent.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.:".contains(c)));
        let name = &agent[..end.unwrap_or(agent.len())];
        let mut clients = self.clients.lock();
        if let Some(known) = clients.get(name) {
            return known.clone();
        }
        if name.is_empty() || name.len() > 64 || clients.len() >= CLIENTS {
            return OTHER.into();
        }
        let new: Arc<str> = name.into();
        clients.insert(name.to_owned(), new.clone());
        new
    }

    /// Counts a request when the answer's code is known, or nobody waits for it any more.
    pub(crate) fn count(&self, request: Request) -> Counted<'_> {
        Counted { figures: self, request: Some(request), code: GONE }
    }

    /// A request was answered, or its watch begun.
    fn answered(&self, request: Request, code: u16) {
        let mut requests = self.requests.lock();
        let full = requests.len() >= SERIES;
        let mut key = (request, code);
        if full && !requests.contains_key(&key) {
            key.0.resource = OTHER.into();
        }
        *requests.entry(key).or_default() += 1;
    }

    /// Counts the events that watchers of a resource are sent.
    pub(crate) fn events(&self, resource: &Arc<str>) -> Arc<AtomicU64> {
        self.events.lock().entry(resource.clone()).or_default().clone()
    }

    /// As Prometheus reads it.
    pub(crate) fn render(&self, store: &Store) -> String {
        let mut text = String::new();
        let requests: BTreeMap<_, _> = self.requests.lock().iter().map(|(k, n)| (k.clone(), *n)).collect();
        let _ = writeln!(text, "# TYPE apiserver_request_total counter");
        for ((Request { client, verb, resource, subresource }, code), count) in requests {
            let (group, resource) = split(&resource);
            let _ = writeln!(
                text,
                "apiserver_request_total{{client=\"{client}\",code=\"{code}\",group=\"{group}\",resource=\"{resource}\",\
                 subresource=\"{subresource}\",verb=\"{verb}\"}} {count}"
            );
        }
        let events = self.events.lock();
        let events: BTreeMap<_, _> =
            events.iter().map(|(k, n)| (k.clone(), n.load(Ordering::Relaxed))).collect();
        let _ = writeln!(text, "# TYPE apiserver_watch_events_total counter");
        for (resource, count) in events {
            let (group, resource) = split(&resource);
            let _ = writeln!(
                text,
                "apiserver_watch_events_total{{group=\"{group}\",resource=\"{resource}\"}} {count}"
            );
        }
        let _ = writeln!(text, "# TYPE apiserver_resource_objects gauge");
        for (resource, objects, bytes) in store.sizes() {
            let (group, resource) = split(&resource);
            let labels = format!("group=\"{group}\",resource=\"{resource}\"");
            let _ = writeln!(text, "apiserver_resource_objects{{{labels}}} {objects}");
            let _ = writeln!(text, "apiserver_resource_bytes{{{labels}}} {bytes}");
        }
        let written = store.written();
        for (name, value) in [
            ("commits", written.commits.load(Ordering::Relaxed)),
            ("records", written.records.load(Ordering::Relaxed)),
            ("record_bytes", written.bytes.load(Ordering::Relaxed)),
        ] {
            let _ = writeln!(
                text,
                "# TYPE apiserver_storage_{name}_total counter\napiserver_storage_{name}_total {value}"
            );
        }
        text
    }
}

/// Group and plural.
fn split(resource: &str) -> (&str, &str) {
    resource.rsplit_once('/').unwrap_or(("", resource))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_bounded_and_clean() {
        let figures = Figures::default();
        assert_eq!(&*figures.client(Some("kubectl/v1.35.0 (linux/amd64)")), "kubectl");
        assert_eq!(&*figures.client(Some("a\"} 1\nx")), "a");
        assert_eq!(&*figures.client(None), OTHER);
        for n in 0..1000 {
            figures.client(Some(&format!("client-{n}")));
        }
        assert_eq!(&*figures.client(Some("kubectl")), "kubectl");
        assert_eq!(&*figures.client(Some("late")), OTHER);
    }

    #[test]
    fn a_client_that_does_not_wait_is_counted() {
        let figures = Figures::default();
        let resource: Arc<str> = "g/r".into();
        let request = || figures.request(Some("c"), "patch", false, &resource, "status");
        figures.count(request()).code = 200;
        drop(figures.count(request()));
        let requests = figures.requests.lock();
        let counted = |code| requests.get(&(request(), code)).copied();
        assert_eq!((counted(200), counted(GONE)), (Some(1), Some(1)));
    }

    #[test]
    fn series_are_bounded() {
        let figures = Figures::default();
        for n in 0..2 * SERIES {
            let resource: Arc<str> = format!("g/{n}").into();
            figures.answered(figures.request(Some("c"), "get", false, &resource, "nonsense"), 200);
        }
        assert!(figures.requests.lock().len() <= SERIES + 1);
    }
}
