//! One connection into a pod.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::context::{Context, PodView};

/// Bytes that are taken from the pod at once.
const CHUNK: usize = 32 * 1024;

/// Where connections go.
pub(super) struct Target {
    pub(super) context: Arc<Context>,
    pub(super) view: Arc<PodView>,
    pub(super) pod: String,
}

/// How a connection into the pod ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The pod has said all it had to say.
    Finished,
    /// It broke off; what was sent may not be all.
    Broken,
}

impl Target {
    /// Connects to a port on loopback inside the pod, as kubelet does; the error is the line that the client shows.
    pub(super) async fn connect(&self, port: u16) -> Result<tokio::net::TcpStream, String> {
        let fail = |cause: String| {
            format!("error forwarding port {port} to pod {}, uid {}: {cause}", self.pod, self.view.uid)
        };
        let network = self.view.network.lock().clone();
        let network =
            network.ok_or_else(|| fail("the pod has no network: it is starting or has ended".to_owned()))?;
        let stream = self.context.network.connect_inside(&network, port).await;
        stream.map_err(|error| {
            fail(format!("failed to connect to localhost:{port} inside the pod: {}", kernel_text(&error)))
        })
    }
}

/// The kernel's words alone.
fn kernel_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Sends the pod what comes from the client; the end of `input` is passed on as half-close.
pub(super) async fn upward(mut pod: OwnedWriteHalf, mut input: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = input.recv().await {
        if pod.write_all(&bytes).await.is_err() {
            // The pod hears no more. Its answer may still be under way, so this alone ends nothing.
            return;
        }
    }
    let _ = pod.shutdown().await;
}

/// Sends the client what the pod says, each piece as `frame` makes it.
pub(super) async fn downward(
    mut pod: OwnedReadHalf,
    output: &mpsc::Sender<Bytes>,
    frame: impl Fn(&[u8]) -> Bytes,
) -> End {
    let mut buffer = vec![0; CHUNK];
    loop {
        match pod.read(&mut buffer).await {
            Ok(0) => return End::Finished,
            Ok(length) => {
                if output.send(frame(&buffer[..length])).await.is_err() {
                    return End::Broken;
                }
            }
            Err(_) => return End::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_the_kernels_words() {
        assert_eq!(kernel_text(&io::Error::from_raw_os_error(nix::libc::ECONNREFUSED)), "connection refused");
        assert_eq!(kernel_text(&io::Error::other("x")), "x");
    }
}
