//! A SPDY stream for each channel: the client opens them all before anything is done.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;

use super::super::carrier::Carrier;
use super::super::spdy::{Decoder, Encoder, Frame, data, pong, reset};
use super::{ERROR, Input, Moving, RESIZE, STDERR, STDIN, STDOUT, Session, size};

/// How long a client may take to open its streams.
const OPENED_WITHIN: Duration = Duration::from_secs(30);

/// The channel of a stream by its header `streamType`.
fn channel(kind: Option<&String>) -> Option<u8> {
    match kind?.as_str() {
        "stdin" => Some(STDIN),
        "stdout" => Some(STDOUT),
        "stderr" => Some(STDERR),
        "error" => Some(ERROR),
        "resize" => Some(RESIZE),
        _ => None,
    }
}

/// The reading side and the streams that are open.
struct Reader {
    incoming: BoxStream<'static, Bytes>,
    outgoing: mpsc::Sender<Bytes>,
    decoder: Decoder,
    encoder: Encoder,
    /// Channels by stream.
    channels: HashMap<u32, u8>,
}

impl Reader {
    /// The next event; None when the client is gone or speaks nonsense.
    async fn next(&mut self) -> Option<Option<Input>> {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => return Some(self.frame(frame).await),
                Ok(None) => {
                    let bytes = self.incoming.next().await?;
                    self.decoder.push(&bytes);
                }
                Err(error) => {
                    tracing::debug!(%error, "a remote command's connection is given up");
                    return None;
                }
            }
        }
    }

    async fn frame(&mut self, frame: Frame) -> Option<Input> {
        match frame {
            Frame::Open { stream, headers, .. } => {
                let answer = match channel(headers.get("streamtype")) {
                    Some(channel) if !self.channels.values().any(|known| *known == channel) => {
                        self.channels.insert(stream, channel);
                        self.encoder.reply(stream)
                    }
                    _ => reset(stream),
                };
                let _ = self.outgoing.send(answer).await;
                None
            }
            Frame::Data { stream, bytes, fin } => match self.channels.get(&stream) {
                Some(&STDIN) if !bytes.is_empty() => Some(Input::Bytes(bytes)),
                Some(&STDIN) if fin => Some(Input::End),
                Some(&RESIZE) => size(&bytes),
                _ => None,
            },
            Frame::Reset { stream } if self.channels.get(&stream) == Some(&STDIN) => Some(Input::End),
            Frame::Ping(id) => {
                let _ = self.outgoing.send(pong(id)).await;
                None
            }
            Frame::Reset { .. } | Frame::GoAway => None,
        }
    }
}

impl Session {
    /// Waits for the streams of these channels, and the one for the verdict. `None`: the client did not open them.
    pub(in crate::server) async fn spdy(carrier: Carrier, wanted: &[u8]) -> Option<(Self, Moving)> {
        let Carrier { incoming, outgoing, sent } = carrier;
        let mut reader = Reader {
            incoming,
            outgoing: outgoing.clone(),
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            channels: HashMap::new(),
        };
        let mut early = Vec::new();
        let opening = async {
            while !wanted
                .iter()
                .chain(&[ERROR])
                .all(|channel| reader.channels.values().any(|known| known == channel))
            {
                early.extend(reader.next().await?);
            }
            Some(())
        };
        tokio::time::timeout(OPENED_WITHIN, opening).await.ok().flatten()?;
        let streams: HashMap<u8, u32> =
            reader.channels.iter().map(|(stream, channel)| (*channel, *stream)).collect();
        let (output, mut outbox) = mpsc::channel::<(u8, Bytes)>(16);
        let (typed, input) = mpsc::channel(16);
        let writer = tokio::spawn(async move {
            while let Some((channel, bytes)) = outbox.recv().await {
                if channel == ERROR {
                    for channel in [STDOUT, STDERR] {
                        if let Some(stream) = streams.get(&channel) {
                            let _ = outgoing.send(data(*stream, &[], true)).await;
                        }
                    }
                }
                let Some(stream) = streams.get(&channel) else { continue };
                if outgoing.send(data(*stream, &bytes, channel == ERROR)).await.is_err() || channel == ERROR {
                    break;
                }
            }
        });
        let reader = tokio::spawn(async move {
            for event in early {
                if typed.send(event).await.is_err() {
                    return;
                }
            }
            while let Some(event) = reader.next().await {
                if let Some(event) = event
                    && typed.send(event).await.is_err()
                {
                    return;
                }
            }
        });
        // The connection closes when both tasks have ended and all is sent.
        drop(sent);
        Some((Self { input, output: output.clone() }, Moving { output, writer, reader }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_by_their_header() {
        let of = |kind: &str| channel(Some(&kind.to_owned()));
        assert_eq!(of("stdin"), Some(STDIN));
        assert_eq!(of("error"), Some(ERROR));
        assert_eq!(of("data"), None);
        assert_eq!(channel(None), None);
    }
}
