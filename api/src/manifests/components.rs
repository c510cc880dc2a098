//! The Deployments of the components, and how many pods of each must stay when nodes are drained.

use serde_json::{Value, json};

use super::{COMPONENTS, Images, Options, VERSION, network};
use crate::meta::ebb::{MESH_AUDIENCE, MESH_ROOT};

/// What a component's Deployment has of its own.
struct Component {
    name: &'static str,
    ports: &'static [(&'static str, u16)],
    /// Requested, in thousandths of a core.
    cpu: u32,
    /// Requested and allowed, in mebibytes.
    memory: (u32, u32),
    /// Seconds until what is under way must have ended.
    grace: u32,
    /// Whether it gets its identity from the authority, which for the controller is itself.
    enrols: bool,
    /// Whether its listening sockets are kept when it dies: clients from outside come through packet rules, which hear of a death late.
    kept: bool,
}

/// Memory from measurement (`bench components`, Kubernetes 1.35, 2 cores), in MiB idle and with 200 Services at zero: activator 5.6, 5.3;
/// autoscaler 11.3, 11.6; controller 41, 61 (after 120 other Services had come and gone); gateway 7.9, 10.7; the keeper of its listeners 2.8, 2.8.
/// Requests are that with room for load; the limits are what these slopes give for
/// 10,000 Services (controller 1.1 GiB, gateway 0.2), and for the activator and gateway what requests under way may hold. Processor time was
/// 0.3 to 3.3 thousandths of a core in both, the keeper's too small to be seen; the requests are there for the moment of a cold start, when a share of
/// a busy node counts.
const TABLE: [Component; 4] = [
    Component {
        name: "activator",
        ports: &[("http", 8012), ("http2", 8013), ("https", 8112)],
        cpu: 50,
        memory: (32, 1024),
        // The longest request that config-defaults allows, and the drain.
        grace: 630,
        enrols: true,
        kept: false,
    },
    Component {
        name: "autoscaler",
        ports: &[("https", 8112)],
        cpu: 25,
        memory: (32, 1024),
        grace: 30,
        enrols: true,
        kept: false,
    },
    Component {
        name: "controller",
        ports: &[("webhook", 8443), ("ca", 8114)],
        cpu: 50,
        memory: (96, 2048),
        grace: 30,
        enrols: false,
        kept: false,
    },
    Component {
        name: "gateway",
        ports: &[("http", 8080), ("https", 8443), ("local", 8082)],
        cpu: 50,
        memory: (32, 1024),
        grace: 630,
        enrols: true,
        kept: true,
    },
];

/// The user of the images.
const USER: u32 = 65532;

/// The Deployments.
pub(super) fn deployments(options: &Options, images: &Images, replicas: u32) -> Vec<Value> {
    TABLE.iter().map(|component| deployment(component, options, images, replicas)).collect()
}

fn deployment(component: &Component, options: &Options, images: &Images, replicas: u32) -> Value {
    let name = component.name;
    let mut meta = options.meta(name, Some(name));
    meta["labels"][VERSION] = json!(options.version);
    let mut labels = network::selector(name);
    labels[VERSION] = json!(options.version);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": network::selector(name)},
            // A new pod works before an old one ends.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": labels, "annotations": {
                    "prometheus.io/scrape": "true", "prometheus.io/port": "9090",
                    // Whose logs `kubectl logs` shows.
                    "kubectl.kubernetes.io/default-container": name,
                }},
                "spec": pod(component, options, images),
            },
        }
    })
}

fn pod(component: &Component, options: &Options, images: &Images) -> Value {
    let name = component.name;
    // Rather two nodes than one, rather two zones than one; but rather here than nowhere.
    let spread = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(|key| {
        json!({
            "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": network::selector(name)},
        })
    });
    let mut pod = json!({
        "serviceAccountName": name,
        "terminationGracePeriodSeconds": component.grace,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "enableServiceLinks": false,
        "topologySpreadConstraints": spread,
    });
    let mut containers = vec![container(component, options, images)];
    let mut volumes = Vec::new();
    if component.enrols {
        volumes.push(json!({"name": "mesh", "projected": {"sources": [
            {"serviceAccountToken": {"audience": MESH_AUDIENCE, "expirationSeconds": 3600, "path": "token"}},
            {"configMap": {"name": MESH_ROOT, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ]}}));
    }
    if component.kept {
        containers.push(keeper(images));
        volumes.push(json!({"name": KEEPER, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}));
    }
    pod["containers"] = containers.into();
    if !volumes.is_empty() {
        pod["volumes"] = volumes.into();
    }
    pod
}

fn container(component: &Component, options: &Options, images: &Images) -> Value {
    let name = component.name;
    let ports = component.ports.iter().chain(&[("health", 8081), ("metrics", 9090)]);
    let ports: Vec<Value> =
        ports.map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"})).collect();
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let probe = |path: &str| json!({"path": path, "port": "health"});
    let mut container = json!({
        "name": name,
        "image": images.ebb(),
        "args": [name],
        "ports": ports,
        "env": [
            {"name": "SYSTEM_NAMESPACE", "value": options.namespace},
            field("POD_NAME", "metadata.name"),
            field("POD_IP", "status.podIP"),
            // Such as debug, or ebb_gateway=debug,info.
            {"name": "EBB_LOG", "value": "info"},
        ],
        "startupProbe": {"httpGet": probe("/livez"), "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {"httpGet": probe("/readyz"), "periodSeconds": 1, "failureThreshold": 3},
        "livenessProbe": {"httpGet": probe("/livez"), "periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 5},
        "resources": {
            "requests": {"cpu": format!("{}m", component.cpu), "memory": format!("{}Mi", component.memory.0)},
            // No limit of CPU: throttled in the middle of a request, a proxy would make all of them slow.
            "limits": {"memory": format!("{}Mi", component.memory.1)},
        },
        "securityContext": confined(),
        // So that the status says why a component ended.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    let mut mounts = Vec::new();
    if component.enrols {
        mounts.push(json!({"name": "mesh", "mountPath": "/var/run/secrets/ebb", "readOnly": true}));
    }
    if component.kept {
        mounts.push(keeper_mount());
        container["env"].as_array_mut().into_iter().for_each(|env| env.push(keeper_path()));
    }
    if !mounts.is_empty() {
        container["volumeMounts"] = mounts.into();
    }
    container
}

/// The container that keeps a component's listening sockets while the component is started again, and the volume they meet in.
const KEEPER: &str = "listener-keeper";
const KEEPER_FOLDER: &str = "/run/ebb";

fn keeper(images: &Images) -> Value {
    json!({
        "name": KEEPER,
        "image": images.ebb(),
        "args": [KEEPER],
        "env": [keeper_path()],
        "volumeMounts": [keeper_mount()],
        // It sleeps.
        "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}, "limits": {"memory": "16Mi"}},
        "securityContext": confined(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn keeper_path() -> Value {
    json!({"name": "EBB_LISTENER_KEEPER", "value": format!("{KEEPER_FOLDER}/keeper")})
}

fn keeper_mount() -> Value {
    json!({"name": KEEPER, "mountPath": KEEPER_FOLDER})
}

/// What restricted pod security asks for, and more.
fn confined() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// One pod of a component at a time may be taken away on purpose.
pub(super) fn budgets(options: &Options) -> Vec<Value> {
    COMPONENTS
        .iter()
        .map(|name| {
            json!({
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
                "metadata": options.meta(name, Some(name)),
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": network::selector(name)}}
            })
        })
        .collect()
}
