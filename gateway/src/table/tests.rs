use ebb_api::networking::Ingress;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn ingress(namespace: &str, name: &str, created: &str, spec: Value) -> Ingress {
    serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"namespace": namespace, "name": name, "generation": 3, "creationTimestamp": created},
        "spec": spec,
    }))
    .expect("an ingress")
}

fn split(service: &str, percent: u32) -> Value {
    json!({"serviceNamespace": "default", "serviceName": service, "servicePort": 80, "percent": percent,
           "appendHeaders": {"Knative-Serving-Revision": service}})
}

fn build(ingresses: &[Ingress]) -> Table<String> {
    Builder::new("cluster.local", |key: &BackendKey| key.service.name.clone()).build(ingresses)
}

const EARLY: &str = "2026-01-01T00:00:00Z";
const LATE: &str = "2026-01-02T00:00:00Z";

fn hello() -> Table<String> {
    build(&[ingress(
        "default",
        "hello",
        EARLY,
        json!({"rules": [
            {"hosts": ["Hello.default.example.com"], "visibility": "ExternalIP",
             "http": {"paths": [{"splits": [split("one", 90), split("two", 10)]}]}},
            {"hosts": ["hello.default.svc.cluster.local"], "visibility": "ClusterLocal",
             "http": {"paths": [{"splits": [split("one", 100)]}]}},
        ]}),
    )])
}

fn to<'a>(
    table: &'a Table<String>,
    side: Side,
    host: &str,
    path: &str,
    headers: &HeaderMap,
    random: u32,
) -> &'a str {
    match route(table, &RequestParts { side, host, path, headers }, random) {
        Outcome::Forward(_, split) => &split.backend,
        Outcome::UnknownHost => "unknown host",
        Outcome::OnlyLocal => "only local",
        Outcome::UnknownPath => "unknown path",
        Outcome::NoBackend(_) => "no backend",
    }
}

fn simple<'a>(table: &'a Table<String>, side: Side, host: &str) -> &'a str {
    to(table, side, host, "/", &HeaderMap::new(), 0)
}

#[test]
fn hosts_with_and_without_port_case_and_dot() {
    let table = hello();
    for host in ["hello.default.example.com", "HELLO.default.example.com:8080", "hello.default.example.com."]
    {
        assert_eq!(simple(&table, Side::External, host), "one", "{host}");
    }
    for host in ["other.example.com", "", "[::1]:80", "hello.default.example.com.evil"] {
        assert_eq!(simple(&table, Side::External, host), "unknown host", "{host}");
    }
}

#[test]
fn visibility() {
    let table = hello();
    for host in ["hello.default", "hello.default.svc", "hello.default.svc.cluster.local:80"] {
        assert_eq!(simple(&table, Side::Local, host), "one", "{host}");
        assert_eq!(simple(&table, Side::External, host), "only local", "{host}");
    }
    assert_eq!(simple(&table, Side::Local, "hello.default.example.com"), "one", "inside sees everything");
    let served = &table.served[&Key::new("default", "hello")];
    assert_eq!(served.generation, 3);
    assert!(served.hosts.contains(&("hello.default".to_owned(), Side::Local)));
    assert!(served.hosts.contains(&("hello.default.example.com".to_owned(), Side::External)));
}

#[test]
fn the_longest_prefix_then_the_most_headers() {
    let table = build(&[ingress(
        "default",
        "paths",
        EARLY,
        json!({"rules": [{"hosts": ["h"], "http": {"paths": [
            {"splits": [split("root", 100)]},
            {"path": "/a", "splits": [split("a", 100)]},
            {"path": "/a/b", "splits": [split("ab", 100)]},
            {"path": "/a", "headers": {"x-tag": {"exact": "blue"}}, "splits": [split("a-blue", 100)]},
        ]}}]}),
    )]);
    let none = HeaderMap::new();
    let mut blue = HeaderMap::new();
    blue.append("X-Tag", HeaderValue::from_static("red"));
    blue.append("X-Tag", HeaderValue::from_static("blue"));
    for (path, headers, expected) in [
        ("/", &none, "root"),
        ("/ab", &none, "a"),
        ("/a/b/c", &none, "ab"),
        ("/a/c", &none, "a"),
        ("/a/c", &blue, "a-blue"),
        ("/a/b", &blue, "ab"),
    ] {
        assert_eq!(to(&table, Side::External, "h", path, headers, 7), expected, "{path}");
    }
}

#[test]
fn a_host_without_a_catch_all() {
    let table = build(&[ingress(
        "default",
        "p",
        EARLY,
        json!({"rules": [{"hosts": ["h"], "http": {"paths": [{"path": "/only", "splits": [split("s", 100)]}]}}]}),
    )]);
    assert_eq!(simple(&table, Side::External, "h"), "unknown path");
}

#[test]
fn the_older_ingress_keeps_the_host() {
    let spec = |service| json!({"rules": [{"hosts": ["h"], "http": {"paths": [{"splits": [split(service, 100)]}]}}]});
    let table = build(&[ingress("b", "new", LATE, spec("new")), ingress("a", "old", EARLY, spec("old"))]);
    assert_eq!(simple(&table, Side::External, "h"), "old");
    let problem = &table.problems[&Key::new("b", "new")];
    assert_eq!(*problem, Problem::HostTaken { host: "h".to_owned(), by: Key::new("a", "old") });
    assert!(table.served.contains_key(&Key::new("a", "old")));
}

#[test]
fn bad_ingresses_are_told_and_do_not_harm_others() {
    let good = ingress(
        "default",
        "good",
        EARLY,
        json!({"rules": [{"hosts": ["g"], "http": {"paths": [{"splits": [split("g", 100)]}]}}]}),
    );
    let no_paths = ingress("default", "no-paths", EARLY, json!({"rules": [{"hosts": ["x"]}]}));
    let header = ingress(
        "default",
        "header",
        EARLY,
        json!({"rules": [{"hosts": ["y"], "http": {"paths": [
            {"appendHeaders": {"bad name": "v"}, "splits": [split("s", 100)]}]}}]}),
    );
    let percent = ingress(
        "default",
        "percent",
        EARLY,
        json!({"rules": [{"hosts": ["z"], "http": {"paths": [{"splits": [split("s", 101)]}]}}]}),
    );
    let table = build(&[good, no_paths, header, percent]);
    assert_eq!(simple(&table, Side::External, "g"), "g");
    assert_eq!(table.problems.len(), 3);
    for host in ["x", "y", "z"] {
        assert_eq!(simple(&table, Side::External, host), "unknown host");
    }
}

#[test]
fn a_single_split_may_leave_out_its_percentage() {
    let table = build(&[ingress(
        "default",
        "s",
        EARLY,
        json!({"rules": [{"hosts": ["h"], "http": {"paths": [{"splits": [split("s", 0)]}]}}]}),
    )]);
    assert_eq!(to(&table, Side::External, "h", "/", &HeaderMap::new(), u32::MAX), "s");
}

#[test]
fn certificates_by_host() {
    let table = build(&[ingress(
        "default",
        "tls",
        EARLY,
        json!({"tls": [{"hosts": ["A.example.com"], "secretName": "cert"},
                       {"hosts": ["b.example.com"], "secretName": "cert", "secretNamespace": "other"}],
               "httpOption": "Redirected",
               "rules": [{"hosts": ["a.example.com"], "http": {"paths": [{"splits": [split("s", 100)]}]}}]}),
    )]);
    assert_eq!(table.certificates["a.example.com"], Key::new("default", "cert"));
    assert_eq!(table.certificates["b.example.com"], Key::new("other", "cert"));
    let none = HeaderMap::new();
    let parts = RequestParts { side: Side::External, host: "a.example.com", path: "/", headers: &none };
    assert!(matches!(route(&table, &parts, 0), Outcome::Forward(rule, _) if rule.redirect));
}

/// A small generator is enough, and the same in every run.
fn draws() -> impl Iterator<Item = u32> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    })
}

fn shares(percents: &[u32], count: usize) -> Vec<usize> {
    let splits: Vec<Value> =
        percents.iter().enumerate().map(|(n, percent)| split(&format!("s{n}"), *percent)).collect();
    let table = build(&[ingress(
        "default",
        "s",
        EARLY,
        json!({"rules": [{"hosts": ["h"], "http": {"paths": [{"splits": splits}]}}]}),
    )]);
    let mut counts = vec![0; percents.len()];
    let none = HeaderMap::new();
    for random in draws().take(count) {
        let name = to(&table, Side::External, "h", "/", &none, random);
        counts[name[1..].parse::<usize>().expect("s<n>")] += 1;
    }
    counts
}

#[test]
fn percentages_hold() {
    const COUNT: usize = 200_000;
    for percents in [&[90, 10][..], &[50, 50], &[1, 99], &[33, 33, 34], &[0, 100], &[25, 0, 75]] {
        let counts = shares(percents, COUNT);
        for (percent, count) in percents.iter().zip(&counts) {
            let p = f64::from(*percent) / 100.0;
            let sigma = (COUNT as f64 * p * (1.0 - p)).sqrt();
            let off = (*count as f64 - COUNT as f64 * p).abs();
            assert!(off <= 5.0 * sigma, "{percent}% of {percents:?}: {count} of {COUNT}");
        }
    }
}

#[test]
fn the_ends_of_the_draw() {
    let table = hello();
    let none = HeaderMap::new();
    let at = |random| to(&table, Side::External, "hello.default.example.com", "/", &none, random);
    assert_eq!(at(0), "one");
    assert_eq!(at(u32::MAX), "two");
    let edge = ((90u64 << 32) / 100) as u32;
    assert_eq!(at(edge), "one");
    assert_eq!(at(edge + 1), "two");
}

proptest! {
    #[test]
    fn zero_is_never_and_hundred_is_always(random in any::<u32>(), first in 0u32..=100) {
        let splits = [split("zero", 0), split("a", first), split("b", 100 - first), split("zero", 0)];
        let table = build(&[ingress("default", "s", EARLY, json!({"rules": [{"hosts": ["h"], "http":
            {"paths": [{"splits": splits}]}}]}))]);
        let got = to(&table, Side::External, "h", "/", &HeaderMap::new(), random);
        prop_assert!(got == "a" || got == "b");
        if first == 100 { prop_assert_eq!(got, "a"); }
        if first == 0 { prop_assert_eq!(got, "b"); }
    }

    #[test]
    fn routing_never_panics(host in ".{0,40}", path in ".{0,40}", random in any::<u32>()) {
        let table = hello();
        to(&table, Side::External, &host, &path, &HeaderMap::new(), random);
    }
}
