//! Accounts, and what each may do: no more than its code does.
//!
//! A component has one ClusterRole for what it reads and writes in users' namespaces, and, where it needs more in the platform's own, one Role
//! there. The live tests of `component` run every component with just these rights. Names are given
//! wherever Kubernetes can check them (it cannot for `create`, which therefore stands alone).

use serde_json::{Value, json};

use super::{COMPONENTS, CONFIG_WEBHOOK, MUTATING_WEBHOOK, Options, VALIDATING_WEBHOOK};
use crate::meta::ebb::{MESH_POLICY, MESH_ROOT};

const READ: &[&str] = &["get", "list", "watch"];
/// Components know objects by their watches, and read none one by one.
const FOLLOW: &[&str] = &["list", "watch"];
const WRITE: &[&str] = &["create", "patch"];
const OWN: &[&str] = &["create", "patch", "delete"];
/// A Lease once it is there.
const HOLD: &[&str] = &["get", "list", "watch", "update"];

/// API group, resources, verbs.
type Grant = (&'static str, &'static [&'static str], &'static [&'static str]);
/// As [`Grant`], for objects of these names only.
type Named = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

/// What a component may do.
struct Rights {
    name: &'static str,
    everywhere: &'static [Grant],
    everywhere_named: &'static [Named],
    at_home: &'static [Grant],
    at_home_named: &'static [Named],
}

const SERVING: &str = "serving.knative.dev";
const NETWORKING: &str = "networking.internal.knative.dev";
const AUTOSCALING: &str = "autoscaling.internal.knative.dev";
const CERT_MANAGER: &str = "cert-manager.io";
const CACHING: &str = "caching.internal.knative.dev";
const DISCOVERY: &str = "discovery.k8s.io";
/// Gateway API, whose CRDs users install.
const GATEWAY_API: &str = "gateway.networking.k8s.io";
const COORDINATION: &str = "coordination.k8s.io";

/// How much to tell and to whom, where nothing else is read of the ConfigMaps.
const TELLING: Named = ("", &["configmaps"], FOLLOW, &["config-logging", "config-observability"]);

const TABLE: [Rights; 4] = [
    Rights {
        name: "activator",
        everywhere: &[(SERVING, &["revisions"], FOLLOW), (DISCOVERY, &["endpointslices"], FOLLOW)],
        everywhere_named: &[],
        at_home: &[],
        at_home_named: &[TELLING],
    },
    Rights {
        name: "autoscaler",
        everywhere: &[
            (AUTOSCALING, &["podautoscalers"], FOLLOW),
            (AUTOSCALING, &["podautoscalers/status"], &["patch"]),
            (AUTOSCALING, &["metrics"], FOLLOW),
            (AUTOSCALING, &["metrics"], WRITE),
            // To name a PodAutoscaler as an owner that waits for its dependents.
            (AUTOSCALING, &["podautoscalers/finalizers"], &["update"]),
            (NETWORKING, &["serverlessservices"], FOLLOW),
            (NETWORKING, &["serverlessservices"], WRITE),
            ("apps", &["deployments"], FOLLOW),
            ("apps", &["deployments/scale"], &["get", "patch"]),
            ("", &["pods"], FOLLOW),
            (DISCOVERY, &["endpointslices"], &["get"]),
        ],
        everywhere_named: &[],
        at_home: &[("", &["configmaps"], READ), (COORDINATION, &["leases"], &["create"])],
        at_home_named: &[(COORDINATION, &["leases"], HOLD, &["ebb-autoscaler"])],
    },
    Rights {
        name: "controller",
        everywhere: &[
            (SERVING, &["services", "configurations", "revisions", "routes", "domainmappings"], FOLLOW),
            (SERVING, &["configurations", "routes"], WRITE),
            (SERVING, &["revisions"], OWN),
            (
                SERVING,
                &[
                    "services/status",
                    "configurations/status",
                    "revisions/status",
                    "routes/status",
                    "domainmappings/status",
                ],
                &["patch"],
            ),
            (
                SERVING,
                &[
                    "services/finalizers",
                    "configurations/finalizers",
                    "revisions/finalizers",
                    "routes/finalizers",
                    "domainmappings/finalizers",
                ],
                &["update"],
            ),
            (NETWORKING, &["ingresses", "serverlessservices", "clusterdomainclaims", "certificates"], FOLLOW),
            (NETWORKING, &["ingresses"], WRITE),
            (NETWORKING, &["clusterdomainclaims"], &["create", "delete"]),
            (NETWORKING, &["certificates"], OWN),
            (NETWORKING, &["serverlessservices/status", "certificates/status"], &["patch"]),
            (NETWORKING, &["serverlessservices/finalizers", "certificates/finalizers"], &["update"]),
            // Where cert-manager is installed and chosen.
            (CERT_MANAGER, &["certificates"], &["get", "list", "watch", "create", "patch", "delete"]),
            (AUTOSCALING, &["podautoscalers"], FOLLOW),
            (AUTOSCALING, &["podautoscalers"], WRITE),
            // What Kubernetes scales itself.
            ("autoscaling", &["horizontalpodautoscalers"], FOLLOW),
            ("autoscaling", &["horizontalpodautoscalers"], OWN),
            (AUTOSCALING, &["podautoscalers/status"], &["patch"]),
            (AUTOSCALING, &["podautoscalers/finalizers"], &["update"]),
            (NETWORKING, &["serverlessservices"], WRITE),
            (CACHING, &["images"], FOLLOW),
            (CACHING, &["images"], &["create"]),
            ("apps", &["deployments"], FOLLOW),
            ("apps", &["deployments"], WRITE),
            ("", &["pods", "services", "namespaces"], FOLLOW),
            // To try the pod of a template in a dry run. Who may make Deployments makes pods anyhow.
            ("", &["pods"], &["create"]),
            ("", &["services"], OWN),
            (DISCOVERY, &["endpointslices"], FOLLOW),
            (DISCOVERY, &["endpointslices"], OWN),
            // On clusters that ask for it, to give a Service endpoints outside of its namespace.
            (DISCOVERY, &["endpointslices/restricted"], &["create"]),
            // The mesh's roots, in each namespace with a revision.
            ("", &["configmaps"], &["create"]),
            // What keeps plaintext from apps, likewise.
            ("networking.k8s.io", &["networkpolicies"], &["create"]),
            // Credentials for the lookup of digests.
            ("", &["serviceaccounts", "secrets"], &["get"]),
            // Those of Certificates: it follows the ones that carry a Certificate's uid as a label, and writes no other.
            ("", &["secrets"], FOLLOW),
            ("", &["secrets"], WRITE),
            ("authentication.k8s.io", &["tokenreviews"], &["create"]),
            ("events.k8s.io", &["events"], WRITE),
            // Why a pod does not come up, where its status does not tell.
            ("", &["events"], &["list"]),
        ],
        everywhere_named: &[
            ("", &["configmaps"], &["list", "watch", "patch"], &[MESH_ROOT]),
            (
                "networking.k8s.io",
                &["networkpolicies"],
                &["list", "watch", "patch", "delete"],
                &[MESH_POLICY],
            ),
            (
                "admissionregistration.k8s.io",
                &["mutatingwebhookconfigurations"],
                &["patch"],
                &[MUTATING_WEBHOOK],
            ),
            (
                "admissionregistration.k8s.io",
                &["validatingwebhookconfigurations"],
                &["patch"],
                &[VALIDATING_WEBHOOK, CONFIG_WEBHOOK],
            ),
        ],
        at_home: &[
            ("", &["configmaps"], READ),
            ("", &["secrets"], &["create"]),
            (COORDINATION, &["leases"], &["create"]),
        ],
        at_home_named: &[
            (COORDINATION, &["leases"], HOLD, &["ebb-controller"]),
            (
                "",
                &["secrets"],
                &["get", "list", "watch", "update", "patch"],
                &["ebb-mesh-ca", "ebb-domain-ca", "webhook-certs"],
            ),
        ],
    },
    Rights {
        name: "gateway",
        everywhere: &[
            (NETWORKING, &["ingresses"], FOLLOW),
            (NETWORKING, &["ingresses/status"], &["patch"]),
            ("", &["services"], FOLLOW),
            (DISCOVERY, &["endpointslices"], FOLLOW),
            // Certificates of the hosts that Ingresses name.
            ("", &["secrets"], FOLLOW),
            // Gateway API, where it is installed.
            ("apiextensions.k8s.io", &["customresourcedefinitions"], FOLLOW),
            ("", &["namespaces"], FOLLOW),
            (GATEWAY_API, &["gateways", "httproutes", "referencegrants"], FOLLOW),
            (GATEWAY_API, &["gatewayclasses"], &["list", "watch", "create"]),
            (GATEWAY_API, &["gatewayclasses/status", "gateways/status", "httproutes/status"], &["patch"]),
        ],
        everywhere_named: &[],
        at_home: &[("", &["configmaps"], FOLLOW)],
        at_home_named: &[],
    },
];

/// The accounts.
pub(super) fn accounts(options: &Options) -> Vec<Value> {
    COMPONENTS
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": options.meta(name, Some(name))}))
        .collect()
}

/// What the accounts may do, and what users who may view or edit a namespace may do there.
pub(super) fn rights(options: &Options) -> Vec<Value> {
    let mut all = Vec::new();
    for component in &TABLE {
        let account =
            json!([{"kind": "ServiceAccount", "name": component.name, "namespace": options.namespace}]);
        let (name, tag) = (format!("ebb-{}", component.name), Some(component.name));
        let binding = |kind: &str, of: &str, meta: Value| {
            json!({
                "apiVersion": API, "kind": kind, "metadata": meta, "subjects": account,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": of, "name": meta["name"]},
            })
        };
        let (everywhere, home) = (options.cluster_meta(&name, tag), options.meta(component.name, tag));
        all.extend([
            role("ClusterRole", &everywhere, component.everywhere, component.everywhere_named),
            binding("ClusterRoleBinding", "ClusterRole", everywhere),
        ]);
        if !(component.at_home.is_empty() && component.at_home_named.is_empty()) {
            all.extend([
                role("Role", &home, component.at_home, component.at_home_named),
                binding("RoleBinding", "Role", home),
            ]);
        }
    }
    all.extend(users(options));
    all
}

const API: &str = "rbac.authorization.k8s.io/v1";

fn role(kind: &str, meta: &Value, grants: &[Grant], named: &[Named]) -> Value {
    let grants = grants.iter().map(
        |(group, resources, verbs)| json!({"apiGroups": [group], "resources": resources, "verbs": verbs}),
    );
    let named = named.iter().map(|(group, resources, verbs, names)| {
        json!({"apiGroups": [group], "resources": resources, "verbs": verbs, "resourceNames": names})
    });
    json!({"apiVersion": API, "kind": kind, "metadata": meta, "rules": grants.chain(named).collect::<Vec<_>>()})
}

/// Kubernetes' own roles view, edit and admin extend to the platform's kinds.
fn users(options: &Options) -> [Value; 2] {
    let role = |name: &str, to: &[&str], serving: &[&str]| {
        let mut meta = options.cluster_meta(name, None);
        for role in to {
            meta["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{role}")] = json!("true");
        }
        let mut rules = vec![json!({
            "apiGroups": [SERVING], "verbs": serving,
            "resources": ["services", "configurations", "revisions", "routes", "domainmappings"],
        })];
        if serving == READ {
            // The platform's own kinds, to look into when something does not come up.
            let inner = [NETWORKING, AUTOSCALING, CACHING];
            rules.push(json!({"apiGroups": inner, "resources": ["*"], "verbs": READ}));
        }
        json!({"apiVersion": API, "kind": "ClusterRole", "metadata": meta, "rules": rules})
    };
    [
        role("ebb-view", &["view", "edit", "admin"], READ),
        role(
            "ebb-edit",
            &["edit", "admin"],
            &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"],
        ),
    ]
}
