//! `config-leader-election`: how replicas of a component share the work.

use std::time::Duration;

use super::reader::Reader;
use super::{ConfigError, Data};

/// The lease's times and the number of shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderElection {
    /// How long a lease holds.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it steps down.
    pub renew_deadline: Duration,
    /// How often.
    pub retry_period: Duration,
    /// Into how many shards the keys are divided.
    pub buckets: i32,
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            // As Kubernetes' own components have it, and not 60 s, 40 s, 10 s as Knative's: after a leader was killed, scaling and
            // reconciling wait for the next one, and an exchange with the API server every two seconds costs nothing.
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            buckets: 1,
        }
    }
}

impl LeaderElection {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut r = Reader::new(data);
        r.duration("lease-duration", &mut c.lease_duration);
        r.duration("renew-deadline", &mut c.renew_deadline);
        r.duration("retry-period", &mut c.retry_period);
        r.int32("buckets", &mut c.buckets);
        r.check((1..=10).contains(&c.buckets), "buckets", || {
            format!("must be between 1 and 10, was: {}", c.buckets)
        });
        r.check(c.renew_deadline < c.lease_duration, "renew-deadline", || {
            "must be shorter than lease-duration".into()
        });
        r.check(c.retry_period < c.renew_deadline, "retry-period", || {
            "must be shorter than renew-deadline".into()
        });
        r.finish(c)
    }
}
