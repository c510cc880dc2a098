//! What all pods of a node share.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use dashmap::DashMap;
use kube::Client;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::events::Recorder;
use crate::images::ImageSource;
use crate::logs::Logs;
use crate::network::{Network, NetworkConfig, PodNetwork};
use crate::objects::Objects;
use crate::pod::container::Live;
use crate::pod::shared::Shared;
use crate::runtime::{Exit, Runtime, RuntimeError, Streams};
use crate::spec::Process;

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
    /// The processes that its containers share, if they do.
    pub(crate) processes: Shared,
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
const KEPT_OUTPUT: usize = 10 * 1024;

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
        let mut pipe =
            tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).map_err(|e| e.to_string())?;
        let exited = self.exits.expect(&id);
        let process = Process { args, terminal: false, ..live.process.clone() };
        let streams = Streams::Pipes { stdout: writer.into(), stderr: second.into(), stdin: None };
        let mut execution = Execution::begin(&self.runtime, &live.id, id.clone(), process, streams);
        if let Err(error) = execution.started().await {
            self.exits.forget(&id);
            execution.over();
            return Err(error.to_string());
        }
        let mut output = Vec::new();
        let exit = {
            let mut read = std::pin::pin!(beginning(&mut pipe, &mut output));
            let mut exited = std::pin::pin!(exited);
            tokio::select! {
                exit = &mut exited => {
                    // A child that keeps the pipe open must not hold the answer up.
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(50), &mut read).await;
                    exit
                }
                () = &mut read => exited.await,
            }
        };
        execution.over();
        let exit = exit.map_err(|_| "the container helper has ended".to_owned())?;
        Ok((exit.code, output))
    }
}

/// Reads to the end and keeps the beginning: whoever writes more than that must not be held up by it.
async fn beginning(from: &mut (impl AsyncRead + Unpin), kept: &mut Vec<u8>) {
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let room = KEPT_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
}

/// A process in a container for somebody who may lose interest (a timeout): it is not left behind then, also when it is only being started.
struct Execution {
    runtime: Runtime,
    id: String,
    starting: Option<JoinHandle<Result<(), RuntimeError>>>,
    over: bool,
}

impl Execution {
    fn begin(runtime: &Runtime, container: &str, id: String, process: Process, streams: Streams) -> Self {
        let starting = tokio::spawn({
            let (runtime, container, id) = (runtime.clone(), container.to_owned(), id.clone());
            async move { runtime.exec(&container, &id, &process, streams).await.map(drop) }
        });
        Self { runtime: runtime.clone(), id, starting: Some(starting), over: false }
    }

    async fn started(&mut self) -> Result<(), RuntimeError> {
        let Some(starting) = &mut self.starting else { return Ok(()) };
        let started = starting.await.unwrap_or(Err(RuntimeError::HelperGone));
        self.starting = None;
        started
    }

    /// It has ended by itself.
    fn over(mut self) {
        self.over = true;
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let (runtime, id, starting) = (self.runtime.clone(), self.id.clone(), self.starting.take());
        tokio::spawn(async move {
            if let Some(starting) = starting {
                let _ = starting.await;
            }
            let _ = runtime.signal(&id, 9).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn much_output_is_read_to_its_end_and_little_of_it_kept() {
        let (mut reader, mut writer) = tokio::io::duplex(64);
        let writing = tokio::spawn(async move { writer.write_all(&[b'x'; 10 * KEPT_OUTPUT]).await });
        let mut kept = b"".to_vec();
        beginning(&mut reader, &mut kept).await;
        assert_eq!(kept, [b'x'; KEPT_OUTPUT]);
        // Whoever writes is not kept waiting: otherwise this would never end.
        tokio::time::timeout(std::time::Duration::from_secs(5), writing).await.unwrap().unwrap().unwrap();
    }
}
