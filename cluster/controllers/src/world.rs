//! What the controllers see of the cluster, and how they write to it.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, ReplicaSet},
        autoscaling::v2::HorizontalPodAutoscaler,
        batch::v1::Job,
        core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    runtime::watcher,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    cache::{Cache, Cached, Key},
    endpointslice,
    events::Recorder,
    meta,
};

/// One cache for each kind that a controller reads.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) events: Recorder,
    pub(crate) deployments: Arc<Cache<Deployment>>,
    pub(crate) replica_sets: Arc<Cache<ReplicaSet>>,
    pub(crate) jobs: Arc<Cache<Job>>,
    pub(crate) horizontals: Arc<Cache<HorizontalPodAutoscaler>>,
    pub(crate) pods: Arc<Cache<Pod>>,
    pub(crate) nodes: Arc<Cache<Node>>,
    pub(crate) services: Arc<Cache<Service>>,
    pub(crate) endpoint_slices: Arc<Cache<EndpointSlice>>,
    pub(crate) namespaces: Arc<Cache<Namespace>>,
    /// Only those named `default`.
    pub(crate) service_accounts: Arc<Cache<ServiceAccount>>,
    /// Only those named `kube-root-ca.crt`.
    pub(crate) root_cas: Arc<Cache<ConfigMap>>,
}

impl World {
    pub(crate) fn new(client: Client, events: Recorder) -> Self {
        Self {
            client,
            events,
            deployments: Arc::new(Cache::new()),
            replica_sets: Arc::new(Cache::new()),
            jobs: Arc::new(Cache::new()),
            horizontals: Arc::new(Cache::new()),
            pods: Arc::new(Cache::indexed(endpointslice::labels_of)),
            nodes: Arc::new(Cache::new()),
            services: Arc::new(Cache::indexed(endpointslice::selector_of)),
            endpoint_slices: Arc::new(Cache::indexed(|slice| {
                endpointslice::service_of(slice).map(str::to_owned).into_iter().collect()
            })),
            namespaces: Arc::new(Cache::new()),
            service_accounts: Arc::new(Cache::new()),
            root_cas: Arc::new(Cache::new()),
        }
    }

    /// Starts the watch of every cache.
    pub(crate) fn watch(&self, tasks: &TaskTracker, shutdown: &CancellationToken) {
        let all = watcher::Config::default;
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        self.spawn(&self.deployments, all(), tasks, shutdown);
        self.spawn(&self.replica_sets, all(), tasks, shutdown);
        self.spawn(&self.jobs, all(), tasks, shutdown);
        self.spawn(&self.horizontals, all(), tasks, shutdown);
        self.spawn(&self.pods, all(), tasks, shutdown);
        self.spawn(&self.nodes, all(), tasks, shutdown);
        self.spawn(&self.services, all(), tasks, shutdown);
        self.spawn(&self.endpoint_slices, all(), tasks, shutdown);
        self.spawn(&self.namespaces, all(), tasks, shutdown);
        self.spawn(&self.service_accounts, named("default"), tasks, shutdown);
        self.spawn(&self.root_cas, named("kube-root-ca.crt"), tasks, shutdown);
    }

    fn spawn<K: Cached>(
        &self,
        cache: &Arc<Cache<K>>,
        config: watcher::Config,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        tasks.spawn(Arc::clone(cache).run(Api::all(self.client.clone()), config, shutdown.clone()));
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Creates `object` and takes the answer into `cache`.
    pub(crate) async fn create<K>(&self, cache: &Cache<K>, object: &K) -> Result<K, Error>
    where
        K: Cached + Resource<Scope = NamespaceResourceScope> + Serialize,
    {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let made = self.api::<K>(&namespace).create(&PostParams::default(), object).await?;
        cache.observe(made.clone());
        Ok(made)
    }

    /// Replaces the status of an object and takes the answer into `cache`. The object's resourceVersion guards the write.
    pub(crate) async fn replace_status<K>(&self, cache: &Cache<K>, object: &K) -> Result<(), Error>
    where
        K: Cached + Resource<Scope = NamespaceResourceScope> + Serialize,
    {
        let key = Key::of(object);
        let api = self.api::<K>(&key.namespace);
        cache.observe(api.replace_status(&key.name, &PostParams::default(), object).await?);
        Ok(())
    }

    /// Merges `patch` into an object and takes the answer into `cache`.
    pub(crate) async fn merge<K>(
        &self,
        cache: &Cache<K>,
        key: &Key,
        patch: &serde_json::Value,
    ) -> Result<(), Error>
    where
        K: Cached + Resource<Scope = NamespaceResourceScope>,
    {
        let api = self.api::<K>(&key.namespace);
        cache.observe(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await?);
        Ok(())
    }

    /// Whether `object` is there and not being deleted, asked of the API server itself.
    ///
    /// Before adopting, the cache is not enough: what is orphaned while its owner goes away would be adopted again by an owner whose end
    /// the cache has not seen yet, and be collected with it.
    pub(crate) async fn may_adopt<K>(&self, cache: &Cache<K>, object: &K) -> Result<bool, Error>
    where
        K: Cached + Resource<Scope = NamespaceResourceScope>,
    {
        let key = Key::of(object);
        match self.api::<K>(&key.namespace).get(&key.name).await.map_err(Error::from) {
            Ok(live) => {
                let wanted =
                    meta::uid(&live) == meta::uid(object) && live.meta().deletion_timestamp.is_none();
                cache.observe(live);
                Ok(wanted)
            }
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes exactly this object (by uid), dependents in the background. One that is gone already is a success.
    pub(crate) async fn delete<K>(&self, cache: &Cache<K>, object: &K) -> Result<(), Error>
    where
        K: Cached + Resource<Scope = NamespaceResourceScope> + DeserializeOwned + Debug,
    {
        let key = Key::of(object);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions {
                uid: Some(meta::uid(object).to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.api::<K>(&key.namespace).delete(&key.name, &params).await.map_err(Error::from) {
            // What still waits for finalizers or for its grace period comes back as an object.
            Ok(either) => match either.left() {
                Some(dying) if dying.meta().deletion_timestamp.is_some() => cache.observe(dying),
                _ => cache.forget(&key, Some(meta::uid(object))),
            },
            Err(error) if error.is_not_found() => cache.forget(&key, Some(meta::uid(object))),
            Err(error) if error.is_conflict() => cache.forget(&key, Some(meta::uid(object))),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
