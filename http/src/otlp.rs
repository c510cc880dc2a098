//! OTLP, the OpenTelemetry protocol: the messages' bytes, the way to a collector, and metrics sent there. Spans are `ebb-component`'s own.

pub mod metrics;
mod send;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;

pub use send::{Endpoint, Protocol, Sender, Signal};
