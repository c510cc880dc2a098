//! The cluster that all cases share, and kubectl.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cluster::{Cluster, ClusterConfig};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::image;

/// The image of the test app.
pub(crate) const IMAGE: &str = "pods-app:v1";
/// How long a thing that should happen may take on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    cluster: Option<Cluster>,
    pub(crate) runtime: tokio::runtime::Runtime,
    /// The image as an archive.
    pub(crate) image: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn start() -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let kubectl = std::env::var_os("KUBECTL").map_or_else(|| image::found("kubectl"), PathBuf::from);
        let dir = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(log)
            .with_env_filter("info,cluster_node=debug")
            .init();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = dir.path().join("image");
        image::make(&folder, IMAGE);
        let cluster = runtime.block_on(async {
            let config = ClusterConfig {
                device_prefix: "podt".to_owned(),
                ..ClusterConfig::new(dir.path().join("data"))
            };
            let cluster = Cluster::start(config).await.unwrap();
            cluster.images().load_archive(&folder, None).await.unwrap();
            cluster
        });
        let kubeconfig = cluster.kubeconfig_path().to_owned();
        Self { cluster: Some(cluster), runtime, image: folder, kubectl, kubeconfig, dir }
    }

    pub(crate) fn stop(mut self) {
        let cluster = self.cluster.take().unwrap();
        self.runtime.block_on(cluster.shutdown());
        if std::env::var_os("PODS_KEEP").is_some() {
            println!("kept: {}", self.dir.keep().display());
        }
    }

    /// Where the cluster keeps everything.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The processes that start this cluster's containers: children of this one.
    pub(crate) fn helpers(&self) -> Vec<Pid> {
        let (data, own) = (self.data_dir().display().to_string(), std::process::id().to_string());
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_one = |pid: &i32| {
            let read =
                |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let (command, stat) = (read("cmdline"), read("stat"));
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
            command.contains("container-helper") && command.contains(&data) && parent == Some(&own)
        };
        pids.filter(is_one).map(Pid::from_raw).collect()
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().unwrap()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig).args(args).stdin(Stdio::null());
        command
    }

    /// kubectl to its end: exit code, standard output, standard error.
    pub(crate) fn run(&self, args: &[&str], input: Option<&str>) -> (i32, String, String) {
        let mut command = self.command(args);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes()).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// kubectl that must succeed: its standard output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args, None);
        assert_eq!(code, 0, "kubectl {}: {out}{err}", args.join(" "));
        out
    }

    pub(crate) fn apply(&self, object: &Value) {
        let (code, out, err) = self.run(&["apply", "-f", "-"], Some(&object.to_string()));
        assert_eq!(code, 0, "{object}: {out}{err}");
    }

    /// Makes a pod of one container `c` from the test app; `container` and `spec` are merged in.
    pub(crate) fn pod(&self, name: &str, container: Value, spec: Value) {
        self.apply(&pod(name, container, spec));
    }

    pub(crate) fn ready(&self, pod: &str) {
        let (code, _, err) =
            self.run(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"], None);
        assert_eq!(code, 0, "{pod} is not ready: {err}\n{}", self.run(&["describe", "pod", pod], None).1);
    }

    /// Makes it and waits until it is ready.
    pub(crate) fn ready_pod(&self, name: &str, container: Value, spec: Value) {
        self.pod(name, container, spec);
        self.ready(name);
    }

    /// Waits until a JSONPath of a pod has a value.
    pub(crate) fn until(&self, what: &str, path: &str, value: &str) {
        let condition = format!("--for=jsonpath={path}={value}");
        let (code, _, err) = self.run(&["wait", &condition, what, "--timeout=60s"], None);
        assert_eq!(code, 0, "{what} {path}: {err}\n{}", self.run(&["describe", what], None).1);
    }

    /// Waits until an Event of a pod says it; Events follow what they tell of.
    pub(crate) fn told(&self, pod: &str, reason: &str, message: &str) {
        let field = format!("--field-selector=involvedObject.name={pod},reason={reason}");
        let begun = std::time::Instant::now();
        while !self
            .kubectl(&["get", "events", &field, "-o", "jsonpath={.items[*].message}"])
            .contains(message)
        {
            assert!(begun.elapsed() < PATIENCE, "{}", self.kubectl(&["describe", "pod", pod]));
        }
    }

    pub(crate) fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", what, "-o", "json"])).unwrap()
    }

    pub(crate) fn delete(&self, what: &str) {
        self.kubectl(&["delete", what, "--grace-period=1", "--wait=false"]);
    }

    /// kubectl left running, with all pipes.
    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        Running::of(self.command(args))
    }

    /// For the crate kube, over a real connection.
    pub(crate) fn kube_config(&self) -> kube::Config {
        let file = kube::config::Kubeconfig::read_from(&self.kubeconfig).unwrap();
        self.runtime.block_on(kube::Config::from_custom_kubeconfig(file, &Default::default())).unwrap()
    }
}

/// A child that does not outlive its owner.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    pub(crate) fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line of standard output; empty at its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Waits for the end: code and standard error.
    pub(crate) fn end(mut self) -> (i32, String) {
        drop(self.child.stdin.take());
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

pub(crate) fn pod(name: &str, container: Value, spec: Value) -> Value {
    let mut own = json!({"name": "c", "image": IMAGE});
    merge(&mut own, container);
    let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [own], "terminationGracePeriodSeconds": 1}});
    merge(&mut object["spec"], spec);
    object
}
