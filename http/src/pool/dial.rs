//! Opening a connection: the one place where the connector's type is known, and the only boxed future.

use std::future::Future;
use std::pin::Pin;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::PoolConfig;
use crate::body::RequestBody;
use crate::connect::{Connector, Protocol, Target};
use crate::error::{BoxError, Error};

/// The sending half of an open connection; a task of its own drives the socket.
pub(super) enum Sender {
    H1(http1::SendRequest<RequestBody>),
    H2(http2::SendRequest<RequestBody>),
}

type Dialing<'a> = Pin<Box<dyn Future<Output = Result<Sender, Error>> + Send + 'a>>;

/// [`Connector`] as an object. One box for each new connection, none for a request.
pub(super) trait Dial: Send + Sync {
    fn dial<'a>(&'a self, target: &'a Target, config: &'a PoolConfig) -> Dialing<'a>;
}

pub(super) struct Dialer<C>(pub(super) C);

impl<C: Connector> Dial for Dialer<C> {
    fn dial<'a>(&'a self, target: &'a Target, config: &'a PoolConfig) -> Dialing<'a> {
        Box::pin(async move {
            match tokio::time::timeout(config.connect_timeout, open(&self.0, target, config)).await {
                Ok(Ok(sender)) => Ok(sender),
                Ok(Err(cause)) => Err(Error::Connect { target: target.address.to_string(), cause }),
                Err(_) => Err(Error::ConnectTimeout {
                    target: target.address.to_string(),
                    limit: config.connect_timeout,
                }),
            }
        })
    }
}

async fn open<C: Connector>(connector: &C, target: &Target, config: &PoolConfig) -> Result<Sender, BoxError> {
    let connected = connector.connect(target).await?;
    if connected.protocol != target.protocol {
        return Err(
            format!("{:?} was asked for, the peer speaks {:?}", target.protocol, connected.protocol).into()
        );
    }
    let io = TokioIo::new(connected.io);
    let address = target.address;
    match connected.protocol {
        Protocol::Http1 => {
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(config.h1_buffer.max(8192))
                .max_headers(256)
                .handshake(io)
                .await?;
            tokio::spawn(async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%address, %error, "connection ended");
                }
            });
            Ok(Sender::H1(sender))
        }
        Protocol::Http2 => {
            let (stream, whole) = config.h2_windows;
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(stream)
                .initial_connection_window_size(whole)
                .max_send_buf_size(64 << 10)
                .max_header_list_size(64 << 10)
                .keep_alive_interval(std::time::Duration::from_secs(20))
                .keep_alive_timeout(std::time::Duration::from_secs(10))
                .handshake(io)
                .await?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%address, %error, "connection ended");
                }
            });
            Ok(Sender::H2(sender))
        }
    }
}
