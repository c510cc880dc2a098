//! What a change of routes costs with many hosts: `cargo run --release -p ebb-gateway --example routes [HOSTS]`.
//!
//! Builds a table, then changes one Ingress after the other, each time until a new table is swapped in, and looks a host up.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ebb_api::networking::Ingress;
use ebb_gateway::table::{BackendKey, RequestParts, Routes, Side, Table, compile, route};
use http::{HeaderMap, Method};
use serde_json::json;

const CHANGES: usize = 2000;
const LOOKUPS: u32 = 200_000;

fn ingress(number: usize, version: usize) -> Ingress {
    let split = |service: &str, percent: u32| {
        json!({"serviceNamespace": "default", "serviceName": format!("{service}-{number}-{version}"), "servicePort": 80,
               "percent": percent, "appendHeaders": {"Knative-Serving-Revision": service}})
    };
    let paths = json!([{"splits": [split("one", 90), split("two", 10)]}]);
    serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"namespace": "default", "name": format!("s-{number}"), "generation": version},
        "spec": {"rules": [
            {"hosts": [format!("s-{number}.default.example.com")], "http": {"paths": paths}},
            {"hosts": [format!("s-{number}.default.svc.cluster.local")], "visibility": "ClusterLocal", "http": {"paths": paths}}]},
    }))
    .unwrap_or_default()
}

fn tell(what: &str, mut all: Vec<Duration>) {
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
    println!("{what}: p50 {:?}, p99 {:?}, most {:?} (n={})", at(0.5), at(0.99), at(1.0), all.len());
}

fn main() {
    let hosts = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let resolve = &mut |key: &BackendKey| Arc::<str>::from(key.service.name.as_str());
    let mut routes = Routes::default();
    let served: ArcSwap<Table<Arc<str>>> = ArcSwap::default();
    let started = Instant::now();
    for number in 0..hosts {
        routes.set(compile(&ingress(number, 0), "cluster.local", resolve));
    }
    served.store(Arc::new(routes.table()));
    println!(
        "{hosts} Ingresses built in {:?}; hosts outside and inside: {:?}",
        started.elapsed(),
        routes.table().hosts()
    );

    let mut changes = Vec::with_capacity(CHANGES);
    for version in 1..=CHANGES {
        let changed = ingress(version * 7919 % hosts, version);
        let started = Instant::now();
        routes.set(compile(&changed, "cluster.local", resolve));
        served.store(Arc::new(routes.table()));
        changes.push(started.elapsed());
    }
    tell("a change of one Ingress", changes);

    let (table, headers) = (served.load(), HeaderMap::new());
    let names: Vec<String> =
        (0..1000).map(|n| format!("s-{}.default.example.com:8080", n * 7 % hosts)).collect();
    let started = Instant::now();
    for (random, host) in (0..LOOKUPS).zip(names.iter().cycle()) {
        let request = RequestParts {
            side: Side::External,
            host,
            path: "/",
            query: None,
            method: &Method::GET,
            headers: &headers,
            secure: false,
        };
        black_box(route(&table, &request, random << 12));
    }
    println!("a look-up: {:?} (n={LOOKUPS})", started.elapsed() / LOOKUPS);
}
