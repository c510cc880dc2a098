//! Turns what users ask for into what the data plane serves.
//!
//! Reconcilers are pure functions from what was observed to a [`plan::Plan`]; one executor carries all plans out. Nothing here
//! waits for a tick: a change is seen by a watch, looked at at once, and answered with writes. Besides them this crate serves the
//! admission webhooks and the endpoint of the mesh's certificate authority. It never touches a request of a user's.

mod authority;
mod cache;
pub mod config;
pub mod configuration;
pub mod domain_mapping;
mod error;
mod executor;
pub mod gc;
mod health;
pub mod install;
pub mod labeler;
pub mod plan;
mod queue;
mod reconcile;
pub mod revision;
pub mod route;
mod secrets;
pub mod service;
pub mod sks;
#[cfg(test)]
mod testing;
mod tls;
pub mod webhook;
mod world;

use arc_swap::ArcSwap;
use ebb_api::config::Configs;
use kube::Client;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub use authority::ensure_authority;
pub use config::{Config, Readiness};
pub use error::Error;

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

/// As [`run`], with an authority that the caller already holds, as where all components share a process and take their
/// identities from it directly.
///
/// # Errors
/// As [`run`].
pub async fn run_with_authority(
    config: Config,
    client: Client,
    authority: Arc<ebb_mesh::ca::Authority>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let config = Arc::new(config);
    let live: Live = Arc::new(ArcSwap::from_pointee(Configs::default()));
    let reconcilers =
        reconcile::run(&config, client.clone(), live.clone(), authority.clone(), shutdown.clone());
    let webhooks = webhook::run(&config, client.clone(), live, shutdown.clone());
    let endpoint = authority::run(&config, client, authority, shutdown.clone());
    let health = health::run(&config, shutdown.clone());
    let result = tokio::try_join!(reconcilers, webhooks, endpoint, health).map(drop);
    shutdown.cancel();
    result
}
