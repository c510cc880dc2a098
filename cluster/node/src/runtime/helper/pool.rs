//! Processes kept ready for containers. The pool is filled in quiet moments: a start in progress needs the processor more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::runtime::parked::{Setup, Space, Spawned, park};
use crate::runtime::protocol::HelperConfig;

/// How long after the last start the pool is filled.
const QUIET: Duration = Duration::from_millis(50);
/// And when it is empty.
const EMPTY: Duration = Duration::from_millis(5);

pub(super) struct Pool {
    parked: VecDeque<Spawned>,
    wanted: usize,
    /// `PARENT/NAME` of cgroups, to which a number is added; None without cgroups.
    cgroup: Option<String>,
    made: u64,
    /// Not before.
    fill_at: Instant,
}

impl Pool {
    pub(super) fn new(config: &HelperConfig) -> Self {
        let name = format!("{}-{}", config.name, std::process::id());
        Self {
            parked: VecDeque::new(),
            wanted: config.parked,
            cgroup: config.cgroup_parent.as_ref().map(|parent| format!("{parent}/{name}")),
            made: 0,
            // Whoever starts a helper is busy starting other things too.
            fill_at: Instant::now() + QUIET,
        }
    }

    /// One that waits; none for a container that sees other processes than its own.
    pub(super) fn take(&mut self, space: &Space) -> Option<Spawned> {
        let taken = if matches!(space, Space::Own) { self.parked.pop_front() } else { None };
        self.fill_at = Instant::now() + if self.parked.is_empty() { EMPTY } else { QUIET };
        taken
    }

    pub(super) fn make(&mut self, setup: &Setup, space: &Space) -> Result<Spawned, String> {
        self.made += 1;
        let cgroup = self.cgroup.as_ref().map(|cgroup| format!("{cgroup}-{}", self.made));
        park(setup, cgroup, space).map_err(|error| format!("cannot make a process for a container: {error}"))
    }

    /// How long until there is something to fill; None if it is full.
    pub(super) fn wait(&self) -> Option<Duration> {
        (self.parked.len() < self.wanted).then(|| self.fill_at.saturating_duration_since(Instant::now()))
    }

    /// Makes one if it is time for that.
    pub(super) fn fill(&mut self, setup: &Setup, now: Instant) {
        if self.parked.len() >= self.wanted || now < self.fill_at {
            return;
        }
        match self.make(setup, &Space::Own) {
            Ok(spawned) => self.parked.push_back(spawned),
            // Not enough processes or memory: a start that comes now will say so.
            Err(_) => self.fill_at = now + Duration::from_secs(1),
        }
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Spawned> {
        self.parked.drain(..)
    }
}
