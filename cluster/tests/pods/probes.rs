//! gRPC and HTTPS probes: startup, readiness, liveness.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Case;
use crate::world::World;

pub(crate) const CASES: &[Case] = &[
    ("grpc_probes", grpc),
    ("https_probes", https),
    ("exec_probes_that_say_much", chatty),
    ("exec_probes_leave_no_process_behind", stuck),
];

/// How the run before this one ended: there was one, then.
const BEFORE: &str = "{.status.containerStatuses[0].lastState.terminated.reason}";

fn grpc(world: &World) {
    let probe = json!({"grpc": {"port": 7010}, "periodSeconds": 1, "failureThreshold": 1});
    let named = json!({"grpc": {"port": 7010, "service": "any"}, "periodSeconds": 1, "failureThreshold": 2});
    let container = json!({"args": ["grpc"], "startupProbe": {"grpc": {"port": 7010}, "periodSeconds": 1}, "readinessProbe": probe, "livenessProbe": named});
    world.ready_pod("grpc", container, json!({}));
    world.kubectl(&["exec", "grpc", "--", "touch", "/tmp/sick"]);
    world.until("pod/grpc", BEFORE, "Error");
    // The new container is well again.
    world.ready("grpc");
    let described = world.kubectl(&["describe", "pod", "grpc"]);
    for said in [
        "Readiness probe failed: service unhealthy",
        "Liveness probe failed: service unhealthy",
        "failed liveness probe",
    ] {
        assert!(described.contains(said), "{said:?} is not in {described}");
    }
    world.delete("pod/grpc");
    // Nobody listens.
    let nobody = json!({"startupProbe": {"grpc": {"port": 7011}, "periodSeconds": 1, "failureThreshold": 2}});
    world.pod("grpc-nobody", nobody, json!({}));
    world.until("pod/grpc-nobody", BEFORE, "Error");
    assert!(
        world.kubectl(&["describe", "pod", "grpc-nobody"]).contains("Startup probe failed: gRPC probe of")
    );
    world.delete("pod/grpc-nobody");
}

/// A server with a certificate that nobody trusts; answers with the status it is told.
async fn tls_server(address: std::net::Ipv4Addr, status: Arc<AtomicU16>) -> SocketAddr {
    let key = rcgen::generate_simple_self_signed(vec!["somebody.else".to_owned()]).unwrap();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
    let local = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, status) = (acceptor.clone(), status.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.ok()?;
                let head = String::from_utf8_lossy(&request[..length]).to_lowercase();
                let expected = head.starts_with("get /health?x=1 ") && head.contains("x-probe: yes");
                let code = if expected { status.load(Ordering::Relaxed) } else { 400 };
                let answer = format!("HTTP/1.1 {code} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
    local
}

fn https(world: &World) {
    let status = Arc::new(AtomicU16::new(200));
    let node = world.cluster().network().node_ip();
    let address = world.runtime.block_on(tls_server(node, Arc::clone(&status)));
    let get = json!({"scheme": "HTTPS", "host": address.ip().to_string(), "port": address.port(), "path": "/health?x=1",
        "httpHeaders": [{"name": "X-Probe", "value": "yes"}]});
    let probe = |failures: u32| json!({"httpGet": get, "periodSeconds": 1, "failureThreshold": failures});
    let container = json!({"startupProbe": probe(3), "readinessProbe": probe(1), "livenessProbe": probe(3)});
    world.ready_pod("https", container, json!({}));
    status.store(503, Ordering::Relaxed);
    world.kubectl(&["wait", "--for=condition=Ready=false", "pod/https", "--timeout=60s"]);
    world.until("pod/https", BEFORE, "Error");
    status.store(302, Ordering::Relaxed);
    world.ready("https");
    let described = world.kubectl(&["describe", "pod", "https"]);
    assert!(described.contains("probe failed: HTTP probe failed with statuscode: 503"), "{described}");
    world.delete("pod/https");
}

/// Far more than is kept of it and than a pipe holds.
fn chatty(world: &World) {
    let much = "i=0; while [ $i -lt 4000 ]; do echo 0123456789012345678901234567890123456789012345678; i=$((i+1)); done";
    let exec = json!({"exec": {"command": ["sh", "-c", much]}});
    let mut probe = exec.clone();
    crate::world::merge(&mut probe, json!({"periodSeconds": 1, "timeoutSeconds": 20}));
    world.ready_pod("chatty", json!({"readinessProbe": probe, "lifecycle": {"postStart": exec}}), json!({}));
    world.delete("pod/chatty");
}

/// A probe is given up while its process is only being started.
fn stuck(world: &World) {
    let probe = json!({"exec": {"command": ["sleep", "1000"]}, "periodSeconds": 1, "timeoutSeconds": 1});
    world.pod("stuck", json!({"readinessProbe": probe}), json!({}));
    world.until("pod/stuck", "{.status.phase}", "Running");
    let all = |signal: Signal| world.helpers().into_iter().for_each(|helper| kill(helper, signal).unwrap());
    for _ in 0..4 {
        // Longer than a probe may take, with the start of at least one in it.
        all(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(2200));
        all(Signal::SIGCONT);
    }
    let begun = std::time::Instant::now();
    let sleeping = || {
        let names = world.kubectl(&["exec", "stuck", "--", "sh", "-c", "cat /proc/[0-9]*/comm"]);
        names.lines().filter(|name| *name == "sleep").count()
    };
    while sleeping() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(10), "more than the one that is being waited for");
    }
    world.delete("pod/stuck");
}
