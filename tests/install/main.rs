//! The platform on a cluster, from `ebb install` over an upgrade under load to `ebb uninstall`.
//!
//! The cluster is the embedded Kubernetes without the platform inside: the components run in pods made of the archive that
//! `ebb image export` writes, as they do on any other. Needs root, as `ebb up` in these tests does.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use testkit::{PATIENCE, Process, http, run};

const EBB: &str = env!("CARGO_BIN_EXE_ebb");
const SERVICE: &str = "
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello}
spec:
  template:
    metadata: {annotations: {autoscaling.knative.dev/min-scale: '1'}}
    spec: {containers: [{image: 'dev.local/hello:v1'}]}
";
/// What Knative Serving's own installation would have left.
const KNATIVE: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: services.serving.knative.dev, labels: {app.kubernetes.io/name: knative-serving}}
spec:
  group: serving.knative.dev
  scope: Namespaced
  names: {kind: Service, plural: services, singular: service}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
";
/// What an older version might have had.
const OLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: gateway-of-old, namespace: ebb-system, labels: {install.ebb.dev/namespace: ebb-system}}
spec: {ports: [{port: 80}]}
";

/// As in the end-to-end suite: KUBECTL, else the one in PATH.
fn kubectl() -> String {
    std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".into())
}

struct Cluster {
    process: Process,
}

impl Cluster {
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", self.process.kubeconfig());
        command
    }

    fn ebb(&self, args: &[&str]) -> Result<String> {
        run(self.command(EBB, args), None)
    }

    fn ebb_fails(&self, args: &[&str]) -> Result<String> {
        match self.ebb(args) {
            Ok(out) => bail!("ebb {} should have failed, and said: {out}", args.join(" ")),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(self.command(&kubectl(), args), None)
    }

    fn apply(&self, manifest: &str) -> Result<String> {
        run(self.command(&kubectl(), &["apply", "-f", "-"]), Some(manifest))
    }

    /// The gateway's address inside the cluster, which this machine reaches too.
    fn gateway(&self) -> Result<SocketAddr> {
        let ip = self.kubectl(&[
            "get",
            "service",
            "gateway",
            "-n",
            "ebb-system",
            "-o",
            "jsonpath={.spec.clusterIP}",
        ])?;
        Ok(SocketAddr::new(ip.trim().parse().with_context(|| ip.clone())?, 80))
    }

    fn asks(&self, gateway: SocketAddr, host: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let answer = http::get(gateway, host, "/");
            match answer {
                Ok(answer) if answer.status == 200 => return Ok(()),
                other if start.elapsed() > PATIENCE => bail!("http://{host} at {gateway}: {other:?}"),
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Waits until each component has only pods of the newest kind: until then the old ones still serve.
    fn old_pods_gone(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let pods = self.kubectl(&["get", "pods", "-n", "ebb-system", "-o", "name"])?;
            if pods.lines().count() == 4 {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "old pods do not go:\n{pods}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Everything of the platform that is still somewhere.
    fn left(&self) -> Result<String> {
        let ours = ["-l", "install.ebb.dev/namespace", "-o", "name", "--ignore-not-found"];
        let kinds = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations,crds,namespaces";
        let mut left = self.kubectl(&[&["get", kinds], ours.as_slice()].concat())?;
        let strewn = ["-A", "-l", "app.kubernetes.io/managed-by=ebb", "-o", "name"];
        left += &self.kubectl(&[&["get", "configmaps,networkpolicies"], strewn.as_slice()].concat())?;
        left += &self.kubectl(&[
            "get",
            "deployments,services,endpointslices",
            "-n",
            "default",
            "-l",
            "serving.knative.dev/service",
            "-o",
            "name",
        ])?;
        Ok(left)
    }
}

/// Clients that ask all the time, one connection a request, and count what was not answered.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<std::thread::JoinHandle<Told>>,
}

/// What clients saw.
#[derive(Default)]
struct Told {
    asked: usize,
    lost: Vec<String>,
    slowest: Duration,
}

impl Load {
    fn start(clients: usize, gateway: SocketAddr, host: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = || {
            let end = stop.clone();
            std::thread::spawn(move || {
                let mut told = Told::default();
                while !end.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    match http::get(gateway, host, "/") {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => told.lost.push(format!("{} {}", answer.status, answer.body)),
                        Err(error) => told.lost.push(format!("{error:#}")),
                    }
                    told.asked += 1;
                    told.slowest = told.slowest.max(start.elapsed());
                    std::thread::sleep(Duration::from_millis(5));
                }
                told
            })
        };
        Self { clients: (0..clients).map(|_| client()).collect(), stop }
    }

    fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.clients.into_iter().map(|c| c.join().expect("it counts to its end"));
        all.fold(Told::default(), |mut sum, one| {
            sum.asked += one.asked;
            sum.lost.extend(one.lost);
            sum.slowest = sum.slowest.max(one.slowest);
            sum
        })
    }
}

#[test]
fn the_platform_comes_is_renewed_under_load_and_goes() -> Result<()> {
    let cluster = Cluster { process: Process::start_bare(Path::new(EBB))? };
    let scratch = tempfile::tempdir()?;

    // Another's API is left alone.
    cluster.apply(KNATIVE)?;
    let refused = cluster.ebb_fails(&["install"])?;
    ensure!(refused.contains("belongs to knative-serving"), "{refused}");
    cluster.kubectl(&["delete", "crd", "services.serving.knative.dev"])?;

    // What is missing is told, with what to do.
    let missing = cluster.ebb_fails(&["install", "--image-tag", "nowhere", "--timeout", "8s"])?;
    ensure!(missing.contains("localhost/ebb:nowhere") && missing.contains("ebb image export"), "{missing}");

    for tag in ["one", "two"] {
        let file = scratch.path().join(tag).display().to_string();
        let said = cluster.ebb(&["image", "export", &file, "--image-tag", tag])?;
        ensure!(said.contains(&format!("localhost/ebb:{tag}@sha256:")), "{said}");
        cluster.process.ebb(&["image", "load", &file])?;
    }
    cluster.ebb(&["install", "--image-tag", "one", "--domain", "example.com"])?;
    let gateway = cluster.gateway()?;

    let app = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello");
    let archive = scratch.path().join("hello.tar").display().to_string();
    cluster.ebb(&["build", app, "-t", "dev.local/hello:v1", "--output", &archive])?;
    cluster.process.ebb(&["image", "load", &archive])?;
    cluster.apply(SERVICE)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=90s"])?;
    cluster.asks(gateway, "hello.default.example.com")?;

    // The next version, over this one.
    cluster.apply(OLD)?;
    let edit = r#"{"data":{"stable-window":"30s"}}"#;
    cluster.kubectl(&[
        "patch",
        "configmap",
        "config-autoscaler",
        "-n",
        "ebb-system",
        "--type=merge",
        "-p",
        edit,
    ])?;
    let load = Load::start(4, gateway, "hello.default.example.com");
    let renewed = cluster.ebb(&["install", "--image-tag", "two"]).and_then(|_| cluster.old_pods_gone());
    let Told { asked, lost, slowest } = load.end();
    renewed?;
    println!("while it was renewed: {asked} requests, {} lost, the slowest took {slowest:?}", lost.len());
    ensure!(asked > 100, "only {asked} requests, the slowest took {slowest:?}");
    ensure!(lost.is_empty(), "{} of {asked} requests were lost, such as: {}", lost.len(), lost[0]);
    let get = |what: &[&str]| cluster.kubectl(&[&["get", "-n", "ebb-system"], what].concat());
    let images = get(&["deployments", "-o", "jsonpath={.items[*].spec.template.spec.containers[0].image}"])?;
    ensure!(images.split(' ').all(|image| image == "localhost/ebb:two"), "{images}");
    let kept = get(&["configmap", "config-autoscaler", "-o", "jsonpath={.data.stable-window}"])?;
    ensure!(kept == "30s", "the user's setting became {kept:?}");
    ensure!(
        get(&["service", "gateway-of-old", "--ignore-not-found"])?.is_empty(),
        "what was of old is still there"
    );
    cluster.asks(gateway, "hello.default.example.com")?;

    // And away.
    let asks = cluster.ebb_fails(&["uninstall"])?;
    ensure!(asks.contains("default/hello") && asks.contains("--yes"), "{asks}");
    cluster.kubectl(&["get", "ksvc", "hello"])?;
    cluster.ebb(&["uninstall", "--yes"])?;
    let left = cluster.left()?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    cluster.process.stop()
}
