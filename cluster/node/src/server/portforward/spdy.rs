//! Port-forwarding over SPDY: a pair of streams for each connection, all of them over one connection from the client.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::carrier::Carrier;
use super::super::spdy::{Decoder, Encoder, Frame, Headers, SpdyError, data, pong, reset};
use super::forward::{End, Target, downward, upward};
use super::pairs::{Pair, Pairs};

/// Pieces from the client that wait for the pod, for each stream. When it is full, the whole connection waits: SPDY as Kubernetes' clients
/// speak it cannot hold a single stream up.
const WAITING: usize = 64;

struct Session {
    target: Arc<Target>,
    outgoing: mpsc::Sender<Bytes>,
    encoder: Encoder,
    pairs: Pairs,
    streams: HashMap<u32, Stream>,
    /// What is being forwarded; gives the data stream's number at its end.
    forwards: JoinSet<u32>,
}

/// What comes in on a stream: an error stream until its pair is complete, a data stream until all of it has ended.
struct Stream {
    /// None once the client has sent all.
    input: Option<mpsc::Sender<Bytes>>,
    /// Until the pair is complete.
    receiver: Option<mpsc::Receiver<Bytes>>,
    reset: CancellationToken,
}

pub(super) async fn serve(carrier: Carrier, target: Arc<Target>) {
    let Carrier { mut incoming, outgoing, .. } = carrier;
    let mut session = Session {
        target,
        outgoing,
        encoder: Encoder::default(),
        pairs: Pairs::default(),
        streams: HashMap::new(),
        forwards: JoinSet::new(),
    };
    let mut decoder = Decoder::default();
    loop {
        tokio::select! {
            bytes = incoming.next() => {
                let Some(bytes) = bytes else { return };
                decoder.push(&bytes);
                if let Err(error) = session.frames(&mut decoder).await {
                    tracing::debug!(%error, pod = session.target.pod, "a port-forward connection is given up");
                    return;
                }
            }
            Some(ended) = session.forwards.join_next() => {
                if let Ok(stream) = ended {
                    session.streams.remove(&stream);
                }
            }
        }
    }
}

impl Session {
    async fn frames(&mut self, decoder: &mut Decoder) -> Result<(), SpdyError> {
        while let Some(frame) = decoder.next()? {
            match frame {
                Frame::Open { stream, fin, headers } => self.open(stream, fin, &headers).await,
                Frame::Data { stream, fin, bytes } => self.data(stream, fin, bytes).await,
                Frame::Reset { stream } => {
                    self.pairs.remove(stream);
                    if let Some(stream) = self.streams.remove(&stream) {
                        stream.reset.cancel();
                    }
                }
                Frame::Ping(id) => self.send(pong(id)).await,
                Frame::GoAway => {}
            }
        }
        Ok(())
    }

    async fn send(&self, bytes: Bytes) {
        // A connection that takes nothing more is about to end for reading, too.
        let _ = self.outgoing.send(bytes).await;
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: &Headers) {
        let pair = match self.pairs.add(stream, headers) {
            Ok(pair) => pair,
            Err(reason) => {
                tracing::debug!(reason, pod = self.target.pod, "a stream is refused");
                return self.send(reset(stream)).await;
            }
        };
        let (input, receiver) = mpsc::channel(WAITING);
        let input = (!fin).then_some(input);
        self.streams
            .insert(stream, Stream { input, receiver: Some(receiver), reset: CancellationToken::new() });
        let reply = self.encoder.reply(stream);
        self.send(reply).await;
        let Some(pair) = pair else { return };
        // Nothing comes in on an error stream.
        self.streams.remove(&pair.error);
        let Some(known) = self.streams.get_mut(&pair.data) else { return };
        let Some(input) = known.receiver.take() else { return };
        let (target, output) = (Arc::clone(&self.target), self.outgoing.clone());
        self.forwards.spawn(forward(target, pair, input, output, known.reset.clone()));
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: Bytes) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        if let Some(input) = &known.input
            && !bytes.is_empty()
        {
            // An error: the pod hears no more of this stream.
            let _ = input.send(bytes).await;
        }
        if fin {
            known.input = None;
        }
    }
}

/// One connection from start to end. The end of the error stream goes after that of the data stream: it tells the client that all was well.
async fn forward(
    target: Arc<Target>,
    pair: Pair,
    input: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Bytes>,
    cancelled: CancellationToken,
) -> u32 {
    let send = async |bytes: Bytes| {
        let _ = output.send(bytes).await;
    };
    let stream = match target.connect(pair.port).await {
        Ok(stream) => stream,
        Err(message) => {
            send(data(pair.error, message.as_bytes(), true)).await;
            send(data(pair.data, &[], true)).await;
            return pair.data;
        }
    };
    let (read, write) = stream.into_split();
    let mut sending = std::pin::pin!(upward(write, input));
    let mut receiving = std::pin::pin!(downward(read, &output, |bytes| data(pair.data, bytes, false)));
    let mut sent = false;
    let end = loop {
        tokio::select! {
            end = &mut receiving => break Some(end),
            () = &mut sending, if !sent => sent = true,
            () = cancelled.cancelled() => break None,
        }
    };
    match end {
        Some(End::Finished) => send(data(pair.data, &[], true)).await,
        Some(End::Broken) => send(reset(pair.data)).await,
        None => {}
    }
    send(data(pair.error, &[], true)).await;
    if end == Some(End::Finished) && !sent {
        // The pod may listen still although it has nothing more to say.
        tokio::select! {
            () = sending => {}
            () = cancelled.cancelled() => {}
        }
    }
    pair.data
}
