//! Security contexts of pods and containers, and warnings about what is open by default.

use k8s_openapi::api::core::v1::{PodSecurityContext, SecurityContext};

use super::only;
use crate::config::{Features, Flag};
use crate::field_error::{CURRENT, FieldErrors};

/// Whether containers get secure settings where users made none.
fn secure_defaults(features: &Features) -> bool {
    matches!(features.get("secure-pod-defaults"), Flag::Enabled | Flag::AllowRootBounded)
}

/// Whether a pod may have a security context.
pub(super) fn of_pods(features: &Features) -> bool {
    features.allowed("kubernetes.podspec-securitycontext") || secure_defaults(features)
}

/// Checks the context of a pod. Without the flag for it only a plain seccomp profile may be there, and that only with secure defaults.
pub(super) fn pod(context: &PodSecurityContext, features: &Features) -> FieldErrors {
    let plain_seccomp = context.seccomp_profile.as_ref().is_some_and(|profile| {
        matches!(profile.type_.as_str(), "RuntimeDefault" | "Unconfined")
            && profile.localhost_profile.is_none()
    });
    let allowed: &[&str] = if features.allowed("kubernetes.podspec-securitycontext") {
        &["runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "supplementalGroups", "seccompProfile"]
    } else if plain_seccomp && secure_defaults(features) {
        &["seccompProfile"]
    } else {
        &[]
    };
    let mut errors = only(context, allowed);
    for (field, found) in [
        ("runAsUser", context.run_as_user),
        ("runAsGroup", context.run_as_group),
        ("fsGroup", context.fs_group),
    ] {
        errors.add(id(field, found));
    }
    for (at, group) in context.supplemental_groups.iter().flatten().enumerate() {
        errors.add(id(CURRENT, Some(*group)).via_field_index("supplementalGroups", at));
    }
    errors
}

/// Checks the context of a container.
pub(super) fn container(context: &SecurityContext, features: &Features) -> FieldErrors {
    let mut errors = only(
        context,
        &[
            "allowPrivilegeEscalation",
            "capabilities",
            "readOnlyRootFilesystem",
            "runAsGroup",
            "runAsNonRoot",
            "runAsUser",
            "seccompProfile",
        ],
    );
    if let Some(capabilities) = &context.capabilities {
        // With secure defaults an app may still bind a low port.
        let low_port = secure_defaults(features)
            && capabilities.add.as_ref().is_some_and(|added| *added == ["NET_BIND_SERVICE"]);
        let may_add = low_port || features.enabled("kubernetes.containerspec-addcapabilities");
        let allowed: &[&str] = if may_add { &["drop", "add"] } else { &["drop"] };
        errors.add(only(capabilities, allowed).via_field("capabilities"));
    }
    errors.add(id("runAsUser", context.run_as_user));
    errors.add(id("runAsGroup", context.run_as_group));
    errors
}

fn id(field: &str, id: Option<i64>) -> FieldErrors {
    match id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        Some(id) => FieldErrors::out_of_bounds(id, 0, i32::MAX, field),
        None => FieldErrors::none(),
    }
}

/// Warns of what a container leaves to Kubernetes' open defaults. What was opened on purpose is not meant.
pub(super) fn warn(
    pod: Option<&PodSecurityContext>,
    container: Option<&SecurityContext>,
    features: &Features,
) -> FieldErrors {
    if secure_defaults(features) {
        return FieldErrors::none();
    }
    let mut open: Vec<&str> = Vec::new();
    let mut misspelt = FieldErrors::none();
    let pod_seccomp = pod.and_then(|p| p.seccomp_profile.as_ref());
    let own_seccomp = container.and_then(|c| c.seccomp_profile.as_ref());
    if pod.and_then(|p| p.run_as_non_root).or(container.and_then(|c| c.run_as_non_root)).is_none() {
        open.push("runAsNonRoot");
    }
    if container.and_then(|c| c.allow_privilege_escalation).is_none() {
        open.push("allowPrivilegeEscalation");
    }
    if pod_seccomp.is_none() && own_seccomp.is_none() {
        open.push("seccompProfile");
    } else if [pod_seccomp, own_seccomp].iter().flatten().all(|profile| profile.type_.is_empty()) {
        open.push("seccompProfile.type");
    }
    match container.and_then(|c| c.capabilities.as_ref()).map(|c| c.drop.as_deref()) {
        None => open.push("capabilities"),
        Some(None) => open.push("capabilities.drop"),
        Some(Some([first, ..])) if first == "all" => {
            misspelt =
                FieldErrors::invalid("all", "capabilities.drop").with_details("Must be spelled as 'ALL'");
        }
        Some(Some(_)) => {}
    }
    let message =
        "Kubernetes' default is insecure; set the field, or secure-pod-defaults in config-features for all";
    let open = if open.is_empty() { FieldErrors::none() } else { FieldErrors::new(message, &open) };
    open.also(misspelt).as_warnings().via_field("securityContext")
}
