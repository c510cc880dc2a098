//! One run of one container: everything is resolved, it is started, probed, waited for and cleared away.

mod binds;
mod health;
mod oom;
mod termination;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::env::{self, Facts};
use super::state::{Event, ExitFacts};
use crate::context::{Context, PodView};
use crate::images::Image;
use crate::logs::Logs;
use crate::logs::attached::Attached;
use crate::logs::writer::{self, Source};
use crate::runtime::{Overlay, RuntimeError, StartContainer, Streams, seccomp};
use crate::spec::{self, Limits, Processes, User};
use crate::users::{self, Accounts};

/// A running container as others see it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: String,
    /// Its first process, in the node's pid namespace.
    pub(crate) pid: i32,
    /// Its process, the pattern for exec'd ones.
    pub(crate) process: spec::Process,
    /// Its output as it comes.
    pub(crate) output: Arc<Attached>,
    /// The other end of its standard input, if it asked for one and has no terminal.
    pub(crate) stdin: Mutex<Option<OwnedFd>>,
    /// The master of its terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
    /// The signal that asks it to end.
    pub(crate) stop_signal: i32,
    /// Readiness and liveness are no longer asked for.
    pub(crate) stopping: CancellationToken,
    /// Its process has ended and all its output is out.
    pub(crate) ended: CancellationToken,
    pub(crate) address: Ipv4Addr,
    pub(crate) started: Timestamp,
    pub(crate) spec: Container,
}

/// Everything a run needs.
pub(crate) struct Run {
    pub(crate) context: Arc<Context>,
    pub(crate) view: Arc<PodView>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) index: usize,
    pub(crate) spec: Container,
    pub(crate) attempt: i32,
    pub(crate) image: Arc<Image>,
    pub(crate) network: Arc<crate::network::PodNetwork>,
    pub(crate) pod_dir: PathBuf,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// The container whose processes it wants to see.
    pub(crate) target: Option<String>,
}

/// A refusal: the reason in the status, and the message.
type Refusal = (&'static str, String);

struct Prepared {
    spec: spec::Container,
    overlay: Overlay,
    folder: PathBuf,
    termination: PathBuf,
    stop_signal: i32,
}

impl Run {
    /// Runs the container from start to end, telling the worker.
    pub(crate) async fn run(self) {
        let begun = Instant::now();
        let id = crate::new_id();
        let prepared = match self.prepare(&id).await {
            Ok(prepared) => prepared,
            Err((reason, message)) => return self.refuse(reason, message),
        };
        let resolved = begun.elapsed();
        let folder = prepared.folder.clone();
        let result = self.start(&id, prepared, begun, resolved).await;
        if let Err((reason, message)) = result {
            self.refuse(reason, message);
        }
        let _ = self.context.runtime.remove(&id).await;
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await;
    }

    fn refuse(&self, reason: &str, message: String) {
        self.context.events.warning(&self.pod, Some(&self.spec.name), "Failed", format!("Error: {message}"));
        let _ = self.events.send(Event::StartFailed(self.index, reason.to_owned(), message));
    }

    async fn start(
        &self,
        id: &str,
        prepared: Prepared,
        begun: Instant,
        resolved: Duration,
    ) -> Result<(), Refusal> {
        let context = &self.context;
        let fail = |error: std::io::Error| ("RunContainerError", format!("cannot make a pipe: {error}"));
        let (streams, outputs, stdin) = streams(&self.spec).map_err(fail)?;
        let log = Logs::path(&self.view.log_dir, &self.spec.name, self.attempt);
        self.view.attempts.lock().insert(self.spec.name.clone(), self.attempt);
        if context.closing.is_cancelled() {
            // The node has told its containers to end; one more would only be killed.
            return Ok(());
        }
        let exited = context.exits.expect(id);
        let started = context
            .runtime
            .start_container(StartContainer {
                id: id.to_owned(),
                container: prepared.spec.clone(),
                overlay: prepared.overlay,
                streams,
            })
            .await;
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                context.exits.forget(id);
                // The image's fault or the user's counts as a run that failed; what the node could not do is tried again.
                let reason = match &error {
                    RuntimeError::Program(_) => "StartError",
                    _ => "RunContainerError",
                };
                return Err((reason, error.to_string()));
            }
        };
        let timings = started.timings;
        info!(
            pod = self.pod.metadata.name,
            container = self.spec.name,
            pid = started.pid,
            parked = timings.parked,
            resolve_us = micros(resolved),
            mount_us = timings.mount_us,
            create_us = timings.create_us,
            start_us = timings.start_us,
            total_us = micros(begun.elapsed()),
            "container started"
        );
        let source = match (&started.terminal, outputs) {
            (Some(master), _) => Source::Terminal(master.try_clone().map_err(fail)?),
            (None, Some((stdout, stderr))) => Source::Pipes(stdout, stderr),
            (None, None) => return Err(("RunContainerError", "the container has no terminal".to_owned())),
        };
        let output = Arc::new(Attached::default());
        let capture =
            tokio::spawn(writer::capture(context.logs.clone(), log.clone(), source, Arc::clone(&output)));
        let live = Arc::new(Live {
            id: id.to_owned(),
            pid: started.pid,
            process: prepared.spec.process.clone(),
            output,
            stdin: Mutex::new(stdin),
            terminal: started.terminal,
            stop_signal: prepared.stop_signal,
            stopping: CancellationToken::new(),
            ended: CancellationToken::new(),
            address: self.network.address.unwrap_or_else(|| context.host_ip()),
            started: Timestamp::now(),
            spec: self.spec.clone(),
        });
        self.view.live.lock().insert(self.spec.name.clone(), Arc::clone(&live));
        let _ = self.events.send(Event::Started(self.index, id.to_owned()));
        context.events.normal(
            &self.pod,
            Some(&self.spec.name),
            "Created",
            format!("Created container: {}", self.spec.name),
        );
        context.events.normal(
            &self.pod,
            Some(&self.spec.name),
            "Started",
            format!("Started container {}", self.spec.name),
        );
        let health = tokio::spawn(health::watch(
            Arc::clone(context),
            Arc::clone(&self.pod),
            self.index,
            Arc::clone(&live),
            self.events.clone(),
        ));
        let exit = exited.await;
        health.abort();
        live.stopping.cancel();
        // All output is in the file before the status says that the container has ended; a stray child that keeps the
        // pipe open may not delay that for long.
        let mut capture = capture;
        if tokio::time::timeout(Duration::from_millis(500), &mut capture).await.is_err() {
            debug!(container = id, "the output is still held open by another process");
        }
        self.view.live.lock().remove(&self.spec.name);
        live.ended.cancel();
        let exit = exit.unwrap_or(crate::runtime::Exit { code: 137, signal: Some(9), oom: false });
        let message = termination::message(&self.spec, &prepared.termination, &log, exit.code);
        let facts = ExitFacts { code: exit.code, signal: exit.signal, oom: exit.oom, message };
        let _ = self.events.send(Event::Exited(self.index, id.to_owned(), facts));
        Ok(())
    }

    async fn prepare(&self, id: &str) -> Result<Prepared, Refusal> {
        let context = &self.context;
        let config = |message: String| ("CreateContainerConfigError", message);
        let found = context.objects.find(&self.pod).await;
        let facts = facts(context, self.network.address);
        let pod_spec = self.pod.spec.clone().unwrap_or_default();
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let links = match pod_spec.enable_service_links {
            Some(false) => env::service_links(context.objects.kubernetes().as_deref()),
            _ => env::service_links(context.objects.services(&namespace).iter().map(AsRef::as_ref)),
        };
        let mut variables = env::environment(&self.pod, &self.spec, &self.image.env, &links, &facts, &found)
            .map_err(config)?;
        let accounts = Accounts::read(&self.image.layers);
        let user = self.user(&accounts).map_err(config)?;
        variables.entry("HOME".to_owned()).or_insert_with(|| accounts.home(user.uid));
        if pod_spec.host_network != Some(true) {
            variables.entry("HOSTNAME".to_owned()).or_insert_with(|| super::dns::hostname(&self.pod));
        }
        let process = self.process(user, &variables)?;
        let folder = self.pod_dir.join("containers").join(id);
        let termination = self.pod_dir.join("termination").join(id);
        let privileged = self.spec.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
        let read_only_root =
            self.spec.security_context.as_ref().and_then(|s| s.read_only_root_filesystem) == Some(true);
        let mut binds = self.volume_binds(&variables).map_err(config)?;
        self.file_binds(&mut binds, &termination, read_only_root).map_err(|e| config(e.to_string()))?;
        let security = self.spec.security_context.as_ref();
        let spec = spec::Container {
            process,
            read_only_root,
            net: self.network.net_path(),
            ipc: (pod_spec.host_ipc != Some(true)).then(|| self.network.ipc_path()),
            uts: self.network.uts_path(),
            processes: self.processes(&pod_spec).await?,
            binds,
            privileged,
            unmasked_proc: security.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked"),
            limits: limits(&self.spec, context.pids_limit),
        };
        let mut lower = self.image.layers.clone();
        if lower.is_empty() {
            // An image without layers; overlayfs wants one.
            let empty = folder.join("empty");
            std::fs::create_dir_all(&empty).map_err(|e| config(e.to_string()))?;
            lower.push(empty);
        }
        let overlay = Overlay { lower, upper: folder.join("upper"), work: folder.join("work") };
        let stop_signal = self.image.stop_signal.as_deref().and_then(signal_number).unwrap_or(15);
        Ok(Prepared { spec, overlay, folder, termination, stop_signal })
    }

    /// Which processes the container sees: those of the container that it is to look into, its pod's, the machine's, or its own.
    async fn processes(&self, pod: &PodSpec) -> Result<Processes, Refusal> {
        if let Some(target) = &self.target {
            let live = self.view.live.lock().get(target).map(|live| live.id.clone());
            return live.map(Processes::Of).ok_or_else(|| {
                let message = format!("unable to find target container {target:?}: it is not running");
                ("CreateContainerConfigError", message)
            });
        }
        match (pod.host_pid, pod.share_process_namespace) {
            (Some(true), _) => Ok(Processes::Machine),
            (_, Some(true)) => {
                let held = self.view.processes.held(&self.context).await;
                held.map(Processes::Of).map_err(|error| ("RunContainerError", error.to_string()))
            }
            _ => Ok(Processes::Own),
        }
    }

    fn process(&self, user: User, variables: &BTreeMap<String, String>) -> Result<spec::Process, Refusal> {
        let expand = |list: &[String]| -> Vec<String> {
            list.iter().map(|text| env::expand(text, |name| variables.get(name).cloned())).collect()
        };
        let command = expand(self.spec.command.as_deref().unwrap_or_default());
        let given = expand(self.spec.args.as_deref().unwrap_or_default());
        // A command replaces the image's entrypoint and its default arguments; arguments alone replace the latter.
        let mut args = if command.is_empty() { self.image.entrypoint.clone() } else { command.clone() };
        if !given.is_empty() {
            args.extend(given);
        } else if command.is_empty() {
            args.extend(self.image.cmd.iter().cloned());
        }
        if args.is_empty() {
            let message = "no command specified: the image has no entrypoint and the container names none";
            return Err(("CreateContainerError", message.to_owned()));
        }
        let security = self.spec.security_context.as_ref();
        let privileged = security.and_then(|s| s.privileged) == Some(true);
        let wanted = security.and_then(|s| s.capabilities.clone()).unwrap_or_default();
        let capabilities = spec::capabilities(
            privileged,
            &wanted.add.unwrap_or_default(),
            &wanted.drop.unwrap_or_default(),
            self.context.capabilities,
        )
        .map_err(|message| ("CreateContainerConfigError", message))?;
        let cwd = self.spec.working_dir.clone().filter(|dir| !dir.is_empty());
        Ok(spec::Process {
            args,
            env: variables.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            cwd: cwd.unwrap_or_else(|| self.image.working_dir.clone()),
            user,
            capabilities,
            no_new_privileges: security.and_then(|s| s.allow_privilege_escalation) == Some(false),
            terminal: self.spec.tty == Some(true),
            seccomp: self.seccomp(privileged).map_err(|message| ("CreateContainerConfigError", message))?,
            rlimits: Vec::new(),
            oom_score_adj: Some(oom::score(&self.pod, &self.spec, self.context.memory)),
        })
    }

    /// The container's seccomp profile, or else the pod's.
    fn seccomp(&self, privileged: bool) -> Result<spec::Seccomp, String> {
        let pod = self.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let own = self.spec.security_context.as_ref();
        let wanted = own
            .and_then(|context| context.seccomp_profile.as_ref())
            .or(pod.and_then(|context| context.seccomp_profile.as_ref()));
        if privileged {
            // Who may do everything is not kept from it, as elsewhere.
            return Ok(spec::Seccomp::Unconfined);
        }
        seccomp::profile(wanted.map(|profile| profile.type_.as_str()))
    }

    fn user(&self, accounts: &Accounts) -> Result<User, String> {
        let pod = self.pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
        let own = self.spec.security_context.clone().unwrap_or_default();
        let uid = own.run_as_user.or(pod.run_as_user);
        let gid = own.run_as_group.or(pod.run_as_group);
        let number = |value: i64, what: &str| {
            u32::try_from(value).map_err(|_| format!("{what} {value} is out of range"))
        };
        let mut user = match uid {
            Some(uid) => {
                let uid = number(uid, "runAsUser")?;
                accounts.resolve(&uid.to_string())?
            }
            None => accounts.resolve(&self.image.user)?,
        };
        if let Some(gid) = gid {
            user.gid = number(gid, "runAsGroup")?;
        }
        if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
            if uid.is_none() && !users::is_numeric(&self.image.user) {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root",
                    self.image.user
                ));
            }
            if user.uid == 0 {
                return Err("container has runAsNonRoot and image will run as root".to_owned());
            }
        }
        for gid in pod.supplemental_groups.into_iter().flatten().chain(pod.fs_group) {
            let gid = number(gid, "a supplemental group")?;
            if !user.groups.contains(&gid) {
                user.groups.push(gid);
            }
        }
        Ok(user)
    }
}

type Ends = (Streams, Option<(OwnedFd, OwnedFd)>, Option<OwnedFd>);

/// The standard streams of a container, and our ends of them: standard output and error, standard input.
fn streams(container: &Container) -> std::io::Result<Ends> {
    if container.tty == Some(true) {
        return Ok((Streams::Terminal, None, None));
    }
    let (out_reader, stdout) = std::io::pipe()?;
    let (err_reader, stderr) = std::io::pipe()?;
    let (stdin, writer) = match container.stdin {
        Some(true) => std::io::pipe().map(|(reader, writer)| (Some(reader.into()), Some(writer.into())))?,
        _ => (None, None),
    };
    let streams = Streams::Pipes { stdout: stdout.into(), stderr: stderr.into(), stdin };
    Ok((streams, Some((out_reader.into(), err_reader.into())), writer))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn facts(context: &Context, address: Option<Ipv4Addr>) -> Facts {
    Facts {
        pod_ip: address.unwrap_or_else(|| context.host_ip()).to_string(),
        host_ip: context.host_ip().to_string(),
        node_name: context.node_name.clone(),
        node_cpu_milli: context.cpu_milli,
        node_memory: context.memory,
    }
}

fn limits(container: &Container, pids: Option<i64>) -> Limits {
    let resources = container.resources.clone().unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let requests = resources.requests.unwrap_or_default();
    let cpu = |map: &BTreeMap<String, _>| {
        map.get("cpu").and_then(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
            crate::quantity::milli(&q.0)
        })
    };
    let limit = cpu(&limits);
    // Kubernetes' conversion: 1024 shares a core, at least 2; a quota of at least 1 ms in each 100 ms.
    let request = cpu(&requests).or(limit).unwrap_or(0);
    Limits {
        cpu_shares: Some(u64::try_from(request * 1024 / 1000).unwrap_or(2).clamp(2, 262_144)),
        cpu_quota_us: limit.and_then(|milli| i64::try_from(milli * 100).ok()).map(|quota| quota.max(1000)),
        memory: limits.get("memory").and_then(|q| crate::quantity::units(&q.0)).filter(|bytes| *bytes > 0),
        pids,
    }
}

/// `SIGTERM`, `TERM` or `15`.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_kubernetes_conversions() {
        let of = |resources: serde_json::Value| {
            limits(&serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap(), Some(9))
        };
        let some = of(json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}));
        let expected = Limits {
            cpu_shares: Some(256),
            cpu_quota_us: Some(50_000),
            memory: Some(64 << 20),
            pids: Some(9),
        };
        assert_eq!(some, expected);
        assert_eq!(of(json!({})).cpu_shares, Some(2));
        assert_eq!(of(json!({"limits": {"cpu": "1m"}})).cpu_quota_us, Some(1000));
    }

    #[test]
    fn signals() {
        assert_eq!(signal_number("SIGQUIT"), Some(3));
        assert_eq!(signal_number("usr1"), Some(10));
        assert_eq!(signal_number("15"), Some(15));
        assert_eq!(signal_number("WHAT"), None);
    }
}
