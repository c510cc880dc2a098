//! The kinds that are built in.

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, authentication::v1 as authn,
    authorization::v1 as authz, autoscaling::v1 as scaling1, autoscaling::v2 as scaling2, batch::v1 as batch,
    coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
    networking::v1 as networking, policy::v1 as policy, rbac::v1 as rbac, scheduling::v1 as scheduling,
    storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as registration;
use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value};

/// (group, version, kind, full type name).
pub(super) type Root = (&'static str, &'static str, &'static str, String);

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) -> String {
    let _ = generator.subschema_for::<T>();
    T::schema_name().into_owned()
}

macro_rules! kinds {
    ($generator:ident, $($group:literal $version:literal: $($module:ident :: $kind:ident),+;)+) => {
        vec![$($(($group, $version, stringify!($kind), add::<$module::$kind>(&mut $generator)),)+)+]
    };
}

/// Generates the schemas of all built-in kinds and of every type that they use.
pub(super) fn generate() -> (Vec<Root>, Map<String, Value>) {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12().with(|s| {
        s.meta_schema = None;
        s.definitions_path = "/definitions".into();
        s.inline_subschemas = false;
    }));
    let roots: Vec<Root> = kinds! { generator,
        "" "v1": core::Namespace, core::Node, core::Pod, core::Service, core::Endpoints, core::ConfigMap, core::Secret,
            core::Event, core::ServiceAccount, core::PersistentVolume, core::PersistentVolumeClaim, core::ReplicationController,
            core::ResourceQuota, core::LimitRange, core::PodTemplate, core::Binding, core::ComponentStatus, meta::Status,
            meta::DeleteOptions;
        "apps" "v1": apps::Deployment, apps::ReplicaSet, apps::StatefulSet, apps::DaemonSet, apps::ControllerRevision;
        "batch" "v1": batch::Job, batch::CronJob;
        "discovery.k8s.io" "v1": discovery::EndpointSlice;
        "coordination.k8s.io" "v1": coordination::Lease;
        "events.k8s.io" "v1": events::Event;
        "apiextensions.k8s.io" "v1": extensions::CustomResourceDefinition;
        "apiregistration.k8s.io" "v1": registration::APIService;
        "admissionregistration.k8s.io" "v1": admission::MutatingWebhookConfiguration, admission::ValidatingWebhookConfiguration;
        "rbac.authorization.k8s.io" "v1": rbac::Role, rbac::RoleBinding, rbac::ClusterRole, rbac::ClusterRoleBinding;
        "networking.k8s.io" "v1": networking::NetworkPolicy, networking::Ingress, networking::IngressClass;
        "policy" "v1": policy::PodDisruptionBudget, policy::Eviction;
        "autoscaling" "v2": scaling2::HorizontalPodAutoscaler;
        "autoscaling" "v1": scaling1::Scale, scaling1::HorizontalPodAutoscaler;
        "scheduling.k8s.io" "v1": scheduling::PriorityClass;
        "storage.k8s.io" "v1": storage::StorageClass;
        "authentication.k8s.io" "v1": authn::TokenReview, authn::TokenRequest, authn::SelfSubjectReview;
        "authorization.k8s.io" "v1": authz::SubjectAccessReview, authz::SelfSubjectAccessReview, authz::LocalSubjectAccessReview,
            authz::SelfSubjectRulesReview;
    };
    let definitions = generator.take_definitions(false);
    (roots, definitions)
}
