//! Which pods go first when a ReplicaSet shrinks, in Kubernetes' order.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

use crate::meta;

/// Users set it on pods that are dear (high) or cheap (low) to lose.
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods that are missed least: not assigned before assigned, pending before running, not ready before ready, cheap before dear,
/// on a crowded node first, younger before older.
pub(crate) fn least_missed(pods: &[&Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    if count == 0 {
        return Vec::new();
    }
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in pods {
        *crowd.entry(node(pod)).or_default() += 1;
    }
    let mut order: Vec<&Arc<Pod>> = pods.to_vec();
    order.sort_by_cached_key(|pod| {
        let phase = match meta::phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost: i32 = meta::annotation(pod.as_ref(), COST).and_then(|cost| cost.parse().ok()).unwrap_or(0);
        let ready_since = meta::ready_since(pod).flatten().unwrap_or(Timestamp::MAX);
        let key = (!node(pod).is_empty(), phase, meta::is_ready(pod), cost);
        let rest = (Reverse(crowd.get(node(pod)).copied()), Reverse(ready_since), Reverse(restarts(pod)));
        (key, rest, Reverse(meta::created(pod.as_ref())), meta::uid(pod.as_ref()).to_owned())
    });
    order.into_iter().take(count).cloned().collect()
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PodCondition, PodSpec, PodStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;

    struct Case {
        name: &'static str,
        node: bool,
        phase: &'static str,
        ready: Option<i64>,
        cost: &'static str,
        created: i64,
    }

    fn pod(case: &Case) -> Arc<Pod> {
        let mut pod = Pod::default();
        let time = |at| Some(Time(Timestamp::from_second(at).unwrap()));
        pod.metadata.name = Some(case.name.into());
        pod.metadata.uid = Some(case.name.into());
        pod.metadata.creation_timestamp = time(case.created);
        pod.metadata.annotations = Some([(COST.to_owned(), case.cost.to_owned())].into());
        pod.spec = Some(PodSpec { node_name: case.node.then(|| "n".into()), ..PodSpec::default() });
        let condition = case.ready.map(|at| PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: time(at),
            ..PodCondition::default()
        });
        pod.status = Some(PodStatus {
            phase: Some(case.phase.into()),
            conditions: condition.map(|condition| vec![condition]),
            ..PodStatus::default()
        });
        Arc::new(pod)
    }

    #[test]
    fn order() {
        let case = |name, node, phase, ready, cost, created| Case { name, node, phase, ready, cost, created };
        let cases = [
            case("oldest-ready", true, "Running", Some(10), "0", 1),
            case("dear", true, "Running", Some(50), "100", 90),
            case("unassigned", false, "Pending", None, "0", 1),
            case("newly-ready", true, "Running", Some(20), "0", 1),
            case("cheap", true, "Running", Some(10), "-5", 1),
            case("pending", true, "Pending", None, "0", 1),
            case("not-ready-young", true, "Running", None, "0", 9),
            case("not-ready-old", true, "Running", None, "0", 2),
        ];
        let pods: Vec<Arc<Pod>> = cases.iter().map(pod).collect();
        let refs: Vec<&Arc<Pod>> = pods.iter().collect();
        let order: Vec<String> =
            least_missed(&refs, 8).iter().map(|pod| meta::name(pod.as_ref()).to_owned()).collect();
        assert_eq!(
            order,
            [
                "unassigned",
                "pending",
                "not-ready-young",
                "not-ready-old",
                "cheap",
                "newly-ready",
                "oldest-ready",
                "dear"
            ]
        );
    }
}
