//! Puts the parts together and sees them through a pod's life: start, ready, serve, drain, leave.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebb_http::otlp::{Source, metrics};
use ebb_http::wire::{Announcement, now_us};
use ebb_http::{Handler, PlainAcceptor, Pool, PoolConfig, ServerConfig, serve};
use ebb_mesh::{Identity, MeshAcceptor, PeerPolicy};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::announce::Announcer;
use crate::config::Config;
use crate::drain::{self, Next};
use crate::probe::Prober;
use crate::proxy::Proxy;
use crate::state::State;
use crate::stats::{MetricsPage, Stats};

/// Why the sidecar cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A port is taken.
    #[error("cannot listen on {address}: {cause}; does the app use a port that is reserved for the sidecar?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// No identity.
    #[error("mesh identity: {0}")]
    Mesh(#[from] ebb_mesh::Error),
}

/// Apps of the common frameworks close connections after 5 s without a request (Node.js); being first avoids the race.
const APP_IDLE: Duration = Duration::from_secs(4);
/// Connecting to the app does not leave the pod. What takes longer was dropped by the kernel, because the app's queue of connections is full; the
/// kernel's own next attempts come after 1, 2 and 4 seconds, when the queue has long had room.
const APP_CONNECT: Duration = Duration::from_millis(100);
/// Connections that admin, stats and metrics ports take: they serve a handful of known clients.
const SIDE_CONNECTIONS: usize = 64;

/// The bound ports: taken before anything else, so that a clash shows at once and no early connection is refused.
#[derive(Debug)]
pub struct Listeners {
    /// HTTP/1.1 and h2c.
    pub http1: TcpListener,
    /// The same.
    pub h2c: TcpListener,
    /// Mutual TLS.
    pub mtls: TcpListener,
    /// Drain and readiness.
    pub admin: TcpListener,
    /// Load reports.
    pub stats: TcpListener,
    /// Prometheus metrics.
    pub metrics: TcpListener,
}

impl Listeners {
    /// Binds all ports. Async because it needs the runtime, not because it waits.
    ///
    /// # Errors
    /// When one is taken.
    #[expect(clippy::unused_async, reason = "registering sockets needs a runtime, which async makes plain")]
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let ports = config.ports;
        let on = |port| listen(config.bind, port);
        Ok(Self {
            http1: on(ports.http1)?,
            h2c: on(ports.h2c)?,
            mtls: on(ports.mtls)?,
            admin: on(ports.admin)?,
            stats: on(ports.stats)?,
            metrics: on(ports.metrics)?,
        })
    }
}

fn listen(ip: IpAddr, port: u16) -> Result<TcpListener, Error> {
    let address = SocketAddr::new(ip, port);
    ebb_http::listen(address).map_err(|cause| Error::Listen { address, cause })
}

/// Runs until `stop`, then drains, then returns. Dropping the future cuts everything.
///
/// # Errors
/// When no identity can ever be had.
pub async fn run(config: Config, listeners: Listeners, stop: CancellationToken) -> Result<(), Error> {
    let config = Arc::new(config);
    let state = State::new(config.concurrency);
    let app_pool = Pool::new(
        ebb_http::PlainConnector,
        PoolConfig {
            connect_timeout: APP_CONNECT,
            idle_timeout: APP_IDLE,
            max_idle: 1024,
            ..PoolConfig::default()
        },
    );
    let known = (!config.detect_h2).then_some(config.app_protocol);
    let prober = Prober::new(config.probe.clone(), config.app, known, &app_pool);
    let prober = Arc::new(prober.and(&config.further_probes, &app_pool));
    let proxy = Arc::new(Proxy::new(&config, state.clone(), &app_pool, prober.clone()));

    let tasks = TaskTracker::new();
    let closing = CancellationToken::new();
    // Whatever ends this future ends its tasks.
    let _close = closing.clone().drop_guard();
    let side = ServerConfig { max_connections: SIDE_CONNECTIONS, ..ServerConfig::default() };

    plain(&tasks, listeners.http1, proxy.clone(), ServerConfig::default(), &closing);
    plain(&tasks, listeners.h2c, proxy.clone(), ServerConfig::default(), &closing);
    let admin = Arc::new(Admin { state: state.clone(), prober: prober.clone() });
    let admin_closing = CancellationToken::new();
    let _close_admin = admin_closing.clone().drop_guard();
    plain(&tasks, listeners.admin, admin, side, &admin_closing);
    let page = Arc::new(MetricsPage { config: config.clone(), state: state.clone() });
    plain(&tasks, listeners.metrics, page, side, &admin_closing);

    if let Some(settings) = config.request_metrics.clone() {
        let told = (config.clone(), state.clone());
        let page: metrics::Page = Box::new(move || {
            let page = told.1.metrics.render(&told.0, &told.1);
            Box::pin(async move { page })
        });
        let source = Source {
            service: "ebb-queue-proxy".to_owned(),
            pod: Some(config.pod.clone()),
            namespace: Some(config.namespace.clone()),
        };
        let (end, state) = (closing.clone(), state.clone());
        tasks.spawn(async move {
            let (_said, settings) = tokio::sync::watch::channel(Some(settings));
            // Nobody waits for it while the pod starts.
            end.run_until_cancelled(state.wait_ready()).await;
            metrics::send(&source, page, settings, end).await;
        });
    }

    let ready = {
        let (state, prober) = (state.clone(), prober.clone());
        async move {
            prober.wait_started().await;
            state.app_ready();
            tracing::info!(after = ?state.started.elapsed(), "the app is ready");
        }
    };
    let mesh = mesh(&config, &state, &proxy, listeners.mtls, listeners.stats, &tasks, &closing, side);
    let life = async { tokio::join!(ready, mesh).1 };

    tokio::select! {
        ended = life => {
            ended?;
            stop.cancelled().await;
        }
        () = stop.cancelled() => {}
    }
    drain_and_close(&config, &state, &tasks, &closing, &admin_closing).await;
    Ok(())
}

fn plain<H: Handler>(
    tasks: &TaskTracker,
    listener: TcpListener,
    handler: Arc<H>,
    config: ServerConfig,
    closing: &CancellationToken,
) {
    tasks.spawn(serve(listener, PlainAcceptor, handler, config, closing.clone()));
}

/// The pod's end of the mesh: obtains the identity while the app starts, serves with it, and announces when both are there.
#[expect(clippy::too_many_arguments, reason = "called once; a struct would only rename them")]
async fn mesh(
    config: &Arc<Config>,
    state: &Arc<State>,
    proxy: &Arc<Proxy>,
    mtls: TcpListener,
    stats: TcpListener,
    tasks: &TaskTracker,
    closing: &CancellationToken,
    side: ServerConfig,
) -> Result<(), Error> {
    let Some(identity_config) = config.identity.clone() else {
        tracing::warn!("EBB_CA is not set: no mutual TLS, no load reports, no announcement");
        return Ok(());
    };
    let reports = Arc::new(Stats::new(config.clone(), state.clone())?);
    let identity = Identity::obtain(identity_config).await?;
    let certified_us = now_us();
    tracing::info!(id = %identity.id(), after = ?state.started.elapsed(), "identity obtained");
    let acceptor = MeshAcceptor(identity.clone());
    tasks.spawn(serve(mtls, acceptor.clone(), proxy.clone(), ServerConfig::default(), closing.clone()));
    tasks.spawn(serve(stats, acceptor, reports, side, closing.clone()));

    let Some(activator) = config.activator.clone() else { return Ok(()) };
    let peer =
        PeerPolicy::component(&config.trust_domain, &config.system_namespace, "activator")?.to_shared();
    let pool =
        Pool::new(identity, PoolConfig { idle_timeout: Duration::from_secs(30), ..PoolConfig::default() });
    let announcer = Announcer::new(pool, activator, peer);
    // The connections open while the app starts; a ready app does not wait for them longer than for one attempt.
    let known = announcer.warm().await;
    state.wait_ready().await;
    let announcement = Announcement {
        namespace: config.namespace.clone(),
        revision: config.revision.clone(),
        pod: config.pod.clone(),
        address: config.pod_ip.to_string(),
        port: config.ports.mtls,
        started_at_us: state.started_us,
        certified_at_us: certified_us,
        listening_at_us: state.listening_us(),
    };
    announcer.announce(known, &announcement).await;
    Ok(())
}

async fn drain_and_close(
    config: &Config,
    state: &State,
    tasks: &TaskTracker,
    closing: &CancellationToken,
    admin_closing: &CancellationToken,
) {
    state.begin_drain();
    let began = Instant::now();
    tracing::info!(open = state.seen().open, "draining");
    loop {
        let (now, seen) = (Instant::now(), state.seen());
        if drain::only_tunnels(seen, began, now, config.quiet) {
            state.only_tunnels.cancel();
        }
        match drain::next(seen, began, now, config.quiet, config.timeout) {
            Next::Wait(until) => tokio::time::sleep_until(until.into()).await,
            Next::Leave => break,
            Next::Cut => {
                tracing::warn!(open = state.seen().open, "grace is over: cutting what is open");
                state.tunnels.kill();
                break;
            }
        }
    }
    // Now the app may be stopped: whoever waits in a preStop hook goes on.
    state.drained.cancel();
    closing.cancel();
    admin_closing.cancel();
    tasks.close();
    // Connections without requests close at once; a client that reads its last answer slowly gets a moment.
    if tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.is_err() {
        tracing::debug!("some connections did not close in time");
    }
    tracing::info!(after = ?began.elapsed(), "drained");
}
