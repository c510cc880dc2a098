//! What the process of a component is made of besides its own work: the way it starts and ends, its settings from the environment, its
//! answers about health and metrics, and how it follows the Kubernetes API.
//!
//! Nothing here knows what any component does, and nothing is on the way of a request.

pub mod admin;
pub mod env;
pub mod health;
pub mod keeper;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod threads;
mod told;
pub mod traces;
pub mod watch;

pub use admin::{Admin, Ports};
pub use env::{BadVariable, Env};
pub use health::Health;
pub use keeper::ListenerKeeper;
pub use process::{Failure, Process, Started};
pub use told::{said, told};
pub use traces::Traces;

/// A port is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}: {source}; is another process using the port, or is it below 1024?")]
pub struct ListenError {
    /// The address.
    pub address: std::net::SocketAddr,
    /// What the system said.
    pub source: std::io::Error,
}

/// Binds a port.
///
/// # Errors
/// Names the address and the likely cause.
pub async fn listen(address: std::net::SocketAddr) -> Result<tokio::net::TcpListener, ListenError> {
    ebb_http::listen(address).map_err(|source| ListenError { address, source })
}

/// Who a collector is told that it is.
fn source(component: &str) -> ebb_http::otlp::Source {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    ebb_http::otlp::Source {
        service: format!("ebb-{component}"),
        pod: variable("POD_NAME"),
        namespace: variable("SYSTEM_NAMESPACE").filter(|_| variable("POD_NAME").is_some()),
    }
}
