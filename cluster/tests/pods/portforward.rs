//! `kubectl port-forward`.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::json;

use crate::Case;
use crate::world::{IMAGE, PATIENCE, Running, World};

pub(crate) const CASES: &[Case] = &[
    ("port_forward_many_connections", many_connections),
    ("port_forward_half_close_and_big_transfers", half_close),
    ("port_forward_refused_port", refused),
    ("port_forward_to_services_and_deployments", others),
    ("port_forward_by_plain_spdy", plain_spdy),
    ("port_forward_by_channels", channels),
];

/// kubectl and the local port it listens on.
struct Forward {
    kubectl: Running,
    port: u16,
}

fn forward(world: &World, args: &[&str]) -> Forward {
    let kubectl = world.spawn(&[&["port-forward"], args].concat());
    listening(kubectl)
}

fn listening(mut kubectl: Running) -> Forward {
    let line = kubectl.line();
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
    let Some(port) = port.and_then(|port| port.parse().ok()) else {
        panic!("kubectl port-forward said {line:?} and {:?}", kubectl.end());
    };
    Forward { kubectl, port }
}

impl Forward {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Says something, ends, and hears what comes back.
    fn ask(&self, text: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        stream.write_all(text).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    }
}

fn many_connections(world: &World) {
    world.ready_pod("pf-many", json!({}), json!({}));
    let forward = forward(world, &["pod/pf-many", ":7000"]);
    // All at once, each with its own words, which must not get mixed up.
    let mut open: Vec<(TcpStream, Vec<u8>)> = (0..60_u32)
        .map(|number| {
            let words = number.to_be_bytes().repeat(5000);
            (forward.connect(), words)
        })
        .collect();
    for (stream, words) in &mut open {
        stream.write_all(words).unwrap();
    }
    for (stream, words) in &mut open {
        let mut heard = vec![0; words.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, words);
    }
    // Clients that vanish harm nobody else.
    for (stream, words) in open.iter_mut().take(20) {
        let _ = stream.write_all(words);
    }
    let rest = open.split_off(20);
    drop(open);
    for (mut stream, _) in rest {
        stream.write_all(b"still here").unwrap();
        let mut heard = [0; 10];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still here");
    }
    assert_eq!(forward.ask(b"and another"), b"and another");
    world.delete("pod/pf-many");
}

fn half_close(world: &World) {
    world.ready_pod("pf-half", json!({}), json!({}));
    let forward = forward(world, &["pf-half", ":7001"]);
    // The app answers only when it has heard the end.
    assert_eq!(forward.ask(b"ab"), format!("2 {}\n", 97 * 31 + 98).into_bytes());
    let big = vec![7_u8; 40 << 20];
    let sum = big.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    assert_eq!(String::from_utf8(forward.ask(&big)).unwrap(), format!("{} {sum}\n", big.len()));
    let down = listening(world.spawn(&["port-forward", "pf-half", ":7002"]));
    assert_eq!(down.ask(format!("{}\n", 100 << 20).as_bytes()).len(), 100 << 20);
    let ipv6 = listening(world.spawn(&["port-forward", "pf-half", ":7003"]));
    assert_eq!(ipv6.ask(b"six"), b"six");
    let goodbye = listening(world.spawn(&["port-forward", "pf-half", ":7004"]));
    let mut heard = String::new();
    goodbye.connect().read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "goodbye\n");
    world.delete("pod/pf-half");
}

fn refused(world: &World) {
    world.ready_pod("pf-refused", json!({}), json!({}));
    let uid = world.get("pod/pf-refused")["metadata"]["uid"].as_str().unwrap().to_owned();
    let forward = forward(world, &["pf-refused", ":9"]);
    assert!(forward.ask(b"").is_empty());
    // As with any cluster, kubectl gives up at the first refusal.
    let (code, err) = forward.kubectl.end();
    let expected = format!(
        "error forwarding port 9 to pod pf-refused, uid {uid}: failed to connect to localhost:9 inside the pod: connection refused"
    );
    assert!(code != 0 && err.contains(&expected), "{code}: {err}");
    let (_, _, err) = world.run(&["port-forward", "nobody", ":9"], None);
    assert!(err.contains("not found"), "{err}");
    world.delete("pod/pf-refused");
}

fn others(world: &World) {
    let labels = json!({"app": "pf-app"});
    world.apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "pf-app"}, "spec": {
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": IMAGE, "ports": [{"name": "echo", "containerPort": 7000}]}]}}}}));
    world.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pf-app"}, "spec": {
        "selector": labels, "ports": [{"name": "web", "port": 80, "targetPort": "echo"}]}}));
    world.kubectl(&["rollout", "status", "deployment/pf-app", "--timeout=60s"]);
    for args in [
        ["svc/pf-app", ":80"],
        ["service/pf-app", ":web"],
        ["deploy/pf-app", ":7000"],
        ["deploy/pf-app", ":echo"],
    ] {
        assert_eq!(forward(world, &args).ask(b"hello"), b"hello", "{args:?}");
    }
    world.kubectl(&["delete", "service/pf-app", "deployment/pf-app", "--wait=false"]);
}

/// What clients from before WebSockets do; kubectl still does it when told.
fn plain_spdy(world: &World) {
    world.ready_pod("pf-spdy", json!({}), json!({}));
    let mut command = world.command(&["port-forward", "pf-spdy", ":7001"]);
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
    let forward = listening(Running::of(command));
    assert_eq!(forward.ask(b"ab"), format!("2 {}\n", 97 * 31 + 98).into_bytes());
    world.delete("pod/pf-spdy");
}

/// What the crate kube does.
fn channels(world: &World) {
    use k8s_openapi::api::core::v1::Pod;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    world.ready_pod("pf-kube", json!({}), json!({}));
    let config = world.kube_config();
    world.runtime.block_on(async {
        let client = kube::Client::try_from(config).unwrap();
        let pods: kube::Api<Pod> = kube::Api::default_namespaced(client);
        let mut forwarder = pods.portforward("pf-kube", &[7000, 9, 7004]).await.unwrap();
        let mut echo = forwarder.take_stream(7000).unwrap();
        let refused = forwarder.take_error(9).unwrap();
        let mut goodbye = forwarder.take_stream(7004).unwrap();
        echo.write_all(b"over channels").await.unwrap();
        let mut heard = [0; 13];
        echo.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"over channels");
        let message = refused.await.unwrap();
        assert!(
            message.contains("failed to connect to localhost:9 inside the pod: connection refused"),
            "{message}"
        );
        let mut heard = [0; 8];
        goodbye.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"goodbye\n");
        forwarder.abort();
    });
    world.delete("pod/pf-kube");
}
