//! What is mounted into a revision's pods besides what the user asks for.

use ebb_api::config::{Configs, Flag};
use ebb_api::meta::{ebb, serving as keys};
use ebb_api::serving::Revision;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, DownwardAPIVolumeFile, DownwardAPIVolumeSource, EmptyDirVolumeSource,
    EnvVar, EnvVarSource, KeyToPath, ObjectFieldSelector, ProjectedVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};

use crate::plan::annotation;

/// Where the sidecar's own token and the roots are.
const MESH_DIR: &str = "/var/run/secrets/ebb";
/// Where further tokens of the sidecar are.
const TOKEN_DIR: &str = "/var/run/secrets/tokens";
const POD_INFO_DIR: &str = "/etc/podinfo";
const VAR_LOG: &str = "knative-var-log";
/// How long a token lives, in seconds.
const TOKEN_LIFE: i64 = 3600;

/// The sidecar's volumes, each with its mount.
pub(crate) fn of_sidecar(revision: &Revision, configs: &Configs) -> Vec<(Volume, VolumeMount)> {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut all = vec![(mesh(), mount("ebb-mesh", MESH_DIR, true))];
    let asked = annotation(&revision.metadata, keys::QUEUE_POD_INFO)
        .is_some_and(|v| v.eq_ignore_ascii_case("enabled"));
    if match configs.features.get("queueproxy.mount-podinfo") {
        Flag::Enabled => true,
        Flag::Allowed => asked,
        _ => false,
    } {
        all.push((pod_info(), mount("pod-info", POD_INFO_DIR, true)));
    }
    let audiences = &configs.deployment.queue_sidecar_token_audiences;
    if !audiences.is_empty() {
        let sources = audiences.iter().map(|audience| token(audience, audience)).collect();
        all.push((
            projected("knative-token-volume", sources),
            mount("knative-token-volume", TOKEN_DIR, false),
        ));
    }
    all
}

/// The token with which the sidecar asks for its certificate, and the roots it begins with.
fn mesh() -> Volume {
    let roots = ConfigMapProjection {
        name: ebb::MESH_ROOT.into(),
        items: Some(vec![KeyToPath { key: "ca.crt".into(), path: "ca.crt".into(), mode: None }]),
        ..ConfigMapProjection::default()
    };
    let roots = VolumeProjection { config_map: Some(roots), ..VolumeProjection::default() };
    projected("ebb-mesh", vec![token(ebb::MESH_AUDIENCE, "token"), roots])
}

fn projected(name: &str, sources: Vec<VolumeProjection>) -> Volume {
    Volume {
        name: name.into(),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() }),
        ..Volume::default()
    }
}

fn token(audience: &str, path: &str) -> VolumeProjection {
    VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            audience: Some(audience.into()),
            expiration_seconds: Some(TOKEN_LIFE),
            path: path.into(),
        }),
        ..VolumeProjection::default()
    }
}

fn pod_info() -> Volume {
    let file = DownwardAPIVolumeFile {
        path: "annotations".into(),
        field_ref: Some(ObjectFieldSelector {
            field_path: "metadata.annotations".into(),
            ..ObjectFieldSelector::default()
        }),
        ..DownwardAPIVolumeFile::default()
    };
    Volume {
        name: "pod-info".into(),
        downward_api: Some(DownwardAPIVolumeSource {
            items: Some(vec![file]),
            ..DownwardAPIVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Where a collector of logs finds what apps write to files below `/var/log`.
pub(crate) fn var_log() -> Volume {
    Volume { name: VAR_LOG.into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
}

/// Lets one of the user's containers write there, in a folder whose name tells which container of which pod it is.
pub(crate) fn keep_var_log(container: &mut Container) {
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
    let (pod, namespace) = ("K_INTERNAL_POD_NAME", "K_INTERNAL_POD_NAMESPACE");
    container
        .env
        .get_or_insert_default()
        .extend([field(pod, "metadata.name"), field(namespace, "metadata.namespace")]);
    container.volume_mounts.get_or_insert_default().push(VolumeMount {
        name: VAR_LOG.into(),
        mount_path: "/var/log".into(),
        sub_path_expr: Some(format!("$({namespace})_$({pod})_{}", container.name)),
        ..VolumeMount::default()
    });
}
