//! The arguments of the command, and which module does what.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cluster::rootless::Door;
use ebb_api::manifests::Images;

use crate::install::{InstallArgs, UninstallArgs};
use crate::signals::Signals;
use crate::{build, demo, image, install, up};

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
    /// Look after the images of the running platform; write the platform's own for a cluster.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Put the platform on the Kubernetes cluster of the current context, or bring it up to this version.
    Install(InstallArgs),
    /// Take the platform off that cluster, with all Services (it asks first).
    Uninstall(UninstallArgs),
    /// Run the controller, on a cluster.
    #[command(hide = true)]
    Controller,
    /// Run the autoscaler, on a cluster.
    #[command(hide = true)]
    Autoscaler,
    /// Run the activator, on a cluster.
    #[command(hide = true)]
    Activator,
    /// Run the gateway, on a cluster.
    #[command(hide = true)]
    Gateway,
    /// Keep the gateway's listening sockets while it is started again, on a cluster.
    #[command(hide = true)]
    ListenerKeeper,
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
    /// Port of the gateway for https on 127.0.0.1 (0: any free one); 8443, or any free one where that is taken.
    #[arg(long, value_name = "N")]
    pub(crate) gateway_tls_port: Option<u16>,
    /// Port of the image registry on 127.0.0.1 (0: any free one).
    #[arg(long, default_value_t = 5000, value_name = "N")]
    pub(crate) registry_port: u16,
    /// Only the embedded Kubernetes, without the platform: something to try `ebb install` on.
    #[arg(long, hide = true)]
    pub(crate) bare: bool,
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
    /// Which binary of a Cargo project that has several, or which package of a Go module, as in `./cmd/app`.
    #[arg(long, value_name = "NAME")]
    pub(crate) bin: Option<String>,
    /// Name of the image, as in `hello:v1`.
    #[arg(short, long, value_name = "NAME", value_parser = image_name)]
    pub(crate) tag: String,
    /// How to print the result (text, json), or a FILE to write the image to as an archive, for `docker load`, `ctr images import` and the
    /// like; no platform needs to run then.
    #[arg(short, long, value_name = "FORMAT|FILE", default_value = "text")]
    pub(crate) output: Destination,
}

/// Where an image goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Into the registry of the running platform.
    Registry(Output),
    /// Into an archive.
    File(PathBuf),
}

impl std::str::FromStr for Destination {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Registry(Output::Text)),
            "json" => Ok(Self::Registry(Output::Json)),
            file if file.contains(['.', '/']) => archive(file).map(Self::File),
            _ => {
                Err("it is neither text nor json; a FILE is known by a dot or a slash, as in hello.tar"
                    .into())
            }
        }
    }
}

/// An archive that can be written, as far as is known before the work.
fn archive(text: &str) -> Result<PathBuf, String> {
    let file = PathBuf::from(text);
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(format!("there is no folder {}", folder.display()))
        }
        _ if file.is_dir() => Err("it is a folder".into()),
        _ => Ok(file),
    }
}

/// The names of the platform's own images.
#[derive(Clone, Debug, Args)]
pub(crate) struct ImageNames {
    /// Registry and path that the cluster has the images under, as in `registry.example.com/team`.
    #[arg(
        long = "image-prefix",
        visible_alias = "prefix",
        env = "EBB_IMAGE_PREFIX",
        value_name = "REGISTRY/PATH",
        default_value = "localhost",
        value_parser = image_prefix
    )]
    prefix: String,
    /// Their tag [default: this version].
    #[arg(long = "image-tag", visible_alias = "tag", env = "EBB_IMAGE_TAG", value_name = "TAG", value_parser = image_tag)]
    tag: Option<String>,
}

impl ImageNames {
    /// With the defaults.
    pub(crate) fn resolve(&self) -> Images {
        Images {
            prefix: self.prefix.clone(),
            tag: self.tag.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        }
    }
}

/// The name of an image that is to be made.
fn image_name(text: &str) -> Result<String, String> {
    use cluster::images::{ImageError, Reference};
    match Reference::parse(text) {
        Ok(_) if text.contains('@') => Err("a digest cannot be chosen; give a tag, as in hello:v1".into()),
        Ok(_) => Ok(text.to_owned()),
        Err(ImageError::InvalidName { why, .. }) => Err(why),
        Err(other) => Err(other.to_string()),
    }
}

fn image_prefix(text: &str) -> Result<String, String> {
    let prefix = text.trim_end_matches('/');
    image_name(&format!("{prefix}/ebb:v1")).map(|_| prefix.to_owned())
}

fn image_tag(text: &str) -> Result<String, String> {
    image_name(&format!("ebb:{text}")).map(|_| text.to_owned())
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
        #[arg(short, long, value_name = "NAME", value_parser = image_name)]
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
    /// Write the images that a cluster runs, the components' and the sidecar's, into an archive.
    ///
    /// It is one for `docker load`, `podman load`, `ctr -n k8s.io images import` or `kind load image-archive`, made of this program; that needs neither
    /// Docker nor a running platform.
    Export {
        /// The archive to write.
        #[arg(value_parser = archive)]
        file: PathBuf,
        #[command(flatten)]
        images: ImageNames,
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

impl Cli {
    /// Whether this process is to be one that starts containers.
    pub(crate) fn runs_pods(&self) -> bool {
        matches!(self.command, Command::Up(_) | Command::Demo(_))
    }

    /// The component that is to run, if it is one.
    pub(crate) fn component(&self) -> Option<fn() -> ExitCode> {
        match self.command {
            Command::Controller => Some(ebb_controller::main),
            Command::Autoscaler => Some(ebb_autoscaler::main),
            Command::Activator => Some(ebb_activator::main),
            Command::Gateway => Some(ebb_gateway::main),
            Command::ListenerKeeper => Some(ebb_component::keeper::main),
            _ => None,
        }
    }
}

/// Sends what the code says of itself to standard error: warnings always, more with -v.
pub(crate) fn logging(cli: &Cli) -> anyhow::Result<()> {
    let default = match cli.verbose {
        // What that module says, whoever asked is told as well.
        0 => "warn,kube_client::client::builder=off",
        1 => "info",
        _ => "debug,hyper=info,h2=info,rustls=info,tower=info,kube_client=info,netlink_proto=info",
    };
    let filter = std::env::var("EBB_LOG").unwrap_or_else(|_| default.into());
    ebb_component::logging::start(&filter, false).map_err(anyhow::Error::msg)
}

/// Does what the arguments ask for.
pub(crate) async fn run(cli: Cli, door: Option<Door>) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(args) => up::run(args, door).await,
        Command::Demo(args) => demo::run(args, door).await,
        Command::Build(args) => unless_asked(build::run(args)).await,
        Command::Image(command) => unless_asked(image::run(command)).await,
        Command::Install(args) => install::run(args).await.map_err(install::mend),
        Command::Uninstall(args) => install::uninstall(args).await.map_err(install::mend),
        // `main` runs these without a runtime of its own.
        Command::Controller
        | Command::Autoscaler
        | Command::Activator
        | Command::Gateway
        | Command::ListenerKeeper => anyhow::bail!("a component was not started as one"),
    }
}

/// A command that is dropped when it is asked to end, and its temporary folders with it.
async fn unless_asked(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::watch()?;
    tokio::select! {
        done = command => done,
        interrupted = signals.asked() => Err(interrupted.into()),
    }
}
