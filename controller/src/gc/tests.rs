use serde_json::json;

use super::*;
use crate::testing::{at, configuration, ready, revision, summary, with_status};

fn idle(n: i64) -> Arc<Revision> {
    let mut object = with_status(&revision(n), ready("True", None));
    object
        .metadata
        .labels
        .get_or_insert_default()
        .insert(keys::ROUTING_STATE.into(), routing_state::RESERVE.into());
    object.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(n)));
    Arc::new(object)
}

fn run(revisions: &[Arc<Revision>], config: &Gc, now: i64) -> Plan {
    let mut status = ready("True", None);
    status["latestReadyRevisionName"] = json!("hello-00009");
    status["latestCreatedRevisionName"] = json!("hello-00009");
    let configuration: Configuration = with_status(&configuration(), status);
    plan(&configuration, revisions, config, at(now))
}

fn config(min: i64, max: Option<i64>, keep: u64) -> Gc {
    Gc {
        retain_since_create_time: Some(Duration::from_secs(keep)),
        retain_since_last_active_time: Some(Duration::from_secs(keep)),
        min_non_active_revisions: min,
        max_non_active_revisions: max,
    }
}

#[test]
fn which_revisions_go() {
    let all: Vec<_> = [1, 2, 3, 9].into_iter().map(idle).collect();
    for (config, now, want) in [
        (config(0, None, 10), 5, vec![]),
        (config(0, None, 10), 12, vec!["delete Revision/hello-00001", "delete Revision/hello-00002"]),
        (config(2, None, 10), 100, vec!["delete Revision/hello-00001"]),
        (config(0, Some(1), 1000), 5, vec!["delete Revision/hello-00001", "delete Revision/hello-00002"]),
        (config(3, Some(3), 0), 100, vec![]),
    ] {
        assert_eq!(summary(&run(&all, &config, now)), want, "{config:?} at {now}");
    }
}

#[test]
fn it_looks_again_when_the_next_is_due() {
    assert_eq!(run(&[idle(1)], &config(0, None, 10), 5).requeue_after, Some(Duration::from_secs(7)));
}

#[test]
fn what_is_kept() {
    let mut kept = idle(1);
    let object = Arc::make_mut(&mut kept);
    object.metadata.annotations.get_or_insert_default().insert(keys::NO_GC.into(), "true".into());
    let mut active = idle(2);
    let object = Arc::make_mut(&mut active);
    object.metadata.labels.get_or_insert_default().insert(keys::ROUTING_STATE.into(), "active".into());
    let mut pending = idle(3);
    let object = Arc::make_mut(&mut pending);
    object.metadata.labels.get_or_insert_default().insert(keys::ROUTING_STATE.into(), "pending".into());
    assert_eq!(summary(&run(&[kept, active, pending, idle(9)], &config(0, None, 0), 999)), [""; 0]);
}

/// A revision that was made at one time and last had traffic at another.
fn used(n: i64, last: i64) -> Arc<Revision> {
    let mut revision = idle(n);
    let object = Arc::make_mut(&mut revision);
    let annotations = object.metadata.annotations.get_or_insert_default();
    annotations.insert(keys::ROUTING_STATE_MODIFIED.into(), crate::plan::rfc3339(at(last)));
    revision
}

#[test]
fn a_time_that_is_disabled_does_not_count() {
    let all = [used(1, 50), used(2, 80)];
    let seconds = |n| Some(Duration::from_secs(n));
    let (one, both) = (
        vec!["delete Revision/hello-00001"],
        vec!["delete Revision/hello-00001", "delete Revision/hello-00002"],
    );
    for (created, active, want) in [
        (seconds(10), seconds(40), one.clone()),
        (None, seconds(40), one),
        (seconds(10), None, both),
        (None, None, vec![]),
    ] {
        let config = Gc {
            retain_since_create_time: created,
            retain_since_last_active_time: active,
            ..config(0, None, 0)
        };
        assert_eq!(summary(&run(&all, &config, 100)), want, "{config:?}");
    }
}

#[test]
fn those_that_are_too_old_go_before_those_that_are_too_many() {
    // The first has been without traffic for longer, but is not old enough.
    let all = [used(60, 61), used(1, 65)];
    let seconds = |n| Some(Duration::from_secs(n));
    let config = Gc {
        retain_since_create_time: seconds(50),
        retain_since_last_active_time: seconds(10),
        ..config(0, Some(1), 0)
    };
    assert_eq!(summary(&run(&all, &config, 100)), ["delete Revision/hello-00001"]);
}
