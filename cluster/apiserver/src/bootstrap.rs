//! What a new cluster has: namespaces, the Service `kubernetes`, and the roles that clients rely on.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use crate::server::Server;
use crate::store::{Conflict, Expect, Key};
use crate::{Config, Error, admit, meta, registry};

/// The address of `kubernetes.default`: the first of the range.
pub(crate) fn kubernetes_ip(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()) + 1)
}

/// Makes what is missing, all in one commit, and takes up what a crash left half done.
pub(crate) async fn run(server: &Arc<Server>, config: &Config) -> Result<(), Error> {
    let (_, definitions) = server.store.list(registry::crd::STORAGE, None);
    server.registry.set_crds(definitions.iter().map(|object| &*object.value));
    for definition in definitions.iter().filter(|object| meta::is_terminating(&object.value)) {
        admit::crds::clean_up(server, &definition.value);
    }
    let mut commits = Vec::new();
    for (storage, object) in objects(config) {
        commits.extend(ensure(server, storage, object, false)?);
    }
    for (storage, object) in endpoints(config) {
        commits.extend(ensure(server, storage, object, true)?);
    }
    for commit in commits {
        commit.durable().await?;
    }
    Ok(())
}

fn ensure(
    server: &Server,
    storage: &str,
    mut object: Value,
    replace: bool,
) -> Result<Option<crate::store::Commit>, Error> {
    let storage: Arc<str> = storage.into();
    let snapshot = server.registry.snapshot();
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let resource = snapshot
        .find_kind(&api_version, &kind)
        .ok_or_else(|| Error::Bootstrap(format!("{api_version} {kind} is not a known type")))?;
    let key = Key::new(&storage, meta::namespace(&object), meta::name(&object));
    let existing = server.store.get(&storage, &key.namespace, &key.name);
    let expect = match &existing {
        None => Expect::Absent,
        Some(_) if !replace => return Ok(None),
        Some(object) => Expect::Revision(object.revision),
    };
    for (field, default) in [("uid", uuid::Uuid::new_v4().to_string()), ("creationTimestamp", meta::now())] {
        let known = existing.as_ref().map(|object| meta::text(&object.value, field).to_owned());
        meta::set(&mut object, field, known.unwrap_or(default));
    }
    admit::prepare(resource, &mut object, None);
    resource.schema().default(&mut object);
    if existing.is_some_and(|existing| meta::same(&existing.value, &object)) {
        return Ok(None);
    }
    match server.store.put(&key, expect, object) {
        Ok(commit) => {
            admit::committed(server, &commit.object);
            Ok(Some(commit))
        }
        Err(Conflict::Exists | Conflict::Missing | Conflict::Changed) => {
            Err(Error::Bootstrap(format!("{kind} {} changed while the server started", key.name)))
        }
    }
}

const ROLES: &str = "rbac.authorization.k8s.io/clusterroles";
const BINDINGS: &str = "rbac.authorization.k8s.io/clusterrolebindings";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

fn role(name: &str, rules: Value) -> (&'static str, Value) {
    let object = json!({
        "apiVersion": RBAC, "kind": "ClusterRole",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "rules": rules,
    });
    (ROLES, object)
}

fn aggregated(name: &str, label: &str, rules: Value) -> (&'static str, Value) {
    let (storage, mut object) = role(name, rules);
    object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {format!("rbac.authorization.k8s.io/aggregate-to-{label}"): "true"}}]});
    (storage, object)
}

fn binding(name: &str, role: &str, groups: &[&str]) -> (&'static str, Value) {
    let subjects: Vec<Value> = groups
        .iter()
        .map(|group| json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": group}))
        .collect();
    let object = json!({
        "apiVersion": RBAC, "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    });
    (BINDINGS, object)
}

fn objects(config: &Config) -> Vec<(&'static str, Value)> {
    let mut objects: Vec<(&'static str, Value)> =
        ["default", "kube-system", "kube-public", "kube-node-lease"]
            .into_iter()
            .map(|name| {
                ("/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
            })
            .collect();
    let ip = kubernetes_ip(config.service_cidr).to_string();
    let target = config.advertise.map_or(443, |address| address.port());
    objects.push((
        "/services",
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {
                "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": target}],
            },
        }),
    ));
    let read = json!(["get", "list", "watch"]);
    let write = json!(["create", "delete", "deletecollection", "patch", "update"]);
    let workloads = |verbs: &Value| {
        json!([
            {"apiGroups": [""], "verbs": verbs, "resources": ["configmaps", "endpoints", "events", "persistentvolumeclaims", "pods", "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services"]},
            {"apiGroups": ["apps"], "verbs": verbs, "resources": ["daemonsets", "deployments", "deployments/scale", "replicasets", "replicasets/scale", "statefulsets", "statefulsets/scale", "controllerrevisions"]},
            {"apiGroups": ["batch"], "verbs": verbs, "resources": ["cronjobs", "jobs"]},
            {"apiGroups": ["autoscaling"], "verbs": verbs, "resources": ["horizontalpodautoscalers"]},
            {"apiGroups": ["networking.k8s.io"], "verbs": verbs, "resources": ["ingresses", "networkpolicies"]},
            {"apiGroups": ["policy"], "verbs": verbs, "resources": ["poddisruptionbudgets"]},
            {"apiGroups": ["discovery.k8s.io"], "verbs": verbs, "resources": ["endpointslices"]},
            {"apiGroups": ["coordination.k8s.io"], "verbs": verbs, "resources": ["leases"]},
        ])
    };
    let join = |lists: &[&Value]| -> Value {
        lists.iter().flat_map(|list| list.as_array().cloned().unwrap_or_default()).collect::<Vec<_>>().into()
    };
    let view = join(&[
        &workloads(&read),
        &json!([{"apiGroups": [""], "verbs": read, "resources": ["pods/log", "pods/status", "namespaces", "limitranges", "resourcequotas", "services/status"]},
            {"apiGroups": ["metrics.k8s.io"], "verbs": ["get", "list"], "resources": ["pods", "nodes"]}]),
    ]);
    let edit = join(&[
        &view,
        &workloads(&write),
        &json!([
            {"apiGroups": [""], "verbs": join(&[&read, &write]), "resources": ["secrets"]},
            {"apiGroups": [""], "verbs": ["create", "get"], "resources": ["pods/attach", "pods/exec", "pods/portforward", "pods/eviction"]},
            {"apiGroups": [""], "verbs": ["create"], "resources": ["serviceaccounts/token"]},
        ]),
    ]);
    let admin = join(&[
        &edit,
        &json!([{"apiGroups": ["rbac.authorization.k8s.io"], "verbs": join(&[&read, &write]), "resources": ["roles", "rolebindings"]}]),
    ]);
    let everything = json!([
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]);
    let public = json!([{"nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"], "verbs": ["get"]}]);
    let discovery = json!([{"nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*",
        "/readyz", "/version", "/version/"], "verbs": ["get"]}]);
    let issuer = json!([{"nonResourceURLs": ["/.well-known/openid-configuration", "/.well-known/openid-configuration/",
        "/openid/v1/jwks", "/openid/v1/jwks/"], "verbs": ["get"]}]);
    let basic = json!([
        {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"], "verbs": ["create"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]},
    ]);
    let delegator = json!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]);
    objects.extend([
        role("cluster-admin", everything),
        aggregated("admin", "admin", admin),
        aggregated("edit", "edit", edit),
        aggregated("view", "view", view),
        role("system:auth-delegator", delegator),
        role("system:basic-user", basic),
        role("system:discovery", discovery),
        role("system:service-account-issuer-discovery", issuer),
        role("system:public-info-viewer", public),
        binding("cluster-admin", "cluster-admin", &[crate::MASTERS]),
        binding("system:basic-user", "system:basic-user", &["system:authenticated"]),
        binding("system:discovery", "system:discovery", &["system:authenticated"]),
        binding(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &["system:serviceaccounts"],
        ),
        binding(
            "system:public-info-viewer",
            "system:public-info-viewer",
            &["system:authenticated", "system:unauthenticated"],
        ),
    ]);
    objects
}

/// Where `kubernetes.default` leads: set anew at each start, as the address may have changed.
fn endpoints(config: &Config) -> Vec<(&'static str, Value)> {
    let Some(address) = config.advertise else { return Vec::new() };
    let (ip, port) = (address.ip().to_string(), address.port());
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    vec![
        (
            "discovery.k8s.io/endpointslices",
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "addressType": family,
                "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }),
        ),
        (
            "/endpoints",
            json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
                "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
            }),
        ),
    ]
}
