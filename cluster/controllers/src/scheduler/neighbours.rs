//! Required affinity and anti-affinity between pods: which pods a pod wants near it, and which not. Preferences are left out: with one node,
//! it is always the best.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Affinity, Node, Pod, PodAffinityTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use crate::meta;

/// A pod that has its node.
pub(super) struct Placed {
    pub(super) pod: Arc<Pod>,
    pub(super) node: Arc<Node>,
}

/// Why a node's neighbourhood is not for a pod, in the scheduler's words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Unwanted {
    /// A pod that it wants near is not there.
    Affinity,
    /// A pod that it does not want near is there.
    AntiAffinity,
    /// A pod that is there does not want it near.
    Existing,
}

impl Unwanted {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Affinity => "node(s) didn't match pod affinity rules",
            Self::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::Existing => "node(s) didn't satisfy existing pods anti-affinity rules",
        }
    }
}

/// Whether a pod asks for company, so that one that has come may let it in.
pub(super) fn wants_company(pod: &Pod) -> bool {
    !terms(pod, near).is_empty()
}

/// Whether a pod's place depends on its neighbours', or theirs on its.
pub(super) fn cares(pod: &Pod) -> bool {
    wants_company(pod) || !terms(pod, far).is_empty()
}

fn near(affinity: &Affinity) -> Option<&Vec<PodAffinityTerm>> {
    affinity.pod_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
}

fn far(affinity: &Affinity) -> Option<&Vec<PodAffinityTerm>> {
    affinity.pod_anti_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
}

fn terms(pod: &Pod, kind: fn(&Affinity) -> Option<&Vec<PodAffinityTerm>>) -> &[PodAffinityTerm] {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    affinity.and_then(kind).map_or(&[], Vec::as_slice)
}

/// Why `node` is not for `pod`, given where others are.
pub(super) fn unwanted(pod: &Pod, node: &Node, placed: &[Placed]) -> Option<Unwanted> {
    for term in terms(pod, near) {
        let there =
            placed.iter().any(|other| same_place(term, node, &other.node) && means(term, pod, &other.pod));
        // The first of a group that wants to be together has to begin somewhere.
        let first = !placed.iter().any(|other| means(term, pod, &other.pod)) && means(term, pod, pod);
        let has_place = label(node, &term.topology_key).is_some();
        if !has_place || !(there || first) {
            return Some(Unwanted::Affinity);
        }
    }
    let refused = |term: &PodAffinityTerm, other: &Placed| {
        same_place(term, node, &other.node) && means(term, pod, &other.pod)
    };
    if terms(pod, far).iter().any(|term| placed.iter().any(|other| refused(term, other))) {
        return Some(Unwanted::AntiAffinity);
    }
    let refuses = |other: &Placed| {
        let theirs = terms(&other.pod, far).iter();
        theirs.into_iter().any(|term| same_place(term, node, &other.node) && means(term, &other.pod, pod))
    };
    placed.iter().any(refuses).then_some(Unwanted::Existing)
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a String> {
    node.metadata.labels.as_ref()?.get(key)
}

fn same_place(term: &PodAffinityTerm, node: &Node, other: &Node) -> bool {
    let place = label(node, &term.topology_key);
    place.is_some() && place == label(other, &term.topology_key)
}

/// Whether a term of `owner` is about `other`.
fn means(term: &PodAffinityTerm, owner: &Pod, other: &Pod) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    // A selector of namespaces without requirements means all; others would need their labels, and mean none here.
    let selected = term.namespace_selector.as_ref();
    let all = selected.is_some_and(|selector| *selector == LabelSelector::default());
    let (own, theirs) = (owner.metadata.namespace.as_deref(), other.metadata.namespace.as_deref());
    let namespace = if named.is_empty() && selected.is_none() {
        own == theirs
    } else {
        all || named.iter().any(|name| Some(name.as_str()) == theirs)
    };
    let selector = term.label_selector.as_ref();
    namespace && selector.is_some_and(|selector| meta::selects(selector, other.metadata.labels.as_ref()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{self, Value, json};

    use super::*;

    fn node(name: &str, zone: &str) -> Arc<Node> {
        let labels = json!({"kubernetes.io/hostname": name, "zone": zone});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
    }

    fn pod(app: &str, affinity: Value) -> Arc<Pod> {
        let object = json!({"metadata": {"namespace": "ns", "labels": {"app": app}},
            "spec": {"containers": [], "affinity": affinity}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn term(kind: &str, app: &str, key: &str) -> Value {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]}})
    }

    const HOST: &str = "kubernetes.io/hostname";

    #[test]
    fn apart() {
        let apart = pod("a", term("podAntiAffinity", "a", HOST));
        let (n, m) = (node("n", "z"), node("m", "z"));
        assert_eq!(unwanted(&apart, &n, &[]), None);
        let there = [Placed { pod: pod("a", json!({})), node: n.clone() }];
        assert_eq!(unwanted(&apart, &n, &there), Some(Unwanted::AntiAffinity));
        assert_eq!(unwanted(&apart, &m, &there), None);
        let by_zone = pod("a", term("podAntiAffinity", "a", "zone"));
        assert_eq!(unwanted(&by_zone, &m, &there), Some(Unwanted::AntiAffinity));
        assert_eq!(unwanted(&pod("b", term("podAntiAffinity", "c", HOST)), &n, &there), None);
    }

    #[test]
    fn those_who_are_there_have_a_say() {
        let n = node("n", "z");
        let there = [Placed { pod: pod("a", term("podAntiAffinity", "b", HOST)), node: n.clone() }];
        assert_eq!(unwanted(&pod("b", json!({})), &n, &there), Some(Unwanted::Existing));
        assert_eq!(unwanted(&pod("c", json!({})), &n, &there), None);
    }

    #[test]
    fn together() {
        let with_b = pod("a", term("podAffinity", "b", HOST));
        let n = node("n", "z");
        assert!(wants_company(&with_b) && !wants_company(&pod("a", json!({}))));
        assert_eq!(unwanted(&with_b, &n, &[]), Some(Unwanted::Affinity));
        let there = [Placed { pod: pod("b", json!({})), node: n.clone() }];
        assert_eq!(unwanted(&with_b, &n, &there), None);
        // The first of its kind.
        assert_eq!(unwanted(&pod("a", term("podAffinity", "a", HOST)), &n, &[]), None);
        assert_eq!(unwanted(&pod("a", term("podAffinity", "a", "rack")), &n, &[]), Some(Unwanted::Affinity));
    }

    #[test]
    fn namespaces() {
        let elsewhere = |namespace: &str| {
            let mut other = Pod::clone(&pod("b", json!({})));
            other.metadata.namespace = Some(namespace.to_owned());
            [Placed { pod: Arc::new(other), node: node("n", "z") }]
        };
        let asks = |more: Value| {
            let mut affinity = term("podAntiAffinity", "b", HOST);
            let term = &mut affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
            term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            pod("a", affinity)
        };
        let n = node("n", "z");
        assert_eq!(unwanted(&asks(json!({})), &n, &elsewhere("other")), None);
        assert!(unwanted(&asks(json!({"namespaces": ["other"]})), &n, &elsewhere("other")).is_some());
        assert!(unwanted(&asks(json!({"namespaceSelector": {}})), &n, &elsewhere("other")).is_some());
    }
}
