use serde_json::json;

use super::*;
use crate::testing::{at, configuration, ready, revision, route, with_status};

fn state(revision: &Revision, routes: &[Route], latest: &str) -> Option<(String, Value)> {
    let mut status = ready("True", None);
    status["latestCreatedRevisionName"] = json!(latest);
    let configuration: Configuration = with_status(&configuration(), status);
    let routes: Vec<Arc<Route>> = routes.iter().cloned().map(Arc::new).collect();
    let patch = of_revision(revision, Some(&configuration), &routes, at(9))?;
    let state = patch["metadata"]["labels"][keys::ROUTING_STATE].as_str().unwrap_or_default().to_owned();
    Some((state, patch["metadata"]["annotations"][keys::ROUTES].clone()))
}

#[test]
fn what_routes_lead_to() {
    let (first, second) = (revision(1), revision(2));
    let follows: Route = with_status(&route(), ready("True", None));
    let mut pinned = follows.clone();
    pinned.spec.traffic[0].configuration_name = None;
    pinned.spec.traffic[0].revision_name = Some("hello-00001".into());
    let mut resolved = ready("Unknown", None);
    resolved["traffic"] = json!([{"revisionName": "hello-00001", "percent": 100}]);
    let moving: Route = with_status(&route(), resolved);

    let active = Some(("active".to_owned(), json!("hello")));
    assert_eq!(
        state(&second, std::slice::from_ref(&follows), "hello-00002"),
        active,
        "the latest of a followed Configuration"
    );
    assert_eq!(
        state(&first, std::slice::from_ref(&follows), "hello-00002"),
        None,
        "not seen by any Route yet: pending"
    );
    assert_eq!(state(&first, &[pinned], "hello-00002"), active, "named");
    assert_eq!(state(&first, &[moving], "hello-00002"), active, "still served");
}

#[test]
fn without_a_route_it_is_held_in_reserve() {
    let mut first = revision(1);
    first.metadata.labels.get_or_insert_default().insert(keys::ROUTING_STATE.into(), "active".into());
    first.metadata.annotations.get_or_insert_default().insert(keys::ROUTES.into(), "hello".into());
    let follows: Route = with_status(&route(), ready("True", None));
    assert_eq!(state(&first, &[follows], "hello-00002"), Some(("reserve".to_owned(), Value::Null)));
    let unsettled: Route = with_status(&route(), ready("Unknown", None));
    assert_eq!(state(&first, &[unsettled], "hello-00002"), None, "not before the Route has settled");
}

#[test]
fn a_configuration_knows_who_names_its_revisions() {
    let follows: Route = with_status(&route(), ready("True", None));
    let mut pinned = follows.clone();
    pinned.metadata.name = Some("pinned".into());
    pinned.spec.traffic[0].configuration_name = None;
    pinned.spec.traffic[0].revision_name = Some("hello-00001".into());
    let mut resolved = ready("Unknown", None);
    resolved["traffic"] = json!([{"revisionName": "hello-00002", "percent": 100}]);
    let mut still: Route = with_status(&pinned, resolved);
    still.metadata.name = Some("still".into());
    still.spec.traffic[0].revision_name = Some("other-00001".into());
    let mut other = still.clone();
    other.metadata.name = Some("other".into());
    other.status = None;
    let mut gone = follows.clone();
    gone.metadata.name = Some("gone".into());
    gone.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    let routes: Vec<Arc<Route>> = [follows, pinned, still, other, gone].map(Arc::new).into();
    let revisions = [revision(1), revision(2)].map(Arc::new);
    assert_eq!(of_configuration("hello", &revisions, &routes).as_deref(), Some("hello,pinned,still"));
    assert_eq!(of_configuration("hello", &[], &routes[1..]), None);
}
