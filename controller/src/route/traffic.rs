//! From the traffic a Route asks for to revisions.

use ebb_api::conditions::{Conditioned, ConditionedObject};
use ebb_api::meta::serving as keys;
use ebb_api::networking::ProtocolType;
use ebb_api::serving::{Configuration, Revision, Route, RouteStatus};
use jiff::Timestamp;
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::plan::label;

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

/// All targets, in the order of the spec. Those of one revision, tag and kind are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The targets.
    pub targets: Vec<Target>,
}

impl Resolved {
    /// All tags, sorted.
    pub(super) fn tags(&self) -> BTreeSet<&str> {
        self.targets.iter().filter_map(|t| t.tag.as_deref()).collect()
    }

    /// The revisions behind one host, each once: all of them behind the Route's own, those of the tag behind a tag's. A sole one gets
    /// everything, whatever its share of the Route is.
    pub(super) fn group(&self, tag: Option<&str>) -> Vec<Target> {
        let mut group: Vec<Target> = Vec::new();
        for target in self.targets.iter().filter(|t| tag.is_none() || t.tag.as_deref() == tag) {
            match group.iter_mut().find(|t| t.revision == target.revision) {
                Some(same) => same.percent += target.percent,
                None => group.push(target.clone()),
            }
        }
        if let [only] = group.as_mut_slice() {
            only.percent = 100;
        }
        group
    }

    fn add(&mut self, target: Target) {
        let same = self
            .targets
            .iter_mut()
            .find(|t| (&t.revision, &t.tag, t.latest) == (&target.revision, &target.tag, target.latest));
        match same {
            Some(same) => same.percent += target.percent,
            None => self.targets.push(target),
        }
    }
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
    /// The revision is of another Service than the Route: its name, the Route's Service, and its own.
    NotOwned(String, String, Option<String>),
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
            Self::NotOwned(name, service, own) => {
                let message = match own {
                    Some(own) => {
                        format!("Revision {name:?} belongs to Service {own:?}, not Service {service:?}.")
                    }
                    None => format!("Revision {name:?} does not belong to Service {service:?}."),
                };
                manager.mark_false(TYPE, "RevisionNotOwned", &message)
            }
        };
    }

    /// Whether waiting will not help.
    fn is_final(&self) -> bool {
        match self {
            Self::Missing(..) | Self::NotOwned(..) => true,
            Self::Configuration(_, last) | Self::Revision(_, last) => *last,
        }
    }
}

/// Resolves the targets of a Route, all or none.
///
/// # Errors
/// The last problem that is final, else the first.
pub(super) fn resolve(
    route: &Route,
    configurations: &BTreeMap<String, Arc<Configuration>>,
    revisions: &BTreeMap<String, Arc<Revision>>,
) -> Result<Resolved, Problem> {
    let mut resolved = Resolved::default();
    let mut worst: Option<Problem> = None;
    let service = label(&route.metadata, keys::SERVICE);
    for target in &route.spec.traffic {
        let set = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
        let found = match (set(&target.revision_name), set(&target.configuration_name)) {
            (Some(name), _) => by_revision(&name, service, configurations, revisions).map(|r| (false, r)),
            (None, Some(name)) => {
                by_configuration(&name, configurations, revisions).map(|r| (true, r)).map_err(|why| match why
                {
                    // A Service makes both: news of the Route may come before those of its Configuration.
                    Problem::Missing("Configuration", _) if service == Some(&name) => {
                        Problem::Configuration(name, false)
                    }
                    why => why,
                })
            }
            (None, None) => continue,
        };
        match found {
            Ok((latest, object)) => resolved.add(Target {
                tag: set(&target.tag),
                configuration: label(&object.metadata, keys::CONFIGURATION)
                    .map(str::to_owned)
                    .or_else(|| set(&target.configuration_name)),
                protocol: object.spec.user_port().protocol,
                percent: target.percent.unwrap_or_default(),
                revision: object.name_any(),
                latest,
            }),
            Err(problem) => {
                if worst.is_none() || problem.is_final() {
                    worst = Some(problem);
                }
            }
        }
    }
    worst.map_or(Ok(resolved), Err)
}

fn ready(name: &str, revisions: &BTreeMap<String, Arc<Revision>>) -> Result<Arc<Revision>, Problem> {
    match revisions.get(name).filter(|r| r.metadata.deletion_timestamp.is_none()) {
        None => Err(Problem::Missing("Revision", name.to_owned())),
        Some(found) if found.is_ready() => Ok(found.clone()),
        Some(found) => Err(Problem::Revision(name.to_owned(), found.is_failed())),
    }
}

fn by_revision(
    name: &str,
    service: Option<&str>,
    configurations: &BTreeMap<String, Arc<Configuration>>,
    revisions: &BTreeMap<String, Arc<Revision>>,
) -> Result<Arc<Revision>, Problem> {
    if let (Some(service), Some(found)) = (service, revisions.get(name)) {
        let own = label(&found.metadata, keys::SERVICE);
        if own != Some(service) {
            return Err(Problem::NotOwned(name.to_owned(), service.to_owned(), own.map(str::to_owned)));
        }
    }
    let found = ready(name, revisions)?;
    match label(&found.metadata, keys::CONFIGURATION) {
        Some(owner) if !configurations.contains_key(owner) => {
            Err(Problem::Missing("Configuration", owner.to_owned()))
        }
        _ => Ok(found),
    }
}

fn by_configuration(
    name: &str,
    configurations: &BTreeMap<String, Arc<Configuration>>,
    revisions: &BTreeMap<String, Arc<Revision>>,
) -> Result<Arc<Revision>, Problem> {
    let Some(found) = configurations.get(name).filter(|c| c.metadata.deletion_timestamp.is_none()) else {
        return Err(Problem::Missing("Configuration", name.to_owned()));
    };
    let latest = found.status.as_ref().and_then(|s| s.latest_ready_revision_name.clone());
    let Some(latest) = latest else { return Err(Problem::Configuration(name.to_owned(), found.is_failed())) };
    ready(&latest, revisions)
}
