use super::*;
use ebb_api::serving::RouteStatus;

#[test]
fn what_covers_what() {
    for (live, wanted, want) in [
        (json!({"a": 1, "b": 2}), json!({"a": 1}), true),
        (json!({"a": 1}), json!({"a": 1, "b": 2}), false),
        (json!({"a": [{"x": 1, "y": 2}]}), json!({"a": [{"x": 1}]}), true),
        (json!({"a": [1, 2]}), json!({"a": [1]}), false),
        (json!({}), json!({"value": "", "list": [], "off": false, "sub": {"x": null}}), true),
        (json!({"cpu": "1"}), json!({"cpu": "1000m"}), true),
        (json!({"cpu": "1"}), json!({"cpu": "1001m"}), false),
        (json!({"image": "a"}), json!({"image": "b"}), false),
    ] {
        assert_eq!(covers(&live, &wanted), want, "{live} {wanted}");
    }
}

#[test]
fn exact_patches_remove_what_is_gone() {
    for (live, wanted, want) in [
        (json!({"a": 1}), json!({"a": 1}), None),
        (json!({"a": 1, "b": 2}), json!({"a": 1}), Some(json!({"b": null}))),
        (json!({"a": {"x": 1, "y": 2}}), json!({"a": {"x": 2}}), Some(json!({"a": {"x": 2, "y": null}}))),
        (json!({"a": [1, 2]}), json!({"a": [1]}), Some(json!({"a": [1]}))),
        (json!(null), json!({}), None),
    ] {
        assert_eq!(exact_patch(&live, &wanted), want);
    }
}

#[test]
fn a_status_that_stays_is_not_written() {
    let at = |second: i64| Timestamp::from_second(second).expect("a time");
    let status = |url: Option<&str>, second: i64, ready: bool| {
        let mut status = RouteStatus { url: url.map(str::to_owned), ..RouteStatus::default() };
        let mut conditions = status.manage(at(second));
        match ready {
            true => conditions.mark_true("AllTrafficAssigned"),
            false => conditions.mark_false("AllTrafficAssigned", "Why", ""),
        };
        status
    };
    let before = status(Some("x"), 1, true);
    let mut plan = Plan::default();
    plan.set_status(Some(&before), &before);
    assert_eq!(plan.status, None);
    // False for a moment while it was worked out: that is no transition.
    plan.set_status(Some(&before), &status(Some("x"), 2, true));
    assert_eq!(plan.status, None);
    plan.set_status(Some(&before), &status(None, 2, false));
    let patch = plan.status.expect("it is written");
    assert_eq!(patch["url"], Value::Null);
    assert_eq!(patch["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:02Z");
}
