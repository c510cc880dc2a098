//! Real containers without an API: the runtime and the network under the tests' own hand. Needs root; without it each
//! test fails with the reason rather than passing silently.
//!
//! This program is its own helper, so it has a main function instead of the test harness.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "runtime/oracle.rs"]
mod oracle;
#[path = "runtime/rootless.rs"]
mod rootless;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster_node::cgroup::Hierarchies;
use cluster_node::network::{Network, NetworkConfig};
use cluster_node::runtime::{
    Exit, Exited, HELPER_ARGUMENT, Overlay, Runtime, RuntimeConfig, RuntimeError, StartContainer, Started,
    Streams, helper_main,
};
use cluster_node::spec::{self, Bind, Container, Limits, Process, Seccomp, User};
use oracle::Oracle;
use tokio::sync::mpsc;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(HELPER_ARGUMENT) {
        helper_main();
    }
    match std::env::args().nth(1).as_deref() {
        Some(oracle::ARGUMENT) => return oracle::main(),
        Some(rootless::ARGUMENT) => return rootless::main(),
        _ => {}
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    type Test = (&'static str, fn() -> futures::future::BoxFuture<'static, ()>);
    macro_rules! tests {
        ($($name:ident),* $(,)?) => { [$((stringify!($name), || Box::pin($name()))),*] };
    }
    let tests: [Test; 23] = tests![
        serves_in_its_own_network,
        exit_codes_output_and_signals,
        programs_that_cannot_be_executed,
        a_program_sees_what_another_runtime_shows_it,
        memory_limit,
        memory_limit_of_a_child,
        a_container_sees_its_own_cgroups,
        restrictions,
        the_nodes_umask_is_no_containers,
        capabilities_are_dropped,
        devices_are_refused,
        privileged_containers_have_all_devices,
        seccomp_blocks_system_calls,
        a_terminal_of_its_own,
        exec_in_a_container,
        exec_with_a_terminal,
        volumes_in_memory_reach_parked_processes,
        parked_processes_are_used,
        version_two_cgroups,
        nothing_is_left,
        without_root,
        helpers_that_die_are_replaced,
        start_times,
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
        Self::with(helpers, 0, None).await
    }

    async fn with(helpers: usize, parked: usize, hierarchies: Option<Hierarchies>) -> Self {
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

    fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn container(&self, args: &[&str]) -> Container {
        Container {
            process: Process {
                args: std::iter::once("/payload").chain(args.iter().copied()).map(str::to_owned).collect(),
                capabilities: spec::capabilities(false, &[], &[], AVAILABLE).unwrap(),
                ..Process::default()
            },
            ..Container::default()
        }
    }

    async fn begin(
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
    async fn start(&mut self, container: Container) -> (String, std::io::PipeReader) {
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
    async fn refusal(&mut self, container: Container) -> RuntimeError {
        let (_reader, streams) = pipes();
        self.begin(container, streams).await.1.unwrap_err()
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

impl World {
    fn parked_pids(&self) -> Vec<i32> {
        processes(self.dir.path(), true)
    }

    /// Waits until that many processes are ready.
    async fn parked(&self, count: usize) {
        let begun = Instant::now();
        while self.parked_pids().len() < count {
            assert!(begun.elapsed() < Duration::from_secs(10), "the pool is not filled");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// All capabilities but CAP_SYS_RESOURCE, which machines like to withhold.
const AVAILABLE: u64 = !(1 << 24);

fn pipes() -> (std::io::PipeReader, Streams) {
    let (reader, writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    (reader, Streams::Pipes { stdout: writer.into(), stderr: stderr.into(), stdin: None })
}

impl Drop for World {
    fn drop(&mut self) {
        Hierarchies::detect().unwrap().kill_and_remove(&self.prefix);
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
    let pod = network.claim("my-pod", None).await.unwrap();
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
}

async fn programs_that_cannot_be_executed() {
    let mut world = World::new(1).await;
    let layer = world.layer();
    std::fs::write(layer.join("plain"), "text").unwrap();
    std::fs::write(layer.join("script"), "#!/no/such/shell\n").unwrap();
    std::fs::write(layer.join("garbage"), "\u{1}garbage").unwrap();
    for name in ["script", "garbage"] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(layer.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (program, expected) in [
        ("/nothing", "exec: \"/nothing\": stat /nothing: no such file or directory"),
        ("nothing", "exec: \"nothing\": executable file not found in $PATH"),
        ("/plain", "exec: \"/plain\": permission denied"),
        ("/script", "the interpreter or loader"),
        ("/garbage", "exec format error"),
        ("/tmp", "permission denied"),
    ] {
        let mut container = world.container(&[]);
        container.process.args = vec![program.to_owned()];
        let refusal = world.refusal(container).await;
        assert!(matches!(refusal, RuntimeError::Program(_)), "{refusal:?}");
        assert!(refusal.to_string().contains(expected), "{refusal}");
    }
    let mut container = world.container(&["echo"]);
    container.binds = vec![Bind {
        source: "/no/source".into(),
        sub_path: None,
        target: "/x".to_owned(),
        read_only: true,
        propagate: false,
    }];
    let refusal = world.refusal(container).await;
    assert!(matches!(refusal, RuntimeError::Refused(_)), "the node's fault, not the program's: {refusal:?}");
    let (id, _reader) = world.start(world.container(&["sleep"])).await;
    let exec = Process { args: vec!["/nothing".to_owned()], ..Process::default() };
    let refusal = world.runtime.exec(&id, "e", &exec, pipes().1).await.unwrap_err();
    assert!(matches!(refusal, RuntimeError::Program(_)), "{refusal:?}");
    let mut in_path = world.container(&["echo", "found"]);
    in_path.process.args[0] = "payload".to_owned();
    in_path.process.env = vec!["PATH=/bin:/".to_owned()];
    assert_eq!(world.output(in_path).await, "found\n");
}

/// The same containers under libcontainer: their programs must see the same, but for what is named here.
async fn a_program_sees_what_another_runtime_shows_it() {
    let mut world = World::new(1).await;
    let (network, _) = network().await;
    let pod = network.claim("my-pod", None).await.unwrap();
    let mut oracle = Oracle::new();
    let shared = world.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "").unwrap();
    std::os::unix::fs::symlink("/tmp", world.layer().join("link")).unwrap();
    let bind = |source: &Path, target: &str, read_only| Bind {
        source: source.to_owned(),
        sub_path: None,
        target: target.to_owned(),
        read_only,
        propagate: false,
    };
    let mut plain = world.container(&["look"]);
    plain.net = pod.net_path();
    plain.ipc = Some(pod.ipc_path());
    plain.uts = pod.uts_path();
    plain.process.env = vec!["A=b".to_owned(), "HOME=/root".to_owned()];
    let mut user = plain.clone();
    user.process.user = User { uid: 65532, gid: 100, groups: vec![7, 2000] };
    user.process.no_new_privileges = true;
    user.process.capabilities =
        spec::capabilities(false, &["SYS_PTRACE".to_owned()], &["ALL".to_owned()], AVAILABLE).unwrap();
    user.process.cwd = "/tmp".to_owned();
    user.read_only_root = true;
    let mut bound = plain.clone();
    bound.binds = vec![
        bind(&shared, "/mnt/deep/er", true),
        bind(&shared.join("file"), "/mnt/deep/er/file", true),
        bind(&shared.join("file"), "/link/file", false),
        bind(&shared.join("file"), "/dev/termination-log", false),
        bind(&shared, "/dev/shm", false),
    ];
    std::fs::create_dir(world.layer().join("work")).unwrap();
    bound.process.cwd = "/work".to_owned();
    let mut unmasked = plain.clone();
    unmasked.unmasked_proc = true;
    unmasked.process.user.groups = vec![5];
    for (name, container) in [("plain", plain), ("user", user), ("bound", bound), ("unmasked", unmasked)] {
        println!("  {name}");
        let (id, output) = oracle.start(&container, &world.layer());
        let theirs = loop {
            let text = std::fs::read_to_string(&output).unwrap();
            if text.contains("masked /proc/acpi") && text.ends_with('\n') {
                break text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        oracle.remove(&id);
        let ours = world.output(container).await;
        // Whatever this program was started with: a container ignores only what it chooses to, as Rust does with SIGPIPE.
        assert!(ours.contains("SigIgn:\t0000000000001000"), "{ours}");
        let (theirs, ours) = (seen(&theirs), seen(&ours));
        let missing: Vec<_> = theirs.difference(&ours).collect();
        let more: Vec<_> = ours.difference(&theirs).collect();
        assert!(
            missing.is_empty() && more.is_empty(),
            "{name}: only there: {missing:#?}\nonly here: {more:#?}"
        );
    }
    network.release(&pod);
    network.close().await;
}

fn seen(text: &str) -> std::collections::BTreeSet<String> {
    text.lines()
        .filter(|line| !line.starts_with("SigIgn") && !line.contains(" /sys/fs/cgroup"))
        .map(str::to_owned)
        .collect()
}

async fn memory_limit() {
    let mut world = World::new(1).await;
    let mut container = world.container(&["eat"]);
    container.limits = Limits { memory: Some(32 << 20), pids: Some(10), ..Limits::default() };
    let (id, _reader) = world.start(container).await;
    assert_eq!(world.exit(&id).await, Exit { code: 137, signal: Some(9), oom: true });
}

/// Language runtimes look there for how much they may use.
async fn a_container_sees_its_own_cgroups() {
    let mut world = World::new(1).await;
    let (network, _) = network().await;
    let pod = network.claim("my-pod", None).await.unwrap();
    let limit = match Hierarchies::detect().unwrap().unified() {
        true => "/sys/fs/cgroup/memory.max",
        false => "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    };
    let mut container = world.container(&["cat", limit, "/proc/self/cgroup"]);
    container.limits.memory = Some(64 << 20);
    container.net = pod.net_path();
    let mut write = container.clone();
    write.process.args = vec!["/payload".to_owned(), "write".to_owned(), limit.to_owned()];
    let said = world.output(container.clone()).await;
    assert!(said.starts_with("67108864\n"), "{said}");
    assert!(!said.contains(&world.prefix), "it is the root of what it sees: {said}");
    assert!(world.output(write).await.contains("Read-only"));
    container.process.args = vec!["/payload".to_owned()];
    let (id, _reader) = world.start(container).await;
    let look = Process {
        args: ["/payload", "cat", "/proc/self/cgroup"].map(str::to_owned).to_vec(),
        ..Process::default()
    };
    let (mut reader, streams) = pipes();
    world.runtime.exec(&id, "e", &look, streams).await.unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(said.lines().any(|line| line.ends_with(":memory:/") || line == "0::/"), "{said}");
    network.release(&pod);
    network.close().await;
}

/// The first process lives on and fails because its child was killed: that is what happened, also to Kubernetes.
async fn memory_limit_of_a_child() {
    let mut world = World::new(1).await;
    let mut container = world.container(&["let-eat"]);
    container.limits = Limits { memory: Some(32 << 20), ..Limits::default() };
    let (id, _reader) = world.start(container).await;
    assert_eq!(world.exit(&id).await, Exit { code: 3, signal: None, oom: true });
}

async fn restrictions() {
    let mut world = World::new(1).await;
    let shared = world.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("greeting"), "from outside\n").unwrap();
    let bind = Bind {
        source: shared,
        sub_path: None,
        target: "/mnt/shared".to_owned(),
        read_only: true,
        propagate: false,
    };
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
    let mut elsewhere = world.container(&["write", "x"]);
    elsewhere.process.cwd = "/is/made/first".to_owned();
    elsewhere.read_only_root = true;
    let helper = helper_pid(world.dir.path());
    let exe = std::fs::read_link(format!("/proc/{helper}/exe")).unwrap();
    let mounts = std::fs::read_to_string(format!("/proc/{helper}/mountinfo")).unwrap();
    let own = mounts.lines().find(|line| line.contains(&format!(" {} ro,", exe.display())));
    assert!(
        own.is_some(),
        "no process of a container can write to the program it was before: {}",
        exe.display()
    );
    assert!(
        world.output(elsewhere).await.contains("Read-only"),
        "a working folder that the image lacks is made"
    );
    assert!(!world.dir.path().join("layer/tmp/x").exists(), "layers are shared and stay as they are");
}

async fn the_nodes_umask_is_no_containers() {
    use std::os::unix::fs::PermissionsExt;

    use nix::sys::stat::{Mode, umask};
    payload();
    let usual = umask(Mode::from_bits_truncate(0o077));
    let mut world = World::new(1).await;
    umask(usual);
    for path in [world.layer(), world.layer().join("payload")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut container = world.container(&["cat", "/proc/self/status"]);
    container.process.user = User { uid: 1000, gid: 1000, groups: Vec::new() };
    let said = world.output(container).await;
    assert!(said.contains("Umask:\t0022"), "{said}");
}

async fn capabilities_are_dropped() {
    let mut world = World::new(1).await;
    let all = world.container(&["chown"]);
    let mut none = world.container(&["chown"]);
    none.process.capabilities = spec::capabilities(false, &[], &["ALL".to_owned()], AVAILABLE).unwrap();
    let mut look = none.clone();
    look.process.args[1] = "look".to_owned();
    assert_eq!(world.output(all).await, "changed\n");
    assert!(world.output(none).await.contains("not permitted"));
    let look = world.output(look).await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(look.contains(&format!("{set}:\t0000000000000000")), "{set} in {look}");
    }
    let mut named = world.container(&["stderr-by-name"]);
    named.process.user = User { uid: 1000, gid: 1000, groups: Vec::new() };
    assert_eq!(world.output(named).await, "opened\n", "a user may open its own streams by name");
    let mut limited = world.container(&["cat", "/proc/self/oom_score_adj", "/proc/self/limits"]);
    limited.process.oom_score_adj = Some(500);
    limited.process.rlimits = vec![spec::Rlimit { resource: 7, soft: 100, hard: 200 }];
    let limited = world.output(limited).await;
    assert!(limited.starts_with("500\n"), "{limited}");
    let files = limited.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["100", "200"]);
}

async fn devices_are_refused() {
    let mut world = World::new(1).await;
    let container = device(&world, false);
    assert!(world.output(container).await.contains("not permitted"));
}

/// A program that makes and opens the kernel's log, with all capabilities that this needs.
fn device(world: &World, privileged: bool) -> Container {
    let mut container = world.container(&["device"]);
    container.privileged = privileged;
    container.process.capabilities =
        spec::capabilities(privileged, &["SYSLOG".to_owned()], &[], AVAILABLE).unwrap();
    container
}

async fn privileged_containers_have_all_devices() {
    let mut world = World::new(1).await;
    let container = device(&world, true);
    let mut look = container.clone();
    look.process.args[1] = "look".to_owned();
    assert_eq!(world.output(container).await, "open\n");
    let look = world.output(look).await;
    assert!(look.contains("/dev/kmsg ") || !Path::new("/dev/kmsg").exists(), "{look}");
}

async fn seccomp_blocks_system_calls() {
    let mut world = World::new(1).await;
    let open = world.container(&["call", "unshare", "clone3"]);
    let mut closed = world.container(&["call", "unshare", "keyctl", "clone3"]);
    closed.process.seccomp = Seccomp::RuntimeDefault;
    let open = world.output(open).await;
    assert!(open.contains("unshare allowed") && !open.contains("not implemented"), "{open}");
    let mut for_ever = closed.clone();
    for_ever.process.no_new_privileges = true;
    for_ever.process.user = User { uid: 1000, gid: 1000, groups: Vec::new() };
    for container in [closed.clone(), for_ever] {
        let said = world.output(container).await;
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].contains("not permitted") && lines[1].contains("not permitted"), "{said}");
        assert!(lines[2].contains("not implemented"), "{said}");
    }
    // What is exec'd is held to it too.
    let (id, _reader) = world.start(world.container(&["sleep"])).await;
    let (mut reader, streams) = pipes();
    world.runtime.exec(&id, "e", &closed.process, streams).await.unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(said.contains("unshare Operation not permitted"), "{said}");
}

/// Types a line at a terminal of a size, and returns all that it showed.
fn converse(master: OwnedFd) -> String {
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let mut master = std::fs::File::from(master);
    master.write_all(b"some words\n").unwrap();
    let mut shown = Vec::new();
    // A terminal that nobody has open any more reads as an error.
    let _ = master.read_to_end(&mut shown);
    String::from_utf8(shown).unwrap()
}

async fn a_terminal_of_its_own() {
    let mut world = World::new(1).await;
    let mut container = world.container(&["tty"]);
    container.process.terminal = true;
    container.process.user = User { uid: 1000, gid: 1000, groups: Vec::new() };
    let (id, started) = world.begin(container, Streams::Terminal).await;
    let shown = converse(started.unwrap().terminal.unwrap());
    assert!(shown.contains("terminals true true true controlling true console true"), "{shown}");
    assert!(shown.contains("read some words at 111x33"), "{shown}");
    assert_eq!(world.exit(&id).await.code, 0);
}

async fn exec_with_a_terminal() {
    let mut world = World::new(1).await;
    let (id, _reader) = world.start(world.container(&["sleep"])).await;
    let process =
        Process { args: vec!["/payload".to_owned(), "tty".to_owned()], terminal: true, ..Process::default() };
    let started = world.runtime.exec(&id, "e", &process, Streams::Terminal).await.unwrap();
    let shown = converse(started.terminal.unwrap());
    assert!(shown.contains("terminals true true true controlling true console false"), "{shown}");
    assert!(shown.contains("read some words at 111x33"), "{shown}");
}

async fn exec_in_a_container() {
    let mut world = World::new(2).await;
    let (id, _reader) = world.start(world.container(&["sleep"])).await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (stdin, mut input) = std::io::pipe().unwrap();
    let process = Process {
        args: vec!["/payload".to_owned(), "stdin".to_owned()],
        user: User { uid: 1000, gid: 1000, groups: Vec::new() },
        ..Process::default()
    };
    let streams = Streams::Pipes {
        stdout: writer.try_clone().unwrap().into(),
        stderr: writer.into(),
        stdin: Some(stdin.into()),
    };
    let started = world.runtime.exec(&id, "e1", &process, streams).await.unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", started.pid)).unwrap();
    assert!(groups.contains(&world.prefix), "it is limited like its container: {groups}");
    input.write_all(b"some words").unwrap();
    drop(input);
    let exited = world.exits.recv().await.unwrap();
    assert_eq!((exited.id.as_str(), exited.exit.code), ("e1", 0));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "got some words");
    let (mut reader, streams) = pipes();
    let look = Process {
        args: vec!["/payload".to_owned(), "look".to_owned()],
        env: vec!["E=x".to_owned()],
        cwd: "/tmp".to_owned(),
        user: User { uid: 1000, gid: 1000, groups: vec![9] },
        no_new_privileges: true,
        ..Process::default()
    };
    world.runtime.exec(&id, "e2", &look, streams).await.unwrap();
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    for line in
        ["cwd /tmp", "Uid:\t1000\t1000\t1000\t1000", "Groups:\t9 ", "NoNewPrivs:\t1", "mount /proc proc"]
    {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(said.contains("(\"E\", \"x\")") && !said.contains("pid 1\n"), "{said}");
    assert!(world.runtime.stats(&id).unwrap().memory_bytes > 0);
    world.runtime.signal(&id, 9).await.unwrap();
    world.exit(&id).await;
}

/// A mount made after a process was parked is seen in the container that it becomes.
async fn volumes_in_memory_reach_parked_processes() {
    let mut world = World::with(1, 1, None).await;
    world.parked(1).await;
    let volume = world.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    world.runtime.mount_tmpfs(&volume, Some(1 << 20)).await.unwrap();
    let mut container = world.container(&["look"]);
    let bind = |source: &Path, target: &str| Bind {
        source: source.to_owned(),
        sub_path: None,
        target: target.to_owned(),
        read_only: false,
        propagate: false,
    };
    container.binds = vec![bind(&volume, "/memory")];
    let (mut reader, streams) = pipes();
    let (id, started) = world.begin(container, streams).await;
    assert!(started.unwrap().timings.parked);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(said.contains("mount /memory tmpfs"), "{said}");
    world.exit(&id).await;
    world.runtime.unmount(&volume).await.unwrap();
}

async fn parked_processes_are_used() {
    let mut world = World::with(1, 2, None).await;
    world.parked(2).await;
    for _ in 0..2 {
        let (_reader, streams) = pipes();
        let container = world.container(&["sleep"]);
        assert!(world.begin(container, streams).await.1.unwrap().timings.parked);
    }
    // The pool is filled again by itself, also in place of one that was killed.
    world.parked(2).await;
    let victim = world.parked_pids()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), nix::sys::signal::Signal::SIGKILL).unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{victim}/stat")).unwrap();
    while !state().contains(" Z ") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..2 {
        let echo = world.container(&["echo", "well"]);
        assert_eq!(world.output(echo).await, "well\n");
    }
}

/// On a machine with version 1 too, its version 2 mount has no controllers: joining, devices and the end are there.
async fn version_two_cgroups() {
    let found = Hierarchies::detect().unwrap();
    let root = found.v2.clone().expect("a mounted cgroup2 hierarchy (mount -t cgroup2 none DIR)");
    let mut world = World::with(1, 1, Some(Hierarchies { v2: found.v2, ..Hierarchies::default() })).await;
    let (ordinary, privileged) = (device(&world, false), device(&world, true));
    assert!(world.output(ordinary).await.contains("not permitted"));
    assert_eq!(world.output(privileged).await, "open\n");
    let mut sleeping = world.container(&["sleep"]);
    sleeping.limits = Limits { cpu_shares: Some(100), memory: Some(64 << 20), ..Limits::default() };
    let (_reader, streams) = pipes();
    let (id, started) = world.begin(sleeping, streams).await;
    let cgroup = root.join(started.unwrap().cgroup.unwrap().trim_start_matches('/'));
    assert_eq!(std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().lines().count(), 1);
    world.runtime.signal(&id, 9).await.unwrap();
    world.exit(&id).await;
    assert!(!cgroup.exists());
}

/// The node ends, however that happens: containers, processes that wait, and cgroups go too.
async fn nothing_is_left() {
    let mut world = World::with(1, 2, None).await;
    world.parked(2).await;
    let (_id, mut reader) = world.start(world.container(&["serve", "7777"])).await;
    let memory = Hierarchies::detect().unwrap();
    let memory =
        memory.v1.get("memory").or(memory.v2.as_ref()).unwrap().join(world.prefix.trim_start_matches('/'));
    let groups =
        || std::fs::read_dir(&memory).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    assert!(groups() > 0);
    let path = world.dir.path().to_owned();
    let prefix = std::mem::take(&mut world.prefix);
    // The end of file on the helpers' sockets is all that tells them; the clean-up of tests has nothing to clean.
    drop(world);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    let begun = Instant::now();
    while !processes(&path, false).is_empty() || !processes(&path, true).is_empty() || groups() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "{} cgroups", groups());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Hierarchies::detect().unwrap().kill_and_remove(&prefix);
}

async fn without_root() {
    rootless::run();
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
    processes(dir, false).first().copied().unwrap_or(0)
}

/// The helpers of a folder, or the processes that they keep ready and that still carry their command line.
fn processes(dir: &Path, parked: bool) -> Vec<i32> {
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

/// Both runtimes in turn, on a network of the same kind, from the command to a connection. Not an assertion about speed,
/// which a busy machine would break, but the figures to look at: `START_PAIRS=60`.
async fn start_times() {
    let pairs: usize = std::env::var("START_PAIRS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut world = World::with(2, 2, None).await;
    let (network, _) = network().await;
    let mut oracle = Oracle::new();
    let (mut ours, mut theirs, mut parked) = (Vec::new(), Vec::new(), 0);
    for round in 0..pairs * 2 {
        // Pools are filled in quiet moments.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let mut container = world.container(&["serve", "80"]);
        container.limits =
            Limits { cpu_shares: Some(100), memory: Some(64 << 20), pids: Some(99), cpu_quota_us: None };
        let begun = Instant::now();
        let pod = network.claim("my-pod", None).await.unwrap();
        container.net = pod.net_path();
        container.ipc = Some(pod.ipc_path());
        container.uts = pod.uts_path();
        let address = pod.address.unwrap();
        let connected = move || {
            while std::net::TcpStream::connect((address, 80)).is_err() {
                std::thread::sleep(Duration::from_micros(100));
            }
            begun.elapsed()
        };
        if round % 2 == 0 {
            let (_reader, streams) = pipes();
            let (id, started) = world.begin(container, streams).await;
            ours.push(connected());
            let timings = started.unwrap().timings;
            parked += usize::from(timings.parked);
            if std::env::var_os("SHOW").is_some() {
                println!("{:?} {timings:?}", ours.last());
            }
            world.runtime.signal(&id, 9).await.unwrap();
            world.exit(&id).await;
        } else {
            let (id, _) = oracle.start(&container, &world.layer());
            theirs.push(connected());
            oracle.remove(&id);
        }
        network.release(&pod);
    }
    network.close().await;
    assert!(parked > 0, "no process was ready in time");
    if std::env::var_os("START_PAIRS").is_some() {
        ours.sort();
        theirs.sort();
        let at = |times: &[Duration], share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        for share in [0.5, 0.95, 0.99] {
            let (ours, theirs) = (at(&ours, share), at(&theirs, share));
            let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
            println!("p{:.0}: parked {ours:.1?}, libcontainer {theirs:.1?}, ratio {ratio:.1}", share * 100.0);
        }
        println!("of {pairs} starts {parked} found a parked process");
    }
}
