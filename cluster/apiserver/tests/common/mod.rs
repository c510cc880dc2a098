//! A server in a folder that goes with the test.

use cluster_apiserver::{ApiServer, Config, MASTERS};

/// A server of its own for one test.
pub(crate) struct Fixture {
    #[allow(dead_code)]
    pub(crate) folder: tempfile::TempDir,
    pub(crate) server: ApiServer,
}

/// Starts one.
pub(crate) async fn start() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(Config::new(folder.path())).await.unwrap();
    Fixture { folder, server }
}

impl Fixture {
    /// A client that may do anything.
    #[allow(dead_code)]
    pub(crate) fn client(&self) -> kube::Client {
        self.server.client("test", &[MASTERS])
    }
}
