//! A store with its registry on a real socket, and a client.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::Router;
use cluster_images::{Store, registry_router};

pub(crate) struct Registry {
    pub(crate) store: Arc<Store>,
    pub(crate) address: SocketAddr,
    pub(crate) dir: tempfile::TempDir,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::start_with(|router| router).await
    }

    /// `wrap` may put a layer around the router, to watch it or to break it.
    pub(crate) async fn start_with(wrap: impl FnOnce(Router) -> Router) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let address = serve(wrap(registry_router(store.clone()))).await;
        Self { store, address, dir }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }
}

pub(crate) async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

pub(crate) fn client() -> reqwest::Client {
    // The second caller in a process finds it installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A store of its own, as of another machine.
pub(crate) fn other() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

pub(crate) fn content(layers: &[PathBuf], path: &str) -> String {
    let found = layers.iter().find_map(|l| std::fs::read_to_string(l.join(path)).ok());
    found.unwrap_or_else(|| panic!("no {path} in {layers:?}"))
}

/// Bytes that do not compress to nothing and differ by `seed`.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}
