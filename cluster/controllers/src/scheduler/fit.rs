//! Whether a node takes a pod: name, selector, required affinity, taints, resources.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, ResourceRequirements, Taint, Toleration,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::neighbours::Unwanted;
use crate::{meta, quantity};

/// What pods ask of a node, in thousandths by resource; every pod asks for one of `pods`.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Demand(BTreeMap<String, i128>);

impl Demand {
    /// What a pod asks for: the sum of its containers and sidecars, or the largest of its init containers if that is more, and its overhead.
    pub(crate) fn of(pod: &Pod) -> Self {
        let mut demand = Self::default();
        if let Some(spec) = &pod.spec {
            spec.containers
                .iter()
                .for_each(|container| demand.add(&Self::requested(container.resources.as_ref())));
            let mut peak = Self::default();
            let mut sidecars = Self::default();
            for init in spec.init_containers.iter().flatten() {
                let mut own = Self::requested(init.resources.as_ref());
                if init.restart_policy.as_deref() == Some("Always") {
                    sidecars.add(&own);
                    demand.add(&own);
                    peak.raise(&sidecars);
                } else {
                    own.add(&sidecars);
                    peak.raise(&own);
                }
            }
            demand.raise(&peak);
            demand.add(&Self::quantities(spec.overhead.as_ref()));
        }
        demand.0.insert("pods".to_owned(), 1_000);
        demand
    }

    fn quantities(map: Option<&BTreeMap<String, Quantity>>) -> Self {
        let parsed = map
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), quantity::milli(value)?)));
        Self(parsed.collect())
    }

    /// Requests; a limit without a request counts as one.
    fn requested(resources: Option<&ResourceRequirements>) -> Self {
        let mut demand = Self::quantities(resources.and_then(|resources| resources.limits.as_ref()));
        demand.0.extend(Self::quantities(resources.and_then(|resources| resources.requests.as_ref())).0);
        demand
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() += value;
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            *self.0.entry(name.clone()).or_default() -= value;
        }
    }

    fn raise(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            let held = self.0.entry(name.clone()).or_default();
            *held = (*held).max(*value);
        }
    }
}

/// Why a node does not take a pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Refusal {
    Unschedulable,
    Affinity,
    Taint(String),
    Resource(Vec<String>),
    Neighbour(Unwanted),
}

/// Why `node`, which runs `used` already, does not take `pod`; none if it does.
pub(crate) fn refusal(pod: &Pod, demand: &Demand, node: &Node, used: &Demand) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let node_spec = node.spec.clone().unwrap_or_default();
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    if node_spec.unschedulable == Some(true)
        && !tolerations.iter().any(|toleration| tolerates(toleration, &cordon))
    {
        return Some(Refusal::Unschedulable);
    }
    let intolerable = node_spec.taints.iter().flatten().find(|taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
    });
    if let Some(taint) = intolerable {
        let value = taint.value.as_deref().unwrap_or_default();
        return Some(Refusal::Taint(format!("{{{}: {value}}}", taint.key)));
    }
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let attracted = required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| matches(term, &labels, meta::name(node)))
    });
    if !selected || !attracted {
        return Some(Refusal::Affinity);
    }
    let allocatable = Demand::quantities(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
    let short: Vec<String> = demand
        .0
        .iter()
        .filter(|(name, wanted)| {
            // A node that has not told its number of pods yet takes any.
            let default = if *name == "pods" { i128::MAX } else { 0 };
            let all = allocatable.0.get(*name).copied().unwrap_or(default);
            **wanted > 0 && used.0.get(*name).copied().unwrap_or(0).saturating_add(**wanted) > all
        })
        .map(|(name, _)| name.clone())
        .collect();
    (!short.is_empty()).then_some(Refusal::Resource(short))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    }
}

/// A term without requirements matches nothing.
fn matches(term: &NodeSelectorTerm, labels: &meta::Labels, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    !(expressions.is_empty() && fields.is_empty())
        && expressions
            .iter()
            .all(|requirement| holds(requirement, labels.get(&requirement.key).map(String::as_str)))
        && fields
            .iter()
            .all(|requirement| requirement.key == "metadata.name" && holds(requirement, Some(name)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let compared = |order: fn(&i64, &i64) -> bool| {
        let held = value.and_then(|value| value.parse().ok());
        let bound = values.first().and_then(|bound| bound.parse().ok());
        held.zip(bound).is_some_and(|(held, bound)| order(&held, &bound))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(i64::gt),
        "Lt" => compared(i64::lt),
        _ => false,
    }
}

/// The message of condition and event, as Kubernetes' scheduler words it.
pub(crate) fn message(nodes: usize, refusals: impl Iterator<Item = Refusal>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for refusal in refusals {
        let reasons =
            match refusal {
                Refusal::Unschedulable => vec!["node(s) were unschedulable".to_owned()],
                Refusal::Affinity => vec!["node(s) didn't match Pod's node affinity/selector".to_owned()],
                Refusal::Neighbour(unwanted) => vec![unwanted.text().to_owned()],
                Refusal::Taint(_) => vec!["node(s) had untolerated taint(s)".to_owned()],
                Refusal::Resource(names) => names
                    .into_iter()
                    .map(|name| {
                        if name == "pods" {
                            "Too many pods".to_owned()
                        } else {
                            format!("Insufficient {name}")
                        }
                    })
                    .collect(),
            };
        for reason in reasons {
            *counts.entry(reason).or_default() += 1;
        }
    }
    let reasons: Vec<String> =
        counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    // Nothing is preempted here, and nothing that would be: what upstream says where preemption is of no use.
    format!(
        "0/{nodes} nodes are available: {}. no new claims to deallocate, preemption: 0/{nodes} nodes are available: {nodes} Preemption \
         is not helpful for scheduling.",
        reasons.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{self, Value, json};

    use super::*;

    fn node(spec: Value) -> Node {
        let node = json!({
            "metadata": {"name": "n", "labels": {"zone": "a", "cores": "4"}},
            "spec": spec,
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}},
        });
        serde_json::from_value(node).unwrap()
    }

    fn pod(spec: Value) -> Pod {
        let mut pod = json!({"spec": {"containers": [{"name": "c"}]}});
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(pod).unwrap()
    }

    fn requesting(resources: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": resources}]})
    }

    fn affinity(operator: &str, key: &str, values: &[&str]) -> Value {
        let term = json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let required = json!({"nodeSelectorTerms": [term]});
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
    }

    #[test]
    fn a_node_takes_what_it_should() {
        let tainted = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
        let preferring = json!({"taints": [{"key": "gpu", "effect": "PreferNoSchedule"}]});
        let tolerating = |toleration: Value| json!({"tolerations": [toleration]});
        let short = |name: &str| Some(Refusal::Resource(vec![name.into()]));
        let taint = Some(Refusal::Taint("{gpu: yes}".into()));
        let cases = [
            (json!({}), json!({}), None),
            (json!({"unschedulable": true}), json!({}), Some(Refusal::Unschedulable)),
            (tainted.clone(), json!({}), taint.clone()),
            (preferring, json!({}), None),
            (tainted.clone(), tolerating(json!({"key": "gpu", "operator": "Exists"})), None),
            (tainted.clone(), tolerating(json!({"operator": "Exists"})), None),
            (tainted.clone(), tolerating(json!({"key": "gpu", "value": "yes"})), None),
            (tainted.clone(), tolerating(json!({"key": "gpu", "value": "no"})), taint.clone()),
            (tainted, tolerating(json!({"key": "gpu", "value": "yes", "effect": "NoExecute"})), taint),
            (json!({}), json!({"nodeSelector": {"zone": "a"}}), None),
            (json!({}), json!({"nodeSelector": {"zone": "b"}}), Some(Refusal::Affinity)),
            (json!({}), affinity("In", "zone", &["a", "b"]), None),
            (json!({}), affinity("Gt", "cores", &["3"]), None),
            (json!({}), affinity("Lt", "cores", &["3"]), Some(Refusal::Affinity)),
            (json!({}), affinity("DoesNotExist", "zone", &[]), Some(Refusal::Affinity)),
            (json!({}), requesting(json!({"requests": {"cpu": "2"}})), None),
            (json!({}), requesting(json!({"requests": {"cpu": "2001m"}})), short("cpu")),
            (json!({}), requesting(json!({"limits": {"memory": "2Gi"}})), short("memory")),
            (json!({}), requesting(json!({"requests": {"example.com/gpu": "1"}})), short("example.com/gpu")),
            (json!({}), requesting(json!({"requests": {"example.com/gpu": "0"}})), None),
        ];
        for (node_spec, pod_spec, expected) in cases {
            let pod = pod(pod_spec.clone());
            let refused = refusal(&pod, &Demand::of(&pod), &node(node_spec.clone()), &Demand::default());
            assert_eq!(refused, expected, "{node_spec} {pod_spec}");
        }
    }

    #[test]
    fn what_runs_already_counts() {
        let pod = pod(requesting(json!({"requests": {"cpu": "1500m"}})));
        let mut used = Demand::default();
        used.add(&Demand::of(&pod));
        let refused = refusal(&pod, &Demand::of(&pod), &node(json!({})), &used);
        assert_eq!(refused, Some(Refusal::Resource(vec!["cpu".into()])));
        used.subtract(&Demand::of(&pod));
        assert_eq!(refusal(&pod, &Demand::of(&pod), &node(json!({})), &used), None);
    }

    #[test]
    fn init_containers_count_by_their_peak() {
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = pod(json!({
            "containers": [container("100m"), container("100m")],
            "initContainers": [sidecar, container("1")],
        }));
        assert_eq!(Demand::of(&pod).0["cpu"], 1_200);
    }

    #[test]
    fn words() {
        let refusals = [Refusal::Resource(vec!["cpu".into(), "pods".into()])];
        let text = message(1, refusals.into_iter());
        assert!(text.starts_with("0/1 nodes are available: 1 Insufficient cpu, 1 Too many pods. "), "{text}");
    }
}
