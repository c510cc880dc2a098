//! Channels in a WebSocket.

use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::socket::Socket;
use super::{ERROR, Input, Moving, RESIZE, STDIN, Session, size};

/// Closes the channel whose number follows (`v5` only).
const CLOSE: u8 = 255;

impl Session {
    pub(in crate::server) fn websocket(socket: Socket) -> (Self, Moving) {
        let (mut sink, mut stream) = socket.split();
        let (output, mut outbox) = mpsc::channel::<(u8, Bytes)>(16);
        let (typed, input) = mpsc::channel(16);
        let writer = tokio::spawn(async move {
            while let Some((channel, bytes)) = outbox.recv().await {
                if sink.send(framed(channel, &bytes)).await.is_err() || channel == ERROR {
                    break;
                }
            }
            // Without the code 1000 client-go takes the end for a failure.
            let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let _ = sink.send(Message::Close(Some(normal))).await;
            let _ = sink.close().await;
        });
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let event = match message {
                    Message::Binary(bytes) => parse(&bytes),
                    Message::Text(text) => parse(&Bytes::copy_from_slice(text.as_bytes())),
                    Message::Close(_) => break,
                    // Pings are answered by the library.
                    _ => None,
                };
                if let Some(event) = event
                    && typed.send(event).await.is_err()
                {
                    break;
                }
            }
        });
        (Self { input, output: output.clone() }, Moving { output, writer, reader })
    }
}

fn parse(message: &Bytes) -> Option<Input> {
    let channel = *message.first()?;
    let rest = message.slice(1..);
    match channel {
        STDIN => Some(Input::Bytes(rest)),
        RESIZE => size(&rest),
        CLOSE if rest.first() == Some(&STDIN) => Some(Input::End),
        _ => None,
    }
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels() {
        assert!(matches!(parse(&Bytes::from_static(b"\x00ab")), Some(Input::Bytes(bytes)) if bytes == "ab"));
        assert!(matches!(parse(&Bytes::from_static(b"\xff\x00")), Some(Input::End)));
        assert!(parse(&Bytes::from_static(b"\xff\x01")).is_none());
        let resize = Bytes::from_static(b"\x04{\"Width\":80,\"Height\":24}");
        assert!(matches!(parse(&resize), Some(Input::Resize(80, 24))));
        assert!(parse(&Bytes::new()).is_none());
    }
}
