use serde_json::{Value, json};

use super::*;
use crate::plan::Change;
use crate::testing::{
    at, condition, configuration as live_configuration, hello, pair, ready, route as live_route, summary,
    with_status,
};

fn run(service: &Service, configuration: Option<&Configuration>, route: Option<&Route>) -> Plan {
    plan(&Observed { service, configuration, route, named: None }, at(1))
}

/// A Route's status with all traffic at one revision.
fn routed(mut status: Value, revision: &str) -> Value {
    status["traffic"] = json!([{"revisionName": revision, "latestRevision": true, "percent": 100}]);
    status
}

/// A Configuration's status with its latest revision.
fn stamped(mut status: Value, revision: &str) -> Value {
    status["latestCreatedRevisionName"] = json!(revision);
    if status["conditions"][0]["status"] == "True" {
        status["latestReadyRevisionName"] = json!(revision);
    }
    status
}

#[test]
fn a_new_service_makes_both_children() {
    let service = hello();
    let plan = run(&service, None, None);
    assert_eq!(summary(&plan), ["create Configuration/hello", "create Route/hello"]);
    assert_eq!(condition(&plan, "Ready"), pair("Unknown", "OutOfDate"));
    let Change::Create(_, route) = &plan.then[1] else { panic!("the Route is made") };
    assert_eq!(route["spec"]["traffic"][0]["configurationName"], "hello");
    assert_eq!(route["metadata"]["labels"][keys::SERVICE], "hello");
    assert_eq!(route["metadata"]["ownerReferences"][0]["uid"], "ksvc-uid");
}

#[test]
fn conditions_are_carried_up() {
    let service = hello();
    for (configuration, route, want) in [
        (ready("True", None), ready("True", None), pair("True", "")),
        (
            ready("Unknown", None),
            ready("Unknown", Some("RevisionMissing")),
            pair("Unknown", "RevisionMissing"),
        ),
        (ready("False", Some("RevisionFailed")), ready("Unknown", None), pair("False", "RevisionFailed")),
        (ready("True", None), ready("False", Some("NotOwned")), pair("False", "NotOwned")),
    ] {
        let configuration = with_status(&live_configuration(), stamped(configuration, "hello-00001"));
        let route = with_status(&live_route(), routed(route, "hello-00001"));
        let plan = run(&service, Some(&configuration), Some(&route));
        assert_eq!(summary(&plan), [""; 0], "the children are as they should be");
        assert_eq!(condition(&plan, "Ready"), want);
    }
}

#[test]
fn it_is_not_ready_before_the_traffic_has_moved() {
    let configuration = with_status(&live_configuration(), stamped(ready("True", None), "hello-00002"));
    let not_yet = pair("Unknown", "TrafficNotMigrated");
    let tagged = json!([
        {"revisionName": "hello-00002", "latestRevision": true, "percent": 100},
        {"revisionName": "hello-00001", "tag": "old"}
    ]);
    for (traffic, want) in [
        (routed(json!({}), "hello-00001")["traffic"].clone(), not_yet.clone()),
        (tagged, not_yet),
        (routed(json!({}), "hello-00002")["traffic"].clone(), pair("True", "")),
    ] {
        let mut status = ready("True", None);
        status["traffic"] = traffic;
        status["url"] = json!("http://hello.default.localhost");
        let route = with_status(&live_route(), status);
        let plan = run(&hello(), Some(&configuration), Some(&route));
        assert_eq!(condition(&plan, "Ready"), want);
        assert_eq!(plan.status.expect("a status")["url"], "http://hello.default.localhost");
    }
}

#[test]
fn traffic_waits_for_the_configuration_where_the_user_names_the_revision() {
    let mut service = hello();
    service.spec.template.metadata.name = Some("hello-blue".into());
    assert_eq!(summary(&run(&service, None, None)), ["create Configuration/hello"], "no Route yet");
    let mut configuration = configuration(&service);
    configuration.metadata.uid = Some("cfg-uid".into());
    configuration.metadata.generation = Some(1);
    let configuration = with_status(&configuration, ready("Unknown", None));
    let named = crate::configuration::make(&configuration, at(0));
    let mut foreign = named.clone();
    foreign.metadata.owner_references = None;
    let observed =
        |named| Observed { service: &service, configuration: Some(&configuration), route: None, named };
    let plan = super::plan(&observed(Some(&named)), at(1));
    assert_eq!(summary(&plan), ["create Route/hello"]);
    let plan = super::plan(&observed(Some(&foreign)), at(1));
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "RoutesReady"), pair("False", "RevisionNameTaken"));
}

/// The events of a plan, each as reason and message.
fn told(plan: &Plan) -> Vec<String> {
    plan.notes.iter().map(|n| format!("{} {}", n.reason, n.message)).collect()
}

#[test]
fn events_tell_the_story_and_each_once() {
    let route = with_status(&live_route(), routed(ready("True", None), "hello-00001"));
    let (mut service, mut story) = (hello(), Vec::new());
    let mut failed = stamped(ready("False", Some("RevisionFailed")), "hello-00001");
    failed["conditions"][0]["message"] =
        json!("Revision \"hello-00001\" failed with message: no such image.");
    for status in [
        stamped(ready("Unknown", None), "hello-00001"),
        failed.clone(),
        failed,
        stamped(ready("True", None), "hello-00001"),
        stamped(ready("True", None), "hello-00001"),
    ] {
        let configuration = with_status(&live_configuration(), status);
        let plan = run(&service, Some(&configuration), Some(&route));
        story.extend(told(&plan));
        if let Some(status) = plan.status {
            service = with_status(&service, status);
        }
    }
    assert_eq!(
        story,
        [
            "RevisionCreated Created Revision \"hello-00001\"",
            "RevisionFailed RevisionFailed: Revision \"hello-00001\" failed with message: no such image.",
            "LatestReadyUpdate Revision \"hello-00001\" is ready, and the latest that is",
            "ServiceReady Service is ready",
        ]
    );
}

#[test]
fn an_outdated_child_is_waited_for() {
    let mut configuration = with_status(&live_configuration(), ready("True", None));
    configuration.metadata.generation = Some(2);
    let plan = run(&hello(), Some(&configuration), None);
    assert_eq!(condition(&plan, "ConfigurationsReady"), pair("Unknown", "OutOfDate"));
}

/// What a child said before it was changed is not about the Service as it is now.
#[test]
fn a_child_that_is_just_being_changed_is_waited_for() {
    let configuration = with_status(&live_configuration(), ready("True", None));
    let route = with_status(&live_route(), ready("True", None));
    let mut service = hello();
    service.spec.template.spec.container_concurrency = Some(7);
    let plan = run(&service, Some(&configuration), Some(&route));
    assert_eq!(summary(&plan), ["patch Configuration/hello"]);
    assert_eq!(condition(&plan, "ConfigurationsReady"), pair("Unknown", "OutOfDate"));
    assert_eq!(condition(&plan, "Ready").0, "Unknown");
}

#[test]
fn changes_reach_the_children_and_removals_too() {
    let mut service = hello();
    service.metadata.labels = Some([("team".to_owned(), "a".to_owned())].into());
    let mut route = live_route();
    route.metadata.labels.get_or_insert_default().insert("gone".into(), "x".into());
    let plan = run(&service, Some(&live_configuration()), Some(&route));
    let Change::Patch(_, patch) = &plan.then[1] else { panic!("the Route is changed") };
    assert_eq!(patch["metadata"]["labels"], json!({"team": "a", "gone": null}));
    assert_eq!(patch.get("spec"), None);
}

#[test]
fn a_foreign_child_is_left_alone() {
    let mut configuration = live_configuration();
    configuration.metadata.owner_references = None;
    let plan = run(&hello(), Some(&configuration), Some(&live_route()));
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready"), pair("False", "NotOwned"));
}

#[test]
fn a_settled_service_is_not_written() {
    let configuration = with_status(&live_configuration(), stamped(ready("True", None), "hello-00001"));
    let route = with_status(&live_route(), routed(ready("True", None), "hello-00001"));
    let first = run(&hello(), Some(&configuration), Some(&route));
    let service: Service = with_status(&hello(), first.status.unwrap_or(Value::Null));
    let again = plan(
        &Observed {
            service: &service,
            configuration: Some(&configuration),
            route: Some(&route),
            named: None,
        },
        at(99),
    );
    assert_eq!(again.status, None);
    assert!(again.notes.is_empty() && again.then.is_empty());
}
