use serde_json::{Value, json};

use super::*;
use crate::plan::Change;
use crate::testing::{
    at, condition, configuration, pair, ready, revision, route as live, summary, with_status,
};

struct Scene {
    route: Route,
    configurations: BTreeMap<String, Arc<Configuration>>,
    revisions: BTreeMap<String, Arc<Revision>>,
    ingress: Option<Ingress>,
    services: BTreeMap<String, Arc<Service>>,
    configs: Configs,
    now: i64,
}

impl Scene {
    /// Two ready revisions, the second the latest.
    fn new(traffic: Value) -> Self {
        let mut route = live();
        route.spec.traffic = serde_json::from_value(traffic).expect("traffic");
        let mut status = ready("True", None);
        status["latestReadyRevisionName"] = json!("hello-00002");
        let configuration: Configuration = with_status(&configuration(), status);
        let revisions = [1, 2].map(|n| {
            let revision: Revision = with_status(&revision(n), ready("True", None));
            (revision.name_any(), Arc::new(revision))
        });
        let mut configs = Configs::default();
        configs.domain.domains = BTreeMap::from([("example.com".to_owned(), BTreeMap::new())]);
        Self {
            route,
            configurations: BTreeMap::from([("hello".to_owned(), Arc::new(configuration))]),
            revisions: BTreeMap::from(revisions),
            ingress: None,
            services: BTreeMap::new(),
            configs,
            now: 1,
        }
    }

    fn run(&self) -> Plan {
        plan(
            &Observed {
                route: &self.route,
                configurations: &self.configurations,
                revisions: &self.revisions,
                ingress: self.ingress.as_ref(),
                services: &self.services,
                system_namespace: "ebb-system",
            },
            &self.configs,
            at(self.now),
        )
    }

    /// Takes over what the plan makes, as the API server and the gateway would.
    fn settle(&mut self, ingress_ready: &str) {
        let plan = self.run();
        for change in plan.then {
            match change {
                Change::Create(t, body) if t.resource.kind == "Ingress" => {
                    self.ingress = Some(serde_json::from_value(body).expect("an Ingress"));
                }
                Change::Create(t, body) => {
                    self.services.insert(t.name, Arc::new(serde_json::from_value(body).expect("a Service")));
                }
                Change::Patch(t, patch) if t.resource.kind == "Ingress" => {
                    let mut value = serde_json::to_value(&self.ingress).expect("JSON");
                    merge(&mut value, &patch);
                    self.ingress = Some(serde_json::from_value(value).expect("an Ingress"));
                }
                _ => {}
            }
        }
        if let Some(status) = plan.status {
            let mut value = serde_json::to_value(&self.route).expect("JSON");
            merge(&mut value, &json!({"status": status}));
            self.route = serde_json::from_value(value).expect("a Route");
        }
        if let Some(ingress) = &mut self.ingress {
            ingress.metadata.generation = Some(1);
            *ingress = with_status(ingress, ready(ingress_ready, None));
        }
    }
}

fn merge(value: &mut Value, patch: &Value) {
    match patch.as_object() {
        Some(patch) if value.is_object() => {
            for (key, change) in patch {
                if change.is_null() {
                    value.as_object_mut().map(|m| m.remove(key));
                } else {
                    merge(&mut value[key.as_str()], change);
                }
            }
        }
        _ => *value = patch.clone(),
    }
}

fn latest() -> Value {
    json!([{"configurationName": "hello", "latestRevision": true, "percent": 100}])
}

fn canary() -> Value {
    json!([
        {"revisionName": "hello-00001", "latestRevision": false, "percent": 90, "tag": "stable"},
        {"configurationName": "hello", "latestRevision": true, "percent": 10, "tag": "canary"}
    ])
}

/// host -> revision=percent, by visibility.
fn splits(ingress: &Ingress, host: &str) -> Vec<(String, i32)> {
    let rule = ingress.spec.rules.iter().find(|r| r.hosts.iter().any(|h| h == host));
    let rule = rule.unwrap_or_else(|| panic!("no rule for {host}"));
    let path = rule.http.as_ref().and_then(|h| h.paths.last()).expect("a path");
    path.splits.iter().map(|s| (s.service_name.clone(), s.percent)).collect()
}

#[test]
fn what_is_said_of_certificates() {
    let mut scene = Scene::new(latest());
    let said = |scene: &Scene| condition(&scene.run(), "CertificateProvisioned");
    assert_eq!(said(&scene), pair("True", "TLSNotEnabled"));
    scene.configs.network.external_domain_tls = true;
    assert_eq!(said(&scene), pair("False", "NotSupported"));
    // Nobody comes from outside: there is nothing to be had.
    scene.route.metadata.labels.get_or_insert_default().insert(VISIBILITY.into(), CLUSTER_LOCAL.into());
    assert_eq!(said(&scene), pair("True", "TLSNotEnabled"));
}

#[test]
fn all_to_the_latest() {
    let mut scene = Scene::new(latest());
    let plan = scene.run();
    assert_eq!(summary(&plan), ["create Service/hello", "create Ingress/hello"]);
    assert_eq!(condition(&plan, "IngressReady"), pair("Unknown", "IngressNotConfigured"));
    let status = plan.status.clone().expect("a status");
    assert_eq!(status["url"], "http://hello.default.example.com");
    assert_eq!(status["address"]["url"], "http://hello.default.svc.cluster.local");
    assert_eq!(
        status["traffic"],
        json!([{"revisionName": "hello-00002", "latestRevision": true, "percent": 100}])
    );

    scene.settle("True");
    let plan = scene.run();
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready"), pair("True", ""));
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    for host in
        ["hello.default.example.com", "hello.default", "hello.default.svc", "hello.default.svc.cluster.local"]
    {
        assert_eq!(splits(ingress, host), [("hello-00002".to_owned(), 100)]);
    }
    let headers = &ingress.spec.rules[0].http.as_ref().expect("http").paths[0].splits[0].append_headers;
    assert_eq!(headers["Knative-Serving-Revision"], "hello-00002");
    let service = scene.services["hello"].spec.as_ref().expect("a spec");
    assert_eq!(service.external_name.as_deref(), Some("gateway-internal.ebb-system.svc.cluster.local"));
    scene.settle("True");
    assert_eq!(scene.run().status, None, "a settled Route is not written");
}

#[test]
fn shares_and_tags() {
    let mut scene = Scene::new(canary());
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    assert_eq!(
        splits(ingress, "hello.default.example.com"),
        [("hello-00001".to_owned(), 90), ("hello-00002".to_owned(), 10)]
    );
    assert_eq!(splits(ingress, "canary-hello.default.example.com"), [("hello-00002".to_owned(), 100)]);
    assert_eq!(splits(ingress, "stable-hello.default"), [("hello-00001".to_owned(), 100)]);
    let traffic = scene.route.status.as_ref().expect("a status").traffic.clone();
    assert_eq!(traffic[1].url.as_deref(), Some("http://canary-hello.default.example.com"));
    let names: Vec<_> = scene.services.keys().map(String::as_str).collect();
    assert_eq!(names, ["canary-hello", "hello", "stable-hello"]);

    // A tag that goes takes its Service along.
    scene.route.spec.traffic = serde_json::from_value(latest()).expect("traffic");
    let plan = scene.run();
    assert!(summary(&plan).contains(&"delete Service/canary-hello".to_owned()), "{:?}", summary(&plan));
}

#[test]
fn zero_percent_is_never_served() {
    let mut scene = Scene::new(json!([
        {"revisionName": "hello-00001", "percent": 0, "tag": "old"},
        {"configurationName": "hello", "latestRevision": true, "percent": 100}
    ]));
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    assert_eq!(splits(ingress, "hello.default.example.com"), [("hello-00002".to_owned(), 100)]);
    assert_eq!(splits(ingress, "old-hello.default"), [("hello-00001".to_owned(), 100)]);
}

#[test]
fn what_cannot_be_served_is_said_and_the_old_stays() {
    let missing = json!([{"revisionName": "nope", "percent": 100}]);
    let no_configuration = json!([{"configurationName": "nope", "percent": 100, "latestRevision": true}]);
    let pinned = json!([{"revisionName": "hello-00001", "percent": 100}]);
    let with = |status: Value, scene: &mut Scene| {
        let revision: Revision = with_status(&*scene.revisions["hello-00001"], status);
        scene.revisions.insert("hello-00001".into(), Arc::new(revision));
    };
    for (traffic, status, want) in [
        (missing, None, pair("False", "RevisionMissing")),
        (no_configuration, None, pair("False", "ConfigurationMissing")),
        (pinned.clone(), Some(ready("Unknown", None)), pair("Unknown", "RevisionMissing")),
        (pinned, Some(ready("False", Some("ExitCode1"))), pair("False", "RevisionMissing")),
    ] {
        let mut scene = Scene::new(latest());
        scene.settle("True");
        scene.route.spec.traffic = serde_json::from_value(traffic).expect("traffic");
        status.into_iter().for_each(|s| with(s, &mut scene));
        let plan = scene.run();
        assert_eq!(condition(&plan, "AllTrafficAssigned"), want);
        assert_eq!(summary(&plan), [""; 0], "what was served goes on being served");
    }
}

#[test]
fn a_configuration_without_a_ready_revision() {
    for (status, want) in [("Unknown", "Unknown"), ("False", "False")] {
        let mut scene = Scene::new(latest());
        let configuration: Configuration = with_status(&configuration(), ready(status, None));
        scene.configurations.insert("hello".into(), Arc::new(configuration));
        let plan = scene.run();
        assert_eq!(condition(&plan, "Ready"), pair(want, "RevisionMissing"));
        assert_eq!(plan.status.expect("a status")["url"], "http://hello.default.example.com");
    }
}

#[test]
fn cluster_local_routes_have_no_external_host() {
    let mut scene = Scene::new(latest());
    scene.route.metadata.labels.get_or_insert_default().insert(VISIBILITY.into(), CLUSTER_LOCAL.into());
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    assert_eq!(ingress.spec.rules.len(), 1);
    assert_eq!(
        scene.route.status.as_ref().and_then(|s| s.url.as_deref()),
        Some("http://hello.default.svc.cluster.local")
    );
}

#[test]
fn a_taken_name_is_said() {
    let mut scene = Scene::new(latest());
    scene.settle("True");
    let mut foreign = (*scene.services["hello"]).clone();
    foreign.metadata.owner_references = None;
    scene.services.insert("hello".into(), Arc::new(foreign));
    assert_eq!(condition(&scene.run(), "Ready"), pair("False", "NotOwned"));
}

#[test]
fn rollback() {
    let mut scene = Scene::new(latest());
    scene.settle("True");
    scene.route.spec.traffic =
        serde_json::from_value(json!([{"revisionName": "hello-00001", "percent": 100}])).expect("traffic");
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    assert_eq!(splits(ingress, "hello.default.example.com"), [("hello-00001".to_owned(), 100)]);
}

#[test]
fn traffic_moves_gradually_over_the_rollout_duration() {
    let mut scene = Scene::new(latest());
    scene
        .route
        .metadata
        .annotations
        .get_or_insert_default()
        .insert("serving.knative.dev/rollout-duration".into(), "100s".into());
    scene.settle("True");
    let third: Revision = with_status(&revision(3), ready("True", None));
    scene.revisions.insert("hello-00003".into(), Arc::new(third));
    let mut status = ready("True", None);
    status["latestReadyRevisionName"] = json!("hello-00003");
    let configuration: Configuration = with_status(&*scene.configurations["hello"], status);
    scene.configurations.insert("hello".into(), Arc::new(configuration));
    for (now, old, new) in [(10, 99, 1), (60, 50, 50), (109, 1, 99)] {
        scene.now = now;
        assert!(scene.run().requeue_after.is_some());
        scene.settle("True");
        let found = scene.route.condition("IngressReady").and_then(|c| c.reason.clone());
        assert_eq!(found.as_deref(), Some("RolloutInProgress"));
        let ingress = scene.ingress.as_ref().expect("an Ingress");
        assert_eq!(
            splits(ingress, "hello.default.example.com"),
            [("hello-00002".to_owned(), old), ("hello-00003".to_owned(), new)],
            "at {now}"
        );
    }
    scene.now = 111;
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    assert_eq!(splits(ingress, "hello.default.example.com"), [("hello-00003".to_owned(), 100)]);
    assert_eq!(condition(&scene.run(), "Ready"), pair("True", ""));
}
