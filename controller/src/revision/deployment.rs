//! The Deployment of a revision: the user's containers and the sidecar.

use ebb_api::config::Configs;
use ebb_api::duration;
use ebb_api::meta::{autoscaling, ebb, serving as keys};
use ebb_api::serving::{Revision, RevisionStatus};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, ConfigMapProjection, Container, ContainerPort, EnvVar, HTTPGetAction, KeyToPath, Lifecycle,
    LifecycleHandler, PodAffinityTerm, PodAntiAffinity, PodSpec, PodTemplateSpec, ProjectedVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeProjection, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;

use super::{Platform, annotations, child_meta, deployment_name, labels, queue_proxy};
use crate::plan::label;

/// The volume with the sidecar's token and roots.
pub(super) const MESH_VOLUME: &str = "ebb-mesh";

/// Makes it, with as many pods as a new revision begins with.
pub fn deployment(
    revision: &Revision,
    status: &RevisionStatus,
    configs: &Configs,
    platform: &Platform,
) -> Deployment {
    let found = revision.metadata.annotations.as_ref();
    let selector =
        BTreeMap::from([(keys::REVISION_UID.to_owned(), revision.metadata.uid.clone().unwrap_or_default())]);
    let deadline = keys::PROGRESS_DEADLINE
        .value(found)
        .and_then(duration::parse)
        .unwrap_or(configs.deployment.progress_deadline);
    Deployment {
        metadata: child_meta(revision, deployment_name(&revision.name_any())),
        spec: Some(DeploymentSpec {
            replicas: Some(initial_scale(revision, configs)),
            selector: LabelSelector { match_labels: Some(selector), ..LabelSelector::default() },
            progress_deadline_seconds: Some(i32::try_from(deadline.as_secs()).unwrap_or(i32::MAX)),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    ..RollingUpdateDeployment::default()
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels(revision, platform)),
                    annotations: Some(annotations(revision)),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod_spec(revision, status, configs, platform)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// As the revision's, and what policies go by.
fn pod_labels(revision: &Revision, platform: &Platform) -> BTreeMap<String, String> {
    let mut labels = labels(revision);
    labels.insert(ebb::MTLS_MODE.into(), platform.mtls_mode.to_string());
    labels
}

/// Pods before the revision is first Ready: initial-scale, and at least min-scale.
fn initial_scale(revision: &Revision, configs: &Configs) -> i32 {
    let found = revision.metadata.annotations.as_ref();
    let number = |key: ebb_api::meta::Keys| key.value(found).and_then(|v| v.parse::<i32>().ok());
    let initial = number(autoscaling::INITIAL_SCALE)
        .filter(|n| *n > 0 || configs.autoscaler.allow_zero_initial_scale)
        .unwrap_or(configs.autoscaler.initial_scale);
    initial.max(number(autoscaling::MIN_SCALE).unwrap_or(configs.autoscaler.min_scale))
}

fn pod_spec(revision: &Revision, status: &RevisionStatus, configs: &Configs, platform: &Platform) -> PodSpec {
    let mut pod = revision.spec.pod.clone();
    let digest = |name: &str, image: &Option<String>, of: &[ebb_api::serving::ContainerStatus]| {
        of.iter()
            .find(|s| s.name.as_deref() == Some(name))
            .and_then(|s| s.image_digest.clone())
            .filter(|d| !d.is_empty())
            .or_else(|| image.clone())
    };
    let serving = revision.spec.serving_container().map(|c| c.name.clone()).unwrap_or_default();
    for container in &mut pod.containers {
        container.image = digest(&container.name, &container.image, &status.container_statuses);
        user_container(container, revision, container.name == serving);
    }
    for container in pod.init_containers.iter_mut().flatten() {
        container.image = digest(&container.name, &container.image, &status.init_container_statuses);
    }
    pod.containers.push(queue_proxy::container(revision, configs, platform));
    pod.volumes.get_or_insert_default().push(mesh_volume());
    pod.termination_grace_period_seconds = revision.spec.timeout_seconds;
    if pod.runtime_class_name.is_none() {
        pod.runtime_class_name = configs.deployment.runtime_class(revision.metadata.labels.as_ref());
    }
    if pod.affinity.is_none() && configs.deployment.spread_revision_over_nodes {
        pod.affinity = Some(spread(revision));
    }
    pod
}

/// Prepares one of the user's containers for its place beside the sidecar.
fn user_container(container: &mut Container, revision: &Revision, serves: bool) {
    let env = container.env.get_or_insert_default();
    let mut set = |name: &str, value: String| {
        env.push(EnvVar { name: name.into(), value: Some(value), ..EnvVar::default() });
    };
    let of = |key: &str| label(&revision.metadata, key).unwrap_or_default().to_owned();
    if serves {
        set("PORT", revision.spec.user_port().number.to_string());
    }
    set("K_REVISION", revision.name_any());
    set("K_CONFIGURATION", of(keys::CONFIGURATION));
    set("K_SERVICE", of(keys::SERVICE));
    container.lifecycle = Some(Lifecycle {
        // The app may end only after the sidecar has let the last request go.
        pre_stop: Some(LifecycleHandler {
            http_get: Some(HTTPGetAction {
                path: Some("/wait-for-drain".into()),
                port: IntOrString::Int(i32::from(ebb_http::ports::ADMIN)),
                ..HTTPGetAction::default()
            }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    });
    // So that the status can say why the app ended.
    if container.termination_message_policy.as_ref().is_none_or(String::is_empty) {
        container.termination_message_policy = Some("FallbackToLogsOnError".into());
    }
    if serves {
        let port = revision.spec.user_port();
        container.ports = Some(vec![ContainerPort {
            name: Some("user-port".into()),
            container_port: port.number,
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]);
        // The sidecar probes the app, sooner and more often than Kubernetes would. Only what it cannot do stays.
        if container.readiness_probe.as_ref().is_some_and(|p| p.exec.is_none()) {
            container.readiness_probe = None;
        }
        if let Some(probe) = &mut container.readiness_probe {
            probe.period_seconds = probe.period_seconds.filter(|s| *s > 0).or(Some(1));
        }
        for probe in [&mut container.liveness_probe, &mut container.startup_probe].into_iter().flatten() {
            aim(probe, port.number);
        }
    }
}

/// A probe without a port means the app's.
pub(super) fn aim(probe: &mut k8s_openapi::api::core::v1::Probe, port: i32) {
    let unset = |p: &IntOrString| match p {
        IntOrString::Int(n) => *n == 0,
        IntOrString::String(_) => true,
    };
    if let Some(get) = probe.http_get.as_mut().filter(|g| unset(&g.port)) {
        get.port = IntOrString::Int(port);
    }
    if let Some(tcp) = probe.tcp_socket.as_mut().filter(|t| unset(&t.port)) {
        tcp.port = IntOrString::Int(port);
    }
    if let Some(grpc) = probe.grpc.as_mut().filter(|g| g.port == 0) {
        grpc.port = port;
    }
}

/// The token with which the sidecar asks for its certificate, and the roots it begins with.
fn mesh_volume() -> Volume {
    Volume {
        name: MESH_VOLUME.into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![
                VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(ebb::MESH_AUDIENCE.into()),
                        expiration_seconds: Some(3600),
                        path: "token".into(),
                    }),
                    ..VolumeProjection::default()
                },
                VolumeProjection {
                    config_map: Some(ConfigMapProjection {
                        name: ebb::MESH_ROOT.into(),
                        items: Some(vec![KeyToPath {
                            key: "ca.crt".into(),
                            path: "ca.crt".into(),
                            mode: None,
                        }]),
                        ..ConfigMapProjection::default()
                    }),
                    ..VolumeProjection::default()
                },
            ]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn spread(revision: &Revision) -> Affinity {
    let selector = BTreeMap::from([(keys::REVISION.to_owned(), revision.name_any())]);
    let term = PodAffinityTerm {
        label_selector: Some(LabelSelector { match_labels: Some(selector), ..LabelSelector::default() }),
        topology_key: "kubernetes.io/hostname".into(),
        ..PodAffinityTerm::default()
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                pod_affinity_term: term,
                weight: 100,
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}
