//! Starting and stopping the node, and giving each pod its worker.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::cgroup::Hierarchies;
use crate::context::{Context, Exits};
use crate::error::Error;
use crate::events::Recorder;
use crate::images::ImageSource;
use crate::logs::Logs;
use crate::network::{Network, NetworkConfig};
use crate::objects::Objects;
use crate::pod::{Handle, spawn};
use crate::policy::Policies;
use crate::register::{self, Facts};
use crate::rights::Rights;
use crate::runtime::{Runtime, RuntimeConfig};
use crate::server;

/// Settings of a [`Node`].
#[derive(Clone)]
pub struct Config {
    /// The name of the Node object; pods with this `spec.nodeName` run here.
    pub node_name: String,
    /// Pods, volumes, logs and run state live below it. One node at a time.
    pub data_dir: PathBuf,
    /// A client with a node's rights.
    pub client: Client,
    /// Where images come from; an `Arc<cluster_images::Store>` is one.
    pub images: Arc<dyn ImageSource>,
    /// How pods are connected.
    pub network: NetworkConfig,
    /// Who may connect to whom; fed by this node, and asked by whoever connects in place of a pod.
    pub policies: Policies,
    /// Where the node's own connections to pods come from; without it, from wherever the system chooses.
    pub origin: Option<cluster_firewall::Origin>,
    /// The program whose main function calls [`crate::runtime::helper_main`] for
    /// [`crate::runtime::HELPER_ARGUMENT`]; normally `/proc/self/exe`.
    pub helper_exe: PathBuf,
    /// How many helper processes. Each starts many containers side by side; several limit what the loss of one would cost.
    pub helpers: usize,
    /// Processes and threads that one container may have; None for no limit.
    pub pids_limit: Option<i64>,
    /// How many pods the node takes.
    pub max_pods: u32,
    /// What the Node object shows as kubelet version.
    pub version: String,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("node_name", &self.node_name)
            .field("data_dir", &self.data_dir)
            .field("network", &self.network)
            .field("helper_exe", &self.helper_exe)
            .finish_non_exhaustive()
    }
}

/// Processes that each helper keeps ready. With two helpers, which containers are given to in turn, they are those of three
/// pods with two containers each.
const PARKED: usize = 3;

type Workers = Arc<Mutex<HashMap<String, Handle>>>;

/// A running node agent.
pub struct Node {
    context: Arc<Context>,
    facts: Facts,
    shutdown: CancellationToken,
    hierarchies: Hierarchies,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Node {
    /// Clears away what a former process left, registers the node and begins to run its pods.
    ///
    /// # Errors
    /// [`Error::Unprivileged`] with all that is missing; folders, network, helpers and the API as named.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let hierarchies = Hierarchies::detect().unwrap_or_default();
        let data_dir = config.data_dir.clone();
        let folder = |path: &Path| {
            std::fs::create_dir_all(path).map_err(|cause| Error::Folder { path: path.to_owned(), cause })
        };
        folder(&data_dir)?;
        let data_dir =
            data_dir.canonicalize().map_err(|cause| Error::Folder { path: data_dir.clone(), cause })?;
        let state_dir = data_dir.join("run");
        let cgroup_prefix = format!("/cluster-node-{:08x}", fingerprint(&data_dir));
        clean(&hierarchies, &cgroup_prefix, &data_dir).await;
        let rights = Rights::find(&hierarchies, &cgroup_prefix)?;
        if !rights.unenforced.is_empty() {
            warn!(
                controllers = rights.unenforced.join(", "),
                "limits of containers are not enforced for these; the Node object says so too (condition LimitsNotEnforced)"
            );
        }
        folder(&state_dir)?;
        folder(&data_dir.join("pods"))?;
        let network = Network::start(config.network.clone()).await?;
        let runtime_config = RuntimeConfig {
            helper_exe: config.helper_exe.clone(),
            state_dir,
            helpers: config.helpers,
            parked: PARKED,
            cgroup_parent: rights.cgroups.then(|| cgroup_prefix.clone()),
            hierarchies: None,
        };
        let (runtime, mut ended) = Runtime::start(runtime_config).await?;
        let shutdown = CancellationToken::new();
        let exits = Exits::default();
        tokio::spawn({
            let exits = exits.clone();
            async move {
                while let Some(event) = ended.recv().await {
                    exits.deliver(&event.id, event.exit);
                }
            }
        });
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if rights.cgroups
            && let Err(error) = hierarchies.favour(&cgroup_prefix, cpus)
        {
            warn!(%error, "containers share the processor with this process on equal terms");
        }
        let facts = Facts {
            name: config.node_name.clone(),
            address: config.network.node_ip,
            pod_cidr: config.network.pod_cidr.to_string(),
            cpus,
            memory_bytes: Facts::memory_of_machine(),
            disk_bytes: disk_bytes(&data_dir),
            version: config.version.clone(),
            max_pods: config.max_pods,
            unenforced: rights.unenforced,
        };
        let uid = register::register(&config.client, &facts).await.map_err(Box::new)?;
        tokio::spawn(register::heartbeat(config.client.clone(), facts.name.clone(), uid, shutdown.clone()));
        let context = Arc::new(Context {
            node_name: config.node_name.clone(),
            logs: Logs::new(data_dir.join("logs").join("pods")),
            data_dir,
            client: config.client.clone(),
            images: config.images,
            image_uses: crate::images::collect::Uses::default(),
            runtime,
            network,
            network_config: config.network,
            policies: config.policies,
            origin: config.origin,
            events: Recorder::start(config.client.clone(), &config.node_name),
            objects: Objects::start(&config.client, &shutdown),
            exits,
            closing: shutdown.clone(),
            cgroup_prefix,
            capabilities: rights.capabilities,
            pids_limit: config.pids_limit,
            cpu_milli: i64::try_from(cpus).unwrap_or(1) * 1000,
            memory: facts.memory_bytes,
            pods: dashmap::DashMap::new(),
        });
        let policies = context.policies.clone();
        tokio::spawn(policies.run(context.client.clone(), context.network.clone(), shutdown.clone()));
        tokio::spawn(watch_pods(Arc::clone(&context), shutdown.clone()));
        tokio::spawn(crate::images::collect::run(Arc::clone(&context)));
        Ok(Self { context, facts, shutdown, hierarchies })
    }

    /// The paths of a kubelet's own server: container logs, exec, attach, port-forward, figures.
    pub fn router(&self) -> axum::Router {
        server::router(Arc::clone(&self.context))
    }

    /// Stops all containers (SIGTERM, two seconds, SIGKILL) and removes what they used. The pods' objects stay, so
    /// that they are started again with the node.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        let live: Vec<_> = self
            .context
            .pods
            .iter()
            .flat_map(|pod| pod.live.lock().values().cloned().collect::<Vec<_>>())
            .collect();
        info!(containers = live.len(), "stopping all containers");
        for container in &live {
            let _ = self.context.runtime.signal(&container.id, container.stop_signal).await;
        }
        let gone = async {
            while self.context.pods.iter().any(|pod| !pod.live.lock().is_empty()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), gone).await.is_err() {
            debug!("some containers do not end by themselves and are killed");
        }
        register::unready(&self.context.client, &self.facts).await;
        for pod in &self.context.pods {
            if let Some(network) = pod.network.lock().take() {
                self.context.network.release(&network);
            }
        }
        let (hierarchies, prefix) = (self.hierarchies.clone(), self.context.cgroup_prefix.clone());
        let _ = tokio::task::spawn_blocking(move || hierarchies.kill_and_remove(&prefix)).await;
        self.context.network.close().await;
    }
}

/// FNV-1a: short, and the same in each version of the program.
fn fingerprint(path: &Path) -> u32 {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn disk_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |stat| {
        // The types differ between architectures.
        #[allow(clippy::useless_conversion)]
        let (blocks, size) = (u64::from(stat.blocks()), u64::from(stat.fragment_size()));
        blocks * size
    })
}

/// Kills what a former process left running and removes its run state. Pods' volumes and logs stay: their pods may
/// still be wanted.
async fn clean(hierarchies: &Hierarchies, prefix: &str, data_dir: &Path) {
    let (hierarchies, prefix, data_dir) = (hierarchies.clone(), prefix.to_owned(), data_dir.to_owned());
    let cleaned = tokio::task::spawn_blocking(move || {
        let killed = hierarchies.kill_and_remove(&prefix);
        if killed > 0 {
            info!(killed, "ended processes of a former run");
        }
        let _ = std::fs::remove_dir_all(data_dir.join("run"));
        for pod in std::fs::read_dir(data_dir.join("pods")).into_iter().flatten().flatten() {
            for name in ["containers", "termination"] {
                let _ = std::fs::remove_dir_all(pod.path().join(name));
            }
        }
    });
    let _ = cleaned.await;
}

/// Follows the pods of this node.
async fn watch_pods(context: Arc<Context>, shutdown: CancellationToken) {
    let api: kube::Api<Pod> = kube::Api::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name));
    let events = watcher(api, config).default_backoff();
    let mut events = std::pin::pin!(events.take_until(shutdown.cancelled_owned()));
    let workers: Workers = Arc::default();
    let ended = Arc::new(Notify::new());
    let mut listed: Option<HashMap<String, Pod>> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(pod)) => apply(&context, &workers, &ended, pod),
            Ok(watcher::Event::Delete(pod)) => {
                if let Some(worker) = workers.lock().get(&uid(&pod)) {
                    worker.gone();
                }
            }
            Ok(watcher::Event::Init) => listed = Some(HashMap::new()),
            Ok(watcher::Event::InitApply(pod)) => {
                if let Some(listed) = &mut listed {
                    listed.insert(uid(&pod), pod.clone());
                }
                apply(&context, &workers, &ended, pod);
            }
            Ok(watcher::Event::InitDone) => {
                if let Some(listed) = listed.take() {
                    for (uid, worker) in workers.lock().iter() {
                        if !listed.contains_key(uid) {
                            worker.gone();
                        }
                    }
                    forget_others(&context, listed.into_keys().collect()).await;
                }
            }
            Err(error) => warn!(%error, "the watch of pods is interrupted"),
        }
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn apply(context: &Arc<Context>, workers: &Workers, ended: &Arc<Notify>, pod: Pod) {
    let uid = uid(&pod);
    context.policies.pod_changed(&pod);
    let mut known = workers.lock();
    if let Some(worker) = known.get(&uid) {
        worker.changed(pod);
        return;
    }
    let handle = {
        let (workers, uid, ended) = (Arc::clone(workers), uid.clone(), Arc::clone(ended));
        let policies = context.policies.clone();
        spawn(Arc::clone(context), pod, move || {
            workers.lock().remove(&uid);
            policies.pod_gone(&uid);
            ended.notify_waiters();
        })
    };
    known.insert(uid, handle);
}

/// Removes folders and logs of pods that the API no longer has.
async fn forget_others(context: &Context, uids: std::collections::HashSet<String>) {
    let (pods, logs) = (context.data_dir.join("pods"), context.data_dir.join("logs").join("pods"));
    let forgotten = tokio::task::spawn_blocking(move || {
        for (folder, separator) in [(pods, None), (logs, Some('_'))] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let uid = separator.map_or(name.as_str(), |c| name.rsplit(c).next().unwrap_or_default());
                if !uids.contains(uid) {
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            }
        }
    });
    let _ = forgotten.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_stable() {
        assert_eq!(fingerprint(Path::new("")), 0x811c_9dc5);
        assert_eq!(fingerprint(Path::new("a")), 0xe40c_292c);
        assert_ne!(fingerprint(Path::new("/a")), fingerprint(Path::new("/b")));
    }
}
