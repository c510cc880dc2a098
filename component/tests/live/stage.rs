//! An API server at an address that stays, and how to reach it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Once;
use std::time::Duration;

use cluster_apiserver::{ApiServer, Config, MASTERS};
use ebb_api::manifests::{Options, Place};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An API server that can be stopped and started.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    address: SocketAddr,
    server: Option<ApiServer>,
    kubeconfig: String,
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

impl Stage {
    pub(crate) async fn new() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let filter =
                tracing_subscriber::EnvFilter::try_from_env("EBB_LOG").unwrap_or_else(|_| "off".into());
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        });
        let dir = tempfile::tempdir().expect("a folder");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut stage = Self { dir, address, server: None, kubeconfig: String::new() };
        stage.start().await;
        stage.kubeconfig = stage.server.as_ref().expect("it runs").admin_kubeconfig();
        stage
    }

    /// With the platform's own objects.
    pub(crate) async fn installed() -> Self {
        let stage = Self::new().await;
        let options = Options {
            domain: Some("localhost".into()),
            place: Place::Embedded {
                queue_sidecar_image: "queue-proxy:v1".into(),
                registry_mirror: String::new(),
                external_url_port: None,
            },
            ..Options::default()
        };
        let client = stage.server.as_ref().expect("it runs").client("admin", &[MASTERS]);
        ebb_controller::install::install(&client, &options).await.expect("the platform's objects");
        stage
    }

    pub(crate) async fn start(&mut self) {
        let mut config = Config::new(self.dir.path());
        config.listen = vec![self.address];
        config.sync = false;
        self.server = Some(ApiServer::start(config).await.expect("an API server"));
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    /// A client over TCP and TLS, as a component on a cluster has it.
    pub(crate) async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig).expect("it parses");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("usable");
        Client::try_from(config).expect("a client")
    }
}

/// Waits until `wanted` holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut wanted: impl FnMut() -> F) {
    let waited = async {
        while !wanted().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waited).await.is_ok(), "{what} did not come");
}

/// The whole answer to a GET.
pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}
