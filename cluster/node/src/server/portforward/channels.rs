//! Port-forwarding over a WebSocket with numbered channels: for the port at place i of the query, 2i carries data both ways and 2i + 1 an
//! error from here. The first message on each is the port, two bytes, little-endian, so that the client can check the order.
//!
//! The protocol has no end of one channel: the client ends with the connection, and we when all ports have ended.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::carrier::Carrier;
use super::super::socket::Socket;
use super::forward::{Target, downward, upward};

/// Pieces from the client that wait for the pod, for each port.
const WAITING: usize = 64;

pub(super) async fn serve(socket: Socket, target: Arc<Target>, ports: &[u16]) {
    let Carrier { mut incoming, outgoing, sent } = Carrier::websocket(socket);
    let mut inputs = Vec::new();
    let mut forwards = JoinSet::new();
    for (place, port) in (0_u8..).zip(ports.iter().copied()) {
        let (sender, input) = mpsc::channel(WAITING);
        inputs.push(sender);
        forwards.spawn(one(Arc::clone(&target), place * 2, port, input, outgoing.clone()));
    }
    drop(outgoing);
    let reading = async {
        while let Some(mut message) = incoming.next().await {
            if message.is_empty() {
                continue;
            }
            let channel = usize::from(message.split_to(1)[0]);
            if channel.is_multiple_of(2)
                && let Some(input) = inputs.get(channel / 2)
            {
                // Whoever does not take it has ended.
                let _ = input.send(message).await;
            }
        }
    };
    tokio::select! {
        () = reading => forwards.shutdown().await,
        () = async { while forwards.join_next().await.is_some() {} } => {
            let _ = sent.await;
        }
    }
}

fn framed(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.extend_from_slice(&[channel]);
    message.extend_from_slice(bytes);
    message.freeze()
}

async fn one(
    target: Arc<Target>,
    channel: u8,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Bytes>,
) {
    for channel in [channel, channel + 1] {
        let _ = output.send(framed(channel, &port.to_le_bytes())).await;
    }
    match target.connect(port).await {
        Ok(stream) => {
            let (read, write) = stream.into_split();
            let sending = upward(write, input);
            let receiving = downward(read, &output, |bytes| framed(channel, bytes));
            tokio::select! {
                _ = receiving => {}
                () = async { sending.await; std::future::pending().await } => {}
            }
        }
        Err(message) => {
            let _ = output.send(framed(channel + 1, message.as_bytes())).await;
        }
    }
}
