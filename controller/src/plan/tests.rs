use super::*;

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
    let mut plan = Plan::default();
    plan.set_status(Some(&json!({"a": 1})), &json!({"a": 1}));
    assert_eq!(plan.status, None);
    plan.set_status(Some(&json!({"a": 1, "url": "x"})), &json!({"a": 2}));
    assert_eq!(plan.status, Some(json!({"a": 2, "url": null})));
}
