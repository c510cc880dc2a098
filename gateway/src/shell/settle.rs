//! Telling in an Ingress's status that it is served, once it really is.
//!
//! A gateway says so when every gateway (all addresses of the Service `gateway-internal`, and its own listener)
//! answers a probe of the Ingress's host with the hash of the present version. Several gateways say the same; who
//! finds it said writes nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ebb_api::conditions::{Conditioned, READY};
use ebb_api::networking::{Ingress, IngressStatus, LoadBalancerIngressStatus, LoadBalancerStatus};
use ebb_http::{Outgoing, PlainConnector, Pool, PoolConfig, Protocol, RequestBody, Target, headers};
use http::{Request, header};
use jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::table::{Key, Problem, Served, Table};
use crate::upstream::Upstream;

const NETWORK_CONFIGURED: &str = "NetworkConfigured";
const LOAD_BALANCER_READY: &str = "LoadBalancerReady";
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Another gateway may be a moment behind; one that does not answer at all is being replaced and left out then.
const PATIENCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_millis(500);

/// See the module's documentation.
pub(crate) struct Settler {
    io: Arc<Io>,
    /// What is being settled, as which version.
    running: HashMap<Key, (Version, AbortOnDropHandle<()>)>,
}

#[derive(Debug, Clone, PartialEq)]
struct Version {
    generation: Option<i64>,
    hash: String,
    problem: Option<Problem>,
}

struct Io {
    client: kube::Client,
    pool: Pool,
    own: Vec<SocketAddr>,
    gateways: Mutex<Vec<SocketAddr>>,
    public: LoadBalancerStatus,
    private: LoadBalancerStatus,
}

impl Settler {
    /// `own`: where this process's local listeners can be reached.
    pub(crate) fn new(client: kube::Client, config: &Config, own: Vec<SocketAddr>) -> Self {
        let at = |name: String| LoadBalancerStatus {
            ingress: vec![LoadBalancerIngressStatus { domain_internal: Some(name), ..Default::default() }],
        };
        let pool = PoolConfig {
            connect_timeout: PROBE_TIMEOUT,
            idle_timeout: Duration::from_secs(10),
            ..PoolConfig::default()
        };
        Self {
            io: Arc::new(Io {
                client,
                pool: Pool::new(PlainConnector, pool),
                own,
                gateways: Mutex::default(),
                public: at(config.external_name()),
                private: at(config.internal_name()),
            }),
            running: HashMap::new(),
        }
    }

    /// All gateways, this one among them.
    pub(crate) fn set_gateways(&self, all: Vec<SocketAddr>) {
        *self.io.gateways.lock() = all;
    }

    pub(crate) fn forget(&mut self, key: &Key) {
        self.running.remove(key);
    }

    /// Settles an Ingress whose status does not say what is the case.
    pub(crate) fn check(&mut self, key: &Key, ingress: &Arc<Ingress>, table: &Table<Arc<Upstream>>) {
        let served = table.served.get(key);
        let version = Version {
            generation: ingress.metadata.generation,
            hash: served.map(|served| served.hash.clone()).unwrap_or_default(),
            problem: table.problems.get(key).cloned(),
        };
        if served.is_some_and(|served| Some(served.generation) != ingress.metadata.generation) {
            // The table is of before; the next one will be checked again.
            return;
        }
        let current = ingress.status.clone().unwrap_or_default();
        if !self.io.differs(&current, &version) {
            self.running.remove(key);
            return;
        }
        if self.running.get(key).is_some_and(|(of, task)| *of == version && !task.is_finished()) {
            return;
        }
        let (io, of, key_of, served) = (self.io.clone(), version.clone(), key.clone(), served.cloned());
        let task = tokio::spawn(async move { io.settle(&key_of, current, &of, served.as_ref()).await });
        self.running.insert(key.clone(), (version, AbortOnDropHandle::new(task)));
    }
}

impl Io {
    fn differs(&self, current: &IngressStatus, version: &Version) -> bool {
        let told = current.condition(NETWORK_CONFIGURED).and_then(|condition| condition.message.as_deref());
        current.observed_generation != version.generation
            || match &version.problem {
                Some(problem) => told != Some(problem.to_string().as_str()),
                None => {
                    !current.is_true(READY)
                        || current.public_load_balancer.as_ref() != Some(&self.public)
                        || current.private_load_balancer.as_ref() != Some(&self.private)
                }
            }
    }

    async fn settle(&self, key: &Key, mut status: IngressStatus, version: &Version, served: Option<&Served>) {
        if let (Some(served), None) = (served, &version.problem) {
            self.until_served(key, served).await;
        }
        status.observed_generation = version.generation;
        status.public_load_balancer = Some(self.public.clone());
        status.private_load_balancer = Some(self.private.clone());
        let mut conditions = status.manage(Timestamp::now());
        conditions.initialize().mark_true(LOAD_BALANCER_READY);
        match &version.problem {
            None => conditions.mark_true(NETWORK_CONFIGURED),
            Some(problem) => conditions.mark_false(NETWORK_CONFIGURED, reason(problem), &problem.to_string()),
        };
        let api: Api<Ingress> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PatchParams { field_manager: Some("ebb-gateway".to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"status": status}));
        loop {
            match api.patch_status(&key.name, &params, &patch).await {
                Ok(_) => return,
                Err(kube::Error::Api(answer)) if answer.code == 404 => return,
                Err(error) => {
                    tracing::warn!(ingress = %key, %error, "the status could not be written, trying again");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits until all gateways answer with the hash.
    async fn until_served(&self, key: &Key, served: &Served) {
        // All hosts come with one table: one of them tells.
        let Some((host, _)) = served.hosts.first() else { return };
        let mut all = self.own.clone();
        all.extend(self.gateways.lock().iter().filter(|address| !self.own.contains(address)));
        for address in all {
            let mut attempts = 0;
            while let Err(why) = self.probe(address, host, &served.hash).await {
                attempts += 1;
                if attempts >= PATIENCE && !self.own.contains(&address) {
                    tracing::warn!(ingress = %key, %address, why, "a gateway does not serve this; not waiting for it");
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn probe(&self, address: SocketAddr, host: &str, hash: &str) -> Result<(), String> {
        let request = Request::get("/")
            .header(header::HOST, host)
            .header(header::USER_AGENT, "Knative-Ingress-Probe")
            .header(headers::K_NETWORK_PROBE, headers::PROBE_INGRESS)
            .header(headers::K_NETWORK_HASH, headers::HASH_OVERRIDE)
            .body(RequestBody::empty())
            .map_err(|error| error.to_string())?;
        let backend = self.pool.backend(&Target::plain(address, Protocol::Http1));
        let mut outgoing = Outgoing::own(request).map_err(|error| error.to_string())?;
        let response = tokio::time::timeout(PROBE_TIMEOUT, outgoing.send(&backend))
            .await
            .map_err(|_| format!("no answer within {PROBE_TIMEOUT:?}"))?
            .map_err(|error| error.to_string())?;
        let got = response.headers().get(headers::K_NETWORK_HASH);
        if got.is_some_and(|got| got == hash) {
            Ok(())
        } else {
            Err(format!("{} with another hash", response.status()))
        }
    }
}

fn reason(problem: &Problem) -> &'static str {
    match problem {
        Problem::HostTaken { .. } => "HostTaken",
        _ => "InvalidIngress",
    }
}
