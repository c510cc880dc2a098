//! Conversion by the webhook of a definition: the objects of one request in one call.
//!
//! An object is stored in the version that its definition stores, or stored when it was written; a request sees all of them in its own. Only
//! what answers with metadata alone goes without a call: the collector and the end of a namespace must not wait for a webhook that may be
//! what is being deleted.

use std::sync::Arc;

use serde_json::Value;

use super::is_needed_of;
use crate::error::ApiError;
use crate::handlers::Ctx;
use crate::registry::Resource;
use crate::server::Server;
use crate::store::Object;

/// Objects of one call: their answer stays well within what is read of one.
const BATCH: usize = 500;

/// Stored objects in the version of `resource`; those that are so already, and those that no webhook converts, are as they were.
pub(crate) async fn shown(
    server: &Server,
    resource: &Resource,
    mut objects: Vec<Arc<Object>>,
) -> Result<Vec<Arc<Object>>, ApiError> {
    let Some(conversion) = &resource.conversion else { return Ok(objects) };
    let other: Vec<usize> =
        (0..objects.len()).filter(|&at| is_needed_of(resource, objects[at].value.api_version())).collect();
    for part in other.chunks(BATCH) {
        let values = part.iter().map(|&at| objects[at].value.clone()).collect();
        let converted = server.hooks.convert(conversion, &resource.api_version(), values).await?;
        for (&at, mut value) in part.iter().zip(converted) {
            resource.schema().prune(&mut value);
            resource.schema().default(&mut value);
            objects[at] = Arc::new(Object::new(objects[at].key.clone(), objects[at].revision, value));
        }
    }
    Ok(objects)
}

impl Ctx {
    /// A stored object in the version of the request.
    pub(crate) async fn shown(&self, object: Arc<Object>) -> Result<Arc<Object>, ApiError> {
        if self.resource.conversion.is_none() {
            return Ok(object);
        }
        let mut objects = shown(&self.server, &self.resource, vec![object]).await?;
        objects.pop().ok_or_else(|| ApiError::internal("a conversion lost its object"))
    }

    /// An object of the request's version as it is stored.
    pub(crate) async fn stored(&self, object: Value) -> Result<Value, ApiError> {
        let resource = &self.resource;
        let Some(conversion) = resource.conversion.as_ref().filter(|_| !super::is_stored_version(resource))
        else {
            return Ok(super::to_storage(resource, object));
        };
        let converted =
            self.server.hooks.convert(conversion, &resource.storage_version, vec![object]).await?;
        let mut object = converted.into_iter().next().unwrap_or_default();
        let version = resource.storage_version.rsplit('/').next().unwrap_or_default();
        if let Some(known) = self.server.registry.snapshot().find(&resource.group, version, &resource.plural)
        {
            known.schema().prune(&mut object);
            known.schema().default(&mut object);
        }
        Ok(object)
    }

    /// What is stored under the key of an object that was shown, if nobody has written it since.
    pub(crate) fn behind(&self, shown: &Arc<Object>) -> Option<Arc<Object>> {
        if self.resource.conversion.is_none() {
            return Some(shown.clone());
        }
        let key = &shown.key;
        let stored = self.server.store.get(&key.kind, &key.namespace, &key.name)?;
        (stored.revision == shown.revision).then_some(stored)
    }
}
