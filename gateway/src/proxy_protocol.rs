//! The PROXY protocol, versions 1 and 2: by it a load balancer that passes bytes on tells whose they are.
//!
//! Whoever may connect can say anything in it, so it is read only where it is switched on, and there every connection must begin with
//! it: one that does not is closed. What is read is bounded by [`MOST`].
//!
//! Source: `doc/proxy-protocol.txt` of HAProxy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The largest header that is taken, in bytes: a header of version 2 may carry further data, which real senders keep within one packet.
pub const MOST: usize = 1500;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const LONGEST_LINE: usize = 107;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who connected; none where the sender speaks for itself (a health check) or does not know.
    pub client: Option<SocketAddr>,
    /// How many bytes the header has.
    pub length: usize,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More bytes are needed to tell.
    #[error("the connection ended within its PROXY protocol header")]
    Incomplete,
    /// There is none.
    #[error(
        "the connection does not begin with a PROXY protocol header; is the load balancer set to send one?"
    )]
    Missing,
    /// There is one that is wrong.
    #[error("the PROXY protocol header is wrong: {0}")]
    Bad(&'static str),
}

/// Reads a header from the start of `bytes`, which may go on behind it.
///
/// # Errors
/// [`Error::Incomplete`] as long as the bytes could be the start of one.
pub fn parse(bytes: &[u8]) -> Result<Header, Error> {
    let start = &bytes[..bytes.len().min(SIGNATURE.len())];
    if SIGNATURE.starts_with(start) {
        return if bytes.len() < 16 { Err(Error::Incomplete) } else { binary(bytes) };
    }
    let start = &bytes[..bytes.len().min(6)];
    if b"PROXY ".starts_with(start) {
        return line(bytes);
    }
    Err(Error::Missing)
}

fn line(bytes: &[u8]) -> Result<Header, Error> {
    let within = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = within.windows(2).position(|two| two == b"\r\n") else {
        return Err(if bytes.len() < LONGEST_LINE {
            Error::Incomplete
        } else {
            Error::Bad("its line is too long")
        });
    };
    let length = end + 2;
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| Error::Bad("its line is not ASCII"))?;
    let mut words = text.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // The rest of the line means nothing.
        return Ok(Header { client: None, length });
    }
    let mut next = || words.next().ok_or(Error::Bad("its line has too few words"));
    let (source, target, port, target_port) = (next()?, next()?, next()?, next()?);
    if words.next().is_some() {
        return Err(Error::Bad("its line has too many words"));
    }
    let (source, target): (IpAddr, IpAddr) = match family {
        "TCP4" => (ip::<Ipv4Addr>(source)?.into(), ip::<Ipv4Addr>(target)?.into()),
        "TCP6" => (ip::<Ipv6Addr>(source)?.into(), ip::<Ipv6Addr>(target)?.into()),
        _ => return Err(Error::Bad("its protocol is none of TCP4, TCP6 and UNKNOWN")),
    };
    let (port, _, _) = (self::port(port)?, self::port(target_port)?, target);
    Ok(Header { client: Some(SocketAddr::new(source, port)), length })
}

fn ip<T: std::str::FromStr>(word: &str) -> Result<T, Error> {
    word.parse().map_err(|_| Error::Bad("an address in its line is none of its protocol's"))
}

fn port(word: &str) -> Result<u16, Error> {
    let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    // A zero in front would have two spellings for one port.
    if !digits || (word.len() > 1 && word.starts_with('0')) {
        return Err(Error::Bad("a port in its line is none"));
    }
    word.parse().map_err(|_| Error::Bad("a port in its line is none"))
}

fn binary(bytes: &[u8]) -> Result<Header, Error> {
    let (version, family) = (bytes[12], bytes[13]);
    let length = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if version >> 4 != 2 {
        return Err(Error::Bad("its version is not 2"));
    }
    if length > MOST {
        return Err(Error::Bad("it is too long"));
    }
    let command = version & 0xf;
    if command > 1 {
        return Err(Error::Bad("its command is neither LOCAL nor PROXY"));
    }
    if bytes.len() < length {
        return Err(Error::Incomplete);
    }
    let body = &bytes[16..length];
    // LOCAL: the sender speaks for itself. Of a family that is not TCP's there is nothing to take.
    let client = match (command, family) {
        (0, _) | (1, 0x00) => None,
        (1, 0x11) => {
            let octets: [u8; 4] = take(body, 0)?;
            take::<4>(body, 4)?;
            Some(SocketAddr::new(Ipv4Addr::from(octets).into(), u16::from_be_bytes(take(body, 8)?)))
        }
        (1, 0x21) => {
            let octets: [u8; 16] = take(body, 0)?;
            take::<16>(body, 16)?;
            Some(SocketAddr::new(Ipv6Addr::from(octets).into(), u16::from_be_bytes(take(body, 32)?)))
        }
        _ => return Err(Error::Bad("its protocol is not TCP")),
    };
    if client.is_some() && body.len() < if family == 0x11 { 12 } else { 36 } {
        return Err(Error::Bad("its addresses are cut off"));
    }
    Ok(Header { client, length })
}

fn take<const N: usize>(body: &[u8], at: usize) -> Result<[u8; N], Error> {
    let some = body.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
    some.ok_or(Error::Bad("its addresses are cut off"))
}

/// Takes the header off a connection, and nothing behind it.
///
/// # Errors
/// When there is none, or what the system says.
pub async fn read(tcp: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut bytes = [0; MOST];
    let mut taken = 0;
    loop {
        let seen = taken + tcp.peek(&mut bytes[taken..]).await?;
        match parse(&bytes[..seen]) {
            Ok(header) => {
                tcp.read_exact(&mut bytes[taken..header.length]).await?;
                return Ok(header.client);
            }
            // All of it is the header's: taken, so that the next look waits for more.
            Err(Error::Incomplete) if seen > taken => {
                tcp.read_exact(&mut bytes[taken..seen]).await?;
                taken = seen;
            }
            Err(error) => return Err(bad(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0x20 | command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn client(text: &str) -> Option<SocketAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn lines() {
        for (text, expected) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\n", client("192.0.2.1:5000")),
            ("PROXY TCP6 2001:db8::1 ::1 65535 0\r\n", client("[2001:db8::1]:65535")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n", None),
        ] {
            let whole = format!("{text}GET / HTTP/1.1\r\n");
            assert_eq!(
                parse(whole.as_bytes()),
                Ok(Header { client: expected, length: text.len() }),
                "{text}"
            );
            for cut in 0..text.len() {
                assert_eq!(parse(&text.as_bytes()[..cut]), Err(Error::Incomplete), "{text} cut at {cut}");
            }
        }
        for bad in [
            "PROXY TCP4 192.0.2.1 192.0.2.2 5000\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 5000 443 1\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 5000 443\r\n",
            "PROXY TCP4 2001:db8::1 192.0.2.2 5000 443\r\n",
            "PROXY TCP6 192.0.2.1 ::1 5000 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 05000 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +5000 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 5000 65536\r\n",
            "PROXY TCP4 192.0.2.256 192.0.2.2 5000 443\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 5000 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\n\r\n",
        ] {
            assert!(matches!(parse(bad.as_bytes()), Err(Error::Bad(_))), "{bad}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_LINE));
        assert!(matches!(parse(long.as_bytes()), Err(Error::Bad(_))));
        for none in ["GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n", "\x16\x03\x01", "proxy TCP4"] {
            assert_eq!(parse(none.as_bytes()), Err(Error::Missing), "{none}");
        }
    }

    #[test]
    fn binary_headers() {
        let v4 = [192, 0, 2, 1, 192, 0, 2, 2, 0x13, 0x88, 1, 187];
        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[32..34].copy_from_slice(&5000u16.to_be_bytes());
        for (bytes, expected) in [
            (v2(1, 0x11, &v4), client("192.0.2.1:5000")),
            (v2(1, 0x21, &v6), client("[::1]:5000")),
            (v2(1, 0x11, &[&v4[..], &[4, 0, 1, 9]].concat()), client("192.0.2.1:5000")),
            (v2(0, 0x00, &[]), None),
            (v2(0, 0x11, &v4), None),
            (v2(1, 0x00, &[1, 2, 3]), None),
        ] {
            let whole = [&bytes[..], b"GET /"].concat();
            assert_eq!(parse(&whole), Ok(Header { client: expected, length: bytes.len() }), "{bytes:?}");
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Err(Error::Incomplete), "{bytes:?} cut at {cut}");
            }
        }
        let mut other = v2(1, 0x11, &v4);
        other[12] = 0x31;
        for bad in [
            v2(1, 0x11, &v4[..11]),
            v2(1, 0x21, &v4),
            v2(1, 0x12, &v4),
            v2(2, 0x11, &v4),
            v2(1, 0, &[0; MOST]),
            other,
        ] {
            assert!(matches!(parse(&bad), Err(Error::Bad(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_never_takes_more_than_there_is(
            head in proptest::sample::select(vec![b"PROXY TCP4 ".to_vec(), SIGNATURE.to_vec(), v2(1, 0x11, &[])[..14].to_vec(), vec![]]),
            rest in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let bytes = [head, rest].concat();
            if let Ok(header) = parse(&bytes) {
                prop_assert!(header.length <= bytes.len() && header.length <= MOST);
                prop_assert_eq!(parse(&bytes[..header.length]), Ok(header));
            }
        }
    }

    #[tokio::test]
    async fn a_header_in_pieces_is_taken_and_nothing_behind_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut sender = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        sender.set_nodelay(true).expect("set");
        let (mut tcp, _) = listener.accept().await.expect("a connection");
        let header = v2(1, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0x13, 0x88, 1, 187]);
        let read = tokio::spawn(async move { (read(&mut tcp).await.expect("a header"), tcp) });
        for byte in header {
            sender.write_all(&[byte]).await.expect("sent");
            tokio::task::yield_now().await;
        }
        sender.write_all(b"hello").await.expect("sent");
        let (found, mut tcp) = read.await.expect("no panic");
        assert_eq!(found, client("192.0.2.1:5000"));
        let mut rest = [0; 5];
        tcp.read_exact(&mut rest).await.expect("bytes");
        assert_eq!(&rest, b"hello");
    }

    #[tokio::test]
    async fn a_connection_that_ends_early_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut sender = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (mut tcp, _) = listener.accept().await.expect("a connection");
        sender.write_all(b"PROXY TCP4 1").await.expect("sent");
        drop(sender);
        let error = read(&mut tcp).await.expect_err("cut off").to_string();
        assert!(error.contains("ended within"), "{error}");
    }
}
