//! OTLP, the OpenTelemetry protocol: the messages' bytes, and the way to a collector. What is told is `traces`' and `metrics`' own.

mod send;
pub(crate) mod wire;

#[cfg(test)]
pub(crate) use send::tests::collector;
pub(crate) use send::{Endpoint, Protocol, Sender, Signal};
