//! Why a decision is what it is, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::{Metric, Observed, Spec};

/// What held a wish up or down, with the number it ended at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "limit", content = "at")]
pub enum Limit {
    /// max-scale-up-rate.
    UpRate(u32),
    /// max-scale-down-rate.
    DownRate(u32),
    /// activation-scale.
    ActivationScale(u32),
    /// Panic mode: the larger of both windows, and never less than before.
    Panic(u32),
    /// scale-down-delay.
    ScaleDownDelay(u32),
    /// initial-scale, until it was reached once.
    InitialScale(u32),
    /// min-scale.
    MinScale(u32),
    /// max-scale.
    MaxScale(u32),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::UpRate(at) => write!(f, "max-scale-up-rate allows {at}"),
            Limit::DownRate(at) => write!(f, "max-scale-down-rate allows {at}"),
            Limit::ActivationScale(at) => write!(f, "raised to activation-scale {at}"),
            Limit::Panic(at) => write!(f, "panic mode holds at least {at}"),
            Limit::ScaleDownDelay(at) => write!(f, "scale-down-delay keeps {at}"),
            Limit::InitialScale(at) => write!(f, "raised to initial-scale {at}"),
            Limit::MinScale(at) => write!(f, "raised to min-scale {at}"),
            Limit::MaxScale(at) => write!(f, "cut to max-scale {at}"),
        }
    }
}

/// The numbers behind a decision. Its `Display` is one line for a person.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    /// Whether anything was measured; without, the decision is to leave things as they are.
    pub known: bool,
    /// What is measured.
    #[serde(skip)]
    pub metric: Metric,
    /// Average over the stable window.
    pub stable: f64,
    /// Average over the panic window.
    pub panic: f64,
    /// What one pod is aimed at.
    pub target: f64,
    /// Pods ready at that moment.
    pub ready: u32,
    /// Pods wanted by the stable window alone.
    pub want_stable: u32,
    /// Pods wanted by the panic window alone.
    pub want_panic: u32,
    /// What changed the wish on its way, in order.
    pub limits: Vec<Limit>,
}

impl Reason {
    pub(super) fn new(spec: &Spec, ready: u32, observed: Observed) -> Self {
        Self {
            known: true,
            metric: spec.metric,
            stable: observed.stable,
            panic: observed.panic,
            target: spec.target,
            ready,
            want_stable: 0,
            want_panic: 0,
            limits: Vec::new(),
        }
    }

    pub(super) fn nothing_known(ready: u32) -> Self {
        Self {
            known: false,
            metric: Metric::default(),
            stable: 0.0,
            panic: 0.0,
            target: 0.0,
            ready,
            want_stable: 0,
            want_panic: 0,
            limits: Vec::new(),
        }
    }

    pub(super) fn limit(&mut self, limit: Limit) {
        self.limits.push(limit);
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.known {
            return write!(f, "no load measured in a stable window, left as it is ({} ready)", self.ready);
        }
        write!(
            f,
            "{} {:.2} (panic window {:.2}) at {:.2} per pod wants {} (panic {}) with {} ready",
            self.metric, self.stable, self.panic, self.target, self.want_stable, self.want_panic, self.ready
        )?;
        for limit in &self.limits {
            write!(f, "; {limit}")?;
        }
        Ok(())
    }
}
