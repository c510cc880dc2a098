//! The paths that a kubelet serves and the API server forwards to: logs, exec, attach, port-forward, figures.

mod carrier;
mod exec;
mod logs;
mod portforward;
mod session;
mod socket;
mod spdy;
mod stats;

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, get};
use http::StatusCode;

use crate::context::{Context, PodView};

/// All paths.
pub(crate) fn router(context: Arc<Context>) -> Router {
    Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::logs))
        .route("/exec/{namespace}/{pod}/{container}", any(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(exec::attach))
        .route("/portForward/{namespace}/{pod}", any(portforward::port_forward))
        .route("/stats/summary", get(stats::summary))
        .route("/healthz", get(async || "ok"))
        .with_state(context)
}

/// Where SPDY clients say what they speak inside it.
const PROTOCOL_HEADER: &str = "x-stream-protocol-version";

/// A refusal as kubelet makes it: a status code and a line of text.
pub(crate) type Refusal = (StatusCode, String);

/// Finds a pod.
pub(crate) fn find(context: &Context, namespace: &str, pod: &str) -> Result<Arc<PodView>, Refusal> {
    let found = context.pods.get(&(namespace.to_owned(), pod.to_owned()));
    found
        .map(|view| Arc::clone(&view))
        .ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod {namespace}/{pod} does not run on this node\n")))
}
