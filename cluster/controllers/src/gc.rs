//! The garbage collector: deletes objects whose owners are gone, and carries out foreground deletion and orphaning.
//!
//! It watches the metadata of every kind that can be listed, watched and deleted, those of CustomResourceDefinitions as they come and go,
//! and keeps a [`graph::Graph`] of who owns whom by uid. The graph decides; before anything is deleted because of an owner
//! that the graph has never seen, the API server is asked, for the watches of different kinds do not keep step.

mod act;
mod graph;
mod monitor;

use std::sync::Arc;

use kube::{Client, api::ApiResource, discovery::Scope};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{queue::Queue, world::World};
use graph::{Graph, Work};

/// A kind that the API server serves.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Kind {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|held| held == verb)
    }

    fn new(resource: ApiResource, capabilities: &kube::discovery::ApiCapabilities) -> Self {
        let namespaced = capabilities.scope == Scope::Namespaced;
        Self { resource, namespaced, verbs: capabilities.operations.clone() }
    }
}

type Hook = Box<dyn Fn(&str) + Send + Sync>;

/// See the module's documentation.
pub(crate) struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    queue: Arc<Queue<Work>>,
    /// All kinds by the latest discovery; none until the first one is done.
    kinds: watch::Sender<Option<Arc<Vec<Kind>>>>,
    /// A CustomResourceDefinition came, changed or went.
    discover: Notify,
    /// Called with the namespace of each object that is gone.
    removed: Mutex<Vec<Hook>>,
}

impl Collector {
    /// All kinds that the API server serves, waiting for the first discovery.
    pub(crate) async fn kinds(&self) -> Arc<Vec<Kind>> {
        let mut kinds = self.kinds.subscribe();
        let known = kinds.wait_for(Option::is_some).await;
        known.ok().and_then(|known| known.clone()).unwrap_or_default()
    }

    /// Calls `hook` with the namespace of each object that is gone.
    pub(crate) fn on_removed(&self, hook: impl Fn(&str) + Send + Sync + 'static) {
        self.removed.lock().push(Box::new(hook));
    }

    fn kind_of(&self, api_version: &str, kind: &str) -> Option<Kind> {
        let kinds = self.kinds.borrow().clone()?;
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        // Any version of the group serves the same objects.
        kinds.iter().find(|known| known.resource.kind == kind && known.resource.group == group).cloned()
    }
}

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) -> Arc<Collector> {
    let collector = Arc::new(Collector {
        client: world.client.clone(),
        graph: Mutex::default(),
        queue: Queue::new(),
        kinds: watch::Sender::new(None),
        discover: Notify::new(),
        removed: Mutex::default(),
    });
    tasks.spawn(monitor::run(Arc::clone(&collector), shutdown.clone()));
    collector
}
