//! The autoscaler as a process of its own, on a cluster.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use ebb_autoscaler::Config;
use ebb_mesh::{Identity, IdentityConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Bad configuration, as in sysexits.h.
const EX_USAGE: u8 = 64;
const DRAIN: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("EBB_LOG").unwrap_or_else(|_| "info".into()),
        )
        .init();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "autoscaler");
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(EX_USAGE);
        }
    };
    tracing::info!(?config, "configuration");
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut term = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {} _ = tokio::signal::ctrl_c() => {} }
        stop.cancel();
    });
    let ca = std::env::var("EBB_CA_ADDRESS")
        .unwrap_or_else(|_| format!("controller.{}.svc:{}", config.namespace, ebb_http::ports::CA));
    let trust_domain =
        std::env::var("EBB_TRUST_DOMAIN").unwrap_or_else(|_| ebb_mesh::DEFAULT_TRUST_DOMAIN.to_owned());
    let identity =
        Identity::obtain(IdentityConfig::in_pod(ca, trust_domain)).await.context("a mesh identity")?;
    let client = kube::Client::try_default().await.context("a connection to the Kubernetes API")?;
    let run = ebb_autoscaler::run(config, client, identity, shutdown.clone());
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        done = run => done.context("running"),
        () = late => anyhow::bail!("draining took longer than {DRAIN:?}"),
    }
}
