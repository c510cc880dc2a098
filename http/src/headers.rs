//! Header names of the data path, as `HeaderName` constants so that no lookup parses a string.

use http::HeaderName;

/// Names the Revision a request is for; stripped before the app sees the request.
pub const KNATIVE_SERVING_REVISION: HeaderName = HeaderName::from_static("knative-serving-revision");
/// The namespace of [`KNATIVE_SERVING_REVISION`].
pub const KNATIVE_SERVING_NAMESPACE: HeaderName = HeaderName::from_static("knative-serving-namespace");
/// Marks a probe; its value says who shall answer (`queue`, `activator`, `probe`, ...).
pub const K_NETWORK_PROBE: HeaderName = HeaderName::from_static("k-network-probe");
/// A probe with value `override` asks for the hash of the served configuration.
pub const K_NETWORK_HASH: HeaderName = HeaderName::from_static("k-network-hash");
/// `activator` on a request that the activator forwarded: it is counted apart in load reports.
pub const K_PROXY_REQUEST: HeaderName = HeaderName::from_static("k-proxy-request");
/// The host the client asked for, when a gateway rewrote it.
pub const K_ORIGINAL_HOST: HeaderName = HeaderName::from_static("k-original-host");
/// Kubelet's own header on probes that passed through a rewrite.
pub const K_KUBELET_PROBE: HeaderName = HeaderName::from_static("k-kubelet-probe");
/// On a response: which tag routed the request.
pub const KNATIVE_SERVING_TAG: HeaderName = HeaderName::from_static("knative-serving-tag");
/// Asks for a `Server-Timing` header in the response.
pub const TIMING_REQUEST: HeaderName = HeaderName::from_static("ebb-timing");
/// Names a control message between components (`announce`) on a port that also carries requests.
pub const EBB_CONTROL: HeaderName = HeaderName::from_static("ebb-control");
/// On a message that one replica of a component passed on to the one that leads: it is not passed on again.
pub const EBB_PASSED_ON: HeaderName = HeaderName::from_static("ebb-passed-on");
/// On the answer to such a message: the address of the one that leads, to be asked first from now on.
pub const EBB_LEADER: HeaderName = HeaderName::from_static("ebb-leader");
/// W3C Server Timing.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// RFC 7239.
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// The de facto predecessors of RFC 7239.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// See [`X_FORWARDED_FOR`].
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// See [`X_FORWARDED_FOR`].
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Not in the standard's list, but sent by old clients and hop-by-hop all the same.
pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// See [`KEEP_ALIVE`].
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Value of [`K_NETWORK_PROBE`] that a queue-proxy answers.
pub const PROBE_QUEUE: &str = "queue";
/// Value of [`K_NETWORK_PROBE`] that an activator answers.
pub const PROBE_ACTIVATOR: &str = "activator";
/// Value of [`K_NETWORK_PROBE`] that a gateway answers with its hash.
pub const PROBE_INGRESS: &str = "ingress";
/// Value of [`K_NETWORK_HASH`] asking for the served hash.
pub const HASH_OVERRIDE: &str = "override";
/// Value of [`K_PROXY_REQUEST`].
pub const PROXIED_BY_ACTIVATOR: &str = "activator";
/// Value of [`EBB_CONTROL`] on an announcement.
pub const CONTROL_ANNOUNCE: &str = "announce";
/// Kubelet's user agent starts with this.
pub const KUBE_PROBE_UA: &str = "kube-probe/";
/// On an answer that the proxy made itself because of a failure: whose fault (`upstream`, `downstream`, `internal`).
pub const PROXY_ERROR: HeaderName = HeaderName::from_static("ebb-error");
