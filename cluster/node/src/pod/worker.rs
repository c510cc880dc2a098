//! The thin part: one task a pod takes events, asks [`decide`](super::decide) and performs what it says in tasks of
//! their own, whose results come back as events. Status is written by yet another task, so that the API's answer time
//! is no part of a start; of several changes only the last is written.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::container::{self, Live};
use super::decide::{Action, decide};
use super::shared::Shared;
use super::state::{Event, PodState};
use super::volumes::{self, Tokens};
use super::{begin, dns, probe, status, stop, volume_dir};
use crate::context::{Context, PodView};
use crate::images::{Image, Policy};
use crate::network::{Claim, NetworkError, PodNetwork, Sysctl};

/// A handle to a pod's worker.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    events: mpsc::UnboundedSender<Event>,
}

impl Handle {
    /// The object as the API now has it.
    pub(crate) fn changed(&self, pod: Pod) {
        let _ = self.events.send(Event::Changed(Box::new(pod)));
    }

    /// The object is gone from the API.
    pub(crate) fn gone(&self) {
        let _ = self.events.send(Event::Gone);
    }
}

/// Starts a worker; `ended` is called when the pod is gone from this node.
pub(crate) fn spawn(context: Arc<Context>, pod: Pod, ended: impl FnOnce() + Send + 'static) -> Handle {
    let (events, inbox) = mpsc::unbounded_channel();
    let handle = Handle { events: events.clone() };
    tokio::spawn(async move {
        Worker::new(context, pod, events).run(inbox).await;
        ended();
    });
    handle
}

struct Worker {
    context: Arc<Context>,
    view: Arc<PodView>,
    state: PodState,
    events: mpsc::UnboundedSender<Event>,
    network: Arc<Mutex<Option<Arc<PodNetwork>>>>,
    images: Arc<Mutex<HashMap<usize, Arc<Image>>>>,
    pod_dir: PathBuf,
    status: Option<watch::Sender<PodStatus>>,
    writer: Option<JoinHandle<()>>,
    previous: PodStatus,
    /// Fills the volumes and keeps them up to date.
    volumes: Option<JoinHandle<()>>,
    /// Ends that.
    unneeded: CancellationToken,
}

impl Worker {
    fn new(context: Arc<Context>, pod: Pod, events: mpsc::UnboundedSender<Event>) -> Self {
        let metadata = pod.metadata.clone();
        let (namespace, name, uid) = (
            metadata.namespace.unwrap_or_default(),
            metadata.name.unwrap_or_default(),
            metadata.uid.unwrap_or_default(),
        );
        let view = Arc::new(PodView {
            uid: uid.clone(),
            log_dir: context.logs.pod_dir(&namespace, &name, &uid),
            network: Mutex::new(None),
            live: Mutex::default(),
            attempts: Mutex::default(),
            processes: Shared::default(),
        });
        context.pods.insert((namespace.clone(), name.clone()), Arc::clone(&view));
        let previous = pod.status.clone().unwrap_or_default();
        let (sender, receiver) = watch::channel(previous.clone());
        let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        let writer = tokio::spawn(status::writer::write(api, name, uid.clone(), receiver));
        let pod_dir = context.data_dir.join("pods").join(&uid);
        let state = PodState::new(pod, Timestamp::now());
        for container in &state.containers {
            // The number of the next run: logs of earlier ones stay readable.
            view.attempts.lock().insert(container.name.clone(), container.restarts);
        }
        Self {
            context,
            view,
            state,
            events,
            network: Arc::default(),
            images: Arc::default(),
            pod_dir,
            status: Some(sender),
            writer: Some(writer),
            previous,
            volumes: None,
            unneeded: CancellationToken::new(),
        }
    }

    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Event>) {
        loop {
            let now = Timestamp::now();
            // What is begun changes what is to be waited for: decided again until nothing is left to begin.
            let mut over = false;
            let wake_at = loop {
                let plan = decide(&self.state, now);
                if plan.actions.is_empty() {
                    break plan.wake;
                }
                for action in plan.actions {
                    debug!(pod = self.state.pod.metadata.name, ?action, "decided");
                    begin(&mut self.state, &action, now);
                    over |= action == Action::Delete;
                    self.perform(action);
                }
            };
            self.publish(now);
            if over {
                return self.leave().await;
            }
            let wake = async {
                match wake_at {
                    Some(at) => {
                        let wait = at.duration_since(Timestamp::now());
                        tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
                    }
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = inbox.recv() => event.unwrap_or(Event::Tick),
                () = wake => Event::Tick,
                () = self.context.closing.cancelled() => return,
            };
            self.take(event);
            while let Ok(event) = inbox.try_recv() {
                self.take(event);
            }
        }
    }

    fn take(&mut self, event: Event) {
        match &event {
            Event::Unhealthy(index, _, grace) => {
                self.stop(*index, Timestamp::now() + self.state.grace_of(*grace), false);
            }
            Event::SandboxFailed(message) => {
                self.context.events.warning(&self.state.pod, None, "FailedCreatePodSandBox", message.clone());
            }
            Event::VolumesFailed(message) => {
                self.context.events.warning(&self.state.pod, None, "FailedMount", message.clone());
            }
            _ => {}
        }
        self.state.apply(event, Timestamp::now());
        let name = |index: usize| self.state.containers.get(index).map(|container| container.name.clone());
        // A container that waits for its next start says so.
        let plan = decide(&self.state, Timestamp::now());
        for index in 0..self.state.containers.len() {
            if let super::state::Run::Ended(ended) = &self.state.containers[index].run
                && self.state.containers[index].backoff.current(ended.finished_at).is_some()
                && ended.finished_at.duration_since(Timestamp::now()).as_millis().abs() < 5
                && !plan.actions.contains(&Action::Start(index))
                && self.state.restarts(self.state.containers[index].kind, ended.code)
            {
                let container = name(index).unwrap_or_default();
                let message =
                    format!("Back-off restarting failed container {container} in pod {}", self.state.label());
                self.context.events.warning(&self.state.pod, Some(&container), "BackOff", message);
            }
        }
    }

    fn publish(&mut self, now: Timestamp) {
        if self.state.gone {
            return;
        }
        let new = status::build(&self.state, &self.previous, self.context.host_ip(), now);
        if new != self.previous {
            self.previous = new.clone();
            if let Some(sender) = &self.status {
                sender.send_replace(new);
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::MakeSandbox => self.make_sandbox(),
            Action::MakeVolumes => self.make_volumes(),
            Action::Pull(index) => self.pull(index),
            Action::Start(index) => self.start(index),
            Action::Stop(index, deadline) => self.stop(index, deadline, true),
            Action::Kill(index) => {
                if let Some(live) = self.live(index) {
                    let runtime = self.context.runtime.clone();
                    tokio::spawn(async move { runtime.signal(&live.id, 9).await });
                }
            }
            Action::RemoveSandbox => {
                let (view, runtime) = (Arc::clone(&self.view), self.context.runtime.clone());
                tokio::spawn(async move { view.processes.release(&runtime).await });
                let network = self.network.lock().take();
                self.view.network.lock().take();
                if let Some(network) = network {
                    self.context.policies.detach(&self.view.uid);
                    self.context.network.release(&network);
                }
                let _ = self.events.send(Event::SandboxRemoved);
            }
            // Kept by `begin`; the object is deleted by `leave`.
            Action::Fail(..) | Action::Delete => {}
        }
    }

    fn live(&self, index: usize) -> Option<Arc<Live>> {
        let name = &self.state.containers.get(index)?.name;
        self.view.live.lock().get(name).cloned()
    }

    fn make_sandbox(&self) {
        let (context, events, pod) = (Arc::clone(&self.context), self.events.clone(), self.state.pod.clone());
        let (slot, view, pod_dir) = (Arc::clone(&self.network), Arc::clone(&self.view), self.pod_dir.clone());
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        tokio::spawn(async move {
            let claimed = if host_network {
                context.network.claim_host().await.map(Arc::new)
            } else {
                claim(&context, &pod).await
            };
            let network = match claimed {
                Ok(network) => network,
                Err(error) => {
                    let _ = events.send(Event::SandboxFailed(error.to_string()));
                    return;
                }
            };
            let address = network.address;
            if let Err(error) = write_files(&context, &pod, address, &pod_dir) {
                context.policies.detach(&view.uid);
                context.network.release(&network);
                let message = format!("cannot write {}: {error}", pod_dir.display());
                let _ = events.send(Event::SandboxFailed(message));
                return;
            }
            *view.network.lock() = Some(Arc::clone(&network));
            *slot.lock() = Some(network);
            let _ = events.send(Event::SandboxReady(address));
        });
    }

    fn make_volumes(&mut self) {
        let (context, events, pod) = (Arc::clone(&self.context), self.events.clone(), self.state.pod.clone());
        let (pod_dir, ended) = (self.pod_dir.clone(), self.unneeded.clone());
        self.volumes = Some(tokio::spawn(async move {
            // Subscribed before the first look, so that no change falls between the two.
            let changes = context.objects.changes();
            let mut tokens = Tokens::new();
            match volumes::keeper::fill(&context, &pod, &pod_dir, &mut tokens, true).await {
                Ok(()) => {
                    let _ = events.send(Event::VolumesReady);
                    volumes::keeper::keep(&context, pod, pod_dir, tokens, changes, ended).await;
                }
                Err(message) => {
                    let _ = events.send(Event::VolumesFailed(message));
                }
            }
        }));
    }

    fn pull(&self, index: usize) {
        let Some(spec) = self.state.spec_of(index).cloned() else { return };
        let (context, events, pod) = (Arc::clone(&self.context), self.events.clone(), self.state.pod.clone());
        let images = Arc::clone(&self.images);
        tokio::spawn(async move {
            let image = spec.image.clone().unwrap_or_default();
            let policy = match spec.image_pull_policy.as_deref() {
                Some("Always") => Policy::Always,
                Some("Never") => Policy::Never,
                Some(_) => Policy::IfNotPresent,
                None if is_latest(&image) => Policy::Always,
                None => Policy::IfNotPresent,
            };
            let secrets = pull_secrets(&context, &pod).await;
            let begun = std::time::Instant::now();
            let pulled = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let pulling = {
                let (context, pod, name) = (Arc::clone(&context), pod.clone(), spec.name.clone());
                let (image, pulled) = (image.clone(), Arc::clone(&pulled));
                Box::new(move || {
                    pulled.store(true, std::sync::atomic::Ordering::Relaxed);
                    context.events.normal(&pod, Some(&name), "Pulling", format!("Pulling image {image:?}"));
                })
            };
            match context.images.ensure(&image, policy, &secrets, pulling).await {
                Ok(found) => {
                    let message = if pulled.load(std::sync::atomic::Ordering::Relaxed) {
                        format!("Successfully pulled image {image:?} in {:?}", begun.elapsed())
                    } else {
                        format!("Container image {image:?} already present on machine")
                    };
                    context.events.normal(&pod, Some(&spec.name), "Pulled", message);
                    let id = found.id.clone();
                    context.image_uses.take(pod.metadata.uid.as_deref().unwrap_or_default(), &id);
                    images.lock().insert(index, Arc::new(found));
                    let _ = events.send(Event::ImageReady(index, id));
                }
                Err(failure) => {
                    let message = format!("Failed to pull image {image:?}: {}", failure.message);
                    context.events.warning(&pod, Some(&spec.name), "Failed", message);
                    context.events.warning(
                        &pod,
                        Some(&spec.name),
                        "Failed",
                        format!("Error: {}", failure.reason),
                    );
                    let _ = events.send(Event::ImageFailed(index, failure.reason, failure.message));
                }
            }
        });
    }

    fn start(&self, index: usize) {
        let (Some(spec), Some(network)) = (self.state.spec_of(index).cloned(), self.network.lock().clone())
        else {
            return;
        };
        let Some(image) = self.images.lock().get(&index).cloned() else { return };
        let run = container::Run {
            context: Arc::clone(&self.context),
            view: Arc::clone(&self.view),
            pod: Arc::new(self.state.pod.clone()),
            index,
            spec,
            attempt: self.state.containers[index].restarts,
            image,
            network,
            pod_dir: self.pod_dir.clone(),
            events: self.events.clone(),
            target: self.state.target_of(index).map(str::to_owned),
        };
        tokio::spawn(run.run());
    }

    fn stop(&self, index: usize, deadline: Timestamp, announce: bool) {
        let Some(live) = self.live(index) else { return };
        if live.stopping.is_cancelled() {
            return;
        }
        live.stopping.cancel();
        let (context, pod) = (Arc::clone(&self.context), self.state.pod.clone());
        tokio::spawn(async move {
            let name = &live.spec.name;
            if announce {
                context.events.normal(&pod, Some(name), "Killing", format!("Stopping container {name}"));
            }
            let hook = live.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
            let mut drained = false;
            if let Some(hook) = hook {
                let left = Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default();
                let outcome = match probe::of_hook(&live.spec, hook, live.address) {
                    Ok(check) => probe::perform(&context, &live, &check, left).await,
                    Err(message) => Err(message),
                };
                drained = outcome.is_ok();
                if let Err(message) = outcome {
                    let message = format!("PreStopHook failed: {message}");
                    context.events.warning(&pod, Some(name), "FailedPreStopHook", message);
                }
            }
            let first = pod
                .spec
                .as_ref()
                .is_none_or(|spec| spec.host_pid != Some(true) && spec.share_process_namespace != Some(true));
            // The first process of a pid namespace never sees a signal that it has no handler for. Once its preStop hook has said that
            // it may go, waiting out the grace (five minutes for a Knative revision) would help nobody.
            let deaf = drained && first && stop::ignores(live.pid, live.stop_signal);
            let signal = if deaf { nix::libc::SIGKILL } else { live.stop_signal };
            if let Err(error) = context.runtime.signal(&live.id, signal).await {
                debug!(container = live.id, %error, "the container ended by itself");
            }
        });
    }

    /// All is over: nothing of the pod stays on this node, nor in the API.
    async fn leave(mut self) {
        self.unneeded.cancel();
        if let Some(keeping) = self.volumes.take() {
            // What it is writing must not come again once it is removed.
            let _ = tokio::time::timeout(Duration::from_secs(10), keeping).await;
        }
        self.context.image_uses.leave(&self.view.uid, Timestamp::now());
        let pod = &self.state.pod;
        let (namespace, name) = (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        let key = (namespace.clone(), name.clone());
        self.context.pods.remove_if(&key, |_, view| view.uid == self.view.uid);
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if volume.empty_dir.as_ref().is_some_and(|empty| empty.medium.as_deref() == Some("Memory")) {
                let _ = self.context.runtime.unmount(&volume_dir(&self.pod_dir, &volume.name)).await;
            }
        }
        // The last status goes out before the object does.
        drop(self.status.take());
        if let Some(writer) = self.writer.take() {
            let _ = tokio::time::timeout(Duration::from_secs(5), writer).await;
        }
        let memory = super::memory_dir(&self.context, &self.pod_dir);
        let _ = self.context.runtime.among_mounts(move || std::fs::remove_dir_all(memory)).await;
        let folders = [self.pod_dir.clone(), self.view.log_dir.clone()];
        let _ = tokio::task::spawn_blocking(move || folders.map(std::fs::remove_dir_all)).await;
        if self.state.gone {
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let preconditions = Preconditions { uid: Some(self.view.uid.clone()), resource_version: None };
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let mut wait = Duration::from_millis(100);
        loop {
            match api.delete(&name, &parameters).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => break,
                Err(error) => warn!(pod = name, %error, "cannot delete the pod object; trying again"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
        info!(namespace, pod = name, "pod removed");
    }
}

/// A network of its own, with all that policies say of the pod in force.
async fn claim(context: &Context, pod: &Pod) -> Result<Arc<PodNetwork>, NetworkError> {
    let (policies, uid) = (&context.policies, pod.metadata.uid.as_deref().unwrap_or_default());
    policies.listed().await;
    let mut isolation = policies.isolation(uid);
    let sysctls = Sysctl::of(pod).map_err(NetworkError::Sysctl)?;
    let wanted = Claim { hostname: dns::hostname(pod), sysctls, rules: policies.rules(&isolation) };
    let network = context.network.claim(wanted).await?;
    let network = Arc::new(network);
    while let Err(newer) = policies.attach(uid, &network, isolation) {
        if let Err(error) = context.network.enforce(&network, policies.rules(&newer)).await {
            policies.detach(uid);
            context.network.release(&network);
            return Err(error);
        }
        isolation = newer;
    }
    Ok(network)
}

/// Whether a name means the tag `latest`.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None => true,
        Some((_, tag)) => tag == "latest",
    }
}

async fn pull_secrets(context: &Context, pod: &Pod) -> Vec<Vec<u8>> {
    use super::env::Lookup;
    let names = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let names: Vec<String> = names.map(|reference| reference.name.clone()).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let found = context.objects.find(pod).await;
    let content = |name: &String| {
        // The second is the older form, of Secrets of type kubernetes.io/dockercfg.
        let mut data = found.secret(name)?.data?;
        [".dockerconfigjson", ".dockercfg"].into_iter().find_map(|key| data.remove(key)).map(|bytes| bytes.0)
    };
    let (there, missing): (Vec<_>, Vec<_>) =
        names.iter().map(|name| (name, content(name))).partition(|(_, content)| content.is_some());
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            names.join(", ")
        );
        context.events.warning(pod, None, "FailedToRetrieveImagePullSecret", message);
    }
    there.into_iter().filter_map(|(_, content)| content).collect()
}

fn write_files(
    context: &Context,
    pod: &Pod,
    address: Option<std::net::Ipv4Addr>,
    folder: &std::path::Path,
) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let config = &context.network_config;
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let text = dns::resolv_conf(pod, config.dns_ip, &config.cluster_domain, &host);
    readable(&folder.join("resolv.conf"), &text)?;
    let hosts = match address {
        Some(address) => dns::hosts(pod, address, &config.cluster_domain),
        None => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
    };
    readable(&folder.join("hosts"), &hosts)?;
    if address.is_some() {
        readable(&folder.join("hostname"), &format!("{}\n", dns::hostname(pod)))?;
    }
    Ok(())
}

/// Writes a file for all users of a pod, whatever the umask.
fn readable(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_what_names_no_other_tag() {
        assert!(is_latest("nginx") && is_latest("localhost:5000/nginx") && is_latest("nginx:latest"));
        assert!(!is_latest("nginx:1") && !is_latest("nginx@sha256:00"));
    }
}
