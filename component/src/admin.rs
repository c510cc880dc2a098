//! The ports for whoever watches over a component: liveness and readiness for kubelet, metrics for Prometheus.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

use crate::health::Health;
use crate::{ListenError, listen, metrics};

/// Where to listen; 0 for nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Liveness, readiness, and what a component has to tell besides.
    pub health: u16,
    /// Metrics.
    pub metrics: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { health: 8081, metrics: 9090 }
    }
}

impl Ports {
    /// No ports at all, as in tests.
    pub const NONE: Self = Self { health: 0, metrics: 0 };
}

/// Further lines for the metrics, made when they are asked for.
pub type Extra = Box<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// The ports in service; they close when this is dropped.
pub struct Admin {
    health: Health,
    shared: Arc<Shared>,
    end: DropGuard,
}

struct Shared {
    component: &'static str,
    health: Health,
    routes: OnceLock<Router>,
    extra: OnceLock<Extra>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("component", &self.shared.component).finish_non_exhaustive()
    }
}

impl Admin {
    /// Installs the recorder of metrics, binds the ports, and serves them.
    ///
    /// # Errors
    /// When a port is not to be had.
    pub async fn start(
        component: &'static str,
        bind: IpAddr,
        ports: Ports,
        health: Health,
    ) -> Result<Self, ListenError> {
        metrics::recorder();
        let end = CancellationToken::new();
        let shared = Arc::new(Shared {
            component,
            health: health.clone(),
            routes: OnceLock::new(),
            extra: OnceLock::new(),
        });
        if ports.health != 0 {
            let listener = listen(SocketAddr::new(bind, ports.health)).await?;
            let alive = get(|| async { "ok\n" });
            let router = Router::new()
                .route("/healthz", alive.clone())
                .route("/livez", alive)
                .route("/readyz", get(ready))
                .fallback(others)
                .with_state(shared.clone());
            tokio::spawn(serve(listener, router, end.clone()));
        }
        if ports.metrics != 0 {
            let listener = listen(SocketAddr::new(bind, ports.metrics)).await?;
            let router = Router::new().route("/metrics", get(scrape)).with_state(shared.clone());
            tokio::spawn(serve(listener, router, end.clone()));
        }
        tokio::spawn(upkeep(end.clone()));
        Ok(Self { health, shared, end: end.drop_guard() })
    }

    /// Sends the metrics to a collector too, where `config-observability` in this namespace names one.
    pub fn send_metrics(&self, client: kube::Client, namespace: &str) {
        let shared = self.shared.clone();
        let page: ebb_http::otlp::metrics::Page = Box::new(move || {
            let shared = shared.clone();
            Box::pin(async move { shared.tell().await })
        });
        let (component, end) = (self.shared.component, self.end.token().clone());
        tokio::spawn(metrics::push::run(component, page, client, namespace.to_owned(), end));
    }

    /// The readiness to be told of.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Serves these as well, at the health port. Only the first call counts.
    pub fn also_serve(&self, routes: Router) {
        let _ = self.shared.routes.set(routes);
    }

    /// Adds these lines to the metrics. Only the first call counts.
    pub fn also_tell(&self, extra: Extra) {
        let _ = self.shared.extra.set(extra);
    }
}

impl Shared {
    /// The page of metrics.
    async fn tell(&self) -> String {
        let mut text = metrics::render(self.component);
        if let Some(extra) = self.extra.get() {
            text.push_str(&extra().await);
        }
        text
    }
}

async fn serve(listener: TcpListener, router: Router, end: CancellationToken) {
    let served = axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "a port for health or metrics failed");
    }
}

async fn upkeep(end: CancellationToken) {
    while end.run_until_cancelled(tokio::time::sleep(metrics::UPKEEP)).await.is_some() {
        metrics::recorder().run_upkeep();
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    match shared.health.missing() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn others(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    match shared.routes.get() {
        Some(routes) => routes.clone().oneshot(request).await.into_response(),
        None => (StatusCode::NOT_FOUND, "here are /healthz and /readyz\n").into_response(),
    }
}

async fn scrape(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let page = shared.tell().await;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if metrics::exposition::is_preferred(accept) {
        let headers = [(header::CONTENT_TYPE, metrics::exposition::MEDIA)];
        return (headers, metrics::exposition(&page)).into_response();
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(port: u16, path: &str) -> String {
        String::from_utf8(ask_with(port, path, "").await).expect("text")
    }

    async fn ask_with(port: u16, path: &str, headers: &str) -> Vec<u8> {
        let mut stream =
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        answer
    }

    fn free() -> u16 {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.local_addr().expect("bound").port()
    }

    #[tokio::test]
    async fn health_and_metrics_over_http() {
        let ports = Ports { health: free(), metrics: free() };
        let bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let admin = Admin::start("probe", bind, ports, Health::new(&["watches"])).await.expect("served");
        assert!(ask(ports.health, "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = ask(ports.health, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("waiting for: watches\n"), "{answer}");
        admin.health().met("watches");
        assert!(ask(ports.health, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(ports.health, "/v1/x").await.starts_with("HTTP/1.1 404"));
        admin.also_serve(Router::new().route("/v1/x", get(|| async { "more" })));
        assert!(ask(ports.health, "/v1/x").await.ends_with("more"));
        ::metrics::gauge!("ebb_probe_depth").set(7.0);
        admin.also_tell(Box::new(|| Box::pin(async { "ebb_probe_more 1\n".to_owned() })));
        let text = ask(ports.metrics, "/metrics").await;
        assert!(text.contains("ebb_probe_depth 7") && text.contains("ebb_probe_more 1"), "{text}");
        ::metrics::histogram!("ebb_probe_seconds", "k" => "v").record(0.5);
        let family = "accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited\r\n";
        let answer = ask_with(ports.metrics, "/metrics", family).await;
        let (head, body) =
            answer.split_at(answer.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4);
        assert!(String::from_utf8_lossy(head).contains("encoding=delimited"));
        let name = body.windows(17).position(|part| part == b"ebb_probe_seconds").expect("the histogram");
        // One in bucket -8, which ends at half a second: a span of one at -8 (zigzag 15), which holds one more than nothing.
        assert!(
            body[name..].windows(9).any(|part| part == [0x62, 4, 0x08, 15, 0x10, 1, 0x6a, 1, 2]),
            "{body:?}"
        );
        admin.health().stop();
        assert!(ask(ports.health, "/readyz").await.ends_with("shutting down\n"));
        // A second one at the same port is told what is wrong.
        let error =
            Admin::start("probe", bind, ports, Health::new(&[])).await.expect_err("taken").to_string();
        assert!(error.contains(&ports.health.to_string()) && error.contains("another process"), "{error}");
    }
}
