//! What all pods of a node share.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use dashmap::DashMap;
use kube::Client;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

use crate::events::Recorder;
use crate::images::ImageSource;
use crate::logs::Logs;
use crate::network::{Network, NetworkConfig, PodNetwork};
use crate::objects::Objects;
use crate::pod::container::Live;
use crate::runtime::{Exit, Runtime, Streams};

pub(crate) struct Context {
    pub(crate) node_name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) client: Client,
    pub(crate) images: Arc<dyn ImageSource>,
    /// Which of them pods have.
    pub(crate) image_uses: crate::images::collect::Uses,
    pub(crate) runtime: Runtime,
    pub(crate) network: Network,
    pub(crate) network_config: NetworkConfig,
    pub(crate) policies: crate::policy::Policies,
    /// Where the node's own connections to pods come from.
    pub(crate) origin: Option<cluster_firewall::Origin>,
    pub(crate) logs: Logs,
    pub(crate) events: Recorder,
    pub(crate) objects: Objects,
    pub(crate) exits: Exits,
    /// The node is being stopped: pods are left as they are, to be started again with it.
    pub(crate) closing: tokio_util::sync::CancellationToken,
    /// The parent of all cgroups of this instance.
    pub(crate) cgroup_prefix: String,
    /// Capabilities the node could pass on, a bit each.
    pub(crate) capabilities: u64,
    pub(crate) pids_limit: Option<i64>,
    pub(crate) cpu_milli: i64,
    pub(crate) memory: i64,
    /// Pods by namespace and name, for logs and exec.
    pub(crate) pods: DashMap<(String, String), Arc<PodView>>,
}

/// What others may ask of a running pod.
pub(crate) struct PodView {
    pub(crate) uid: String,
    pub(crate) log_dir: PathBuf,
    /// Namespaces, once they are there.
    pub(crate) network: Mutex<Option<Arc<PodNetwork>>>,
    /// Running containers by name.
    pub(crate) live: Mutex<HashMap<String, Arc<Live>>>,
    /// The number of each container's latest run, by name.
    pub(crate) attempts: Mutex<HashMap<String, i32>>,
}

/// Who waits for the end of which process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exits {
    waiting: Arc<Mutex<HashMap<String, oneshot::Sender<Exit>>>>,
}

impl Exits {
    /// To be called before the start, so that no exit is missed.
    pub(crate) fn expect(&self, id: &str) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().insert(id.to_owned(), sender);
        receiver
    }

    pub(crate) fn forget(&self, id: &str) {
        self.waiting.lock().remove(id);
    }

    pub(crate) fn deliver(&self, id: &str, exit: Exit) {
        if let Some(sender) = self.waiting.lock().remove(id) {
            let _ = sender.send(exit);
        }
    }
}

/// How much of a probe's or hook's output is kept for its message.
const KEPT_OUTPUT: u64 = 10 * 1024;

impl Context {
    pub(crate) fn host_ip(&self) -> Ipv4Addr {
        self.network_config.node_ip
    }

    /// Runs a command in a container to its end; its exit code and the beginning of its output.
    pub(crate) async fn exec_collect(
        &self,
        live: &Live,
        args: Vec<String>,
    ) -> Result<(i32, Vec<u8>), String> {
        let id = crate::new_id();
        let (reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
        let second = writer.try_clone().map_err(|error| error.to_string())?;
        let exited = self.exits.expect(&id);
        let process = crate::spec::Process { args, terminal: false, ..live.process.clone() };
        let streams = Streams::Pipes { stdout: writer.into(), stderr: second.into(), stdin: None };
        if let Err(error) = self.runtime.exec(&live.id, &id, &process, streams).await {
            self.exits.forget(&id);
            return Err(error.to_string());
        }
        // Whoever loses interest (a timeout) must not leave the process behind.
        let guard = KillOnDrop { runtime: self.runtime.clone(), id: Some(id) };
        let mut output = Vec::new();
        let pipe =
            tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(|e| e.to_string())?;
        let mut limited = pipe.take(KEPT_OUTPUT);
        let read = limited.read_to_end(&mut output);
        let exit = {
            let mut read = std::pin::pin!(read);
            let mut exited = std::pin::pin!(exited);
            tokio::select! {
                exit = &mut exited => {
                    // A child that keeps the pipe open must not hold the answer up.
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(50), &mut read).await;
                    exit
                }
                _ = &mut read => exited.await,
            }
        };
        guard.disarm();
        let exit = exit.map_err(|_| "the container helper has ended".to_owned())?;
        Ok((exit.code, output))
    }
}

struct KillOnDrop {
    runtime: Runtime,
    id: Option<String>,
}

impl KillOnDrop {
    fn disarm(mut self) {
        self.id = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let runtime = self.runtime.clone();
            tokio::spawn(async move {
                let _ = runtime.signal(&id, 9).await;
            });
        }
    }
}
