//! SPDY/3.1 framing, the server's side of what Kubernetes' streaming clients speak: streams opened by the client, data both ways, half-close,
//! reset and ping.
//!
//! It is the wire format alone: bytes in, [`Frame`]s out, and the frames to send as bytes. Both of Kubernetes' SPDY libraries leave flow
//! control out (a WINDOW_UPDATE is an error to them), so there is none here: a slow reader holds its connection up.
//! Source: <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>.

mod headers;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub(super) use headers::Headers;
use headers::Inflater;

/// The `Upgrade` token of a connection that is SPDY without a WebSocket around it.
pub(super) const UPGRADE: &str = "SPDY/3.1";

const CONTROL: u32 = 1 << 31;
const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const FIN: u8 = 1;
const HEAD: usize = 8;
/// Streams have a few short headers; more than this is no Kubernetes client.
const MAX_CONTROL: usize = 64 * 1024;

/// What a client sends, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// A new stream; `fin`: the client will send nothing on it.
    Open { stream: u32, fin: bool, headers: Headers },
    /// Bytes of a stream; `fin`: the last ones from the client.
    Data { stream: u32, fin: bool, bytes: Bytes },
    /// The client is not interested in a stream any more.
    Reset { stream: u32 },
    /// To be sent back as it is.
    Ping(u32),
    /// The client opens nothing more; what is open goes on.
    GoAway,
}

/// Bytes that are not SPDY.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("control frame of SPDY version {0}, expected 3")]
    Version(u16),
    #[error("control frame of {0} bytes, more than the {MAX_CONTROL} allowed")]
    TooLarge(usize),
    #[error("control frame of type {0} is cut short")]
    Short(u16),
    #[error("headers: {0}")]
    Headers(&'static str),
}

/// Finds frames in bytes, however these are cut.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
    inflater: Inflater,
}

impl Decoder {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        while self.buffer.len() >= HEAD {
            let mut head = &self.buffer[..HEAD];
            let (first, second) = (head.get_u32(), head.get_u32());
            let flags = second.to_be_bytes()[0];
            let length = (second & 0x00ff_ffff) as usize;
            if first & CONTROL != 0 && length > MAX_CONTROL {
                return Err(SpdyError::TooLarge(length));
            }
            if self.buffer.len() < HEAD + length {
                return Ok(None);
            }
            self.buffer.advance(HEAD);
            let body = self.buffer.split_to(length).freeze();
            if first & CONTROL == 0 {
                return Ok(Some(Frame::Data { stream: first, fin: flags & FIN != 0, bytes: body }));
            }
            let version = ((first >> 16) & 0x7fff) as u16;
            if version != VERSION {
                return Err(SpdyError::Version(version));
            }
            let kind = (first & 0xffff) as u16;
            if let Some(frame) = self.control(kind, flags, body)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Option<Frame>, SpdyError> {
        let needed = match kind {
            SYN_STREAM => 10,
            SYN_REPLY | RST_STREAM | PING | HEADERS => 4,
            _ => 0,
        };
        if body.len() < needed {
            return Err(SpdyError::Short(kind));
        }
        Ok(match kind {
            SYN_STREAM => {
                let stream = body.get_u32() & !CONTROL;
                body.advance(6);
                let headers = self.inflater.headers(&body)?;
                Some(Frame::Open { stream, fin: flags & FIN != 0, headers })
            }
            // Unwanted headers are inflated too: all headers of a connection are one compressed stream.
            SYN_REPLY | HEADERS => {
                body.advance(4);
                self.inflater.headers(&body)?;
                None
            }
            RST_STREAM => Some(Frame::Reset { stream: body.get_u32() & !CONTROL }),
            PING => Some(Frame::Ping(body.get_u32())),
            GOAWAY => Some(Frame::GoAway),
            // SETTINGS and WINDOW_UPDATE steer a flow control that nobody does.
            _ => None,
        })
    }
}

/// Makes frames. Replies must be sent in the order they are made: their headers are one compressed stream.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    begun: bool,
}

impl Encoder {
    /// Accepts a stream, without headers of our own.
    pub(super) fn reply(&mut self, stream: u32) -> Bytes {
        let block = headers::empty(!self.begun);
        self.begun = true;
        let mut body = BytesMut::with_capacity(4 + block.len());
        body.put_u32(stream);
        body.put_slice(&block);
        control(SYN_REPLY, &body)
    }
}

/// Refuses or ends a stream both ways.
pub(super) fn reset(stream: u32) -> Bytes {
    /// CANCEL: the other kinds blame somebody.
    const CANCEL: u32 = 5;
    let mut body = BytesMut::with_capacity(8);
    body.put_u32(stream);
    body.put_u32(CANCEL);
    control(RST_STREAM, &body)
}

/// The answer to a ping.
pub(super) fn pong(id: u32) -> Bytes {
    control(PING, &id.to_be_bytes())
}

/// Bytes of a stream, at most 16 MiB; with `fin` the last ones from here.
pub(super) fn data(stream: u32, bytes: &[u8], fin: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + bytes.len());
    frame.put_u32(stream & !CONTROL);
    frame.put_u32(head(if fin { FIN } else { 0 }, bytes.len()));
    frame.put_slice(bytes);
    frame.freeze()
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + body.len());
    frame.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    frame.put_u32(head(0, body.len()));
    frame.put_slice(body);
    frame.freeze()
}

fn head(flags: u8, length: usize) -> u32 {
    debug_assert!(length < 1 << 24);
    u32::from(flags) << 24 | length as u32 & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Go's framer (moby/spdystream) writes for one forwarded connection: error stream, its end, data stream, "hi", ping, reset, goaway.
    const FROM_GO: &str = "800300010000003e0000000100000000000078f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c60616061c0c0c0c0590489c64c\
        50f2663400000000ffff0000000101000000800300010000001800000003000000000000c2aa19540e2512d60b000000ffff00000003000000026869\
        8003000600000004000000018003000300000008000000030000000580030007000000080000000000000000";

    fn bytes() -> Vec<u8> {
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        FROM_GO.as_bytes().chunks(2).map(pair).collect()
    }

    fn stream(kind: &str) -> Headers {
        let pairs = [("port", "8080"), ("requestid", "0"), ("streamtype", kind)];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn expected() -> Vec<Frame> {
        vec![
            Frame::Open { stream: 1, fin: false, headers: stream("error") },
            Frame::Data { stream: 1, fin: true, bytes: Bytes::new() },
            Frame::Open { stream: 3, fin: false, headers: stream("data") },
            Frame::Data { stream: 3, fin: false, bytes: Bytes::from_static(b"hi") },
            Frame::Ping(1),
            Frame::Reset { stream: 3 },
            Frame::GoAway,
        ]
    }

    #[test]
    fn frames_of_a_go_client_however_they_are_cut() {
        for size in [1, 7, 1000] {
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for part in bytes().chunks(size) {
                decoder.push(part);
                while let Some(frame) = decoder.next().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, expected(), "in parts of {size}");
        }
    }

    #[test]
    fn what_is_not_spdy_is_an_error() {
        let fails = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            decoder.next().unwrap_err()
        };
        assert_eq!(fails(&[0x80, 2, 0, 1, 0, 0, 0, 0]), SpdyError::Version(2));
        assert_eq!(fails(&[0x80, 3, 0, 1, 0, 0xff, 0, 0]), SpdyError::TooLarge(0xff_0000));
        assert_eq!(fails(&[0x80, 3, 0, 3, 0, 0, 0, 0]), SpdyError::Short(3));
        let mut garbage = bytes();
        garbage[18] ^= 0xff;
        assert!(matches!(fails(&garbage), SpdyError::Headers(_)));
    }

    #[test]
    fn frames_that_matter_to_nobody_are_passed_over() {
        let mut decoder = Decoder::default();
        decoder.push(&control(9, &[0, 0, 0, 1, 0, 0, 0, 9]));
        decoder.push(&control(4, &[0; 4]));
        decoder.push(&pong(7));
        assert_eq!(decoder.next().unwrap(), Some(Frame::Ping(7)));
        assert_eq!(decoder.next().unwrap(), None);
    }

    #[test]
    fn what_is_sent_has_the_documented_form() {
        assert_eq!(data(3, b"hi", false)[..], [0, 0, 0, 3, 0, 0, 0, 2, b'h', b'i']);
        assert_eq!(data(3, b"", true)[..], [0, 0, 0, 3, 1, 0, 0, 0]);
        assert_eq!(reset(3)[..], [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5]);
        let mut encoder = Encoder::default();
        let (first, second) = (encoder.reply(1), encoder.reply(3));
        // Only the first carries the head of the compressed stream: zlib, with the dictionary's checksum.
        assert_eq!(first[..18], [0x80, 3, 0, 2, 0, 0, 0, 24, 0, 0, 0, 1, 0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2]);
        assert_eq!(second.len() + 6, first.len());
    }
}
