//! What Kubernetes says about lists and maps beyond their JSON shape: which lists merge and by which key.
//!
//! One row for each field of a built-in type that is not the default (lists atomic, maps granular). The facts are those that
//! Kubernetes 1.35 publishes as `x-kubernetes-list-type`, `-list-map-keys`, `-map-type`, `-patch-merge-key` and
//! `-patch-strategy`. An empty field name means the type itself.

/// How a list or map behaves under server-side apply and strategic merge patch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fact {
    pub(crate) map_keys: &'static [&'static str],
    pub(crate) set: bool,
    pub(crate) atomic_map: Option<bool>,
    pub(crate) merge_key: Option<&'static str>,
    pub(crate) merge: bool,
    pub(crate) retain_keys: bool,
    pub(crate) replace: bool,
}

impl Fact {
    const fn by(mut self, key: &'static str) -> Fact {
        self.merge_key = Some(key);
        self.merge = true;
        self
    }
    const fn retain(mut self) -> Fact {
        self.retain_keys = true;
        self
    }
    const fn merge(mut self) -> Fact {
        self.merge = true;
        self
    }
    const fn replace(mut self) -> Fact {
        self.replace = true;
        self
    }
}

const PLAIN: Fact = Fact {
    map_keys: &[],
    set: false,
    atomic_map: None,
    merge_key: None,
    merge: false,
    retain_keys: false,
    replace: false,
};
const SET: Fact = Fact { set: true, ..PLAIN };
const ATOMIC_MAP: Fact = Fact { atomic_map: Some(true), ..PLAIN };
const GRANULAR: Fact = Fact { atomic_map: Some(false), ..PLAIN };
const fn map(keys: &'static [&'static str]) -> Fact {
    Fact { map_keys: keys, ..PLAIN }
}

/// (type without the `io.k8s.` prefix, field, fact).
#[rustfmt::skip]
pub(crate) const FACTS: &[(&str, &str, Fact)] = &[
    ("api.admissionregistration.v1.MutatingWebhook", "matchConditions", map(&["name"]).by("name")),
    ("api.admissionregistration.v1.MutatingWebhookConfiguration", "webhooks", map(&["name"]).by("name")),
    ("api.admissionregistration.v1.ValidatingWebhook", "matchConditions", map(&["name"]).by("name")),
    ("api.admissionregistration.v1.ValidatingWebhookConfiguration", "webhooks", map(&["name"]).by("name")),
    ("api.apps.v1.DaemonSetStatus", "conditions", map(&["type"]).by("type")),
    ("api.apps.v1.DeploymentSpec", "strategy", PLAIN.retain()),
    ("api.apps.v1.DeploymentStatus", "conditions", map(&["type"]).by("type")),
    ("api.apps.v1.ReplicaSetStatus", "conditions", map(&["type"]).by("type")),
    ("api.apps.v1.StatefulSetStatus", "conditions", map(&["type"]).by("type")),
    ("api.autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions", map(&["type"]).by("type")),
    ("api.batch.v1.JobStatus", "conditions", PLAIN.by("type")),
    ("api.batch.v1.PodFailurePolicyOnExitCodesRequirement", "values", SET),
    ("api.batch.v1.UncountedTerminatedPods", "failed", SET),
    ("api.batch.v1.UncountedTerminatedPods", "succeeded", SET),
    ("api.core.v1.ConfigMapKeySelector", "", ATOMIC_MAP),
    ("api.core.v1.Container", "env", map(&["name"]).by("name")),
    ("api.core.v1.Container", "ports", map(&["containerPort", "protocol"]).by("containerPort")),
    ("api.core.v1.Container", "volumeDevices", map(&["devicePath"]).by("devicePath")),
    ("api.core.v1.Container", "volumeMounts", map(&["mountPath"]).by("mountPath")),
    ("api.core.v1.ContainerRestartRuleOnExitCodes", "values", SET),
    ("api.core.v1.ContainerStatus", "allocatedResourcesStatus", map(&["name"]).by("name")),
    ("api.core.v1.ContainerStatus", "volumeMounts", map(&["mountPath"]).by("mountPath")),
    ("api.core.v1.EndpointAddress", "", ATOMIC_MAP),
    ("api.core.v1.EndpointPort", "", ATOMIC_MAP),
    ("api.core.v1.EphemeralContainer", "env", map(&["name"]).by("name")),
    ("api.core.v1.EphemeralContainer", "ports", map(&["containerPort", "protocol"]).by("containerPort")),
    ("api.core.v1.EphemeralContainer", "volumeDevices", map(&["devicePath"]).by("devicePath")),
    ("api.core.v1.EphemeralContainer", "volumeMounts", map(&["mountPath"]).by("mountPath")),
    ("api.core.v1.FileKeySelector", "", ATOMIC_MAP),
    ("api.core.v1.LocalObjectReference", "", ATOMIC_MAP),
    ("api.core.v1.NamespaceStatus", "conditions", map(&["type"]).by("type")),
    ("api.core.v1.NodeSelector", "", ATOMIC_MAP),
    ("api.core.v1.NodeSelectorTerm", "", ATOMIC_MAP),
    ("api.core.v1.NodeSpec", "podCIDRs", SET.merge()),
    ("api.core.v1.NodeStatus", "addresses", map(&["type"]).by("type")),
    ("api.core.v1.NodeStatus", "conditions", map(&["type"]).by("type")),
    ("api.core.v1.ObjectFieldSelector", "", ATOMIC_MAP),
    ("api.core.v1.ObjectReference", "", ATOMIC_MAP),
    ("api.core.v1.PersistentVolumeClaimStatus", "conditions", map(&["type"]).by("type")),
    ("api.core.v1.PersistentVolumeSpec", "claimRef", GRANULAR),
    ("api.core.v1.PodSpec", "containers", map(&["name"]).by("name")),
    ("api.core.v1.PodSpec", "ephemeralContainers", map(&["name"]).by("name")),
    ("api.core.v1.PodSpec", "hostAliases", map(&["ip"]).by("ip")),
    ("api.core.v1.PodSpec", "imagePullSecrets", map(&["name"]).by("name")),
    ("api.core.v1.PodSpec", "initContainers", map(&["name"]).by("name")),
    ("api.core.v1.PodSpec", "nodeSelector", ATOMIC_MAP),
    ("api.core.v1.PodSpec", "resourceClaims", map(&["name"]).by("name").retain()),
    ("api.core.v1.PodSpec", "schedulingGates", map(&["name"]).by("name")),
    ("api.core.v1.PodSpec", "topologySpreadConstraints", map(&["topologyKey", "whenUnsatisfiable"]).by("topologyKey")),
    ("api.core.v1.PodSpec", "volumes", map(&["name"]).by("name").retain()),
    ("api.core.v1.PodStatus", "conditions", map(&["type"]).by("type")),
    ("api.core.v1.PodStatus", "hostIPs", PLAIN.by("ip")),
    ("api.core.v1.PodStatus", "podIPs", map(&["ip"]).by("ip")),
    ("api.core.v1.PodStatus", "resourceClaimStatuses", map(&["name"]).by("name").retain()),
    ("api.core.v1.ReplicationControllerSpec", "selector", ATOMIC_MAP),
    ("api.core.v1.ReplicationControllerStatus", "conditions", map(&["type"]).by("type")),
    ("api.core.v1.ResourceFieldSelector", "", ATOMIC_MAP),
    ("api.core.v1.ResourceRequirements", "claims", map(&["name"])),
    ("api.core.v1.ResourceStatus", "resources", map(&["resourceID"])),
    ("api.core.v1.ScopeSelector", "", ATOMIC_MAP),
    ("api.core.v1.SecretKeySelector", "", ATOMIC_MAP),
    ("api.core.v1.SecretReference", "", ATOMIC_MAP),
    ("api.core.v1.ServiceAccount", "secrets", map(&["name"]).by("name")),
    ("api.core.v1.ServiceSpec", "ports", map(&["port", "protocol"]).by("port")),
    ("api.core.v1.ServiceSpec", "selector", ATOMIC_MAP),
    ("api.core.v1.ServiceStatus", "conditions", map(&["type"]).by("type")),
    ("api.core.v1.TopologySelectorTerm", "", ATOMIC_MAP),
    ("api.core.v1.TypedLocalObjectReference", "", ATOMIC_MAP),
    ("api.discovery.v1.Endpoint", "addresses", SET),
    ("api.discovery.v1.EndpointPort", "", ATOMIC_MAP),
    ("api.networking.v1.ServiceBackendPort", "", ATOMIC_MAP),
    ("api.policy.v1.PodDisruptionBudgetSpec", "selector", PLAIN.replace()),
    ("api.policy.v1.PodDisruptionBudgetStatus", "conditions", map(&["type"]).by("type")),
    ("api.rbac.v1.RoleRef", "", ATOMIC_MAP),
    ("api.rbac.v1.Subject", "", ATOMIC_MAP),
    ("apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus", "conditions", map(&["type"])),
    ("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps", "x-kubernetes-validations", map(&["rule"]).by("rule")),
    ("apimachinery.pkg.apis.meta.v1.LabelSelector", "", ATOMIC_MAP),
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers", SET.merge()),
    ("apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", map(&["uid"]).by("uid")),
    ("apimachinery.pkg.apis.meta.v1.OwnerReference", "", ATOMIC_MAP),
    ("kube-aggregator.pkg.apis.apiregistration.v1.APIServiceStatus", "conditions", map(&["type"]).by("type")),
];
