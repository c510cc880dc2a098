//! Conditions by the rule "one happy condition and its dependents".
//!
//! `Ready` is True when every dependent is True, False as soon as one dependent is False, and Unknown else; it carries the
//! reason and message of the dependent that decided. Conditions outside the dependents are informational and do not count.
//! A condition's `lastTransitionTime` moves only when its status does, so that an unchanged object is never written again.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of the happy condition of every kind here.
pub const READY: &str = "Ready";

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Status {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Not known yet.
    #[default]
    Unknown,
}

/// How bad it is if a condition is False.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Severity {
    /// The object does not work. Not written out.
    #[default]
    #[serde(rename = "", alias = "Error")]
    Error,
    /// The object may not work as it should.
    Warning,
    /// For information only.
    Info,
}

impl Severity {
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it so
    fn is_error(&self) -> bool {
        *self == Self::Error
    }
}

/// One observation about an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about.
    #[serde(rename = "type")]
    pub type_: String,
    /// Whether it holds.
    pub status: Status,
    /// How bad it is if it does not.
    #[serde(default, skip_serializing_if = "Severity::is_error")]
    #[schemars(schema_with = "crate::schema::severity")]
    pub severity: Severity,
    /// When the status last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
    /// Why, in one word of CamelCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A status that has conditions.
pub trait Conditioned {
    /// The types that decide about `Ready`.
    const DEPENDENTS: &'static [&'static str];
    /// The conditions, sorted by type.
    fn conditions(&self) -> &[Condition];
    /// The conditions, to be changed through a [`Manager`].
    fn conditions_mut(&mut self) -> &mut Vec<Condition>;
    /// The generation that the status speaks about.
    fn observed_generation(&self) -> Option<i64>;
    /// Sets the generation that the status speaks about.
    fn set_observed_generation(&mut self, generation: Option<i64>);

    /// The condition of a type.
    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions().iter().find(|c| c.type_ == type_)
    }

    /// Whether the condition of a type is True.
    fn is_true(&self, type_: &str) -> bool {
        self.condition(type_).is_some_and(|c| c.status == Status::True)
    }

    /// Whether the condition of a type is False.
    fn is_false(&self, type_: &str) -> bool {
        self.condition(type_).is_some_and(|c| c.status == Status::False)
    }

    /// Starts changing the conditions at the time `now`.
    fn manage(&mut self, now: Timestamp) -> Manager<'_>
    where
        Self: Sized,
    {
        Manager::new(self.conditions_mut(), Self::DEPENDENTS, now)
    }
}

/// An object whose status has conditions.
pub trait ConditionedObject {
    /// Its status type.
    type Status: Conditioned + Default + Clone;
    /// Its status, if there is one yet.
    fn status_ref(&self) -> Option<&Self::Status>;
    /// Its metadata's generation.
    fn generation(&self) -> Option<i64>;

    /// Whether the object is Ready and its status speaks about its present spec.
    fn is_ready(&self) -> bool {
        self.status_ref().is_some_and(|s| s.is_true(READY) && s.observed_generation() == self.generation())
    }

    /// Whether the object is not Ready, as said about its present spec.
    fn is_failed(&self) -> bool {
        self.status_ref().is_some_and(|s| s.is_false(READY) && s.observed_generation() == self.generation())
    }

    /// The condition of a type.
    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status_ref().and_then(|s| s.condition(type_))
    }
}

/// Implements the traits of this module for a kind and its status.
macro_rules! conditioned {
    ($kind:ty, $status:ty, [$($dependent:literal),* $(,)?]) => {
        impl $crate::conditions::Conditioned for $status {
            const DEPENDENTS: &'static [&'static str] = &[$($dependent),*];
            fn conditions(&self) -> &[$crate::conditions::Condition] {
                &self.conditions
            }
            fn conditions_mut(&mut self) -> &mut Vec<$crate::conditions::Condition> {
                &mut self.conditions
            }
            fn observed_generation(&self) -> Option<i64> {
                self.observed_generation
            }
            fn set_observed_generation(&mut self, generation: Option<i64>) {
                self.observed_generation = generation;
            }
        }
        impl $crate::conditions::ConditionedObject for $kind {
            type Status = $status;
            fn status_ref(&self) -> Option<&$status> {
                self.status.as_ref()
            }
            fn generation(&self) -> Option<i64> {
                self.metadata.generation
            }
        }
    };
}
pub(crate) use conditioned;

/// Changes a list of conditions and keeps `Ready` in step.
pub struct Manager<'a> {
    conditions: &'a mut Vec<Condition>,
    dependents: &'static [&'static str],
    now: Timestamp,
}

impl<'a> Manager<'a> {
    /// Manages `conditions`, whose `dependents` decide about `Ready`.
    pub fn new(
        conditions: &'a mut Vec<Condition>,
        dependents: &'static [&'static str],
        now: Timestamp,
    ) -> Self {
        // Kubernetes writes whole seconds; a finer time would differ from what is read back.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Self { conditions, dependents, now }
    }

    /// Makes sure that `Ready` and each dependent exist, as Unknown. If `Ready` is already True, a dependent that is
    /// missing (a newer version added it) is taken to be True.
    pub fn initialize(&mut self) -> &mut Self {
        let happy = self.get(READY).map(|c| c.status);
        if happy.is_none() {
            self.put(READY, Status::Unknown, Severity::Error, None, None);
        }
        for dependent in self.dependents {
            if self.get(dependent).is_none() {
                let status = if happy == Some(Status::True) { Status::True } else { Status::Unknown };
                self.put(dependent, status, Severity::Error, None, None);
            }
        }
        self
    }

    /// Says that a condition holds.
    pub fn mark_true(&mut self, type_: &str) -> &mut Self {
        self.put(type_, Status::True, self.severity_of(type_), None, None);
        self.recompute();
        self
    }

    /// Says that a condition holds, with a reason (for conditions that are informational).
    pub fn mark_true_because(&mut self, type_: &str, reason: &str, message: &str) -> &mut Self {
        self.put(type_, Status::True, self.severity_of(type_), Some(reason), Some(message));
        self.recompute();
        self
    }

    /// Says that a condition does not hold.
    pub fn mark_false(&mut self, type_: &str, reason: &str, message: &str) -> &mut Self {
        self.put(type_, Status::False, self.severity_of(type_), Some(reason), Some(message));
        self.recompute();
        self
    }

    /// Says that nothing is known about a condition, or not yet.
    pub fn mark_unknown(&mut self, type_: &str, reason: &str, message: &str) -> &mut Self {
        self.put(type_, Status::Unknown, self.severity_of(type_), Some(reason), Some(message));
        self.recompute();
        self
    }

    /// Carries over a condition of another object under a type of this one. An absent one counts as Unknown.
    pub fn propagate(&mut self, type_: &str, from: Option<&Condition>) -> &mut Self {
        let status = from.map_or(Status::Unknown, |c| c.status);
        let (reason, message) = from.map_or((None, None), |c| (c.reason.as_deref(), c.message.as_deref()));
        self.put(type_, status, self.severity_of(type_), reason, message);
        self.recompute();
        self
    }

    /// Removes a condition that is not a dependent.
    pub fn clear(&mut self, type_: &str) -> &mut Self {
        if type_ != READY && !self.dependents.contains(&type_) {
            self.conditions.retain(|c| c.type_ != type_);
        }
        self
    }

    /// The condition of a type.
    #[must_use]
    pub fn get(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.type_ == type_)
    }

    fn severity_of(&self, type_: &str) -> Severity {
        if type_ == READY || self.dependents.contains(&type_) { Severity::Error } else { Severity::Info }
    }

    fn put(
        &mut self,
        type_: &str,
        status: Status,
        severity: Severity,
        reason: Option<&str>,
        message: Option<&str>,
    ) {
        let mut next = Condition {
            type_: type_.to_owned(),
            status,
            severity,
            last_transition_time: Some(Time(self.now)),
            reason: reason.filter(|r| !r.is_empty()).map(str::to_owned),
            message: message.filter(|m| !m.is_empty()).map(str::to_owned),
        };
        match self.conditions.binary_search_by(|c| c.type_.as_str().cmp(type_)) {
            Ok(at) => {
                if self.conditions[at].status == status && self.conditions[at].last_transition_time.is_some()
                {
                    next.last_transition_time.clone_from(&self.conditions[at].last_transition_time);
                }
                self.conditions[at] = next;
            }
            Err(_) => {
                self.conditions.push(next);
                self.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
                self.conditions.dedup_by(|a, b| a.type_ == b.type_);
            }
        }
    }

    /// Works out `Ready` from the dependents. Among several that are False (or Unknown) one that gives a reason speaks, of those one that
    /// gives a message, and of those the first as they are declared.
    fn recompute(&mut self) {
        if self.dependents.is_empty() {
            return;
        }
        let rank = |c: &Condition| {
            let bad = match c.status {
                Status::False => 2,
                Status::Unknown => 1,
                Status::True => 0,
            };
            (bad, c.reason.is_some(), c.message.is_some())
        };
        // Of equals the first: dependents are declared in the order in which one is the cause of the next, and which of them was written
        // last says nothing about that.
        let mut worst: Option<&Condition> = None;
        for found in self.dependents.iter().filter_map(|d| self.get(d)).filter(|c| c.status != Status::True) {
            if worst.is_none_or(|w| rank(found) > rank(w)) {
                worst = Some(found);
            }
        }
        let missing = self.dependents.iter().any(|d| self.get(d).is_none());
        let (status, reason, message) = match worst {
            Some(w) => (w.status, w.reason.clone(), w.message.clone()),
            None if missing => (Status::Unknown, None, None),
            None => (Status::True, None, None),
        };
        self.put(READY, status, Severity::Error, reason.as_deref(), message.as_deref());
    }
}

#[cfg(test)]
mod tests;
