//! The core controllers of the embedded cluster: Deployment, ReplicaSet, Job, HorizontalPodAutoscaler, EndpointSlice, Namespace, ServiceAccount,
//! the garbage collector, and the scheduler of its one node.
//!
//! Each controller is a pure `plan(&Observed, now) -> Plan` and a thin part that carries the plan out. What they observe
//! comes from [`cache`](cache/index.html)s that are fed by watches *and* by the answers to the controllers' own writes, so a controller
//! always sees what it wrote itself: that takes the place of the expectations that Kubernetes' controllers keep.
//!
//! Nothing here polls but horizontal autoscalers, where there are any. A cold start runs through three of these controllers one after the
//! other (Deployment, ReplicaSet, scheduler), so each acts on the watch event itself; only what nobody waits for is put off: events, and
//! the [counts](settle/index.html) in a status.
//!
//! This crate never starts a container, never touches the network of the machine, and knows nothing of what runs on the cluster.

mod cache;
mod deployment;
mod endpoints;
mod endpointslice;
mod events;
mod gc;
mod horizontal;
mod housekeeping;
mod job;
mod meta;
mod namespace;
mod quantity;
mod queue;
mod replicaset;
mod scheduler;
mod serviceaccount;
mod settle;
mod world;

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::{events::Recorder, world::World};

/// What the controllers need to know of the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// PEM of the API server's certificate authority, published as ConfigMap `kube-root-ca.crt` in every namespace.
    pub root_ca_pem: String,
}

/// Why the controllers stopped, or why one piece of work failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached; the work is tried again with backoff.
    #[error("the API server refused a controller's request: {0}")]
    Api(kube::Error),
    /// An object lacks what the API server always sets.
    #[error("{kind} {key} has no {field}: the API server should have set it")]
    Incomplete {
        /// The object's kind.
        kind: &'static str,
        /// Its namespace and name.
        key: String,
        /// What is missing.
        field: &'static str,
    },
    /// Work that is not finished and is tried again with backoff.
    #[error("{0}")]
    Unfinished(String),
}

// No source: the message tells it already.
impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

impl Error {
    /// Whether the API server said that the object is not there.
    fn is_not_found(&self) -> bool {
        matches!(self, Error::Api(kube::Error::Api(status)) if status.code == 404)
    }

    /// Whether the write was made against an object that has changed meanwhile, which the next event mends.
    fn is_conflict(&self) -> bool {
        matches!(self, Error::Api(kube::Error::Api(status)) if status.code == 409)
    }
}

/// Runs all controllers until `shutdown` is cancelled.
///
/// `client` must be allowed everything (group `system:masters`).
///
/// # Errors
/// None while the API server answers: a controller that fails retries with backoff and logs it.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let (recorder, events) = Recorder::new(client.clone(), shutdown.clone());
    let world = Arc::new(World::new(client, recorder));
    let tasks = tokio_util::task::TaskTracker::new();
    tasks.spawn(events);

    deployment::start(&world, &tasks, &shutdown);
    replicaset::start(&world, &tasks, &shutdown);
    scheduler::start(&world, &tasks, &shutdown);
    endpointslice::start(&world, &tasks, &shutdown);
    endpoints::start(&world, &tasks, &shutdown);
    job::start(&world, &tasks, &shutdown);
    horizontal::start(&world, &tasks, &shutdown);
    serviceaccount::start(&world, &config, &tasks, &shutdown);
    let collector = gc::start(&world, &tasks, &shutdown);
    namespace::start(&world, collector, &tasks, &shutdown);
    housekeeping::start(&world, &tasks, &shutdown);
    // The watches come last: every controller has said by now what it wants to hear of.
    world.watch(&tasks, &shutdown);

    tasks.close();
    shutdown.cancelled().await;
    tasks.wait().await;
    Ok(())
}
