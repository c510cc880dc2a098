//! The last changes of one kind, bounded in number and bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Event, Expired};

/// Changes kept for each kind, whatever their size.
const MAX_EVENTS: usize = 4096;
/// Bytes of JSON kept for each kind, once more than [`MIN_EVENTS`] are held.
const MAX_BYTES: usize = 4 << 20;
/// Changes kept even if they are large.
const MIN_EVENTS: usize = 128;

/// A ring of changes.
pub(super) struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Every change after this revision is here.
    oldest: u64,
}

impl History {
    pub(super) fn new(oldest: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, oldest }
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    pub(super) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.object.json.len();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.events.len() > MIN_EVENTS) {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= dropped.object.json.len();
            self.oldest = dropped.object.revision;
        }
    }

    pub(super) fn after(&self, revision: u64) -> Result<Vec<Arc<Event>>, Expired> {
        if revision < self.oldest {
            return Err(Expired { oldest: self.oldest });
        }
        let from = self.events.partition_point(|event| event.object.revision <= revision);
        Ok(self.events.range(from..).cloned().collect())
    }
}
