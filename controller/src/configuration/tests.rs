use serde_json::json;
use std::sync::Arc;

use super::*;
use crate::testing::{at, condition, configuration as live, pair, ready, revision, summary, with_status};

fn run(configuration: &Configuration, revisions: &[Revision]) -> Plan {
    run_after(configuration, revisions, None)
}

fn run_after(configuration: &Configuration, revisions: &[Revision], refused: Option<&str>) -> Plan {
    let revisions: Vec<Arc<Revision>> = revisions.iter().cloned().map(Arc::new).collect();
    let name = revision_name(configuration);
    let named = revisions.iter().find(|r| r.name_any() == name);
    plan(
        &Observed {
            configuration,
            revisions: &revisions,
            named: named.map(AsRef::as_ref),
            routes: None,
            refused,
        },
        at(50),
    )
}

fn names(plan: &Plan) -> (Option<&str>, Option<&str>) {
    let status = plan.status.as_ref().expect("a status is written");
    (status["latestCreatedRevisionName"].as_str(), status["latestReadyRevisionName"].as_str())
}

#[test]
fn each_generation_stamps_a_revision() {
    let plan = run(&live(), &[]);
    assert_eq!(summary(&plan), ["create Revision/hello-00001"]);
    assert_eq!(names(&plan), (Some("hello-00001"), None));
    assert_eq!(condition(&plan, "Ready").0, "Unknown");
    let made = make(&live(), at(0));
    let labels = made.metadata.labels.expect("labels");
    assert_eq!(labels[keys::CONFIGURATION_GENERATION], "1");
    assert_eq!(labels[keys::SERVICE], "hello");
    assert_eq!(labels[keys::ROUTING_STATE], routing_state::PENDING);
    assert_eq!(made.metadata.annotations.expect("annotations")[keys::CREATOR], "jo");
}

#[test]
fn readiness_follows_the_newest() {
    for (status, want, ready_name) in [
        (ready("Unknown", None), pair("Unknown", ""), None),
        (ready("True", None), pair("True", ""), Some("hello-00001")),
        (ready("False", Some("ContainerMissing")), pair("False", "RevisionFailed"), None),
    ] {
        let plan = run(&live(), &[with_status(&revision(1), status)]);
        assert_eq!(summary(&plan), [""; 0]);
        assert_eq!(condition(&plan, "Ready"), want);
        assert_eq!(names(&plan), (Some("hello-00001"), ready_name));
    }
}

#[test]
fn a_failed_newest_leaves_the_ready_one() {
    let mut configuration = live();
    configuration.metadata.generation = Some(2);
    let mut status = ready("True", None);
    status["latestReadyRevisionName"] = json!("hello-00001");
    status["latestCreatedRevisionName"] = json!("hello-00001");
    let configuration: Configuration = with_status(&configuration, status);
    let old = with_status(&revision(1), ready("True", None));
    let plan = run(&configuration, std::slice::from_ref(&old));
    assert_eq!(summary(&plan), ["create Revision/hello-00002"]);
    assert_eq!(condition(&plan, "Ready").0, "Unknown");
    let bad = with_status(&revision(2), ready("False", Some("ExitCode1")));
    let plan = run(&configuration, &[old, bad]);
    assert_eq!(condition(&plan, "Ready"), pair("False", "RevisionFailed"));
    assert_eq!(names(&plan), (Some("hello-00002"), Some("hello-00001")));
    assert!(plan.notes.iter().any(|n| n.warning && n.reason == "LatestCreatedFailed"));
}

#[test]
fn the_ready_one_never_goes_back() {
    let mut configuration = live();
    configuration.metadata.generation = Some(3);
    let mut status = ready("Unknown", None);
    status["latestReadyRevisionName"] = json!("hello-00002");
    let configuration: Configuration = with_status(&configuration, status);
    let one = with_status(&revision(1), ready("True", None));
    let two = with_status(&revision(2), ready("Unknown", None));
    let three = with_status(&revision(3), ready("Unknown", None));
    assert_eq!(names(&run(&configuration, &[one, two, three])).1, Some("hello-00002"));
}

#[test]
fn own_names() {
    let mut configuration = live();
    configuration.spec.template.metadata.name = Some("hello-blue".into());
    let plan = run(&configuration, &[]);
    assert_eq!(summary(&plan), ["create Revision/hello-blue"]);

    // Another's revision of that name, and our own with another spec, are in the way.
    let mut foreign = make(&configuration, at(0));
    foreign.metadata.owner_references = None;
    let mut changed = make(&configuration, at(0));
    changed.metadata.labels.get_or_insert_default().insert(keys::CONFIGURATION_GENERATION.into(), "9".into());
    changed.spec.timeout_seconds = Some(1);
    for found in [foreign, changed] {
        let plan = run(&configuration, &[found]);
        assert_eq!(condition(&plan, "Ready"), pair("False", "RevisionFailed"));
        assert_eq!(summary(&plan), [""; 0]);
    }

    // The same spec under a later generation is the same revision.
    let same = make(&configuration, at(0));
    configuration.metadata.generation = Some(5);
    let mut same = with_status(&same, ready("True", None));
    same.metadata.generation = Some(1);
    let plan = run(&configuration, &[same]);
    assert_eq!(condition(&plan, "Ready").0, "True");
}

fn message(plan: &Plan) -> String {
    let status = plan.status.as_ref().expect("a status is written");
    status["conditions"][0]["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn why_no_revision_can_be_made_is_told_and_it_is_tried_again() {
    let plan = run_after(&live(), &[], Some("exceeded quota: revisions"));
    assert_eq!(summary(&plan), ["create Revision/hello-00001"]);
    assert_eq!(condition(&plan, "Ready"), pair("False", "RevisionFailed"));
    assert_eq!(message(&plan), "Revision creation failed with message: exceeded quota: revisions.");
    assert_eq!(plan.notes.iter().map(|n| n.reason).collect::<Vec<_>>(), ["CreationFailed"]);
    let failed = with_status(&live(), plan.status.expect("a status"));
    let again = run_after(&failed, &[], Some("exceeded quota: revisions"));
    assert_eq!((again.notes.len(), again.status.is_none()), (0, true), "once");
    let made = run(&failed, &[with_status(&revision(1), ready("True", None))]);
    assert_eq!(condition(&made, "Ready"), pair("True", ""));
}

#[test]
fn a_revision_that_recovers_is_followed() {
    let failed = run(&live(), &[with_status(&revision(1), ready("False", Some("ExitCode1")))]);
    let configuration: Configuration = with_status(&live(), failed.status.expect("a status"));
    let waiting = run(&configuration, &[with_status(&revision(1), ready("Unknown", None))]);
    assert_eq!(condition(&waiting, "Ready"), pair("Unknown", ""));
    let well = run(&configuration, &[with_status(&revision(1), ready("True", None))]);
    assert_eq!(condition(&well, "Ready"), pair("True", ""));
    // One that has been ready is in trouble: no new revision is waited for.
    let configuration: Configuration = with_status(&configuration, well.status.expect("a status"));
    let unknown = run(&configuration, &[with_status(&revision(1), ready("Unknown", None))]);
    assert_eq!(unknown.status, None);
    let down = run(&configuration, &[with_status(&revision(1), ready("False", Some("ExitCode1")))]);
    assert_eq!(down.notes.iter().map(|n| n.reason).collect::<Vec<_>>(), ["LatestReadyFailed"]);
}

#[test]
fn what_takes_so_long_is_told() {
    let slow = with_status(&revision(1), ready("Unknown", Some("Deploying")));
    let plan = run(&live(), &[slow]);
    assert_eq!(condition(&plan, "Ready"), pair("Unknown", "Deploying"));
    assert_eq!(message(&plan), "Revision \"hello-00001\" is not ready yet: Deploying!");
}
