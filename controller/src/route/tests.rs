use serde_json::{Value, json};

use super::*;
use crate::plan::Change;
use crate::testing::{
    at, condition, configuration, pair, ready, revision, route as live, summary, with_status,
};

pub(super) struct Scene {
    pub(super) route: Route,
    pub(super) configurations: BTreeMap<String, Arc<Configuration>>,
    pub(super) revisions: BTreeMap<String, Arc<Revision>>,
    pub(super) ingress: Option<Ingress>,
    pub(super) services: BTreeMap<String, Arc<Service>>,
    pub(super) certificates: Vec<Arc<Certificate>>,
    pub(super) configs: Configs,
    pub(super) now: i64,
}

impl Scene {
    /// Two ready revisions, the second the latest.
    pub(super) fn new(traffic: Value) -> Self {
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
            certificates: Vec::new(),
            configs,
            now: 1,
        }
    }

    /// Makes a revision the latest ready one.
    fn follow(&mut self, revision: &str) {
        let mut status = ready("True", None);
        status["latestReadyRevisionName"] = json!(revision);
        let configuration: Configuration = with_status(&*self.configurations["hello"], status);
        self.configurations.insert("hello".into(), Arc::new(configuration));
    }

    /// Status and reason of a condition, whether it is new or was written before.
    pub(super) fn says(&self, type_: &str) -> (String, String) {
        let mut plan = self.run();
        plan.status = plan.status.or_else(|| serde_json::to_value(&self.route.status).ok());
        condition(&plan, type_)
    }

    /// What the gateway says of the Ingress as it is.
    fn served(&mut self, ingress_ready: &str) {
        if let Some(ingress) = &mut self.ingress {
            ingress.metadata.generation = Some(1);
            *ingress = with_status(ingress, ready(ingress_ready, None));
        }
    }

    pub(super) fn run(&self) -> Plan {
        plan(
            &Observed {
                route: &self.route,
                configurations: &self.configurations,
                revisions: &self.revisions,
                ingress: self.ingress.as_ref(),
                services: &self.services,
                certificates: &self.certificates,
                system_namespace: "ebb-system",
            },
            &self.configs,
            at(self.now),
        )
    }

    /// Takes over what the plan makes, as the API server and the gateway would.
    pub(super) fn settle(&mut self, ingress_ready: &str) {
        let plan = self.run();
        for change in plan.then {
            match change {
                Change::Create(t, body) if t.resource.kind == "Ingress" => {
                    self.ingress = Some(serde_json::from_value(body).expect("an Ingress"));
                }
                Change::Create(t, body) if t.resource.kind == "Certificate" => {
                    self.certificates.push(Arc::new(serde_json::from_value(body).expect("a Certificate")));
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
        self.served(ingress_ready);
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

pub(super) fn latest() -> Value {
    json!([{"configurationName": "hello", "latestRevision": true, "percent": 100}])
}

pub(super) fn canary() -> Value {
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
fn a_services_configuration_is_awaited() {
    let mut scene = Scene::new(latest());
    scene.configurations.clear();
    assert_eq!(condition(&scene.run(), "Ready"), pair("Unknown", "RevisionMissing"), "it is on its way");
    scene.route.metadata.labels = None;
    assert_eq!(condition(&scene.run(), "Ready"), pair("False", "ConfigurationMissing"));

    let mut scene = Scene::new(latest());
    scene.follow("hello-00009");
    assert_eq!(
        condition(&scene.run(), "Ready"),
        pair("False", "RevisionMissing"),
        "a revision that is gone is not"
    );
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

/// As [`Scene::new`], with a rollout of 101 s from the second revision to a third, which the gateway serves 1 s after its begin.
fn rolling() -> Scene {
    let mut scene = Scene::new(latest());
    let duration = ("serving.knative.dev/rollout-duration".to_owned(), "101s".to_owned());
    scene.route.metadata.annotations.get_or_insert_default().extend([duration]);
    scene.settle("True");
    scene.settle("True");
    let third: Revision = with_status(&revision(3), ready("True", None));
    scene.revisions.insert("hello-00003".into(), Arc::new(third));
    scene.follow("hello-00003");
    scene.now = 10;
    scene.settle("Unknown");
    assert_eq!(scene.says("IngressReady"), pair("Unknown", "RolloutInProgress"));
    assert_eq!(scene.run().requeue_after, None, "the gateway's word is awaited, not a time");
    scene.served("True");
    scene.now = 11;
    scene.settle("True");
    scene
}

#[test]
fn traffic_moves_gradually_over_the_rollout_duration() {
    let mut scene = rolling();
    let mut seen = Vec::new();
    loop {
        let ingress = scene.ingress.as_ref().expect("an Ingress");
        let shares = splits(ingress, "hello.default.example.com");
        let told: Vec<_> = scene.route.status.iter().flat_map(|s| &s.traffic).collect();
        let told: Vec<_> = told
            .iter()
            .map(|t| (t.revision_name.clone().unwrap_or_default(), t.percent.unwrap_or(0) as i32))
            .collect();
        assert_eq!(told, shares, "the status tells it");
        seen.push((scene.now, shares.last().map_or(0, |s| s.1)));
        let Some(after) = scene.run().requeue_after else { break };
        scene.now += i64::try_from(after.as_secs()).expect("soon") + i64::from(after.subsec_nanos() > 0);
        scene.settle("True");
    }
    // A controller that started anew saw nothing but the objects: the scene has no other memory.
    assert_eq!(seen.first(), Some(&(11, 1)));
    let (end, last) = seen.last().expect("steps");
    assert_eq!(*last, 100);
    assert!((100..=220).contains(end), "it ended at {end}");
    assert!(seen.windows(2).all(|w| w[0].1 < w[1].1), "{seen:?}");
    scene.settle("True");
    assert_eq!(scene.says("Ready"), pair("True", ""));
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    assert_eq!(splits(ingress, "hello.default.example.com"), [("hello-00003".to_owned(), 100)]);
}

#[test]
fn a_rollout_ends_at_once_without_its_duration() {
    let mut scene = rolling();
    scene.route.metadata.annotations = None;
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    assert_eq!(splits(ingress, "hello.default.example.com"), [("hello-00003".to_owned(), 100)]);
    // The platform's own duration counts where the Route says nothing, and 0s says something.
    for (own, moving) in [(None, true), (Some("0s"), false)] {
        let mut scene = Scene::new(latest());
        scene.configs.network.rollout_duration = std::time::Duration::from_secs(60);
        let own = own.map(|own| ("serving.knative.dev/rollout-duration".to_owned(), own.to_owned()));
        scene.route.metadata.annotations.get_or_insert_default().extend(own.clone());
        scene.follow("hello-00001");
        scene.settle("True");
        scene.follow("hello-00002");
        scene.settle("True");
        let ingress = scene.ingress.as_ref().expect("an Ingress");
        assert_eq!(splits(ingress, "hello.default.example.com").len() > 1, moving, "{own:?}");
    }
}

#[test]
fn every_host_of_a_route_rolls_out_by_itself() {
    let mut scene = Scene::new(canary());
    scene.configs.network.rollout_duration = std::time::Duration::from_secs(60);
    scene.settle("True");
    let third: Revision = with_status(&revision(3), ready("True", None));
    scene.revisions.insert("hello-00003".into(), Arc::new(third));
    scene.follow("hello-00003");
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    let share = |name: &str, percent| (name.to_owned(), percent);
    assert_eq!(
        splits(ingress, "hello.default.example.com"),
        [share("hello-00001", 90), share("hello-00002", 9), share("hello-00003", 1)]
    );
    assert_eq!(
        splits(ingress, "canary-hello.default.example.com"),
        [share("hello-00002", 99), share("hello-00003", 1)]
    );
    assert_eq!(splits(ingress, "stable-hello.default"), [share("hello-00001", 100)]);
}

#[test]
fn a_revision_named_twice() {
    let mut scene = Scene::new(json!([
        {"revisionName": "hello-00001", "percent": 30, "latestRevision": false},
        {"revisionName": "hello-00001", "percent": 20, "latestRevision": false},
        {"revisionName": "hello-00002", "percent": 10, "latestRevision": false, "tag": "two"},
        {"configurationName": "hello", "percent": 40, "latestRevision": true}
    ]));
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    assert_eq!(
        splits(ingress, "hello.default.example.com"),
        [("hello-00001".to_owned(), 50), ("hello-00002".to_owned(), 50)]
    );
    let traffic = scene.route.status.as_ref().expect("a status").traffic.clone();
    let told: Vec<_> = traffic.iter().map(|t| (t.percent, t.latest_revision, t.tag.as_deref())).collect();
    assert_eq!(
        told,
        [(Some(50), Some(false), None), (Some(10), Some(false), Some("two")), (Some(40), Some(true), None)]
    );
}

#[test]
fn revisions_of_another_service_are_not_served() {
    let pinned = || json!([{"revisionName": "hello-00001", "percent": 100}]);
    let said = |own: Option<&str>, route: Option<&str>| {
        let mut scene = Scene::new(pinned());
        let mut revision = (*scene.revisions["hello-00001"]).clone();
        let labels = revision.metadata.labels.get_or_insert_default();
        labels.remove(keys::SERVICE);
        labels.extend(own.map(|own| (keys::SERVICE.to_owned(), own.to_owned())));
        scene.revisions.insert("hello-00001".into(), Arc::new(revision));
        let labels = scene.route.metadata.labels.get_or_insert_default();
        labels.remove(keys::SERVICE);
        labels.extend(route.map(|own| (keys::SERVICE.to_owned(), own.to_owned())));
        condition(&scene.run(), "AllTrafficAssigned")
    };
    assert_eq!(said(Some("hello"), Some("hello")), pair("True", ""));
    assert_eq!(said(Some("other"), Some("hello")), pair("False", "RevisionNotOwned"));
    assert_eq!(said(None, Some("hello")), pair("False", "RevisionNotOwned"));
    assert_eq!(said(Some("other"), None), pair("True", ""), "a Route of its own may name any");
}

#[test]
fn what_was_missing_may_come() {
    let traffic = json!([
        {"configurationName": "later", "percent": 50, "latestRevision": true},
        {"configurationName": "hello", "percent": 50, "latestRevision": true}
    ]);
    let mut scene = Scene::new(traffic);
    assert_eq!(condition(&scene.run(), "Ready"), pair("False", "ConfigurationMissing"));
    let mut status = ready("True", None);
    status["latestReadyRevisionName"] = json!("later-00001");
    let mut later: Configuration = with_status(&configuration(), status);
    later.metadata.name = Some("later".into());
    scene.configurations.insert("later".into(), Arc::new(later));
    assert_eq!(condition(&scene.run(), "Ready"), pair("False", "RevisionMissing"));
    let mut revision: Revision = with_status(&revision(1), ready("Unknown", None));
    revision.metadata.name = Some("later-00001".into());
    scene.revisions.insert("later-00001".into(), Arc::new(revision.clone()));
    assert_eq!(condition(&scene.run(), "Ready"), pair("Unknown", "RevisionMissing"));
    scene.revisions.insert("later-00001".into(), Arc::new(with_status(&revision, ready("True", None))));
    scene.settle("True");
    assert_eq!(condition(&scene.run(), "Ready"), pair("True", ""));
}

#[test]
fn a_tag_is_hidden_by_a_label_on_its_service() {
    let mut scene = Scene::new(canary());
    scene.settle("True");
    let mut placeholder = (*scene.services["canary-hello"]).clone();
    placeholder.metadata.labels.get_or_insert_default().insert(VISIBILITY.into(), CLUSTER_LOCAL.into());
    scene.services.insert("canary-hello".into(), Arc::new(placeholder));
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    let outside: Vec<_> = ingress
        .spec
        .rules
        .iter()
        .filter(|r| r.visibility == ebb_api::networking::IngressVisibility::ExternalIP)
        .flat_map(|r| r.hosts.clone())
        .collect();
    assert_eq!(outside, ["hello.default.example.com", "stable-hello.default.example.com"]);
    let traffic = scene.route.status.as_ref().expect("a status").traffic.clone();
    assert_eq!(traffic[1].url.as_deref(), Some("http://canary-hello.default.svc.cluster.local"));
    assert_eq!(summary(&scene.run()), [""; 0], "the user's label stays");
    let by_tag = &ingress.metadata.annotations.as_ref().expect("annotations")["networking.internal.knative.dev/tag-to-host"];
    let by_tag: Value = serde_json::from_str(by_tag).expect("JSON");
    assert_eq!(
        by_tag,
        json!({
            "canary": ["canary-hello.default.svc.cluster.local"],
            "stable": ["stable-hello.default.svc.cluster.local", "stable-hello.default.example.com"]
        })
    );
}

#[test]
fn templates_and_domains_make_the_hosts() {
    let mut scene = Scene::new(canary());
    let template = |t: &str| ("domain-template".to_owned(), t.to_owned());
    let data = [
        template(r#"{{.Name}}-{{.Namespace}}.{{index .Annotations "sub"}}.{{.Labels.team}}.{{.Domain}}"#),
        ("tag-template".to_owned(), "{{.Name}}-{{.Tag}}".to_owned()),
        ("default-external-scheme".to_owned(), "https".to_owned()),
    ];
    scene.configs.network = ebb_api::config::Network::parse(&data.into()).expect("a good config");
    let inner = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
    scene.configs.domain.domains.insert("shop.example.org".into(), inner);
    scene.route.metadata.labels.get_or_insert_default().insert("team".into(), "shop".into());
    scene.route.metadata.annotations.get_or_insert_default().insert("sub".into(), "eu".into());
    scene.settle("True");
    let status = scene.route.status.clone().expect("a status");
    assert_eq!(status.url.as_deref(), Some("https://hello-default.eu.shop.shop.example.org"));
    assert_eq!(
        status.traffic[1].url.as_deref(),
        Some("https://hello-canary-default.eu.shop.shop.example.org")
    );
    assert_eq!(scene.services.keys().collect::<Vec<_>>(), ["hello", "hello-canary", "hello-stable"]);
    // A host that cannot be one is the Route's fault, and said there.
    scene.route.metadata.annotations = None;
    let plan = scene.run();
    assert_eq!(condition(&plan, "AllTrafficAssigned"), pair("False", "ErrorConfig"));
    assert_eq!(summary(&plan), [""; 0]);
}

#[test]
fn the_header_of_a_tag() {
    let mut scene = Scene::new(canary());
    let features = [("tag-header-based-routing".to_owned(), "enabled".to_owned())];
    scene.configs.features = ebb_api::config::Features::parse(&features.into()).expect("features");
    scene.settle("True");
    let ingress = scene.ingress.as_ref().expect("an Ingress");
    let rule = |host: &str| {
        let found = ingress.spec.rules.iter().find(|r| r.hosts.iter().any(|h| h == host)).expect("a rule");
        found.http.as_ref().expect("paths").paths.clone()
    };
    let paths = rule("hello.default.example.com");
    let wants: Vec<_> =
        paths.iter().map(|p| p.headers.get("Knative-Serving-Tag").map(|h| h.exact.as_str())).collect();
    assert_eq!(wants, [Some("canary"), Some("stable"), None]);
    let to: Vec<_> = paths.iter().map(|p| (p.splits[0].service_name.as_str(), p.splits[0].percent)).collect();
    assert_eq!(to, [("hello-00002", 100), ("hello-00001", 100), ("hello-00001", 90)]);
    assert_eq!(paths[2].append_headers["Knative-Serving-Default-Route"], "true");
    assert!(paths[0].append_headers.is_empty());
    let tagged = rule("canary-hello.default.example.com");
    assert_eq!(tagged[0].append_headers["Knative-Serving-Tag"], "canary");
}
