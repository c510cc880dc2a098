//! From the start of a component's process to its end.
//!
//! On SIGTERM the component is not ready any more but serves on for a while (`linger`): whoever sends it work learns of its end by a
//! watch, or through the packet rules of each node, and until then connections still come. Then it takes no more, and what is under
//! way may take `drain` to finish. A second signal ends it at once.

use std::error::Error;
use std::fmt::Debug;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use ebb_mesh::{Identity, IdentityConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{Admin, Ports};
use crate::env::{BadVariable, Env};
use crate::health::Health;
use crate::told::told;
use crate::{logging, threads};

/// Bad configuration, as in sysexits.h.
pub(crate) const EX_USAGE: u8 = 64;
/// As a shell tells of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// The condition of readiness that there is a mesh identity.
const IDENTITY: &str = "identity";

/// Why a component ended.
pub type Failure = Box<dyn Error + Send + Sync>;

/// A component's process.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    /// The component, as in its metrics.
    pub name: &'static str,
    /// How long it takes new work after it was told to end.
    pub linger: Duration,
    /// How long work under way may then take.
    pub drain: Duration,
}

/// What a component is given at its start.
pub struct Started {
    /// Health and metrics, served already.
    pub admin: Admin,
    /// The Kubernetes API, not yet spoken to.
    pub client: kube::Client,
    /// Take no new work, finish what is under way.
    pub shutdown: CancellationToken,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started").field("admin", &self.admin).finish_non_exhaustive()
    }
}

/// A client of the cluster's API server that tries nothing again by itself. kube would, after a 429 or a 503, for minutes in the end, and hold
/// whoever waits for the answer: a scale from zero, or one of the few that reconcile. Here each caller has its own pauses, which know what
/// is urgent and what has changed meanwhile.
async fn client() -> kube::Result<kube::Client> {
    let mut config = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.default_retry = false;
    kube::Client::try_from(config)
}

impl Started {
    /// The mesh identity, waited for as long as it takes: the authority may start after us. None if we shall end before. Meets the
    /// condition `identity`.
    ///
    /// # Errors
    /// When the authority's answer cannot be used.
    async fn identity(&self, config: IdentityConfig) -> Result<Option<Identity>, ebb_mesh::Error> {
        let authority = config.ca_address.clone();
        info!(authority, "waiting for a mesh identity");
        let obtained = self.shutdown.run_until_cancelled(Identity::obtain(config)).await.transpose()?;
        if let Some(identity) = &obtained {
            info!(id = %identity.id(), "mesh identity obtained");
            self.admin.health().met(IDENTITY);
        }
        Ok(obtained)
    }
}

impl Process {
    /// Runs it: `parse` reads the settings (exit code 64 when they are bad), `at` says where health and metrics are served and what
    /// must be met before it is ready, `serve` works until its `shutdown`.
    pub fn run<C: Debug, F>(
        self,
        parse: impl FnOnce(&Env<'_>) -> Result<C, BadVariable>,
        at: impl FnOnce(&C) -> (IpAddr, Ports, Health),
        serve: impl FnOnce(C, Started) -> F,
    ) -> ExitCode
    where
        F: Future<Output = Result<(), Failure>>,
    {
        if std::env::args().any(|arg| arg == "--version") {
            println!("ebb {} {}", self.name, env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        if let Err(why) = logging::start_from(&Env::process()) {
            eprintln!("error: {why}");
            return ExitCode::from(EX_USAGE);
        }
        let config = match parse(&Env::process()) {
            Ok(config) => config,
            Err(why) => {
                error!("the configuration is bad: {why}");
                return ExitCode::from(EX_USAGE);
            }
        };
        info!(version = env!("CARGO_PKG_VERSION"), ?config, "ebb {}", self.name);
        // Another one in the process is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = match threads::runtime().build() {
            Ok(runtime) => runtime,
            Err(why) => {
                error!("cannot start the async runtime: {why}");
                return ExitCode::FAILURE;
            }
        };
        let (bind, ports, health) = at(&config);
        let ended = runtime.block_on(async {
            let admin = Admin::start(self.name, bind, ports, health).await?;
            let client = client().await.map_err(|why| {
                format!("no Kubernetes API server is configured ({why}): run in a pod, or set KUBECONFIG")
            })?;
            let shutdown = CancellationToken::new();
            let ends = self.ends(admin.health().clone(), shutdown.clone())?;
            let namespace = Env::process().namespace();
            tokio::spawn(logging::keep(client.clone(), namespace, vec![self.name], shutdown.clone()));
            tokio::select! {
                done = serve(config, Started { admin, client, shutdown }) => done,
                late = ends => Err(late),
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        match ended {
            Ok(()) => {
                info!("ended");
                ExitCode::SUCCESS
            }
            Err(why) => {
                error!("{}", told(&*why));
                ExitCode::FAILURE
            }
        }
    }

    /// As [`Process::run`], for a component that begins with a mesh identity. It is ready once it has that and `conditions` are met.
    pub fn run_in_mesh<C: Debug, F, E>(
        self,
        parse: impl FnOnce(&Env<'_>) -> Result<C, BadVariable>,
        at: impl FnOnce(&C) -> (IpAddr, Ports),
        conditions: &[&'static str],
        serve: impl FnOnce(C, Started, Identity) -> F,
    ) -> ExitCode
    where
        F: Future<Output = Result<(), E>>,
        E: Into<Failure>,
    {
        let conditions: Vec<_> = conditions.iter().copied().chain([IDENTITY]).collect();
        self.run(
            |env| Ok((parse(env)?, env.mesh())),
            |(config, _)| {
                let (bind, ports) = at(config);
                (bind, ports, Health::new(&conditions))
            },
            |(config, mesh), started| async move {
                let Some(identity) = started.identity(mesh).await? else { return Ok(()) };
                serve(config, started, identity).await.map_err(Into::into)
            },
        )
    }

    /// Watches for signals, and over the time that ending takes.
    fn ends(
        self,
        health: Health,
        shutdown: CancellationToken,
    ) -> std::io::Result<impl Future<Output = Failure>> {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(async move {
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
            info!("told to end");
            let linger = if health.is_ready() { self.linger } else { Duration::ZERO };
            health.stop();
            tokio::spawn(async move {
                tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
                warn!("told to end again: what is under way is cut off");
                std::process::exit(INTERRUPTED);
            });
            tokio::time::sleep(linger).await;
            shutdown.cancel();
            tokio::time::sleep(self.drain).await;
            format!("draining took longer than {} s; what was under way is cut off", self.drain.as_secs())
                .into()
        })
    }
}
