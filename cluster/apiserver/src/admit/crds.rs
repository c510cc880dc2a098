//! CustomResourceDefinitions: established when written, and their objects deleted with them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::error::ApiError;
use crate::handlers::Ctx;
use crate::meta;
use crate::registry::crd;
use crate::server::Server;
use crate::store::{Expect, Key};

/// The finalizer that keeps a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Sets the conditions.
pub(super) fn admit(ctx: &Ctx, definition: &mut Value) {
    let (_, others) = ctx.server.store.list(crd::STORAGE, None);
    crd::establish(definition, others.iter().map(|object| &*object.value), &meta::now());
}

/// 403 for a new object of a definition that is being deleted.
pub(crate) fn accepts(ctx: &Ctx, name: &str) -> Result<(), ApiError> {
    let definition = format!("{}.{}", ctx.resource.plural, ctx.resource.group);
    let going = ctx
        .server
        .store
        .get(crd::STORAGE, "", &definition)
        .is_some_and(|held| meta::is_terminating(&held.value));
    if going {
        let cause = "create not allowed while custom resource definition is terminating";
        return Err(ApiError::forbidden(ctx.resource.subject(name), cause));
    }
    Ok(())
}

/// Deletes all objects of a definition that is being deleted, then lets the definition go.
pub(crate) fn clean_up(server: &Arc<Server>, definition: &Value) {
    let name = meta::name(definition).to_owned();
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or_default();
    let storage: Arc<str> = format!("{group}/{plural}").into();
    let server = server.clone();
    tokio::spawn(async move {
        let shutdown = server.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = delete_all(&server, &storage) => finish(&server, &name),
        }
    });
}

async fn delete_all(server: &Arc<Server>, storage: &Arc<str>) {
    loop {
        let Ok(mut watch) = server.store.watch(storage, server.store.revision()) else { return };
        let (_, objects) = server.store.list(storage, None);
        if objects.is_empty() {
            return;
        }
        for object in &objects {
            if meta::finalizers(&object.value).is_empty() {
                let _ = server.store.remove(&object.key, object.revision);
            } else if !meta::is_terminating(&object.value) {
                let mut value = object.value.clone();
                meta::set(&mut value, "deletionTimestamp", meta::now());
                meta::set(&mut value, "deletionGracePeriodSeconds", 0);
                let _ = server.store.put(&object.key, Expect::Revision(object.revision), value);
            }
        }
        if server.store.count(storage) == 0 {
            return;
        }
        // The rest have finalizers of their own: look again when something happens to one.
        let _ = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
    }
}

fn finish(server: &Arc<Server>, name: &str) {
    let key = Key::new(&Arc::from(crd::STORAGE), "", name);
    while let Some(object) = server.store.get(crd::STORAGE, "", name) {
        let mut value = object.value.clone();
        let left: Vec<String> =
            meta::finalizers(&value).into_iter().filter(|f| *f != CLEANUP).map(str::to_owned).collect();
        let result = if left.is_empty() {
            server.store.remove(&key, object.revision)
        } else {
            meta::set(&mut value, "finalizers", left);
            server.store.put(&key, Expect::Revision(object.revision), value)
        };
        if let Ok(commit) = result {
            super::committed(server, &commit.object);
            return;
        }
    }
}
