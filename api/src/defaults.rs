//! What the platform fills in where users said nothing.
//!
//! Defaulting is idempotent, and never touches the spec of a Revision that exists: a Revision does not change.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, Probe, SeccompProfile, SecurityContext, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeSet;

use crate::autoscaling::PodAutoscaler;
use crate::config::{Configs, Flag};
use crate::meta::autoscaling;
use crate::meta::serving::{CREATOR, LAST_MODIFIER};
use crate::names;
use crate::networking::Ingress;
use crate::serving::{
    Configuration, DomainMapping, Revision, RevisionSpec, RevisionTemplateSpec, Route, Service, TrafficTarget,
};

/// Fills in a Service; `old` is what is stored, `user` who asks.
pub fn service(object: &mut Service, old: Option<&Service>, configs: &Configs, user: Option<&str>) {
    let spec = &mut object.spec;
    template(&mut spec.template, old.map(|o| &o.spec.template), &object.metadata, configs, old.is_none());
    if spec.traffic.is_empty() {
        spec.traffic = vec![TrafficTarget {
            percent: Some(100),
            latest_revision: Some(true),
            ..TrafficTarget::default()
        }];
    }
    spec.traffic.iter_mut().for_each(traffic);
    user_info(&mut object.metadata, old.map(|o| o.spec != object.spec), user);
}

/// Fills in a Configuration.
pub fn configuration(
    object: &mut Configuration,
    old: Option<&Configuration>,
    configs: &Configs,
    user: Option<&str>,
) {
    let spec = &mut object.spec;
    template(&mut spec.template, old.map(|o| &o.spec.template), &object.metadata, configs, old.is_none());
    if object.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
        user_info(&mut object.metadata, old.map(|o| o.spec != object.spec), user);
    }
}

/// Fills in a Revision that is being made.
pub fn revision(object: &mut Revision, old: Option<&Revision>, configs: &Configs) {
    if old.is_none() {
        let (name, namespace) = parent_names(&object.metadata);
        revision_spec(&mut object.spec, configs, &name, &namespace, true);
    }
}

/// Fills in a Route.
pub fn route(object: &mut Route, old: Option<&Route>, user: Option<&str>) {
    object.spec.traffic.iter_mut().for_each(traffic);
    if object.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
        user_info(&mut object.metadata, old.map(|o| o.spec != object.spec), user);
    }
}

/// Fills in a DomainMapping.
pub fn domain_mapping(object: &mut DomainMapping, old: Option<&DomainMapping>, user: Option<&str>) {
    if object.spec.reference.namespace.as_ref().is_none_or(String::is_empty) {
        object.spec.reference.namespace.clone_from(&object.metadata.namespace);
    }
    user_info(&mut object.metadata, old.map(|o| o.spec != object.spec), user);
}

/// Fills in an Ingress: a single split takes all.
pub fn ingress(object: &mut Ingress) {
    let paths = object.spec.rules.iter_mut().flat_map(|r| r.http.iter_mut()).flat_map(|h| h.paths.iter_mut());
    for path in paths {
        if let [only] = path.splits.as_mut_slice()
            && only.percent == 0
        {
            only.percent = 100;
        }
    }
}

/// Fills in a PodAutoscaler: its class, and the metric of that class.
pub fn pod_autoscaler(object: &mut PodAutoscaler, configs: &Configs) {
    let annotations = object.metadata.annotations.get_or_insert_with(Default::default);
    let class = annotations
        .entry(autoscaling::CLASS.key().to_owned())
        .or_insert_with(|| configs.autoscaler.pod_autoscaler_class.clone());
    let metric = match class.as_str() {
        autoscaling::KPA => "concurrency",
        autoscaling::HPA => "cpu",
        _ => "",
    };
    annotations.entry(autoscaling::METRIC.key().to_owned()).or_insert_with(|| metric.to_owned());
}

/// Notes who made an object, and who changed its spec last (`changed` is none on create).
fn user_info(metadata: &mut ObjectMeta, changed: Option<bool>, user: Option<&str>) {
    let Some(user) = user.filter(|_| changed != Some(false)) else { return };
    let annotations = metadata.annotations.get_or_insert_with(Default::default);
    if changed.is_none() {
        annotations.insert(CREATOR.into(), user.into());
    }
    annotations.insert(LAST_MODIFIER.into(), user.into());
}

fn traffic(target: &mut TrafficTarget) {
    let pinned = target.revision_name.as_ref().is_some_and(|n| !n.is_empty());
    target.latest_revision.get_or_insert(!pinned);
    target.percent.get_or_insert(0);
}

fn parent_names(metadata: &ObjectMeta) -> (String, String) {
    (metadata.name.clone().unwrap_or_default(), metadata.namespace.clone().unwrap_or_default())
}

fn template(
    template: &mut RevisionTemplateSpec,
    old: Option<&RevisionTemplateSpec>,
    parent: &ObjectMeta,
    configs: &Configs,
    create: bool,
) {
    let (parent_name, namespace) = parent_names(parent);
    let fill = |template: &RevisionTemplateSpec, create: bool| {
        let mut filled = template.clone();
        revision_spec(&mut filled.spec, configs, &parent_name, &namespace, create);
        filled
    };
    // A template that keeps its own revision name must stay as it is: clients send what they were given by the user, without the defaults.
    let name = template.metadata.name.as_ref().filter(|n| !n.is_empty());
    let same = |old: &RevisionTemplateSpec| {
        old.metadata.name.as_ref() == name && fill(old, true) == fill(template, true)
    };
    let kept = old.filter(|old| name.is_some() && same(old)).cloned();
    *template = kept.unwrap_or_else(|| fill(template, create));
}

fn revision_spec(spec: &mut RevisionSpec, configs: &Configs, name: &str, namespace: &str, create: bool) {
    let defaults = &configs.defaults;
    if spec.timeout_seconds.is_none_or(|s| s == 0) {
        spec.timeout_seconds = Some(defaults.revision_timeout_seconds);
    }
    let timeout = spec.timeout_seconds.unwrap_or_default();
    for (field, default) in [
        (&mut spec.idle_timeout_seconds, defaults.revision_idle_timeout_seconds),
        (&mut spec.response_start_timeout_seconds, defaults.revision_response_start_timeout_seconds),
    ] {
        if field.is_none() && default != 0 && default < timeout {
            *field = Some(default);
        }
    }
    spec.container_concurrency.get_or_insert(defaults.container_concurrency);

    let inits = spec.pod.init_containers.get_or_insert_with(Vec::new);
    let mut taken: BTreeSet<String> =
        spec.pod.containers.iter().chain(inits.iter()).map(|c| c.name.clone()).collect();
    container_names(
        &mut spec.pod.containers,
        &mut taken,
        &defaults.container_name_for(false, name, namespace),
    );
    container_names(inits, &mut taken, &defaults.container_name_for(true, name, namespace));
    if inits.is_empty() {
        spec.pod.init_containers = None;
    }

    if spec.pod.enable_service_links.is_none() && create {
        spec.pod.enable_service_links = defaults.enable_service_links;
    }
    let writable: BTreeSet<&str> = spec
        .pod
        .volumes
        .iter()
        .flatten()
        .filter(|v| v.empty_dir.is_some() || v.persistent_volume_claim.is_some() || v.ephemeral.is_some())
        .map(|v| v.name.as_str())
        .collect();
    let single = spec.pod.containers.len() == 1;
    for container in &mut spec.pod.containers {
        resources(container, configs);
        let serves = single || container.ports.as_ref().is_some_and(|p| !p.is_empty());
        probes(container, serves);
        for mount in container.volume_mounts.iter_mut().flatten() {
            if !writable.contains(mount.name.as_str()) {
                mount.read_only = Some(true);
            }
        }
    }
    let flag = configs.features.get("secure-pod-defaults");
    if matches!(flag, Flag::Enabled | Flag::AllowRootBounded) {
        let pod = spec.pod.security_context.clone().unwrap_or_default();
        let all = spec.pod.containers.iter_mut().chain(spec.pod.init_containers.iter_mut().flatten());
        for container in all {
            let sealed = pod.seccomp_profile.as_ref().is_some_and(|profile| !profile.type_.is_empty());
            secure(container, pod.run_as_non_root, sealed, flag == Flag::Enabled);
        }
    }
}

fn container_names(containers: &mut [Container], taken: &mut BTreeSet<String>, default: &str) {
    let many = containers.len() > 1;
    let mut next = 0;
    for container in containers.iter_mut().filter(|c| c.name.is_empty()) {
        let mut name = default.to_owned();
        if many || taken.contains(&name) {
            loop {
                name = names::child(default, &format!("-{next}"));
                next += 1;
                if !taken.contains(&name) {
                    break;
                }
            }
        }
        taken.insert(name.clone());
        container.name = name;
    }
}

fn resources(container: &mut Container, configs: &Configs) {
    let defaults = &configs.defaults;
    if defaults.requests.is_empty() && defaults.limits.is_empty() {
        return;
    }
    let resources = container.resources.get_or_insert_with(Default::default);
    for (map, defaults) in
        [(&mut resources.requests, &defaults.requests), (&mut resources.limits, &defaults.limits)]
    {
        for (resource, amount) in defaults {
            let map = map.get_or_insert_with(Default::default);
            map.entry(resource.clone()).or_insert_with(|| Quantity(amount.clone()));
        }
    }
}

fn probes(container: &mut Container, serves: bool) {
    if serves {
        let probe = container.readiness_probe.get_or_insert_with(Probe::default);
        if probe.tcp_socket.is_none()
            && probe.http_get.is_none()
            && probe.exec.is_none()
            && probe.grpc.is_none()
        {
            probe.tcp_socket = Some(TCPSocketAction::default());
        }
    }
    if let Some(probe) = &mut container.readiness_probe {
        probe.success_threshold = probe.success_threshold.filter(|n| *n != 0).or(Some(1));
        if probe.period_seconds.is_some_and(|s| s != 0) {
            probe.failure_threshold = probe.failure_threshold.filter(|n| *n != 0).or(Some(3));
            probe.timeout_seconds = probe.timeout_seconds.filter(|n| *n != 0).or(Some(1));
        }
    }
    for probe in [&mut container.readiness_probe, &mut container.liveness_probe, &mut container.startup_probe]
    {
        if let Some(grpc) = probe.as_mut().and_then(|p| p.grpc.as_mut()) {
            grpc.service.get_or_insert_with(String::new);
        }
    }
}

/// Secure settings where none were made: no privilege escalation, the runtime's seccomp profile, no capabilities but the one to
/// bind a low port, and (if `strict`) no root.
fn secure(container: &mut Container, pod_non_root: Option<bool>, pod_seccomp: bool, strict: bool) {
    let low_port = container.ports.iter().flatten().any(|p| p.container_port < 1024);
    let context = container.security_context.get_or_insert_with(SecurityContext::default);
    context.allow_privilege_escalation.get_or_insert(false);
    if !pod_seccomp {
        let profile = context.seccomp_profile.get_or_insert_with(SeccompProfile::default);
        if profile.type_.is_empty() {
            profile.type_ = "RuntimeDefault".into();
        }
    }
    context.capabilities.get_or_insert_with(|| Capabilities {
        drop: Some(vec!["ALL".into()]),
        add: low_port.then(|| vec!["NET_BIND_SERVICE".into()]),
    });
    if strict && pod_non_root.is_none() {
        context.run_as_non_root.get_or_insert(true);
    }
}

#[cfg(test)]
mod tests;
