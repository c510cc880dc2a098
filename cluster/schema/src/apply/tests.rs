use proptest::prelude::*;
use serde_json::json;

use super::*;

const T1: &str = "2026-01-01T00:00:00Z";
const T2: &str = "2026-01-02T00:00:00Z";

fn deployment() -> Schema {
    Schema::builtin("apps", "v1", "Deployment").expect("built in")
}

fn by<'a>(name: &'a str, operation: &'a str) -> Manager<'a> {
    Manager { name, operation, subresource: "", api_version: "apps/v1" }
}

fn applier(name: &str) -> Manager<'_> {
    by(name, "Apply")
}

fn object(spec: Value) -> Value {
    let mut out = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"}});
    if !spec.is_null() {
        out["spec"] = spec;
    }
    out
}

fn fields(obj: &Value, manager: &str) -> Value {
    let entries = obj["metadata"]["managedFields"].as_array().expect("tracked");
    entries.iter().find(|e| e["manager"] == manager).map(|e| e["fieldsV1"].clone()).unwrap_or(Value::Null)
}

fn managers(obj: &Value) -> Vec<&str> {
    let entries = obj["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().map(|e| e["manager"].as_str().unwrap()).collect()
}

fn apply_as(name: &str, live: Option<&Value>, obj: &Value) -> Value {
    apply(&deployment(), live, obj, &applier(name), false, T1).expect("no conflict")
}

#[test]
fn creates_and_owns_what_it_applies() {
    let applied = object(
        json!({"replicas": 2, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
        {"name": "c", "image": "i", "ports": [{"containerPort": 80}], "resources": {}}]}}}),
    );
    let out = apply_as("me", None, &applied);
    assert_eq!(
        fields(&out, "me"),
        json!({"f:spec": {"f:replicas": {}, "f:template": {"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:containers": {
            "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {}, "f:ports": {
                "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}})
    );
    let entry = &out["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(entry["apiVersion"], "apps/v1");
    assert_eq!(entry["time"], T1);
    assert_eq!(entry["fieldsType"], "FieldsV1");
    assert_eq!(out["spec"]["replicas"], 2);
}

#[test]
fn the_same_again_changes_nothing_not_even_the_time() {
    let applied =
        object(json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}));
    let mut live = apply_as("me", None, &applied);
    let before = live.clone();
    deployment().default(&mut live);
    let managed = live["metadata"]["managedFields"].clone();
    let again = apply(&deployment(), Some(&live), &applied, &applier("me"), false, T2).unwrap();
    assert_eq!(again, live, "defaulted fields stay and nothing else moves");
    assert_eq!(again["metadata"]["managedFields"], managed);
    assert_ne!(live, before);
}

#[test]
fn what_is_left_out_is_removed_and_what_others_own_stays() {
    let live = apply_as("me", None, &object(json!({"replicas": 2, "paused": true, "minReadySeconds": 3})));
    let live = apply_as("other", Some(&live), &object(json!({"replicas": 2})));
    let out = apply_as("me", Some(&live), &object(json!({"minReadySeconds": 3})));
    assert_eq!(out["spec"], json!({"minReadySeconds": 3, "replicas": 2}));
    assert_eq!(fields(&out, "me"), json!({"f:spec": {"f:minReadySeconds": {}}}));
    assert_eq!(fields(&out, "other"), json!({"f:spec": {"f:replicas": {}}}));
    // With the last owner gone the field goes too.
    let out = apply_as("other", Some(&out), &object(Value::Null));
    assert_eq!(out["spec"], json!({"minReadySeconds": 3}));
    assert_eq!(managers(&out), ["me"]);
}

#[test]
fn conflicts_say_who_and_what() {
    let live = apply_as("owner", None, &object(json!({"replicas": 2, "paused": true})));
    let wanted = object(json!({"replicas": 3}));
    let error = apply(&deployment(), Some(&live), &wanted, &applier("me"), false, T2).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"owner\": .spec.replicas");
    let ApplyError::Conflicts(conflicts) = error else { panic!("a conflict") };
    assert_eq!(conflicts[0].message(), "conflict with \"owner\"");
    assert_eq!(conflicts[0].field, ".spec.replicas");
    let out = apply(&deployment(), Some(&live), &wanted, &applier("me"), true, T2).unwrap();
    assert_eq!(out["spec"], json!({"replicas": 3, "paused": true}));
    assert_eq!(fields(&out, "owner"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(fields(&out, "me"), json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn conflicts_with_updaters_name_version_and_time() {
    let mut live = object(json!({"replicas": 2, "paused": true}));
    track_update(&deployment(), None, &mut live, &by("kubectl-create", "Update"), T1);
    let wanted = object(json!({"replicas": 3, "paused": false}));
    let error = apply(&deployment(), Some(&live), &wanted, &applier("me"), false, T2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-create\" using apps/v1:\n- .spec.paused\n\
         - .spec.replicas"
    );
}

#[test]
fn equal_values_are_owned_together() {
    let live = apply_as("a", None, &object(json!({"replicas": 2})));
    let out = apply_as("b", Some(&live), &object(json!({"replicas": 2})));
    // Who changed nothing did so at no time, which comes before all times.
    assert_eq!(managers(&out), ["b", "a"]);
    assert_eq!(out["metadata"]["managedFields"][0].get("time"), None);
    let error = apply(&deployment(), Some(&out), &object(json!({"replicas": 5})), &applier("a"), false, T2)
        .unwrap_err();
    assert!(error.to_string().contains("conflict with \"b\""));
}

#[test]
fn list_items_are_owned_one_by_one() {
    let container = |name: &str, image: &str| json!({"name": name, "image": image});
    let pods = |containers: Vec<Value>| object(json!({"template": {"spec": {"containers": containers}}}));
    let live = apply_as("a", None, &pods(vec![container("one", "1")]));
    let live = apply_as("b", Some(&live), &pods(vec![container("two", "2")]));
    let names = |obj: &Value| -> Vec<String> {
        let list = obj["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&live), ["one", "two"]);
    let out = apply_as("a", Some(&live), &pods(vec![container("three", "3")]));
    assert_eq!(names(&out), ["two", "three"]);
    let out = apply_as("a", Some(&out), &object(json!({})));
    assert_eq!(names(&out), ["two"]);
}

#[test]
fn bad_lists_are_refused() {
    let twice = object(json!({"template": {"spec": {"containers": [{"name": "c"}, {"name": "c"}]}}}));
    let error = apply(&deployment(), None, &twice, &applier("me"), false, T1).unwrap_err();
    assert!(
        error.to_string().ends_with(".spec.template.spec.containers: duplicate entries for key [name=\"c\"]"),
        "{error}"
    );
    let unnamed = object(json!({"template": {"spec": {"containers": [{"image": "c"}]}}}));
    let error = apply(&deployment(), None, &unnamed, &applier("me"), false, T1).unwrap_err();
    assert!(error.to_string().contains("omits key field \"name\""), "{error}");
    let mut managed = object(json!({}));
    managed["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert!(matches!(
        apply(&deployment(), None, &managed, &applier("me"), false, T1),
        Err(ApplyError::Invalid(_))
    ));
}

#[test]
fn sets_and_atomic_values() {
    let finalizers = |list: Value| {
        let mut obj = object(Value::Null);
        obj["metadata"]["finalizers"] = list;
        obj
    };
    let live = apply_as("a", None, &finalizers(json!(["x/a", "x/b"])));
    let live = apply_as("b", Some(&live), &finalizers(json!(["x/c"])));
    assert_eq!(live["metadata"]["finalizers"], json!(["x/a", "x/b", "x/c"]));
    let live = apply_as("a", Some(&live), &finalizers(json!(["x/b"])));
    assert_eq!(live["metadata"]["finalizers"], json!(["x/b", "x/c"]));
    assert_eq!(fields(&live, "a"), json!({"f:metadata": {"f:finalizers": {"v:\"x/b\"": {}}}}));
    let selector = |labels: Value| object(json!({"selector": {"matchLabels": labels}}));
    let live = apply_as("a", None, &selector(json!({"a": "1"})));
    assert_eq!(fields(&live, "a"), json!({"f:spec": {"f:selector": {}}}));
    let error =
        apply(&deployment(), Some(&live), &selector(json!({"a": "1", "b": "2"})), &applier("b"), false, T1);
    assert!(error.unwrap_err().to_string().ends_with("conflict with \"a\": .spec.selector"));
}

#[test]
fn updates_take_what_they_change() {
    let mut live = object(
        json!({"replicas": 1, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
        {"name": "c", "image": "i"}]}}}),
    );
    track_update(&deployment(), None, &mut live, &by("kubectl-create", "Update"), T1);
    assert_eq!(
        fields(&live, "kubectl-create"),
        json!({"f:spec": {"f:replicas": {}, "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers": {
            "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}}}}}}})
    );
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 5.into();
    let scaler = Manager { subresource: "scale", ..by("scaler", "Update") };
    track_update(&deployment(), Some(&live), &mut scaled, &scaler, T2);
    assert_eq!(fields(&scaled, "scaler"), json!({"f:spec": {"f:replicas": {}}}));
    assert!(fields(&scaled, "kubectl-create").pointer("/f:spec/f:replicas").is_none());
    assert_eq!(scaled["metadata"]["managedFields"][1]["subresource"], "scale");
    // A write that changes nothing moves nothing.
    let mut same = scaled.clone();
    track_update(&deployment(), Some(&scaled), &mut same, &by("third", "Update"), "2026-01-03T00:00:00Z");
    assert_eq!(same, scaled);
    // Clients that do not send managedFields do not lose them.
    let mut plain = without_managers(&scaled);
    plain["spec"]["replicas"] = 6.into();
    track_update(&deployment(), Some(&scaled), &mut plain, &scaler, "2026-01-03T00:00:00Z");
    assert_eq!(managers(&plain), ["kubectl-create", "scaler"]);
    assert_eq!(plain["metadata"]["managedFields"][1]["time"], "2026-01-03T00:00:00Z");
}

#[test]
fn removing_a_field_is_nobodys_conflict() {
    let live = apply_as("owner", None, &object(json!({"replicas": 2, "paused": true})));
    let mut new = live.clone();
    new["spec"].as_object_mut().unwrap().remove("paused");
    track_update(&deployment(), Some(&live), &mut new, &by("remover", "Update"), T2);
    assert_eq!(fields(&new, "owner"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(managers(&new), ["owner"]);
}

#[test]
fn managed_fields_can_be_written_and_reset() {
    let mut live = object(json!({"replicas": 1}));
    track_update(&deployment(), None, &mut live, &by("kubectl-client-side-apply", "Update"), T1);
    // kubectl's migration: the entry becomes an Apply entry of `kubectl`.
    let mut migrated = live.clone();
    migrated["metadata"]["managedFields"][0]["manager"] = "kubectl".into();
    migrated["metadata"]["managedFields"][0]["operation"] = "Apply".into();
    track_update(&deployment(), Some(&live), &mut migrated, &by("kubectl", "Update"), T2);
    assert_eq!(managers(&migrated), ["kubectl"]);
    let out = apply(
        &deployment(),
        Some(&migrated),
        &object(json!({"paused": true})),
        &applier("kubectl"),
        false,
        T2,
    )
    .unwrap();
    assert_eq!(
        out["spec"],
        json!({"paused": true}),
        "what client-side apply owned is removed by server-side apply"
    );
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(&deployment(), Some(&live), &mut reset, &by("kubectl", "Update"), T2);
    assert!(reset["metadata"].get("managedFields").is_none());
}

#[test]
fn untracked_objects_belong_to_whoever_was_before() {
    let live = object(json!({"replicas": 1}));
    let error = apply(&deployment(), Some(&live), &object(json!({"replicas": 2})), &applier("me"), false, T1)
        .unwrap_err();
    assert!(error.to_string().contains("\"before-first-apply\" using apps/v1"), "{error}");
    let out = apply_as("me", Some(&live), &object(json!({"replicas": 1})));
    assert_eq!(managers(&out), ["me", "before-first-apply"]);
}

#[test]
fn custom_resources_follow_their_schema() {
    let schema = Schema::from_crd(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "traffic": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["tag"], "items": {
            "type": "object", "properties": {"tag": {"type": "string"}, "percent": {"type": "integer"}}}},
        "plain": {"type": "array", "items": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}))
    .unwrap();
    let manager = Manager { api_version: "x.io/v1", ..applier("a") };
    let applied =
        json!({"spec": {"traffic": [{"tag": "t", "percent": 1}], "plain": ["x"], "free": {"a": {"b": [1]}}}});
    let out = apply(&schema, None, &applied, &manager, false, T1).unwrap();
    assert_eq!(
        fields(&out, "a"),
        json!({"f:spec": {"f:traffic": {"k:{\"tag\":\"t\"}": {".": {}, "f:tag": {}, "f:percent": {}}}, "f:plain": {},
            "f:free": {"f:a": {".": {}, "f:b": {}}}}})
    );
}

#[test]
fn updaters_are_bounded() {
    let mut live = object(json!({"paused": true}));
    track_update(&deployment(), None, &mut live, &by("m", "Update"), T1);
    for i in 0..30 {
        let mut new = live.clone();
        new["metadata"]["labels"] = json!({});
        for j in 0..=i {
            new["metadata"]["labels"][format!("l{j}")] = "x".into();
        }
        let time = format!("2026-01-01T00:{i:02}:00Z");
        track_update(&deployment(), Some(&live), &mut new, &by(&format!("m{i}"), "Update"), &time);
        live = new;
    }
    let names = managers(&live);
    assert!(names.len() <= 10, "{names:?}");
    assert!(names.contains(&"ancient-changes"));
    let steps = |l: &serde_json::Map<String, Value>| l.len() - usize::from(l.contains_key("."));
    let all: usize = live["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["fieldsV1"]["f:metadata"]["f:labels"].as_object().map_or(0, steps))
        .sum();
    assert_eq!(all, 30, "no ownership is lost");
}

fn spec() -> impl Strategy<Value = Value> {
    let container = ("[a-c]", "[x-z]", prop::option::of(1u16..4)).prop_map(|(name, image, port)| {
        let mut c = json!({"name": name, "image": image});
        if let Some(port) = port {
            c["ports"] = json!([{"containerPort": port}]);
        }
        c
    });
    let containers = prop::collection::vec(container, 0..4).prop_map(|mut list| {
        let mut seen = std::collections::HashSet::new();
        list.retain(|c| seen.insert(c["name"].as_str().unwrap().to_owned()));
        list
    });
    let labels = prop::collection::btree_map("[a-c]", "[x-z]", 0..3);
    (prop::option::of(0i64..3), prop::option::of(any::<bool>()), containers, labels).prop_map(
        |(replicas, paused, list, labels)| {
            let mut spec =
                json!({"template": {"metadata": {"labels": labels}, "spec": {"containers": list}}});
            if let Some(replicas) = replicas {
                spec["replicas"] = replicas.into();
            }
            if let Some(paused) = paused {
                spec["paused"] = paused.into();
            }
            spec
        },
    )
}

proptest! {
    #[test]
    fn applying_twice_is_a_no_op(first in spec(), second in spec()) {
        let schema = deployment();
        let live = apply(&schema, None, &object(first), &applier("a"), true, T1).unwrap();
        let applied = object(second);
        let once = apply(&schema, Some(&live), &applied, &applier("a"), true, T1).unwrap();
        let twice = apply(&schema, Some(&once), &applied, &applier("a"), true, T2).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn a_sole_applier_gets_exactly_what_it_applies(first in spec(), second in spec()) {
        let schema = deployment();
        let live = apply(&schema, None, &object(first), &applier("a"), true, T1).unwrap();
        let applied = object(second);
        let out = apply(&schema, Some(&live), &applied, &applier("a"), false, T2).unwrap();
        // Empty lists and maps that nobody owns may come or go; every path that was applied is there with its value, and no other.
        let wanted = typed::field_set(Some(schema.root()), &applied);
        let got = typed::field_set(Some(schema.root()), &without_managers(&out));
        prop_assert_eq!(strip(got), strip(wanted));
    }

    #[test]
    fn nobody_loses_by_another_ones_apply(first in spec(), second in spec()) {
        let schema = deployment();
        let live = apply(&schema, None, &object(first.clone()), &applier("a"), true, T1).unwrap();
        if let Ok(out) = apply(&schema, Some(&live), &object(second), &applier("b"), false, T2) {
            prop_assert_eq!(fields(&out, "a"), fields(&live, "a"));
            let again = apply(&schema, Some(&out), &object(first), &applier("a"), false, T2).unwrap();
            prop_assert_eq!(again, out);
        }
    }

    #[test]
    fn the_short_way_of_tracking_ends_where_the_long_way_does(steps in proptest::collection::vec((0..3_usize, spec()), 1..6)) {
        let schema = deployment();
        let mut object = object(json!({"replicas": 1}));
        track_update(&schema, None, &mut object, &by("first", "Update"), T1);
        for (turn, (who, spec)) in steps.into_iter().enumerate() {
            let writer = [by("first", "Update"), by("second", "Update"), Manager { subresource: "status", ..by("first", "Update") }][who];
            let now = format!("2026-01-01T00:00:{turn:02}Z");
            let mut new = object.clone();
            new["spec"] = spec;
            let mut long = new.clone();
            track_update(&schema, Some(&object), &mut new, &writer, &now);
            let diff = typed::compare(schema.root(), &without_managers(&object), &without_managers(&long));
            recompute(Some(&object), &mut long, &writer, &diff, &now);
            prop_assert_eq!(&new, &long);
            object = new;
        }
    }

    #[test]
    fn comparing_with_itself_finds_nothing(a in spec(), b in spec()) {
        let schema = deployment();
        let (a, b) = (object(a), object(b));
        prop_assert!(typed::compare(schema.root(), &a, &a).is_empty());
        // Paths of the difference are those of one or the other.
        let diff = typed::compare(schema.root(), &a, &b);
        let (fa, fb) = (typed::field_set(Some(schema.root()), &a), typed::field_set(Some(schema.root()), &b));
        prop_assert!(diff.modified.difference(&fb.union(&fa)).is_empty());
    }
}
