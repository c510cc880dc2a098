//! Probes: when to look (pure), what the results mean (pure), and the looking.
//!
//! # Schedule
//! User-visible looks are at `initialDelaySeconds` and each period after, and only their failures count. Until the first
//! success there are extra looks in between, 10, 20, 50, 100, 200 and then each 400 ms, whose failures are not seen: a container that
//! starts in 20 ms is then ready after 20 ms and not after a period. Kubelet does not do that; nothing in a pod's
//! specification says how soon a success may be noticed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use cluster_firewall::Origin;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::{TcpSocket, TcpStream};

use super::container::Live;
use crate::context::Context;

/// Something to look at, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    Exec(Vec<String>),
    Http { tls: bool, address: Target, path: String, headers: Vec<(String, String)> },
    Tcp(Target),
    Grpc { address: Target, service: String },
    Sleep(Duration),
}

/// Where a network look goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// When to look and how often it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) initial: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) successes: u32,
    pub(crate) failures: u32,
}

impl Timing {
    pub(crate) fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(
                value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default),
            )
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        Self {
            initial: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }
    }
}

/// The times of looks, as durations since the probe began.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    timing: Timing,
    counted: u32,
    extra: usize,
    last: Duration,
    succeeded: bool,
}

/// The pauses between looks before the first success.
const EAGER_MS: [u64; 5] = [10, 20, 50, 100, 200];
const EAGER_REST_MS: u64 = 400;

impl Schedule {
    pub(crate) fn new(timing: Timing) -> Self {
        // A threshold above one asks for successes that are periods apart.
        Self { timing, counted: 0, extra: 0, last: Duration::ZERO, succeeded: timing.successes > 1 }
    }

    /// The next look: when, and whether its failure counts. `now` is the time since the probe began; looks that it has
    /// overtaken are left out.
    pub(crate) fn next(&mut self, now: Duration) -> (Duration, bool) {
        let mut regular = self.timing.initial + self.timing.period * self.counted;
        while regular + self.timing.period <= now {
            self.counted += 1;
            regular += self.timing.period;
        }
        if !self.succeeded && self.counted > 0 {
            let pause = EAGER_MS.get(self.extra).copied().unwrap_or(EAGER_REST_MS);
            let eager = self.last + Duration::from_millis(pause);
            if eager < regular {
                self.extra += 1;
                self.last = eager.max(now);
                return (self.last, false);
            }
        }
        self.counted += 1;
        self.last = regular.max(now);
        (self.last, true)
    }

    pub(crate) fn succeeded(&mut self) {
        self.succeeded = true;
    }
}

/// Turns results into a verdict.
#[derive(Debug, Clone)]
pub(crate) struct Judge {
    timing: Timing,
    in_a_row: u32,
    last_good: Option<bool>,
    verdict: Option<bool>,
}

impl Judge {
    pub(crate) fn new(timing: Timing) -> Self {
        Self { timing, in_a_row: 0, last_good: None, verdict: None }
    }

    /// The verdict if this result changes it. Failures that do not count are not to be passed in.
    pub(crate) fn result(&mut self, good: bool) -> Option<bool> {
        if self.last_good == Some(good) {
            self.in_a_row += 1;
        } else {
            self.last_good = Some(good);
            self.in_a_row = 1;
        }
        let needed = if good { self.timing.successes } else { self.timing.failures };
        if self.in_a_row >= needed && self.verdict != Some(good) {
            self.verdict = Some(good);
            return self.verdict;
        }
        None
    }
}

fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => {
            u16::try_from(*number).map_err(|_| format!("invalid port number: {number}"))
        }
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            match named {
                Some(port) => u16::try_from(port.container_port).map_err(|_| format!("invalid port: {name}")),
                None => name.parse().map_err(|_| format!("couldn't find port: {name}")),
            }
        }
    }
}

fn http_check(container: &Container, get: &HTTPGetAction, address: Ipv4Addr) -> Result<Check, String> {
    let host = get.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| address.to_string());
    let path = get.path.clone().unwrap_or_else(|| "/".to_owned());
    Ok(Check::Http {
        tls: get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        address: Target { host, port: port(container, &get.port)? },
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers: get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    })
}

/// The check of a probe.
pub(crate) fn of_probe(container: &Container, probe: &Probe, address: Ipv4Addr) -> Result<Check, String> {
    if let Some(exec) = &probe.exec {
        return Ok(Check::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(get) = &probe.http_get {
        return http_check(container, get, address);
    }
    if let Some(tcp) = &probe.tcp_socket {
        let host = tcp.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| address.to_string());
        return Ok(Check::Tcp(Target { host, port: port(container, &tcp.port)? }));
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port number: {}", grpc.port))?;
        let service = grpc.service.clone().unwrap_or_default();
        return Ok(Check::Grpc { address: Target { host: address.to_string(), port }, service });
    }
    Err("the probe has no handler".to_owned())
}

/// The check of a lifecycle hook.
pub(crate) fn of_hook(
    container: &Container,
    hook: &LifecycleHandler,
    address: Ipv4Addr,
) -> Result<Check, String> {
    if let Some(exec) = &hook.exec {
        return Ok(Check::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(get) = &hook.http_get {
        return http_check(container, get, address);
    }
    if let Some(tcp) = &hook.tcp_socket {
        let host = tcp.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| address.to_string());
        return Ok(Check::Tcp(Target { host, port: port(container, &tcp.port)? }));
    }
    if let Some(sleep) = &hook.sleep {
        return Ok(Check::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))));
    }
    Err("the hook has no handler".to_owned())
}

/// Looks once. The error is what an Unhealthy event says.
pub(crate) async fn perform(
    context: &Context,
    live: &Live,
    check: &Check,
    timeout: Duration,
) -> Result<(), String> {
    let origin = context.origin.as_ref();
    let look = async {
        match check {
            Check::Exec(command) => {
                let (code, output) = context.exec_collect(live, command.clone()).await?;
                if code == 0 { Ok(()) } else { Err(String::from_utf8_lossy(&output).into_owned()) }
            }
            Check::Http { tls, address, path, headers } => http(origin, *tls, address, path, headers).await,
            Check::Tcp(target) => connect(origin, target).await.map(|_| ()),
            Check::Grpc { address, service } => grpc(origin, address, service).await,
            Check::Sleep(duration) => {
                tokio::time::sleep(*duration).await;
                Ok(())
            }
        }
    };
    match tokio::time::timeout(timeout, look).await {
        Ok(result) => result,
        Err(_) => Err(match check {
            Check::Exec(command) => format!("command {command:?} timed out after {timeout:?}"),
            _ => format!("no answer within {timeout:?} (timeoutSeconds)"),
        }),
    }
}

/// From the node's own address, which no policy keeps out.
async fn connect(origin: Option<&Origin>, target: &Target) -> Result<TcpStream, String> {
    let fail = |error: std::io::Error| format!("dial tcp {}:{}: {error}", target.host, target.port);
    let stream = match (target.host.parse::<IpAddr>(), origin) {
        (Ok(ip), Some(origin)) => {
            let address = SocketAddr::new(ip, target.port);
            let socket = origin.socket(address, socket2::Type::STREAM).map_err(fail)?;
            TcpSocket::from_std_stream(socket.into()).connect(address).await
        }
        (Ok(ip), None) => TcpStream::connect(SocketAddr::new(ip, target.port)).await,
        (Err(_), _) => TcpStream::connect((target.host.as_str(), target.port)).await,
    };
    stream.map_err(fail)
}

async fn http(
    origin: Option<&Origin>,
    tls: bool,
    target: &Target,
    path: &str,
    headers: &[(String, String)],
) -> Result<(), String> {
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://{}:{}{path}", target.host, target.port);
    let describe = |error: &dyn std::fmt::Display| format!("Get {url:?}: {error}");
    let stream = connect(origin, target).await.map_err(|error| describe(&error))?;
    let mut request =
        http::Request::get(path).header("user-agent", "kube-probe/1.35").header("accept", "*/*");
    let mut host = format!("{}:{}", target.host, target.port);
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("host") {
            host.clone_from(value);
        } else {
            request = request.header(name, value);
        }
    }
    let request = request
        .header("host", host)
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| describe(&error))?;
    let response = if tls {
        let name =
            rustls::pki_types::ServerName::try_from(target.host.clone()).map_err(|error| describe(&error))?;
        let connector = tokio_rustls::TlsConnector::from(insecure());
        let stream = connector.connect(name, stream).await.map_err(|error| describe(&error))?;
        send(TokioIo::new(stream), request).await
    } else {
        send(TokioIo::new(stream), request).await
    }
    .map_err(|error| describe(&error))?;
    // A redirect counts as success, to whatever host, as it does with kubelet.
    if (200..400).contains(&response.as_u16()) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {}", response.as_u16()))
    }
}

async fn send<S>(io: S, request: http::Request<Empty<Bytes>>) -> Result<http::StatusCode, hyper::Error>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    connection.abort();
    Ok(response?.status())
}

/// A health answer has seven bytes.
const MOST_OF_ANSWER: usize = 4096;

/// `grpc.health.v1.Health/Check`; its two messages are small enough to write by hand.
async fn grpc(origin: Option<&Origin>, target: &Target, service: &str) -> Result<(), String> {
    let describe =
        |error: &dyn std::fmt::Display| format!("gRPC probe of {}:{}: {error}", target.host, target.port);
    let stream = connect(origin, target).await.map_err(|error| describe(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| describe(&error))?;
    let connection = tokio::spawn(connection);
    let mut message = BytesMut::new();
    if !service.is_empty() {
        // Field 1, a string. Service names are far below 128 bytes in practice; longer ones get a longer length.
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).unwrap_or(0));
        message.put_slice(service.as_bytes());
    }
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(0));
    body.extend_from_slice(&message);
    let request =
        http::Request::post(format!("http://{}:{}/grpc.health.v1.Health/Check", target.host, target.port))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.35")
            .body(Full::new(body.freeze()))
            .map_err(|error| describe(&error))?;
    let result = async {
        let response = sender.send_request(request).await?;
        // An answer that is an error alone has its status here and no body.
        let early = response.headers().get("grpc-status").cloned();
        let body = Limited::new(response.into_body(), MOST_OF_ANSWER).collect().await?;
        Ok((early, body))
    }
    .await
    .map_err(|error: Box<dyn std::error::Error + Send + Sync>| describe(&error));
    connection.abort();
    let (early, collected) = result?;
    let late = collected.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
    let status = late.or(early).and_then(|value| value.to_str().map(str::to_owned).ok());
    let bytes = collected.to_bytes();
    match bytes.get(5..) {
        Some([0x08, 1, ..]) => Ok(()),
        Some([0x08, other, ..]) => Err(format!("service unhealthy (responded with status {other})")),
        _ if status.as_deref() == Some("12") => {
            Err(describe(&"this server does not implement the grpc health protocol (grpc.health.v1.Health)"))
        }
        _ if status.as_deref() == Some("5") => {
            Err(describe(&format!("service {service:?} is not known to it")))
        }
        _ => Err(format!(
            "no health status in the answer (grpc-status {})",
            status.unwrap_or_else(|| "absent".to_owned())
        )),
    }
}

/// Probes do not verify certificates: they ask a pod by its address, as kubelet's do.
fn insecure() -> Arc<rustls::ClientConfig> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    Arc::clone(CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider supports the default protocol versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
            .with_no_client_auth();
        Arc::new(config)
    }))
}

#[derive(Debug)]
struct NoVerification(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(initial: u64, period: u64, successes: u32, failures: u32) -> Timing {
        Timing {
            initial: Duration::from_secs(initial),
            period: Duration::from_secs(period),
            timeout: Duration::from_secs(1),
            successes,
            failures,
        }
    }

    #[test]
    fn eager_until_the_first_success_then_regular() {
        let mut schedule = Schedule::new(timing(0, 1, 1, 3));
        let mut looks = Vec::new();
        let mut now = Duration::ZERO;
        for _ in 0..10 {
            let (at, counts) = schedule.next(now);
            looks.push((at.as_millis(), counts));
            now = at;
        }
        assert_eq!(
            looks,
            [
                (0, true),
                (10, false),
                (30, false),
                (80, false),
                (180, false),
                (380, false),
                (780, false),
                (1000, true),
                (1400, false),
                (1800, false)
            ]
        );
        schedule.succeeded();
        assert_eq!(schedule.next(now), (Duration::from_secs(2), true));
        assert_eq!(schedule.next(Duration::from_secs(2)), (Duration::from_secs(3), true));
    }

    #[test]
    fn the_initial_delay_is_kept_and_slow_looks_do_not_pile_up() {
        let mut schedule = Schedule::new(timing(5, 2, 2, 3));
        assert_eq!(schedule.next(Duration::ZERO), (Duration::from_secs(5), true));
        let (at, counts) = schedule.next(Duration::from_secs(12));
        assert_eq!((at, counts), (Duration::from_secs(12), true));
        assert_eq!(schedule.next(Duration::from_secs(12)).0, Duration::from_secs(13));
    }

    #[test]
    fn thresholds() {
        let mut judge = Judge::new(timing(0, 1, 2, 3));
        let verdicts: Vec<_> = [true, true, false, false, true, false, false, false, true, true]
            .map(|good| judge.result(good))
            .to_vec();
        assert_eq!(
            verdicts,
            [None, Some(true), None, None, None, None, None, Some(false), None, Some(true)],
            "a run is broken by the other result"
        );
    }

    #[tokio::test]
    async fn http_probes_judge_by_status() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let server = tokio::spawn(async move {
            let mut requests = Vec::new();
            for status in ["200 OK", "302 Found", "503 No"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 1024];
                let length = stream.read(&mut buffer).await.unwrap();
                requests.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                stream
                    .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
            }
            requests
        });
        let headers = [("Host".to_owned(), "me".to_owned()), ("X-A".to_owned(), "b".to_owned())];
        http(None, false, &target, "/z", &headers).await.unwrap();
        http(None, false, &target, "/", &[]).await.unwrap();
        assert!(http(None, false, &target, "/", &[]).await.unwrap_err().contains("statuscode: 503"));
        let requests = server.await.unwrap();
        assert!(
            requests[0].starts_with("GET /z HTTP/1.1\r\n") && requests[0].contains("host: me\r\n"),
            "{requests:?}"
        );
        assert!(
            http(None, false, &target, "/", &[]).await.unwrap_err().contains("refused"),
            "nobody listens any more"
        );
    }
}
