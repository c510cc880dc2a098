//! Runs the steps on every side, each as a bash script with `kubectl` and `api` on its path.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::PostParams;
use tokio::process::Command;

use crate::case::{self, File, Step};
use crate::side::Side;
use crate::{hooks, node, normal};

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// A step that takes longer is named: the whole comparison should take a minute or two.
const SLOW: Duration = Duration::from_secs(8);
/// What every script may use besides `kubectl` and `api`.
const PRELUDE: &str = r#"
# eventually CMD...: runs it until it succeeds, silently; then prints its output.
eventually() {
  local n out
  for n in $(seq 150); do
    if out=$("$@" 2>&1); then [ -z "$out" ] || printf '%s\n' "$out"; return 0; fi
    sleep 0.1
  done
  printf 'did not happen: %s\n%s\n' "$*" "$out"
  return 1
}
# For YAML in one line: what starts with a brace, kubectl takes for JSON.
nl='
'
# rows: a table in one order, for objects whose names are random.
rows() { (read -r head; printf '%s\n' "$head"; sort) }
"#;

/// What the steps need from the machine.
pub(crate) struct Tools {
    /// Put before PATH: `kubectl` and `api`.
    bin: PathBuf,
    /// The folder of the real control plane's binaries, if they are there.
    pub(crate) kubernetes: Option<PathBuf>,
    /// The webhook server that both sides call.
    hooks: hooks::Hooks,
}

/// Finds kubectl and the real binaries, and starts the webhook server.
pub(crate) fn tools(scratch: &Path) -> Result<Tools> {
    let bin = scratch.join("bin");
    std::fs::create_dir_all(&bin)?;
    symlink(std::env::current_exe()?, bin.join("api"))?;
    let kubectl = match std::env::var_os("KUBECTL") {
        Some(path) => std::fs::canonicalize(PathBuf::from(&path))
            .with_context(|| format!("KUBECTL={}", path.display()))?,
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let found =
                std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|file| file.is_file());
            found.context("kubectl is not on the PATH: tests/kubectl.sh builds it, or set KUBECTL=FILE")?
        }
    };
    symlink(kubectl, bin.join("kubectl"))?;
    let cache = std::env::var_os("EBB_KUBERNETES_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        Some(base.join("ebb/kubernetes-1.35.4"))
    });
    let all = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
    let kubernetes = cache.filter(|cache| all.iter().all(|name| cache.join(name).is_file()));
    Ok(Tools { bin, kubernetes, hooks: hooks::Hooks::start()? })
}

/// What a step printed on both sides, made comparable.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) file: String,
    pub(crate) title: String,
    pub(crate) script: String,
    pub(crate) commands: usize,
    pub(crate) real: String,
    pub(crate) embedded: String,
}

/// Runs all steps on all sides: files one after the other, a step on both sides at once.
pub(crate) async fn all(files: &[File], sides: &[&Side], tools: &Tools) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for file in files {
        let mut kubeconfigs = Vec::new();
        for side in sides {
            kubeconfigs
                .push(prepare(side, &file.name).await.with_context(|| format!("on the {} side", side.name))?);
        }
        for step in &file.steps {
            let runs = kubeconfigs
                .iter()
                .zip(sides)
                .map(|(kubeconfig, side)| one(step, &file.name, kubeconfig, side, tools));
            let mut texts = futures::future::try_join_all(runs).await?;
            let real = if sides.len() > 1 { texts.pop().unwrap_or_default() } else { String::new() };
            outcomes.push(Outcome {
                file: file.name.clone(),
                title: step.title.clone(),
                script: step.script.clone(),
                commands: case::commands(&step.script),
                real,
                embedded: texts.pop().unwrap_or_default(),
            });
        }
    }
    Ok(outcomes)
}

/// Makes the file's namespace and a kubeconfig that starts in it.
async fn prepare(side: &Side, namespace: &str) -> Result<PathBuf> {
    let namespaces: Api<Namespace> = Api::all(side.client.clone());
    let object = serde_json::from_value(serde_json::json!({"metadata": {"name": namespace}}))?;
    namespaces.create(&PostParams::default(), &object).await?;
    node::namespace_ready(&side.client, namespace).await?;
    let mut kubeconfig = side.kubeconfig.clone();
    for context in &mut kubeconfig.contexts {
        if let Some(context) = &mut context.context {
            context.namespace = Some(namespace.to_owned());
        }
    }
    let path = side.folder.join(format!("{namespace}.conf"));
    std::fs::write(&path, serde_json::to_string(&kubeconfig)?)?;
    Ok(path)
}

async fn one(step: &Step, namespace: &str, kubeconfig: &Path, side: &Side, tools: &Tools) -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools.bin.clone()).chain(std::env::split_paths(&path)))?;
    let work = side.folder.join("work");
    std::fs::create_dir_all(&work)?;
    let child = Command::new("bash")
        .arg("-c")
        .arg(format!("exec 2>&1\n{PRELUDE}\n{}", step.script))
        .current_dir(&work)
        .env("PATH", path)
        .env("HOME", &side.folder)
        .env("KUBECONFIG", kubeconfig)
        .env("ns", namespace)
        .env("hooks", tools.hooks.url())
        .env("hooks_ca", tools.hooks.ca())
        .env_remove("KUBECTL_COMMAND_HEADERS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("bash is needed")?;
    let started = std::time::Instant::now();
    let text = match tokio::time::timeout(PATIENCE, child.wait_with_output()).await {
        Ok(output) => {
            let output = output?;
            let code = output.status.code().map_or_else(|| "by signal".to_owned(), |code| code.to_string());
            format!("{}[exit {code}]\n", String::from_utf8_lossy(&output.stdout))
        }
        Err(_) => format!("[not done within {} s]\n", PATIENCE.as_secs()),
    };
    let took = started.elapsed();
    if took > SLOW {
        eprintln!("{}: {}: {:.1} s on the {} side", namespace, step.title, took.as_secs_f32(), side.name);
    }
    Ok(normal::normal(&text))
}

/// Leaves both outputs in a folder.
pub(crate) fn keep(folder: &Path, outcomes: &[Outcome]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for (name, text) in
        [("real", (|o: &Outcome| &o.real) as fn(&Outcome) -> &String), ("embedded", |o| &o.embedded)]
    {
        let all: String =
            outcomes.iter().map(|o| format!("=== {}: {}\n{}\n", o.file, o.title, text(o))).collect();
        std::fs::write(folder.join(format!("{name}.txt")), all)?;
    }
    Ok(())
}

/// Copies the logs of a side's processes.
pub(crate) fn keep_logs(folder: &Path, side: &Side) -> Result<()> {
    for entry in std::fs::read_dir(&side.folder)?.filter_map(Result::ok) {
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
    }
    Ok(())
}
