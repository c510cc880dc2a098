//! Real containers without an API: the runtime and the network under the tests' own hand. Needs root; without it each
//! test fails with the reason rather than passing silently.
//!
//! This program is its own helper, so it has a main function instead of the test harness.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "runtime/limits.rs"]
mod limits;
#[path = "runtime/oracle.rs"]
mod oracle;
#[path = "runtime/rootless.rs"]
mod rootless;
#[path = "runtime/streams.rs"]
mod streams;
#[path = "runtime/times.rs"]
mod times;
#[path = "runtime/world.rs"]
mod world;

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use cluster_node::cgroup::Hierarchies;
use cluster_node::runtime::{Exit, HELPER_ARGUMENT, RuntimeError, helper_main};
use cluster_node::spec::{self, Bind, Container, Process, Seccomp, User};
use limits::{a_container_sees_its_own_cgroups, memory_limit, memory_limit_of_a_child, version_two_cgroups};
use oracle::Oracle;
use streams::{a_terminal_of_its_own, exec_in_a_container, exec_with_a_terminal};
use times::start_times;
use world::{AVAILABLE, World, helper_pid, my_pod, network, payload, payload_path, pipes, processes};

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

async fn serves_in_its_own_network() {
    let mut world = World::new(1).await;
    let (network, _) = network().await;
    let pod = network.claim(my_pod()).await.unwrap();
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
    let pod = network.claim(my_pod()).await.unwrap();
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

/// The node ends, however that happens: containers, processes that wait, and cgroups go too.
async fn nothing_is_left() {
    let mut world = World::with(1, 2, None).await;
    world.parked(2).await;
    let (id, mut reader) = world.start(world.container(&["serve", "7777"])).await;
    // The first process of the container ends only when these have been asked for by the helper, whose children they are.
    for n in 0..6 {
        let process = Process { args: vec!["/payload".to_owned(), "sleep".to_owned()], ..Process::default() };
        world.runtime.exec(&id, &format!("e{n}"), &process, pipes().1).await.unwrap();
    }
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
    // The node learns of it a moment later.
    let (_reader, id) = loop {
        let (reader, streams) = pipes();
        let echo = world.container(&["echo", "again"]);
        match world.begin(echo, streams).await {
            (id, Ok(_)) => break (reader, id),
            (_, Err(error)) => assert!(begun.elapsed() < Duration::from_secs(5), "{error}"),
        }
    };
    assert_eq!(world.exit(&id).await.code, 0);
}
