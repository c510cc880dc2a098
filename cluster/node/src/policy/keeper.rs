//! The thin part: watches that feed the world, and the rules of pods that follow it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::model::{Isolation, Transport};
use super::ruleset::{self, Always};
use super::world::{PodFacts, World};
use crate::network::{Network, PodNetwork};

/// The policies of a cluster, kept up to date while a [`crate::Node`] runs. Clones share everything.
#[derive(Clone, Debug)]
pub struct Policies {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    always: Always,
    state: Mutex<State>,
    wake: Notify,
    /// How many of the two kinds have been listed.
    listed: watch::Sender<u8>,
}

#[derive(Debug, Default)]
struct State {
    world: World,
    attached: HashMap<String, Attached>,
    /// Pods whose rules may have to change.
    due: HashSet<String>,
    /// Namespaces in which pods depend on other pods.
    entangled: BTreeSet<String>,
}

#[derive(Debug)]
struct Attached {
    network: Arc<PodNetwork>,
    loaded: Isolation,
}

/// Pods whose rules are loaded side by side.
const AT_A_TIME: usize = 16;

/// Rules to be loaded.
struct Work {
    uid: String,
    network: Arc<PodNetwork>,
    isolation: Isolation,
}

impl Default for Policies {
    fn default() -> Self {
        Self::new(Always::default())
    }
}

impl Policies {
    /// Without any policy yet.
    #[must_use]
    pub fn new(always: Always) -> Self {
        let inner =
            Inner { always, state: Mutex::default(), wake: Notify::new(), listed: watch::Sender::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// Whether a connection between two addresses is allowed by the policies of both ends. For whoever connects in place of a pod.
    #[must_use]
    pub fn admits(&self, from: IpAddr, to: SocketAddr, transport: Transport) -> bool {
        let (IpAddr::V4(from), IpAddr::V4(target)) = (from.to_canonical(), to.ip().to_canonical()) else {
            return true;
        };
        self.inner.always.lets_out_to(target)
            || self.inner.state.lock().world.admits(from, target, transport, to.port())
    }

    /// Waits until all policies and namespaces are known: before that, a pod would be open that should not be.
    pub(crate) async fn listed(&self) {
        let mut listed = self.inner.listed.subscribe();
        // The sender lives as long as this does.
        let _ = listed.wait_for(|kinds| *kinds >= 2).await;
    }

    /// What is in force for a pod.
    pub(crate) fn isolation(&self, uid: &str) -> Isolation {
        self.inner.state.lock().world.isolation(uid)
    }

    /// The rules that this means.
    pub(crate) fn rules(&self, isolation: &Isolation) -> Option<cluster_firewall::Ruleset> {
        ruleset::rules(isolation, &self.inner.always)
    }

    /// The pod has its network, with rules for `loaded`; from now on they follow the policies.
    ///
    /// # Errors
    /// What is in force now, if that has become something else meanwhile: to be loaded, and attached again.
    pub(crate) fn attach(
        &self,
        uid: &str,
        network: &Arc<PodNetwork>,
        loaded: Isolation,
    ) -> Result<(), Isolation> {
        let mut state = self.inner.state.lock();
        state.world.set_address(uid, network.address);
        let isolation = state.world.isolation(uid);
        if isolation != loaded {
            return Err(isolation);
        }
        state.attached.insert(uid.to_owned(), Attached { network: Arc::clone(network), loaded });
        self.others_due(&mut state);
        Ok(())
    }

    /// The pod's network goes away.
    pub(crate) fn detach(&self, uid: &str) {
        let mut state = self.inner.state.lock();
        state.attached.remove(uid);
        state.world.set_address(uid, None);
        self.others_due(&mut state);
    }

    /// A pod as the API has it.
    pub(crate) fn pod_changed(&self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.as_deref() else { return };
        let mut state = self.inner.state.lock();
        if state.world.set_pod(uid, PodFacts::of(pod)) {
            state.due.insert(uid.to_owned());
            self.others_due(&mut state);
        }
    }

    /// The node is done with a pod.
    pub(crate) fn pod_gone(&self, uid: &str) {
        let mut state = self.inner.state.lock();
        state.attached.remove(uid);
        state.world.remove_pod(uid);
        self.others_due(&mut state);
    }

    /// Pods whose rules depend on other pods are looked at again.
    fn others_due(&self, state: &mut State) {
        if !state.entangled.is_empty() {
            let State { world, attached, due, entangled } = state;
            let inside = |uid: &&String| world.namespace_of(uid).is_some_and(|ns| entangled.contains(ns));
            due.extend(attached.keys().filter(inside).cloned());
        }
        if !state.due.is_empty() {
            self.inner.wake.notify_one();
        }
    }

    /// Policies have changed, in one namespace or anywhere.
    fn policies_changed(&self, state: &mut State, namespace: Option<&str>) {
        state.entangled = state.world.entangled().map(str::to_owned).collect();
        let State { world, attached, due, .. } = state;
        let inside = |uid: &&String| namespace.is_none() || world.namespace_of(uid) == namespace;
        due.extend(attached.keys().filter(inside).cloned());
        if !state.due.is_empty() {
            self.inner.wake.notify_one();
        }
    }

    /// Rules that are not what they should be.
    fn work(&self) -> Vec<Work> {
        let mut state = self.inner.state.lock();
        let due = std::mem::take(&mut state.due);
        due.into_iter()
            .filter_map(|uid| {
                let attached = state.attached.get(&uid)?;
                let isolation = state.world.isolation(&uid);
                (isolation != attached.loaded).then(|| Work {
                    uid,
                    network: Arc::clone(&attached.network),
                    isolation,
                })
            })
            .collect()
    }

    /// Follows the policies until `shutdown`.
    pub(crate) async fn run(self, client: Client, network: Network, shutdown: CancellationToken) {
        let follow = async { tokio::join!(self.follow_policies(&client), self.follow_namespaces(&client)) };
        let enforce = async {
            loop {
                self.inner.wake.notified().await;
                // Each takes a while, most of it waiting in the kernel.
                let each = futures::stream::iter(self.work());
                each.for_each_concurrent(AT_A_TIME, |work| self.enforce(&network, work)).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = follow => {}
            () = enforce => {}
        }
    }

    async fn enforce(&self, network: &Network, work: Work) {
        let rules = self.rules(&work.isolation);
        match network.enforce(&work.network, rules).await {
            Ok(()) => {
                debug!(uid = work.uid, "network policies are in force");
                let mut state = self.inner.state.lock();
                if let Some(attached) = state.attached.get_mut(&work.uid)
                    && Arc::ptr_eq(&attached.network, &work.network)
                {
                    attached.loaded = work.isolation;
                }
            }
            Err(cause) => {
                error!(uid = work.uid, %cause, "a pod's network policies are not in force; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.inner.state.lock().due.insert(work.uid);
                self.inner.wake.notify_one();
            }
        }
    }

    async fn follow_policies(&self, client: &Client) {
        let api: Api<NetworkPolicy> = Api::all(client.clone());
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut fresh = Vec::new();
        let mut counted = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(policy)) => {
                    let mut state = self.inner.state.lock();
                    state.world.set_policy(&policy);
                    self.policies_changed(&mut state, policy.metadata.namespace.as_deref());
                }
                Ok(watcher::Event::Delete(policy)) => {
                    let mut state = self.inner.state.lock();
                    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
                    let name = policy.metadata.name.clone().unwrap_or_default();
                    state.world.remove_policy(&namespace, &name);
                    self.policies_changed(&mut state, Some(&namespace));
                }
                Ok(watcher::Event::Init) => fresh.clear(),
                Ok(watcher::Event::InitApply(policy)) => fresh.push(policy),
                Ok(watcher::Event::InitDone) => {
                    let mut state = self.inner.state.lock();
                    state.world.set_policies(&std::mem::take(&mut fresh));
                    self.policies_changed(&mut state, None);
                    drop(state);
                    self.count(&mut counted);
                }
                Err(error) => warn!(%error, "the watch of network policies is interrupted"),
            }
        }
    }

    async fn follow_namespaces(&self, client: &Client) {
        let api: Api<Namespace> = Api::all(client.clone());
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut names = BTreeSet::new();
        let mut counted = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(namespace) | watcher::Event::InitApply(namespace)) => {
                    names.insert(namespace.metadata.name.clone().unwrap_or_default());
                    let mut state = self.inner.state.lock();
                    if state.world.set_namespace(&namespace) {
                        self.others_due(&mut state);
                    }
                }
                Ok(watcher::Event::Delete(namespace)) => {
                    let name = namespace.metadata.name.unwrap_or_default();
                    let mut state = self.inner.state.lock();
                    state.world.remove_namespace(&name);
                    self.others_due(&mut state);
                }
                Ok(watcher::Event::Init) => names.clear(),
                Ok(watcher::Event::InitDone) => {
                    let mut state = self.inner.state.lock();
                    state.world.keep_namespaces(&names);
                    self.others_due(&mut state);
                    drop(state);
                    self.count(&mut counted);
                }
                Err(error) => warn!(%error, "the watch of namespaces is interrupted"),
            }
        }
    }

    /// One more kind is known, once.
    fn count(&self, counted: &mut bool) {
        if !std::mem::replace(counted, true) {
            self.inner.listed.send_modify(|kinds| *kinds += 1);
        }
    }
}

#[cfg(test)]
impl Policies {
    pub(crate) fn replace(&self, policies: &[NetworkPolicy]) {
        self.inner.state.lock().world.set_policies(policies);
    }

    pub(crate) fn place(&self, uid: &str, address: std::net::Ipv4Addr) {
        self.inner.state.lock().world.set_address(uid, Some(address));
    }
}
