//! A connection as bytes both ways, whether it is a WebSocket's messages or the upgraded connection itself.

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::io::ReaderStream;

use super::socket::Socket;

/// Pieces waiting to be sent.
const OUTBOX: usize = 16;

/// The two directions.
pub(super) struct Carrier {
    /// Ends with the connection.
    pub(super) incoming: BoxStream<'static, Bytes>,
    /// The connection is closed when all senders are gone; sending fails when it is gone.
    pub(super) outgoing: mpsc::Sender<Bytes>,
    /// Ends when all is sent.
    pub(super) sent: JoinHandle<()>,
}

impl Carrier {
    /// Each message is some bytes, binary ones only.
    pub(super) fn websocket(socket: Socket) -> Self {
        let (mut sink, stream) = socket.split();
        let (outgoing, mut outbox) = mpsc::channel::<Bytes>(OUTBOX);
        let sent = tokio::spawn(async move {
            while let Some(bytes) = outbox.recv().await {
                if sink.send(Message::Binary(bytes)).await.is_err() {
                    return;
                }
            }
            let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let _ = sink.send(Message::Close(Some(normal))).await;
        });
        let incoming = stream
            .take_while(|message| {
                let open = matches!(message, Ok(message) if !message.is_close());
                async move { open }
            })
            .filter_map(async |message| match message {
                Ok(Message::Binary(bytes)) => Some(bytes),
                _ => None,
            });
        Self { incoming: incoming.boxed(), outgoing, sent }
    }

    /// The connection as it is.
    pub(super) fn plain(connection: Upgraded) -> Self {
        let (read, mut write) = tokio::io::split(TokioIo::new(connection));
        let (outgoing, mut outbox) = mpsc::channel::<Bytes>(OUTBOX);
        let sent = tokio::spawn(async move {
            while let Some(bytes) = outbox.recv().await {
                if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                    return;
                }
            }
            let _ = write.shutdown().await;
        });
        let incoming = ReaderStream::with_capacity(read, 32 * 1024)
            .take_while(|bytes| {
                let open = bytes.is_ok();
                async move { open }
            })
            .filter_map(async |bytes| bytes.ok());
        Self { incoming: incoming.boxed(), outgoing, sent }
    }
}
