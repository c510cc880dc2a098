//! The runtime and the network under the tests' own hand, and the program that containers run.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster_node::cgroup::Hierarchies;
use cluster_node::network::{Claim, Network, NetworkConfig};
use cluster_node::runtime::{
    Exit, Exited, HELPER_ARGUMENT, Overlay, Runtime, RuntimeConfig, RuntimeError, StartContainer, Started,
    Streams,
};
use cluster_node::spec::{self, Container, Process};
use tokio::sync::mpsc;

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runtime: Runtime,
    pub(crate) exits: mpsc::UnboundedReceiver<Exited>,
    pub(crate) prefix: String,
    pub(crate) count: u32,
}

pub(crate) fn payload_path() -> PathBuf {
    std::env::temp_dir().join(format!("cluster-node-payload-{}", std::process::id()))
}

/// The program that containers run, compiled once.
pub(crate) fn payload() -> PathBuf {
    let out = payload_path();
    if !out.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payload.rs.txt");
        let status = std::process::Command::new("rustc")
            .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "payload", "-O"])
            .args(["-C", "target-feature=+crt-static", "-o"])
            .arg(&out)
            .arg(source)
            .status()
            .expect("rustc can be run");
        assert!(status.success());
    }
    out
}

impl World {
    pub(crate) async fn new(helpers: usize) -> Self {
        Self::with(helpers, 0, None).await
    }

    pub(crate) async fn with(helpers: usize, parked: usize, hierarchies: Option<Hierarchies>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        std::fs::create_dir_all(layer.join("tmp")).unwrap();
        std::fs::copy(payload(), layer.join("payload")).unwrap();
        let prefix = format!(
            "/cluster-node-test-{}-{}",
            std::process::id(),
            dir.path().file_name().unwrap().display()
        )
        .replace('.', "");
        let config = RuntimeConfig {
            helper_exe: "/proc/self/exe".into(),
            state_dir: dir.path().join("run"),
            helpers,
            parked,
            cgroup_parent: Some(prefix.clone()),
            hierarchies,
        };
        let (runtime, exits) = Runtime::start(config).await.unwrap();
        Self { dir, runtime, exits, prefix, count: 0 }
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    pub(crate) fn container(&self, args: &[&str]) -> Container {
        Container {
            process: Process {
                args: std::iter::once("/payload").chain(args.iter().copied()).map(str::to_owned).collect(),
                capabilities: spec::capabilities(false, &[], &[], AVAILABLE).unwrap(),
                ..Process::default()
            },
            ..Container::default()
        }
    }

    pub(crate) async fn begin(
        &mut self,
        container: Container,
        streams: Streams,
    ) -> (String, Result<Started, RuntimeError>) {
        self.count += 1;
        let id = format!("c{}", self.count);
        let folder = self.dir.path().join(&id);
        let overlay =
            Overlay { lower: vec![self.layer()], upper: folder.join("upper"), work: folder.join("work") };
        let start = StartContainer { id: id.clone(), container, overlay, streams };
        let started = self.runtime.start_container(start).await;
        (id, started)
    }

    /// Starts it and returns its id and its output.
    pub(crate) async fn start(&mut self, container: Container) -> (String, std::io::PipeReader) {
        let (reader, streams) = pipes();
        let begun = Instant::now();
        let (id, started) = self.begin(container, streams).await;
        let started = started.unwrap();
        if std::env::var_os("SHOW").is_some() {
            println!("{id}: {:?} {started:?}", begun.elapsed());
        }
        (id, reader)
    }

    /// Why it does not start.
    pub(crate) async fn refusal(&mut self, container: Container) -> RuntimeError {
        let (_reader, streams) = pipes();
        self.begin(container, streams).await.1.unwrap_err()
    }

    pub(crate) async fn exit(&mut self, id: &str) -> Exit {
        loop {
            let exited = self.exits.recv().await.unwrap();
            if exited.id == id {
                self.runtime.remove(id).await.unwrap();
                return exited.exit;
            }
        }
    }

    pub(crate) async fn output(&mut self, container: Container) -> String {
        let (id, mut reader) = self.start(container).await;
        self.exit(&id).await;
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }
}

impl World {
    pub(crate) fn parked_pids(&self) -> Vec<i32> {
        processes(self.dir.path(), true)
    }

    /// Waits until that many processes are ready.
    pub(crate) async fn parked(&self, count: usize) {
        let begun = Instant::now();
        while self.parked_pids().len() < count {
            assert!(begun.elapsed() < Duration::from_secs(10), "the pool is not filled");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// All capabilities but CAP_SYS_RESOURCE, which machines like to withhold.
pub(crate) const AVAILABLE: u64 = !(1 << 24);

pub(crate) fn pipes() -> (std::io::PipeReader, Streams) {
    let (reader, writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    (reader, Streams::Pipes { stdout: writer.into(), stderr: stderr.into(), stdin: None })
}

impl Drop for World {
    fn drop(&mut self) {
        Hierarchies::detect().unwrap().kill_and_remove(&self.prefix);
    }
}

pub(crate) fn my_pod() -> Claim {
    Claim { hostname: "my-pod".to_owned(), ..Claim::default() }
}

pub(crate) async fn network() -> (Network, NetworkConfig) {
    let number = std::process::id() % 200 + 20;
    let config = NetworkConfig {
        bridge: format!("cnt{number}"),
        node_ip: format!("10.{number}.0.1").parse().unwrap(),
        pod_cidr: format!("10.{number}.0.0/17").parse().unwrap(),
        first_pod_ip: 16,
        dns_ip: format!("10.{number}.128.10").parse().unwrap(),
        cluster_domain: "cluster.local".to_owned(),
        pool: 2,
    };
    (Network::start(config.clone()).await.unwrap(), config)
}

/// The helper that works on this folder.
pub(crate) fn helper_pid(dir: &Path) -> i32 {
    processes(dir, false).first().copied().unwrap_or(0)
}

/// The helpers of a folder, or the processes that they keep ready and that still carry their command line.
pub(crate) fn processes(dir: &Path, parked: bool) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if command.contains(HELPER_ARGUMENT)
            && command.contains(&dir.display().to_string())
            && (name == "parked\n") == parked
        {
            found.push(pid);
        }
    }
    found
}
