use proptest::prelude::*;
use serde_json::json;

use super::*;

fn deployment() -> Schema {
    Schema::builtin("apps", "v1", "Deployment").expect("built in")
}

fn pod() -> Schema {
    Schema::builtin("", "v1", "Pod").expect("built in")
}

#[test]
fn merge_patch_rfc_7386() {
    // The table of RFC 7386, appendix A.
    let cases = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
        (json!({"a": "b"}), json!(["c"]), json!(["c"])),
        (json!({"a": "foo"}), json!(null), json!(null)),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ];
    for (doc, patch, expected) in cases {
        assert_eq!(merge_patch(&doc, &patch), expected, "{doc} + {patch}");
    }
}

#[test]
fn json_patch_operations_and_errors() {
    let doc = json!({"metadata": {"labels": {"a/b": "1"}}, "list": [1, 2]});
    let patch = json!([
        {"op": "test", "path": "/metadata/labels/a~1b", "value": "1"},
        {"op": "add", "path": "/list/-", "value": 3},
        {"op": "remove", "path": "/metadata/labels/a~1b"},
    ]);
    assert_eq!(json_patch(&doc, &patch).unwrap(), json!({"metadata": {"labels": {}}, "list": [1, 2, 3]}));
    let failing = json!([{"op": "test", "path": "/list/0", "value": 9}]);
    assert!(matches!(json_patch(&doc, &failing), Err(PatchError::Unprocessable(_))));
    assert!(matches!(json_patch(&doc, &json!({"op": "add"})), Err(PatchError::Malformed(_))));
    assert!(matches!(
        json_patch(&doc, &json!([{"op": "nonsense", "path": "/x"}])),
        Err(PatchError::Malformed(_))
    ));
}

#[test]
fn strategic_lists_merge_by_key() {
    let doc = json!({"spec": {"containers": [
        {"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
        {"name": "b", "image": "b:1", "command": ["run", "it"]}
    ], "tolerations": [{"key": "k"}]}});
    let patch = json!({"spec": {"containers": [
        {"name": "b", "image": "b:2", "command": ["go"]},
        {"name": "a", "env": [{"name": "Y", "$patch": "delete"}, {"name": "Z", "value": "3"}]},
        {"name": "c", "image": "c:1"}
    ], "tolerations": [{"key": "other"}]}});
    let out = strategic_merge(&pod(), &doc, &patch).unwrap();
    assert_eq!(
        out,
        json!({"spec": {"containers": [
            {"name": "b", "image": "b:2", "command": ["go"]},
            {"name": "a", "image": "a:1", "env": [{"name": "Z", "value": "3"}, {"name": "X", "value": "1"}]},
            {"name": "c", "image": "c:1"}
        ], "tolerations": [{"key": "other"}]}})
    );
}

#[test]
fn strategic_directives() {
    let doc = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}, "replicas": 1}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        strategic_merge(&deployment(), &doc, &patch).unwrap(),
        json!({"spec": {"strategy": {"type": "Recreate"}, "replicas": 1}})
    );
    let patch = json!({"spec": {"$patch": "replace", "replicas": 3}});
    assert_eq!(strategic_merge(&deployment(), &doc, &patch).unwrap(), json!({"spec": {"replicas": 3}}));
    let patch = json!({"spec": {"strategy": {"$patch": "delete"}, "replicas": null}});
    assert_eq!(strategic_merge(&deployment(), &doc, &patch).unwrap(), json!({"spec": {"strategy": {}}}));
    let bad = json!({"spec": {"$patch": "explode"}});
    assert!(matches!(strategic_merge(&deployment(), &doc, &bad), Err(PatchError::Malformed(_))));
    let bad = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
    assert!(matches!(strategic_merge(&deployment(), &doc, &bad), Err(PatchError::Malformed(_))));
}

#[test]
fn strategic_primitive_lists() {
    let doc = json!({"metadata": {"finalizers": ["a", "b"]}});
    let patch = json!({"metadata": {"finalizers": ["c", "a"]}});
    assert_eq!(
        strategic_merge(&pod(), &doc, &patch).unwrap(),
        json!({"metadata": {"finalizers": ["c", "a", "b"]}})
    );
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["b"]}});
    assert_eq!(strategic_merge(&pod(), &doc, &patch).unwrap(), json!({"metadata": {"finalizers": ["b"]}}));
}

#[test]
fn strategic_element_order_keeps_what_only_the_server_has() {
    let doc = json!({"spec": {"containers": [{"name": "sidecar"}, {"name": "a"}, {"name": "b"}]}});
    let patch = json!({"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [{"name": "a", "image": "a:2"}]
    }});
    assert_eq!(
        strategic_merge(&pod(), &doc, &patch).unwrap(),
        json!({"spec": {"containers": [{"name": "sidecar"}, {"name": "b"}, {"name": "a", "image": "a:2"}]}})
    );
}

#[test]
fn strategic_replaces_a_list_and_drops_nulls_of_new_items() {
    let doc = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
    let patch = json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c", "image": null}]}});
    assert_eq!(
        strategic_merge(&pod(), &doc, &patch).unwrap(),
        json!({"spec": {"containers": [{"name": "c"}]}})
    );
    let missing = json!({"spec": {"containers": [{"image": "x"}]}});
    let error = strategic_merge(&pod(), &doc, &missing).unwrap_err();
    assert_eq!(error.to_string(), "map: map[image:x] does not contain declared merge key: name");
}

#[test]
fn strategic_is_refused_for_custom_resources() {
    let schema = Schema::from_crd(&json!({"type": "object"})).unwrap();
    assert_eq!(strategic_merge(&schema, &json!({}), &json!({})), Err(PatchError::UnsupportedMediaType));
}

/// What has to be patched to come from one document to another; documents without nulls.
fn merge_diff(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let mut out = serde_json::Map::new();
    for (key, value) in to {
        match from.get(key) {
            Some(there) if there == value => {}
            // Anything that is no object replaces; an object after something else must not merge with it.
            Some(there) if there.is_object() == value.is_object() => {
                drop(out.insert(key.clone(), merge_diff(there, value)));
            }
            _ => drop(out.insert(key.clone(), value.clone())),
        }
    }
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        out.insert(key.clone(), Value::Null);
    }
    Value::Object(out)
}

/// The strategic patch between two lists of named containers, as kubectl makes it.
fn container_diff(from: &[Value], to: &[Value]) -> Value {
    let name = |c: &Value| c["name"].as_str().unwrap_or_default().to_owned();
    let mut items = Vec::new();
    for container in to {
        match from.iter().find(|c| name(c) == name(container)) {
            Some(there) if there == container => {}
            Some(there) => {
                let mut diff = merge_diff(there, container);
                diff["name"] = container["name"].clone();
                items.push(diff);
            }
            None => items.push(container.clone()),
        }
    }
    for container in from.iter().filter(|c| !to.iter().any(|t| name(t) == name(c))) {
        items.push(json!({"name": name(container), "$patch": "delete"}));
    }
    let order: Vec<Value> = to.iter().map(|c| json!({"name": name(c)})).collect();
    json!({"spec": {"containers": items, "$setElementOrder/containers": order}})
}

fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0i64..3).prop_map(Value::from),
        "[a-b]".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn containers() -> impl Strategy<Value = Vec<Value>> {
    let one = ("[a-e]", "[x-z]", prop::option::of("[p-q]")).prop_map(|(name, image, dir)| {
        let mut out = json!({"name": name, "image": image});
        if let Some(dir) = dir {
            out["workingDir"] = dir.into();
        }
        out
    });
    prop::collection::vec(one, 0..5).prop_map(|mut list| {
        let mut seen = std::collections::HashSet::new();
        list.retain(|c| seen.insert(c["name"].as_str().unwrap().to_owned()));
        list
    })
}

proptest! {
    #[test]
    fn merge_patch_round_trips(from in document(), to in document()) {
        let patched = merge_patch(&from, &merge_diff(&from, &to));
        if from.is_object() && to.is_object() {
            prop_assert_eq!(patched, to);
        }
    }

    #[test]
    fn strategic_patch_round_trips(from in containers(), to in containers()) {
        let doc = json!({"spec": {"containers": from}});
        let patch = container_diff(&from, &to);
        let out = strategic_merge(&pod(), &doc, &patch).unwrap();
        prop_assert_eq!(&out, &json!({"spec": {"containers": to}}));
    }

    #[test]
    fn strategic_patch_twice_is_once(from in containers(), patch in containers()) {
        let patch = json!({"spec": {"containers": patch}});
        let once = strategic_merge(&pod(), &json!({"spec": {"containers": from}}), &patch).unwrap();
        let twice = strategic_merge(&pod(), &once, &patch).unwrap();
        prop_assert_eq!(once, twice);
    }
}
