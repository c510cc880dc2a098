//! The end of a whole cluster: a process of its own is started, filled with pods and asked to stop; then it is counted what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cluster::{Cluster, ClusterConfig};
use cluster_node::cgroup::Hierarchies;
use serde_json::json;

use crate::Case;
use crate::world::{IMAGE, Running, World, pod};

pub(crate) const CASES: &[Case] = &[("nothing_is_left_after_a_clean_stop", clean)];

/// Names the folder of the cluster that this program is to run instead of tests.
const CHILD: &str = "PODS_CHILD_DIR";

/// Runs a cluster until standard input ends, if this process is the child of a test.
pub(crate) fn child() -> bool {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return false };
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let log = std::fs::File::create(dir.join("log")).unwrap();
    tracing_subscriber::fmt().with_ansi(false).with_writer(log).with_env_filter("info").init();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let device_prefix = prefix(std::process::id());
        let cluster = Cluster::start(ClusterConfig { device_prefix, ..ClusterConfig::new(dir.join("data")) })
            .await
            .unwrap();
        cluster
            .images()
            .load_archive(&PathBuf::from(std::env::var_os("PODS_CHILD_IMAGE").unwrap()), None)
            .await
            .unwrap();
        println!("{}", cluster.kubeconfig_path().display());
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        end.await.unwrap().unwrap();
        cluster.shutdown().await;
    });
    true
}

/// The beginning of the names of a child's devices: nobody else's.
fn prefix(pid: u32) -> String {
    let digits = b"abcdefghijklmnopqrstuvwxyz";
    let letter = |place: u32| char::from(digits[(pid / 26_u32.pow(place) % 26) as usize]);
    std::iter::once('z').chain((0..4).map(letter)).collect()
}

/// All processes below one, each with what `/proc` says of it.
fn below(root: u32) -> BTreeMap<u32, PathBuf> {
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name before it may have any character in it.
        let parent =
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let is_below = |pid: u32| {
        std::iter::successors(parents.get(&pid), |parent| parents.get(parent)).any(|parent| *parent == root)
    };
    parents
        .keys()
        .filter(|pid| is_below(**pid))
        .map(|pid| (*pid, PathBuf::from(format!("/proc/{pid}"))))
        .collect()
}

fn link(path: PathBuf) -> Option<String> {
    std::fs::read_link(path).ok().map(|target| target.display().to_string())
}

/// The cgroups of the node that processes are in: hierarchy's mount point and the node's own group.
fn cgroups(processes: &BTreeMap<u32, PathBuf>) -> BTreeSet<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots: Vec<&str> = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    let mut found = BTreeSet::new();
    for folder in processes.values() {
        let text = std::fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        for path in text.lines().filter_map(|line| line.splitn(3, ':').nth(2)) {
            let Some(own) = path.split('/').find(|part| part.starts_with("cluster-node-")) else { continue };
            let all = roots.iter().map(|root| Path::new(root).join(own));
            found.extend(all.filter(|folder| folder.exists()));
        }
    }
    found
}

fn devices(prefix: &str) -> Vec<String> {
    let names = std::fs::read_dir("/sys/class/net").unwrap().flatten();
    names
        .map(|entry| entry.file_name().display().to_string())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn mounts(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = folder.display().to_string();
    text.lines().filter(|line| line.contains(&folder)).map(str::to_owned).collect()
}

/// The cluster of a child. What it leaves when a test fails in the middle goes, too.
struct Child<'a> {
    world: &'a World,
    running: Option<Running>,
    pid: u32,
}

impl<'a> Child<'a> {
    fn of(world: &'a World, command: Command) -> Self {
        let running = Running::of(command);
        Self { world, pid: running.child.id(), running: Some(running) }
    }

    fn line(&mut self) -> String {
        self.running.as_mut().unwrap().line()
    }

    fn end(&mut self) -> (i32, String) {
        self.running.take().unwrap().end()
    }
}

impl Drop for Child<'_> {
    fn drop(&mut self) {
        let groups = cgroups(&below(self.pid));
        drop(self.running.take());
        for group in groups {
            let name = group.file_name().unwrap().to_str().unwrap();
            Hierarchies::detect().unwrap().kill_and_remove(&format!("/{name}"));
        }
        self.world.runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            for name in devices(&prefix(self.pid)) {
                let number = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"));
                if let Some(number) = number.ok().and_then(|number| number.trim().parse().ok()) {
                    let _ = handle.link().del(number).execute().await;
                }
            }
        });
    }
}

fn clean(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("/proc/self/exe");
    command.env(CHILD, dir.path()).env("PODS_CHILD_IMAGE", &world.image).stdin(Stdio::piped());
    let mut cluster = Child::of(world, command);
    let root = cluster.pid;
    let kubeconfig = cluster.line().trim().to_owned();
    let kubectl = |args: &[&str], input: &str| {
        let (code, out, err) = world.run(&[&["--kubeconfig", &kubeconfig], args].concat(), Some(input));
        if code != 0 {
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            let described = world.run(&["--kubeconfig", &kubeconfig, "describe", "pods"], None).1;
            panic!("kubectl {args:?}: {out}{err}\n{described}\n{log}");
        }
        out
    };
    // Pods that end and are started again all the time, that hold memory volumes, that end slowly, and that are kept up by a controller.
    // The sidecar has no ports of its own: the pod's are the app's.
    let side =
        json!([{"name": "side", "image": IMAGE, "restartPolicy": "Always", "command": ["sleep", "1000"]}]);
    let memory = json!([{"name": "m", "emptyDir": {"medium": "Memory"}}]);
    let slow = "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done";
    let labels = json!({"app": "many"});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("restless", json!({"command": ["sh", "-c", "exit 0"]}), json!({})),
        pod("holding", json!({"volumeMounts": [{"name": "m", "mountPath": "/m"}]}), json!({"volumes": memory, "initContainers": side})),
        pod("slow", json!({"command": ["sh", "-c", slow]}), json!({})),
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"}, "spec": {"replicas": 3,
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": IMAGE}]}}}},
    ]});
    kubectl(&["apply", "-f", "-"], &objects.to_string());
    kubectl(&["wait", "--for=condition=Ready", "pod/holding", "pod/slow", "--timeout=60s"], "");
    kubectl(&["rollout", "status", "deployment/many", "--timeout=60s"], "");
    let restarted = "--for=jsonpath={.status.containerStatuses[0].lastState.terminated.reason}=Completed";
    kubectl(&["wait", restarted, "pod/restless", "--timeout=60s"], "");

    let processes = below(root);
    let cgroups = cgroups(&processes);
    let own = link("/proc/self/ns/net".into());
    let namespaces: BTreeSet<String> = processes
        .values()
        .filter_map(|folder| link(folder.join("ns/net")))
        .filter(|namespace| Some(namespace) != own.as_ref())
        .collect();
    // There is something to count.
    assert!(
        processes.len() > 7 && !cgroups.is_empty() && namespaces.len() >= 5,
        "{processes:?} {cgroups:?} {namespaces:?}"
    );
    assert!(!devices(&prefix(root)).is_empty());

    let (code, err) = cluster.end();
    assert_eq!(code, 0, "{err}");
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let (_, after) = log.split_once("stopping all containers").expect("the node says that it stops");
    let started: Vec<&str> = after.lines().filter(|line| line.contains("container started")).collect();
    assert!(started.is_empty(), "started while stopping: {started:?}");
    // Helpers end when the node's process has: they are allowed a moment.
    let begun = std::time::Instant::now();
    // Numbers may have been given away since: only what is still ours counts.
    let ours = |folder: &Path| {
        let helper =
            std::fs::read_to_string(folder.join("cmdline")).unwrap_or_default().contains("container-helper");
        let group = std::fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        let parent = |root: &PathBuf| group.contains(root.file_name().unwrap().to_str().unwrap());
        helper || cgroups.iter().any(parent)
    };
    let alive =
        || processes.iter().filter(|(_, folder)| ours(folder)).map(|(pid, _)| *pid).collect::<Vec<u32>>();
    let left = || cgroups.iter().filter(|folder| folder.exists()).cloned().collect::<Vec<_>>();
    while !(alive().is_empty() && left().is_empty()) && begun.elapsed() < std::time::Duration::from_secs(2) {
        std::thread::yield_now();
    }
    assert_eq!(alive(), Vec::<u32>::new(), "processes");
    assert_eq!(left(), Vec::<PathBuf>::new(), "cgroups");
    assert_eq!(devices(&prefix(root)), Vec::<String>::new(), "network devices");
    assert_eq!(mounts(dir.path()), Vec::<String>::new(), "mounts");
    let everybody = std::fs::read_dir("/proc").unwrap().flatten();
    let users: Vec<_> = everybody
        .filter(|entry| {
            link(entry.path().join("ns/net")).is_some_and(|namespace| namespaces.contains(&namespace))
        })
        .collect();
    assert!(users.is_empty(), "processes in the pods' network namespaces: {users:?}");
}
