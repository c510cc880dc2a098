//! The Deployment of a revision: the user's containers and the sidecar.

pub(super) mod volumes;

use ebb_api::config::Configs;
use ebb_api::duration;
use ebb_api::meta::{autoscaling, ebb, serving as keys};
use ebb_api::serving::{Revision, RevisionStatus};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerPort, EnvVar, HTTPGetAction, Lifecycle, LifecycleHandler, PodAffinityTerm,
    PodAntiAffinity, PodSpec, PodTemplateSpec, Probe, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use std::collections::BTreeMap;

use super::{Platform, annotations, child_meta, deployment_name, labels, queue_proxy};
use crate::plan::label;

/// The container that `kubectl logs` and `kubectl exec` mean without one being named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

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
            // A revision never changes, so there is nothing to go back to.
            revision_history_limit: Some(0),
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
                    annotations: Some(pod_annotations(revision)),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod_spec(revision, status, configs, platform)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn pod_annotations(revision: &Revision) -> BTreeMap<String, String> {
    let mut annotations = annotations(revision);
    let serving = revision.spec.serving_container().map(|c| c.name.clone()).filter(|name| !name.is_empty());
    annotations.extend(serving.map(|name| (DEFAULT_CONTAINER.to_owned(), name)));
    annotations
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
    // With probes on every container their ports are the user's to choose.
    let any_port = configs.features.enabled("multi-container-probing");
    for container in &mut pod.containers {
        container.image = digest(&container.name, &container.image, &status.container_statuses);
        user_container(container, revision, container.name == serving, any_port);
        if configs.observability.enable_var_log_collection {
            volumes::keep_var_log(container);
        }
    }
    for container in pod.init_containers.iter_mut().flatten() {
        container.image = digest(&container.name, &container.image, &status.init_container_statuses);
    }
    let mut sidecar = queue_proxy::container(revision, configs, platform);
    let volumes = pod.volumes.get_or_insert_default();
    for (volume, mount) in volumes::of_sidecar(revision, configs) {
        volumes.push(volume);
        sidecar.volume_mounts.get_or_insert_default().push(mount);
    }
    if configs.observability.enable_var_log_collection {
        volumes.push(volumes::var_log());
    }
    pod.containers.push(sidecar);
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
fn user_container(container: &mut Container, revision: &Revision, serves: bool, any_port: bool) {
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
    // The sidecar probes them, sooner and more often than Kubernetes would. Only what it cannot do stays.
    if container.readiness_probe.as_ref().is_some_and(|p| p.exec.is_none()) {
        container.readiness_probe = None;
    }
    if serves {
        let port = revision.spec.user_port();
        container.ports = Some(vec![ContainerPort {
            name: Some("user-port".into()),
            container_port: port.number,
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]);
        if let Some(probe) = &mut container.readiness_probe {
            probe.period_seconds = probe.period_seconds.filter(|s| *s > 0).or(Some(1));
        }
        if let Some(probe) = container.liveness_probe.as_mut().filter(|_| !any_port) {
            aim_anew(probe, port.number);
        }
        for probe in [&mut container.liveness_probe, &mut container.startup_probe].into_iter().flatten() {
            aim(probe, port.number);
        }
    }
}

/// A probe asks the app's port, whatever it says.
fn aim_anew(probe: &mut Probe, port: i32) {
    if let Some(get) = &mut probe.http_get {
        get.port = IntOrString::Int(port);
    }
    if let Some(tcp) = &mut probe.tcp_socket {
        tcp.port = IntOrString::Int(port);
    }
}

/// A probe without a port means the app's.
pub(super) fn aim(probe: &mut Probe, port: i32) {
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
