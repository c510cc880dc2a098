//! UDP: a flow is a client's address; it keeps its endpoint until it has been silent for a while.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::balance::Balancer;
use crate::gate::Gate;
use crate::index::Protocol;

/// A flow without an answer for so long is forgotten.
const SILENCE: Duration = Duration::from_secs(60);
/// Flows of one port at most; datagrams of more clients are dropped.
const FLOWS: usize = 4096;

type Flows = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

/// Forwards until `stop`.
pub(super) async fn serve(
    socket: Arc<UdpSocket>,
    balancer: Arc<ArcSwap<Balancer>>,
    gate: Option<Gate>,
    stop: CancellationToken,
) {
    let flows = Flows::default();
    let mut buffer = vec![0; 65_536];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let Ok((length, client)) = received else { continue };
        let known = flows.lock().get(&client).cloned();
        let upstream = match known {
            Some(upstream) => upstream,
            None => match open(&socket, client, &balancer.load(), gate.as_ref(), &flows, &stop).await {
                Some(upstream) => upstream,
                None => continue,
            },
        };
        if let Err(error) = upstream.send(&buffer[..length]).await {
            // The endpoint refused the last datagram: the next one of this client may go elsewhere.
            tracing::debug!(%client, %error, "datagram lost");
            flows.lock().remove(&client);
        }
    }
}

async fn open(
    socket: &Arc<UdpSocket>,
    client: SocketAddr,
    balancer: &Balancer,
    gate: Option<&Gate>,
    flows: &Flows,
    stop: &CancellationToken,
) -> Option<Arc<UdpSocket>> {
    if flows.lock().len() >= FLOWS {
        return None;
    }
    let target = balancer.order(client.ip(), Instant::now()).next()?;
    let upstream = match gate {
        Some(gate) => {
            let socket = gate.socket(client.ip(), target, Protocol::Udp);
            let socket = socket.inspect_err(|error| tracing::debug!(%client, %error, "no flow")).ok()?;
            UdpSocket::from_std(socket.into()).ok()?
        }
        None => {
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            UdpSocket::bind(any).await.ok()?
        }
    };
    upstream.connect(target).await.ok()?;
    balancer.chosen(client.ip(), target, Instant::now());
    let upstream = Arc::new(upstream);
    flows.lock().insert(client, Arc::clone(&upstream));
    let (socket, flows, stop, back) =
        (Arc::clone(socket), Arc::clone(flows), stop.clone(), Arc::clone(&upstream));
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => break,
                received = tokio::time::timeout(SILENCE, back.recv(&mut buffer)) => received,
            };
            let Ok(Ok(length)) = received else { break };
            drop(socket.send_to(&buffer[..length], client).await);
        }
        let mut flows = flows.lock();
        if flows.get(&client).is_some_and(|held| Arc::ptr_eq(held, &back)) {
            flows.remove(&client);
        }
    });
    Some(upstream)
}
