//! What to do next for one Deployment.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec},
    jiff::Timestamp,
};
use serde_json::{Value, json};

pub(crate) use super::revision::same_template;
use super::{COMPONENT, revision, rolling, status};
use crate::{events::Draft, meta};

/// What is known of one Deployment.
pub(crate) struct Observed {
    pub(crate) deployment: Arc<Deployment>,
    /// Those it controls, and orphans that it selects.
    pub(crate) replica_sets: Vec<Arc<ReplicaSet>>,
    /// For strategy Recreate: uids of the sets that have pods which have not ended.
    pub(crate) sets_with_pods: Vec<String>,
}

/// One write.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Action {
    Create(Box<ReplicaSet>),
    /// A JSON merge patch of the ReplicaSet of this name.
    Patch {
        name: String,
        patch: Value,
    },
    Delete(Arc<ReplicaSet>),
    /// The revision that the Deployment is annotated with.
    Revision(String),
}

/// The next step.
#[derive(Default, Debug)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// Set if the status changes.
    pub(crate) status: Option<DeploymentStatus>,
    pub(crate) events: Vec<Draft>,
    /// When to plan again if nothing changes before.
    pub(crate) again: Option<Duration>,
}

/// Plans the next step of a Deployment.
pub(crate) fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let deployment = observed.deployment.as_ref();
    let Some(spec) = &deployment.spec else { return Plan::default() };
    let mut plan = Plan::default();
    if deployment.metadata.deletion_timestamp.is_none() {
        claim(observed, &mut plan);
        if !plan.actions.is_empty() {
            return plan;
        }
    }
    let mut sets: Vec<ReplicaSet> = observed.replica_sets.iter().map(|set| set.as_ref().clone()).collect();
    // The oldest comes first; of equal templates the oldest is the new set.
    sets.sort_by(|a, b| {
        let age = |set: &ReplicaSet| (meta::created(set), set.metadata.name.clone());
        age(a).cmp(&age(b))
    });
    let new = sets.iter().position(|set| same_template(deployment, set));
    let base = deployment.status.clone().unwrap_or_default();
    let mut step = Step { deployment, now, sets, new, base: base.clone(), plan };

    if deployment.metadata.deletion_timestamp.is_some() {
        step.status_only();
    } else if spec.paused == Some(true) {
        step.pause_condition(true);
        step.ensure_new(false);
        step.scale();
        step.forget_history();
        step.status_only();
    } else {
        step.pause_condition(false);
        if step.was_scaled() {
            step.ensure_new(false);
            step.scale();
            step.status_only();
        } else if rolling::is_recreate(deployment) {
            step.recreate(&observed.sets_with_pods);
        } else {
            step.roll();
        }
    }
    let mut plan = step.plan;
    if let Some(status) = &plan.status {
        plan.again = status::look_again(deployment, status, now);
    }
    plan.status = plan.status.filter(|status| *status != base);
    plan
}

/// Takes orphans that the selector selects, and lets go of those that it no longer does.
fn claim(observed: &Observed, plan: &mut Plan) {
    let deployment = observed.deployment.as_ref();
    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
    for set in &observed.replica_sets {
        let selected = selector.is_some_and(|selector| meta::selects(selector, set.metadata.labels.as_ref()));
        let owned = meta::controller_of(set.as_ref()).is_some();
        if set.metadata.deletion_timestamp.is_some() || owned == selected {
            continue;
        }
        let mut owners = set.metadata.owner_references.clone().unwrap_or_default();
        if selected {
            owners.push(meta::controller_ref(deployment));
        } else {
            owners.retain(|owner| owner.uid != meta::uid(deployment));
        }
        let patch = json!({"metadata": {"ownerReferences": owners, "uid": meta::uid(set.as_ref())}});
        plan.actions.push(Action::Patch { name: meta::name(set.as_ref()).to_owned(), patch });
    }
}

/// A plan in the making. `sets` are changed along with the actions, so that what follows reckons with them.
struct Step<'a> {
    deployment: &'a Deployment,
    now: Timestamp,
    sets: Vec<ReplicaSet>,
    /// Index of the set with the present template.
    new: Option<usize>,
    base: DeploymentStatus,
    plan: Plan,
}

impl Step<'_> {
    fn wanted(&self) -> i32 {
        rolling::replicas(self.deployment)
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(rolling::size).sum()
    }

    fn active_old(&self) -> Vec<usize> {
        (0..self.sets.len()).filter(|&at| Some(at) != self.new && rolling::size(&self.sets[at]) > 0).collect()
    }

    fn new_set(&self) -> Option<&ReplicaSet> {
        self.new.map(|at| &self.sets[at])
    }

    /// Whether the Deployment's size changed since its sets were scaled last.
    fn was_scaled(&self) -> bool {
        self.sets.iter().filter(|set| rolling::size(set) > 0).any(|set| {
            let desired =
                meta::annotation(set, revision::DESIRED).and_then(|desired| desired.parse::<i32>().ok());
            desired.is_some_and(|desired| desired != self.wanted())
        })
    }

    fn pause_condition(&mut self, paused: bool) {
        if !status::has_deadline(self.deployment) {
            return;
        }
        let held = status::condition(Some(&self.base), "Progressing").and_then(|held| held.reason.clone());
        let was_paused = held.as_deref() == Some("DeploymentPaused");
        if held.as_deref() == Some("ProgressDeadlineExceeded") || paused == was_paused {
            return;
        }
        let (reason, message) = if paused {
            ("DeploymentPaused", "Deployment is paused")
        } else {
            ("DeploymentResumed", "Deployment is resumed")
        };
        status::set(&mut self.base, "Progressing", "Unknown", reason, message.to_owned(), self.now);
    }

    /// Brings annotations of the new set up to date, or makes it (if `create`).
    fn ensure_new(&mut self, create: bool) {
        let old = self.sets.iter().enumerate().filter(|(at, _)| Some(*at) != self.new);
        let revision = old.map(|(_, set)| revision::revision(set)).max().unwrap_or(0) + 1;
        let revision = match self.new {
            Some(at) => {
                let set = &mut self.sets[at];
                let annotations = revision::annotations(self.deployment, Some(set), revision);
                let ready =
                    self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
                let held = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
                let name = meta::name(set).to_owned();
                if set.metadata.annotations.as_ref() != Some(&annotations) && !annotations.is_empty()
                    || ready != held
                {
                    let patch =
                        json!({"metadata": {"annotations": annotations}, "spec": {"minReadySeconds": ready}});
                    self.plan.actions.push(Action::Patch { name: name.clone(), patch });
                    set.metadata.annotations = Some(annotations);
                }
                let revision = meta::annotation(set, revision::REVISION).unwrap_or_default().to_owned();
                if status::has_deadline(self.deployment)
                    && status::condition(Some(&self.base), "Progressing").is_none()
                {
                    let message = format!("Found new replica set \"{name}\"");
                    status::set(
                        &mut self.base,
                        "Progressing",
                        "True",
                        "FoundNewReplicaSet",
                        message,
                        self.now,
                    );
                }
                revision
            }
            None if create => {
                self.create(revision);
                revision.to_string()
            }
            None => return,
        };
        if meta::annotation(self.deployment, revision::REVISION) != Some(&revision) {
            self.plan.actions.push(Action::Revision(revision));
        }
    }

    fn create(&mut self, revision: i64) {
        let deployment = self.deployment;
        let Some(spec) = &deployment.spec else { return };
        let hash = revision::hash(&spec.template, self.base.collision_count.unwrap_or(0));
        let size = rolling::new_size(deployment, 0, self.total());
        let mut template = spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(revision::HASH.to_owned(), hash.clone());
        let mut selector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(revision::HASH.to_owned(), hash.clone());
        let mut annotations = revision::annotations(deployment, None, revision);
        annotations.extend(self.sizes());
        let mut set = ReplicaSet::default();
        set.metadata.name = Some(format!("{}-{hash}", meta::name(deployment)));
        set.metadata.namespace.clone_from(&deployment.metadata.namespace);
        set.metadata.labels = Some(labels.clone());
        set.metadata.annotations = Some(annotations);
        set.metadata.owner_references = Some(vec![meta::controller_ref(deployment)]);
        set.spec = Some(ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        });
        let name = meta::name(&set).to_owned();
        if size > 0 {
            self.scaled(&name, 0, size);
        }
        if status::has_deadline(deployment) {
            let message = format!("Created new replica set \"{name}\"");
            status::set(&mut self.base, "Progressing", "True", "NewReplicaSetCreated", message, self.now);
        }
        self.plan.actions.push(Action::Create(Box::new(set.clone())));
        self.sets.push(set);
        self.new = Some(self.sets.len() - 1);
    }

    fn sizes(&self) -> [(String, String); 2] {
        let max = self.wanted() + rolling::bounds(self.deployment).surge;
        [
            (revision::DESIRED.to_owned(), self.wanted().to_string()),
            (revision::MAX.to_owned(), max.to_string()),
        ]
    }

    fn scaled(&mut self, name: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
        self.plan.events.push(Draft::normal(self.deployment, COMPONENT, "ScalingReplicaSet", message));
    }

    /// Gives a set its size and the annotations that tell it; true if the size is another one.
    fn resize(&mut self, at: usize, to: i32) -> bool {
        let sizes = self.sizes();
        let set = &mut self.sets[at];
        let from = rolling::size(set);
        let told = sizes.iter().all(|(key, value)| meta::annotation(set, key) == Some(value));
        if from == to && told {
            return false;
        }
        let name = meta::name(set).to_owned();
        let annotations: serde_json::Map<String, Value> =
            sizes.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
        set.metadata.annotations.get_or_insert_default().extend(sizes);
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(to);
        }
        let patch = if from == to {
            json!({"metadata": {"annotations": annotations}})
        } else {
            json!({"metadata": {"annotations": annotations}, "spec": {"replicas": to}})
        };
        self.plan.actions.push(Action::Patch { name: name.clone(), patch });
        if from != to {
            self.scaled(&name, from, to);
        }
        from != to
    }

    /// Follows a change of the Deployment's size outside of a rollout's steps.
    fn scale(&mut self) {
        let active: Vec<usize> =
            (0..self.sets.len()).filter(|&at| rolling::size(&self.sets[at]) > 0).collect();
        let only = match active.as_slice() {
            [] => self.new.or_else(|| self.sets.len().checked_sub(1)),
            [one] => Some(*one),
            _ => None,
        };
        let wanted = self.wanted();
        if let Some(at) = only {
            self.resize(at, wanted);
            return;
        }
        let saturated = self.new_set().is_some_and(|set| {
            rolling::size(set) == wanted
                && rolling::available(set) == wanted
                && meta::annotation(set, revision::DESIRED) == Some(wanted.to_string().as_str())
        });
        if saturated {
            for at in self.active_old() {
                self.resize(at, 0);
            }
        } else if !rolling::is_recreate(self.deployment) {
            let mut order = active;
            let growing = wanted + rolling::bounds(self.deployment).surge > self.total();
            // Largest first; of equal ones the newer grows first and the older shrinks first. Sets are sorted by age.
            order.sort_by_key(|&at| {
                let age = if growing { std::cmp::Reverse(at) } else { std::cmp::Reverse(usize::MAX - at) };
                (std::cmp::Reverse(rolling::size(&self.sets[at])), age)
            });
            let sets: Vec<&ReplicaSet> = order.iter().map(|&at| &self.sets[at]).collect();
            let sizes = rolling::proportional(self.deployment, &sets);
            for (at, size) in order.into_iter().zip(sizes) {
                self.resize(at, size);
            }
        }
    }

    fn roll(&mut self) {
        self.ensure_new(true);
        let Some(new) = self.new else { return };
        let held = rolling::size(&self.sets[new]);
        let size = rolling::new_size(self.deployment, held, self.total());
        if !self.resize(new, size) {
            let old = self.active_old();
            let sets: Vec<&ReplicaSet> = old.iter().map(|&at| &self.sets[at]).collect();
            let sizes = rolling::shrink_old(self.deployment, &self.sets[new], &sets);
            for (at, size) in old.into_iter().zip(sizes) {
                if size != rolling::size(&self.sets[at]) {
                    self.resize(at, size);
                }
            }
        }
        self.finish();
    }

    fn recreate(&mut self, with_pods: &[String]) {
        self.ensure_new(false);
        let old = self.active_old();
        if !old.is_empty() {
            for at in old {
                self.resize(at, 0);
            }
            return self.finish();
        }
        let others = self.sets.iter().enumerate().filter(|(at, _)| Some(*at) != self.new);
        let lingering =
            others.map(|(_, set)| meta::uid(set)).any(|uid| with_pods.iter().any(|held| held == uid));
        if !lingering {
            self.ensure_new(true);
            if let Some(new) = self.new {
                self.resize(new, self.wanted());
            }
        }
        self.finish();
    }

    fn finish(&mut self) {
        let all: Vec<&ReplicaSet> = self.sets.iter().collect();
        let status = status::rollout(self.deployment, &self.base, self.new_set(), &all, self.now);
        if status::is_complete(self.deployment, &status) {
            self.forget_history();
        }
        self.plan.status = Some(status);
    }

    fn status_only(&mut self) {
        let all: Vec<&ReplicaSet> = self.sets.iter().collect();
        self.plan.status = Some(status::counted(self.deployment, &self.base, self.new_set(), &all, self.now));
    }

    /// Deletes the oldest sets that are idle, beyond revisionHistoryLimit.
    fn forget_history(&mut self) {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let mut old: Vec<&ReplicaSet> = self
            .sets
            .iter()
            .enumerate()
            .filter(|(at, set)| Some(*at) != self.new && set.metadata.deletion_timestamp.is_none())
            .map(|(_, set)| set)
            .collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|set| revision::revision(set));
        let idle = |set: &&ReplicaSet| {
            let status = set.status.as_ref();
            rolling::size(set) == 0
                && status.map_or(0, |status| status.replicas) == 0
                && status.and_then(|status| status.observed_generation) >= set.metadata.generation
        };
        let gone: Vec<_> =
            old.into_iter().take(surplus).filter(idle).map(|set| Arc::new(set.clone())).collect();
        self.plan.actions.extend(gone.into_iter().map(Action::Delete));
    }
}
