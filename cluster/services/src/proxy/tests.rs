use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use super::*;
use crate::index::{Endpoint, Port};

/// A server that answers each connection with its name after the client has closed its side.
async fn echo(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut text = String::new();
                if stream.read_to_string(&mut text).await.is_ok() {
                    let _ = stream.write_all(format!("{name}:{text}").as_bytes()).await;
                }
            });
        }
    });
    address
}

/// A port of this address that nobody listens on.
async fn free_port(address: Ipv4Addr) -> u16 {
    TcpListener::bind((address, 0)).await.unwrap().local_addr().unwrap().port()
}

fn service(address: Ipv4Addr, port: u16, targets: &[SocketAddr], affinity: Option<Duration>) -> Service {
    let endpoint = |target: &SocketAddr| {
        let IpAddr::V4(address) = target.ip() else { panic!("not IPv4") };
        let ports = vec![
            (String::new(), Protocol::Tcp, target.port()),
            ("udp".to_owned(), Protocol::Udp, target.port()),
        ];
        Endpoint { address, hostname: None, ready: true, draining: false, ports }
    };
    let made = |name: &str, protocol| Port { name: name.into(), protocol, number: port, node_port: None };
    Service {
        namespace: "ns".into(),
        name: "web".into(),
        address: Address::Cluster(address),
        ports: vec![made("", Protocol::Tcp), made("udp", Protocol::Udp)],
        affinity,
        endpoints: targets.iter().map(endpoint).collect(),
    }
}

fn key() -> Key {
    ("ns".into(), "web".into())
}

async fn ask(address: SocketAddr, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn half_close_is_honoured_and_all_endpoints_are_used() {
    let virtual_ip = Ipv4Addr::new(127, 77, 0, 1);
    let port = free_port(virtual_ip).await;
    let proxy = Proxy::new(Vec::new(), None, None, CancellationToken::new());
    let targets = [echo("a").await, echo("b").await];
    proxy.update(&key(), Some(&service(virtual_ip, port, &targets, None)));
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 2 {
        seen.insert(ask((virtual_ip, port).into(), "hi").await.unwrap());
    }
    assert!(seen.contains("a:hi") && seen.contains("b:hi"));
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let virtual_ip = Ipv4Addr::new(127, 77, 0, 2);
    let port = free_port(virtual_ip).await;
    let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST).await));
    let proxy = Proxy::new(Vec::new(), None, None, CancellationToken::new());
    proxy.update(&key(), Some(&service(virtual_ip, port, &[dead, echo("a").await], None)));
    for _ in 0..20 {
        assert_eq!(ask((virtual_ip, port).into(), "x").await.unwrap(), "a:x");
    }
    // All dead: a reset, and never an empty answer.
    proxy.update(&key(), Some(&service(virtual_ip, port, &[dead], None)));
    assert!(ask((virtual_ip, port).into(), "x").await.is_err());
}

#[tokio::test]
async fn no_endpoints_refuse_and_established_connections_stay() {
    let virtual_ip = Ipv4Addr::new(127, 77, 0, 3);
    let port = free_port(virtual_ip).await;
    let proxy = Proxy::new(Vec::new(), None, None, CancellationToken::new());
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = backend.local_addr().unwrap();
    proxy.update(&key(), Some(&service(virtual_ip, port, &[target], None)));
    let mut near = TcpStream::connect((virtual_ip, port)).await.unwrap();
    let (mut far, _) = backend.accept().await.unwrap();
    near.write_all(b"before").await.unwrap();
    proxy.update(&key(), Some(&service(virtual_ip, port, &[], None)));
    let refused = TcpStream::connect((virtual_ip, port)).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    // Back and forth without a pause: the successor can bind before the old listener's task has run.
    proxy.update(&key(), Some(&service(virtual_ip, port, &[target], None)));
    proxy.update(&key(), Some(&service(virtual_ip, port, &[], None)));
    near.write_all(b"-after").await.unwrap();
    near.shutdown().await.unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "before-after");
    let other = echo("a").await;
    proxy.update(&key(), Some(&service(virtual_ip, port, &[other], None)));
    assert_eq!(ask((virtual_ip, port).into(), "again").await.unwrap(), "a:again");
}

#[tokio::test]
async fn affinity_sticks() {
    let virtual_ip = Ipv4Addr::new(127, 77, 0, 4);
    let port = free_port(virtual_ip).await;
    let proxy = Proxy::new(Vec::new(), None, None, CancellationToken::new());
    let targets = [echo("a").await, echo("b").await, echo("c").await, echo("d").await];
    proxy.update(&key(), Some(&service(virtual_ip, port, &targets, Some(Duration::from_secs(60)))));
    let first = ask((virtual_ip, port).into(), "x").await.unwrap();
    for _ in 0..20 {
        assert_eq!(ask((virtual_ip, port).into(), "x").await.unwrap(), first);
    }
}

#[tokio::test]
async fn a_node_port_in_use_is_left_alone() {
    let virtual_ip = Ipv4Addr::new(127, 77, 0, 5);
    let port = free_port(virtual_ip).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let number = taken.local_addr().unwrap().port();
    let proxy = Proxy::new(vec![Ipv4Addr::LOCALHOST.into()], None, None, CancellationToken::new());
    let mut with = service(virtual_ip, port, &[echo("a").await], None);
    with.ports[0].node_port = Some(number);
    proxy.update(&key(), Some(&with));
    assert_eq!(ask((virtual_ip, port).into(), "x").await.unwrap(), "a:x");
    let held = proxy.listeners.lock()[&key()].keys().filter(|listen| listen.node_port).count();
    assert_eq!(held, 0);
    drop(taken);
    proxy.update(&key(), Some(&with));
    assert_eq!(ask((Ipv4Addr::LOCALHOST, number).into(), "x").await.unwrap(), "a:x");
}

#[tokio::test]
async fn datagrams_go_and_come_back() {
    let virtual_ip = Ipv4Addr::new(127, 77, 0, 6);
    let port = free_port(virtual_ip).await;
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let target = server.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        loop {
            let (length, peer) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&buffer[..length], peer).await.unwrap();
        }
    });
    let proxy = Proxy::new(Vec::new(), None, None, CancellationToken::new());
    proxy.update(&key(), Some(&service(virtual_ip, port, &[target], None)));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect((virtual_ip, port)).await.unwrap();
    for text in [b"one", b"two"] {
        client.send(text).await.unwrap();
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], text);
    }
}

#[tokio::test]
async fn whom_policies_keep_out_gets_a_reset_and_others_come_from_the_agents_address() {
    let virtual_ip = Ipv4Addr::new(127, 77, 0, 7);
    let port = free_port(virtual_ip).await;
    let backend = TcpListener::bind("127.78.0.1:0").await.unwrap();
    let target = backend.local_addr().unwrap();
    let agent = Ipv4Addr::new(127, 78, 0, 9);
    let origin = cluster_firewall::Origin { address: agent, pods: "127.78.0.0/16".parse().unwrap() };
    let gate = Gate::new(origin, |client, _, protocol| {
        client == IpAddr::from([127, 0, 0, 5]) && protocol == Protocol::Tcp
    });
    let proxy = Proxy::new(Vec::new(), None, Some(gate), CancellationToken::new());
    proxy.update(&key(), Some(&service(virtual_ip, port, &[target], None)));
    let from = async |client: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::from(client), 0).into()).unwrap();
        socket.connect((virtual_ip, port).into()).await.unwrap()
    };
    let mut refused = from([127, 0, 0, 6]).await;
    let said = tokio::time::timeout(Duration::from_secs(5), refused.read_u8()).await.expect("an answer");
    assert_eq!(said.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let mut let_in = from([127, 0, 0, 5]).await;
    let (mut far, peer) = backend.accept().await.unwrap();
    assert_eq!(peer.ip(), agent);
    far.write_all(b"x").await.unwrap();
    assert_eq!(let_in.read_u8().await.unwrap(), b'x');
}
