//! Every key of every `config-*` ConfigMap, and where a change of it is seen while all runs.
//!
//! What the controller does with a key is tried here: its decision about objects that are there already, or about the next that comes, is
//! another one with another value, and the former again when the key is taken out. What the autoscaler does with its keys is tried in
//! `ebb-autoscaler`; which keys want a restart, or mean nothing here, their explanation must say.

use ebb_api::config::{ConfigError, Configs, Data, NAMES};
use ebb_api::manifests::example;
use ebb_api::networking::Ingress;
use ebb_api::serving::{Configuration, DomainMapping, Revision};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::certificate::cert_manager;
use crate::plan::Change;
use crate::revision::{self, Digests, Platform};
use crate::testing::{at, configuration, object, ready, revision as live, route, with_status};
use crate::webhook;
use crate::{domain_mapping, gc, route as routes, wildcard};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// The Deployment of a revision that is there, in both directions.
    Deployment,
    /// The Deployment of the next revision.
    NextDeployment,
    /// A revision's status.
    Status,
    /// A Route's status, Ingress and Services.
    Route,
    DomainMapping,
    /// The Certificate of a namespace.
    Wildcard,
    /// What is asked of cert-manager.
    Order,
    /// Which old revisions go.
    Gc,
    /// What is filled in or refused when a Service is applied.
    Admission,
    /// The next lookup of a digest, which takes the settings of that moment.
    Lookup,
    /// The autoscaler's decisions.
    Autoscaler,
    /// The gateway's live settings, which are tried in `ebb-gateway`.
    Gateway,
    /// What the explanation says: these words are in it.
    Said(&'static str),
}
use Seen::{Admission, Autoscaler, Gc, Lookup, NextDeployment, Said, Status};

/// A key, a value that is not its default, and where that is seen.
type Row = (&'static str, &'static str, Seen);

/// By ConfigMap.
const TABLE: &[(&str, &[Row])] = &[
    (
        "config-autoscaler",
        &[
            ("enable-scale-to-zero", "false", Autoscaler),
            ("container-concurrency-target-default", "50", Autoscaler),
            ("container-concurrency-target-percentage", "50", Autoscaler),
            ("requests-per-second-target-default", "50", Autoscaler),
            ("target-burst-capacity", "0", Autoscaler),
            ("activator-capacity", "50", Autoscaler),
            ("stable-window", "30s", Autoscaler),
            ("panic-window-percentage", "50", Autoscaler),
            ("panic-threshold-percentage", "300", Autoscaler),
            ("max-scale-up-rate", "10", Autoscaler),
            ("max-scale-down-rate", "10", Autoscaler),
            ("scale-down-delay", "5s", Autoscaler),
            ("scale-to-zero-grace-period", "5s", Autoscaler),
            ("scale-to-zero-pod-retention-period", "5s", Autoscaler),
            ("initial-scale", "3", NextDeployment),
            ("allow-zero-initial-scale", "true", Admission),
            ("min-scale", "2", NextDeployment),
            ("max-scale", "5", Autoscaler),
            ("max-scale-limit", "5", Admission),
            ("pod-autoscaler-class", "hpa.autoscaling.knative.dev", Autoscaler),
        ],
    ),
    (
        "config-defaults",
        &[
            ("revision-timeout-seconds", "60", Admission),
            ("max-revision-timeout-seconds", "900", Admission),
            ("revision-response-start-timeout-seconds", "60", Admission),
            ("revision-idle-timeout-seconds", "60", Admission),
            ("container-concurrency", "5", Admission),
            ("allow-container-concurrency-zero", "false", Admission),
            ("container-concurrency-max-limit", "5000", Admission),
            ("revision-cpu-request", "100m", Admission),
            ("revision-memory-request", "10M", Admission),
            ("revision-ephemeral-storage-request", "10M", Admission),
            ("revision-cpu-limit", "200m", Admission),
            ("revision-memory-limit", "20M", Admission),
            ("revision-ephemeral-storage-limit", "20M", Admission),
            ("container-name-template", "main", Admission),
            ("init-container-name-template", "first", Admission),
            ("enable-service-links", "true", Admission),
        ],
    ),
    (
        "config-deployment",
        &[
            ("queue-sidecar-image", "queue-proxy:v2", Seen::Deployment),
            ("progress-deadline", "30s", Seen::Deployment),
            ("digest-resolution-timeout", "1s", Lookup),
            ("registries-skipping-tag-resolving", "example.com", Lookup),
            ("registry-mirror", "http://mirror.example.com", Lookup),
            ("queue-sidecar-cpu-request", "50m", Seen::Deployment),
            ("queue-sidecar-cpu-limit", "500m", Seen::Deployment),
            ("queue-sidecar-memory-request", "8Mi", Seen::Deployment),
            ("queue-sidecar-memory-limit", "64Mi", Seen::Deployment),
            ("queue-sidecar-ephemeral-storage-request", "8Mi", Seen::Deployment),
            ("queue-sidecar-ephemeral-storage-limit", "64Mi", Seen::Deployment),
            ("queue-sidecar-token-audiences", "vault", Seen::Deployment),
            ("default-affinity-type", "none", Seen::Deployment),
            ("runtime-class-name", "gvisor", Seen::Deployment),
            ("pod-is-always-schedulable", "true", Status),
            ("queue-sidecar-rootca", "x", Said("They have no effect")),
            ("queue-sidecar-tls-min-version", "1.2", Said("They have no effect")),
            ("queue-sidecar-tls-max-version", "1.3", Said("They have no effect")),
            ("queue-sidecar-tls-cipher-suites", "x", Said("They have no effect")),
            ("queue-sidecar-tls-curve-preferences", "x", Said("They have no effect")),
        ],
    ),
    (
        "config-certmanager",
        &[
            ("issuerRef", "name: letsencrypt", Seen::Order),
            ("clusterLocalIssuerRef", "name: other", Said("without effect")),
            ("systemInternalIssuerRef", "name: other", Said("without effect")),
        ],
    ),
    ("config-domain", &[("example.com", "selector:\n  app: other\n", Seen::Route)]),
    (
        "config-features",
        &[
            ("multi-container", "disabled", Admission),
            ("multi-container-probing", "enabled", Admission),
            ("kubernetes.podspec-affinity", "enabled", Admission),
            ("kubernetes.podspec-topologyspreadconstraints", "enabled", Admission),
            ("kubernetes.podspec-nodeselector", "enabled", Admission),
            ("kubernetes.podspec-tolerations", "enabled", Admission),
            ("kubernetes.podspec-schedulername", "enabled", Admission),
            ("kubernetes.podspec-priorityclassname", "enabled", Admission),
            ("kubernetes.podspec-runtimeclassname", "enabled", Admission),
            ("kubernetes.podspec-hostaliases", "enabled", Admission),
            ("kubernetes.podspec-dnspolicy", "enabled", Admission),
            ("kubernetes.podspec-dnsconfig", "enabled", Admission),
            ("kubernetes.podspec-fieldref", "enabled", Admission),
            ("kubernetes.podspec-init-containers", "enabled", Admission),
            ("kubernetes.podspec-shareprocessnamespace", "enabled", Admission),
            ("kubernetes.podspec-hostipc", "enabled", Admission),
            ("kubernetes.podspec-hostpid", "enabled", Admission),
            ("kubernetes.podspec-hostnetwork", "enabled", Admission),
            ("kubernetes.podspec-securitycontext", "enabled", Admission),
            ("kubernetes.containerspec-addcapabilities", "enabled", Admission),
            ("kubernetes.podspec-volumes-emptydir", "disabled", Admission),
            ("kubernetes.podspec-volumes-ephemeral", "enabled", Admission),
            ("kubernetes.podspec-volumes-hostpath", "enabled", Admission),
            ("kubernetes.podspec-volumes-csi", "enabled", Admission),
            ("kubernetes.podspec-volumes-image", "enabled", Admission),
            ("kubernetes.podspec-volumes-mount-propagation", "enabled", Admission),
            ("kubernetes.podspec-persistent-volume-claim", "enabled", Admission),
            ("kubernetes.podspec-persistent-volume-write", "enabled", Admission),
            ("kubernetes.podspec-dryrun", "disabled", Said("tried against Kubernetes")),
            ("secure-pod-defaults", "enabled", Admission),
            ("tag-header-based-routing", "enabled", Seen::Route),
            ("autodetect-http2", "enabled", Seen::Deployment),
            ("queueproxy.mount-podinfo", "enabled", Seen::Deployment),
            ("queueproxy.resource-defaults", "enabled", Seen::Deployment),
        ],
    ),
    (
        "config-gc",
        &[
            ("retain-since-create-time", "1s", Gc),
            ("retain-since-last-active-time", "1s", Gc),
            ("min-non-active-revisions", "1", Gc),
            ("max-non-active-revisions", "1", Gc),
        ],
    ),
    (
        "config-leader-election",
        &[
            ("lease-duration", "20s", Said("Read when they start")),
            ("renew-deadline", "11s", Said("Read when they start")),
            ("retry-period", "3s", Said("Read when they start")),
            ("buckets", "2", Said("Only 1 has an effect")),
        ],
    ),
    (
        "config-logging",
        &[
            ("zap-logger-config", r#"{"level": "debug"}"#, Seen::Deployment),
            ("loglevel.controller", "debug", Said("A change takes effect at once")),
            ("loglevel.autoscaler", "debug", Said("A change takes effect at once")),
            ("loglevel.activator", "debug", Said("A change takes effect at once")),
            ("loglevel.gateway", "debug", Said("A change takes effect at once")),
            ("loglevel.queueproxy", "debug", Seen::Deployment),
        ],
    ),
    (
        "config-network",
        &[
            ("ingress-class", "other", Seen::Route),
            ("certificate-class", "other", Seen::Route),
            ("domain-template", "{{.Name}}--{{.Namespace}}.{{.Domain}}", Seen::Route),
            ("tag-template", "{{.Name}}-{{.Tag}}", Seen::Route),
            ("external-domain-tls", "enabled", Seen::Route),
            ("cluster-local-domain-tls", "enabled", Said("without effect")),
            ("namespace-wildcard-cert-selector", "matchLabels: {team: shop}", Seen::Wildcard),
            ("system-internal-tls", "disabled", Said("all is mutual TLS whatever this says")),
            ("enable-mesh-pod-addressability", "true", Said("They have no effect")),
            ("mesh-compatibility-mode", "enabled", Said("They have no effect")),
            ("namespace-wildcard-cert-selector", "{}", Said("They have no effect")),
            ("mtls-mode", "permissive", Seen::Deployment),
            ("http-protocol", "redirected", Seen::Route),
            ("rollout-duration", "600", Seen::Route),
            ("autocreate-cluster-domain-claims", "true", Seen::DomainMapping),
            ("default-external-scheme", "https", Seen::Route),
            ("external-url-port", "8080", Seen::Route),
            ("external-url-tls-port", "8443", Seen::Route),
            ("gateway-proxy-protocol", "http", Seen::Gateway),
        ],
    ),
    (
        "config-observability",
        &[
            ("logging.enable-request-log", "true", Seen::Deployment),
            ("logging.enable-probe-request-log", "true", Seen::Deployment),
            ("logging.request-log-template", "{}", Seen::Deployment),
            ("logging.enable-gateway-access-log", "true", Seen::Gateway),
            ("logging.gateway-access-log-template", "{}", Seen::Gateway),
            ("logging.revision-url-template", "http://logs/${REVISION_UID}", Status),
            ("logging.enable-var-log-collection", "true", Seen::Deployment),
            ("metrics-export-interval", "10s", Said("A change takes effect at once")),
            ("metrics-protocol", "grpc", Said("A change takes effect at once")),
            ("metrics-endpoint", "http://collector", Said("A change takes effect at once")),
            ("request-metrics-export-interval", "10s", Said("A change makes pods anew")),
            ("request-metrics-protocol", "grpc", Seen::Deployment),
            ("request-metrics-endpoint", "http://collector", Said("A change makes pods anew")),
            ("tracing-protocol", "grpc", Seen::Gateway),
            ("tracing-endpoint", "http://collector", Seen::Gateway),
            ("tracing-sampling-rate", "1", Seen::Gateway),
        ],
    ),
];

/// What the keys of one ConfigMap are before the one that is tried.
fn base(name: &str, key: &str) -> Data {
    let pairs: &[(&str, &str)] = match (name, key) {
        ("config-deployment", _) => &[("queue-sidecar-image", "queue-proxy:v1")],
        ("config-domain", _) => &[("example.com", "")],
        ("config-autoscaler", "max-scale-limit") => &[("max-scale", "5")],
        ("config-gc", "max-non-active-revisions") => &[("min-non-active-revisions", "0")],
        ("config-gc", "retain-since-create-time") => {
            &[("min-non-active-revisions", "0"), ("retain-since-last-active-time", "1s")]
        }
        ("config-gc", "retain-since-last-active-time") => {
            &[("min-non-active-revisions", "0"), ("retain-since-create-time", "1s")]
        }
        ("config-gc", _) => &[("retain-since-create-time", "1s"), ("retain-since-last-active-time", "1s")],
        ("config-network", "external-url-tls-port") => &[("default-external-scheme", "https")],
        ("config-network", "http-protocol" | "certificate-class") => &[("external-domain-tls", "enabled")],
        ("config-observability", "logging.request-log-template") => &[("logging.enable-request-log", "true")],
        ("config-features", "kubernetes.podspec-persistent-volume-write") => {
            &[("kubernetes.podspec-persistent-volume-claim", "enabled")]
        }
        _ => &[],
    };
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The settings without and with the key.
fn before_and_after(name: &str, key: &str, value: &str) -> Result<(Configs, Configs), String> {
    let said = |errors: Vec<ConfigError>| format!("{name} {key}={value}: {errors:?}");
    let mut before = Configs::default();
    for other in ["config-deployment", "config-domain"] {
        before.set(other, &base(other, "")).map_err(said)?;
    }
    before.set(name, &base(name, key)).map_err(said)?;
    let mut after = before.clone();
    let mut data = base(name, key);
    data.insert(key.to_owned(), value.to_owned());
    after.set(name, &data).map_err(said)?;
    Ok((before, after))
}

fn platform(configs: &Configs) -> Platform {
    Platform {
        mtls_mode: configs.network.mtls_mode.unwrap_or_default(),
        ..crate::Config::default().platform("ROOTS".into())
    }
}

/// A revision whose digests are known.
fn known() -> Revision {
    let mut revision = live(1);
    // Not bounded by annotations, so that the settings are.
    revision.metadata.annotations = None;
    let status = json!({"observedGeneration": 1, "containerStatuses": [{"name": "user-container", "imageDigest": "hello@sha256:1"}]});
    with_status(&revision, status)
}

fn deployment(configs: &Configs) -> Deployment {
    let revision = known();
    revision::deployment(&revision, &revision.status.clone().unwrap_or_default(), configs, &platform(configs))
}

/// What is decided about a revision whose Deployment is as it was made with other settings.
fn decided(deployment: Option<&Deployment>, configs: &Configs) -> crate::plan::Plan {
    let revision = known();
    let pods = [Arc::new(object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}]}
    })))];
    let observed = revision::Observed {
        revision: &revision,
        configuration: None,
        routes: &[],
        digests: &Digests::Pending,
        deployment,
        pods: &pods,
        pod_autoscaler: None,
        mesh_root: None,
        network_policy: None,
        images: &[],
        trouble: None,
        refused: None,
    };
    revision::plan(&observed, configs, &platform(configs), at(1))
}

fn route_plan(configs: &Configs) -> String {
    let follows = |latest: &str| {
        let mut status = ready("True", None);
        status["latestReadyRevisionName"] = json!(latest);
        let made: Configuration = with_status(&configuration(), status);
        BTreeMap::from([("hello".to_owned(), Arc::new(made))])
    };
    let revisions = [1, 2].map(|n| {
        let revision: Revision = with_status(&live(n), ready("True", None));
        (revision.name_any(), Arc::new(revision))
    });
    let mut route = route();
    let traffic = json!([
        {"latestRevision": true, "configurationName": "hello", "percent": 100},
        {"revisionName": "hello-00001", "tag": "old", "percent": 0}
    ]);
    route.spec.traffic = serde_json::from_value(traffic).expect("traffic");
    let (revisions, services) = (BTreeMap::from(revisions), BTreeMap::new());
    let plan = |latest: &str, ingress: Option<&Ingress>, configs: &Configs| {
        let configurations = follows(latest);
        let observed = routes::Observed {
            route: &route,
            configurations: &configurations,
            revisions: &revisions,
            ingress,
            services: &services,
            certificates: &[],
            system_namespace: "ebb-system",
        };
        routes::plan(&observed, configs, at(1))
    };
    // There is one already. That its latest revision was another makes a rollout.
    let made =
        plan("hello-00001", None, &Configs::default()).then.into_iter().find_map(|change| match change {
            Change::Create(target, body) if target.resource.kind == "Ingress" => {
                Some(object::<Ingress>(body))
            }
            _ => None,
        });
    format!("{:?}", plan("hello-00002", made.as_ref(), configs))
}

fn mapping_plan(configs: &Configs) -> String {
    let mapping: DomainMapping = object(json!({
        "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
        "metadata": {"name": "shop.example.org", "namespace": "default", "uid": "dm-uid", "generation": 1},
        "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello"}}
    }));
    let observed = domain_mapping::Observed {
        mapping: &mapping,
        claim: None,
        ingress: None,
        certificate: None,
        target: domain_mapping::Target::Service,
    };
    format!("{:?}", domain_mapping::plan(&observed, configs, at(1)))
}

fn wildcard_plan(configs: &Configs) -> String {
    let namespace =
        object(json!({"metadata": {"name": "default", "uid": "ns-uid", "labels": {"team": "shop"}}}));
    format!("{:?}", wildcard::plan(&namespace, &[], configs))
}

fn order_plan(configs: &Configs) -> String {
    let certificate = object(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Certificate",
        "metadata": {"name": "c", "namespace": "default", "uid": "cert-uid"},
        "spec": {"dnsNames": ["a.example.com"], "secretName": "c"}
    }));
    let observed = cert_manager::Observed { certificate: &certificate, ordered: None, installed: true };
    format!("{:?}", cert_manager::plan(&observed, &configs.certmanager, at(1)))
}

fn gc_plan(configs: &Configs) -> Vec<String> {
    let idle = |n: i64| {
        let mut object = with_status(&live(n), ready("True", None));
        let labels = object.metadata.labels.get_or_insert_default();
        labels.insert("serving.knative.dev/routingState".into(), "reserve".into());
        object.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(n)));
        Arc::new(object)
    };
    let all: Vec<_> = (1..4).map(idle).collect();
    crate::testing::summary(&gc::plan(&configuration(), &all, &configs.gc, at(3600)))
}

/// A Service that wants everything that somebody may have to allow.
fn greedy() -> Value {
    let container = json!({
        "image": "hello", "ports": [{"containerPort": 8080}],
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}},
        "volumeMounts": [
            {"name": "empty", "mountPath": "/a", "mountPropagation": "HostToContainer"},
            {"name": "host", "mountPath": "/b"}, {"name": "csi", "mountPath": "/c"},
            {"name": "image", "mountPath": "/d"}, {"name": "claim", "mountPath": "/e"},
            {"name": "ephemeral", "mountPath": "/f"}
        ]
    });
    json!({
        "metadata": {"annotations": {"features.knative.dev/podspec-dryrun": "enabled"}},
        "spec": {
            "containers": [container, {"name": "second", "image": "second", "readinessProbe": {"tcpSocket": {"port": 1}}}],
            "initContainers": [{"image": "init"}],
            "affinity": {"nodeAffinity": {}}, "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}],
            "nodeSelector": {"a": "b"}, "tolerations": [{"key": "a"}], "schedulerName": "a", "priorityClassName": "a",
            "runtimeClassName": "a", "hostAliases": [{"ip": "10.0.0.1"}], "dnsPolicy": "Default",
            "dnsConfig": {"nameservers": ["10.0.0.1"]}, "shareProcessNamespace": true, "hostIPC": true, "hostPID": true,
            "hostNetwork": true, "securityContext": {"runAsUser": 1},
            "volumes": [
                {"name": "empty", "emptyDir": {}}, {"name": "host", "hostPath": {"path": "/x"}},
                {"name": "csi", "csi": {"driver": "a", "readOnly": true}}, {"name": "image", "image": {"reference": "a"}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "a", "readOnly": false}},
                {"name": "ephemeral", "ephemeral": {}}
            ]
        }
    })
}

/// What the webhooks say of some Services.
fn admission(configs: &Configs) -> String {
    let plain = |metadata: Value, spec: Value| {
        let mut template = json!({"metadata": metadata, "spec": {"containers": [{"image": "hello"}]}});
        template["spec"]
            .as_object_mut()
            .expect("an object")
            .extend(spec.as_object().cloned().unwrap_or_default());
        template
    };
    let annotated =
        |key: &str, value: &str| json!({"annotations": {(format!("autoscaling.knative.dev/{key}")): value}});
    let mut said = String::new();
    for template in [
        plain(json!({}), json!({})),
        plain(annotated("initial-scale", "0"), json!({})),
        plain(annotated("max-scale", "50"), json!({})),
        plain(json!({}), json!({"timeoutSeconds": 700})),
        plain(json!({}), json!({"containerConcurrency": 0})),
        plain(json!({}), json!({"containerConcurrency": 2000})),
        greedy(),
    ] {
        let request = json!({
            "uid": "1", "kind": {"group": "serving.knative.dev", "version": "v1", "kind": "Service"},
            "operation": "CREATE", "namespace": "default", "userInfo": {"username": "jo"}, "oldObject": null,
            "object": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"}, "spec": {"template": template}}
        });
        said += &format!(
            "{:?}\n{:?}\n",
            webhook::defaulting(&request, configs),
            webhook::validation(&request, configs)
        );
    }
    said
}

/// The keys that a ConfigMap's `_example` explains, those that are commented out among them.
fn explained(name: &str) -> BTreeSet<String> {
    let text = example(name).expect("every ConfigMap has an example");
    text.lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.strip_prefix("# ").unwrap_or(line).split_once(": "))
        .filter(|(key, value)| (value.starts_with(['"', '\'']) || *value == "|") && !key.contains(' '))
        .map(|(key, _)| key.to_owned())
        .collect()
}

#[test]
fn every_key_has_its_place() {
    for name in NAMES {
        let tried = TABLE.iter().find(|(of, _)| of == name).map(|(_, keys)| *keys).unwrap_or_default();
        let tried: BTreeSet<String> = tried.iter().map(|(key, ..)| (*key).to_owned()).collect();
        let mut explained = explained(name);
        // Another domain, of the same kind.
        explained.remove("prod.example.com");
        assert_eq!(explained, tried, "{name}: explained, and tried here");
    }
}

#[test]
fn every_key_acts_without_a_restart_or_says_so() {
    let mut silent = Vec::new();
    for (name, key, value, seen) in
        TABLE.iter().flat_map(|(name, keys)| keys.iter().map(move |(k, v, s)| (*name, *k, *v, *s)))
    {
        let (before, after) = match before_and_after(name, key, value) {
            Ok(pair) => pair,
            Err(problem) => {
                silent.push(problem);
                continue;
            }
        };
        let patched = |from: &Configs, to: &Configs| {
            let plan = decided(Some(&deployment(from)), to);
            crate::testing::summary(&plan).contains(&"patch Deployment/hello-00001-deployment".to_owned())
        };
        let acts = match seen {
            Seen::Deployment => {
                assert!(!patched(&before, &before), "{name} {key}: nothing changed");
                patched(&before, &after) && patched(&after, &before)
            }
            NextDeployment => deployment(&before) != deployment(&after),
            Status => {
                decided(Some(&deployment(&before)), &before).status
                    != decided(Some(&deployment(&before)), &after).status
            }
            Seen::Route => route_plan(&before) != route_plan(&after),
            Seen::DomainMapping => mapping_plan(&before) != mapping_plan(&after),
            Seen::Wildcard => wildcard_plan(&before) != wildcard_plan(&after),
            Seen::Order => order_plan(&before) != order_plan(&after),
            Gc => gc_plan(&before) != gc_plan(&after),
            Admission => admission(&before) != admission(&after),
            Lookup => before.deployment != after.deployment,
            Autoscaler => before.autoscaler != after.autoscaler,
            Seen::Gateway => before.network != after.network || before.observability != after.observability,
            Said(words) => example(name).is_some_and(|text| text.replace("\n# ", " ").contains(words)),
        };
        if !acts {
            silent.push(format!("{name} {key} ({seen:?})"));
        }
    }
    assert!(silent.is_empty(), "a change of these is not seen: {silent:#?}");
}
