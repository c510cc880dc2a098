//! Pods and the templates of pods.

use std::collections::HashSet;

use serde_json::Value;

use super::others::{dns_label, label_keys, subdomain};
use super::{label, list, not_found, not_negative, one_of, port_name, port_number};
use crate::error::{FieldError, go_struct};

/// The fields of a container's security context in the order of the Go structure.
const SECURITY: [(&str, &str); 12] = [
    ("Capabilities", "capabilities"),
    ("Privileged", "privileged"),
    ("SELinuxOptions", "seLinuxOptions"),
    ("WindowsOptions", "windowsOptions"),
    ("RunAsUser", "runAsUser"),
    ("RunAsGroup", "runAsGroup"),
    ("RunAsNonRoot", "runAsNonRoot"),
    ("ReadOnlyRootFilesystem", "readOnlyRootFilesystem"),
    ("AllowPrivilegeEscalation", "allowPrivilegeEscalation"),
    ("ProcMount", "procMount"),
    ("SeccompProfile", "seccompProfile"),
    ("AppArmorProfile", "appArmorProfile"),
];

/// Checks a `PodSpec`, which must have gone through defaulting.
pub(super) fn spec(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut volumes = HashSet::new();
    for (i, volume) in list(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        label(&format!("{path}.name"), &volume["name"], errors);
        if !volumes.insert(volume["name"].as_str().unwrap_or_default()) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &volume["name"]));
        }
        let sources =
            volume.as_object().into_iter().flatten().map(|(field, _)| field).filter(|field| *field != "name");
        for source in sources.skip(1) {
            let path = format!("{path}.{source}");
            errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
        }
    }
    let containers = list(spec, "containers");
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for (field, containers) in [("containers", containers), ("initContainers", list(spec, "initContainers"))]
    {
        for (i, one) in containers.iter().enumerate() {
            let path = format!("{path}.{field}[{i}]");
            if let Some(name) = one["name"].as_str()
                && !names.insert(name)
            {
                errors.push(FieldError::duplicate(format!("{path}.name"), &one["name"]));
            }
            container(one, &path, &volumes, errors);
            if field == "initContainers" && one["restartPolicy"] != "Always" {
                for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
                    if one[kind].is_object() {
                        let detail = "may not be set for init containers without restartPolicy=Always";
                        errors.push(FieldError::forbidden(format!("{path}.{kind}"), detail));
                    }
                }
            }
        }
    }
    one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], errors);
    one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline.as_i64().is_some_and(|seconds| !(1..=2_147_483_647).contains(&seconds)) {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(format!("{path}.activeDeadlineSeconds"), deadline, detail));
    }
    if spec["nodeName"].as_str().is_some_and(|name| !name.is_empty()) {
        subdomain(format!("{path}.nodeName"), &spec["nodeName"], errors);
    }
    if spec["hostname"].as_str().is_some_and(|name| !name.is_empty()) {
        dns_label(format!("{path}.hostname"), &spec["hostname"], errors);
    }
    label_keys(&format!("{path}.nodeSelector"), &spec["nodeSelector"], errors);
    for (i, toleration) in list(spec, "tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{i}].operator");
        let operator = toleration["operator"].as_str().unwrap_or_default();
        if !matches!(operator, "" | "Equal" | "Exists") {
            errors.push(FieldError::not_supported(path, &toleration["operator"], &["Equal", "Exists"]));
        } else if toleration["key"].as_str().unwrap_or_default().is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(path, &toleration["operator"], detail));
        }
    }
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        let value = &spec["securityContext"][field];
        if value.as_i64().is_some_and(|id| !(0..=2_147_483_647).contains(&id)) {
            let detail = "must be between 0 and 2147483647, inclusive";
            errors.push(FieldError::invalid(format!("{path}.securityContext.{field}"), value, detail));
        }
    }
    let node = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    if node.is_object() && list(node, "nodeSelectorTerms").is_empty() {
        let path = format!(
            "{path}.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
        );
        errors.push(FieldError::required(path, "must have at least one node selector term"));
    }
    for (i, spread) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{i}]");
        if spread["maxSkew"].as_i64().unwrap_or(0) <= 0 {
            errors.push(FieldError::invalid(
                format!("{path}.maxSkew"),
                &spread["maxSkew"],
                "must be greater than zero",
            ));
        }
        if spread["topologyKey"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        one_of(spread, &path, "whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"], errors);
    }
    if spec["dnsPolicy"] == "None" && list(&spec["dnsConfig"], "nameservers").is_empty() {
        if spec["dnsConfig"].is_null() {
            let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
            errors.push(FieldError::required(format!("{path}.dnsConfig"), detail));
        } else {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(FieldError::required(format!("{path}.dnsConfig.nameservers"), detail));
        }
    }
}

/// Fields of a pod that its containers may ask for.
fn is_pod_field(path: &str) -> bool {
    matches!(
        path,
        "metadata.name"
            | "metadata.namespace"
            | "metadata.uid"
            | "metadata.labels"
            | "metadata.annotations"
            | "spec.nodeName"
            | "spec.serviceAccountName"
            | "status.hostIP"
            | "status.hostIPs"
            | "status.podIP"
            | "status.podIPs"
    ) || path.starts_with("metadata.labels['")
        || path.starts_with("metadata.annotations['")
}

fn container(container: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Vec<FieldError>) {
    label(&format!("{path}.name"), &container["name"], errors);
    let image = container["image"].as_str().unwrap_or_default();
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{path}.image"),
            &container["image"],
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], errors);
    one_of(container, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], errors);
    ports(container, path, errors);
    for (i, env) in list(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        if env["name"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        if env["name"].as_str().is_some_and(|name| name.contains('=')) {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            errors.push(FieldError::invalid(format!("{path}.name"), &env["name"], detail));
        }
        if let Some(field) = env["valueFrom"]["fieldRef"]["fieldPath"].as_str()
            && !is_pod_field(field)
        {
            let detail = format!("error converting fieldPath: field label not supported: {field}");
            let path = format!("{path}.valueFrom.fieldRef.fieldPath");
            errors.push(FieldError::invalid(path, &field.into(), detail));
        }
        let given = env["value"].as_str().is_some_and(|v| !v.is_empty());
        if let Some(source) = env.get("valueFrom").and_then(Value::as_object) {
            let path = format!("{path}.valueFrom");
            if given {
                errors.push(FieldError::invalid(
                    path,
                    &"".into(),
                    "may not be specified when `value` is not empty",
                ));
            } else if source.len() != 1 {
                let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
                errors.push(FieldError::invalid(path, &"".into(), detail));
            }
        }
    }
    let mut mounts = HashSet::new();
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let name = mount["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            errors.push(not_found(format!("{path}.name"), &mount["name"]));
        }
        let at = mount["mountPath"].as_str().unwrap_or_default();
        if at.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !mounts.insert(at) {
            errors.push(FieldError::invalid(
                format!("{path}.mountPath"),
                &mount["mountPath"],
                "must be unique",
            ));
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(one) = container.get(kind).filter(|p| p.is_object()) {
            probe(one, &format!("{path}.{kind}"), kind != "readinessProbe", errors);
        }
    }
    for kind in ["postStart", "preStop"] {
        if let Some(handler) = container["lifecycle"].get(kind).filter(|h| h.is_object()) {
            one_handler(
                handler,
                &format!("{path}.lifecycle.{kind}"),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
    let security = &container["securityContext"];
    if security["privileged"] == true && security["allowPrivilegeEscalation"] == false {
        let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        let shown = go_struct(&SECURITY.map(|(go, field)| (go, security[field].clone())));
        errors.push(FieldError::invalid(format!("{path}.securityContext"), security, detail).showing(shown));
    }
    resources(&container["resources"], &format!("{path}.resources"), errors);
}

fn ports(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut names = HashSet::new();
    for (i, port) in list(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        if port["containerPort"].as_i64() == Some(0) {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else {
            port_number(&format!("{path}.containerPort"), &port["containerPort"], errors);
        }
        if port["hostPort"].as_i64().is_some_and(|p| p != 0) {
            port_number(&format!("{path}.hostPort"), &port["hostPort"], errors);
        }
        one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"], errors);
        if let Some(name) = port["name"].as_str().filter(|n| !n.is_empty()) {
            port_name(&format!("{path}.name"), &port["name"], errors);
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
            }
        }
    }
}

fn one_handler(value: &Value, path: &str, kinds: &[&str], errors: &mut Vec<FieldError>) {
    let mut first = None;
    for kind in kinds {
        if value.get(kind).is_none() {
            continue;
        }
        match first {
            None => first = Some(kind),
            Some(_) => errors.push(FieldError::forbidden(
                format!("{path}.{kind}"),
                "may not specify more than 1 handler type",
            )),
        }
    }
    if first.is_none() {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn probe(probe: &Value, path: &str, one_success: bool, errors: &mut Vec<FieldError>) {
    one_handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        not_negative(probe, path, key, errors);
    }
    if one_success && probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        errors.push(FieldError::invalid(
            format!("{path}.successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        ));
    }
    for (kind, named) in [("httpGet", true), ("tcpSocket", true), ("grpc", false)] {
        let Some(port) = probe.get(kind).map(|h| &h["port"]) else { continue };
        let path = format!("{path}.{kind}.port");
        if named && port.is_string() {
            port_name(&path, port, errors);
        } else {
            port_number(&path, port, errors);
        }
    }
}

fn resources(resources: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for side in ["limits", "requests"] {
        for (name, value) in resources[side].as_object().into_iter().flatten() {
            if value.as_str().and_then(crate::quantity::to_f64).is_some_and(|amount| amount < 0.0) {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(format!("{path}.{side}[{name}]"), value, detail));
            }
        }
    }
    let Some(requests) = resources["requests"].as_object() else { return };
    for (name, request) in requests {
        let limit = &resources["limits"][name];
        let amount = |v: &Value| v.as_str().and_then(crate::quantity::to_f64);
        if let (Some(requested), Some(most)) = (amount(request), amount(limit))
            && requested > most
        {
            let detail = format!(
                "must be less than or equal to {name} limit of {}",
                limit.as_str().unwrap_or_default()
            );
            errors.push(FieldError::invalid(format!("{path}.requests"), request, detail));
        }
    }
}
