//! Environment variables of a container and the expansion of `$(NAME)` in them, in commands and in arguments.
//!
//! Rules: <https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/>;
//! a later variable sees earlier ones, `$$(NAME)` is the text `$(NAME)`, an unknown reference stays as it is.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};

/// Where references of variables are looked up. A missing object or key is an error unless the reference is optional.
pub(crate) trait Lookup {
    fn config_map(&self, name: &str) -> Option<ConfigMap>;
    fn secret(&self, name: &str) -> Option<Secret>;
}

/// Replaces `$(NAME)` by its value.
pub(crate) fn expand(text: &str, value_of: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix('$') {
            out.push('$');
            rest = next;
        } else if let Some(inner) = after.strip_prefix('(') {
            if let Some(end) = inner.find(')') {
                let name = &inner[..end];
                match value_of(name) {
                    Some(value) => out.push_str(&value),
                    None => {
                        out.push_str("$(");
                        out.push_str(name);
                        out.push(')');
                    }
                }
                rest = &inner[end + 1..];
            } else {
                out.push_str("$(");
                rest = inner;
            }
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The variables that announce Services to pods of their namespace, as `docker link` did
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
pub(crate) fn service_links<'a>(services: impl IntoIterator<Item = &'a Service>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let Some(name) = &service.metadata.name else { continue };
        let Some(first) = spec.ports.iter().flatten().next() else { continue };
        let base = name.to_uppercase().replace('-', "_");
        variables.insert(format!("{base}_SERVICE_HOST"), ip.clone());
        variables.insert(format!("{base}_SERVICE_PORT"), first.port.to_string());
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            if let Some(port_name) = port.name.as_ref().filter(|name| !name.is_empty()) {
                let suffix = port_name.to_uppercase().replace('-', "_");
                variables.insert(format!("{base}_SERVICE_PORT_{suffix}"), port.port.to_string());
            }
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
            let prefix = format!("{base}_PORT_{}_{protocol}", port.port);
            if index == 0 {
                variables.insert(format!("{base}_PORT"), url.clone());
            }
            variables.insert(prefix.clone(), url);
            variables.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
            variables.insert(format!("{prefix}_PORT"), port.port.to_string());
            variables.insert(format!("{prefix}_ADDR"), ip.clone());
        }
    }
    variables
}

/// Facts that only the node knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) pod_ip: String,
    pub(crate) host_ip: String,
    pub(crate) node_name: String,
    /// What a container without a limit could use: CPU in thousandths and memory in bytes.
    pub(crate) node_cpu_milli: i64,
    pub(crate) node_memory: i64,
}

/// The value of a downward API field reference, as in `metadata.labels['app']`. None for a field that there is not.
pub(crate) fn field(pod: &Pod, facts: &Facts, path: &str) -> Option<String> {
    let map = |values: Option<&BTreeMap<String, String>>| {
        values
            .map(|values| values.iter().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n"))
            .unwrap_or_default()
    };
    let keyed =
        |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']").map(str::to_owned);
    if let Some(key) = keyed("metadata.labels") {
        return Some(pod.metadata.labels.as_ref().and_then(|l| l.get(&key)).cloned().unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Some(
            pod.metadata.annotations.as_ref().and_then(|l| l.get(&key)).cloned().unwrap_or_default(),
        );
    }
    let spec = pod.spec.as_ref();
    Some(match path {
        "metadata.name" => pod.metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => pod.metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => pod.metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => return None,
    })
}

/// The value of a resource reference such as `limits.cpu`, divided and rounded up.
pub(crate) fn resource(
    container: &Container,
    facts: &Facts,
    name: &str,
    divisor: Option<&str>,
) -> Option<String> {
    let (kind, resource) = name.split_once('.')?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    let asked = match kind {
        "limits" => limits.and_then(|l| l.get(resource)),
        "requests" => requests.and_then(|r| r.get(resource)).or_else(|| limits.and_then(|l| l.get(resource))),
        _ => return None,
    };
    let milli = match asked {
        Some(quantity) => crate::quantity::milli(&quantity.0)?,
        None if kind == "requests" => 0,
        None => match resource {
            "cpu" => i128::from(facts.node_cpu_milli),
            "memory" => i128::from(facts.node_memory) * 1000,
            _ => 0,
        },
    };
    let divisor = divisor.and_then(crate::quantity::milli).filter(|d| *d > 0).unwrap_or(1000);
    Some(((milli + divisor - 1) / divisor).to_string())
}

/// All variables of a container, later ones overriding earlier ones: image, Services, envFrom, env.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    image: &[String],
    links: &BTreeMap<String, String>,
    facts: &Facts,
    lookup: &dyn Lookup,
) -> Result<BTreeMap<String, String>, String> {
    let missing = |kind: &str, name: &str| format!("{kind} \"{name}\" not found");
    let mut variables: BTreeMap<String, String> = links.clone();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.clone().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match lookup.config_map(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.into_iter().flatten() {
                        variables.insert(format!("{prefix}{key}"), value);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(missing("configmap", &reference.name)),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match lookup.secret(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.into_iter().flatten() {
                        variables
                            .insert(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(missing("secret", &reference.name)),
            }
        }
    }
    for entry in container.env.iter().flatten() {
        let value = if let Some(source) = &entry.value_from {
            value_from(pod, container, facts, lookup, &entry.name, source)?
        } else {
            let text = entry.value.clone().unwrap_or_default();
            Some(expand(&text, |name| variables.get(name).cloned()))
        };
        if let Some(value) = value {
            variables.insert(entry.name.clone(), value);
        }
    }
    for entry in image {
        if let Some((name, value)) = entry.split_once('=') {
            variables.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    Ok(variables)
}

fn value_from(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    lookup: &dyn Lookup,
    variable: &str,
    source: &k8s_openapi::api::core::v1::EnvVarSource,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(reference) = &source.field_ref {
        return field(pod, facts, &reference.field_path)
            .map(Some)
            .ok_or_else(|| format!("env {variable}: unknown field {:?}", reference.field_path));
    }
    if let Some(reference) = &source.resource_field_ref {
        let spec = pod.spec.as_ref();
        let named = reference.container_name.as_ref();
        let of = spec
            .and_then(|spec| spec.containers.iter().find(|c| named.is_some_and(|name| *name == c.name)))
            .unwrap_or(container);
        let divisor = reference.divisor.as_ref().map(|d| d.0.as_str()).filter(|d| *d != "0");
        return resource(of, facts, &reference.resource, divisor)
            .map(Some)
            .ok_or_else(|| format!("env {variable}: unknown resource {:?}", reference.resource));
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        return match lookup.config_map(&reference.name) {
            Some(map) => match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(format!(
                    "couldn't find key {} in ConfigMap {namespace}/{}",
                    reference.key, reference.name
                )),
            },
            None if optional => Ok(None),
            None => Err(format!("configmap {:?} not found", reference.name)),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        return match lookup.secret(&reference.name) {
            Some(secret) => match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
                Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
                None if optional => Ok(None),
                None => Err(format!(
                    "couldn't find key {} in Secret {namespace}/{}",
                    reference.key, reference.name
                )),
            },
            None if optional => Ok(None),
            None => Err(format!("secret {:?} not found", reference.name)),
        };
    }
    Err(format!("env {variable}: this kind of valueFrom is not supported here"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Objects;
    impl Lookup for Objects {
        fn config_map(&self, name: &str) -> Option<ConfigMap> {
            (name == "settings").then(|| {
                serde_json::from_value(json!({"metadata": {}, "data": {"COLOR": "blue", "SIZE": "9"}}))
                    .unwrap()
            })
        }
        fn secret(&self, _: &str) -> Option<Secret> {
            None
        }
    }

    fn env_of(container: serde_json::Value) -> Result<BTreeMap<String, String>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "x"}}, "spec": {"containers": []}
        }))
        .unwrap();
        let container: Container = serde_json::from_value(container).unwrap();
        let facts = Facts { pod_ip: "10.0.0.9".into(), node_cpu_milli: 2000, ..Facts::default() };
        environment(
            &pod,
            &container,
            &["PATH=/bin".into(), "COLOR=red".into()],
            &BTreeMap::new(),
            &facts,
            &Objects,
        )
    }

    #[test]
    fn expansion_follows_the_documented_rules() {
        let value = |name: &str| (name == "A").then(|| "1".to_owned());
        assert_eq!(expand("$(A)-$$(A)-$(B)-$A-$(A", value), "1-$(A)-$(B)-$A-$(A");
        assert_eq!(expand("$$$(A)$", value), "$1$");
    }

    #[test]
    fn later_sources_override_earlier_ones_and_see_them() {
        let env = env_of(json!({
            "name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "settings"}}],
            "env": [
                {"name": "A", "value": "$(P_COLOR)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "URL", "value": "http://$(IP)/$(A)"},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "COLOR", "value": "green"}
            ]
        }))
        .unwrap();
        assert_eq!(env["URL"], "http://10.0.0.9/blue");
        assert_eq!(env["APP"], "x");
        assert_eq!(env["CPU"], "2");
        assert_eq!(env["PATH"], "/bin");
        assert_eq!(env["COLOR"], "green");
    }

    #[test]
    fn missing_objects_are_errors_unless_optional() {
        let error = env_of(json!({"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]})).unwrap_err();
        assert_eq!(error, "secret \"s\" not found");
        env_of(json!({"name": "c", "envFrom": [{"secretRef": {"name": "s", "optional": true}}]})).unwrap();
        let error = env_of(json!({"name": "c", "env": [
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "nope"}}}]}))
        .unwrap_err();
        assert_eq!(error, "couldn't find key nope in ConfigMap ns/settings");
    }

    #[test]
    fn services_are_announced() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "my-db"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "sql", "port": 5432}]}
        }))
        .unwrap();
        let links = service_links([&service]);
        assert_eq!(links["MY_DB_SERVICE_HOST"], "10.0.0.1");
        assert_eq!(links["MY_DB_SERVICE_PORT_SQL"], "5432");
        assert_eq!(links["MY_DB_PORT_5432_TCP"], "tcp://10.0.0.1:5432");
    }
}
