//! Finding out that a pod can be used before Kubernetes says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ebb_http::{Backend, Outgoing, RequestBody, headers};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};

use crate::revision::Revision;

/// The pauses between probes: short while the pod may come up any moment, never so long that it shows.
const PAUSES: [u64; 4] = [5, 10, 20, 50];
/// The pause where nobody waits, but a pod is to be had back.
const UNHURRIED: Duration = Duration::from_millis(250);
/// A probe that hangs (the pod's network is not there yet) is given up, for the next may find it.
const TIMEOUT: Duration = Duration::from_millis(1000);

/// Probes a pod until it answers, is gone, or is wanted by nobody any more.
pub(crate) async fn until_answered(revision: Arc<Revision>, address: SocketAddr, backend: Arc<Backend>) {
    let mut pauses = PAUSES.iter().chain(std::iter::repeat(&PAUSES[PAUSES.len() - 1]));
    loop {
        let answered = tokio::time::timeout(TIMEOUT, answers(&revision, &backend)).await;
        if matches!(answered, Ok(true)) {
            revision.end_probing(address);
            return revision.probed(address);
        }
        let Some(waiting) = revision.keep_probing(address) else { return };
        let soon = Duration::from_millis(*pauses.next().unwrap_or(&50));
        tokio::time::sleep(if waiting { soon } else { UNHURRIED }).await;
    }
}

async fn answers(revision: &Revision, backend: &Arc<Backend>) -> bool {
    let request = Request::get("/")
        .header(header::HOST, format!("{}.{}", revision.key.name, revision.key.namespace))
        .header(header::USER_AGENT, "Knative-Activator-Probe")
        .header(headers::K_NETWORK_PROBE, headers::PROBE_QUEUE)
        .body(RequestBody::empty());
    let Ok(Ok(mut outgoing)) = request.map(Outgoing::own) else { return false };
    let Ok(response) = outgoing.send(backend).await else { return false };
    if response.status() != StatusCode::OK {
        return false;
    }
    match Limited::new(response.into_body(), 1024).collect().await {
        Ok(body) => body.to_bytes() == headers::PROBE_QUEUE,
        Err(_) => false,
    }
}
