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

fn compiled(ingress: &Ingress) -> Compiled<String> {
    compile(ingress, "cluster.local", &mut |key: &BackendKey| key.service.name.clone())
}

fn routes(ingresses: &[Ingress]) -> Routes<String> {
    let mut routes = Routes::default();
    for ingress in ingresses {
        routes.set(compiled(ingress));
    }
    routes
}

fn build(ingresses: &[Ingress]) -> Table<String> {
    routes(ingresses).table()
}

fn owner(namespace: &str, name: &str) -> Owner {
    Owner { kind: Kind::Ingress, key: Key::new(namespace, name) }
}

const GET: &Method = &Method::GET;

const EARLY: &str = "2026-01-01T00:00:00Z";
const LATE: &str = "2026-01-02T00:00:00Z";

fn hello() -> Routes<String> {
    routes(&[ingress(
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
    let request = RequestParts { side, host, path, query: None, method: GET, headers, secure: false };
    match route(table, &request, random) {
        Outcome::Forward(rule, split) => rule.splits[split].backend.as_deref().expect("a backend"),
        Outcome::Redirect(..) => "redirect",
        Outcome::BadBackend(_) => "bad backend",
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
    let table = hello().table();
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
    let routes = hello();
    let table = routes.table();
    for host in ["hello.default", "hello.default.svc", "hello.default.svc.cluster.local:80"] {
        assert_eq!(simple(&table, Side::Local, host), "one", "{host}");
        assert_eq!(simple(&table, Side::External, host), "only local", "{host}");
    }
    assert_eq!(simple(&table, Side::Local, "hello.default.example.com"), "one", "inside sees everything");
    let served = routes.served(&owner("default", "hello")).expect("served");
    assert_eq!(served.generation, 3);
    assert!(served.hosts.contains(&("hello.default".into(), Side::Local)));
    assert!(served.hosts.contains(&("hello.default.example.com".into(), Side::External)));
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
    let mut routes = routes(&[ingress("b", "new", LATE, spec("new"))]);
    let touched = routes.set(compiled(&ingress("a", "old", EARLY, spec("old"))));
    assert_eq!(touched.owners, [owner("a", "old"), owner("b", "new")].into(), "who lost it is told");
    assert_eq!(simple(&routes.table(), Side::External, "h"), "old");
    let problem = routes.problem(&owner("b", "new")).expect("a problem");
    assert_eq!(problem, Problem::HostTaken { host: "h".to_owned(), by: Key::new("a", "old") });
    assert_eq!(routes.served(&owner("b", "new")).expect("known").hosts, []);
    assert_eq!(routes.problem(&owner("a", "old")), None);
    routes.remove(&owner("a", "old"));
    assert_eq!(simple(&routes.table(), Side::External, "h"), "new");
    assert_eq!(routes.problem(&owner("b", "new")), None);
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
    let routes = routes(&[good, no_paths, header, percent]);
    let table = routes.table();
    assert_eq!(simple(&table, Side::External, "g"), "g");
    for name in ["no-paths", "header", "percent"] {
        assert!(routes.problem(&owner("default", name)).is_some(), "{name}");
        assert_eq!(routes.served(&owner("default", name)), None);
    }
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
    let tls = |hosts: Value, name: &str, created: &str| {
        ingress(
            "default",
            name,
            created,
            json!({"tls": [{"hosts": hosts, "secretName": name},
                           {"hosts": ["b.example.com"], "secretName": name, "secretNamespace": "other"}],
                   "rules": [{"hosts": [name], "http": {"paths": [{"splits": [split("s", 100)]}]}}]}),
        )
    };
    let mut routes = routes(&[tls(json!(["A.example.com"]), "one", EARLY)]);
    assert_eq!(routes.secret("a.example.com"), Some(&Key::new("default", "one")));
    assert_eq!(routes.secret("b.example.com"), Some(&Key::new("other", "one")));
    let touched = routes.set(compiled(&tls(json!(["a.example.com", "c.example.com"]), "two", LATE)));
    assert_eq!(touched.certificates.len(), 3);
    assert_eq!(routes.secret("a.example.com"), Some(&Key::new("default", "one")), "the older one has it");
    let touched = routes.remove(&owner("default", "one"));
    assert_eq!(touched.certificates, ["a.example.com".into(), "b.example.com".into()].into());
    assert_eq!(routes.secret("a.example.com"), Some(&Key::new("default", "two")));
    routes.remove(&owner("default", "two"));
    assert_eq!(routes.secured().count(), 0);
}

#[test]
fn plain_http_from_outside_is_redirected() {
    let table = build(&[ingress(
        "default",
        "tls",
        EARLY,
        json!({"httpOption": "Redirected",
               "rules": [{"hosts": ["h"], "http": {"paths": [{"splits": [split("s", 100)]}]}}]}),
    )]);
    assert_eq!(simple(&table, Side::External, "h"), "redirect");
    assert_eq!(simple(&table, Side::Local, "h"), "s");
    let none = HeaderMap::new();
    let request = RequestParts {
        side: Side::External,
        host: "h",
        path: "/",
        query: None,
        method: GET,
        headers: &none,
        secure: true,
    };
    assert!(matches!(route(&table, &request, 0), Outcome::Forward(..)));
}

#[test]
fn wildcards_after_exact_hosts_and_the_nearest_first() {
    let one = |host: &str| {
        let spec = json!({"rules": [{"hosts": [host], "http": {"paths": [{"splits": [split(host, 100)]}]}}]});
        ingress("default", host, EARLY, spec)
    };
    let mut routes = routes(&["*.example.com", "a.example.com", "*.b.example.com"].map(one));
    let table = routes.table();
    for (host, expected) in [
        ("a.example.com", "a.example.com"),
        ("x.example.com", "*.example.com"),
        ("x.y.example.com", "*.example.com"),
        ("x.b.example.com", "*.b.example.com"),
        ("b.example.com", "*.example.com"),
        ("example.com", "unknown host"),
        ("com", "unknown host"),
    ] {
        assert_eq!(simple(&table, Side::External, host), expected, "{host}");
    }
    routes.set(compiled(&one("*")));
    assert_eq!(simple(&routes.table(), Side::External, "com"), "*");
    for name in ["*.example.com", "*.b.example.com", "*"] {
        routes.remove(&owner("default", name));
    }
    assert!(!routes.table().wildcards);
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
    let table = hello().table();
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
        let table = hello().table();
        to(&table, Side::External, &host, &path, &HeaderMap::new(), random);
    }

    /// Whatever happened on the way, the table is that of what there is now, as if it had been built of that alone.
    #[test]
    fn a_changed_table_is_as_a_new_one(steps in proptest::collection::vec(step(), 1..40)) {
        let mut changed = Routes::default();
        let mut present = std::collections::BTreeMap::new();
        for (number, ingress) in steps {
            let name = format!("i{number}");
            match ingress {
                Some(ingress) => {
                    changed.set(compiled(&ingress));
                    present.insert(name, ingress);
                }
                None => {
                    changed.remove(&owner("default", &name));
                    present.remove(&name);
                }
            }
        }
        let mut new = Routes::default();
        for ingress in present.values().rev() {
            new.set(compiled(ingress));
        }
        prop_assert_eq!(told(&changed), told(&new));
        prop_assert_eq!(changed.table().hosts(), new.table().hosts());
        prop_assert_eq!(changed.table().wildcards, new.table().wildcards);
        for name in present.keys() {
            let owner = owner("default", name);
            prop_assert_eq!(changed.problem(&owner), new.problem(&owner));
            let hosts = |routes: &Routes<String>| routes.served(&owner).map(|served| served.hosts);
            prop_assert_eq!(hosts(&changed), hosts(&new));
        }
        let secrets = |routes: &Routes<String>| {
            routes.secured().map(|(host, key)| (host.clone(), key.clone())).collect::<std::collections::BTreeMap<_, _>>()
        };
        prop_assert_eq!(secrets(&changed), secrets(&new));
    }
}

const HOSTS: [&str; 6] = ["a.test", "b.test", "*.test", "c.default.svc.cluster.local", "*", "d.test"];

/// An Ingress of some number with some hosts, or that it is gone.
fn step() -> impl Strategy<Value = (usize, Option<Ingress>)> {
    let hosts = proptest::sample::subsequence(HOSTS.to_vec(), 1..4);
    let made = (hosts, any::<bool>(), any::<bool>(), 0..3u32, 0..9u32).prop_map(
        |(hosts, local, tls, day, version)| {
            let visibility = if local { "ClusterLocal" } else { "ExternalIP" };
            let secured = if tls { hosts.clone() } else { Vec::new() };
            (
                day,
                json!({"tls": [{"hosts": secured, "secretName": format!("s{version}")}],
               "rules": [{"hosts": hosts, "visibility": visibility,
                          "http": {"paths": [{"splits": [split(&format!("v{version}"), 100)]}]}}]}),
            )
        },
    );
    (0..5usize, proptest::option::weighted(0.75, made)).prop_map(|(number, made)| {
        // An object keeps its age as long as it has its name, but for one that was made anew.
        let name = format!("i{number}");
        let ingress = made
            .map(|(day, spec)| ingress("default", &name, &format!("2026-01-0{}T00:00:00Z", day + 1), spec));
        (number, ingress)
    })
}

/// Where requests to all hosts go.
fn told(routes: &Routes<String>) -> Vec<String> {
    let table = routes.table();
    let mut all = Vec::new();
    for side in [Side::External, Side::Local] {
        for host in HOSTS.iter().copied().chain(["x.test", "c.default", "elsewhere"]) {
            let hash = table.hash_of(side, host).map(|hash| hash.to_str().unwrap_or_default().to_owned());
            all.push(format!("{host} {} {hash:?}", simple(&table, side, host)));
        }
    }
    all
}
