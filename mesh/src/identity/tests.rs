use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use ebb_http::{Connector, Protocol, Target};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::ca::{CertificateRequest, DEFAULT_TTL, MaterialPem};
use crate::policy::PeerPolicy;

const TD: &str = "cluster.local";

fn authority(ttl: Duration) -> Arc<Authority> {
    let root = MaterialPem::generate_root(TD, SystemTime::now()).unwrap();
    Arc::new(Authority::new(TD, ttl, &root).unwrap())
}

async fn identity(authority: &Arc<Authority>, ns: &str) -> Identity {
    Identity::from_authority(authority.clone(), SpiffeId::new(TD, ns, "default").unwrap()).await.unwrap()
}

fn name() -> ServerName<'static> {
    ServerName::try_from("127.0.0.1").unwrap()
}

/// Both sides of one handshake over memory: what the client found, and what the server found.
async fn shake(
    server: &Identity,
    client: &Identity,
    expected: &str,
) -> (Result<HandshakeKind, Error>, Result<Option<SpiffeId>, Error>) {
    let (a, b) = tokio::io::duplex(16 << 10);
    let expected: PeerPolicy = expected.parse().unwrap();
    let serving = async {
        let (mut tls, id) = server.accept(a).await?;
        tls.write_all(b"hello").await.map_err(Error::io("write"))?;
        tls.shutdown().await.map_err(Error::io("shutdown"))?;
        Ok(id)
    };
    let connecting = async {
        let (mut tls, _) = Identity::connect(client, b, name(), &expected, Protocol::Http1).await?;
        let mut got = Vec::new();
        tls.read_to_end(&mut got).await.map_err(Error::io("read"))?;
        assert_eq!(got, b"hello");
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        Ok(tls.get_ref().1.handshake_kind().unwrap())
    };
    let (served, connected) = tokio::join!(serving, connecting);
    (connected, served)
}

#[tokio::test]
async fn two_workloads_know_each_other_and_sessions_resume() {
    let authority = authority(DEFAULT_TTL);
    let (server, client) = (identity(&authority, "a").await, identity(&authority, "b").await);
    let (kind, seen) = shake(&server, &client, "spiffe://cluster.local/ns/a/*").await;
    assert_eq!(kind.unwrap(), HandshakeKind::Full);
    assert_eq!(seen.unwrap().as_ref(), Some(client.id()));
    let (kind, seen) = shake(&server, &client, "spiffe://cluster.local/ns/a/*").await;
    assert_eq!(kind.unwrap(), HandshakeKind::Resumed);
    assert_eq!(seen.unwrap().as_ref(), Some(client.id()), "a resumed session still knows who it is");
}

/// A session that outlived a certificate it began with would be refused, and with it a request.
#[tokio::test(start_paused = true)]
async fn sessions_are_forgotten_before_the_certificates_that_they_began_with_expire() {
    let authority = authority(DEFAULT_TTL);
    let (server, client) = (identity(&authority, "a").await, identity(&authority, "b").await);
    let expected = "spiffe://cluster.local/ns/a/*";
    let mut kinds = Vec::new();
    for _ in 0..2 {
        kinds.push(shake(&server, &client, expected).await.0.unwrap());
        kinds.push(shake(&server, &client, expected).await.0.unwrap());
        tokio::time::sleep(DEFAULT_TTL / 3 + Duration::from_secs(1)).await;
    }
    use HandshakeKind::{Full, Resumed};
    assert_eq!(kinds, [Full, Resumed, Full, Resumed]);
}

/// Should one be resumed all the same, a full handshake comes after it and no request notices.
#[tokio::test]
async fn a_session_that_outlived_its_certificate_costs_a_handshake_only() {
    let root = MaterialPem::generate_root(TD, SystemTime::now()).unwrap();
    let authority = |ttl| Arc::new(Authority::new(TD, ttl, &root).unwrap());
    let server = identity(&authority(Duration::from_secs(3)), "a").await;
    // Whose own certificate lives so long that it forgets nothing meanwhile.
    let client = identity(&authority(DEFAULT_TTL), "b").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let serving = serving.clone();
            tokio::spawn(async move {
                if let Ok((mut tls, _)) = serving.accept(tcp).await {
                    let _ = tls.write_all(b"hello").await;
                    let _ = tls.shutdown().await;
                }
            });
        }
    });
    let target = Target::tls(address, Protocol::Http1, "spiffe://cluster.local/ns/a/*");
    let until = tokio::time::Instant::now() + Duration::from_secs(6);
    let mut connections = 0;
    while tokio::time::Instant::now() < until {
        let mut connected = Connector::connect(&client, &target).await.expect("each connection succeeds");
        let mut got = Vec::new();
        let _ = connected.io.read_to_end(&mut got).await;
        assert_eq!(got, b"hello");
        connections += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(connections > 20, "{connections}");
}

#[tokio::test]
async fn the_wrong_identity_is_refused_also_when_resumed() {
    let authority = authority(DEFAULT_TTL);
    let (server, client) = (identity(&authority, "a").await, identity(&authority, "b").await);
    shake(&server, &client, "spiffe://cluster.local/ns/a/*").await.0.unwrap();
    for _ in 0..2 {
        let (kind, _) = shake(&server, &client, "spiffe://cluster.local/ns/c/*").await;
        assert!(matches!(kind, Err(Error::WrongPeer { .. })), "{kind:?}");
    }
}

#[tokio::test]
async fn another_authority_is_refused_by_both_sides() {
    let (ours, theirs) = (authority(DEFAULT_TTL), authority(DEFAULT_TTL));
    let (server, client) = (identity(&ours, "a").await, identity(&theirs, "a").await);
    let (connected, served) = shake(&server, &client, "spiffe://cluster.local/ns/a/*").await;
    assert!(connected.is_err() && served.is_err());
}

#[tokio::test]
async fn key_exchange_is_post_quantum() {
    let authority = authority(DEFAULT_TTL);
    let (server, client) = (identity(&authority, "a").await, identity(&authority, "b").await);
    let (a, b) = tokio::io::duplex(16 << 10);
    let expected = PeerPolicy::namespace(TD, "a");
    let (_server, client) =
        tokio::join!(server.accept(a), Identity::connect(&client, b, name(), &expected, Protocol::Http2));
    let (tls, _) = client.unwrap();
    let state = tls.get_ref().1;
    assert_eq!(state.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(state.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

/// Issues with an authority, counting, and failing as told.
struct Flaky {
    authority: Arc<Authority>,
    calls: AtomicU32,
    failures: AtomicU32,
}

impl Issue for Flaky {
    fn issue(
        &self,
        csr: String,
    ) -> Pin<Box<dyn Future<Output = Result<CertificateResponse, Error>> + Send + '_>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            if self.failures.load(Ordering::SeqCst) > 0 {
                self.failures.fetch_sub(1, Ordering::SeqCst);
                return Err(Error::Answer("not now".into()));
            }
            self.authority.issue(&csr, &SpiffeId::new(TD, "a", "x").unwrap(), SystemTime::now())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_at_two_thirds_survives_failures_and_ends_with_the_last_clone() {
    let ttl = Duration::from_secs(24 * 3600);
    let issuer =
        Arc::new(Flaky { authority: authority(ttl), calls: AtomicU32::new(0), failures: AtomicU32::new(4) });
    let identity = Identity::from_issuer(issuer.clone(), TD).await.unwrap();
    assert_eq!(issuer.calls.load(Ordering::SeqCst), 5, "tried until it was there");
    let first = identity.chain();

    tokio::time::sleep(ttl * 2 / 3 - Duration::from_secs(1)).await;
    assert_eq!(identity.chain(), first, "not before two thirds");
    issuer.failures.store(3, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_ne!(identity.chain(), first, "renewed in spite of three failures");
    let clone = identity.clone();
    drop(identity);
    tokio::time::sleep(ttl).await;
    let calls = issuer.calls.load(Ordering::SeqCst);
    assert!(calls > 9, "a clone keeps renewing: {calls}");
    drop(clone);
    tokio::time::sleep(ttl * 3).await;
    assert_eq!(issuer.calls.load(Ordering::SeqCst), calls, "nobody left to renew for");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_brings_new_roots_and_open_connections_stay() {
    let ttl = Duration::from_secs(3600);
    let now = SystemTime::now();
    let old = MaterialPem::generate_root(TD, now).unwrap();
    let new = MaterialPem::generate_root(TD, now).unwrap();
    let authority = Arc::new(Authority::new(TD, ttl, &old).unwrap());
    let (server, client) = (identity(&authority, "a").await, identity(&authority, "b").await);
    let (a, b) = tokio::io::duplex(16 << 10);
    let expected = PeerPolicy::namespace(TD, "a");
    let (served, connected) =
        tokio::join!(server.accept(a), Identity::connect(&client, b, name(), &expected, Protocol::Http1));
    let (mut served, mut connected) = (served.unwrap().0, connected.unwrap().0);

    authority.replace(&old.trusting(&new).unwrap()).unwrap();
    tokio::time::sleep(ttl).await;
    authority.replace(&new.trusting(&old).unwrap()).unwrap();
    tokio::time::sleep(ttl).await;
    shake(&server, &client, "spiffe://cluster.local/ns/a/*").await.0.unwrap();
    authority.replace(&new).unwrap();
    tokio::time::sleep(ttl).await;
    assert_eq!(server.roots_pem(), new.roots);
    shake(&server, &client, "spiffe://cluster.local/ns/a/*").await.0.unwrap();

    connected.write_all(b"still here").await.unwrap();
    connected.flush().await.unwrap();
    let mut got = [0; 10];
    served.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still here");
}

/// The endpoint as its host would serve it, on a real socket.
async fn endpoint(authority: Arc<Authority>, token: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tls = TlsAcceptor::from(authority.server_config(&[crate::CA_SERVER_NAME.into()]).unwrap());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(stream) = tls.accept(tcp).await else { continue };
            let authority = authority.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let authority = authority.clone();
                async move {
                    let expected = format!("Bearer {token}");
                    if request.headers()[header::AUTHORIZATION] != expected.as_str() {
                        let mut refused = Response::new(Full::new(Bytes::from("token not valid")));
                        *refused.status_mut() = StatusCode::UNAUTHORIZED;
                        return Ok::<_, Infallible>(refused);
                    }
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let asked: CertificateRequest = serde_json::from_slice(&body).unwrap();
                    let id = SpiffeId::new(TD, "shop", "cart").unwrap();
                    let answer = authority.issue(&asked.csr, &id, SystemTime::now()).unwrap();
                    Ok(Response::new(Full::new(Bytes::from(serde_json::to_vec(&answer).unwrap()))))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

fn config(address: String, roots: String, token: &str) -> IdentityConfig {
    IdentityConfig {
        ca_address: address,
        ca_name: crate::CA_SERVER_NAME.into(),
        roots: Source::Text(roots.into()),
        token: Source::Text(token.into()),
        trust_domain: TD.into(),
    }
}

#[tokio::test]
async fn obtains_over_a_real_socket_and_then_connects() {
    let authority = authority(DEFAULT_TTL);
    let address = endpoint(authority.clone(), "good").await;
    let identity = Identity::obtain(config(address, authority.roots_pem(), "good\n")).await.unwrap();
    assert_eq!(identity.id().as_str(), "spiffe://cluster.local/ns/shop/sa/cart");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = identity.clone();
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        server.accept(tcp).await.map(|(_, id)| id)
    });
    let target = Target::tls(at, Protocol::Http2, "spiffe://cluster.local/ns/shop/sa/cart");
    let connected = Connector::connect(&identity, &target).await.unwrap();
    assert_eq!(connected.protocol, Protocol::Http2);
    assert_eq!(serving.await.unwrap().unwrap().as_ref(), Some(identity.id()));
}

#[tokio::test]
async fn a_bad_token_a_wrong_name_and_a_stranger_are_told_apart() {
    let authority = authority(DEFAULT_TTL);
    let address = endpoint(authority.clone(), "good").await;
    let roots = authority.roots_pem();
    let attempt = |config: IdentityConfig| async move {
        client::Endpoint(config).issue("x".into()).await.map(|_| ()).unwrap_err()
    };
    match attempt(config(address.clone(), roots.clone(), "bad")).await {
        Error::Refused { status: 401, message, .. } => assert_eq!(message, "token not valid"),
        other => panic!("{other}"),
    }
    let wrong = IdentityConfig { ca_name: "evil.example".into(), ..config(address.clone(), roots, "good") };
    assert!(matches!(attempt(wrong).await, Error::Io { .. }));
    let stranger = MaterialPem::generate_root(TD, SystemTime::now()).unwrap().roots;
    assert!(matches!(attempt(config(address, stranger, "good")).await, Error::Io { .. }));
}
