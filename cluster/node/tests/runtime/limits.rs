//! Cgroups: what containers may use, and what they see of it.

use std::io::Read;

use cluster_node::cgroup::Hierarchies;
use cluster_node::runtime::Exit;
use cluster_node::spec::{Limits, Process};

use crate::device;
use crate::world::{World, my_pod, network, pipes};

pub(crate) async fn memory_limit() {
    let mut world = World::new(1).await;
    let mut container = world.container(&["eat"]);
    container.limits = Limits { memory: Some(32 << 20), pids: Some(10), ..Limits::default() };
    let (id, _reader) = world.start(container).await;
    assert_eq!(world.exit(&id).await, Exit { code: 137, signal: Some(9), oom: true });
}

/// Language runtimes look there for how much they may use.
pub(crate) async fn a_container_sees_its_own_cgroups() {
    let mut world = World::new(1).await;
    let (network, _) = network().await;
    let pod = network.claim(my_pod()).await.unwrap();
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
pub(crate) async fn memory_limit_of_a_child() {
    let mut world = World::new(1).await;
    let mut container = world.container(&["let-eat"]);
    container.limits = Limits { memory: Some(32 << 20), ..Limits::default() };
    let (id, _reader) = world.start(container).await;
    assert_eq!(world.exit(&id).await, Exit { code: 3, signal: None, oom: true });
}

/// On a machine with version 1 too, its version 2 mount has no controllers: joining, devices and the end are there.
pub(crate) async fn version_two_cgroups() {
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
