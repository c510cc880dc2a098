//! OTLP, the OpenTelemetry protocol: the messages' bytes, the way to a collector, and metrics sent there. Spans are `ebb-component`'s own.

pub mod metrics;
mod send;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;

pub use send::{Endpoint, Protocol, Sender, Signal};

/// Who tells. Several that do the same are told apart by their pods, or their counts would be taken for one that jumps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// What it is.
    pub service: String,
    /// The pod that it is in, where it is in one.
    pub pod: Option<String>,
    /// The pod's namespace.
    pub namespace: Option<String>,
}

impl Source {
    /// One that is the only one.
    pub fn alone(service: impl Into<String>) -> Self {
        Self { service: service.into(), ..Self::default() }
    }

    /// By OpenTelemetry's names.
    fn attributes(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let pod = self.pod.as_deref();
        let all = [
            ("service.name", Some(self.service.as_str())),
            ("service.instance.id", pod),
            ("k8s.pod.name", pod),
            ("k8s.namespace.name", self.namespace.as_deref()),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }
}
