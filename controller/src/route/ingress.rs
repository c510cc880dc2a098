//! The KIngress of a Route.

use ebb_api::config::Configs;
use ebb_api::meta::networking::{CERTIFICATE_CLASS, INGRESS_CLASS, ROLLOUT, TAG_TO_HOST};
use ebb_api::meta::serving as keys;
use ebb_api::networking::{
    HeaderMatch, HttpIngressPath, HttpIngressRuleValue, Ingress, IngressBackendSplit, IngressRule,
    IngressSpec, IngressTls, IngressVisibility,
};
use ebb_api::serving::Route;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;

use super::{Host, Resolved, Rollout};
use crate::certificate;
use crate::plan::{CLIENT_ANNOTATIONS, owner};

const TAG_HEADER: &str = "Knative-Serving-Tag";
const DEFAULT_ROUTE_HEADER: &str = "Knative-Serving-Default-Route";

/// Makes it.
pub(super) fn make(
    route: &Route,
    resolved: &Resolved,
    hosts: &[Host],
    tls: Vec<IngressTls>,
    rollout: &Rollout,
    configs: &Configs,
) -> Ingress {
    let namespace = route.namespace().unwrap_or_default();
    let mut labels = route.metadata.labels.clone().unwrap_or_default();
    labels.insert(keys::ROUTE.into(), route.name_any());
    labels.insert(keys::ROUTE_NAMESPACE.into(), namespace.clone());
    let found = route.metadata.annotations.as_ref();
    let mut annotations = found.cloned().unwrap_or_default();
    let class = INGRESS_CLASS.value(found).unwrap_or(&configs.network.ingress_class).to_owned();
    let dropped = |key: &str| {
        CLIENT_ANNOTATIONS.contains(&key)
            || INGRESS_CLASS.0.contains(&key)
            || CERTIFICATE_CLASS.0[1..].contains(&key)
    };
    annotations.retain(|k, _| !dropped(k));
    annotations.insert(INGRESS_CLASS.key().into(), class);
    annotations.extend(serde_json::to_string(rollout).ok().map(|r| (ROLLOUT.to_owned(), r)));
    let by_tag: BTreeMap<&str, Vec<String>> = hosts
        .iter()
        .filter_map(|host| {
            let all = std::iter::once(host.local(&namespace)).chain(host.external.clone());
            Some((host.tag.as_deref()?, all.collect()))
        })
        .collect();
    if !by_tag.is_empty() {
        annotations.extend(serde_json::to_string(&by_tag).ok().map(|t| (TAG_TO_HOST.to_owned(), t)));
    }
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
            rules: rules(&namespace, resolved, hosts, rollout, configs),
            http_option: Some(certificate::http_option(found, certificate::wanted(found, configs), configs)),
            tls,
        },
        status: None,
    }
}

fn rules(
    namespace: &str,
    resolved: &Resolved,
    hosts: &[Host],
    rollout: &Rollout,
    configs: &Configs,
) -> Vec<IngressRule> {
    let by_tag_header = configs.features.enabled("tag-header-based-routing");
    let tags: Vec<&Host> = hosts.iter().filter(|h| h.tag.is_some()).collect();
    let mut rules = Vec::new();
    for host in hosts {
        let mut path = path(namespace, resolved, host, rollout);
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
                        ..self::path(namespace, resolved, tagged, rollout)
                    }));
                }
            }
        }
        paths.push(path);
        let http = Some(HttpIngressRuleValue { paths });
        let local = host.local(namespace);
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

fn path(namespace: &str, resolved: &Resolved, host: &Host, rollout: &Rollout) -> HttpIngressPath {
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
    let tag = host.tag.as_deref();
    for target in resolved.group(tag) {
        let moving = rollout.shares(tag, target.configuration.as_deref());
        match moving.filter(|_| target.latest) {
            Some(shares) => shares.iter().for_each(|share| add(&share.revision_name, share.percent)),
            None => add(&target.revision, target.percent),
        }
    }
    HttpIngressPath { splits, ..HttpIngressPath::default() }
}
