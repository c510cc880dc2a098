//! `ebb install`: applies stage after stage, then waits until every component works.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ebb_api::manifests::{Options, Place, Stage as Part, manifests};
use ebb_controller::install as apply;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::Client;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::cluster::{ClusterArgs, Present};
use super::{prune, settings, waiting};
use crate::cli::ImageNames;
use crate::progress::{Stage, count};

/// How often the Deployments are looked at while they come up.
const LOOK: Duration = Duration::from_millis(500);

/// Arguments of `ebb install`.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    images: ImageNames,
    /// The domain of Services: `http://NAME.NAMESPACE.DOMAIN`. Can be changed later in the ConfigMap config-domain; without one, Services
    /// can be reached from inside the cluster only.
    #[arg(long, value_name = "DOMAIN", value_parser = domain)]
    domain: Option<String>,
    /// Pods of each component [default: as many as there are, 1 at first].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    replicas: Option<u32>,
    /// Only print what would be applied, without asking any cluster.
    #[arg(long)]
    dry_run: bool,
    /// The form in which --dry-run prints.
    #[arg(short, long, value_enum, default_value_t, requires = "dry_run")]
    output: Form,
    /// Whether to wait until every component is ready.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    wait: bool,
    /// For how long to wait at most: 90s, 5m.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    timeout: Duration,
}

/// A form of manifests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// YAML documents.
    #[default]
    Yaml,
    /// One List.
    Json,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    ebb_api::duration::parse(text).ok_or_else(|| format!("{text:?} is not a duration such as 90s or 5m"))
}

fn domain(text: &str) -> Result<String, String> {
    let bad = ebb_api::names::dns1123_subdomain(text);
    if bad.is_empty() { Ok(text.to_owned()) } else { Err(bad.join("; ")) }
}

/// Installs.
pub(crate) async fn run(args: InstallArgs) -> anyhow::Result<ExitCode> {
    let mut options = Options {
        domain: args.domain.clone(),
        place: Place::Cluster { images: args.images.resolve(), replicas: args.replicas.unwrap_or(1) },
        ..Options::default()
    };
    if args.dry_run {
        return print(&manifests(&options), args.output);
    }
    let cluster = args.cluster.connect().await?;
    if cluster.version.contains("+ebb") {
        bail!("the cluster at {} is an `ebb up`, which has the platform inside already", cluster.url);
    }
    let present = Present::look(&cluster, &options.namespace).await?;
    present.allows(&options.namespace, &options.version)?;
    match present.version() {
        Some(there) => {
            eprintln!("ebb {there} -> {} on {} ({})", options.version, cluster.url, cluster.version);
        }
        None => eprintln!("ebb {} on {} ({})", options.version, cluster.url, cluster.version),
    }
    let client = &cluster.client;
    keep(client, &mut options, args.replicas).await?;
    let parts = manifests(&options);
    for part in &parts {
        let stage = Stage::begin(format!("apply {}", part.name));
        let kept = put(client, part).await?;
        stage.done(count(part.objects.len(), "object"));
        for kept in &kept {
            eprintln!("      {kept}");
        }
    }
    if args.wait {
        ready(client, &options, args.timeout).await?;
    }
    // Only now: the old may have served until the new was ready.
    prune(client, &options, &parts).await?;
    tell(client, &options).await
}

fn print(parts: &[Part], form: Form) -> anyhow::Result<ExitCode> {
    let objects: Vec<&Value> = parts.iter().flat_map(|part| &part.objects).collect();
    match form {
        Form::Json => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
            println!("{}", serde_json::to_string_pretty(&list)?);
        }
        Form::Yaml => {
            for object in objects {
                println!("---\n{}", serde_saphyr::to_string(object)?.trim_end());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What was said to an earlier installation, or scaled by hand since, stays so unless it is said anew.
async fn keep(client: &Client, options: &mut Options, said: Option<u32>) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &options.namespace);
    let found = deployments.list(&ours()).await.context("reading the Deployments that are there")?;
    let most = found.iter().filter_map(|d| d.spec.as_ref()?.replicas).max();
    if let (Place::Cluster { replicas, .. }, Some(most), None) = (&mut options.place, most, said) {
        *replicas = u32::try_from(most).unwrap_or(1).max(1);
    }
    if options.domain.is_none() {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &options.namespace);
        let found = maps.get_opt("config-domain").await.context("reading the ConfigMap config-domain")?;
        options.domain = found.as_ref().and_then(settings::domain);
    }
    Ok(())
}

fn ours() -> ListParams {
    ListParams::default().labels("app.kubernetes.io/name=ebb")
}

/// Applies the objects of a part; gives what was left as others had set it.
async fn put(client: &Client, part: &Part) -> anyhow::Result<Vec<String>> {
    let mut kept = Vec::new();
    for object in &part.objects {
        if object["kind"] == "ConfigMap" {
            kept.extend(settings::put(client, object).await?);
        } else {
            apply::apply(client, object, true).await?;
        }
    }
    for crd in part.objects.iter().filter(|o| o["kind"] == "CustomResourceDefinition") {
        apply::established(client, crd["metadata"]["name"].as_str().unwrap_or_default()).await?;
    }
    Ok(kept)
}

/// Removes what an older version had.
async fn prune(client: &Client, options: &Options, parts: &[Part]) -> anyhow::Result<()> {
    let wanted: Vec<Value> = parts.iter().flat_map(|p| p.objects.clone()).collect();
    let found = prune::find(client, &options.namespace, true, true).await?;
    let stale = prune::stale(&wanted, &found);
    if stale.is_empty() {
        return Ok(());
    }
    let stage = Stage::begin("remove what the older version had");
    for found in &stale {
        stage.note(found.name());
        found.delete(client).await?;
    }
    stage.done(count(stale.len(), "object"));
    Ok(())
}

/// Waits until all Deployments are, saying what keeps them.
async fn ready(client: &Client, options: &Options, timeout: Duration) -> anyhow::Result<()> {
    let stage = Stage::begin("wait until the components are ready");
    let start = Instant::now();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &options.namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &options.namespace);
    let ours = ours();
    let mut told = Vec::new();
    loop {
        let (found, pods) = tokio::try_join!(deployments.list(&ours), pods.list(&ours))
            .context("looking at the components")?;
        let missing: Vec<String> = found.iter().filter_map(|d| waiting::missing(d, &pods.items)).collect();
        if missing.is_empty() {
            stage.done(format!("{} components", found.items.len()));
            return Ok(());
        }
        if missing != told {
            stage.note(missing.join("; "));
            told = missing;
        }
        if start.elapsed() > timeout {
            let mend = if waiting::images_are_missing(&told) { waiting::IMAGES } else { "" };
            bail!(
                "not ready after {} s:\n  {}\n{mend}{}What is there stays; `ebb install` again goes on from here.",
                timeout.as_secs(),
                told.join("\n  "),
                if mend.is_empty() { "" } else { "\n" },
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says how to go on.
async fn tell(client: &Client, options: &Options) -> anyhow::Result<ExitCode> {
    let services: Api<Service> = Api::namespaced(client.clone(), &options.namespace);
    let gateway = services.get("gateway").await.context("reading the gateway's Service")?;
    let ingress = gateway.status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
    let address = ingress.into_iter().find_map(|i| i.ip.or(i.hostname));
    let node_port = gateway
        .spec
        .and_then(|s| s.ports)
        .into_iter()
        .flatten()
        .find(|p| p.port == 80)
        .and_then(|p| p.node_port);
    println!("ebb {} is installed", options.version);
    match (&address, node_port) {
        (Some(address), _) => println!("gateway: http://{address}"),
        (None, Some(port)) => {
            println!(
                "gateway: port {port} of every node, until a load balancer gives the Service gateway an address"
            );
        }
        (None, None) => println!("gateway: the Service gateway in {}", options.namespace),
    }
    Ok(ExitCode::SUCCESS)
}
