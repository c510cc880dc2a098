//! The two sides: the embedded API server with its controllers, in this process; and a real control plane without machines.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::{node, run::Tools};

/// How long a control plane may take to answer on a slow and shared machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// The administrator, as the embedded server's kubeconfig names it.
const ADMIN: &str = "kubernetes-admin";
/// Of the real controllers, those that the embedded cluster has as well, so that the same things happen by themselves.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,job-controller,endpointslice-controller,endpoints-controller,\
namespace-controller,garbage-collector-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,\
resourcequota-controller,clusterrole-aggregation-controller";

/// A server to run steps on.
pub(crate) struct Side {
    pub(crate) name: &'static str,
    /// Its folder: kubeconfigs, and kubectl's home.
    pub(crate) folder: PathBuf,
    pub(crate) kubeconfig: Kubeconfig,
    pub(crate) client: Client,
}

impl Side {
    async fn new(name: &'static str, folder: &Path, kubeconfig: &str) -> Result<Self> {
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        Ok(Self { name, folder: folder.to_owned(), kubeconfig, client })
    }

    async fn wait(&self) -> Result<()> {
        let ready = async {
            loop {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                let answer = self.client.request_text(request).await;
                match answer {
                    Ok(_) => return Ok(()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, ready).await {
            Ok(done) => done,
            Err(_) => bail!("the {} API server is not ready after {} s", self.name, PATIENCE.as_secs()),
        }
    }
}

/// The embedded API server and its controllers, without a node of its own.
pub(crate) struct Embedded {
    pub(crate) side: Side,
    server: cluster_apiserver::ApiServer,
    controllers: tokio::task::JoinHandle<Result<(), cluster_controllers::Error>>,
    node: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Embedded {
    pub(crate) async fn start(folder: &Path, _tools: &Tools) -> Result<Self> {
        let mut config = cluster_apiserver::Config::new(folder.join("data"));
        config.git_version = "v1.35.4".to_owned();
        config.sync = false;
        let server = cluster_apiserver::ApiServer::start(config).await.context("the embedded API server")?;
        let stop = CancellationToken::new();
        let config = cluster_controllers::Config { root_ca_pem: server.ca_pem() };
        let client = server.client("system:kube-controller-manager", &[cluster_apiserver::MASTERS]);
        let controllers = tokio::spawn(cluster_controllers::run(client, config, stop.clone()));
        let side = Side::new("embedded", folder, &server.admin_kubeconfig()).await?;
        side.wait().await?;
        let node = node::start(side.client.clone()).await?;
        Ok(Self { side, server, controllers, node, stop })
    }

    pub(crate) async fn stop(self) {
        self.node.abort();
        self.stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.controllers).await;
        self.server.shutdown().await;
    }
}

/// etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes.
pub(crate) struct Real {
    pub(crate) side: Side,
    processes: Vec<Child>,
    node: tokio::task::JoinHandle<()>,
}

impl Real {
    pub(crate) async fn start(folder: &Path, tools: &Tools) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let cache = tools.kubernetes.as_deref().context(
            "the real side needs etcd, kube-apiserver, kube-controller-manager and kube-scheduler: tests/comparison/build.sh builds them \
             into $EBB_KUBERNETES_CACHE (default ~/.cache/ebb/kubernetes-1.35.4)",
        )?;
        let [clients, peers, api] = free_ports()?;
        let mut processes = Vec::new();
        let etcd = format!("http://127.0.0.1:{clients}");
        let peers = format!("http://127.0.0.1:{peers}");
        let mut start = |program: &Path, arguments: Vec<String>| -> Result<()> {
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
            let child = Command::new(program)
                .args(arguments)
                .current_dir(folder)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("cannot start {}", program.display()))?;
            processes.push(child);
            Ok(())
        };
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        start(
            &cache.join("etcd"),
            words(&format!(
                "--data-dir etcd --unsafe-no-fsync --listen-client-urls {etcd} --advertise-client-urls {etcd} --listen-peer-urls {peers} \
                 --initial-advertise-peer-urls {peers} --initial-cluster default={peers} --log-level warn"
            )),
        )?;

        let key = rcgen::KeyPair::generate()?;
        std::fs::write(folder.join("accounts.key"), key.serialize_pem())?;
        std::fs::write(folder.join("accounts.pub"), key.public_key_pem())?;
        std::fs::write(folder.join("tokens.csv"), format!("comparison,{ADMIN},,system:masters\n"))?;
        start(
            &cache.join("kube-apiserver"),
            words(&format!(
                "--etcd-servers={etcd} --secure-port={api} --bind-address=127.0.0.1 --advertise-address=192.0.2.10 --cert-dir=pki \
                 --endpoint-reconciler-type=none --service-cluster-ip-range=10.96.0.0/16 \
                 --service-account-issuer=https://kubernetes.default.svc.cluster.local \
                 --service-account-key-file=accounts.pub --service-account-signing-key-file=accounts.key \
                 --token-auth-file=tokens.csv --authorization-mode=Node,RBAC --allow-privileged=true --v=1"
            )),
        )?;
        let kubeconfig = format!(
            "{{apiVersion: v1, kind: Config, current-context: real, contexts: [{{name: real, context: {{cluster: real, user: real}}}}], \
              clusters: [{{name: real, cluster: {{server: 'https://127.0.0.1:{api}', insecure-skip-tls-verify: true}}}}], \
              users: [{{name: real, user: {{token: comparison}}}}]}}"
        );
        std::fs::write(folder.join("admin.conf"), &kubeconfig)?;
        let side = Side::new("real", folder, &kubeconfig).await?;
        side.wait().await.with_context(|| format!("see {}/kube-apiserver.log", folder.display()))?;
        start(
            &cache.join("kube-controller-manager"),
            words(&format!(
                "--kubeconfig=admin.conf --leader-elect=false --service-account-private-key-file=accounts.key \
                 --root-ca-file=pki/apiserver.crt --controllers={CONTROLLERS} --secure-port=0 --concurrent-gc-syncs=5 \
                 --concurrent-resource-quota-syncs=2 --v=1"
            )),
        )?;
        start(
            &cache.join("kube-scheduler"),
            words("--kubeconfig=admin.conf --leader-elect=false --secure-port=0 --v=1"),
        )?;
        let node = node::start(side.client.clone()).await?;
        Ok(Self { side, processes, node })
    }

    pub(crate) async fn stop(mut self) {
        self.node.abort();
        // Nothing of theirs is kept.
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill().await;
        }
    }
}

/// Ports that nobody listens on now; all are held until all are known, so that they differ.
fn free_ports() -> Result<[u16; 3]> {
    let listen = || TcpListener::bind(("127.0.0.1", 0));
    let held = [listen()?, listen()?, listen()?];
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    Ok([port(&held[0])?, port(&held[1])?, port(&held[2])?])
}
