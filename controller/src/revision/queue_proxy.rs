//! The sidecar's container.

use ebb_api::config::{Configs, Observability};
use ebb_api::meta::ebb::QUEUE_PROXY;
use ebb_api::meta::serving as keys;
use ebb_api::networking::ProtocolType;
use ebb_api::serving::Revision;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, HTTPHeader,
    ObjectFieldSelector, Probe, ResourceRequirements, SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;

use super::Platform;
use super::deployment::aim;
use crate::plan::{annotation, label};

/// Makes it, without its volumes.
pub(super) fn container(revision: &Revision, configs: &Configs, platform: &Platform) -> Container {
    let port = revision.spec.user_port();
    let serving_port = match port.protocol {
        ProtocolType::Http1 => ebb_http::ports::HTTP1,
        ProtocolType::H2c => ebb_http::ports::H2C,
    };
    let serving_port = i32::from(serving_port);
    let ports = [
        ("http-queueadm", i32::from(ebb_http::ports::ADMIN)),
        ("http-autometric", i32::from(ebb_http::ports::AUTOSCALE_METRICS)),
        ("http-usermetric", i32::from(ebb_http::ports::USER_METRICS)),
        ("queue-port", serving_port),
        ("https-port", i32::from(ebb_http::ports::MTLS)),
    ];
    Container {
        name: QUEUE_PROXY.into(),
        image: Some(configs.deployment.queue_sidecar_image.clone()),
        resources: Some(resources(revision, configs)),
        ports: Some(
            ports
                .into_iter()
                .map(|(name, number)| ContainerPort {
                    name: Some(name.into()),
                    container_port: number,
                    protocol: Some("TCP".into()),
                    ..ContainerPort::default()
                })
                .collect(),
        ),
        readiness_probe: Some(readiness(revision, serving_port)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            run_as_user: Some(65532),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..SecurityContext::default()
        }),
        env: Some(env(revision, configs, platform, serving_port)),
        ..Container::default()
    }
}

/// Kubernetes asks the sidecar, which asks the app.
fn readiness(revision: &Revision, port: i32) -> Probe {
    let own = revision.spec.serving_container().and_then(|c| c.readiness_probe.clone()).unwrap_or_default();
    Probe {
        http_get: Some(HTTPGetAction {
            port: IntOrString::Int(port),
            http_headers: Some(vec![HTTPHeader {
                name: "K-Network-Probe".into(),
                value: ebb_http::headers::PROBE_QUEUE.into(),
            }]),
            ..HTTPGetAction::default()
        }),
        // A period of 0 is the platform's "as often as it can be": every second here, while the sidecar looks far more often.
        period_seconds: own.period_seconds.filter(|s| *s > 0).or(Some(1)),
        timeout_seconds: own.timeout_seconds.filter(|s| *s > 0).or(Some(1)),
        failure_threshold: own.failure_threshold.filter(|n| *n > 0).or(Some(3)),
        success_threshold: Some(1),
        initial_delay_seconds: own.initial_delay_seconds.filter(|s| *s > 0),
        ..Probe::default()
    }
}

/// Where the sidecar sends the metrics of its requests; said only where it sends them at all, so that nothing else makes pods anew.
fn request_metrics(config: &Observability) -> Option<[EnvVar; 3]> {
    let protocol = config.request_metrics_protocol.as_str();
    let told = [
        ("SERVING_REQUEST_METRICS_PROTOCOL", protocol.to_owned()),
        ("SERVING_REQUEST_METRICS_ENDPOINT", config.request_metrics_endpoint.clone()),
        (
            "SERVING_REQUEST_METRICS_EXPORT_INTERVAL_SECONDS",
            config.request_metrics_export_interval.as_millis().div_ceil(1000).to_string(),
        ),
    ];
    matches!(protocol, "grpc" | "http/protobuf").then(|| {
        told.map(|(name, value)| EnvVar { name: name.into(), value: Some(value), ..EnvVar::default() })
    })
}

fn env(revision: &Revision, configs: &Configs, platform: &Platform, serving_port: i32) -> Vec<EnvVar> {
    let spec = &revision.spec;
    let of = |key: &str| label(&revision.metadata, key).unwrap_or_default().to_owned();
    let number = |n: Option<i64>| n.unwrap_or_default().to_string();
    let user_port = spec.user_port().number;
    let probe = probes(revision, configs);
    let duplex = annotation(&revision.metadata, keys::HTTP_FULL_DUPLEX)
        .is_some_and(|v| v.eq_ignore_ascii_case("enabled"));
    let observability = &configs.observability;
    // A form that no line takes is no reason to make pods anew.
    let log_template = observability.enable_request_log.then(|| observability.request_log_template.clone());
    let values = [
        ("SERVING_NAMESPACE", revision.namespace().unwrap_or_default()),
        ("SERVING_SERVICE", of(keys::SERVICE)),
        ("SERVING_CONFIGURATION", of(keys::CONFIGURATION)),
        ("SERVING_REVISION", revision.name_any()),
        ("QUEUE_SERVING_PORT", serving_port.to_string()),
        ("QUEUE_SERVING_TLS_PORT", ebb_http::ports::MTLS.to_string()),
        ("CONTAINER_CONCURRENCY", number(spec.container_concurrency)),
        ("REVISION_TIMEOUT_SECONDS", number(spec.timeout_seconds)),
        ("REVISION_RESPONSE_START_TIMEOUT_SECONDS", number(spec.response_start_timeout_seconds)),
        ("REVISION_IDLE_TIMEOUT_SECONDS", number(spec.idle_timeout_seconds)),
        ("USER_PORT", user_port.to_string()),
        (
            "USER_PORT_PROTOCOL",
            match spec.user_port().protocol {
                ProtocolType::Http1 => "http1".into(),
                ProtocolType::H2c => "h2c".into(),
            },
        ),
        ("SYSTEM_NAMESPACE", platform.system_namespace.clone()),
        ("SERVING_READINESS_PROBE", probe),
        ("ENABLE_HTTP2_AUTO_DETECTION", configs.features.enabled("autodetect-http2").to_string()),
        ("ENABLE_HTTP_FULL_DUPLEX", duplex.to_string()),
        ("SERVING_ENABLE_REQUEST_LOG", observability.enable_request_log.to_string()),
        ("SERVING_ENABLE_PROBE_REQUEST_LOG", observability.enable_probe_request_log.to_string()),
        ("SERVING_REQUEST_LOG_TEMPLATE", log_template.unwrap_or_default()),
        ("EBB_LOG", configs.logging.of("queueproxy").unwrap_or("info").into()),
        ("EBB_ACTIVATOR", platform.activator.clone()),
        ("EBB_CA", platform.ca.clone()),
        ("EBB_TRUST_DOMAIN", platform.trust_domain.clone()),
        ("EBB_MTLS_MODE", platform.mtls_mode.to_string()),
    ];
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.into(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
    };
    let mut env: Vec<EnvVar> = values
        .into_iter()
        .map(|(name, value)| EnvVar { name: name.into(), value: Some(value), ..EnvVar::default() })
        .collect();
    env.extend(request_metrics(observability).into_iter().flatten());
    env.push(field("SERVING_POD", "metadata.name"));
    env.push(field("SERVING_POD_IP", "status.podIP"));
    env
}

/// What the sidecar probes: the app, unless that is by a command, which is kubelet's business; where every container may have probes, those
/// of the others too.
fn probes(revision: &Revision, configs: &Configs) -> String {
    let spec = &revision.spec;
    let serving = spec.serving_container();
    let own =
        serving.and_then(|c| c.readiness_probe.clone()).filter(|p| p.exec.is_none()).map(|mut probe| {
            aim(&mut probe, spec.user_port().number);
            probe
        });
    let others: Vec<Probe> = spec
        .pod
        .containers
        .iter()
        .filter(|c| {
            configs.features.enabled("multi-container-probing") && serving.is_none_or(|s| s.name != c.name)
        })
        .filter_map(|c| c.readiness_probe.clone())
        .filter(|p| p.exec.is_none())
        .collect();
    if others.is_empty() {
        return own.map(|probe| serde_json::to_string(&probe).unwrap_or_default()).unwrap_or_default();
    }
    // The sidecar takes one of no kind for a connection to the app's port.
    let all: Vec<Probe> = std::iter::once(own.unwrap_or_default()).chain(others).collect();
    serde_json::to_string(&all).unwrap_or_default()
}

/// What the sidecar gets of a resource if it is to get a share of the app's: at least and at most.
struct Share {
    resource: &'static str,
    request: (&'static str, &'static str),
    limit: (&'static str, &'static str),
}

const SHARES: [Share; 2] = [
    Share { resource: "cpu", request: ("25m", "100m"), limit: ("40m", "500m") },
    Share { resource: "memory", request: ("50Mi", "200Mi"), limit: ("200Mi", "500Mi") },
];
/// What the sidecar gets where the flag queueproxy.resource-defaults is on and nothing else is said.
const DEFAULT_REQUESTS: &[(&str, &str)] = &[("cpu", "25m"), ("memory", "32Mi")];
const DEFAULT_LIMITS: &[(&str, &str)] = &[("cpu", "1000m"), ("memory", "256Mi")];

type Amounts = BTreeMap<String, Quantity>;

fn resources(revision: &Revision, configs: &Configs) -> ResourceRequirements {
    let found = revision.metadata.annotations.as_ref();
    let config = &configs.deployment;
    let (mut requests, mut limits) =
        (amounts(&config.queue_sidecar_requests), amounts(&config.queue_sidecar_limits));
    if configs.features.enabled("queueproxy.resource-defaults") {
        for (amounts, defaults) in [(&mut requests, DEFAULT_REQUESTS), (&mut limits, DEFAULT_LIMITS)] {
            for (resource, amount) in defaults {
                amounts.entry((*resource).into()).or_insert_with(|| Quantity((*amount).into()));
            }
        }
    }
    let percent = keys::QUEUE_RESOURCE_PERCENTAGE.value(found).and_then(|v| v.parse::<f64>().ok());
    if let Some(percent) = percent.filter(|p| p.is_finite()) {
        let app = revision.spec.serving_container().and_then(|c| c.resources.as_ref());
        for share in &SHARES {
            let of = |amounts: Option<&Amounts>, bounds| {
                let app = amounts.and_then(|all| all.get(share.resource))?;
                part(app, percent / 100.0, bounds).map(|part| (share.resource.to_owned(), part))
            };
            requests.extend(of(app.and_then(|r| r.requests.as_ref()), share.request));
            limits.extend(of(app.and_then(|r| r.limits.as_ref()), share.limit));
        }
    }
    let take = |amounts: &mut Amounts, resource: &str, key: ebb_api::meta::Keys| {
        if let Some(value) = key.value(found).filter(|v| ebb_api::quantity::parse(v).is_some()) {
            amounts.insert(resource.into(), Quantity(value.into()));
        }
    };
    take(&mut requests, "cpu", keys::QUEUE_CPU_REQUEST);
    take(&mut requests, "memory", keys::QUEUE_MEMORY_REQUEST);
    take(&mut requests, "ephemeral-storage", keys::QUEUE_EPHEMERAL_STORAGE_REQUEST);
    take(&mut limits, "cpu", keys::QUEUE_CPU_LIMIT);
    take(&mut limits, "memory", keys::QUEUE_MEMORY_LIMIT);
    take(&mut limits, "ephemeral-storage", keys::QUEUE_EPHEMERAL_STORAGE_LIMIT);
    ResourceRequirements {
        requests: (!requests.is_empty()).then_some(requests),
        limits: (!limits.is_empty()).then_some(limits),
        ..ResourceRequirements::default()
    }
}

fn amounts(config: &BTreeMap<String, String>) -> Amounts {
    config.iter().map(|(k, v)| (k.clone(), Quantity(v.clone()))).collect()
}

/// A share of an amount, within bounds; none of what is 0.
fn part(of: &Quantity, fraction: f64, (least, most): (&str, &str)) -> Option<Quantity> {
    let amount = ebb_api::quantity::parse(&of.0).filter(|n| *n > 0.0)? * fraction;
    let bound = |text| ebb_api::quantity::parse(text).unwrap_or_default();
    Some(if amount <= bound(least) {
        Quantity(least.into())
    } else if amount >= bound(most) {
        Quantity(most.into())
    } else {
        Quantity(ebb_api::quantity::from_milli((amount * 1000.0) as i64))
    })
}
