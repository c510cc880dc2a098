//! What does an app speak whose port says nothing? A server of HTTP/2 answers the client's preface with its settings; one of HTTP/1.1 calls it a bad
//! request, closes, or waits for more.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A preface with empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Who says nothing for so long does not speak it.
const PATIENCE: Duration = Duration::from_millis(300);

/// Whether the app at `at` speaks HTTP/2; none while it does not listen.
pub(super) async fn speaks_h2(at: SocketAddr) -> Option<bool> {
    let mut tcp = TcpStream::connect(at).await.ok()?;
    let mut head = [0; 9];
    let asked = async {
        tcp.write_all(HELLO).await?;
        tcp.read_exact(&mut head).await
    };
    let answered = matches!(tokio::time::timeout(PATIENCE, asked).await, Ok(Ok(_)));
    Some(answered && is_settings(&head))
}

/// A frame's head: three bytes of length, the kind, flags, no stream.
fn is_settings(head: &[u8; 9]) -> bool {
    head[3] == 4 && head[4] == 0 && head[5..] == [0; 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_told_from_text() {
        assert!(is_settings(&[0, 0, 18, 4, 0, 0, 0, 0, 0]));
        assert!(!is_settings(b"HTTP/1.1 "));
        assert!(!is_settings(&[0, 0, 8, 7, 0, 0, 0, 0, 0]), "GOAWAY");
    }
}
