//! A server to try by hand: `cargo run -p cluster-apiserver --example serve -- DIR [PORT]`, then
//! `kubectl --kubeconfig DIR/kubeconfig ...`. It runs until Ctrl-C.

use std::net::SocketAddr;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = std::path::PathBuf::from(arguments.next().ok_or("usage: serve DIR [PORT]")?);
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    let mut config = cluster_apiserver::Config::new(&folder);
    config.listen = vec![SocketAddr::from(([127, 0, 0, 1], port))];
    let server = cluster_apiserver::ApiServer::start(config).await?;
    std::fs::write(folder.join("kubeconfig"), server.admin_kubeconfig())?;
    println!("ready on https://{}", server.local_addr());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
