//! The arguments of the command, and which module does what.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{build, demo, image, up};

/// Serverless on one machine: apply a Knative Service, get a URL; it idles at zero and is back in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "ebb", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// More of what happens inside, on standard error (-v, -vv). EBB_LOG takes a filter, as in `EBB_LOG=ebb_gateway=debug`.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the platform here: Kubernetes API, containers, gateway. Ctrl-C stops it cleanly.
    Up(UpArgs),
    /// See the main job done: cold start with its breakdown, scaling, idle at zero, a canary counted.
    Demo(DemoArgs),
    /// Make an OCI image of a binary or a project, without Docker, and put it into the registry of the running platform.
    Build(BuildArgs),
    /// Look after the images of the running platform.
    #[command(subcommand)]
    Image(ImageCommand),
}

/// Where a platform keeps its state.
#[derive(Clone, Debug, Args)]
pub(crate) struct DataDir {
    /// The platform's folder: state, images, logs, kubeconfig [default: ~/.ebb].
    #[arg(long, env = "EBB_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Arguments of `ebb up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) data_dir: DataDir,
    /// Port of the Kubernetes API on 127.0.0.1 (0: any free one).
    #[arg(long, default_value_t = 6443, value_name = "N")]
    pub(crate) api_port: u16,
    /// Port of the gateway on 127.0.0.1 (0: any free one).
    #[arg(long, default_value_t = 8080, value_name = "N")]
    pub(crate) gateway_port: u16,
    /// Port of the image registry on 127.0.0.1 (0: any free one).
    #[arg(long, default_value_t = 5000, value_name = "N")]
    pub(crate) registry_port: u16,
}

/// Arguments of `ebb demo`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoArgs {
    /// Keep the temporary folder of the platform for a look at its logs.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Arguments of `ebb build`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    pub(crate) data_dir: DataDir,
    /// An executable, or the folder of a Cargo or Go project.
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Name of the image, as in `hello:v1`.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) tag: String,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Take in a docker-archive (`docker save`) or an OCI layout, as a tar file or a folder.
    Load {
        #[command(flatten)]
        data_dir: DataDir,
        /// The archive.
        file: PathBuf,
        /// Name for the image, when the archive has none or another is wanted.
        #[arg(short, long, value_name = "NAME")]
        tag: Option<String>,
    },
    /// Show what the registry of the running platform holds.
    List {
        #[command(flatten)]
        data_dir: DataDir,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For scripts.
    Json,
}

/// Sends what the code says of itself to standard error: warnings always, more with -v.
pub(crate) fn logging(cli: &Cli) {
    let default = match cli.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug,hyper=info,h2=info,rustls=info,tower=info,kube_client=info,netlink_proto=info",
    };
    let filter = std::env::var("EBB_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// Does what the arguments ask for.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(args) => up::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Build(args) => build::run(args).await,
        Command::Image(command) => image::run(command).await,
    }
}
