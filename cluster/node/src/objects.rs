//! ConfigMaps, Secrets and Services as the node needs them: cached by a watch, so that starting a container asks the
//! API nothing, and looked up directly when a pod names one that the watch has not brought yet.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::pod::env::Lookup;

/// A changed object: namespace and name; both empty when any may have changed.
pub(crate) type Change = (String, String);

#[derive(Clone)]
pub(crate) struct Objects {
    client: Client,
    config_maps: Store<ConfigMap>,
    secrets: Store<Secret>,
    services: Store<Service>,
    changes: broadcast::Sender<Change>,
}

/// What one pod refers to, found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    config_maps: HashMap<String, ConfigMap>,
    secrets: HashMap<String, Secret>,
}

impl Lookup for Found {
    fn config_map(&self, name: &str) -> Option<ConfigMap> {
        self.config_maps.get(name).cloned()
    }
    fn secret(&self, name: &str) -> Option<Secret> {
        self.secrets.get(name).cloned()
    }
}

fn cache<K>(
    client: &Client,
    changes: Option<broadcast::Sender<Change>>,
    shutdown: &CancellationToken,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Hash + Eq,
{
    let (store, writer) = reflector::store();
    let api: Api<K> = Api::all(client.clone());
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
        let mut events = std::pin::pin!(events.take_until(shutdown.cancelled_owned()));
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object)) => {
                    if let Some(changes) = &changes {
                        let meta = object.meta();
                        let key = (
                            meta.namespace.clone().unwrap_or_default(),
                            meta.name.clone().unwrap_or_default(),
                        );
                        // Nobody may be listening.
                        let _ = changes.send(key);
                    }
                }
                Ok(watcher::Event::InitDone) => {
                    if let Some(changes) = &changes {
                        let _ = changes.send(Change::default());
                    }
                }
                Ok(_) => {}
                Err(error) => warn!(%error, kind = %K::kind(&()), "watch interrupted"),
            }
        }
    });
    store
}

impl Objects {
    pub(crate) fn start(client: &Client, shutdown: &CancellationToken) -> Self {
        let (changes, _) = broadcast::channel(1024);
        Self {
            client: client.clone(),
            config_maps: cache(client, Some(changes.clone()), shutdown),
            secrets: cache(client, Some(changes.clone()), shutdown),
            services: cache(client, None, shutdown),
            changes,
        }
    }

    /// Namespace and name of ConfigMaps and Secrets as they change.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// The Services that pods of a namespace are told about: those of the namespace and [`Objects::kubernetes`].
    pub(crate) fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let inside = |service: &Arc<Service>| service.metadata.namespace.as_deref() == Some(namespace);
        let mut services: Vec<_> = self.services.state().into_iter().filter(inside).collect();
        services.extend(self.kubernetes().filter(|_| namespace != "default"));
        services
    }

    /// The Service of the API server, which every pod is told about.
    pub(crate) fn kubernetes(&self) -> Option<Arc<Service>> {
        self.services.get(&ObjectRef::new("kubernetes").within("default"))
    }

    /// All that the pod refers to and that exists.
    pub(crate) async fn find(&self, pod: &Pod) -> Found {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let names = references(pod);
        let mut found = Found::default();
        for name in names.config_maps {
            if let Some(object) = self.get(&self.config_maps, &namespace, &name).await {
                found.config_maps.insert(name, object);
            }
        }
        for name in names.secrets {
            if let Some(object) = self.get(&self.secrets, &namespace, &name).await {
                found.secrets.insert(name, object);
            }
        }
        found
    }

    async fn get<K>(&self, store: &Store<K>, namespace: &str, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
        K::DynamicType: Hash + Eq,
    {
        if let Some(object) = store.get(&ObjectRef::new(name).within(namespace)) {
            return Some((*object).clone());
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.ok().flatten()
    }
}

/// Names that a pod refers to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

fn references(pod: &Pod) -> Names {
    let mut names = Names::default();
    let Some(spec) = &pod.spec else { return names };
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        for from in container.env_from.iter().flatten() {
            names.config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
            names.secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            names.config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            names.secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        names.config_maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
        names.secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            names.config_maps.extend(source.config_map.as_ref().map(|source| source.name.clone()));
            names.secrets.extend(source.secret.as_ref().map(|source| source.name.clone()));
        }
    }
    names.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|reference| reference.name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_reference_counts() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "a"}}],
                "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "b", "key": "k"}}}]}],
            "volumes": [{"name": "v", "configMap": {"name": "d"}}, {"name": "w", "secret": {"secretName": "e"}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "f"}}, {"secret": {"name": "g"}}]}}]
        }}))
        .unwrap();
        let names = references(&pod);
        assert_eq!(names.config_maps.into_iter().collect::<Vec<_>>(), ["a", "d", "f"]);
        assert_eq!(names.secrets.into_iter().collect::<Vec<_>>(), ["b", "e", "g", "pull"]);
    }
}
