//! Whether a component may be sent work: every condition that it named at its start is met, and it is not on its way out.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

/// Shared by its clones.
#[derive(Clone, Debug)]
pub struct Health {
    conditions: Arc<[(&'static str, CancellationToken)]>,
    stopping: CancellationToken,
}

impl Health {
    /// Not ready until each of these is met.
    pub fn new(conditions: &[&'static str]) -> Self {
        Self::of(conditions.iter().map(|name| (*name, CancellationToken::new())))
    }

    /// Not ready until each of these tokens is cancelled.
    pub fn of(conditions: impl IntoIterator<Item = (&'static str, CancellationToken)>) -> Self {
        Self { conditions: conditions.into_iter().collect(), stopping: CancellationToken::new() }
    }

    /// The token to cancel when this condition is met. One that was not named at the start counts for nothing.
    pub fn condition(&self, name: &str) -> CancellationToken {
        let found = self.conditions.iter().find(|(known, _)| *known == name);
        found.map(|(_, token)| token.clone()).unwrap_or_default()
    }

    /// Says that this condition is met.
    pub fn met(&self, name: &str) {
        self.condition(name).cancel();
    }

    /// Whether all are met.
    pub fn is_ready(&self) -> bool {
        self.missing().is_none()
    }

    /// Not ready any more; what is under way goes on.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Cancelled when the component begins to end: it gives up what others can take over, and serves on for a while.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// A token that is cancelled when the component begins to end, or at the latest with `shutdown`.
    pub fn ending(&self, shutdown: &CancellationToken) -> CancellationToken {
        let (ending, stopping) = (shutdown.child_token(), self.stopping.clone());
        let cancel = ending.clone();
        tokio::spawn(async move {
            if cancel.run_until_cancelled(stopping.cancelled()).await.is_some() {
                cancel.cancel();
            }
        });
        ending
    }

    /// Why it is not ready.
    pub fn missing(&self) -> Option<String> {
        if self.stopping.is_cancelled() {
            return Some("shutting down".to_owned());
        }
        let open = self.conditions.iter().filter(|(_, token)| !token.is_cancelled());
        let open: Vec<&str> = open.map(|(name, _)| *name).collect();
        (!open.is_empty()).then(|| format!("waiting for: {}", open.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_all_is_met_and_until_it_stops() {
        let health = Health::new(&["identity", "watches"]);
        assert_eq!(health.missing().as_deref(), Some("waiting for: identity, watches"));
        health.condition("watches").cancel();
        health.met("unknown");
        assert_eq!(health.missing().as_deref(), Some("waiting for: identity"));
        health.met("identity");
        assert!(health.is_ready());
        health.stop();
        assert_eq!(health.missing().as_deref(), Some("shutting down"));
    }
}
