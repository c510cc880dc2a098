//! The data path that gateway, activator and queue-proxy share: a server, connection pools to single
//! backends, forwarding between the two, balancing, time limits, and telemetry.
//!
//! It never speaks to Kubernetes, knows no Knative resource, and does no cryptography of its own: encryption and
//! identity come in through [`connect::Connector`] and [`server::Acceptor`].
//!
//! The way of a request: [`server::serve`] hands a [`http::Request`] to a [`server::Handler`], which prepares it with
//! [`forward::Outgoing`], picks a [`pool::Backend`] with one of the [`balance`] policies, and sends it. The
//! response's body goes back as [`body::Body`], wrapped in [`body::Guarded`] where a permit must live as long as it.

pub mod balance;
pub mod body;
pub mod connect;
pub mod error;
pub mod forward;
pub mod headers;
pub mod log;
pub mod otlp;
pub mod pool;
pub mod ports;
pub mod server;
pub mod telemetry;
pub mod timing;
pub mod wire;

pub use body::{Body, Guarded, RequestBody, Timed};
pub use connect::{Connected, Connector, PlainConnector, Protocol, Security, Target};
pub use error::{Error, Retry, Source};
pub use forward::{Outgoing, Tunnels, Via};
pub use pool::{Backend, Pool, PoolConfig};
pub use server::{
    Acceptor, Handler, Handshake, Peer, PlainAcceptor, ServerConfig, adopt, handler_fn, listen, serve,
};
