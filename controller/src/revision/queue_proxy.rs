//! The sidecar's container.

use ebb_api::config::Configs;
use ebb_api::meta::ebb::QUEUE_PROXY;
use ebb_api::meta::serving as keys;
use ebb_api::networking::ProtocolType;
use ebb_api::serving::Revision;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, HTTPHeader,
    ObjectFieldSelector, Probe, ResourceRequirements, SeccompProfile, SecurityContext, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;

use super::Platform;
use super::deployment::{MESH_VOLUME, aim};
use crate::plan::{annotation, label};

/// Where the token and the roots are mounted.
const MESH_DIR: &str = "/var/run/secrets/ebb";

/// Makes it.
pub(super) fn container(revision: &Revision, configs: &Configs, platform: &Platform) -> Container {
    let port = revision.spec.user_port();
    let (port_name, serving_port) = match port.protocol {
        ProtocolType::Http1 => ("queue-port", ebb_http::ports::HTTP1),
        ProtocolType::H2c => ("http2-queue-port", ebb_http::ports::H2C),
    };
    let serving_port = i32::from(serving_port);
    let ports = [
        ("http-queueadm", i32::from(ebb_http::ports::ADMIN)),
        ("http-autometric", i32::from(ebb_http::ports::AUTOSCALE_METRICS)),
        ("http-usermetric", i32::from(ebb_http::ports::USER_METRICS)),
        (port_name, serving_port),
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
        volume_mounts: Some(vec![VolumeMount {
            name: MESH_VOLUME.into(),
            mount_path: MESH_DIR.into(),
            read_only: Some(true),
            ..VolumeMount::default()
        }]),
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

fn env(revision: &Revision, configs: &Configs, platform: &Platform, serving_port: i32) -> Vec<EnvVar> {
    let spec = &revision.spec;
    let of = |key: &str| label(&revision.metadata, key).unwrap_or_default().to_owned();
    let number = |n: Option<i64>| n.unwrap_or_default().to_string();
    let user_port = spec.user_port().number;
    let probe = spec
        .serving_container()
        .and_then(|c| c.readiness_probe.clone())
        .filter(|p| p.exec.is_none())
        .map(|mut probe| {
            aim(&mut probe, user_port);
            serde_json::to_string(&probe).unwrap_or_default()
        })
        .unwrap_or_default();
    let duplex = annotation(&revision.metadata, keys::HTTP_FULL_DUPLEX)
        .is_some_and(|v| v.eq_ignore_ascii_case("enabled"));
    let observability = &configs.observability;
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
        ("SERVING_REQUEST_LOG_TEMPLATE", observability.request_log_template.clone()),
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
    env.push(field("SERVING_POD", "metadata.name"));
    env.push(field("SERVING_POD_IP", "status.podIP"));
    env
}

fn resources(revision: &Revision, configs: &Configs) -> ResourceRequirements {
    let found = revision.metadata.annotations.as_ref();
    let config = &configs.deployment;
    let merge = |base: &BTreeMap<String, String>, keys: [(&str, ebb_api::meta::Keys); 3]| {
        let mut all: BTreeMap<String, Quantity> =
            base.iter().map(|(k, v)| (k.clone(), Quantity(v.clone()))).collect();
        for (resource, key) in keys {
            if let Some(value) = key.value(found).filter(|v| ebb_api::quantity::parse(v).is_some()) {
                all.insert(resource.into(), Quantity(value.into()));
            }
        }
        (!all.is_empty()).then_some(all)
    };
    ResourceRequirements {
        requests: merge(
            &config.queue_sidecar_requests,
            [
                ("cpu", keys::QUEUE_CPU_REQUEST),
                ("memory", keys::QUEUE_MEMORY_REQUEST),
                ("ephemeral-storage", keys::QUEUE_EPHEMERAL_STORAGE_REQUEST),
            ],
        ),
        limits: merge(
            &config.queue_sidecar_limits,
            [
                ("cpu", keys::QUEUE_CPU_LIMIT),
                ("memory", keys::QUEUE_MEMORY_LIMIT),
                ("ephemeral-storage", keys::QUEUE_EPHEMERAL_STORAGE_LIMIT),
            ],
        ),
        ..ResourceRequirements::default()
    }
}
