use serde_json::json;

use super::*;
use crate::plan::Change;
use crate::testing::{at, condition, object, pair, summary};

fn sks(mode: &str, activators: i32) -> ServerlessService {
    object(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ServerlessService",
        "metadata": {"name": "hello-00001", "namespace": "default", "uid": "sks-uid", "generation": 1},
        "spec": {"mode": mode, "numActivators": activators, "protocolType": "http1", "objectRef": {"name": "hello-00001-deployment"}}
    }))
}

fn slice(name: &str, endpoints: &[(&str, bool)]) -> Arc<EndpointSlice> {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(a, ready)| json!({"addresses": [a], "conditions": {"ready": ready}}))
        .collect();
    object::<Arc<EndpointSlice>>(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": name, "namespace": "default"},
        "addressType": "IPv4", "endpoints": endpoints, "ports": []
    }))
}

fn run(sks: &ServerlessService, pods: &[(&str, bool)], activators: &[(&str, bool)]) -> Plan {
    let selector = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    plan(
        &Observed {
            sks,
            selector: Some(&selector),
            public: None,
            private: None,
            public_slices: &[],
            private_slices: &[slice("private", pods)],
            activator_slices: &[slice("activator", activators)],
        },
        at(1),
    )
}

fn addresses(plan: &Plan) -> Vec<String> {
    let body = plan.then.iter().find_map(|c| match c {
        Change::Create(t, body) if t.resource.kind == "EndpointSlice" => Some(body),
        _ => None,
    });
    let endpoints = body.expect("a slice is made")["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().filter_map(|e| e["addresses"][0].as_str().map(str::to_owned)).collect()
}

#[test]
fn where_the_public_service_leads() {
    let (pod, activator) = (("10.0.0.9", true), ("10.0.0.4", true));
    let (there, removed) = (("True", ""), ("False", "ActivatorEndpointsRemoved"));
    for (mode, pods, activators, want, populated, in_path) in [
        ("Proxy", vec![], vec![activator], vec!["10.0.0.4"], "Unknown", there),
        ("Proxy", vec![pod], vec![activator], vec!["10.0.0.4"], "True", there),
        ("Serve", vec![pod], vec![activator], vec!["10.0.0.9"], "True", removed),
        ("Serve", vec![], vec![activator], vec!["10.0.0.4"], "Unknown", there),
        ("Serve", vec![("10.0.0.9", false)], vec![activator], vec!["10.0.0.4"], "Unknown", there),
        ("Proxy", vec![pod], vec![], vec!["10.0.0.9"], "True", there),
        ("Proxy", vec![], vec![], vec![], "Unknown", there),
        // No word from any node: the activators try the pods.
        ("Serve", vec![("10.0.0.9", false)], vec![("10.0.0.4", false)], vec!["10.0.0.4"], "Unknown", there),
        ("Serve", vec![pod], vec![("10.0.0.4", false)], vec!["10.0.0.9"], "True", removed),
    ] {
        let plan = run(&sks(mode, 0), &pods, &activators);
        assert_eq!(addresses(&plan), want, "{mode} {pods:?} {activators:?}");
        assert_eq!(condition(&plan, "EndpointsPopulated").0, populated);
        assert_eq!(condition(&plan, "ActivatorEndpointsPopulated"), pair(in_path.0, in_path.1));
    }
}

#[test]
fn an_activator_on_its_way_out_is_asked_by_nobody() {
    let mut slice = Arc::unwrap_or_clone(slice("activator", &[("10.0.0.4", false), ("10.0.0.5", false)]));
    slice.endpoints[0].conditions.get_or_insert_default().terminating = Some(true);
    let found = standing(&[Arc::new(slice)]);
    assert_eq!(found.iter().map(|e| e.addresses[0].as_str()).collect::<Vec<_>>(), ["10.0.0.5"]);
}

#[test]
fn the_children() {
    let plan = run(&sks("Proxy", 0), &[], &[]);
    assert_eq!(
        summary(&plan),
        [
            "create Service/hello-00001",
            "create Service/hello-00001-private",
            "create EndpointSlice/hello-00001-0"
        ]
    );
    let Change::Create(_, public) = &plan.then[0] else { panic!("made") };
    assert_eq!(public["spec"].get("selector"), None);
    assert_eq!(public["spec"]["ports"][0]["targetPort"], 8012);
    assert_eq!(public["spec"]["ports"][1]["targetPort"], 8112);
    let Change::Create(_, slice) = &plan.then[2] else { panic!("made") };
    assert_eq!(slice["metadata"]["labels"][SERVICE_NAME], "hello-00001");
    assert_eq!(
        slice["ports"],
        json!([{"name": "http", "port": 8012, "protocol": "TCP"}, {"name": "https", "port": 8112, "protocol": "TCP"}])
    );
    assert_eq!(condition(&plan, "Ready"), pair("Unknown", "NoHealthyBackends"));
}

#[test]
fn subsets_of_activators_are_stable() {
    let all: Vec<String> = (1..=20).map(|n| format!("10.0.1.{n}")).collect();
    let pairs: Vec<(&str, bool)> = all.iter().map(|a| (a.as_str(), true)).collect();
    let chosen = addresses(&run(&sks("Proxy", 3), &[], &pairs));
    assert_eq!(chosen.len(), 3);
    // One that was not chosen goes: nothing moves.
    let gone = all.iter().find(|a| !chosen.contains(a)).expect("17 were not chosen");
    let fewer: Vec<(&str, bool)> = pairs.iter().copied().filter(|(a, _)| a != gone).collect();
    assert_eq!(addresses(&run(&sks("Proxy", 3), &[], &fewer)), chosen);
    // One that was chosen goes: the other two stay.
    let fewer: Vec<(&str, bool)> = pairs.iter().copied().filter(|(a, _)| *a != chosen[0]).collect();
    let next = addresses(&run(&sks("Proxy", 3), &[], &fewer));
    assert_eq!(next.iter().filter(|a| chosen.contains(a)).count(), 2);
}
