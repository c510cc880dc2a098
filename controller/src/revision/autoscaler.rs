//! The PodAutoscaler of a revision.

use ebb_api::autoscaling::{PodAutoscaler, PodAutoscalerSpec, Reachability};
use ebb_api::conditions::{ConditionedObject, Status};
use ebb_api::meta::autoscaling;
use ebb_api::meta::serving::{self as keys, routing_state};
use ebb_api::serving::Revision;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;

use super::{all_annotations, child_meta, deployment_name};
use crate::plan::label;

/// Makes it; `class` is that of revisions that name none.
pub fn pod_autoscaler(revision: &Revision, class: &str) -> PodAutoscaler {
    let mut metadata = child_meta(revision, revision.name_any());
    // The class is written out, so that an autoscaler need not know the default to know what is its own.
    metadata.annotations = Some(all_annotations(revision));
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.entry(autoscaling::CLASS.key().into()).or_insert_with(|| class.to_owned());
    PodAutoscaler {
        metadata,
        spec: PodAutoscalerSpec {
            container_concurrency: revision.spec.container_concurrency.unwrap_or_default(),
            scale_target_ref: ObjectReference {
                api_version: Some("apps/v1".into()),
                kind: Some("Deployment".into()),
                name: Some(deployment_name(&revision.name_any())),
                ..ObjectReference::default()
            },
            reachability: reachability(revision),
            protocol_type: revision.spec.user_port().protocol,
        },
        status: None,
    }
}

/// A revision that failed, or that no Route leads to, need not be kept at its minimum.
fn reachability(revision: &Revision) -> Reachability {
    let status = |type_: &str| revision.condition(type_).map(|c| c.status);
    let failed = status("ContainerHealthy") == Some(Status::False)
        || status("ResourcesAvailable") == Some(Status::False);
    if failed {
        return Reachability::Unreachable;
    }
    match label(&revision.metadata, keys::ROUTING_STATE) {
        Some(routing_state::RESERVE) => Reachability::Unreachable,
        Some(routing_state::ACTIVE) => Reachability::Reachable,
        _ => Reachability::Unknown,
    }
}
