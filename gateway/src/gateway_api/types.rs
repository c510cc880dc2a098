//! Gateway API's objects (gateway.networking.k8s.io/v1), as far as they matter here. Users install the CRDs themselves.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// The group of all kinds.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// Which controller implements a class.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "gateway.networking.k8s.io", version = "v1", kind = "GatewayClass", plural = "gatewayclasses")]
#[kube(status = "GatewayClassStatus", schema = "disabled")]
#[serde(rename_all = "camelCase")]
pub struct GatewayClassSpec {
    /// Its name.
    pub controller_name: String,
}

/// What came of a class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayClassStatus {
    /// Accepted.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// Where requests come in.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "Gateway",
    plural = "gateways",
    namespaced
)]
#[kube(status = "GatewayStatus", schema = "disabled")]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Whose it is.
    pub gateway_class_name: String,
    /// Its listeners.
    #[serde(default)]
    pub listeners: Vec<Listener>,
}

/// One of a Gateway's listeners.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// The hosts that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its port.
    pub port: i32,
    /// HTTP or HTTPS.
    pub protocol: String,
    /// Its certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Whose routes it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// A listener's TLS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
    /// Terminate (the default) or Passthrough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Secrets with certificates.
    #[serde(default)]
    pub certificate_refs: Vec<ObjectRef>,
}

/// Whose routes a listener takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AllowedRoutes {
    /// Of which namespaces.
    #[serde(default)]
    pub namespaces: Option<AllowedNamespaces>,
    /// Of which kinds.
    #[serde(default)]
    pub kinds: Vec<RouteKind>,
}

/// Namespaces whose routes a listener takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AllowedNamespaces {
    /// Same (the default), All or Selector.
    #[serde(default)]
    pub from: Option<String>,
    /// Of namespaces' labels.
    #[serde(default)]
    pub selector: Option<LabelSelector>,
}

/// A kind of routes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RouteKind {
    /// Its group; absent for Gateway API's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its name.
    pub kind: String,
}

/// What came of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// Where it can be reached.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// Accepted and Programmed.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// What came of its listeners.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
}

/// An address of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// IPAddress or Hostname.
    #[serde(rename = "type", default)]
    pub type_: String,
    /// It.
    pub value: String,
}

/// What came of a listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// What it takes.
    #[serde(default)]
    pub supported_kinds: Vec<RouteKind>,
    /// How many routes it has.
    #[serde(default)]
    pub attached_routes: i32,
    /// Accepted, ResolvedRefs and Programmed.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// Hosts, paths and more, and where they lead.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "HTTPRoute",
    plural = "httproutes",
    namespaced
)]
#[kube(status = "HttpRouteStatus", schema = "disabled")]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// The Gateways that it wants to be at.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// The hosts; none for all of the listener's.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// The rules.
    #[serde(default)]
    pub rules: Vec<HttpRouteRule>,
}

/// A Gateway, or one of its listeners.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its namespace; absent for the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The listener's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// The listener's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// Requests and where they lead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteRule {
    /// Which; none for all.
    #[serde(default)]
    pub matches: Vec<HttpRouteMatch>,
    /// What is done to them.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Where they go.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// How long they may take.
    #[serde(default)]
    pub timeouts: Option<Timeouts>,
}

/// Which requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteMatch {
    /// By path.
    #[serde(default)]
    pub path: Option<ValueMatch>,
    /// By headers.
    #[serde(default)]
    pub headers: Vec<NamedMatch>,
    /// By parameters of the query.
    #[serde(default)]
    pub query_params: Vec<NamedMatch>,
    /// By method.
    #[serde(default)]
    pub method: Option<String>,
}

/// A path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ValueMatch {
    /// Exact, PathPrefix (the default) or RegularExpression.
    #[serde(rename = "type", default)]
    pub type_: Option<String>,
    /// It.
    #[serde(default)]
    pub value: Option<String>,
}

/// A header or a parameter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedMatch {
    /// Exact (the default) or RegularExpression.
    #[serde(rename = "type", default)]
    pub type_: Option<String>,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What is done to a request or its answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Which of these it is.
    #[serde(rename = "type")]
    pub type_: String,
    /// Other headers for the backend.
    #[serde(default)]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Other headers for the client.
    #[serde(default)]
    pub response_header_modifier: Option<HeaderModifier>,
    /// The client is sent elsewhere.
    #[serde(default)]
    pub request_redirect: Option<RequestRedirect>,
    /// Another host or path for the backend.
    #[serde(default)]
    pub url_rewrite: Option<UrlRewrite>,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeaderModifier {
    /// In place of others of the name.
    #[serde(default)]
    pub set: Vec<NamedValue>,
    /// Beside others of the name.
    #[serde(default)]
    pub add: Vec<NamedValue>,
    /// Taken away.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedValue {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Where else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    /// http or https.
    #[serde(default)]
    pub scheme: Option<String>,
    /// Another host.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Another path.
    #[serde(default)]
    pub path: Option<PathModifier>,
    /// Another port.
    #[serde(default)]
    pub port: Option<i32>,
    /// 301, 302 (the default), 303, 307 or 308.
    #[serde(default)]
    pub status_code: Option<u16>,
}

/// Another URL for the backend.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UrlRewrite {
    /// Another host.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Another path.
    #[serde(default)]
    pub path: Option<PathModifier>,
}

/// Another path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathModifier {
    /// ReplaceFullPath or ReplacePrefixMatch.
    #[serde(rename = "type")]
    pub type_: String,
    /// For the first.
    #[serde(default)]
    pub replace_full_path: Option<String>,
    /// For the second.
    #[serde(default)]
    pub replace_prefix_match: Option<String>,
}

/// A Service and its weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendRef {
    /// It.
    #[serde(flatten)]
    pub to: ObjectRef,
    /// Its port.
    #[serde(default)]
    pub port: Option<i32>,
    /// Its weight, 1 when absent.
    #[serde(default)]
    pub weight: Option<i32>,
    /// What is done to its requests besides.
    #[serde(default)]
    pub filters: Vec<Filter>,
}

/// An object somewhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its group, "" for Kubernetes' own.
    #[serde(default)]
    pub group: Option<String>,
    /// Its kind.
    #[serde(default)]
    pub kind: Option<String>,
    /// Its namespace; absent for that of who names it.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// Time limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// For all of it.
    #[serde(default)]
    pub request: Option<String>,
    /// For a backend's answer.
    #[serde(default)]
    pub backend_request: Option<String>,
}

/// What came of a route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HttpRouteStatus {
    /// At each of its parents.
    #[serde(default)]
    pub parents: Vec<ParentStatus>,
}

/// What came of a route at a parent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The parent.
    pub parent_ref: ParentRef,
    /// Who says so.
    pub controller_name: String,
    /// Accepted and ResolvedRefs.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// Lets objects of other namespaces name objects of this one.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "gateway.networking.k8s.io", version = "v1beta1", kind = "ReferenceGrant", namespaced)]
#[kube(plural = "referencegrants", schema = "disabled")]
pub struct ReferenceGrantSpec {
    /// Who may.
    #[serde(default)]
    pub from: Vec<GrantFrom>,
    /// Name what.
    #[serde(default)]
    pub to: Vec<GrantTo>,
}

/// Who may name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrantFrom {
    /// Of this group.
    pub group: String,
    /// Of this kind.
    pub kind: String,
    /// Of this namespace.
    pub namespace: String,
}

/// What may be named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GrantTo {
    /// Of this group.
    pub group: String,
    /// Of this kind.
    pub kind: String,
    /// The one of this name, or all.
    #[serde(default)]
    pub name: Option<String>,
}

/// Labels, by namespace.
pub type Labels = BTreeMap<String, String>;
