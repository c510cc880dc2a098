//! OTLP, the OpenTelemetry protocol: the messages' bytes, and the way to a collector. What is told is `traces`' and `metrics`' own.

mod send;
pub(crate) mod wire;

pub(crate) use send::{Endpoint, Protocol, Sender, Signal};
