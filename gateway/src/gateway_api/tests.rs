use http::{HeaderMap, Method};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::status;
use super::translate::{Translated, translate};
use super::types::{Gateway, GatewayClass, HTTPRoute, ReferenceGrant};
use super::world::{World, common};
use crate::table::{BackendKey, Key, Outcome, RequestParts, Routes, Side, route};

const API: &str = "gateway.networking.k8s.io/v1";

fn world(listeners: Value) -> World {
    let mut world = World::default();
    let class: GatewayClass = serde_json::from_value(json!({"apiVersion": API, "kind": "GatewayClass",
        "metadata": {"name": "ebb"}, "spec": {"controllerName": "ebb.dev/gateway"}}))
    .expect("a class");
    world.classes.insert("ebb".to_owned(), class);
    let gateway: Gateway = serde_json::from_value(json!({"apiVersion": API, "kind": "Gateway",
        "metadata": {"namespace": "infra", "name": "gw", "generation": 2},
        "spec": {"gatewayClassName": "ebb", "listeners": listeners}}))
    .expect("a gateway");
    world.gateways.insert(Key::new("infra", "gw"), gateway);
    for (namespace, name) in [("infra", "one"), ("infra", "two"), ("other", "far")] {
        world.services.insert(Key::new(namespace, name), [80].into());
    }
    world.namespaces.insert("labelled".to_owned(), [("team".to_owned(), "a".to_owned())].into());
    world
}

fn plain() -> World {
    world(json!([{"name": "http", "port": 80, "protocol": "HTTP"}]))
}

fn made(namespace: &str, name: &str, spec: Value) -> HTTPRoute {
    let mut spec = spec;
    if spec.get("parentRefs").is_none() {
        spec["parentRefs"] = json!([{"name": "gw", "namespace": "infra"}]);
    }
    serde_json::from_value(json!({"apiVersion": API, "kind": "HTTPRoute",
        "metadata": {"namespace": namespace, "name": name, "generation": 4}, "spec": spec}))
    .expect("a route")
}

fn to(world: &World, route: &HTTPRoute) -> Translated<String> {
    translate(world, route, &mut |key: &BackendKey| key.service.name.clone())
}

fn backend(name: &str) -> Value {
    json!({"name": name, "port": 80})
}

/// Where a request goes, by the routes.
fn asked(
    world: &World,
    all: &[HTTPRoute],
    method: &Method,
    url: &str,
    headers: &HeaderMap,
    random: u32,
) -> String {
    let mut routes = Routes::default();
    for route in all {
        routes.set(to(world, route).compiled);
    }
    let (scheme, rest) = url.split_once("://").expect("a scheme");
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let secure = scheme == "https";
    let request = RequestParts { side: Side::External, host, path, query, method, headers, secure };
    match route(&routes.table(), &request, random) {
        Outcome::Forward(rule, split) => rule.splits[split].backend.clone().expect("a backend"),
        Outcome::Redirect(_, redirect) => format!("{}", redirect.status),
        Outcome::UnknownHost => "unknown host".to_owned(),
        Outcome::UnknownPath => "unknown path".to_owned(),
        Outcome::BadBackend(_) => "bad backend".to_owned(),
        other => format!("{other:?}"),
    }
}

fn get(world: &World, all: &[HTTPRoute], url: &str) -> String {
    asked(world, all, &Method::GET, url, &HeaderMap::new(), 0)
}

#[test]
fn what_matches_first() {
    let world = plain();
    let route = made(
        "infra",
        "r",
        json!({"hostnames": ["h.test"], "rules": [
        {"backendRefs": [backend("one")]},
        {"matches": [{"path": {"type": "Exact", "value": "/a"}}], "backendRefs": [backend("two")]},
        {"matches": [{"path": {"value": "/a/b"}, "method": "POST"},
                     {"path": {"value": "/a/b"}, "queryParams": [{"name": "q", "value": "1"}]},
                     {"headers": [{"name": "X-A", "value": "1"}]}], "backendRefs": [backend("two")]}]}),
    );
    let all = [route];
    for (url, expected) in [
        ("http://h.test/", "one"),
        ("http://h.test/a", "two"),
        ("http://h.test/a/", "one"),
        ("http://h.test/a/b", "one"),
        ("http://h.test/a/b?q=1", "two"),
        ("http://h.test/a/bc?q=1", "one"),
        ("http://x.test/", "unknown host"),
    ] {
        assert_eq!(get(&world, &all, url), expected, "{url}");
    }
    assert_eq!(asked(&world, &all, &Method::POST, "http://h.test/a/b/c", &HeaderMap::new(), 0), "two");
    let mut headers = HeaderMap::new();
    headers.insert("x-a", "1".parse().expect("a value"));
    assert_eq!(asked(&world, &all, &Method::GET, "http://h.test/", &headers, 0), "two");
}

#[test]
fn routes_of_one_host_are_served_together() {
    let world = plain();
    let first =
        made("infra", "a", json!({"hostnames": ["h.test"], "rules": [{"backendRefs": [backend("one")]}]}));
    let second = made(
        "infra",
        "b",
        json!({"hostnames": ["h.test"], "rules": [
        {"matches": [{"path": {"value": "/b"}}], "backendRefs": [backend("two")]}]}),
    );
    let all = [first, second];
    assert_eq!(get(&world, &all, "http://h.test/b/c"), "two");
    assert_eq!(get(&world, &all, "http://h.test/c"), "one");
}

#[test]
fn weights_and_backends_that_cannot_be_used() {
    let world = plain();
    let weighted = |name: &str, weight: u32| json!({"name": name, "port": 80, "weight": weight});
    let route = made(
        "infra",
        "r",
        json!({"rules": [
        {"backendRefs": [weighted("one", 3), weighted("two", 0), weighted("nobody", 1)]}]}),
    );
    let all = [route.clone()];
    let at = |random| asked(&world, &all, &Method::GET, "http://any.test/", &HeaderMap::new(), random);
    assert_eq!(at(0), "one");
    assert_eq!(at(u32::MAX / 4 * 3 - 1), "one");
    assert_eq!(at(u32::MAX), "bad backend");
    let (reason, message) = to(&world, &route).resolved.expect_err("nobody");
    assert_eq!((reason, message.as_str()), ("BackendNotFound", "there is no Service infra/nobody"));
    let none = made("infra", "r", json!({"rules": [{"matches": []}]}));
    assert_eq!(get(&world, &[none], "http://any.test/"), "bad backend");
}

#[test]
fn other_namespaces_only_with_a_grant() {
    let mut world = plain();
    let far = json!({"name": "far", "namespace": "other", "port": 80});
    let route = made("infra", "r", json!({"rules": [{"backendRefs": [far]}]}));
    assert_eq!(to(&world, &route).resolved.expect_err("no grant").0, "RefNotPermitted");
    let grant = |kind: &str, name: Value| -> ReferenceGrant {
        serde_json::from_value(
            json!({"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
            "metadata": {"namespace": "other", "name": "g"}, "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": "infra"}],
                "to": [{"group": "", "kind": "Service", "name": name}]}}),
        )
        .expect("a grant")
    };
    for (grant, allowed) in [
        (grant("Gateway", Value::Null), false),
        (grant("HTTPRoute", json!("near")), false),
        (grant("HTTPRoute", json!("far")), true),
        (grant("HTTPRoute", Value::Null), true),
    ] {
        world.grants.insert(Key::new("other", "g"), grant);
        assert_eq!(to(&world, &route).resolved.is_ok(), allowed);
    }
    assert_eq!(get(&world, &[route], "http://any.test/"), "far");
}

#[test]
fn listeners_say_whose_routes_and_hosts_they_take() {
    let listener = |name: &str, more: Value| {
        let mut listener = json!({"name": name, "port": 80, "protocol": "HTTP"});
        for (key, value) in more.as_object().expect("an object") {
            listener[key] = value.clone();
        }
        listener
    };
    let world = world(json!([
        listener("own", json!({"hostname": "own.test"})),
        listener("all", json!({"hostname": "*.all.test", "allowedRoutes": {"namespaces": {"from": "All"}}})),
        listener(
            "some",
            json!({"allowedRoutes": {"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}}})
        ),
        listener("odd", json!({"port": 81, "allowedRoutes": {"namespaces": {"from": "All"}}})),
    ]));
    let reason = |namespace: &str, section: &str, host: &str| {
        let route = made(
            namespace,
            "r",
            json!({"hostnames": [host], "rules": [{"backendRefs": [backend("one")]}],
            "parentRefs": [{"name": "gw", "namespace": "infra", "sectionName": section}]}),
        );
        to(&world, &route).parents.remove(0).1.map_err(|why| why.0)
    };
    assert_eq!(reason("infra", "own", "own.test"), Ok(()));
    assert_eq!(reason("other", "own", "own.test"), Err("NotAllowedByListeners"));
    assert_eq!(reason("other", "all", "x.all.test"), Ok(()));
    assert_eq!(reason("other", "all", "x.test"), Err("NoMatchingListenerHostname"));
    assert_eq!(reason("labelled", "some", "x.test"), Ok(()));
    assert_eq!(reason("other", "some", "x.test"), Err("NotAllowedByListeners"));
    assert_eq!(reason("other", "odd", "x.test"), Err("NoMatchingParent"));
    assert_eq!(reason("other", "none", "x.test"), Err("NoMatchingParent"));
}

#[test]
fn the_narrower_of_two_hosts() {
    let of = |listener: Option<&str>, route: &str| common(listener, &[route.to_owned()]);
    assert_eq!(common(None, &[]), ["*"]);
    assert_eq!(common(Some("A.test"), &[]), ["a.test"]);
    assert_eq!(of(None, "B.test"), ["b.test"]);
    assert_eq!(of(Some("*.test"), "b.test"), ["b.test"]);
    assert_eq!(of(Some("b.test"), "*.test"), ["b.test"]);
    assert_eq!(of(Some("*.a.test"), "*.test"), ["*.a.test"]);
    assert_eq!(of(Some("*.test"), "*.a.test"), ["*.a.test"]);
    assert!(of(Some("*.test"), "test").is_empty());
    assert!(of(Some("a.test"), "b.test").is_empty());
}

#[test]
fn tls_listeners_take_requests_over_tls_only() {
    let tls = json!({"certificateRefs": [{"name": "cert"}]});
    let world =
        world(json!([{"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "s.test", "tls": tls},
                             {"name": "http", "port": 80, "protocol": "HTTP", "hostname": "p.test"}]));
    let all = [made("infra", "r", json!({"rules": [{"backendRefs": [backend("one")]}]}))];
    assert_eq!(get(&world, &all, "https://s.test/"), "one");
    assert_eq!(get(&world, &all, "http://s.test/"), "unknown path");
    assert_eq!(get(&world, &all, "http://p.test/"), "one");
    assert_eq!(get(&world, &all, "https://p.test/"), "unknown path");
}

#[test]
fn filters_and_times() {
    let world = plain();
    let route = made(
        "infra",
        "r",
        json!({"rules": [{
        "timeouts": {"request": "10s", "backendRequest": "500ms"},
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-A", "value": "1"}], "remove": ["X-B"]}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "X-C", "value": "2"}]}},
            {"type": "URLRewrite", "urlRewrite": {"hostname": "new.test", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/n"}}}],
        "backendRefs": [backend("one")]},
        {"matches": [{"path": {"value": "/r"}}],
         "filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 301}}]}]}),
    );
    let translated = to(&world, &route);
    let mut routes = Routes::default();
    routes.set(translated.compiled);
    let headers = HeaderMap::new();
    let request = RequestParts {
        side: Side::External,
        host: "any.test",
        path: "/x",
        query: None,
        method: &Method::GET,
        headers: &headers,
        secure: false,
    };
    let table = routes.table();
    let Outcome::Forward(rule, _) = self::route(&table, &request, 0) else { panic!("forwarded") };
    assert_eq!(rule.timeout, Some(std::time::Duration::from_secs(10)));
    assert_eq!(rule.backend_timeout, Some(std::time::Duration::from_millis(500)));
    assert_eq!(rule.next_host(), Some("new.test"));
    let mut changed = HeaderMap::new();
    changed.insert("x-b", "gone".parse().expect("a value"));
    rule.changes.request.apply(&mut changed);
    assert!(changed["x-a"] == "1" && !changed.contains_key("x-b"));
    assert_eq!(rule.changes.response.add.len(), 1);
    assert_eq!(get(&world, std::slice::from_ref(&route), "http://any.test/r/x"), "301 Moved Permanently");
    let odd = made(
        "infra",
        "r",
        json!({"rules": [{"filters": [{"type": "RequestMirror"}], "backendRefs": [backend("one")]}]}),
    );
    let (reason, message) = to(&world, &odd).parents.remove(0).1.expect_err("unsupported");
    assert_eq!(
        (reason, message.as_str()),
        ("UnsupportedValue", "spec.rules[0].filters: RequestMirror is not supported")
    );
}

#[test]
fn statuses_are_stable_and_leave_others_alone() {
    let mut world = plain();
    let mut route = made("infra", "r", json!({"rules": [{"backendRefs": [backend("one")]}]}));
    route.status = serde_json::from_value(json!({"parents": [
        {"parentRef": {"name": "theirs"}, "controllerName": "example.com/other", "conditions": []}]}))
    .expect("a status");
    world.routes.insert(Key::new("infra", "r"), route.clone());
    let early: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let late: Timestamp = "2026-01-02T00:00:00Z".parse().expect("a time");
    let told = |world: &World, route: &HTTPRoute, now| {
        let translated = to(world, route);
        status::route(route, &translated.parents, &translated.resolved, None, now)
    };
    let first = told(&world, &route, early);
    assert_eq!(first.parents.len(), 2);
    assert_eq!(first.parents[0].controller_name, "example.com/other");
    assert!(
        first.parents[1].conditions.iter().all(|c| c.status == "True" && c.observed_generation == Some(4))
    );
    route.status = Some(first.clone());
    assert_eq!(told(&world, &route, late), first, "nothing new, nothing to write");
    world.services.clear();
    let broken = told(&world, &route, late);
    let resolved = &broken.parents[1].conditions[1];
    assert_eq!((resolved.status.as_str(), resolved.last_transition_time.0), ("False", late));

    let key = Key::new("infra", "gw");
    let gateway = world.gateways[&key].clone();
    let told = status::gateway(&world, &key, &gateway, |_| false, early);
    assert_eq!(told.listeners[0].attached_routes, 1);
    assert!(told.conditions.iter().all(|c| c.status == "True"), "{:?}", told.conditions);
    let again = Gateway { status: Some(told.clone()), ..gateway };
    assert_eq!(status::gateway(&world, &key, &again, |_| false, late), told);
}

#[test]
fn a_route_says_whose_its_hosts_are() {
    let world = plain();
    let route = made("infra", "r", json!({"rules": [{"backendRefs": [backend("one")]}]}));
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let told = |all: bool| {
        let translated = to(&world, &route);
        let taken = status::Taken { why: "host a belongs to b".to_owned(), all };
        let mut told = status::route(&route, &translated.parents, &translated.resolved, Some(&taken), now)
            .parents
            .remove(0);
        let of = |type_: &str| told.conditions.iter().position(|condition| condition.type_ == type_);
        let (accepted, partly) = (of("Accepted").expect("told"), of("PartiallyInvalid"));
        let partly = partly.map(|at| told.conditions.remove(at));
        (told.conditions.swap_remove(accepted), partly)
    };
    let (accepted, partly) = told(true);
    assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("False", "HostTaken"));
    assert_eq!((accepted.message.as_str(), partly), ("host a belongs to b", None));
    let (accepted, partly) = told(false);
    let partly = partly.expect("the other hosts are served");
    assert_eq!((accepted.status.as_str(), partly.status.as_str()), ("True", "True"));
    assert_eq!((partly.reason.as_str(), partly.message.as_str()), ("HostTaken", "host a belongs to b"));
}
