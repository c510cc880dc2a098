//! A platform to test: started here or given (`given.rs`), with kubectl and the gateway's address at hand.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{OnceLock, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testkit::{PATIENCE, Process, run};

use crate::given::{Given, gateway_address};

/// The image of the test app, as a user of the platform names it.
pub(crate) const APP_IMAGE: &str = "testapp:e2e";

pub(crate) struct Platform {
    process: Option<Process>,
    given: Option<Given>,
    kubeconfig: PathBuf,
    gateway: SocketAddr,
    image: String,
    /// Read by cases that want the platform in peace, written by those that disturb it for all.
    pub(crate) peace: RwLock<()>,
}

impl Platform {
    /// The one all harmless cases share.
    pub(crate) fn shared() -> Result<Self> {
        kubectl_binary()?;
        if let Some(given) = std::env::var_os("EBB_E2E_KUBECONFIG") {
            return Self::given(PathBuf::from(given));
        }
        Self::start()
    }

    /// The platform that is up already.
    fn given(kubeconfig: PathBuf) -> Result<Self> {
        let (given, gateway, image) = Given::from_environment(&kubeconfig)?;
        Ok(Self { process: None, given: Some(given), kubeconfig, gateway, image, peace: RwLock::default() })
    }

    /// A platform of one's own on free ports, with the test app in its registry.
    pub(crate) fn start() -> Result<Self> {
        Self::with_app(Process::start(Path::new(env!("CARGO_BIN_EXE_ebb")))?)
    }

    /// The same as a user who may do nothing in particular.
    pub(crate) fn start_as(user: u32) -> Result<Self> {
        Self::with_app(Process::start_as(Path::new(env!("CARGO_BIN_EXE_ebb")), user)?)
    }

    fn with_app(process: Process) -> Result<Self> {
        let platform = Self::of(process);
        let app = app_binary()?;
        let built = platform.own()?.ebb(&["build", &app.display().to_string(), "-t", APP_IMAGE])?;
        ensure!(built.contains(APP_IMAGE), "ebb build said: {built}");
        Ok(platform)
    }

    fn of(process: Process) -> Self {
        Self {
            kubeconfig: process.kubeconfig(),
            gateway: process.gateway(),
            image: APP_IMAGE.into(),
            given: None,
            process: Some(process),
            peace: RwLock::default(),
        }
    }

    /// The process behind it, for the cases that have one of their own.
    pub(crate) fn own(&self) -> Result<&Process> {
        self.process.as_ref().context("a given platform is not ours to stop")
    }

    /// Ends the process as a crash would, and starts it again on the same folder and ports.
    pub(crate) fn kill_and_restart(self) -> Result<Self> {
        Ok(Self::of(self.process.context("a given platform is not ours to kill")?.kill_and_restart()?))
    }

    /// Ctrl-C, start again.
    pub(crate) fn restart(self) -> Result<Self> {
        Ok(Self::of(self.process.context("a given platform is not ours to restart")?.restart()?))
    }

    /// Ctrl-C, and nothing may be left behind.
    pub(crate) fn stop(self) -> Result<()> {
        self.process.map_or(Ok(()), Process::stop)
    }

    /// What a platform that was not started here lets its tests do to it.
    pub(crate) fn as_given(&self) -> Option<&Given> {
        self.given.as_ref()
    }

    pub(crate) fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    /// Where it takes TLS: on a cluster at a port of its own.
    pub(crate) fn tls_gateway(&self) -> Result<SocketAddr> {
        match std::env::var("EBB_E2E_GATEWAY_TLS") {
            Ok(address) => address.parse().context("EBB_E2E_GATEWAY_TLS is not ADDRESS:PORT"),
            Err(_) => gateway_address(&self.kubeconfig, "https"),
        }
    }

    /// The image of the test app on this platform.
    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    /// kubectl as the user runs it; an exit code other than 0 is an error that carries what it printed.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(self.kubectl_command(args)?, None)
    }

    /// kubectl that is expected to fail: what it says on standard error.
    pub(crate) fn kubectl_fails(&self, args: &[&str], input: Option<&str>) -> Result<String> {
        match run(self.kubectl_command(args)?, input) {
            Ok(out) => bail!("kubectl {} should have failed, and said: {out}", args.join(" ")),
            Err(e) => Ok(format!("{e:#}")),
        }
    }

    /// `kubectl apply -f -` in the namespace.
    pub(crate) fn apply(&self, namespace: &str, manifest: &str) -> Result<String> {
        run(self.kubectl_command(&["apply", "-n", namespace, "-f", "-"])?, Some(manifest))
    }

    /// kubectl with something on standard input.
    pub(crate) fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        run(self.kubectl_command(args)?, Some(input))
    }

    /// One object as JSON.
    pub(crate) fn get(&self, namespace: &str, what: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "-n", namespace, what, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A fresh namespace for a case.
    pub(crate) fn namespace(&self, name: &str) -> Result<Namespace<'_>> {
        if self.given.is_some() {
            // An earlier run may have left it behind, or be still at taking it away.
            self.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--timeout=90s"])?;
        }
        self.kubectl(&["create", "namespace", name])?;
        Ok(Namespace { platform: self, name: name.into() })
    }

    pub(crate) fn kubectl_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(kubectl_binary()?);
        command.env("KUBECONFIG", &self.kubeconfig).args(args);
        Ok(command)
    }

    pub(crate) fn print_log_tail(&self) {
        if let Some(process) = &self.process {
            eprintln!("--- the end of the platform's log ---\n{}", process.log_tail(60));
        }
    }
}

/// A namespace that goes with its case.
pub(crate) struct Namespace<'a> {
    platform: &'a Platform,
    name: String,
}

impl Namespace<'_> {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A Service of the test app: annotations of its template and environment as given.
    pub(crate) fn service(
        &self,
        name: &str,
        annotations: &[(&str, &str)],
        env: &[(&str, &str)],
    ) -> Result<()> {
        let manifest = service_manifest(name, self.platform.image(), annotations, env);
        self.platform.apply(&self.name, &manifest.to_string())?;
        Ok(())
    }

    /// Has a Service checked as if it were created.
    pub(crate) fn dry_run(&self, name: &str) -> Result<()> {
        let manifest = service_manifest(name, self.platform.image(), &[], &[]).to_string();
        let asked = ["create", "-n", &self.name, "--dry-run=server", "-f", "-"];
        self.platform.kubectl_with(&asked, &manifest).map(drop)
    }

    /// Waits until the Service says Ready.
    pub(crate) fn wait_ready(&self, service: &str) -> Result<()> {
        let seconds = format!("--timeout={}s", PATIENCE.as_secs());
        let ksvc = format!("ksvc/{service}");
        let waited =
            self.platform.kubectl(&["wait", "-n", &self.name, "--for=condition=Ready", &ksvc, &seconds]);
        waited.map(drop).with_context(|| match self.platform.get(&self.name, &ksvc) {
            Ok(v) => format!("conditions: {}", v["status"]["conditions"]),
            Err(e) => format!("{e:#}"),
        })
    }

    /// The host of a Service's URL.
    pub(crate) fn host(&self, service: &str) -> Result<String> {
        let object = self.platform.get(&self.name, &format!("ksvc/{service}"))?;
        host_of(object["status"]["url"].as_str().context("status.url is missing")?)
    }

    /// Names of the pods that are not gone yet.
    pub(crate) fn pods(&self) -> Result<Vec<String>> {
        let out = self.platform.kubectl(&["get", "pods", "-n", &self.name, "-o", "name"])?;
        Ok(out.lines().map(str::to_string).collect())
    }

    /// Waits for the namespace to hold no pod.
    pub(crate) fn wait_zero(&self) -> Result<()> {
        self.wait("no pod is left", || Ok(self.pods()?.is_empty()))
    }

    /// Waits for one Service to have no pod.
    pub(crate) fn wait_zero_of(&self, service: &str) -> Result<()> {
        let label = format!("serving.knative.dev/service={service}");
        self.wait("the Service has no pod", || {
            let out =
                self.platform.kubectl(&["get", "pods", "-n", &self.name, "-l", &label, "-o", "name"])?;
            Ok(out.trim().is_empty())
        })
    }

    /// Waits for a condition that no `kubectl wait` can express.
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !done()? {
            if start.elapsed() > PATIENCE {
                let pods =
                    self.platform.kubectl(&["get", "pods,ksvc,deploy", "-n", &self.name, "-o", "wide"])?;
                bail!("after {} s still waiting until {what}:\n{pods}", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let _ = self.platform.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// The manifest of a Knative Service of the test app.
pub(crate) fn service_manifest(
    name: &str,
    image: &str,
    annotations: &[(&str, &str)],
    env: &[(&str, &str)],
) -> Value {
    let annotations: serde_json::Map<String, Value> =
        annotations.iter().map(|(k, v)| (k.to_string(), Value::from(*v))).collect();
    let env: Vec<Value> = env.iter().map(|(k, v)| serde_json::json!({"name": k, "value": v})).collect();
    serde_json::json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": annotations},
            "spec": {"containers": [{"image": image, "env": env}]},
        }},
    })
}

pub(crate) fn host_of(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is no http URL"))?;
    Ok(rest.trim_end_matches('/').to_string())
}

pub(crate) fn kubectl_binary() -> Result<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let given = std::env::var_os("KUBECTL").map(PathBuf::from);
        given.or_else(|| {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|file| file.is_file())
        })
    });
    found.as_deref().context("kubectl is not on the PATH: run tests/kubectl.sh, which builds it from Go modules, or set KUBECTL=FILE")
}

/// Builds the test app once: it is no part of the workspace, like any user's app.
pub(crate) fn app_binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_app().map_err(|e| format!("{e:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn build_app() -> Result<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/app");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("testapp");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&project)
        .args(["build", "--quiet", "--release", "--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(cargo, None).context("building tests/app")?;
    Ok(target.join("x86_64-unknown-linux-gnu/release/testapp"))
}
