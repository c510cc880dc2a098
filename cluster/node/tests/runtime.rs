//! Real containers without an API: the runtime and the network under the tests' own hand. Needs root; without it each
//! test fails with the reason rather than passing silently.
//!
//! This program is its own helper, so it has a main function instead of the test harness.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster_node::network::{Network, NetworkConfig};
use cluster_node::runtime::{
    Exit, Exited, HELPER_ARGUMENT, Overlay, Runtime, RuntimeConfig, StartContainer, Streams, helper_main,
};
use cluster_node::spec::{self, Bind, Container, Limits, Process, User};
use tokio::sync::mpsc;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(HELPER_ARGUMENT) {
        helper_main();
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    type Test = (&'static str, fn() -> futures::future::BoxFuture<'static, ()>);
    let tests: [Test; 7] = [
        ("serves_in_its_own_network", || Box::pin(serves_in_its_own_network())),
        ("exit_codes_output_and_signals", || Box::pin(exit_codes_output_and_signals())),
        ("memory_limit", || Box::pin(memory_limit())),
        ("restrictions", || Box::pin(restrictions())),
        ("exec_in_a_container", || Box::pin(exec_in_a_container())),
        ("helpers_that_die_are_replaced", || Box::pin(helpers_that_die_are_replaced())),
        ("start_times", || Box::pin(start_times())),
    ];
    if std::env::args().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let cleanup = CleanUp;
    for (name, test) in tests {
        if filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
            let begun = Instant::now();
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test()).await.unwrap() });
            println!("test {name} ... ok ({:?})", begun.elapsed());
        }
    }
    drop(cleanup);
}

/// Removes the compiled program, also when a test fails.
struct CleanUp;

impl Drop for CleanUp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(payload_path());
    }
}

struct World {
    dir: tempfile::TempDir,
    runtime: Runtime,
    exits: mpsc::UnboundedReceiver<Exited>,
    prefix: String,
    count: u32,
}

fn payload_path() -> PathBuf {
    std::env::temp_dir().join(format!("cluster-node-payload-{}", std::process::id()))
}

/// The program that containers run, compiled once.
fn payload() -> PathBuf {
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
    async fn new(helpers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        std::fs::create_dir_all(layer.join("tmp")).unwrap();
        std::fs::copy(payload(), layer.join("payload")).unwrap();
        let config =
            RuntimeConfig { helper_exe: "/proc/self/exe".into(), state_dir: dir.path().join("run"), helpers };
        let (runtime, exits) = Runtime::start(config).await.unwrap();
        let prefix = format!(
            "/cluster-node-test-{}-{}",
            std::process::id(),
            dir.path().file_name().unwrap().display()
        );
        Self { dir, runtime, exits, prefix: prefix.replace('.', ""), count: 0 }
    }

    fn container(&self, args: &[&str]) -> Container {
        Container {
            process: Process {
                args: std::iter::once("/payload").chain(args.iter().copied()).map(str::to_owned).collect(),
                capabilities: spec::capabilities(false, &[], &[], !(1 << 24)).unwrap(),
                ..Process::default()
            },
            ..Container::default()
        }
    }

    /// Starts it and returns its id and its output.
    async fn start(&mut self, mut container: Container) -> (String, std::io::PipeReader) {
        self.count += 1;
        let id = format!("c{}", self.count);
        let folder = self.dir.path().join(&id);
        container.rootfs = folder.join("rootfs");
        container.cgroup = format!("{}/{id}", self.prefix);
        let overlay = Overlay {
            lower: vec![self.dir.path().join("layer")],
            upper: folder.join("upper"),
            work: folder.join("work"),
            target: folder.join("rootfs"),
        };
        let (reader, writer) = std::io::pipe().unwrap();
        let stderr = writer.try_clone().unwrap();
        let start = StartContainer {
            id: id.clone(),
            bundle: folder,
            spec: spec::config(&container),
            overlay: Some(overlay),
            cgroup: container.cgroup.clone(),
            streams: Streams::Pipes { stdout: writer.into(), stderr: stderr.into(), stdin: None },
        };
        let begun = Instant::now();
        let started = self.runtime.start_container(start).await.unwrap();
        if std::env::var_os("SHOW").is_some() {
            println!("{id}: {:?} {started:?}", begun.elapsed());
        }
        (id, reader)
    }

    async fn exit(&mut self, id: &str) -> Exit {
        loop {
            let exited = self.exits.recv().await.unwrap();
            if exited.id == id {
                self.runtime.remove(id).await.unwrap();
                return exited.exit;
            }
        }
    }

    async fn output(&mut self, container: Container) -> String {
        let (id, mut reader) = self.start(container).await;
        self.exit(&id).await;
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        cluster_node::cgroup::Hierarchies::detect().unwrap().kill_and_remove(&self.prefix);
    }
}

async fn network() -> (Network, NetworkConfig) {
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

async fn serves_in_its_own_network() {
    let mut world = World::new(1).await;
    let (network, _) = network().await;
    let pod = network.claim("my-pod").await.unwrap();
    let mut container = world.container(&["serve", "80"]);
    container.net = pod.net_path();
    container.ipc = Some(pod.ipc_path());
    container.uts = pod.uts_path();
    container.process.user = User { uid: 65532, gid: 65532, groups: vec![7] };
    container.process.capabilities = Vec::new();
    let (id, reader) = world.start(container).await;
    let address = pod.address.unwrap();
    let begun = Instant::now();
    let mut stream = loop {
        match std::net::TcpStream::connect((address, 80)) {
            Ok(stream) => break stream,
            Err(_) if begun.elapsed() < Duration::from_secs(5) => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(),
        nix::unistd::gethostname().unwrap().to_string_lossy().into_owned() + "\n",
        "the machine keeps its own name"
    );
    // As port-forward does it.
    network.connect_inside(&pod, 80).await.unwrap();
    world.runtime.signal(&id, 9).await.unwrap();
    assert_eq!(world.exit(&id).await, Exit { code: 137, signal: Some(9), oom: false });
    let mut text = String::new();
    { reader }.read_to_string(&mut text).unwrap();
    assert_eq!(text, "listening as uid 65532\n", "an ordinary user listens on port 80");
    network.release(&pod);
    network.close().await;
}

async fn exit_codes_output_and_signals() {
    let mut world = World::new(2).await;
    let (id, mut reader) = world.start(world.container(&["exit", "7"])).await;
    assert_eq!(world.exit(&id).await, Exit { code: 7, signal: None, oom: false });
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "going with 7\n");
    let missing = Container {
        process: Process { args: vec!["/nothing".to_owned()], ..Process::default() },
        ..world.container(&[])
    };
    let folder = world.dir.path().join("bad");
    let (_reader, writer) = std::io::pipe().unwrap();
    let start = StartContainer {
        id: "bad".to_owned(),
        bundle: folder.clone(),
        spec: spec::config(&Container {
            rootfs: folder.join("rootfs"),
            cgroup: format!("{}/bad", world.prefix),
            ..missing
        }),
        overlay: Some(Overlay {
            lower: vec![world.dir.path().join("layer")],
            upper: folder.join("upper"),
            work: folder.join("work"),
            target: folder.join("rootfs"),
        }),
        cgroup: format!("{}/bad", world.prefix),
        streams: Streams::Pipes {
            stdout: writer.try_clone().unwrap().into(),
            stderr: writer.into(),
            stdin: None,
        },
    };
    let error = world.runtime.start_container(start).await.unwrap_err().to_string();
    assert!(error.contains("/nothing"), "{error}");
}

async fn memory_limit() {
    let mut world = World::new(1).await;
    let mut container = world.container(&["eat"]);
    container.limits = Limits { memory: Some(32 << 20), pids: Some(10), ..Limits::default() };
    let (id, _reader) = world.start(container).await;
    assert_eq!(world.exit(&id).await, Exit { code: 137, signal: Some(9), oom: true });
}

async fn restrictions() {
    let mut world = World::new(1).await;
    let shared = world.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("greeting"), "from outside\n").unwrap();
    let bind = Bind { source: shared, target: "/mnt/shared".to_owned(), read_only: true, propagate: false };
    let with = |args: &[&str]| Container { binds: vec![bind.clone()], ..world.container(args) };
    let (read, write) = (with(&["cat", "/mnt/shared/greeting"]), with(&["write", "/mnt/shared/x"]));
    let read_only = Container { read_only_root: true, ..world.container(&["write", "/tmp/x"]) };
    let kernel = world.container(&["write", "/proc/sys/kernel/hostname"]);
    let plain = world.container(&["write", "/tmp/x"]);
    assert_eq!(world.output(read).await, "from outside\n");
    assert!(world.output(write).await.contains("Read-only"));
    assert!(world.output(read_only).await.contains("Read-only"));
    assert!(world.output(kernel).await.contains("Read-only"));
    assert_eq!(world.output(plain).await, "written\n");
    assert!(!world.dir.path().join("layer/tmp/x").exists(), "layers are shared and stay as they are");
}

async fn exec_in_a_container() {
    let mut world = World::new(2).await;
    let (id, _reader) = world.start(world.container(&["sleep"])).await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (stdin, mut input) = std::io::pipe().unwrap();
    let process = spec::process(&Process {
        args: vec!["/payload".to_owned(), "stdin".to_owned()],
        user: User { uid: 1000, gid: 1000, groups: Vec::new() },
        ..Process::default()
    });
    let streams = Streams::Pipes {
        stdout: writer.try_clone().unwrap().into(),
        stderr: writer.into(),
        stdin: Some(stdin.into()),
    };
    world.runtime.exec(&id, "e1", world.dir.path(), &process, streams).await.unwrap();
    input.write_all(b"some words").unwrap();
    drop(input);
    let exited = world.exits.recv().await.unwrap();
    assert_eq!((exited.id.as_str(), exited.exit.code), ("e1", 0));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got some words");
    assert!(world.runtime.stats(&id).unwrap().memory_bytes > 0);
    world.runtime.signal(&id, 9).await.unwrap();
    world.exit(&id).await;
}

async fn helpers_that_die_are_replaced() {
    let mut world = World::new(1).await;
    let (id, _reader) = world.start(world.container(&["sleep"])).await;
    let helper = helper_pid(world.dir.path());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(world.exit(&id).await.code, 137, "its container has ended with it");
    let begun = Instant::now();
    while helper_pid(world.dir.path()) == 0 || helper_pid(world.dir.path()) == helper {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let echo = world.container(&["echo", "again"]);
    assert_eq!(world.output(echo).await, "again\n");
}

/// The helper that works on this folder.
fn helper_pid(dir: &Path) -> i32 {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if command.contains(HELPER_ARGUMENT) && command.contains(&dir.display().to_string()) {
            return pid;
        }
    }
    0
}

/// Not an assertion about speed, which a busy machine would break, but the figures to look at: `SHOW=1`.
async fn start_times() {
    let mut world = World::new(2).await;
    let (network, _) = network().await;
    let mut times = Vec::new();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(if times.is_empty() { 300 } else { 120 })).await;
        let begun = Instant::now();
        let pod = network.claim("my-pod").await.unwrap();
        let claimed = begun.elapsed();
        let mut container = world.container(&["serve", "80"]);
        container.net = pod.net_path();
        container.ipc = Some(pod.ipc_path());
        container.uts = pod.uts_path();
        container.limits =
            Limits { cpu_shares: Some(100), memory: Some(64 << 20), pids: Some(99), cpu_quota_us: None };
        let (id, _reader) = world.start(container).await;
        let started = begun.elapsed();
        while std::net::TcpStream::connect((pod.address.unwrap(), 80)).is_err() {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        times.push((claimed, started, begun.elapsed()));
        world.runtime.signal(&id, 9).await.unwrap();
        world.exit(&id).await;
        network.release(&pod);
    }
    network.close().await;
    if std::env::var_os("SHOW").is_some() {
        times.iter().for_each(|(claimed, started, connected)| {
            println!("claimed {claimed:?} started {started:?} connected {connected:?}");
        });
    }
    assert_eq!(times.len(), 10);
}
