//! What one ReplicaSet needs: pods to take over or let go, to make or to delete, and its status.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
    jiff::Timestamp,
};
use serde_json::{Value, json};

use super::rank;
use crate::meta;

/// At most so many pods are made or deleted in one pass.
const BURST: usize = 500;

/// What is known of one ReplicaSet.
pub(crate) struct Observed {
    pub(crate) set: Arc<ReplicaSet>,
    /// The pods it controls, and orphans that it selects.
    pub(crate) pods: Vec<Arc<Pod>>,
}

/// The next step.
#[derive(Default)]
pub(crate) struct Plan {
    /// Merge patches of pods' owner references, by name. While there are any, nothing else is planned.
    pub(crate) patches: Vec<(String, Value)>,
    pub(crate) create: usize,
    pub(crate) delete: Vec<Arc<Pod>>,
}

/// How the plan's execution went: reason and message of a failure.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) failure: Option<(&'static str, String)>,
}

fn wanted(set: &ReplicaSet) -> usize {
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

pub(crate) fn plan(observed: &Observed) -> Plan {
    let set = observed.set.as_ref();
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    for pod in &observed.pods {
        let selected = meta::selects(&spec.selector, pod.metadata.labels.as_ref());
        let owned = meta::controller_of(pod.as_ref()).is_some();
        if owned == selected || pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
        if selected {
            owners.push(meta::controller_ref(set));
        } else {
            owners.retain(|owner| owner.uid != meta::uid(set));
        }
        let patch = json!({"metadata": {"ownerReferences": owners, "uid": meta::uid(pod.as_ref())}});
        plan.patches.push((meta::name(pod.as_ref()).to_owned(), patch));
    }
    if !plan.patches.is_empty() {
        return plan;
    }
    let active: Vec<&Arc<Pod>> = observed.pods.iter().filter(|pod| meta::is_active(pod)).collect();
    let wanted = wanted(set);
    if active.len() < wanted {
        plan.create = (wanted - active.len()).min(BURST);
    } else {
        let surplus = (active.len() - wanted).min(BURST);
        plan.delete = rank::least_missed(&active, surplus);
    }
    plan
}

/// The status if it changes, and when a pod that is ready becomes available.
pub(crate) fn status(
    observed: &Observed,
    outcome: &Outcome,
    now: Timestamp,
) -> (Option<ReplicaSetStatus>, Option<Duration>) {
    let set = observed.set.as_ref();
    let Some(spec) = &set.spec else { return (None, None) };
    let template = spec.template.as_ref().and_then(|template| template.metadata.as_ref());
    let template = template.and_then(|meta| meta.labels.as_ref());
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let (mut replicas, mut labeled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut again: Option<Duration> = None;
    for pod in &observed.pods {
        if pod.metadata.deletion_timestamp.is_some() && !meta::is_finished(pod) {
            terminating += 1;
        }
        if !meta::is_active(pod) {
            continue;
        }
        replicas += 1;
        let label = |key: &String| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        labeled += i32::from(template.into_iter().flatten().all(|(key, value)| label(key) == Some(value)));
        ready += i32::from(meta::is_ready(pod));
        match meta::availability(pod, min_ready, now) {
            Ok(()) => available += 1,
            Err(Some(soon)) => again = Some(again.map_or(soon, |again| again.min(soon))),
            Err(None) => {}
        }
    }
    let held = set.status.clone().unwrap_or_default();
    let some = |count: i32| (count != 0).then_some(count);
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: some(labeled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: conditions(&held, outcome, now),
    };
    // Zero may be written as zero or be left out.
    let same = |a: Option<i32>, b: Option<i32>| a.unwrap_or(0) == b.unwrap_or(0);
    let unchanged = set.status.is_some()
        && status.replicas == held.replicas
        && same(status.fully_labeled_replicas, held.fully_labeled_replicas)
        && same(status.ready_replicas, held.ready_replicas)
        && same(status.available_replicas, held.available_replicas)
        && same(status.terminating_replicas, held.terminating_replicas)
        && status.observed_generation == held.observed_generation
        && status.conditions.as_deref().unwrap_or_default() == held.conditions.as_deref().unwrap_or_default();
    ((!unchanged).then_some(status), again)
}

/// Does anybody act on what changed? Only then is it written at once.
pub(crate) fn is_news(old: Option<&ReplicaSetStatus>, new: &ReplicaSetStatus) -> bool {
    let count = |count: Option<i32>| count.unwrap_or(0);
    let held = old.cloned().unwrap_or_default();
    count(held.ready_replicas) != count(new.ready_replicas)
        || count(held.available_replicas) != count(new.available_replicas)
        || held.conditions.unwrap_or_default() != new.conditions.clone().unwrap_or_default()
}

fn conditions(
    held: &ReplicaSetStatus,
    outcome: &Outcome,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    const FAILURE: &str = "ReplicaFailure";
    let mut conditions = held.conditions.clone().unwrap_or_default();
    match &outcome.failure {
        None => conditions.retain(|condition| condition.type_ != FAILURE),
        Some((reason, message)) => {
            let known =
                conditions.iter().any(|held| held.type_ == FAILURE && held.reason.as_deref() == Some(reason));
            if !known {
                conditions.retain(|condition| condition.type_ != FAILURE);
                conditions.push(ReplicaSetCondition {
                    type_: FAILURE.to_owned(),
                    status: "True".to_owned(),
                    reason: Some((*reason).to_owned()),
                    message: Some(message.clone()),
                    last_transition_time: Some(meta::whole_seconds(now)),
                });
            }
        }
    }
    (!conditions.is_empty()).then_some(conditions)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{
            apps::v1::ReplicaSetSpec,
            core::v1::{PodCondition, PodStatus},
        },
        apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
    };

    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        let mut set = ReplicaSet::default();
        set.metadata.name = Some("web".into());
        set.metadata.uid = Some("set".into());
        set.metadata.generation = Some(3);
        let labels = meta::Labels::from([("app".into(), "web".into())]);
        set.spec = Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: Some(labels), match_expressions: None },
            ..ReplicaSetSpec::default()
        });
        set
    }

    fn pod(name: &str, owned: bool, ready_at: Option<i64>) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        pod.metadata.labels = Some([("app".into(), "web".into())].into());
        pod.metadata.owner_references = owned.then(|| vec![meta::controller_ref(&set(0))]);
        let time = |at| Time(Timestamp::from_second(at).unwrap());
        let ready = ready_at.map(|at| PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(time(at)),
            ..PodCondition::default()
        });
        pod.status = Some(PodStatus {
            phase: Some(if ready_at.is_some() { "Running" } else { "Pending" }.into()),
            conditions: ready.map(|ready| vec![ready]),
            ..PodStatus::default()
        });
        Arc::new(pod)
    }

    fn observed(replicas: i32, pods: Vec<Arc<Pod>>) -> Observed {
        Observed { set: Arc::new(set(replicas)), pods }
    }

    #[test]
    fn makes_what_is_missing_and_ignores_what_is_dying_or_done() {
        let mut dying = pod("a", true, Some(1)).as_ref().clone();
        dying.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let mut failed = pod("b", true, None).as_ref().clone();
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        let plan = plan(&observed(2, vec![Arc::new(dying), Arc::new(failed), pod("c", true, Some(1))]));
        assert_eq!((plan.create, plan.delete.len()), (1, 0));
    }

    #[test]
    fn deletes_those_least_missed() {
        let plan = plan(&observed(1, vec![pod("ready", true, Some(1)), pod("pending", true, None)]));
        assert_eq!(meta::name(plan.delete[0].as_ref()), "pending");
        assert_eq!(plan.delete.len(), 1);
    }

    #[test]
    fn adopts_and_releases_before_anything_else() {
        let mut foreign = pod("foreign", true, Some(1)).as_ref().clone();
        foreign.metadata.labels = None;
        let plan = plan(&observed(5, vec![pod("orphan", false, Some(1)), Arc::new(foreign)]));
        assert_eq!(plan.create, 0);
        assert_eq!(plan.patches.len(), 2);
        assert_eq!(plan.patches[0].1["metadata"]["ownerReferences"][0]["uid"], "set");
        assert_eq!(plan.patches[1].1["metadata"]["ownerReferences"], json!([]));
    }

    #[test]
    fn a_set_that_goes_away_makes_nothing() {
        let mut going = set(3);
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(plan(&Observed { set: Arc::new(going), pods: Vec::new() }).create, 0);
    }

    #[test]
    fn counts_available_after_min_ready_seconds() {
        let mut with_delay = set(2);
        with_delay.spec.as_mut().unwrap().min_ready_seconds = Some(10);
        let pods = vec![pod("old", true, Some(80)), pod("young", true, Some(95))];
        let observed = Observed { set: Arc::new(with_delay), pods };
        let now = Timestamp::from_second(100).unwrap();
        let (made, again) = status(&observed, &Outcome::default(), now);
        let made = made.unwrap();
        assert_eq!((made.replicas, made.ready_replicas, made.available_replicas), (2, Some(2), Some(1)));
        assert_eq!(made.observed_generation, Some(3));
        assert_eq!(again, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_failure_is_told_once_and_forgotten_on_success() {
        let now = Timestamp::from_second(100).unwrap();
        let failed = Outcome { failure: Some(("FailedCreate", "quota".into())) };
        let (made, _) = status(&observed(1, Vec::new()), &failed, now);
        let mut set = set(1);
        set.status = made;
        let with = |set: &ReplicaSet| Observed { set: Arc::new(set.clone()), pods: Vec::new() };
        assert!(status(&with(&set), &failed, Timestamp::from_second(200).unwrap()).0.is_none());
        let (healed, _) = status(&with(&set), &Outcome::default(), now);
        assert_eq!(healed.unwrap().conditions, None);
    }
}
