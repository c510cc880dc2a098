//! `ebb uninstall`: takes the platform off a cluster, with everything that it made anywhere.
//!
//! Users' Services go first, while there is still a controller; then the components; then the kinds themselves; last the rights. Nothing
//! here waits for ever: a finalizer whose owner is gone is taken off.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use ebb_api::crds::crds;
use ebb_api::manifests::{INSTALLATION, Options};
use ebb_api::meta::ebb::{MESH_POLICY, MESH_ROOT};
use ebb_controller::install::resource;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use serde_json::json;

use super::cluster::ClusterArgs;
use super::prune;
use crate::progress::{Stage, count};

/// How often is looked whether something is gone.
const LOOK: Duration = Duration::from_millis(250);
/// After this long without any object going, finalizers are taken off.
const PATIENCE: Duration = Duration::from_secs(15);
/// What the pods of the components get for what is under way.
const GRACE: u32 = 10;

/// Arguments of `ebb uninstall`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Do not ask before users' Services are deleted.
    #[arg(short, long)]
    yes: bool,
    /// For how long to wait at most for each step: 90s, 5m.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = super::run::duration)]
    timeout: Duration,
}

/// Uninstalls.
pub(crate) async fn run(args: UninstallArgs) -> anyhow::Result<ExitCode> {
    let cluster = args.cluster.connect().await?;
    if cluster.version.contains("+ebb") {
        bail!("the cluster at {} is an `ebb up`: stop that, and remove its folder", cluster.url);
    }
    let client = &cluster.client;
    let namespace = Options::default().namespace;
    let kinds = kinds(client, &namespace).await?;
    let users = users(client, &kinds).await?;
    if !users.is_empty() && !args.yes {
        eprintln!("These go with ebb on {}:\n{}", cluster.url, listed(&users));
        if !std::io::stdin().is_terminal() {
            bail!("nothing was deleted: say --yes to delete them");
        }
        if !asked("Delete them all?")? {
            bail!("nothing was deleted");
        }
    }
    let patience = Patience { timeout: args.timeout, finalizers: PATIENCE };

    // They fail closed; without a controller they would refuse even the removal of a finalizer.
    let webhooks = prune::find(client, &namespace, false, true).await?;
    for webhook in webhooks.iter().filter(|f| f.is_webhook()) {
        webhook.delete(client).await?;
    }
    if !kinds.is_empty() {
        let stage = Stage::begin("delete Services and what was made of them");
        let gone = delete_all(client, &kinds, &stage, &patience).await?;
        stage.done(count(gone, "object"));
    }
    let stage = Stage::begin("delete the components");
    components(client, &namespace, &stage, &patience).await?;
    stage.done(&namespace);
    let strewn = strewn(client).await?;
    if !kinds.is_empty() {
        let stage = Stage::begin("delete the CRDs");
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        for kind in &kinds {
            ignore_missing(api.delete(&kind.crd, &DeleteParams::background()).await.map(drop))
                .with_context(|| format!("deleting the CRD {}", kind.crd))?;
        }
        gone(&stage, &patience, || async {
            let list = api.list(&ListParams::default()).await?;
            let left = list.items.into_iter().map(|c| c.name_any());
            Ok(left.filter(|name| kinds.iter().any(|k| k.crd == *name)).collect())
        })
        .await?;
        stage.done(format!("{} kinds", kinds.len()));
    }
    let rights = prune::find(client, &namespace, false, true).await?;
    for found in &rights {
        found.delete(client).await?;
    }
    let left = prune::find(client, &namespace, false, true).await?;
    if !left.is_empty() {
        let names: Vec<String> = left.iter().map(prune::Found::name).collect();
        bail!("these are still there: {}; run `ebb uninstall` again", names.join(", "));
    }
    println!("ebb is off the cluster {}", cluster.url);
    if strewn > 0 {
        println!("{strewn} of its ConfigMaps and NetworkPolicies in users' namespaces went with it");
    }
    Ok(ExitCode::SUCCESS)
}

/// How long is waited.
struct Patience {
    timeout: Duration,
    finalizers: Duration,
}

/// A kind of the platform that the cluster has.
struct Kind {
    crd: String,
    resource: ApiResource,
}

/// Those of the platform's kinds that are there and its own.
async fn kinds(client: &Client, namespace: &str) -> anyhow::Result<Vec<Kind>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let there = api.list(&ListParams::default()).await.context("reading the cluster's CRDs")?;
    let mut kinds = Vec::new();
    for crd in crds() {
        let name = crd.name_any();
        let Some(found) = there.items.iter().find(|c| c.name_any() == name) else { continue };
        if found.labels().get("app.kubernetes.io/name").map(String::as_str) != Some("ebb") {
            bail!(
                "the CRD {name} belongs to another installation of Knative's API; ebb is not here, or not alone"
            );
        }
        if found.labels().get(INSTALLATION).is_some_and(|other| other != namespace) {
            bail!("the CRD {name} belongs to an installation in another namespace");
        }
        let version = crd.spec.versions.iter().find(|v| v.storage).map_or("v1", |v| v.name.as_str());
        let gvk = GroupVersionKind::gvk(&crd.spec.group, version, &crd.spec.names.kind);
        kinds.push(Kind {
            crd: name,
            resource: ApiResource::from_gvk_with_plural(&gvk, &crd.spec.names.plural),
        });
    }
    Ok(kinds)
}

/// What users made themselves, by kind.
async fn users(client: &Client, kinds: &[Kind]) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut all = BTreeMap::new();
    let theirs = ["Service", "Configuration", "Route", "Revision", "DomainMapping", "ClusterDomainClaim"];
    for kind in kinds.iter().filter(|k| theirs.contains(&k.resource.kind.as_str())) {
        let found = everything(client, kind).await?;
        let names: Vec<String> =
            found.iter().filter(|o| o.owner_references().is_empty()).map(full_name).collect();
        if !names.is_empty() {
            all.insert(kind.resource.kind.clone(), names);
        }
    }
    Ok(all)
}

fn full_name(object: &DynamicObject) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// The list to be asked about; a long one is cut.
fn listed(users: &BTreeMap<String, Vec<String>>) -> String {
    let mut lines = Vec::new();
    for (kind, names) in users {
        lines.push(format!("  {} of the kind {kind}:", names.len()));
        lines.extend(names.iter().take(20).map(|name| format!("    {name}")));
        if names.len() > 20 {
            lines.push(format!("    ... and {} more", names.len() - 20));
        }
    }
    lines.join("\n")
}

fn asked(question: &str) -> anyhow::Result<bool> {
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

async fn everything(client: &Client, kind: &Kind) -> anyhow::Result<Vec<DynamicObject>> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind.resource);
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(vec![]),
        Err(error) => Err(error).with_context(|| format!("reading {}", kind.resource.plural)),
    }
}

fn api_of(client: &Client, kind: &Kind, object: &DynamicObject) -> Api<DynamicObject> {
    match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &kind.resource),
        None => Api::all_with(client.clone(), &kind.resource),
    }
}

fn ignore_missing(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

/// Deletes the objects of all kinds: those that nothing owns, for the rest goes with them; if it does not, that too.
async fn delete_all(
    client: &Client,
    kinds: &[Kind],
    stage: &Stage,
    patience: &Patience,
) -> anyhow::Result<usize> {
    let start = Instant::now();
    let (mut first, mut least, mut moved) = (None, usize::MAX, Instant::now());
    loop {
        let lists = try_join_all(kinds.iter().map(|kind| everything(client, kind))).await?;
        let all: Vec<(&Kind, DynamicObject)> = kinds
            .iter()
            .zip(lists)
            .flat_map(|(kind, list)| list.into_iter().map(move |o| (kind, o)))
            .collect();
        let most = *first.get_or_insert(all.len());
        if all.is_empty() {
            return Ok(most);
        }
        if all.len() < least {
            (least, moved) = (all.len(), Instant::now());
            stage.note(format!("{} left", count(all.len(), "object")));
        }
        let stuck = moved.elapsed() > patience.finalizers;
        let step = all.iter().map(|(kind, object)| async move {
            let api = api_of(client, kind, object);
            let result = match next(object, stuck) {
                Next::Wait => Ok(()),
                Next::Delete => api.delete(&object.name_any(), &DeleteParams::background()).await.map(drop),
                Next::Free => {
                    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                    api.patch_metadata(&object.name_any(), &PatchParams::default(), &patch).await.map(drop)
                }
            };
            ignore_missing(result)
                .with_context(|| format!("deleting {} {}", kind.resource.kind, full_name(object)))
        });
        try_join_all(step).await?;
        if start.elapsed() > patience.timeout {
            let left: Vec<String> =
                all.iter().take(10).map(|(k, o)| format!("{} {}", k.resource.kind, full_name(o))).collect();
            bail!(
                "{} objects are still there after {} s, such as {}",
                all.len(),
                patience.timeout.as_secs(),
                left.join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What to do with an object that is still there.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Wait,
    Delete,
    /// Take its finalizers off.
    Free,
}

fn next(object: &DynamicObject, stuck: bool) -> Next {
    let deleted = object.metadata.deletion_timestamp.is_some();
    match (deleted, object.owner_references().is_empty(), stuck) {
        (true, _, true) if !object.finalizers().is_empty() => Next::Free,
        (true, ..) => Next::Wait,
        (false, false, false) => Next::Wait,
        (false, ..) => Next::Delete,
    }
}

/// Deletes the platform's namespace with all that is in it, and waits until it is gone.
async fn components(
    client: &Client,
    namespace: &str,
    stage: &Stage,
    patience: &Patience,
) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    ignore_missing(namespaces.delete(namespace, &DeleteParams::background()).await.map(drop))
        .with_context(|| format!("deleting the namespace {namespace}"))?;
    // Their own grace is for requests of many minutes, which have nowhere to go now.
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let short = DeleteParams::background().grace_period(GRACE);
    for pod in pods.list(&ListParams::default()).await.context("reading the pods of the components")? {
        ignore_missing(pods.delete(&pod.name_any(), &short).await.map(drop)).context("ending a component")?;
    }
    gone(stage, patience, || async {
        let Some(found) = namespaces.get_opt(namespace).await? else { return Ok(vec![]) };
        let conditions = found.status.and_then(|s| s.conditions).unwrap_or_default();
        // Such as: Some resources are remaining: pods. has 2 resource instances.
        let why = conditions.into_iter().filter(|c| c.status == "True").filter_map(|c| c.message);
        let why = why.collect::<Vec<_>>().join(" ");
        Ok(vec![if why.is_empty() { format!("namespace {namespace}") } else { why }])
    })
    .await
}

/// Waits until nothing is left, telling what is.
async fn gone<F>(stage: &Stage, patience: &Patience, look: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = kube::Result<Vec<String>>>,
{
    let start = Instant::now();
    let mut told = Vec::new();
    loop {
        let left = look().await.context("looking what is left")?;
        if left.is_empty() {
            return Ok(());
        }
        if left != told {
            stage.note(left.join(", "));
            told = left;
        }
        if start.elapsed() > patience.timeout {
            bail!("still there after {} s: {}", patience.timeout.as_secs(), told.join(", "));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the controller put into users' namespaces besides what Services are made of; tells how many there were.
async fn strewn(client: &Client) -> anyhow::Result<usize> {
    let kinds = [("v1", "ConfigMap", MESH_ROOT), ("networking.k8s.io/v1", "NetworkPolicy", MESH_POLICY)];
    let mut count = 0;
    for (api_version, kind, name) in kinds {
        let resource = resource(api_version, kind);
        let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let ours = ListParams::default()
            .fields(&format!("metadata.name={name}"))
            .labels("app.kubernetes.io/managed-by=ebb");
        let found = all.list(&ours).await.with_context(|| format!("looking for a {kind} {name}"))?;
        for object in &found {
            let within = object.namespace().unwrap_or_default();
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &within, &resource);
            ignore_missing(api.delete(name, &DeleteParams::background()).await.map(drop))
                .with_context(|| format!("deleting the {kind} {within}/{name}"))?;
        }
        count += found.items.len();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(metadata: Value) -> DynamicObject {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "X", "metadata": metadata}))
            .expect("an object")
    }

    #[test]
    fn owners_first_and_finalizers_only_when_nothing_moves() {
        let free = object(json!({"name": "a"}));
        assert_eq!(next(&free, false), Next::Delete);
        let owner = json!([{"apiVersion": "v1", "kind": "X", "name": "a", "uid": "1"}]);
        let owned = object(json!({"name": "b", "ownerReferences": owner}));
        assert_eq!(next(&owned, false), Next::Wait);
        // Nothing collects it, as where the cluster's controllers are down.
        assert_eq!(next(&owned, true), Next::Delete);
        let held = object(json!({
            "name": "c", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/x"],
        }));
        assert_eq!(next(&held, false), Next::Wait);
        assert_eq!(next(&held, true), Next::Free);
        let going = object(json!({"name": "d", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert_eq!(next(&going, true), Next::Wait);
    }

    #[test]
    fn a_long_list_is_cut() {
        let names = (0..30).map(|n| format!("default/s{n}")).collect();
        let text = listed(&BTreeMap::from([("Service".to_owned(), names)]));
        assert!(text.contains("30 of the kind Service") && text.ends_with("... and 10 more"), "{text}");
        assert!(!text.contains("s25"), "{text}");
    }
}
