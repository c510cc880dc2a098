//! Port 8022, for kubelet: readiness, and the user container's preStop hook.
//!
//! `/wait-for-drain` only waits: the drain itself begins with SIGTERM, which kubelet sends to the sidecar while the hook of
//! the user's container runs. A stranger who asks cannot drain the pod. Where no SIGTERM comes (a node agent that runs
//! hooks first), it answers when the pod has been quiet for a while. Upgraded connections are the app's to end, so that it must hear of
//! its end while they are open: the hook fails then, by which a node agent that ends deaf apps after their hook knows that this one is at work.

use std::sync::Arc;
use std::time::Duration;

use ebb_http::{Body, Handler, Peer};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::probe::Prober;
use crate::state::State;

/// How long a hook waits for SIGTERM before it looks at the pod's load instead.
const PATIENCE: Duration = Duration::from_secs(3);

/// Serves the port.
#[derive(Debug)]
pub struct Admin {
    /// What is asked about.
    pub state: Arc<State>,
    /// The app's probe.
    pub prober: Arc<Prober>,
}

impl Admin {
    async fn wait_for_drain(&self) -> Response<Body> {
        tokio::select! {
            biased;
            () = self.state.drained.cancelled() => {}
            () = self.quiet_without_signal() => {}
            () = self.state.only_tunnels.cancelled() => {
                let open = self.state.tunnels.open();
                let text = format!("{open} upgraded connections are open, which are the app's to end\n");
                return with_status(StatusCode::SERVICE_UNAVAILABLE, text);
            }
        }
        Response::new(Body::from("drained\n"))
    }

    async fn quiet_without_signal(&self) {
        loop {
            tokio::time::sleep(PATIENCE).await;
            if self.state.draining() {
                // The other branch knows better.
                std::future::pending::<()>().await;
            }
            if self.state.seen().open == 0 {
                return;
            }
        }
    }

    async fn ready(&self) -> Response<Body> {
        let answer = if self.state.draining() {
            Err("shutting down".to_owned())
        } else if !self.state.is_ready() {
            Err("the app has not started yet".to_owned())
        } else {
            self.prober.check().await
        };
        match answer {
            Ok(()) => Response::new(Body::from("ok\n")),
            Err(why) => with_status(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        }
    }
}

fn with_status(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response
}

impl Handler for Admin {
    type Body = Body;

    async fn handle(self: Arc<Self>, request: Request<Incoming>, _peer: Arc<Peer>) -> Response<Body> {
        match request.uri().path() {
            "/wait-for-drain" => self.wait_for_drain().await,
            "/ready" | "/readyz" | "/" => self.ready().await,
            "/healthz" | "/livez" => Response::new(Body::from("ok\n")),
            _ => with_status(
                StatusCode::NOT_FOUND,
                "no such page; there are /wait-for-drain, /ready and /healthz\n",
            ),
        }
    }
}
