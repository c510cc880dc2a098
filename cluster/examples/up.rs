//! A bare cluster, for trying out this crate: `cargo run -p cluster --example up -- DIR`, as root; Ctrl-C ends it.

use cluster::{Cluster, ClusterConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().ok_or("say in which directory the cluster's data should be")?;
    if first == cluster_node::runtime::HELPER_ARGUMENT {
        cluster_node::runtime::helper_main();
    }
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
        .with_writer(std::io::stderr)
        .init();
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    tokio::runtime::Runtime::new()?.block_on(async {
        let begin = std::time::Instant::now();
        let cluster = Cluster::start(ClusterConfig::new(first)).await?;
        println!("ready in {:?}: {}", begin.elapsed(), cluster.kubeconfig_path().display());
        tokio::signal::ctrl_c().await?;
        cluster.shutdown().await;
        Ok(())
    })
}
