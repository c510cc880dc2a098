//! Plain HTTP requests to the gateway, for the demo.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

/// One connection to the gateway that asks for one host.
pub(crate) struct Connection {
    send: SendRequest<Empty<Bytes>>,
    host: String,
}

impl Connection {
    pub(crate) async fn open(gateway: SocketAddr, host: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(gateway)
            .await
            .with_context(|| format!("connecting to the gateway at {gateway}"))?;
        stream.set_nodelay(true)?;
        let (send, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(Self { send, host: host.into() })
    }

    /// GET /, with the platform's own timing in the answer when asked for.
    pub(crate) async fn get(&mut self, timing: bool) -> anyhow::Result<Answer> {
        let start = Instant::now();
        let mut request = Request::get("/").header("host", &self.host);
        if timing {
            request = request.header("ebb-timing", "1");
        }
        self.send.ready().await?;
        let response = self.send.send_request(request.body(Empty::new())?).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
            took: start.elapsed(),
        })
    }
}
