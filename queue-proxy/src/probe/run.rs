//! Running a probe against the app.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use ebb_http::{Backend, Outgoing, Pool, Protocol, RequestBody, Target};
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt, Limited};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Action, Probe, detect, pause};

/// Answers asked for within this time of each other share one attempt: a flood of probes is no flood on the app.
const FRESH: Duration = Duration::from_millis(100);

const UNKNOWN: u8 = 0;
const HTTP1: u8 = 1;
const HTTP2: u8 = 2;

/// Runs one probe, again and again.
#[derive(Debug)]
pub struct Prober {
    probe: Probe,
    app: SocketAddr,
    http1: Arc<Backend>,
    http2: Arc<Backend>,
    /// Where the app takes requests.
    serving: SocketAddr,
    speaks: AtomicU8,
    /// Probes of further containers, which must hold as well.
    further: Vec<Prober>,
    last: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Prober {
    /// Probes `serving`'s host with connections of `pool`; `protocol` is what the app speaks, none when that is to be found out.
    pub fn new(probe: Probe, serving: SocketAddr, protocol: Option<Protocol>, pool: &Pool) -> Self {
        let port = match &probe.action {
            Action::Tcp { port } | Action::Http { port, .. } | Action::Grpc { port, .. } => *port,
        };
        let app = SocketAddr::new(serving.ip(), port);
        let speaks = match protocol {
            None => UNKNOWN,
            Some(Protocol::Http1) => HTTP1,
            Some(Protocol::Http2) => HTTP2,
        };
        Self {
            probe,
            app,
            http1: pool.backend(&Target::plain(app, Protocol::Http1)),
            http2: pool.backend(&Target::plain(app, Protocol::Http2)),
            serving,
            speaks: AtomicU8::new(speaks),
            further: Vec::new(),
            last: tokio::sync::Mutex::default(),
        }
    }

    /// Whether the app speaks HTTP/2 by prior knowledge, as far as is known.
    pub fn speaks_h2(&self) -> bool {
        self.speaks.load(Ordering::Acquire) == HTTP2
    }

    /// Probes of further containers, which speak HTTP/1 if HTTP.
    #[must_use]
    pub fn and(mut self, probes: &[Probe], pool: &Pool) -> Self {
        self.further = probes
            .iter()
            .map(|probe| Self::new(probe.clone(), self.serving, Some(Protocol::Http1), pool))
            .collect();
        self
    }

    /// Waits until all that is probed is ready for the first time.
    pub async fn wait_started(&self) {
        tokio::join!(
            self.wait_for_one(),
            futures::future::join_all(self.further.iter().map(Self::wait_for_one))
        );
    }

    async fn wait_for_one(&self) {
        let began = Instant::now();
        tokio::time::sleep(self.probe.initial_delay).await;
        let mut in_a_row = 0;
        let mut told = false;
        loop {
            match self.attempt().await {
                Ok(()) => in_a_row += 1,
                Err(error) => {
                    in_a_row = 0;
                    *self.last.lock().await = Some((Instant::now(), Err(error.clone())));
                    if !told && began.elapsed() > Duration::from_secs(10) {
                        told = true;
                        tracing::warn!(%error, "the app is not ready after ten seconds; asking on");
                    }
                }
            }
            if in_a_row >= self.probe.successes {
                return;
            }
            tokio::time::sleep(pause(began.elapsed())).await;
        }
    }

    /// Whether all that is probed is ready now.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), String> {
        self.check_one().await?;
        for other in &self.further {
            other.check_one().await?;
        }
        Ok(())
    }

    async fn check_one(&self) -> Result<(), String> {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = self.attempt().await;
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Why the last attempt failed, if it did.
    pub async fn last_failure(&self) -> Option<String> {
        for prober in std::iter::once(self).chain(&self.further) {
            if let Some((_, Err(why))) = &*prober.last.lock().await {
                return Some(why.clone());
            }
        }
        None
    }

    async fn attempt(&self) -> Result<(), String> {
        match tokio::time::timeout(self.probe.timeout, self.ask()).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer from the app within {:?}", self.probe.timeout)),
        }
    }

    async fn ask(&self) -> Result<(), String> {
        if self.speaks.load(Ordering::Acquire) == UNKNOWN
            && let Some(h2) = detect::speaks_h2(self.serving).await
        {
            self.speaks.store(if h2 { HTTP2 } else { HTTP1 }, Ordering::Release);
            tracing::info!(h2, "found out what the app speaks");
        }
        match &self.probe.action {
            Action::Tcp { .. } => match TcpStream::connect(self.app).await {
                Ok(_) => Ok(()),
                Err(e) => Err(format!("the app does not listen on {}: {e}", self.app)),
            },
            Action::Http { path, headers, .. } => self.ask_http(path, headers).await,
            Action::Grpc { service, .. } => self.ask_grpc(service).await,
        }
    }

    async fn ask_http(&self, path: &str, headers: &[(String, String)]) -> Result<(), String> {
        let mut request = Request::get(path)
            .header(header::HOST, self.app.to_string())
            .header(header::USER_AGENT, "kube-probe/ebb")
            .body(RequestBody::empty())
            .map_err(text)?;
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(text)?;
            request.headers_mut().insert(name, HeaderValue::from_str(value).map_err(text)?);
        }
        let backend = if self.speaks_h2() { &self.http2 } else { &self.http1 };
        let response = Outgoing::own(request).map_err(text)?.send(backend).await.map_err(text)?;
        let status = response.status();
        // Read a short answer to its end, so that the connection can be kept.
        let _ = Limited::new(response.into_body(), 64 << 10).collect().await;
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(format!("the app answered {status} to GET {path}"))
        }
    }

    async fn ask_grpc(&self, service: &str) -> Result<(), String> {
        let request = Request::post("/grpc.health.v1.Health/Check")
            .header(header::HOST, self.app.to_string())
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(RequestBody::full(health_request(service)))
            .map_err(text)?;
        let response = Outgoing::own(request).map_err(text)?.send(&self.http2).await.map_err(text)?;
        let body = Limited::new(response.into_body(), 64 << 10).collect().await.map_err(|e| e.to_string())?;
        if serving(&body.to_bytes()) { Ok(()) } else { Err("the app's gRPC health is not SERVING".into()) }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// `HealthCheckRequest { service = 1 }`, framed. Names longer than 127 bytes need a second length byte.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut n = service.len();
        while n >= 0x80 {
            message.put_u8((n as u8 & 0x7f) | 0x80);
            n >>= 7;
        }
        message.put_u8(n as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// Whether a framed `HealthCheckResponse { status = 1 }` says SERVING (1).
fn serving(body: &[u8]) -> bool {
    body.len() >= 7 && body[0] == 0 && body[5] == 0x08 && body[6] == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_messages() {
        assert_eq!(&health_request("")[..], &[0, 0, 0, 0, 0]);
        assert_eq!(&health_request("ab")[..], &[0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&health_request(&"x".repeat(200))[5..8], &[0x0a, 0xc8, 0x01]);
        assert!(serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!serving(&[0, 0, 0, 0, 2, 8, 2]));
        assert!(!serving(&[]));
    }
}
