//! Replacing a root without a lost request.
//!
//! A workload learns roots when it renews, so at any moment some know only the bundle of one lifetime ago. Therefore:
//!
//! 1. **Announce**: the bundle holds both roots, the old one signs. After one lifetime (and a margin) all know both.
//! 2. **Switch**: the new one signs. After another lifetime no certificate of the old one is valid.
//! 3. **Retire**: the bundle holds the new root only.
//!
//! Between any two moments less than a lifetime apart, whatever one workload shows another one trusts. Going back is
//! possible until step 3. The plan is a pure function of what is stored, so that a restart in the middle goes on.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::MaterialPem;
use crate::error::Error;

/// What the host keeps, in its Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Signs now.
    pub current: MaterialPem,
    /// Is being announced, or has just taken over.
    pub rotation: Option<Rotation>,
}

/// A rotation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// The material that is not signing: the coming one before the switch, the leaving one after.
    pub other: MaterialPem,
    /// Whether the switch has been made.
    pub switched: bool,
    /// Seconds since the Unix epoch at which this step began.
    pub since: u64,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time; `None` when no rotation is under way.
    Wait(Option<SystemTime>),
    /// Store this and give [`signing`] of it to the authority.
    Store(Box<Stored>),
}

/// What the authority signs with and publishes for `stored`.
///
/// # Errors
/// When the stored bundles cannot be read.
pub fn signing(stored: &Stored) -> Result<MaterialPem, Error> {
    match &stored.rotation {
        Some(rotation) => stored.current.trusting(&rotation.other),
        None => Ok(stored.current.clone()),
    }
}

/// Begins a rotation to `next`. Returns `None` when one is under way: finish it first.
pub fn begin(stored: &Stored, next: MaterialPem, now: SystemTime) -> Option<Stored> {
    if stored.rotation.is_some() {
        return None;
    }
    let rotation = Rotation { other: next, switched: false, since: seconds(now) };
    Some(Stored { current: stored.current.clone(), rotation: Some(rotation) })
}

/// The next step at `now`; `ttl` is the lifetime of workload certificates.
pub fn plan(stored: &Stored, ttl: Duration, now: SystemTime) -> Step {
    let Some(rotation) = &stored.rotation else { return Step::Wait(None) };
    let due = SystemTime::UNIX_EPOCH + Duration::from_secs(rotation.since) + ttl + ttl / 10;
    if now < due {
        return Step::Wait(Some(due));
    }
    Step::Store(Box::new(if rotation.switched {
        Stored { current: stored.current.clone(), rotation: None }
    } else {
        let rotation_on = Rotation { other: stored.current.clone(), switched: true, since: seconds(now) };
        Stored { current: rotation.other.clone(), rotation: Some(rotation_on) }
    }))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
