//! Carries out the graph's verdicts.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde_json::json;

use super::{
    Collector, Kind,
    graph::{Object, Propagation, Verdict, Work},
};
use crate::Error;

pub(super) async fn perform(collector: Arc<Collector>, work: Work) -> Result<Option<Duration>, Error> {
    loop {
        let verdict = collector.graph.lock().judge(&work.0);
        let done = match verdict {
            Verdict::Nothing => return Ok(None),
            Verdict::Verify(object, owners) => {
                verify(&collector, &object, &owners).await?;
                continue;
            }
            Verdict::DropOwners(object, gone) => drop_owners(&collector, &object, &gone).await,
            Verdict::Delete(object, propagation) => delete(&collector, &object, propagation).await,
            Verdict::Orphan(object, dependents) => {
                for dependent in &dependents {
                    ignore_gone(drop_owners(&collector, dependent, std::slice::from_ref(&object.uid)).await)?;
                }
                release(&collector, &object, super::graph::ORPHAN).await
            }
            Verdict::Release(object, finalizer) => release(&collector, &object, finalizer).await,
        };
        return ignore_gone(done).map(|()| None);
    }
}

fn ignore_gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

fn api(collector: &Collector, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
    if kind.namespaced && !namespace.is_empty() {
        Api::namespaced_with(collector.client.clone(), namespace, &kind.resource)
    } else {
        Api::all_with(collector.client.clone(), &kind.resource)
    }
}

/// Asks the API server for owners that no watch has told of.
async fn verify(collector: &Collector, object: &Object, owners: &[OwnerReference]) -> Result<(), Error> {
    for owner in owners {
        let Some(kind) = collector.kind_of(&owner.api_version, &owner.kind) else {
            collector.discover.notify_one();
            let OwnerReference { api_version, kind, .. } = owner;
            let (namespace, name) = (&object.namespace, &object.name);
            return Err(Error::Unfinished(format!(
                "{namespace}/{name} is owned by a {kind} of {api_version}, a kind that is not served; it is kept"
            )));
        };
        let found = api(collector, &kind, &object.namespace).get_metadata_opt(&owner.name).await?;
        match found.filter(|found| found.metadata.uid.as_ref() == Some(&owner.uid)) {
            Some(found) => {
                let work = collector.graph.lock().upsert(Object::new(Arc::new(kind), found.metadata));
                work.into_iter().for_each(|work| collector.queue.add(work));
            }
            None => collector.graph.lock().remember_absent(&owner.uid),
        }
    }
    Ok(())
}

async fn drop_owners(collector: &Collector, object: &Object, gone: &[String]) -> Result<(), Error> {
    let left: Vec<&OwnerReference> =
        object.owners.iter().filter(|owner| !gone.contains(&owner.uid)).collect();
    // The version guards against owners that were added meanwhile; a conflict is tried again with what the watch brings.
    let patch =
        json!({"metadata": {"ownerReferences": left, "uid": object.uid, "resourceVersion": object.version}});
    let api = api(collector, &object.kind, &object.namespace);
    let patched = api.patch_metadata(&object.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    take(collector, object, patched.metadata);
    Ok(())
}

async fn release(collector: &Collector, object: &Object, finalizer: &str) -> Result<(), Error> {
    let left: Vec<&String> = object.finalizers.iter().filter(|held| *held != finalizer).collect();
    let patch =
        json!({"metadata": {"finalizers": left, "uid": object.uid, "resourceVersion": object.version}});
    let api = api(collector, &object.kind, &object.namespace);
    api.patch_metadata(&object.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

async fn delete(collector: &Collector, object: &Object, propagation: Propagation) -> Result<(), Error> {
    let policy = match propagation {
        Propagation::Background => PropagationPolicy::Background,
        Propagation::Foreground => PropagationPolicy::Foreground,
        Propagation::Orphan => PropagationPolicy::Orphan,
    };
    let Object { kind, namespace, name, .. } = object;
    tracing::debug!(kind = kind.resource.kind, namespace, name, ?propagation, "collected");
    // The version makes sure that the owners are those that were judged.
    let params = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(Preconditions {
            uid: Some(object.uid.clone()),
            resource_version: object.version.clone(),
        }),
        ..DeleteParams::default()
    };
    api(collector, &object.kind, &object.namespace).delete(&object.name, &params).await?;
    Ok(())
}

fn take(
    collector: &Collector,
    object: &Object,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) {
    let work = collector.graph.lock().upsert(Object::new(Arc::clone(&object.kind), metadata));
    work.into_iter().for_each(|work| collector.queue.add(work));
}
