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
    trouble: Option<Trouble>,
    refused: Option<&'static str>,
    configs: Configs,
    now: i64,
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
            pa: Some(pod_autoscaler(&revision, autoscaling::KPA)),
            mesh_root: Some(mesh_root(&revision, &platform())),
            network_policy: Some(network_policy::network_policy(revision.namespace())),
            mode: Mode::Strict,
            images: vec!["hello-00001-cache-user-container".into()],
            trouble: None,
            refused: None,
            configs: configs(),
            now: 1,
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
            trouble: self.trouble.as_ref(),
            refused: self.refused,
        };
        plan(&observed, &self.configs, &Platform { mtls_mode: self.mode, ..platform() }, at(self.now))
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
    assert_eq!(
        plan.notes.iter().map(|n| (n.warning, n.reason)).collect::<Vec<_>>(),
        [(true, "RevisionFailed")]
    );
    scene.revision = with_status(&scene.revision, plan.status.expect("a status"));
    let again = scene.run();
    assert_eq!((again.status, again.notes), (None, Vec::new()), "once");
    // Tried again, and it is there: what it said before is over.
    scene.digests = digests();
    assert_eq!(condition(&scene.run(), "Ready"), pair("Unknown", "Deploying"));
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
        ("no such registry", starting().pod(waiting("RegistryUnavailable")), pair("False", "RegistryUnavailable"), pair("Unknown", "Deploying")),
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
fn the_sidecar_is_told_where_metrics_go_only_if_they_go_anywhere() {
    let told = |protocol: &str| {
        let mut configs = configs();
        configs.observability.request_metrics_protocol = protocol.into();
        configs.observability.request_metrics_endpoint = "http://collector:4318".into();
        let deployment = deployment(&live(1), &RevisionStatus::default(), &configs, &platform());
        let text = serde_json::to_string(&deployment).expect("JSON");
        (text.contains("SERVING_REQUEST_METRICS_PROTOCOL"), text.contains("http://collector:4318"))
    };
    assert_eq!(told("http/protobuf"), (true, true));
    assert_eq!(told("prometheus"), (false, false), "no pod is made anew for what is not sent");
}

#[test]
fn active_is_for_information() {
    let plan = Scene::settled().pa_status(pa_status("False", "NoTraffic", "True")).run();
    let conditions = plan.status.expect("a status")["conditions"].clone();
    let active = conditions.as_array().into_iter().flatten().find(|c| c["type"] == "Active").expect("Active");
    assert_eq!(active["severity"], "Info");
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
        trouble: None,
        refused: None,
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
        let value = serde_json::to_value(pod_autoscaler(&revision, autoscaling::KPA)).expect("JSON");
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

fn message(plan: &Plan, type_: &str) -> String {
    let conditions = plan.status.as_ref().expect("a status")["conditions"].clone();
    let found = conditions.as_array().into_iter().flatten().find(|c| c["type"] == type_).cloned();
    found.expect("the condition")["message"].as_str().unwrap_or_default().to_owned()
}

fn progressing() -> Value {
    json!({"conditions": [{"type": "Progressing", "status": "True"}]})
}

fn late() -> Value {
    json!({"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
                           "message": "ReplicaSet \"x\" has timed out progressing."}]})
}

/// A pod that was bound to its node at second 0, with the state of the user's container.
fn bound(state: Value) -> Value {
    json!({
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": crate::plan::rfc3339(at(0))}],
        "containerStatuses": [{"name": "user-container", "image": "", "imageID": "", "ready": false,
                               "restartCount": 0, "state": state}]
    })
}

fn creating() -> Value {
    bound(json!({"waiting": {"reason": "ContainerCreating"}}))
}

#[test]
fn what_holds_a_pod_up_is_looked_for_and_told() {
    let mut scene = Scene::settled().deployment_status(progressing()).pod(creating());
    assert_eq!(scene.run().requeue_after, Some(Duration::from_secs(1)), "not before it takes long");
    scene.now = 40;
    assert_eq!(scene.run().requeue_after, Some(Duration::from_secs(10)), "seldom, once it has taken long");
    let mount = |message: &str| {
        let event = json!({"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": "FailedMount", "message": message});
        trouble::of_events(&object(json!({"metadata": {}, "status": creating()})), &[object(event)])
    };
    scene.trouble = mount("MountVolume.SetUp failed for volume \"v\" : secret \"gone\" not found");
    let plan = scene.run();
    assert_eq!(condition(&plan, "Ready"), pair("False", "FailedMount"), "somebody has to make it");
    assert!(message(&plan, "Ready").contains("secret \"gone\" not found"));
    scene.trouble = mount("AttachVolume.Attach failed: still in use");
    let plan = scene.run();
    assert_eq!(condition(&plan, "Ready"), pair("Unknown", "Deploying"), "that may pass");
    assert!(message(&plan, "Ready").contains("still in use"));
    scene = scene.deployment_status(late());
    let plan = scene.run();
    assert_eq!(condition(&plan, "Ready"), pair("False", "ProgressDeadlineExceeded"));
    assert_eq!(
        message(&plan, "Ready"),
        "ReplicaSet \"x\" has timed out progressing. AttachVolume.Attach failed: still in use"
    );
    // It runs now: what was said of its volumes is over.
    scene = scene.deployment_status(progressing());
    scene.pods.clear();
    let mut scene = scene.pod(bound(json!({"running": {}})));
    let plan = scene.run();
    assert_eq!(
        (condition(&plan, "Ready"), message(&plan, "Ready")),
        (pair("Unknown", "Deploying"), String::new())
    );
    scene.trouble = trouble::of_sidecar("the app answered 500 to GET /healthz\n");
    assert_eq!(
        message(&scene.run(), "Ready"),
        "Readiness probe failed: the app answered 500 to GET /healthz"
    );
}

#[test]
fn what_a_container_waits_for_counts_once_it_is_late() {
    let slow = || bound(json!({"waiting": {"reason": "Resizing", "message": "why"}}));
    assert_eq!(
        condition(&Scene::settled().deployment_status(progressing()).pod(slow()).run(), "Ready").0,
        "Unknown"
    );
    let plan = Scene::settled().deployment_status(late()).pod(slow()).run();
    assert_eq!(condition(&plan, "Ready"), pair("False", "Resizing"));
}

#[test]
fn out_of_memory_is_said_so() {
    let ended = |message: &str| {
        let pod = bound(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": message}}));
        Scene::settled().deployment_status(progressing()).pod(pod).run()
    };
    assert_eq!(condition(&ended(""), "Ready"), pair("False", "ExitCode137"));
    for (said, want) in [("", "raise resources.limits.memory"), ("loading\n", "its last words: loading")] {
        let message = message(&ended(said), "Ready");
        assert!(message.contains("out of memory") && message.ends_with(want), "{message}");
    }
}

#[test]
fn a_state_that_goes_on_is_not_written_again() {
    let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "why"}});
    let mut scene = Scene::settled().deployment_status(progressing()).pod(bound(waiting));
    scene.revision = with_status(&scene.revision, scene.run().status.expect("a status"));
    scene.now = 7;
    let again = scene.run();
    assert_eq!((again.status, again.notes), (None, Vec::new()));
}

#[test]
fn what_the_api_server_refuses_is_told() {
    let mut scene = Scene::settled().deployment_status(progressing());
    (scene.deployment, scene.refused) = (None, Some("could not create Deployment x: exceeded quota"));
    let plan = scene.run();
    assert_eq!(condition(&plan, "Ready"), pair("False", "FailedCreate"));
    assert!(message(&plan, "Ready").contains("exceeded quota"));
    assert!(
        summary(&plan).contains(&"create Deployment/hello-00001-deployment".to_owned()),
        "it is tried again"
    );
}

#[test]
fn ready_and_failed_are_told_once() {
    let mut scene =
        Scene::settled().deployment_status(progressing()).pa_status(pa_status("True", "", "True"));
    let plan = scene.run();
    assert_eq!(plan.notes.iter().map(|n| n.reason).collect::<Vec<_>>(), ["RevisionReady"]);
    scene.revision = with_status(&scene.revision, plan.status.expect("a status"));
    assert_eq!(scene.run().notes, []);
}

#[test]
fn where_the_logs_are() {
    let mut scene = Scene::settled();
    scene.configs.observability.revision_url_template = "https://logs/?r=${REVISION_UID}".into();
    assert_eq!(scene.run().status.expect("a status")["logUrl"], "https://logs/?r=rev-1-uid");
}

#[test]
fn scaling_annotations_are_the_autoscalers_and_roll_nothing() {
    let mut revision = live(1);
    revision
        .metadata
        .annotations
        .get_or_insert_default()
        .insert("autoscaling.knative.dev/min-scale".into(), "2".into());
    let has = |metadata: &ObjectMeta| {
        metadata.annotations.iter().flatten().any(|(key, _)| key.starts_with("autoscaling.knative.dev/min"))
    };
    let made = deployment(&revision, &RevisionStatus::default(), &configs(), &platform());
    let template = made.spec.and_then(|s| s.template.metadata).expect("a template");
    assert!(!has(&made.metadata) && !has(&template));
    assert_eq!(
        template.annotations.expect("some")["kubectl.kubernetes.io/default-container"],
        "user-container"
    );
    assert!(has(&pod_autoscaler(&revision, autoscaling::KPA).metadata));
}

/// What a platform's setting took away goes from the pods as well, though others add fields there.
#[test]
fn a_setting_that_is_taken_back_reaches_pods() {
    let mut scene = Scene::settled();
    scene.configs.deployment.queue_sidecar_limits.insert("memory".into(), "64Mi".into());
    scene.configs.deployment.runtime_classes.insert("kata".into(), BTreeMap::new());
    let made = |scene: &Scene| {
        deployment(
            &scene.revision,
            &scene.revision.status.clone().unwrap_or_default(),
            &scene.configs,
            &platform(),
        )
    };
    let mut live = made(&scene);
    live.spec.as_mut().expect("a spec").replicas = Some(7);
    scene.deployment = Some(live);
    assert_eq!(summary(&scene.run()), [""; 0]);
    scene.configs = configs();
    let plan = scene.run();
    let Some(Change::Patch(_, patch)) = plan.then.first() else { panic!("a patch") };
    assert_eq!(patch["spec"].get("replicas"), None);
    assert_eq!(patch["spec"]["template"]["spec"]["runtimeClassName"], Value::Null);
    assert!(patch["spec"]["template"]["spec"].as_object().expect("a map").contains_key("runtimeClassName"));
    assert_eq!(patch["spec"]["template"]["spec"]["containers"][1]["resources"].get("limits"), None);
}

#[test]
fn the_sidecar_by_settings_and_annotations() {
    let mut revision = live(1);
    let annotations = revision.metadata.annotations.get_or_insert_default();
    annotations.insert(keys::QUEUE_RESOURCE_PERCENTAGE.key().into(), "20".into());
    annotations.insert(keys::QUEUE_MEMORY_LIMIT.key().into(), "77Mi".into());
    annotations.insert(keys::QUEUE_POD_INFO.into(), "Enabled".into());
    let app = json!({"requests": {"cpu": "400m", "memory": "8Mi"}, "limits": {"cpu": "9", "memory": "1Gi"}});
    revision.spec.pod.containers[0].resources = Some(object(app));
    let mut configs = configs();
    configs.deployment.queue_sidecar_token_audiences.insert("vault".into());
    configs.features = ebb_api::config::Features::parse(
        &[("queueproxy.mount-podinfo".to_owned(), "allowed".to_owned())].into(),
    )
    .expect("good");
    configs.observability.enable_var_log_collection = true;
    let made = deployment(&revision, &RevisionStatus::default(), &configs, &platform());
    let pod = made.spec.and_then(|s| s.template.spec).expect("a pod");
    let [user, sidecar] = pod.containers.as_slice() else { panic!("two containers") };
    let resources = serde_json::to_value(&sidecar.resources).expect("JSON");
    assert_eq!(resources["requests"], json!({"cpu": "80m", "memory": "50Mi"}));
    assert_eq!(resources["limits"], json!({"cpu": "500m", "memory": "77Mi"}));
    let mounts = |c: &k8s_openapi::api::core::v1::Container| {
        c.volume_mounts.iter().flatten().map(|m| m.mount_path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(mounts(sidecar), ["/var/run/secrets/ebb", "/etc/podinfo", "/var/run/secrets/tokens"]);
    assert_eq!(mounts(user), ["/var/log"]);
    let volumes: Vec<_> = pod.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
    assert_eq!(volumes, ["ebb-mesh", "pod-info", "knative-token-volume", "knative-var-log"]);
    let ports: Vec<_> = sidecar.ports.iter().flatten().filter_map(|p| p.name.as_deref()).collect();
    assert!(ports.contains(&"queue-port") && ports.iter().all(|name| name.len() <= 15), "{ports:?}");
}

#[test]
fn a_liveness_probe_asks_the_apps_port() {
    let port = |any: bool| {
        let mut revision = live(1);
        let probe = json!({"httpGet": {"path": "/live", "port": 9999}});
        revision.spec.pod.containers[0].liveness_probe = Some(object(probe));
        let mut configs = configs();
        if any {
            let flags = [("multi-container-probing".to_owned(), "enabled".to_owned())];
            configs.features = ebb_api::config::Features::parse(&flags.into()).expect("good");
        }
        let made = deployment(&revision, &RevisionStatus::default(), &configs, &platform());
        let pod = made.spec.and_then(|s| s.template.spec).expect("a pod");
        serde_json::to_value(&pod.containers[0]).expect("JSON")["livenessProbe"]["httpGet"]["port"].clone()
    };
    assert_eq!((port(false), port(true)), (json!(8080), json!(9999)));
}

#[test]
fn the_sidecar_probes_all_containers_where_they_may_have_probes() {
    let mut revision = live(1);
    let side = |name: &str, probe: Value| json!({"name": name, "image": "x", "readinessProbe": probe});
    revision.spec.pod.containers[0].ports = Some(vec![object(json!({"containerPort": 8080}))]);
    revision.spec.pod.containers.extend([
        object(side("a", json!({"httpGet": {"path": "/a", "port": 9000}}))),
        object(side("b", json!({"exec": {"command": ["true"]}}))),
    ]);
    let mut configs = configs();
    let flags = [("multi-container-probing".to_owned(), "enabled".to_owned())];
    configs.features = ebb_api::config::Features::parse(&flags.into()).expect("good");
    let made = deployment(&revision, &RevisionStatus::default(), &configs, &platform());
    let pod = made.spec.and_then(|s| s.template.spec).expect("a pod");
    let kept: Vec<_> =
        pod.containers.iter().filter(|c| c.readiness_probe.is_some()).map(|c| c.name.as_str()).collect();
    assert_eq!(kept, ["b", "queue-proxy"], "kubelet runs what only it can");
    let env = pod.containers[3].env.iter().flatten().find(|e| e.name == "SERVING_READINESS_PROBE");
    let value = env.and_then(|e| e.value.clone()).expect("a value");
    let probes: Value = serde_json::from_str(&value).expect("JSON");
    assert_eq!(
        (&probes[0]["tcpSocket"]["port"], &probes[1]["httpGet"]["port"]),
        (&json!(8080), &json!(9000))
    );
    assert_eq!(probes.as_array().map(Vec::len), Some(2));
}
