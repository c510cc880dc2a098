//! Turns what users ask for into what the data plane serves.
//!
//! Reconcilers are pure functions from what was observed to a [`plan::Plan`]; one executor carries all plans out. Nothing here
//! waits for a tick: a change is seen by a watch, looked at at once, and answered with writes. Besides them this crate serves the
//! admission webhooks and the endpoint of the mesh's certificate authority. It never touches a request of a user's.
//!
//! Of several replicas all serve webhooks and certificates, and all follow the watches; the reconcilers of one work.

mod authority;
mod cache;
pub mod certificate;
pub mod config;
pub mod configuration;
mod custody;
pub mod domain_mapping;
mod error;
mod executor;
pub mod gc;
pub mod hpa;
pub mod install;
pub mod labeler;
pub mod plan;
mod queue;
mod reconcile;
pub mod revision;
pub mod route;
mod secrets;
pub mod service;
#[cfg(test)]
mod settings_live;
pub mod sks;
#[cfg(test)]
mod testing;
mod tls;
pub mod webhook;
pub mod wildcard;
mod world;

use arc_swap::ArcSwap;
use ebb_api::config::Configs;
use ebb_component::Admin;
use ebb_component::leader::Election;
use kube::Client;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub use authority::ensure_authority;
pub use config::{Config, Readiness, Renewal};
pub use custody::Custody;
pub use error::Error;

/// How long each node's packet rules may go on sending the webhooks' and the authority's connections here.
const LINGER: Duration = Duration::from_secs(5);
/// Writes and answers under way.
const DRAIN: Duration = Duration::from_secs(20);

/// The configuration in force, read live.
pub(crate) type Live = Arc<ArcSwap<Configs>>;

/// Runs until `shutdown`: reconcilers, webhooks, and the certificate authority's endpoint. Each starts to work on its own;
/// the error of any ends all.
///
/// # Errors
/// What keeps a part from starting; what may pass is tried again instead.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let authority = ensure_authority(&client, &config).await?;
    run_with_authority(config, client, authority, shutdown).await
}

/// The controller as a process of its own: settings from the environment, until a signal.
pub fn main() -> std::process::ExitCode {
    let process = ebb_component::Process { name: "controller", linger: LINGER, drain: DRAIN };
    process.run(
        Config::from_env,
        |config| (config.bind_address, config.ports, config.health()),
        |config, started| async move {
            let shutdown = started.shutdown.clone();
            let authority = shutdown.run_until_cancelled(ensure_authority(&started.client, &config)).await;
            let Some(authority) = authority.transpose()? else { return Ok(()) };
            serve(config, started.admin, started.client, authority, started.shutdown).await?;
            Ok(())
        },
    )
}

/// As [`run`], with an authority that the caller already holds, as where all components share a process and take their
/// identities from it directly.
///
/// # Errors
/// As [`run`].
pub async fn run_with_authority(
    config: Config,
    client: Client,
    authority: Arc<Custody>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admin = Admin::start("controller", config.bind_address, config.ports, config.health()).await?;
    serve(config, admin, client, authority, shutdown).await
}

async fn serve(
    config: Config,
    admin: Admin,
    client: Client,
    authority: Arc<Custody>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    admin.send_metrics(client.clone(), &config.system_namespace);
    let ending = admin.health().ending(&shutdown);
    let (namespace, me) = (&config.system_namespace, config.candidate.clone());
    let election = Election::of(client.clone(), namespace, "controller", me, ending.clone());
    let config = Arc::new(config);
    let live: Live = Arc::new(ArcSwap::from_pointee(Configs::default()));
    let reconcilers = reconcile::run(
        &config,
        client.clone(),
        live.clone(),
        authority.clone(),
        &admin,
        election.clone(),
        ending,
    );
    let webhooks = webhook::run(&config, client.clone(), live, shutdown.clone());
    let endpoint = authority::run(&config, client, authority, shutdown.clone());
    let result = tokio::try_join!(reconcilers, webhooks, endpoint).map(drop);
    shutdown.cancel();
    election.released().await;
    drop(admin);
    result
}
