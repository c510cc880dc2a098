//! Looks into pods that do not come up and whose status does not tell why: their Events are read, and their sidecars asked.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use super::Reconciler;
use crate::revision::trouble::{self, Trouble};
use crate::world::Key;

/// How long a sidecar and the API server have for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A pod has few Events; more than these are not read.
const EVENTS: u32 = 100;

/// What was found out about a pod.
pub(super) struct Found {
    pod: String,
    at: Instant,
    trouble: Option<Trouble>,
}

impl Reconciler {
    /// What was found out about one of these pods of a revision.
    pub(super) fn trouble(&self, key: &Key, pods: &[Arc<Pod>]) -> Option<Trouble> {
        let found = self.found.get(key)?;
        let there = pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(&found.pod));
        found.trouble.clone().filter(|_| there)
    }

    /// Looks into a pod of this age in the background, if it is time to; without one there is nothing to know any more.
    pub(super) fn inspect(self: &Arc<Self>, key: &Key, pod: Option<(&Arc<Pod>, Duration)>) {
        let Some((pod, age)) = pod else {
            self.found.remove(key);
            return;
        };
        let Some(uid) = pod.metadata.uid.clone().filter(|_| age >= trouble::USUAL) else { return };
        let now = Instant::now();
        let before = self.found.get(key).filter(|found| found.pod == uid).map(|f| (f.at, f.trouble.clone()));
        // Somewhat less than the pause, so that the look that was planned is not too early.
        if before.as_ref().is_some_and(|(at, _)| now - *at < trouble::pause(age) * 3 / 4) {
            return;
        }
        let before = before.and_then(|(_, trouble)| trouble);
        self.found.insert(key.clone(), Found { pod: uid.clone(), at: now, trouble: before.clone() });
        let (this, key, pod) = (self.clone(), key.clone(), pod.clone());
        tokio::spawn(async move {
            let trouble = this.look_into(&pod).await;
            let changed = trouble != before;
            if let Some(mut found) = this.found.get_mut(&key).filter(|found| found.pod == uid) {
                found.trouble = trouble;
            }
            if changed {
                this.world.queue.add(key);
            }
        });
    }

    async fn look_into(&self, pod: &Pod) -> Option<Trouble> {
        if let Some(trouble) = ask_sidecar(pod).await {
            return Some(trouble);
        }
        let events: Api<Event> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let fields = format!("involvedObject.uid={},type=Warning", pod.metadata.uid.as_deref()?);
        let list = ListParams::default().fields(&fields).limit(EVENTS);
        let list = tokio::time::timeout(PATIENCE, events.list(&list)).await.ok()?;
        match list {
            Ok(list) => trouble::of_events(pod, &list.items),
            Err(error) => {
                tracing::debug!(pod = %pod.name_any(), %error, "its events could not be read");
                None
            }
        }
    }
}

/// The sidecar's own answer to a probe says what kubelet's does not: why the app is not ready.
async fn ask_sidecar(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let runs = status.container_statuses.iter().flatten().any(|c| {
        c.name == ebb_api::meta::ebb::QUEUE_PROXY && c.state.as_ref().is_some_and(|s| s.running.is_some())
    });
    let ip: IpAddr = status.pod_ip.as_ref().filter(|_| runs)?.parse().ok()?;
    let address = SocketAddr::new(ip, ebb_http::ports::HTTP1);
    let request = Request::get(format!("http://{address}/"))
        .header(ebb_http::headers::K_NETWORK_PROBE, ebb_http::headers::PROBE_QUEUE)
        .body(Empty::<Bytes>::new())
        .ok()?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = async {
        let response = client.request(request).await.ok()?;
        let unready = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        let body = Limited::new(response.into_body(), 4096).collect().await.ok()?.to_bytes();
        unready.then(|| String::from_utf8_lossy(&body).into_owned())
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await.ok().flatten()?;
    trouble::of_sidecar(&answer)
}
