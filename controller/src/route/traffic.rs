//! From the traffic a Route asks for to revisions.

use ebb_api::conditions::{Conditioned, ConditionedObject};
use ebb_api::networking::ProtocolType;
use ebb_api::serving::{Configuration, Revision, Route, RouteStatus};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One target of the spec, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its tag.
    pub tag: Option<String>,
    /// The revision it leads to.
    pub revision: String,
    /// The Configuration that it follows, or that made the revision.
    pub configuration: Option<String>,
    /// Whether it follows the latest ready revision.
    pub latest: bool,
    /// Its share.
    pub percent: i64,
    /// The revision's protocol.
    pub protocol: ProtocolType,
}

/// All targets, in the order of the spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The targets.
    pub targets: Vec<Target>,
}

/// Why a target cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no such object: kind and name.
    Missing(&'static str, String),
    /// The Configuration has no ready revision, and whether that is final.
    Configuration(String, bool),
    /// The revision is not ready, and whether that is final.
    Revision(String, bool),
}

impl Problem {
    /// Notes it in the status.
    pub fn mark(&self, status: &mut RouteStatus, now: Timestamp) {
        const TYPE: &str = "AllTrafficAssigned";
        let mut manager = status.manage(now);
        match self {
            Self::Missing(kind, name) => {
                let message = format!("{kind} {name:?} referenced in traffic not found.");
                manager.mark_false(TYPE, &format!("{kind}Missing"), &message)
            }
            Self::Configuration(name, true) => {
                let message = format!("Configuration {name:?} does not have any ready Revision.");
                manager.mark_false(TYPE, "RevisionMissing", &message)
            }
            Self::Configuration(name, false) => {
                let message = format!("Configuration {name:?} is waiting for a Revision to become ready.");
                manager.mark_unknown(TYPE, "RevisionMissing", &message)
            }
            Self::Revision(name, true) => {
                let message = format!("Revision {name:?} failed to become ready.");
                manager.mark_false(TYPE, "RevisionMissing", &message)
            }
            Self::Revision(name, false) => {
                let message = format!("Revision {name:?} is not yet ready.");
                manager.mark_unknown(TYPE, "RevisionMissing", &message)
            }
        };
    }

    /// A missing object is worse than a failed one, and that worse than one that is not ready yet.
    fn rank(&self) -> u8 {
        match self {
            Self::Missing(..) => 2,
            Self::Configuration(_, last) | Self::Revision(_, last) => u8::from(*last),
        }
    }
}

/// Resolves the targets of a Route, all or none.
///
/// # Errors
/// The worst problem.
pub(super) fn resolve(
    route: &Route,
    configurations: &BTreeMap<String, Arc<Configuration>>,
    revisions: &BTreeMap<String, Arc<Revision>>,
) -> Result<Resolved, Problem> {
    let mut resolved = Resolved::default();
    let mut worst: Option<Problem> = None;
    for target in &route.spec.traffic {
        let set = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
        let found = match (set(&target.revision_name), set(&target.configuration_name)) {
            (Some(name), _) => by_revision(&name, revisions).map(|r| (name, false, r)),
            (None, Some(name)) => {
                by_configuration(&name, configurations, revisions).map(|(n, r)| (n, true, r))
            }
            (None, None) => continue,
        };
        match found {
            Ok((revision, latest, object)) => resolved.targets.push(Target {
                tag: set(&target.tag),
                configuration: set(&target.configuration_name).or_else(|| {
                    crate::plan::controller_of(&object.metadata, "Configuration").map(|o| o.name.clone())
                }),
                protocol: object.spec.user_port().protocol,
                percent: target.percent.unwrap_or_default(),
                revision,
                latest,
            }),
            Err(problem) => {
                if worst.as_ref().is_none_or(|w| problem.rank() > w.rank()) {
                    worst = Some(problem);
                }
            }
        }
    }
    worst.map_or(Ok(resolved), Err)
}

fn by_revision(name: &str, revisions: &BTreeMap<String, Arc<Revision>>) -> Result<Arc<Revision>, Problem> {
    match revisions.get(name).filter(|r| r.metadata.deletion_timestamp.is_none()) {
        None => Err(Problem::Missing("Revision", name.to_owned())),
        Some(found) if found.is_ready() => Ok(found.clone()),
        // It works all the same where it has been Ready and only its pods are in trouble just now.
        Some(found) => Err(Problem::Revision(name.to_owned(), found.is_failed())),
    }
}

fn by_configuration(
    name: &str,
    configurations: &BTreeMap<String, Arc<Configuration>>,
    revisions: &BTreeMap<String, Arc<Revision>>,
) -> Result<(String, Arc<Revision>), Problem> {
    let Some(found) = configurations.get(name).filter(|c| c.metadata.deletion_timestamp.is_none()) else {
        return Err(Problem::Missing("Configuration", name.to_owned()));
    };
    let latest = found.status.as_ref().and_then(|s| s.latest_ready_revision_name.clone());
    let Some(latest) = latest else { return Err(Problem::Configuration(name.to_owned(), found.is_failed())) };
    match revisions.get(&latest) {
        Some(revision) => Ok((latest, revision.clone())),
        None => Err(Problem::Missing("Revision", latest)),
    }
}
