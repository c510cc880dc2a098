//! The sidecar's process: configuration, runtime, signals.

use std::process::ExitCode;

use anyhow::Context as _;
use ebb_queue_proxy::{Config, Listeners, run, workers};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// `EX_USAGE` of sysexits.h.
const BAD_CONFIG: u8 = 64;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|a| a == "--version") {
        println!("queue-proxy {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    init_logging();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a crypto provider was installed already");
    }
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("queue-proxy: {error}");
            return ExitCode::from(BAD_CONFIG);
        }
    };
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "queue-proxy failed");
            ExitCode::FAILURE
        }
    }
}

/// One JSON line for each event, as the other components write them. No filter language: it would cost memory.
fn init_logging() {
    let level = std::env::var("EBB_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(tracing::Level::INFO);
    tracing_subscriber::fmt().json().with_max_level(level).with_writer(std::io::stderr).init();
}

/// The limit on CPU that the container has: quota and period in microseconds.
fn cpu_max() -> String {
    std::fs::read_to_string("/sys/fs/cgroup/cpu.max").unwrap_or_default()
}

fn start(config: Config) -> anyhow::Result<()> {
    // One thread: the app shall have the CPU, and memory for one is enough. Whoever gives the sidecar several cores has use for more.
    let mut builder = match workers(std::env::var("EBB_THREADS").ok().as_deref(), &cpu_max()) {
        1 => tokio::runtime::Builder::new_current_thread(),
        many => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(many);
            builder
        }
    };
    let runtime = builder.enable_all().build().context("starting tokio")?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("watching SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watching SIGINT")?;
        let signalled = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            signalled.cancel();
        });
        let listeners = Listeners::bind(&config).await?;
        tracing::info!(?config, "queue-proxy {} starts", env!("CARGO_PKG_VERSION"));
        run(config, listeners, stop).await?;
        Ok(())
    });
    // A name that is still being looked up holds up nobody's end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    ended
}
