//! Liveness and readiness over plain HTTP, for kubelet.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::tls;

/// Serves `/livez` and `/readyz` until `shutdown`, if a port is set.
pub(crate) async fn run(config: &Arc<Config>, shutdown: CancellationToken) -> Result<(), Error> {
    if config.health_port == 0 {
        return Ok(());
    }
    let address = SocketAddr::new(config.bind_address, config.health_port);
    let listener = tls::bind(address).await?;
    let ready = config.ready.clone();
    let readiness = move || async move {
        if ready.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    };
    let router =
        Router::new().route("/livez", get(|| async { StatusCode::OK })).route("/readyz", get(readiness));
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(|source| Error::Listen { address, source })
}
