use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use cluster_firewall::{Hook, Match, Verdict};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::*;

const WEB: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 16);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 17);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 18);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn policy(spec: Value) -> NetworkPolicy {
    read(json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec}))
}

fn pod(namespace: &str, name: &str, ports: &Value) -> Pod {
    read(json!({
        "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "ports": ports}]}
    }))
}

/// Pods `web` and `client` in the namespace `shop`, `stranger` in `other`, which is labelled `team: blue`.
fn world(policies: &[Value]) -> World {
    let mut world = World::default();
    let named = json!([{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 5353, "protocol": "UDP"}]);
    for (namespace, name, address) in
        [("shop", "web", WEB), ("shop", "client", CLIENT), ("other", "stranger", STRANGER)]
    {
        world.set_pod(name, PodFacts::of(&pod(namespace, name, &named)));
        world.set_address(name, Some(address));
    }
    for (name, team) in [("shop", "red"), ("other", "blue")] {
        world
            .set_namespace(&read::<Namespace>(json!({"metadata": {"name": name, "labels": {"team": team}}})));
    }
    for (index, spec) in policies.iter().enumerate() {
        let mut policy = policy(spec.clone());
        policy.metadata.name = Some(format!("p{index}"));
        world.set_policy(&policy);
    }
    world
}

/// Who reaches `web`'s TCP port 8080.
fn reach(policies: &[Value]) -> Vec<&'static str> {
    let world = world(policies);
    let from = [("client", CLIENT), ("stranger", STRANGER), ("outside", OUTSIDE)];
    let admitted = from.into_iter().filter(|(_, address)| world.admits(*address, WEB, Transport::Tcp, 8080));
    admitted.map(|(name, _)| name).collect()
}

fn web(rest: Value) -> Value {
    let mut spec = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    spec
}

#[test]
fn without_a_policy_nothing_is_restricted() {
    assert_eq!(reach(&[]), ["client", "stranger", "outside"]);
    assert!(world(&[]).isolation("web").is_open());
    let other = json!({"podSelector": {"matchLabels": {"app": "something"}}});
    assert_eq!(reach(std::slice::from_ref(&other)), ["client", "stranger", "outside"]);
    assert!(rules(&world(&[other]).isolation("web"), &Always::default()).is_none(), "no rules either");
}

#[test]
fn a_policy_without_rules_denies_all_and_others_add_to_it() {
    let deny = json!({"podSelector": {}});
    assert_eq!(reach(std::slice::from_ref(&deny)), [""; 0]);
    let allow = web(json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}));
    assert_eq!(reach(&[deny.clone(), allow]), ["client"]);
    assert_eq!(reach(&[deny, web(json!({"ingress": [{}]}))]), ["client", "stranger", "outside"]);
}

#[test]
fn peers_are_pods_namespaces_both_or_networks() {
    let from = |peer: Value| reach(&[web(json!({"ingress": [{"from": [peer]}]}))]);
    let every = json!({});
    assert_eq!(from(json!({"podSelector": every})), ["client"], "of the policy's own namespace");
    assert_eq!(from(json!({"namespaceSelector": every})), ["client", "stranger"]);
    assert_eq!(from(json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}})), ["stranger"]);
    let both = |app: &str| json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": {"matchLabels": {"app": app}}});
    assert_eq!(from(both("stranger")), ["stranger"]);
    assert_eq!(from(both("client")), [""; 0], "both must hold");
    assert_eq!(from(json!({"ipBlock": {"cidr": "192.0.2.0/24"}})), ["outside"]);
    let except = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24", "10.9.0.18/32"]}});
    assert_eq!(from(except), ["client"]);
    assert_eq!(from(json!({"ipBlock": {"cidr": "fd00::/8"}})), [""; 0], "never everybody");
    for (operator, found) in [("In", vec!["stranger"]), ("NotIn", vec!["client"])] {
        let expressions = json!([{"key": "team", "operator": operator, "values": ["blue"]}]);
        assert_eq!(from(json!({"namespaceSelector": {"matchExpressions": expressions}})), found);
    }
    for (operator, found) in [("Exists", vec!["client"]), ("DoesNotExist", vec![]), ("Gt", vec![])] {
        let expressions = json!([{"key": "app", "operator": operator}]);
        assert_eq!(from(json!({"podSelector": {"matchExpressions": expressions}})), found);
    }
}

#[test]
fn ports_are_numbers_ranges_or_names() {
    let at = |port: Value| !reach(&[web(json!({"ingress": [{"ports": [port]}]}))]).is_empty();
    assert!(at(json!({"port": 8080})));
    assert!(!at(json!({"port": 8081})));
    assert!(!at(json!({"port": 8080, "protocol": "UDP"})));
    assert!(at(json!({"protocol": "TCP"})), "all of the protocol");
    assert!(at(json!({"port": 8000, "endPort": 8080})));
    assert!(!at(json!({"port": 8000, "endPort": 8079})));
    assert!(at(json!({"port": "http"})), "by the selected pod's own name for it");
    assert!(!at(json!({"port": "dns"})), "which is UDP");
    assert!(!at(json!({"port": "nowhere"})), "an unknown name is not every port");
    assert!(!at(json!({"port": 8080, "protocol": "DCCP"})));
}

#[test]
fn what_goes_out_is_judged_at_the_sender() {
    let client = |rest: Value| {
        let mut spec = json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]});
        spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        spec
    };
    let goes = |rest: Value, to: Ipv4Addr| world(&[client(rest)]).admits(CLIENT, to, Transport::Tcp, 8080);
    assert!(!goes(json!({}), WEB) && !goes(json!({}), OUTSIDE));
    assert!(goes(json!({"egress": [{}]}), OUTSIDE));
    let to_web = json!({"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]});
    assert!(goes(to_web.clone(), WEB) && !goes(to_web, STRANGER));
    // A name is looked up at each receiver.
    let named = json!({"egress": [{"ports": [{"port": "http"}]}]});
    assert!(goes(named.clone(), WEB) && !goes(named, OUTSIDE));
    // What comes in is not meant.
    let isolation = world(&[client(json!({}))]).isolation("client");
    assert!(isolation.ingress.is_none() && isolation.egress == Some(BTreeSet::new()));
    // policyTypes left out: Ingress always, Egress when there are rules for it.
    let both = json!({"podSelector": {}, "egress": [{}]});
    let isolation = world(&[both]).isolation("client");
    assert!(isolation.ingress == Some(BTreeSet::new()) && isolation.egress.is_some());
    assert!(world(&[json!({"podSelector": {}})]).isolation("client").egress.is_none());
}

#[test]
fn a_pod_reaches_itself() {
    let world = world(&[json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})]);
    assert!(world.admits(WEB, WEB, Transport::Tcp, 8080));
    assert!(!world.admits(CLIENT, WEB, Transport::Tcp, 8080));
}

#[test]
fn addresses_come_and_go_with_pods() {
    let allow = web(json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}));
    let mut world = world(&[allow]);
    assert!(world.admits(CLIENT, WEB, Transport::Tcp, 8080));
    world.set_address("client", None);
    assert!(!world.admits(CLIENT, WEB, Transport::Tcp, 8080), "the address is nobody's");
    world.set_address("stranger", Some(CLIENT));
    assert!(!world.admits(CLIENT, WEB, Transport::Tcp, 8080), "nor is it whose it was");
    world.set_address("client", Some(STRANGER));
    assert!(world.admits(STRANGER, WEB, Transport::Tcp, 8080));
    let mut facts = PodFacts::of(&pod("shop", "client", &json!([])));
    assert!(world.set_pod("client", facts.clone()) && !world.set_pod("client", facts.clone()));
    facts.labels.clear();
    assert!(world.set_pod("client", facts));
    assert!(!world.admits(STRANGER, WEB, Transport::Tcp, 8080), "it has lost its label");
    world.remove_policy("shop", "p0");
    assert!(world.admits(STRANGER, WEB, Transport::Tcp, 8080));
    // Nobody inherits the rules of the pod that had the address before.
    let mut world = self::world(&[json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})]);
    assert!(
        !world.admits(OUTSIDE, CLIENT, Transport::Tcp, 80)
            && !world.admits(CLIENT, OUTSIDE, Transport::Tcp, 80)
    );
    world.set_address("client", None);
    assert!(
        world.admits(OUTSIDE, CLIENT, Transport::Tcp, 80)
            && world.admits(CLIENT, OUTSIDE, Transport::Tcp, 80)
    );
}

#[test]
fn only_policies_that_name_pods_or_ports_depend_on_other_pods() {
    let entangled = |spec: Value| world(&[spec]).entangled().count() == 1;
    assert!(!entangled(web(json!({"ingress": [{"ports": [{"port": 8112}]}]}))));
    assert!(!entangled(web(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}))));
    assert!(entangled(web(json!({"ingress": [{"from": [{"podSelector": {}}]}]}))));
    assert!(entangled(json!({"podSelector": {}, "egress": [{"to": [{"namespaceSelector": {}}]}]})));
}

#[test]
fn rules_end_with_refusal_and_neighbouring_ports_are_one() {
    let ports: Vec<Value> =
        [8012, 8013, 8112].into_iter().map(|port| json!({"port": port, "protocol": "TCP"})).collect();
    let world = world(&[web(json!({"ingress": [{"ports": ports}]}))]);
    let always = Always { from: vec!["10.9.0.15/32".parse().unwrap()], to: Vec::new() };
    let rules = rules(&world.isolation("web"), &always).unwrap();
    assert_eq!(rules.chains.len(), 3, "two for what is not tracked, none for what goes out");
    let chain = rules.chains.iter().find(|chain| chain.hook == Hook::Input).unwrap();
    let last: Vec<Verdict> = chain.rules.iter().rev().take(2).map(|rule| rule.verdict).collect();
    assert_eq!(last, [Verdict::Drop, Verdict::Reset]);
    let accepted: Vec<&Vec<Match>> =
        chain.rules.iter().filter(|rule| rule.verdict == Verdict::Accept).map(|rule| &rule.matches).collect();
    assert_eq!(accepted[0], &[Match::TcpUnderWay]);
    assert_eq!(
        accepted[5..],
        [&vec![Match::Source(always.from[0])], &vec![Match::Tcp(8012, 8013)], &vec![Match::Tcp(8112, 8112)]]
    );
}

#[test]
fn the_proxy_asks_for_both_ends() {
    let always = Always { from: Vec::new(), to: vec!["10.9.0.0/28".parse().unwrap()] };
    let policies = Policies::new(always);
    for name in ["web", "client"] {
        policies.pod_changed(&pod("shop", name, &json!([])));
    }
    let ask =
        |from: &str, to: &str| policies.admits(from.parse().unwrap(), to.parse().unwrap(), Transport::Tcp);
    assert!(ask("10.9.0.17", "10.9.0.16:80"), "there is no policy");
    policies.replace(&[policy(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))]);
    policies.place("web", WEB);
    policies.place("client", CLIENT);
    assert!(!ask("10.9.0.17", "10.9.0.16:80"));
    assert!(!ask("127.0.0.1", "10.9.0.16:80"), "the machine's processes are outside");
    assert!(ask("10.9.0.17", "10.9.0.1:6443"), "the node is not");
    assert!(!ask("10.9.0.17", "192.0.2.7:80"));
}
