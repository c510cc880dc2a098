//! The KIngress of a Route.

use ebb_api::config::{Configs, HttpProtocol};
use ebb_api::meta::networking::{HTTP_PROTOCOL, INGRESS_CLASS, ROLLOUT};
use ebb_api::meta::serving as keys;
use ebb_api::networking::{
    HeaderMatch, HttpIngressPath, HttpIngressRuleValue, HttpOption, Ingress, IngressBackendSplit,
    IngressRule, IngressSpec, IngressVisibility,
};
use ebb_api::serving::Route;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;

use super::{Host, Resolved, Rollout};
use crate::plan::{CLIENT_ANNOTATIONS, owner};

const TAG_HEADER: &str = "Knative-Serving-Tag";
const DEFAULT_ROUTE_HEADER: &str = "Knative-Serving-Default-Route";

/// Makes it.
pub(super) fn make(
    route: &Route,
    resolved: &Resolved,
    hosts: &[Host],
    rollout: Option<&Rollout>,
    configs: &Configs,
    now: Timestamp,
) -> Ingress {
    let mut labels = route.metadata.labels.clone().unwrap_or_default();
    labels.insert(keys::ROUTE.into(), route.name_any());
    labels.insert(keys::ROUTE_NAMESPACE.into(), route.namespace().unwrap_or_default());
    let found = route.metadata.annotations.as_ref();
    let mut annotations = found.cloned().unwrap_or_default();
    let class = INGRESS_CLASS.value(found).unwrap_or(&configs.network.ingress_class).to_owned();
    annotations
        .retain(|k, _| !CLIENT_ANNOTATIONS.contains(&k.as_str()) && !INGRESS_CLASS.0.contains(&k.as_str()));
    annotations.insert(INGRESS_CLASS.key().into(), class);
    annotations.extend(rollout.and_then(|r| serde_json::to_string(r).ok()).map(|r| (ROLLOUT.to_owned(), r)));
    Ingress {
        metadata: ObjectMeta {
            name: Some(route.name_any()),
            namespace: route.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(owner(route)),
            ..ObjectMeta::default()
        },
        spec: IngressSpec {
            rules: rules(route, resolved, hosts, rollout, configs, now),
            http_option: Some(http_option(found, configs)),
            tls: Vec::new(),
        },
        status: None,
    }
}

/// Without certificates there is nowhere to redirect to.
fn http_option(annotations: Option<&BTreeMap<String, String>>, configs: &Configs) -> HttpOption {
    let redirect = match HTTP_PROTOCOL.value(annotations) {
        Some(value) => value.eq_ignore_ascii_case("redirected"),
        None => configs.network.http_protocol == HttpProtocol::Redirected,
    };
    if redirect && configs.network.external_domain_tls { HttpOption::Redirected } else { HttpOption::Enabled }
}

fn rules(
    route: &Route,
    resolved: &Resolved,
    hosts: &[Host],
    rollout: Option<&Rollout>,
    configs: &Configs,
    now: Timestamp,
) -> Vec<IngressRule> {
    let namespace = route.namespace().unwrap_or_default();
    let by_tag_header = configs.features.enabled("tag-header-based-routing");
    let tags: Vec<&Host> = hosts.iter().filter(|h| h.tag.is_some()).collect();
    let mut rules = Vec::new();
    for host in hosts {
        let mut path = path(&namespace, resolved, host, rollout, now);
        let mut paths = Vec::new();
        if by_tag_header {
            match &host.tag {
                Some(tag) => {
                    path.append_headers.insert(TAG_HEADER.into(), tag.clone());
                }
                None => {
                    path.append_headers.insert(DEFAULT_ROUTE_HEADER.into(), "true".into());
                    paths.extend(tags.iter().map(|tagged| HttpIngressPath {
                        headers: BTreeMap::from([(
                            TAG_HEADER.to_owned(),
                            HeaderMatch { exact: tagged.tag.clone().unwrap_or_default() },
                        )]),
                        ..self::path(&namespace, resolved, tagged, rollout, now)
                    }));
                }
            }
        }
        paths.push(path);
        let http = Some(HttpIngressRuleValue { paths });
        let local = host.local(&namespace);
        let short = [format!("{}.{namespace}", host.name), format!("{}.{namespace}.svc", host.name), local];
        rules.push(IngressRule {
            hosts: short.to_vec(),
            visibility: IngressVisibility::ClusterLocal,
            http: http.clone(),
        });
        if let Some(external) = &host.external {
            rules.push(IngressRule {
                hosts: vec![external.clone()],
                visibility: IngressVisibility::ExternalIP,
                http,
            });
        }
    }
    rules
}

fn path(
    namespace: &str,
    resolved: &Resolved,
    host: &Host,
    rollout: Option<&Rollout>,
    now: Timestamp,
) -> HttpIngressPath {
    let mut splits: Vec<IngressBackendSplit> = Vec::new();
    let mut add = |revision: &str, percent: i64| {
        if percent <= 0 {
            return;
        }
        let percent = i32::try_from(percent).unwrap_or(100);
        if let Some(same) = splits.iter_mut().find(|s| s.service_name == revision) {
            same.percent += percent;
            return;
        }
        splits.push(IngressBackendSplit {
            service_namespace: namespace.to_owned(),
            service_name: revision.to_owned(),
            service_port: IntOrString::Int(80),
            percent,
            append_headers: BTreeMap::from([
                ("Knative-Serving-Namespace".to_owned(), namespace.to_owned()),
                ("Knative-Serving-Revision".to_owned(), revision.to_owned()),
            ]),
        });
    };
    match &host.tag {
        // A tag's host leads to its one target whatever share that has.
        Some(tag) => {
            if let Some(target) = resolved.targets.iter().find(|t| t.tag.as_ref() == Some(tag)) {
                add(&target.revision, 100);
            }
        }
        None => {
            for target in &resolved.targets {
                match rollout.filter(|r| target.latest && r.to == target.revision) {
                    Some(rollout) => {
                        let (old, new) = rollout.split(target.percent, now);
                        add(&rollout.from, old);
                        add(&rollout.to, new);
                    }
                    None => add(&target.revision, target.percent),
                }
            }
        }
    }
    HttpIngressPath { splits, ..HttpIngressPath::default() }
}
