//! Benchmarks of the platform as its users meet it: `cargo run --release -p bench -- NAME [--json]`.
//!
//! Each starts an `ebb up` of its own (the release build beside this binary), or asks the platform on a cluster (`--kubeconfig`), always from
//! outside, and prints distributions and counts.

mod bare;
mod cold_start;
mod components;
mod create;
mod figures;
mod idle;
mod platform;
mod proxy;
mod routes;
mod scale;
mod storm;
mod usage;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use serde_json::json;

#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 110)]
struct Cli {
    /// What to measure.
    #[arg(value_enum)]
    name: Name,
    /// How many samples; each benchmark has its own default.
    #[arg(short, long, visible_alias = "services")]
    n: Option<usize>,
    /// One line of figures for a machine to read.
    #[arg(long)]
    json: bool,
    /// Who else is measured by `proxy`, in the same run; may be given several times.
    #[arg(long, value_enum, default_values = ["envoy"])]
    peer: Vec<proxy::Peer>,
    #[command(flatten)]
    target: platform::Target,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// From a request to a Service at zero until its answer, with the platform's own breakdown.
    ColdStart,
    /// From `create` to Ready: one Service, 20 and 50 at once, and as many bare Deployments.
    Create,
    /// 1,000 requests on one cold Service; 100 cold Services at once.
    Storm,
    /// From `ebb up` to ready; memory of it and of one queue-proxy when idle.
    Idle,
    /// Memory and processor time of each component's containers, idle and with many Services (on a cluster only).
    Components,
    /// Thousands of Services on one `ebb up`: create to Ready, API calls for each, memory, processor time and writes at rest, cold starts beside
    /// them, a restart.
    Scale,
    /// Gateway and sidecar beside peers in the same two places: requests per second, latency, processor time for a request (n: rounds).
    Proxy,
    /// A change of one route among n hosts, under load: from the write to the first answer that follows it.
    Routes,
    /// Full load for n minutes: memory along the way.
    Soak,
    /// Memory that idle connections take.
    Connections,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider is installed already");
    }
    let target = &cli.target;
    let on_cluster = target.kubeconfig.is_some();
    let or = |embedded, cluster| cli.n.unwrap_or(if on_cluster { cluster } else { embedded });
    let mut figures = match cli.name {
        Name::ColdStart => cold_start::run(or(100, 30), target)?,
        Name::Create => create::run(or(10, 10), target)?,
        Name::Storm => storm::run(or(3, 1), target)?,
        Name::Idle if on_cluster => {
            anyhow::bail!("idle measures `ebb up`; for a cluster there is `components`")
        }
        Name::Idle => idle::run(or(10, 10), target)?,
        Name::Scale => scale::run(or(2000, 2000), target)?,
        Name::Proxy => proxy::run(or(3, 3), &cli.peer, target)?,
        Name::Routes => routes::run(or(10_000, 10_000), target)?,
        Name::Soak => proxy::soak(or(10, 10), target)?,
        Name::Connections => proxy::connections(target)?,
        Name::Components => components::run(or(200, 200), target)?,
    };
    if cli.json {
        figures["machine"] = json!(figures::machine());
        println!("{figures}");
    } else {
        println!("{}\n{}", figures::machine(), figures::table(&figures));
    }
    Ok(())
}
