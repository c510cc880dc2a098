use serde_json::{Value, json};

use super::*;
use crate::testing::{
    at, condition, configuration, object, pair, ready, revision as live, route, summary, with_status,
};

fn platform() -> Platform {
    crate::Config::default().platform("ROOTS".into())
}

fn configs() -> Configs {
    let mut configs = Configs::default();
    configs.deployment.queue_sidecar_image = "queue-proxy:v1".into();
    configs
}

fn digests() -> Digests {
    let status =
        ContainerStatus { name: Some("user-container".into()), image_digest: Some("hello@sha256:1".into()) };
    Digests::Resolved { containers: vec![status], init_containers: Vec::new() }
}

struct Scene {
    revision: Revision,
    digests: Digests,
    deployment: Option<Deployment>,
    pods: Vec<Arc<Pod>>,
    pa: Option<PodAutoscaler>,
    mesh_root: Option<ConfigMap>,
    network_policy: Option<NetworkPolicy>,
    mode: Mode,
    images: Vec<String>,
}

impl Scene {
    /// A revision whose children are all there.
    fn settled() -> Self {
        let mut revision = live(1);
        revision.metadata.labels.get_or_insert_default().insert(keys::ROUTING_STATE.into(), "active".into());
        revision.metadata.annotations.get_or_insert_default().insert(keys::ROUTES.into(), "hello".into());
        let status = json!({"observedGeneration": 1, "containerStatuses": [{"name": "user-container", "imageDigest": "hello@sha256:1"}]});
        let revision: Revision = with_status(&revision, status);
        let deployment =
            deployment(&revision, &revision.status.clone().unwrap_or_default(), &configs(), &platform());
        Self {
            digests: Digests::Pending,
            deployment: Some(deployment),
            pods: Vec::new(),
            pa: Some(pod_autoscaler(&revision)),
            mesh_root: Some(mesh_root(&revision, &platform())),
            network_policy: Some(network_policy::network_policy(revision.namespace())),
            mode: Mode::Strict,
            images: vec!["hello-00001-cache-user-container".into()],
            revision,
        }
    }

    fn deployment_status(mut self, status: Value) -> Self {
        self.deployment = self.deployment.map(|d| with_status(&d, status));
        self
    }

    fn pa_status(mut self, status: Value) -> Self {
        self.pa = self.pa.map(|pa| with_status(&pa, status));
        self
    }

    fn pod(mut self, status: Value) -> Self {
        self.pods.push(Arc::new(object(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "status": status
        }))));
        self
    }

    fn run(&self) -> Plan {
        let mut follows = ready("True", None);
        follows["latestCreatedRevisionName"] = json!("hello-00001");
        let configuration: Configuration = with_status(&configuration(), follows);
        let observed = Observed {
            revision: &self.revision,
            configuration: Some(&configuration),
            routes: &[Arc::new(with_status(&route(), ready("True", None)))],
            digests: &self.digests,
            deployment: self.deployment.as_ref(),
            pods: &self.pods,
            pod_autoscaler: self.pa.as_ref(),
            mesh_root: self.mesh_root.as_ref(),
            network_policy: self.network_policy.as_ref(),
            images: &self.images,
        };
        plan(&observed, &configs(), &Platform { mtls_mode: self.mode, ..platform() }, at(1))
    }
}

fn pa_status(ready: &str, reason: &str, initialized: &str) -> Value {
    json!({
        "serviceName": "hello-00001", "actualScale": 0, "desiredScale": 0,
        "conditions": [
            {"type": "Ready", "status": ready, "reason": reason, "message": ""},
            {"type": "ScaleTargetInitialized", "status": initialized}
        ]
    })
}

#[test]
fn nothing_is_made_before_the_digests_are_known() {
    let mut scene = Scene::settled();
    scene.revision = live(1);
    let plan = scene.run();
    assert_eq!(summary(&plan), ["patch Revision/hello-00001"], "only the routing state");
    assert_eq!(condition(&plan, "Ready"), pair("Unknown", "ResolvingDigests"));
    scene.digests = Digests::Failed("Unable to fetch image \"hello:v1\": manifest unknown".into());
    let plan = scene.run();
    assert_eq!(condition(&plan, "Ready"), pair("False", "ContainerMissing"));
    assert_eq!(condition(&plan, "ContainerHealthy"), pair("False", "ContainerMissing"));
    assert!(plan.notes.iter().any(|n| n.warning));
}

#[test]
fn a_new_revision_gets_its_children() {
    let mut scene = Scene::settled();
    scene.revision = live(1);
    scene.digests = digests();
    (scene.deployment, scene.pa, scene.mesh_root, scene.images) = (None, None, None, Vec::new());
    let plan = scene.run();
    assert_eq!(
        summary(&plan),
        [
            "create ConfigMap/ebb-mesh-root",
            "patch Revision/hello-00001",
            "create Deployment/hello-00001-deployment",
            "create PodAutoscaler/hello-00001",
            "create Image/hello-00001-cache-user-container",
        ]
    );
    assert_eq!(condition(&plan, "Ready"), pair("Unknown", "Deploying"));
    assert_eq!(condition(&plan, "Active"), pair("Unknown", "Deploying"));
    let status = plan.status.expect("a status");
    assert_eq!(status["containerStatuses"][0]["imageDigest"], "hello@sha256:1");
}

#[test]
fn a_settled_revision_is_not_written() {
    let scene = Scene::settled()
        .deployment_status(json!({"readyReplicas": 1, "availableReplicas": 1, "conditions": [{"type": "Progressing", "status": "True"}]}))
        .pa_status(pa_status("True", "", "True"));
    let plan = scene.run();
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready").0, "True");
    let status = plan.status.expect("a status");
    let mut again = scene;
    again.revision = with_status(&again.revision, status);
    assert_eq!(again.run().status, None);
}

#[test]
fn scaled_by_another_it_stays_scaled() {
    let mut scene = Scene::settled();
    let spec = scene.deployment.as_mut().and_then(|d| d.spec.as_mut()).expect("a spec");
    spec.replicas = Some(7);
    assert_eq!(summary(&scene.run()), [""; 0]);
    let mut scene = Scene::settled();
    let spec = scene.deployment.as_mut().and_then(|d| d.spec.as_mut()).expect("a spec");
    spec.progress_deadline_seconds = Some(1);
    let plan = scene.run();
    assert_eq!(summary(&plan), ["patch Deployment/hello-00001-deployment"]);
    let Some(Change::Patch(_, patch)) = plan.then.first() else { panic!("a patch") };
    assert_eq!(patch["spec"].get("replicas"), None);
}

#[test]
fn conditions_from_deployment_pods_and_autoscaler() {
    let progressing = json!({"conditions": [{"type": "Progressing", "status": "True"}]});
    let waiting = |reason: &str| {
        json!({"containerStatuses": [
            {"name": "user-container", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": reason, "message": "why"}}}
        ]})
    };
    let exited = |code: i32, message: &str| {
        json!({"containerStatuses": [
            {"name": "queue-proxy", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"running": {}}},
            {"name": "user-container", "image": "", "imageID": "", "ready": false, "restartCount": 3,
             "lastState": {"terminated": {"exitCode": code, "message": message}},
             "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
        ]})
    };
    let unschedulable = json!({"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    ]});
    let running = |ready: &str, reason: &str| {
        Scene::settled().deployment_status(progressing.clone()).pa_status(pa_status(ready, reason, "True"))
    };
    let starting = || Scene::settled().deployment_status(progressing.clone());
    for (name, scene, ready, active) in [
        ("deploying", starting(), pair("Unknown", "Deploying"), pair("Unknown", "Deploying")),
        ("serving", running("True", ""), pair("True", ""), pair("True", "")),
        ("at zero", running("False", "NoTraffic"), pair("True", ""), pair("False", "NoTraffic")),
        ("waking", running("Unknown", "Queued"), pair("True", ""), pair("Unknown", "Queued")),
        (
            "never came up",
            starting().pa_status(pa_status("False", "NoTraffic", "Unknown")),
            pair("False", "ProgressDeadlineExceeded"),
            pair("False", "NoTraffic"),
        ),
        ("no such image", starting().pod(waiting("ImagePullBackOff")), pair("False", "ImagePullBackOff"), pair("Unknown", "Deploying")),
        ("bad config", starting().pod(waiting("CreateContainerConfigError")), pair("False", "CreateContainerConfigError"), pair("Unknown", "Deploying")),
        ("creating", starting().pod(waiting("ContainerCreating")), pair("Unknown", "Deploying"), pair("Unknown", "Deploying")),
        ("crashing", starting().pod(exited(3, "boom")), pair("False", "ExitCode3"), pair("Unknown", "Deploying")),
        ("unschedulable", starting().pod(unschedulable), pair("False", "Unschedulable"), pair("Unknown", "Deploying")),
        (
            "deadline",
            Scene::settled().deployment_status(json!({"conditions": [
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"}
            ]})),
            pair("False", "ProgressDeadlineExceeded"),
            pair("Unknown", "Deploying"),
        ),
        (
            "quota",
            Scene::settled().deployment_status(json!({"conditions": [
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}
            ]})),
            pair("False", "FailedCreate"),
            pair("Unknown", "Deploying"),
        ),
    ] {
        let plan = scene.run();
        assert_eq!(condition(&plan, "Ready"), ready, "{name}");
        assert_eq!(condition(&plan, "Active"), active, "{name}");
    }
}

#[test]
fn an_exit_is_told_with_its_last_words() {
    let pod = json!({"containerStatuses": [
        {"name": "user-container", "image": "", "imageID": "", "ready": false, "restartCount": 1,
         "lastState": {"terminated": {"exitCode": 1, "message": "panic: no database\n"}}}
    ]});
    let plan = Scene::settled().deployment_status(json!({})).pod(pod).run();
    let conditions = plan.status.expect("a status")["conditions"].clone();
    let found = conditions.as_array().into_iter().flatten().find(|c| c["type"] == "Ready").expect("Ready");
    assert_eq!(found["message"], "Container failed with: panic: no database");
}

#[test]
fn active_is_for_information() {
    let plan = Scene::settled().pa_status(pa_status("False", "NoTraffic", "True")).run();
    let conditions = plan.status.expect("a status")["conditions"].clone();
    let active = conditions.as_array().into_iter().flatten().find(|c| c["type"] == "Active").expect("Active");
    assert_eq!(active["severity"], "Info");
}

#[test]
fn a_class_that_nothing_serves_is_a_failure_with_its_reason() {
    let mut status = pa_status("False", "ClassNotSupported", "Unknown");
    status["conditions"][0]["message"] = json!("use kpa");
    let plan = Scene::settled().pa_status(status).run();
    assert_eq!(condition(&plan, "Ready"), pair("False", "ClassNotSupported"));
}

#[test]
fn without_an_image_of_the_sidecar_nothing_is_made() {
    let scene = Scene::settled();
    let observed = Observed {
        revision: &scene.revision,
        configuration: None,
        routes: &[],
        digests: &scene.digests,
        deployment: None,
        pods: &[],
        pod_autoscaler: None,
        mesh_root: None,
        network_policy: None,
        images: &[],
    };
    let mut configs = configs();
    configs.deployment.queue_sidecar_image.clear();
    let plan = plan(&observed, &configs, &platform(), at(1));
    assert_eq!(condition(&plan, "ResourcesAvailable"), pair("False", "ConfigMissing"));
    assert!(!summary(&plan).iter().any(|change| change.starts_with("create")), "{:?}", summary(&plan));
}

#[test]
fn foreign_children_are_left_alone() {
    let mut scene = Scene::settled();
    scene.deployment.as_mut().expect("a Deployment").metadata.owner_references = None;
    let plan = scene.run();
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready"), pair("False", "NotOwned"));
}

#[test]
fn the_pod() {
    let scene = Scene::settled();
    let spec = scene.deployment.and_then(|d| d.spec).expect("a spec");
    assert_eq!(spec.replicas, Some(1));
    let pod = spec.template.spec.expect("a pod");
    assert_eq!(pod.termination_grace_period_seconds, Some(300));
    let [user, sidecar] = pod.containers.as_slice() else { panic!("two containers") };
    let env = |c: &k8s_openapi::api::core::v1::Container, name: &str| {
        c.env.iter().flatten().find(|e| e.name == name).and_then(|e| e.value.clone())
    };
    assert_eq!(user.image.as_deref(), Some("hello@sha256:1"));
    assert_eq!(env(user, "PORT").as_deref(), Some("8080"));
    assert_eq!(env(user, "K_REVISION").as_deref(), Some("hello-00001"));
    assert_eq!(env(user, "K_SERVICE").as_deref(), Some("hello"));
    assert!(user.readiness_probe.is_none(), "the sidecar probes");
    let pre_stop = user
        .lifecycle
        .as_ref()
        .and_then(|l| l.pre_stop.as_ref())
        .and_then(|p| p.http_get.as_ref())
        .expect("preStop");
    assert_eq!(pre_stop.path.as_deref(), Some("/wait-for-drain"));

    assert_eq!(sidecar.name, "queue-proxy");
    assert_eq!(env(sidecar, "SERVING_REVISION").as_deref(), Some("hello-00001"));
    assert_eq!(env(sidecar, "USER_PORT_PROTOCOL").as_deref(), Some("http1"));
    assert_eq!(env(sidecar, "EBB_MTLS_MODE").as_deref(), Some("strict"));
    assert_eq!(
        env(sidecar, "EBB_ACTIVATOR").as_deref(),
        Some("activator.ebb-system.svc.cluster.local.:8112")
    );
    let probe: Value =
        serde_json::from_str(&env(sidecar, "SERVING_READINESS_PROBE").expect("a probe")).expect("JSON");
    assert_eq!(probe["tcpSocket"]["port"], 8080);
    let get = sidecar.readiness_probe.as_ref().and_then(|p| p.http_get.as_ref()).expect("a probe");
    assert_eq!(
        get.http_headers.as_ref().map(|h| (h[0].name.as_str(), h[0].value.as_str())),
        Some(("K-Network-Probe", "queue"))
    );
    let mounted: Vec<_> = sidecar.volume_mounts.iter().flatten().map(|m| m.mount_path.as_str()).collect();
    assert_eq!(mounted, ["/var/run/secrets/ebb"]);
    let selector = spec.selector.match_labels.expect("a selector");
    let labels = spec.template.metadata.and_then(|m| m.labels).expect("labels");
    assert!(selector.iter().all(|(k, v)| labels.get(k) == Some(v)));
    assert!(!labels.contains_key(keys::ROUTING_STATE), "what changes must not roll the pods");
}

#[test]
fn reachability() {
    for (state, want) in [("pending", None), ("active", Some("Reachable")), ("reserve", Some("Unreachable"))]
    {
        let mut revision = live(1);
        revision.metadata.labels.get_or_insert_default().insert(keys::ROUTING_STATE.into(), state.into());
        let value = serde_json::to_value(pod_autoscaler(&revision)).expect("JSON");
        assert_eq!(value["spec"]["reachability"].as_str(), want, "{state}");
        assert_eq!(value["spec"]["scaleTargetRef"]["name"], "hello-00001-deployment");
    }
}

#[test]
fn strict_pods_are_guarded_before_they_are_made_and_permissive_ones_are_not() {
    let mut scene = Scene::settled();
    (scene.deployment, scene.network_policy) = (None, None);
    let plan = scene.run();
    let first: Vec<String> = summary(&Plan { then: Vec::new(), ..plan.clone() });
    assert_eq!(first, ["create NetworkPolicy/ebb-mesh"], "before the Deployment");
    let pod = |plan: &Plan| {
        let mut deployments = plan.then.iter().filter_map(|change| match change {
            Change::Create(target, body) | Change::Patch(target, body)
                if target.resource.kind == "Deployment" =>
            {
                Some(body.clone())
            }
            _ => None,
        });
        deployments.next_back().map(|body| body["spec"]["template"].clone()).expect("a Deployment")
    };
    assert_eq!(pod(&plan)["metadata"]["labels"]["mesh.ebb.dev/mtls"], "strict");
    scene.mode = Mode::Permissive;
    let plan = scene.run();
    assert!(plan.first.is_empty(), "{:?}", summary(&plan));
    let template = pod(&plan);
    assert_eq!(template["metadata"]["labels"]["mesh.ebb.dev/mtls"], "permissive");
    let env = template["spec"]["containers"][1]["env"].as_array().expect("env").clone();
    let mode = env.iter().find(|e| e["name"] == "EBB_MTLS_MODE").expect("the sidecar's mode");
    assert_eq!(mode["value"], "permissive", "label and sidecar say the same");
    // A change of mode reaches pods that are there.
    let mut scene = Scene::settled();
    scene.mode = Mode::Permissive;
    assert_eq!(pod(&scene.run())["metadata"]["labels"]["mesh.ebb.dev/mtls"], "permissive");
}

#[test]
fn a_weakened_policy_is_put_right() {
    let mut scene = Scene::settled();
    assert_eq!(summary(&scene.run()), [""; 0]);
    let spec = scene.network_policy.as_mut().and_then(|policy| policy.spec.as_mut()).expect("a policy");
    spec.ingress.get_or_insert_default().push(Default::default());
    assert_eq!(summary(&scene.run()), ["patch NetworkPolicy/ebb-mesh"]);
}
