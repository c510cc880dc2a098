//! TCP: accept, connect to an endpoint, copy both ways.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::balance::Balancer;
use crate::gate::Gate;
use crate::index::Protocol;

/// How long one endpoint is waited for before the next is tried. Endpoints are on this machine.
const CONNECT: Duration = Duration::from_secs(2);

/// Accepts until `stop`; connections go on until `shutdown`.
pub(super) async fn serve(
    listener: Arc<TcpListener>,
    balancer: Arc<ArcSwap<Balancer>>,
    gate: Option<Gate>,
    stop: CancellationToken,
    shutdown: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, peer)) => {
                let (balancer, gate, shutdown) = (balancer.load_full(), gate.clone(), shutdown.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = join(client, peer, &balancer, gate.as_ref()) => {}
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: some will be free again soon.
                tracing::debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn join(mut client: TcpStream, peer: SocketAddr, balancer: &Balancer, gate: Option<&Gate>) {
    let mut server = match connect(peer, balancer, gate).await {
        Ok(server) => server,
        Err(error) => {
            tracing::debug!(%peer, %error, "no endpoint takes the connection");
            // Closed with a reset: a client must not take this for an empty answer.
            drop(client.set_zero_linger());
            return;
        }
    };
    drop(client.set_nodelay(true));
    drop(server.set_nodelay(true));
    // Ends when both directions have ended; the end of one is passed on while the other goes on.
    if tokio::io::copy_bidirectional(&mut client, &mut server).await.is_err() {
        drop(client.set_zero_linger());
        drop(server.set_zero_linger());
    }
}

async fn connect(peer: SocketAddr, balancer: &Balancer, gate: Option<&Gate>) -> io::Result<TcpStream> {
    let mut last = io::Error::other("no endpoints");
    for target in balancer.order(peer.ip(), Instant::now()) {
        let open = async {
            match gate {
                Some(gate) => {
                    let socket = gate.socket(peer.ip(), target, Protocol::Tcp)?;
                    TcpSocket::from_std_stream(socket.into()).connect(target).await
                }
                None => TcpStream::connect(target).await,
            }
        };
        match tokio::time::timeout(CONNECT, open).await {
            Ok(Ok(stream)) => {
                balancer.chosen(peer.ip(), target, Instant::now());
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
