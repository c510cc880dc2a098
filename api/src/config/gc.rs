//! `config-gc`: which revisions without traffic are deleted.

use std::time::Duration;

use super::reader::Reader;
use super::{ConfigError, Data};
use crate::duration;

/// When a revision that no Route leads to may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gc {
    /// Kept at least this long after it was made; none for ever.
    pub retain_since_create_time: Option<Duration>,
    /// Kept at least this long after traffic last went there; none for ever.
    pub retain_since_last_active_time: Option<Duration>,
    /// This many are kept whatever their age.
    pub min_non_active_revisions: i64,
    /// No more than this many are kept, whatever their age; none for no bound.
    pub max_non_active_revisions: Option<i64>,
}

impl Default for Gc {
    fn default() -> Self {
        Self {
            retain_since_create_time: Some(Duration::from_secs(48 * 3600)),
            retain_since_last_active_time: Some(Duration::from_secs(15 * 3600)),
            min_non_active_revisions: 20,
            max_non_active_revisions: Some(1000),
        }
    }
}

impl Gc {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut c = Self::default();
        let mut r = Reader::new(data);
        for (key, target) in [
            ("retain-since-create-time", &mut c.retain_since_create_time),
            ("retain-since-last-active-time", &mut c.retain_since_last_active_time),
        ] {
            match r.raw(key) {
                None => {}
                Some("disabled") => *target = None,
                Some(raw) => match duration::parse(raw) {
                    Some(found) => *target = Some(found),
                    None => r.fail(key, format!("{raw:?} is neither a duration nor disabled")),
                },
            }
        }
        r.int64("min-non-active-revisions", &mut c.min_non_active_revisions);
        match r.raw("max-non-active-revisions") {
            None => {}
            Some("disabled") => c.max_non_active_revisions = None,
            Some(raw) => match raw.parse::<i64>() {
                Ok(n) if n >= 0 => c.max_non_active_revisions = Some(n),
                _ => r.fail(
                    "max-non-active-revisions",
                    format!("{raw:?} is neither a number from 0 nor disabled"),
                ),
            },
        }
        let (least, most) = (c.min_non_active_revisions, c.max_non_active_revisions);
        r.check(least >= 0, "min-non-active-revisions", || format!("must be non-negative, was: {least}"));
        r.check(most.is_none_or(|m| least <= m), "min-non-active-revisions", || {
            format!("({least}) must be <= max-non-active-revisions({})", most.unwrap_or_default())
        });
        r.finish(c)
    }
}
