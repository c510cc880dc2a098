//! Revision -> Deployment, PodAutoscaler and Image objects, and what they tell about it.

mod autoscaler;
mod deployment;
pub mod digest;
mod leftovers;
pub mod network_policy;
mod queue_proxy;
mod status;
pub mod trouble;

use ebb_api::autoscaling::PodAutoscaler;
use ebb_api::caching::{Image, ImageSpec};
use ebb_api::conditions::{Condition, Conditioned, ConditionedObject, READY, Status};
use ebb_api::config::Configs;
use ebb_api::meta::autoscaling;
use ebb_api::meta::ebb::MESH_ROOT;
use ebb_api::meta::serving as keys;
use ebb_api::mtls::Mode;
use ebb_api::names;
use ebb_api::serving::{Configuration, ContainerStatus, Revision, RevisionStatus, Route};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::plan::{
    CLIENT_ANNOTATIONS, Change, Compare, Plan, Target, cause_of, controlled_by, ensure, owner,
};

pub use autoscaler::pod_autoscaler;
pub use deployment::deployment;
pub use trouble::Trouble;

/// Annotations of a PodAutoscaler that the autoscaler may keep for itself.
const AUTOSCALERS_OWN: &[&str] = &["ebb.dev/", "autoscaling.internal.knative.dev/"];

/// How far the lookup of the images' digests is.
#[derive(Clone, Debug, PartialEq)]
pub enum Digests {
    /// Under way.
    Pending,
    /// The images of all containers and init containers, by digest.
    Resolved {
        /// Of the containers.
        containers: Vec<ContainerStatus>,
        /// Of the init containers.
        init_containers: Vec<ContainerStatus>,
    },
    /// It failed, and will be tried again.
    Failed(String),
}

/// What the platform itself adds to pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The namespace of the components.
    pub system_namespace: String,
    /// host:port of the activators.
    pub activator: String,
    /// host:port of the certificate authority.
    pub ca: String,
    /// Whose identities are trusted.
    pub trust_domain: String,
    /// Whether plaintext to pods is refused (strict) or not (permissive).
    pub mtls_mode: Mode,
    /// The mesh's roots, PEM.
    pub roots: String,
}

/// What a Revision's plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The Revision.
    pub revision: &'a Revision,
    /// Its Configuration.
    pub configuration: Option<&'a Configuration>,
    /// Routes that may lead to it.
    pub routes: &'a [Arc<Route>],
    /// The images' digests, if its status has none yet.
    pub digests: &'a Digests,
    /// Its Deployment.
    pub deployment: Option<&'a Deployment>,
    /// Its pods.
    pub pods: &'a [Arc<Pod>],
    /// Its PodAutoscaler.
    pub pod_autoscaler: Option<&'a PodAutoscaler>,
    /// The ConfigMap with the mesh's roots in its namespace.
    pub mesh_root: Option<&'a ConfigMap>,
    /// The NetworkPolicy of its namespace that keeps plaintext out.
    pub network_policy: Option<&'a NetworkPolicy>,
    /// Names of the Image objects that are there.
    pub images: &'a [String],
    /// What was found out about a pod that does not come up.
    pub trouble: Option<&'a Trouble>,
    /// What the API server said to the last attempt, if it refused that.
    pub refused: Option<&'a str>,
}

/// The name of a revision's Deployment.
pub fn deployment_name(revision: &str) -> String {
    names::child(revision, "-deployment")
}

/// Decides about a Revision.
pub fn plan(observed: &Observed<'_>, configs: &Configs, platform: &Platform, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let revision = observed.revision;
    if revision.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = revision.status.clone().unwrap_or_default();
    status.manage(now).initialize();
    status.set_observed_generation(revision.metadata.generation);
    let uid = revision.metadata.uid.as_deref();
    let template = Some(&configs.observability.revision_url_template).filter(|t| !t.is_empty());
    status.log_url = template.map(|t| t.replace("${REVISION_UID}", uid.unwrap_or_default()));

    let target = Target::of::<Revision>(revision.namespace(), revision.name_any());
    if let Some(patch) = crate::labeler::of_revision(revision, observed.configuration, observed.routes, now) {
        plan.then.push(Change::Patch(target, patch));
    }
    let resolved = !status.container_statuses.is_empty();
    match observed.digests {
        _ if resolved => {}
        Digests::Resolved { containers, init_containers } => {
            status.container_statuses.clone_from(containers);
            status.init_container_statuses.clone_from(init_containers);
        }
        Digests::Pending => {
            status.manage(now).mark_unknown("ResourcesAvailable", "ResolvingDigests", "");
            plan.set_status(revision.status.as_ref(), &status);
            return plan;
        }
        Digests::Failed(message) => {
            status.manage(now).mark_false("ContainerHealthy", "ContainerMissing", message);
            tell(&mut plan, revision, &status);
            plan.set_status(revision.status.as_ref(), &status);
            return plan;
        }
    }
    // What failed before the digests were known says nothing any more.
    let stale = ["ContainerMissing", "ResolvingDigests"];
    for type_ in ["ContainerHealthy", "ResourcesAvailable"] {
        if status.condition(type_).and_then(|c| c.reason.as_deref()).is_some_and(|r| stale.contains(&r)) {
            status.manage(now).mark_unknown(type_, "Deploying", "");
        }
    }

    if configs.deployment.queue_sidecar_image.is_empty() {
        let message =
            "ConfigMap config-deployment has no queue-sidecar-image: set it to the image of queue-proxy";
        status.manage(now).mark_false("ResourcesAvailable", "ConfigMissing", message);
        plan.set_status(revision.status.as_ref(), &status);
        return plan;
    }
    // Pods mount it, so it comes before them.
    plan.first.extend(ensure(observed.mesh_root, &mesh_root(revision, platform), Compare::Covers));
    if platform.mtls_mode == Mode::Strict {
        // It guards pods from their first moment.
        let wanted = network_policy::network_policy(revision.namespace());
        plan.first.extend(ensure(observed.network_policy, &wanted, Compare::Covers));
    }
    let wanted = deployment(revision, &status, configs, platform);
    let trouble = observed.trouble.filter(|t| observed.pods.iter().any(|pod| t.fits(pod)));
    let owned = |metadata: &ObjectMeta| controlled_by(metadata, uid);
    match observed.deployment {
        Some(live) if !owned(&live.metadata) => {
            let message =
                format!("There is an existing Deployment {:?} that we do not own.", live.name_any());
            status.manage(now).mark_false("ResourcesAvailable", "NotOwned", &message);
        }
        None => {
            plan.then.extend(ensure(None, &wanted, Compare::Exists));
            status::deploying(&mut status, now);
        }
        Some(live) => {
            // The number of pods is the autoscaler's from here on.
            let mut wanted = wanted;
            if let Some(spec) = &mut wanted.spec {
                spec.replicas = None;
            }
            match leftovers::patch(live, &wanted) {
                Some(patch) => {
                    let target = Target::of::<Deployment>(live.namespace(), live.name_any());
                    plan.then.push(Change::Patch(target, patch));
                }
                None => drop(plan.ensure(Some(live), &wanted, Compare::Covers)),
            }
            status::of_deployment(&mut status, live, observed.pods, trouble, configs, now);
        }
    }
    if let Some(why) = observed.refused {
        status::refused(&mut status, why, now);
    }
    // What was once the default stays that of the revisions of its time.
    let class =
        observed.pod_autoscaler.and_then(|pa| autoscaling::CLASS.value(pa.metadata.annotations.as_ref()));
    let wanted = pod_autoscaler(revision, class.unwrap_or(&configs.autoscaler.pod_autoscaler_class));
    match observed.pod_autoscaler {
        Some(live) if !owned(&live.metadata) => {
            let message =
                format!("There is an existing PodAutoscaler {:?} that we do not own.", live.name_any());
            status.manage(now).mark_false("ResourcesAvailable", "NotOwned", &message);
        }
        live => {
            plan.ensure(live, &wanted, Compare::Exact(AUTOSCALERS_OWN));
            status::of_autoscaler(&mut status, live, now);
        }
    }
    for container in status.container_statuses.iter().chain(&status.init_container_statuses) {
        let image = image(revision, container);
        if !observed.images.contains(&image.name_any()) && !image.spec.image.is_empty() {
            plan.ensure::<Image>(None, &image, Compare::Exists);
        }
    }
    if let Some(live) = observed.deployment.filter(|live| status::lacks_pods(live)) {
        if let Some(trouble) = trouble {
            status::explain(&mut status, trouble, now);
        }
        // What a pod waits for may be seen only later, and no watch tells it.
        if let Some((_, age)) = inspect(observed, now).filter(|_| owned(&live.metadata)) {
            plan.again(trouble::pause(age));
        }
    }
    tell(&mut plan, revision, &status);
    plan.set_status(revision.status.as_ref(), &status);
    plan
}

/// The pod that is to be looked into, as its status does not tell why it does not come up, and for how long it has been on its way.
pub fn inspect<'a>(observed: &Observed<'a>, now: Timestamp) -> Option<(&'a Arc<Pod>, Duration)> {
    let deployment = observed.deployment.filter(|live| status::lacks_pods(live))?;
    let gone = deployment.metadata.deletion_timestamp.is_some();
    let unexplained = |pod: &&Arc<Pod>| !gone && trouble::of_pod(pod, false, false).is_none();
    let waiting = observed.pods.iter().filter(unexplained);
    waiting.filter_map(|pod| Some((pod, trouble::age(pod, now)?))).max_by_key(|(_, age)| *age)
}

/// Tells of a revision that became ready or failed.
fn tell(plan: &mut Plan, revision: &Revision, status: &RevisionStatus) {
    let before = revision.condition(READY);
    let after = status.condition(READY);
    let is = |c: Option<&Condition>, status: Status| c.is_some_and(|c| c.status == status);
    if is(after, Status::True) && !is(before, Status::True) {
        plan.note("RevisionReady", "Revision becomes ready upon all resources being ready");
    }
    let cause = |c: Option<&Condition>| c.map(|c| (c.reason.clone(), c.message.clone()));
    if is(after, Status::False) && (!is(before, Status::False) || cause(before) != cause(after)) {
        let (reason, message) = cause(after).unwrap_or_default();
        plan.warn("RevisionFailed", cause_of(reason.as_deref(), message.as_deref()));
    }
}

/// Labels of everything that belongs to a revision: its own (less those that change) and its identity.
fn labels(revision: &Revision) -> BTreeMap<String, String> {
    let mut labels = revision.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| ![keys::ROUTING_STATE, keys::ROUTE].contains(&key.as_str()));
    labels.insert(keys::REVISION.into(), revision.name_any());
    labels.extend(revision.metadata.uid.clone().map(|uid| (keys::REVISION_UID.to_owned(), uid)));
    labels.entry("app".into()).or_insert_with(|| revision.name_any());
    labels
}

/// Annotations of what runs a revision. How it is scaled may change, and is no reason to make its pods anew.
fn annotations(revision: &Revision) -> BTreeMap<String, String> {
    let mut annotations = all_annotations(revision);
    annotations.retain(|key, _| !key.starts_with(autoscaling::PREFIX));
    annotations
}

/// Annotations of a revision's PodAutoscaler.
fn all_annotations(revision: &Revision) -> BTreeMap<String, String> {
    let mut annotations = revision.metadata.annotations.clone().unwrap_or_default();
    let drop = [keys::ROUTES, keys::ROUTING_STATE_MODIFIED, keys::NO_GC];
    annotations.retain(|k, _| !CLIENT_ANNOTATIONS.contains(&k.as_str()) && !drop.contains(&k.as_str()));
    annotations
}

fn child_meta(revision: &Revision, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: revision.metadata.namespace.clone(),
        labels: Some(labels(revision)),
        annotations: Some(annotations(revision)),
        owner_references: Some(owner(revision)),
        ..ObjectMeta::default()
    }
}

fn image(revision: &Revision, container: &ContainerStatus) -> Image {
    let name = names::child(
        &names::child(&revision.name_any(), "-cache"),
        &format!("-{}", container.name.as_deref().unwrap_or_default()),
    );
    Image {
        metadata: child_meta(revision, name),
        spec: ImageSpec {
            image: container.image_digest.clone().unwrap_or_default(),
            service_account_name: revision.spec.pod.service_account_name.clone(),
            image_pull_secrets: revision.spec.pod.image_pull_secrets.clone().unwrap_or_default(),
        },
        status: None,
    }
}

/// The mesh's roots for the pods of a namespace.
pub fn mesh_root(revision: &Revision, platform: &Platform) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(MESH_ROOT.into()),
            namespace: revision.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".into(), "ebb".into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("ca.crt".to_owned(), platform.roots.clone())])),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests;
