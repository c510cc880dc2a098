use serde_json::json;

use super::*;

fn kind() -> Arc<str> {
    "/configmaps".into()
}

fn object(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"k": data}})
}

fn open() -> (tempfile::TempDir, Arc<Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), true).unwrap();
    (folder, store)
}

#[tokio::test]
async fn acknowledged_is_there_after_a_crash() {
    let (folder, store) = open();
    let key = Key::new(&kind(), "default", "a");
    let first = store.put(&key, Expect::Absent, object("a", "1")).unwrap().durable().await.unwrap();
    store.put(&key, Expect::Revision(first.revision), object("a", "2")).unwrap().durable().await.unwrap();
    let gone = Key::new(&kind(), "default", "b");
    let commit = store.put(&gone, Expect::Absent, object("b", "1")).unwrap();
    store.remove(&gone, commit.object.revision).unwrap().durable().await.unwrap();
    // The last word before the crash: were it told before its commit, the file would not have it.
    let newest = Key::new(&kind(), "default", "c");
    store.put(&newest, Expect::Absent, object("c", "1")).unwrap().durable().await.unwrap();
    let last = store.revision();
    // What a killed process leaves is the file as it is now: copy it while the store is still open.
    let crashed = tempfile::tempdir().unwrap();
    std::fs::copy(folder.path().join("objects.redb"), crashed.path().join("objects.redb")).unwrap();

    let reopened = Store::open(crashed.path(), true).unwrap();
    assert_eq!(reopened.get("/configmaps", "default", "a").unwrap().value["data"]["k"], "2");
    assert!(reopened.get("/configmaps", "default", "b").is_none());
    assert!(reopened.get("/configmaps", "default", "c").is_some());
    assert!(reopened.revision() > last, "the revision jumps ahead");
    assert!(reopened.watch(&kind(), last).is_err(), "a watcher from before is told to list again");
}

#[tokio::test]
async fn writes_check_what_they_expect() {
    let (_folder, store) = open();
    let key = Key::new(&kind(), "default", "a");
    let commit = store.put(&key, Expect::Absent, object("a", "1")).unwrap();
    assert!(matches!(store.put(&key, Expect::Absent, object("a", "2")), Err(Conflict::Exists)));
    assert!(matches!(store.put(&key, Expect::Revision(1), object("a", "2")), Err(Conflict::Changed)));
    assert!(matches!(store.remove(&key, 1), Err(Conflict::Changed)));
    store.remove(&key, commit.object.revision).unwrap();
    assert!(matches!(store.remove(&key, 1), Err(Conflict::Missing)));
    assert!(matches!(store.put(&key, Expect::Revision(1), object("a", "2")), Err(Conflict::Missing)));
}

#[tokio::test]
async fn old_changes_are_told_whole_though_their_trees_are_gone() {
    let (_folder, store) = open();
    let mut watch = store.watch(&kind(), store.revision()).unwrap();
    for n in 0..50 {
        let mut value = object(&format!("o{n}"), "v");
        value["metadata"]["labels"] = json!({"n": n.to_string()});
        value["metadata"]["managedFields"] = json!([{"manager": "m"}]);
        value["list"] = json!([n]);
        store.put(&Key::new(&kind(), "default", &format!("o{n}")), Expect::Absent, value).unwrap();
    }
    let events = watch.next().await.unwrap();
    assert_eq!(events.len(), 50);
    assert!(events[0].object.value["list"].is_null(), "its tree has no lists any more");
    for (n, event) in events.iter().enumerate() {
        assert_eq!(
            event.object.value["metadata"]["labels"]["n"],
            n.to_string(),
            "what selectors need is there"
        );
        let read = |frame: Bytes| serde_json::from_slice::<Value>(&frame).unwrap()["object"].take();
        assert_eq!(read(event.frame())["metadata"]["managedFields"][0]["manager"], "m");
        assert_eq!(read(event.lean())["list"][0], n);
        assert!(read(event.lean())["metadata"]["managedFields"].is_null());
        assert_eq!(read(event.partial())["metadata"]["name"], format!("o{n}"));
    }
}

#[tokio::test]
async fn a_watch_sees_each_change_in_order() {
    let (_folder, store) = open();
    let key = Key::new(&kind(), "default", "a");
    let mut watch = store.watch(&kind(), store.revision()).unwrap();
    let one = store.put(&key, Expect::Absent, object("a", "1")).unwrap().object;
    let two = store.put(&key, Expect::Revision(one.revision), object("a", "2")).unwrap().object;
    store.remove(&key, two.revision).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(watch.next().await.unwrap());
    }
    assert_eq!(
        seen.iter().map(|event| event.change).collect::<Vec<_>>(),
        [Change::Added, Change::Modified, Change::Deleted]
    );
    assert_eq!(seen[2].object.value["metadata"]["resourceVersion"], seen[2].object.revision.to_string());
    assert!(seen[0].frame().starts_with(b"{\"type\":\"ADDED\",\"object\":{"));
}

#[tokio::test]
async fn a_watch_that_fell_behind_is_told() {
    let (_folder, store) = open();
    let key = Key::new(&kind(), "default", "a");
    let from = store.revision();
    let mut last = store.put(&key, Expect::Absent, object("a", "0")).unwrap().object.revision;
    let mut watch = store.watch(&kind(), from).unwrap();
    for n in 0..5000 {
        last = store.put(&key, Expect::Revision(last), object("a", &n.to_string())).unwrap().object.revision;
    }
    assert!(watch.next().await.is_err());
    assert!(store.watch(&kind(), from).is_err());
    assert!(store.watch(&kind(), last).is_ok());
    assert!(!store.reaches_back_to("/configmaps", from));
}

#[tokio::test]
async fn lists_are_by_namespace_and_sorted() {
    let (_folder, store) = open();
    for (namespace, name) in [("b", "z"), ("a", "y"), ("a-c", "x"), ("a", "b")] {
        store.put(&Key::new(&kind(), namespace, name), Expect::Absent, object(name, "1")).unwrap();
    }
    let names = |namespace| {
        store.list("/configmaps", namespace).1.iter().map(|o| o.key.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(Some("a")), ["b", "y"]);
    assert_eq!(names(None).len(), 4);
    assert!(names(Some("none")).is_empty());
}

#[tokio::test]
async fn what_is_not_looked_at_is_kept_as_bytes() {
    let (folder, store) = open();
    let write = |n: usize| {
        let name = format!("o{n:03}");
        store.put(&Key::new(&kind(), "default", &name), Expect::Absent, object(&name, "v")).unwrap()
    };
    let get = |store: &Store, n: usize| store.get("/configmaps", "default", &format!("o{n:03}")).unwrap();
    for n in 0..FEW {
        write(n);
    }
    assert!((0..FEW).all(|n| get(&store, n).value.is_read()), "few are kept as they are");
    let mut last = None;
    for n in FEW..FEW + RECENT {
        last = Some(write(n));
    }
    assert!((0..FEW).all(|n| !get(&store, n).value.is_read()));
    assert!(
        (FEW..FEW + RECENT).all(|n| get(&store, n).value.is_read()),
        "the last ones are likely to be asked for"
    );
    let folded = get(&store, 0);
    assert_eq!(folded.value["data"]["k"], "v");
    assert!(folded.value.is_read() && !get(&store, 0).value.is_read(), "his own copy");
    assert_eq!(folded.value.api_version(), "v1");
    assert!(
        store.list("/configmaps", Some("default")).1.iter().all(|object| object.value["kind"] == "ConfigMap")
    );

    let unread = get(&store, 0);
    assert!(unread.value.look(|value| value["data"]["k"] == "v") && !unread.value.is_read());
    let roles: Arc<str> = "rbac.authorization.k8s.io/roles".into();
    for n in 0..FEW + 2 * RECENT {
        let name = format!("r{n}");
        store.put(&Key::new(&roles, "default", &name), Expect::Absent, object(&name, "v")).unwrap();
    }
    assert!(store.list(&roles, None).1.iter().all(|role| role.value.is_read()), "each request asks them");

    // It is changed like any other, and whole again.
    let key = Key::new(&kind(), "default", "o000");
    store.put(&key, Expect::Revision(folded.revision), object("o000", "new")).unwrap();
    assert!(get(&store, 0).value.is_read() && get(&store, 0).value["data"]["k"] == "new");
    let removed = store.remove(&Key::new(&kind(), "default", "o001"), get(&store, 1).revision).unwrap();
    assert_eq!(removed.object.value["data"]["k"], "v", "the last state is told whole");

    last.unwrap().durable().await.unwrap();
    store.close().await;
    drop(store);
    let again = Store::open(folder.path(), true).unwrap();
    assert!(!get(&again, 5).value.is_read());
    assert_eq!(get(&again, 5).value["data"]["k"], "v");
}
