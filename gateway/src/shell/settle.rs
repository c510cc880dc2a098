//! Telling in an Ingress's status that it is served, once it really is.
//!
//! A gateway says so when every gateway (all addresses of the Service `gateway-internal`, and its own listener)
//! answers a probe of the Ingress's host with the hash of the present version. Several gateways say the same; who
//! finds it said writes nothing. A gateway that answers but serves another version is waited for as long as it is
//! listed; one that does not answer at all is on its way out, and left out after a while.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ebb_api::conditions::{Conditioned, READY};
use ebb_api::networking::{Ingress, IngressStatus, LoadBalancerIngressStatus, LoadBalancerStatus};
use ebb_http::{Outgoing, PlainConnector, Pool, PoolConfig, Protocol, RequestBody, Target, headers};
use http::{Request, header};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::table::{Key, Problem, Served};

const NETWORK_CONFIGURED: &str = "NetworkConfigured";
const LOAD_BALANCER_READY: &str = "LoadBalancerReady";
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How many times a gateway is asked that does not answer at all.
const PATIENCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);
/// Between two questions to a gateway that is behind for long.
const LONG_PAUSE: Duration = Duration::from_millis(500);
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
    public: ArcSwap<LoadBalancerStatus>,
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
                public: ArcSwap::from_pointee(at(config.external_name())),
                private: at(config.internal_name()),
            }),
            running: HashMap::new(),
        }
    }

    /// All gateways, this one among them.
    pub(crate) fn set_gateways(&self, all: Vec<SocketAddr>) {
        *self.io.gateways.lock() = all;
    }

    /// Takes over the addresses that a load balancer gave the gateways' Service; answers whether there are others now. Statuses tell
    /// them to whoever sets up names.
    pub(crate) fn set_public(&self, service: &Service) -> bool {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let given = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
        let before = self.io.public.load_full();
        let internal = before.ingress.first().and_then(|ingress| ingress.domain_internal.clone());
        let mut ingress: Vec<_> = given
            .map(|given| LoadBalancerIngressStatus {
                ip: given.ip.clone(),
                domain: given.hostname.clone(),
                domain_internal: internal.clone(),
                ..Default::default()
            })
            .collect();
        if ingress.is_empty() {
            ingress.push(LoadBalancerIngressStatus { domain_internal: internal, ..Default::default() });
        }
        let now = LoadBalancerStatus { ingress };
        let changed = *before != now;
        if changed {
            self.io.public.store(Arc::new(now));
        }
        changed
    }

    pub(crate) fn forget(&mut self, key: &Key) {
        self.running.remove(key);
    }

    /// Settles an Ingress whose status does not say what is the case.
    pub(crate) fn check(
        &mut self,
        key: &Key,
        ingress: &Arc<Ingress>,
        served: Option<Served>,
        problem: Option<Problem>,
    ) {
        let version = Version {
            generation: ingress.metadata.generation,
            hash: served.as_ref().map(|served| served.hash.clone()).unwrap_or_default(),
            problem,
        };
        let current = ingress.status.clone().unwrap_or_default();
        if !self.io.differs(&current, &version) {
            self.running.remove(key);
            return;
        }
        if self.running.get(key).is_some_and(|(of, task)| *of == version && !task.is_finished()) {
            return;
        }
        let (io, of, key_of, served) = (self.io.clone(), version.clone(), key.clone(), served);
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
                        || current.public_load_balancer.as_ref() != Some(&**self.public.load())
                        || current.private_load_balancer.as_ref() != Some(&self.private)
                }
            }
    }

    async fn settle(&self, key: &Key, mut status: IngressStatus, version: &Version, served: Option<&Served>) {
        if let (Some(served), None) = (served, &version.problem) {
            self.until_served(key, served).await;
        }
        status.observed_generation = version.generation;
        status.public_load_balancer = Some((**self.public.load()).clone());
        status.private_load_balancer = Some(self.private.clone());
        let mut conditions = status.manage(Timestamp::now());
        conditions.initialize().mark_true(LOAD_BALANCER_READY);
        match &version.problem {
            None => conditions.mark_true(NETWORK_CONFIGURED),
            // A Secret that is not there may still come: nobody's fault yet.
            Some(problem @ Problem::NoCertificate { .. }) => {
                conditions.mark_unknown(NETWORK_CONFIGURED, reason(problem), &problem.to_string())
            }
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
        let host = &host.replacen('*', "any", 1);
        let mut done: HashSet<SocketAddr> = HashSet::new();
        let mut silent: HashMap<SocketAddr, u32> = HashMap::new();
        for round in 1_u32.. {
            // Read anew: gateways come and go meanwhile.
            let mut all = self.own.clone();
            all.extend(self.gateways.lock().iter().filter(|address| !self.own.contains(address)));
            all.retain(|address| !done.contains(address));
            let asked =
                all.into_iter().map(async |address| (address, self.probe(address, host, &served.hash).await));
            let mut waiting = 0;
            for (address, answer) in futures::future::join_all(asked).await {
                let (given_up, why) = match answer {
                    Probe::Serves => {
                        done.insert(address);
                        continue;
                    }
                    Probe::Behind(why) => (false, why),
                    Probe::Silent(why) => {
                        let times = silent.entry(address).or_default();
                        *times += 1;
                        (*times >= PATIENCE && !self.own.contains(&address), why)
                    }
                };
                if given_up {
                    tracing::warn!(ingress = %key, %address, why, "a gateway does not answer; not waiting for it");
                    done.insert(address);
                } else {
                    waiting += 1;
                    if round == PATIENCE {
                        tracing::warn!(ingress = %key, %address, why, "a gateway does not serve this yet");
                    }
                }
            }
            if waiting == 0 {
                return;
            }
            tokio::time::sleep(if round < PATIENCE { PAUSE } else { LONG_PAUSE }).await;
        }
    }

    async fn probe(&self, address: SocketAddr, host: &str, hash: &str) -> Probe {
        let request = Request::get("/")
            .header(header::HOST, host)
            .header(header::USER_AGENT, "Knative-Ingress-Probe")
            .header(headers::K_NETWORK_PROBE, headers::PROBE_INGRESS)
            .header(headers::K_NETWORK_HASH, headers::HASH_OVERRIDE)
            .body(RequestBody::empty());
        let backend = self.pool.backend(&Target::plain(address, Protocol::Http1));
        let mut outgoing = match request
            .map_err(|error| error.to_string())
            .and_then(|request| Outgoing::own(request).map_err(|error| error.to_string()))
        {
            Ok(outgoing) => outgoing,
            Err(why) => return Probe::Silent(why),
        };
        match tokio::time::timeout(PROBE_TIMEOUT, outgoing.send(&backend)).await {
            Err(_) => Probe::Silent(format!("no answer within {PROBE_TIMEOUT:?}")),
            Ok(Err(error)) => Probe::Silent(error.to_string()),
            Ok(Ok(response)) => match response.headers().get(headers::K_NETWORK_HASH) {
                Some(got) if got == hash => Probe::Serves,
                _ => Probe::Behind(format!("{} with another hash", response.status())),
            },
        }
    }
}

/// What a gateway answered.
enum Probe {
    Serves,
    Behind(String),
    Silent(String),
}

fn reason(problem: &Problem) -> &'static str {
    match problem {
        Problem::HostTaken { .. } => "HostTaken",
        Problem::NoCertificate { .. } => "CertificateMissing",
        _ => "InvalidIngress",
    }
}
