use serde_json::json;

use super::*;
use crate::plan::Change;
use crate::testing::{object, summary};

fn namespace(labels: serde_json::Value) -> Namespace {
    object(json!({"metadata": {"name": "shop", "uid": "ns-uid", "labels": labels}}))
}

fn configs() -> Configs {
    let mut configs = Configs::default();
    let mut set = |map: &str, key: &str, value: &str| {
        configs.set(map, &[(key.to_owned(), value.to_owned())].into()).expect("a good config");
    };
    set("config-domain", "example.com", "");
    set("config-network", "namespace-wildcard-cert-selector", "matchLabels: {tls: wildcard}");
    configs
}

fn made(plan: &Plan) -> Vec<Arc<Certificate>> {
    let bodies = plan.then.iter().filter_map(|change| match change {
        Change::Create(_, body) => Some(body.clone()),
        _ => None,
    });
    bodies.map(|body| Arc::new(object(body))).collect()
}

#[test]
fn a_chosen_namespace_has_one_and_another_none() {
    let configs = configs();
    let chosen = namespace(json!({"tls": "wildcard"}));
    let plan = super::plan(&chosen, &[], &configs);
    assert_eq!(summary(&plan), ["create Certificate/shop.example.com"]);
    let certificates = made(&plan);
    assert_eq!(certificates[0].spec.dns_names, ["*.shop.example.com"]);
    assert_eq!(certificates[0].spec.secret_name, "shop.example.com");
    assert_eq!(summary(&super::plan(&chosen, &certificates, &configs)), [""; 0]);
    let plan = super::plan(&namespace(json!({})), &certificates, &configs);
    assert_eq!(summary(&plan), ["delete Certificate/shop.example.com"]);
    assert_eq!(summary(&super::plan(&namespace(json!({})), &[], &configs)), [""; 0]);
}

#[test]
fn the_users_own_is_as_good() {
    let configs = configs();
    let chosen = namespace(json!({"tls": "wildcard"}));
    let mut own = (*made(&super::plan(&chosen, &[], &configs))[0]).clone();
    own.metadata.owner_references = None;
    own.metadata.name = Some("own".into());
    assert_eq!(summary(&super::plan(&chosen, &[Arc::new(own)], &configs)), [""; 0]);
}

#[test]
fn a_template_without_a_wildcard() {
    let mut configs = configs();
    let template =
        |t: &str| Network::parse(&[("domain-template".to_owned(), t.to_owned())].into()).expect("good");
    use ebb_api::config::Network;
    let selector = configs.network.namespace_wildcard_cert_selector.clone();
    configs.network = template("{{.Name}}-{{.Namespace}}.{{.Domain}}");
    configs.network.namespace_wildcard_cert_selector = selector;
    let plan = super::plan(&namespace(json!({"tls": "wildcard"})), &[], &configs);
    assert_eq!((summary(&plan), plan.notes[0].reason), (Vec::new(), "NoWildcard"));
}

#[test]
fn which_hosts_it_is_for() {
    let configs = configs();
    let all = made(&super::plan(&namespace(json!({"tls": "wildcard"})), &[], &configs));
    let covers = |host: &str, domain: &str| covering(host, domain, &all).is_some();
    assert!(covers("a.shop.example.com", "example.com"));
    assert!(!covers("a.b.shop.example.com", "example.com"), "a wildcard stands for one label");
    assert!(!covers("a.other.example.com", "example.com"));
    assert!(!covers("a.shop.example.com", "example.org"));
}
