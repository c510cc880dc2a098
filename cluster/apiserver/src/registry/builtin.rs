//! The built-in resource types: one row each.

use std::sync::{Arc, OnceLock};

use super::{Columns, Resource, ScalePaths, api_version};

/// A subresource other than status and scale.
#[derive(Debug)]
pub(crate) struct Sub {
    /// Its name in the path.
    pub name: &'static str,
    /// Group, version and kind it speaks.
    pub gvk: (&'static str, &'static str, &'static str),
    /// Verbs.
    pub verbs: &'static [&'static str],
}

struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    features: u8,
    subs: &'static [Sub],
}

const STATUS: u8 = 1;
const SCALE: u8 = 2;
const VIRTUAL: u8 = 4;
const COMPUTED: u8 = 8;

const CONNECT: &[&str] = &["create", "get"];
const CREATE: &[&str] = &["create"];

const fn sub(
    name: &'static str,
    gvk: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Sub {
    Sub { name, gvk, verbs }
}

const POD_SUBS: &[Sub] = &[
    sub("attach", ("", "v1", "PodAttachOptions"), CONNECT),
    sub("binding", ("", "v1", "Binding"), CREATE),
    sub("ephemeralcontainers", ("", "v1", "Pod"), &["get", "patch", "update"]),
    sub("eviction", ("policy", "v1", "Eviction"), CREATE),
    sub("exec", ("", "v1", "PodExecOptions"), CONNECT),
    sub("log", ("", "v1", "Pod"), &["get"]),
    sub("portforward", ("", "v1", "PodPortForwardOptions"), CONNECT),
];
const TOKEN: &[Sub] = &[sub("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE)];
const FINALIZE: &[Sub] = &[sub("finalize", ("", "v1", "Namespace"), &["update"])];

/// In the order: group, version, kind, plural, short names, categories, namespaced, features, subresources.
macro_rules! table {
    ($([$group:literal $version:literal $kind:literal $plural:literal [$($short:literal)*] [$($category:literal)*]
        $namespaced:literal, $features:expr, $subs:expr])*) => {
        &[$(Row {
            group: $group, version: $version, kind: $kind, plural: $plural, short: &[$($short),*],
            categories: &[$($category),*], namespaced: $namespaced, features: $features, subs: $subs,
        }),*]
    };
}

const ROWS: &[Row] = table! {
    ["" "v1" "Binding" "bindings" [] [] true, VIRTUAL, &[]]
    ["" "v1" "ConfigMap" "configmaps" ["cm"] [] true, 0, &[]]
    ["" "v1" "Endpoints" "endpoints" ["ep"] [] true, 0, &[]]
    ["" "v1" "Event" "events" ["ev"] [] true, 0, &[]]
    ["" "v1" "LimitRange" "limitranges" ["limits"] [] true, 0, &[]]
    ["" "v1" "Namespace" "namespaces" ["ns"] [] false, STATUS, FINALIZE]
    ["" "v1" "Node" "nodes" ["no"] [] false, STATUS, &[]]
    ["" "v1" "PersistentVolumeClaim" "persistentvolumeclaims" ["pvc"] [] true, STATUS, &[]]
    ["" "v1" "PersistentVolume" "persistentvolumes" ["pv"] [] false, STATUS, &[]]
    ["" "v1" "Pod" "pods" ["po"] ["all"] true, STATUS, POD_SUBS]
    ["" "v1" "PodTemplate" "podtemplates" [] [] true, 0, &[]]
    ["" "v1" "ReplicationController" "replicationcontrollers" ["rc"] ["all"] true, STATUS | SCALE, &[]]
    ["" "v1" "ResourceQuota" "resourcequotas" ["quota"] [] true, STATUS, &[]]
    ["" "v1" "Secret" "secrets" [] [] true, 0, &[]]
    ["" "v1" "ServiceAccount" "serviceaccounts" ["sa"] [] true, 0, TOKEN]
    ["" "v1" "Service" "services" ["svc"] ["all"] true, STATUS, &[]]
    ["apps" "v1" "ControllerRevision" "controllerrevisions" [] [] true, 0, &[]]
    ["apps" "v1" "DaemonSet" "daemonsets" ["ds"] ["all"] true, STATUS, &[]]
    ["apps" "v1" "Deployment" "deployments" ["deploy"] ["all"] true, STATUS | SCALE, &[]]
    ["apps" "v1" "ReplicaSet" "replicasets" ["rs"] ["all"] true, STATUS | SCALE, &[]]
    ["apps" "v1" "StatefulSet" "statefulsets" ["sts"] ["all"] true, STATUS | SCALE, &[]]
    ["batch" "v1" "CronJob" "cronjobs" ["cj"] ["all"] true, STATUS, &[]]
    ["batch" "v1" "Job" "jobs" [] ["all"] true, STATUS, &[]]
    ["discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" [] [] true, 0, &[]]
    ["coordination.k8s.io" "v1" "Lease" "leases" [] [] true, 0, &[]]
    ["events.k8s.io" "v1" "Event" "events" ["ev"] [] true, 0, &[]]
    ["apiextensions.k8s.io" "v1" "CustomResourceDefinition" "customresourcedefinitions" ["crd" "crds"] ["api-extensions"] false, STATUS, &[]]
    ["admissionregistration.k8s.io" "v1" "MutatingWebhookConfiguration" "mutatingwebhookconfigurations" [] ["api-extensions"] false, 0, &[]]
    ["admissionregistration.k8s.io" "v1" "ValidatingWebhookConfiguration" "validatingwebhookconfigurations" [] ["api-extensions"] false, 0, &[]]
    ["apiregistration.k8s.io" "v1" "APIService" "apiservices" [] ["api-extensions"] false, STATUS, &[]]
    ["rbac.authorization.k8s.io" "v1" "ClusterRoleBinding" "clusterrolebindings" [] [] false, 0, &[]]
    ["rbac.authorization.k8s.io" "v1" "ClusterRole" "clusterroles" [] [] false, 0, &[]]
    ["rbac.authorization.k8s.io" "v1" "RoleBinding" "rolebindings" [] [] true, 0, &[]]
    ["rbac.authorization.k8s.io" "v1" "Role" "roles" [] [] true, 0, &[]]
    ["networking.k8s.io" "v1" "IngressClass" "ingressclasses" [] [] false, 0, &[]]
    ["networking.k8s.io" "v1" "Ingress" "ingresses" ["ing"] [] true, STATUS, &[]]
    ["networking.k8s.io" "v1" "NetworkPolicy" "networkpolicies" ["netpol"] [] true, 0, &[]]
    ["policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets" ["pdb"] [] true, STATUS, &[]]
    ["autoscaling" "v1" "HorizontalPodAutoscaler" "horizontalpodautoscalers" ["hpa"] ["all"] true, STATUS, &[]]
    ["autoscaling" "v2" "HorizontalPodAutoscaler" "horizontalpodautoscalers" ["hpa"] ["all"] true, STATUS, &[]]
    ["metrics.k8s.io" "v1beta1" "NodeMetrics" "nodes" [] [] false, COMPUTED, &[]]
    ["metrics.k8s.io" "v1beta1" "PodMetrics" "pods" [] [] true, COMPUTED, &[]]
    ["scheduling.k8s.io" "v1" "PriorityClass" "priorityclasses" ["pc"] [] false, 0, &[]]
    ["storage.k8s.io" "v1" "StorageClass" "storageclasses" ["sc"] [] false, 0, &[]]
    ["authentication.k8s.io" "v1" "SelfSubjectReview" "selfsubjectreviews" [] [] false, VIRTUAL, &[]]
    ["authentication.k8s.io" "v1" "TokenReview" "tokenreviews" [] [] false, VIRTUAL, &[]]
    ["authorization.k8s.io" "v1" "LocalSubjectAccessReview" "localsubjectaccessreviews" [] [] true, VIRTUAL, &[]]
    ["authorization.k8s.io" "v1" "SelfSubjectAccessReview" "selfsubjectaccessreviews" [] [] false, VIRTUAL, &[]]
    ["authorization.k8s.io" "v1" "SelfSubjectRulesReview" "selfsubjectrulesreviews" [] [] false, VIRTUAL, &[]]
    ["authorization.k8s.io" "v1" "SubjectAccessReview" "subjectaccessreviews" [] [] false, VIRTUAL, &[]]
};

/// The built-in types.
pub(crate) fn resources() -> Vec<Resource> {
    ROWS.iter()
        .map(|row| {
            // Both groups of events show the same objects.
            let storage_group = if row.kind == "Event" { "" } else { row.group };
            Resource {
                group: row.group.to_owned(),
                version: row.version.to_owned(),
                kind: row.kind.to_owned(),
                plural: row.plural.to_owned(),
                // As metrics-server names them: `pods` without a group are pods.
                singular: if row.features & COMPUTED == 0 { row.kind.to_lowercase() } else { String::new() },
                short_names: row.short.iter().map(|&s| s.to_owned()).collect(),
                categories: row.categories.iter().map(|&s| s.to_owned()).collect(),
                namespaced: row.namespaced,
                status: row.features & STATUS != 0,
                scale: (row.features & SCALE != 0).then(|| ScalePaths {
                    spec: "spec.replicas".to_owned(),
                    status: "status.replicas".to_owned(),
                    selector: Some("spec.selector".to_owned()),
                }),
                subresources: row.subs,
                storage: Arc::from(format!("{storage_group}/{}", row.plural)),
                // Both versions of autoscalers live as the newer.
                storage_version: api_version(
                    storage_group,
                    if row.group == "autoscaling" { "v2" } else { row.version },
                ),
                conversion: None,
                builtin: true,
                virtual_only: row.features & VIRTUAL != 0,
                computed: row.features & COMPUTED != 0,
                columns: Columns::Builtin,
                deprecation: (row.kind == "Endpoints").then(|| {
                    "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()
                }),
                selectable: Vec::new(),
                schema: OnceLock::new(),
            }
        })
        .collect()
}
