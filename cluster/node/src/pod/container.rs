//! One run of one container: everything is resolved, it is started, probed, waited for and cleared away.

mod oom;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::env::{self, Facts};
use super::probe::{self, Judge, Schedule, Timing};
use super::state::{Event, ExitFacts};
use crate::context::{Context, PodView};
use crate::images::Image;
use crate::logs::Logs;
use crate::logs::attached::Attached;
use crate::logs::writer::{self, Source};
use crate::runtime::{Overlay, RuntimeError, StartContainer, Streams, seccomp};
use crate::spec::{self, Bind, Limits, SubPath, User};
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
        let health = tokio::spawn(watch_health(
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
        let message = termination_message(&self.spec, &prepared.termination, &log, exit.code);
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
        if pod_spec.share_process_namespace == Some(true) {
            return Err(config(
                "shareProcessNamespace: containers of a pod cannot share their processes on this node; leave it out, or use hostPID".to_owned(),
            ));
        }
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
            host_pid: pod_spec.host_pid == Some(true),
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

    fn volume_binds(&self, variables: &BTreeMap<String, String>) -> Result<Vec<Bind>, String> {
        let volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let by_name: BTreeMap<&str, _> = volumes.map(|volume| (volume.name.as_str(), volume)).collect();
        let mut binds = Vec::new();
        for mount in self.spec.volume_mounts.iter().flatten() {
            let volume = by_name.get(mount.name.as_str()).ok_or_else(|| {
                format!("volumeMount names the volume {:?}, which the pod does not have", mount.name)
            })?;
            let root = match &volume.host_path {
                Some(host) => PathBuf::from(&host.path),
                None => super::volume_root(&self.context, &self.pod_dir, volume),
            };
            let writable = volume.empty_dir.is_some() || volume.host_path.is_some();
            binds.push(Bind {
                source: root,
                sub_path: sub_path(mount, variables, writable)?,
                target: absolute(&mount.mount_path),
                read_only: mount.read_only == Some(true) || !writable,
                propagate: mount.mount_propagation.as_deref().is_some_and(|mode| mode != "None"),
            });
        }
        Ok(binds)
    }

    /// hosts, hostname, resolv.conf and the termination log.
    fn file_binds(
        &self,
        binds: &mut Vec<Bind>,
        termination: &Path,
        read_only_root: bool,
    ) -> std::io::Result<()> {
        let taken = |binds: &[Bind], target: &str| binds.iter().any(|bind| bind.target == target);
        for (name, target) in
            [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
        {
            let source = self.pod_dir.join(name);
            if !taken(binds, target) && source.exists() {
                binds.push(Bind {
                    source,
                    sub_path: None,
                    target: target.to_owned(),
                    read_only: read_only_root,
                    propagate: false,
                });
            }
        }
        if let Some(parent) = termination.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(termination, "")?;
        std::fs::set_permissions(termination, std::fs::Permissions::from_mode(0o666))?;
        let target =
            self.spec.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned());
        if !taken(binds, &target) {
            let source = termination.to_owned();
            binds.push(Bind { source, sub_path: None, target, read_only: false, propagate: false });
        }
        Ok(())
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

fn absolute(path: &str) -> String {
    let trimmed = path.trim_end_matches('/');
    if trimmed.starts_with('/') { trimmed.to_owned() } else { format!("/{trimmed}") }
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

/// Where below a volume a mount begins; None for the volume itself.
fn sub_path(
    mount: &VolumeMount,
    variables: &BTreeMap<String, String>,
    writable: bool,
) -> Result<Option<SubPath>, String> {
    let expanded =
        mount.sub_path_expr.as_ref().map(|text| env::expand(text, |name| variables.get(name).cloned()));
    let Some(path) = expanded.or_else(|| mount.sub_path.clone()).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let plain = Path::new(&path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain {
        return Err(format!("subPath {path:?} must be relative and must not contain \"..\""));
    }
    Ok(Some(SubPath { path, make: writable }))
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

/// What the container left to say: the end of its file, or the end of its log if it failed and asked for that.
fn termination_message(container: &Container, file: &Path, log: &Path, code: i32) -> Option<String> {
    const MOST: u64 = 4096;
    const MOST_OF_LOG: usize = 2048;
    const LINES: usize = 80;
    /// As many short lines with their times.
    const PART_OF_LOG: u64 = 8192;
    let mut text = end_of(file, MOST).unwrap_or_default();
    let _ = std::fs::remove_file(file);
    let fallback = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if text.is_empty() && fallback && code != 0 {
        let records = end_of(log, PART_OF_LOG).unwrap_or_default();
        let records = records.strip_suffix(b"\n").unwrap_or(&records);
        let lines: Vec<&[u8]> = records
            .split(|byte| *byte == b'\n')
            .map(|line| line.splitn(4, |byte| *byte == b' ').nth(3).unwrap_or_default())
            .collect();
        text = lines[lines.len().saturating_sub(LINES)..].join(&b'\n');
        text.drain(..text.len().saturating_sub(MOST_OF_LOG));
    }
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The last bytes of a file, however long it is.
fn end_of(file: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// postStart and the startup probe, then readiness and liveness side by side.
async fn watch_health(
    context: Arc<Context>,
    pod: Arc<Pod>,
    index: usize,
    live: Arc<Live>,
    events: mpsc::UnboundedSender<Event>,
) {
    let name = live.spec.name.clone();
    let hook = live.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    if let Some(hook) = hook {
        let outcome = match probe::of_hook(&live.spec, hook, live.address) {
            Ok(check) => probe::perform(&context, &live, &check, Duration::from_secs(3600)).await,
            Err(message) => Err(message),
        };
        if let Err(message) = outcome {
            context.events.warning(
                &pod,
                Some(&name),
                "FailedPostStartHook",
                format!("PostStartHook failed: {message}"),
            );
            let _ = events.send(Event::Unhealthy(index, live.id.clone()));
            return;
        }
    }
    let health = Health { context, pod, index, live: Arc::clone(&live), events };
    if let Some(startup) = live.spec.startup_probe.clone() {
        let passed = health.probe("Startup", &startup, Some).await;
        if passed != Some(true) {
            health.unhealthy("startup");
            return;
        }
    }
    health.send(Event::StartedUp(index, live.id.clone()));
    let readiness = async {
        match live.spec.readiness_probe.clone() {
            Some(readiness) => {
                let _: Option<()> = health
                    .probe("Readiness", &readiness, |verdict| {
                        health.send(Event::Readiness(index, live.id.clone(), verdict));
                        None
                    })
                    .await;
            }
            None => health.send(Event::Readiness(index, live.id.clone(), true)),
        }
    };
    let liveness = async {
        if let Some(liveness) = live.spec.liveness_probe.clone() {
            let watched = health.probe("Liveness", &liveness, |verdict| (!verdict).then_some(()));
            tokio::select! {
                failed = watched => {
                    if failed.is_some() {
                        health.unhealthy("liveness");
                    }
                }
                () = live.stopping.cancelled() => {}
            }
        }
    };
    tokio::join!(readiness, liveness);
}

struct Health {
    context: Arc<Context>,
    pod: Arc<Pod>,
    index: usize,
    live: Arc<Live>,
    events: mpsc::UnboundedSender<Event>,
}

impl Health {
    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn unhealthy(&self, kind: &str) {
        let name = &self.live.spec.name;
        let message = format!("Container {name} failed {kind} probe, will be restarted");
        self.context.events.normal(&self.pod, Some(name), "Killing", message);
        self.send(Event::Unhealthy(self.index, self.live.id.clone()));
    }

    /// Looks until `on_verdict` gives a value.
    async fn probe<T>(
        &self,
        kind: &str,
        spec: &k8s_openapi::api::core::v1::Probe,
        mut on_verdict: impl FnMut(bool) -> Option<T>,
    ) -> Option<T> {
        let timing = Timing::of(spec);
        let check = match probe::of_probe(&self.live.spec, spec, self.live.address) {
            Ok(check) => check,
            Err(message) => {
                let name = &self.live.spec.name;
                self.context.events.warning(
                    &self.pod,
                    Some(name),
                    "Unhealthy",
                    format!("{kind} probe: {message}"),
                );
                std::future::pending().await
            }
        };
        let (mut schedule, mut judge) = (Schedule::new(timing), Judge::new(timing));
        let begun = tokio::time::Instant::now();
        loop {
            let (at, counts) = schedule.next(begun.elapsed());
            tokio::time::sleep_until(begun + at).await;
            let result = probe::perform(&self.context, &self.live, &check, timing.timeout).await;
            if let (Err(message), true) = (&result, counts) {
                let name = &self.live.spec.name;
                let message = format!("{kind} probe failed: {message}");
                self.context.events.warning(&self.pod, Some(name), "Unhealthy", message);
            }
            if result.is_ok() {
                schedule.succeeded();
            } else if !counts {
                continue;
            }
            if let Some(verdict) = judge.result(result.is_ok())
                && let Some(value) = on_verdict(verdict)
            {
                return Some(value);
            }
        }
    }
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

    #[test]
    fn sub_paths_are_plain() {
        let mount = |sub: &str| VolumeMount { sub_path: Some(sub.to_owned()), ..VolumeMount::default() };
        let none = BTreeMap::new();
        let plain = sub_path(&mount("a/b"), &none, true).unwrap();
        assert_eq!(plain, Some(SubPath { path: "a/b".to_owned(), make: true }));
        assert_eq!(sub_path(&mount(""), &none, true), Ok(None));
        for bad in ["../x", "a/../../b", "/a"] {
            assert!(sub_path(&mount(bad), &none, true).unwrap_err().contains(bad));
        }
        let expr = VolumeMount { sub_path_expr: Some("$(POD)/x".to_owned()), ..VolumeMount::default() };
        let vars = BTreeMap::from([("POD".to_owned(), "p1".to_owned())]);
        assert_eq!(sub_path(&expr, &vars, false).unwrap().unwrap().path, "p1/x");
    }

    #[test]
    fn termination_messages_fall_back_to_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let (file, log) = (folder.path().join("t"), folder.path().join("l"));
        std::fs::write(&log, "2026-01-01T00:00:00Z stderr F it broke\n").unwrap();
        let container: Container =
            serde_json::from_value(json!({"name": "c", "terminationMessagePolicy": "FallbackToLogsOnError"}))
                .unwrap();
        std::fs::write(&file, "").unwrap();
        assert_eq!(termination_message(&container, &file, &log, 1).as_deref(), Some("it broke"));
        assert_eq!(termination_message(&container, &file, &log, 0), None);
        std::fs::write(&file, "mine").unwrap();
        assert_eq!(termination_message(&container, &file, &log, 0).as_deref(), Some("mine"));
        // Whatever a container writes, and however much: the end of it.
        std::fs::write(&file, [b"begin ".repeat(10_000).as_slice(), b"\xff the end"].concat()).unwrap();
        let said = termination_message(&container, &file, &log, 0).unwrap();
        assert!(said.ends_with("\u{fffd} the end") && said.len() < 4100, "{said}");
        let record = |number: usize| format!("2026-01-01T00:00:00Z stderr F line {number}\n").into_bytes();
        let records: Vec<u8> =
            (0..10_000).flat_map(record).chain(*b"2026-01-01T00:00:00Z stderr F \xff\n").collect();
        std::fs::write(&log, records).unwrap();
        let said = termination_message(&container, &file, &log, 1).unwrap();
        assert!(said.starts_with("line 9921\n") && said.ends_with("line 9999\n\u{fffd}"), "{said}");
    }
}
