//! Core types, networking, RBAC and the rest.

use jiff::Timestamp;
use serde_json::Value;

use super::super::{Column, text};
use super::{age, name};
use crate::meta;

pub(super) fn columns(kind: &str) -> Option<&'static [Column]> {
    Some(match kind {
        "Namespace" => columns![string "Name", string "Status", string "Age"],
        "Node" => columns![
            string "Name", string "Status", string "Roles", string "Age", string "Version", string "~Internal-IP",
            string "~External-IP", string "~OS-Image", string "~Kernel-Version", string "~Container-Runtime",
        ],
        "Service" => columns![
            string "Name", string "Type", string "Cluster-IP", string "External-IP", string "Port(s)", string "Age",
            string "~Selector",
        ],
        "Endpoints" => columns![string "Name", string "Endpoints", string "Age"],
        "EndpointSlice" => {
            columns![string "Name", string "AddressType", string "Ports", string "Endpoints", string "Age"]
        }
        "ConfigMap" => columns![string "Name", string "Data", string "Age"],
        "Secret" => columns![string "Name", string "Type", string "Data", string "Age"],
        "ServiceAccount" => columns![string "Name", string "Age"],
        "Event" => columns![
            string "Last Seen", string "Type", string "Reason", string "Object", string "~Subobject", string "~Source",
            string "Message", string "~First Seen", string "~Count", string "~Name",
        ],
        "Lease" => columns![string "Name", string "Holder", string "Age"],
        "CustomResourceDefinition" => columns![string "Name", string "Created At"],
        "APIService" => columns![string "Name", string "Service", string "Available", string "Age"],
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            columns![string "Name", integer "Webhooks", string "Age"]
        }
        "RoleBinding" | "ClusterRoleBinding" => columns![
            string "Name", string "Role", string "Age", string "~Users", string "~Groups", string "~ServiceAccounts",
        ],
        "Ingress" => columns![
            string "Name", string "Class", string "Hosts", string "Address", string "Ports", string "Age",
        ],
        "IngressClass" => columns![string "Name", string "Controller", string "Parameters", string "Age"],
        "NetworkPolicy" => columns![string "Name", string "Pod-Selector", string "Age"],
        "PersistentVolumeClaim" => columns![
            string "Name", string "Status", string "Volume", string "Capacity", string "Access Modes",
            string "StorageClass", string "VolumeAttributesClass", string "Age", string "~VolumeMode",
        ],
        "PersistentVolume" => columns![
            string "Name", string "Capacity", string "Access Modes", string "Reclaim Policy", string "Status",
            string "Claim", string "StorageClass", string "VolumeAttributesClass", string "Reason", string "Age",
            string "~VolumeMode",
        ],
        "StorageClass" => columns![
            string "Name", string "Provisioner", string "ReclaimPolicy", string "VolumeBindingMode",
            string "AllowVolumeExpansion", string "Age",
        ],
        "PodTemplate" => {
            columns![string "Name", string "Containers", string "Images", string "Pod Labels"]
        }
        "PriorityClass" => columns![
            string "Name", integer "Value", boolean "Global-Default", string "Age", string "PreemptionPolicy",
        ],
        "ResourceQuota" => columns![string "Name", string "Request", string "Limit", string "Age"],
        _ => return None,
    })
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The first few, and how many more.
fn first(list: &[String], most: usize) -> String {
    match list.len() {
        0 => "<none>".to_owned(),
        n if n > most => format!("{} + {} more...", list[..most].join(","), n - most),
        _ => list.join(","),
    }
}

/// Access modes by their usual letters.
fn modes(list: &Value) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "?",
    };
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(short).collect::<Vec<_>>().join(",")
}

pub(super) fn cells(kind: &str, object: &Value, now: Timestamp) -> Option<Vec<Value>> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let own = |value: &Value| text::or_none(value.as_str().unwrap_or_default());
    Some(match kind {
        "Namespace" => vec![name(object), status["phase"].clone(), age(object, now)],
        "Node" => node(object, now),
        "Service" => service(object, now),
        "Endpoints" => {
            let mut list = Vec::new();
            for subset in items(&object["subsets"]) {
                for address in items(&subset["addresses"]) {
                    let ip = address["ip"].as_str().unwrap_or_default();
                    let ports = items(&subset["ports"]);
                    if ports.is_empty() {
                        list.push(ip.to_owned());
                    }
                    list.extend(ports.iter().map(|port| format!("{ip}:{}", port["port"])));
                }
            }
            vec![name(object), first(&list, 3).into(), age(object, now)]
        }
        "EndpointSlice" => {
            let ports: Vec<String> = items(&object["ports"])
                .iter()
                .map(|p| p["port"].as_i64().map_or("*".to_owned(), |n| n.to_string()))
                .collect();
            let ports = if ports.is_empty() { "<unset>".to_owned() } else { first(&ports, 3) };
            let list: Vec<String> = items(&object["endpoints"])
                .iter()
                .flat_map(|endpoint| texts(&endpoint["addresses"]))
                .map(str::to_owned)
                .collect();
            let endpoints = if list.is_empty() { "<unset>".to_owned() } else { first(&list, 3) };
            vec![
                name(object),
                object["addressType"].clone(),
                ports.into(),
                endpoints.into(),
                age(object, now),
            ]
        }
        "ConfigMap" => {
            let count = text::count(&object["data"]) + text::count(&object["binaryData"]);
            vec![name(object), count.into(), age(object, now)]
        }
        "Secret" => {
            vec![name(object), object["type"].clone(), text::count(&object["data"]).into(), age(object, now)]
        }
        "ServiceAccount" => vec![name(object), age(object, now)],
        "Event" => event(object, now),
        "Lease" => {
            vec![name(object), spec["holderIdentity"].as_str().unwrap_or_default().into(), age(object, now)]
        }
        "CustomResourceDefinition" => vec![name(object), object["metadata"]["creationTimestamp"].clone()],
        "APIService" => {
            let service = &object["spec"]["service"];
            let part = |field: &str| service[field].as_str().unwrap_or_default();
            let service = match service {
                Value::Object(_) => format!("{}/{}", part("namespace"), part("name")),
                _ => "Local".to_owned(),
            };
            let conditions = object["status"]["conditions"].as_array();
            let available = conditions.into_iter().flatten().find(|one| one["type"] == "Available");
            let available = available.map_or_else(
                || "Unknown".to_owned(),
                |one| {
                    let text = |field: &str| one[field].as_str().unwrap_or_default();
                    match (text("status"), text("reason")) {
                        ("True", _) => "True".to_owned(),
                        (status, "") => status.to_owned(),
                        (status, reason) => format!("{status} ({reason})"),
                    }
                },
            );
            vec![name(object), service.into(), available.into(), age(object, now)]
        }
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            vec![name(object), text::count(&object["webhooks"]).into(), age(object, now)]
        }
        "RoleBinding" | "ClusterRoleBinding" => {
            let role = &object["roleRef"];
            let subjects = |kind: &str| {
                let list: Vec<String> = items(&object["subjects"])
                    .iter()
                    .filter(|subject| subject["kind"] == kind)
                    .map(|subject| match subject["namespace"].as_str() {
                        Some(namespace) => {
                            format!("{namespace}/{}", subject["name"].as_str().unwrap_or_default())
                        }
                        None => subject["name"].as_str().unwrap_or_default().to_owned(),
                    })
                    .collect();
                Value::from(list.join(", "))
            };
            let role = format!(
                "{}/{}",
                role["kind"].as_str().unwrap_or_default(),
                role["name"].as_str().unwrap_or_default()
            );
            vec![
                name(object),
                role.into(),
                age(object, now),
                subjects("User"),
                subjects("Group"),
                subjects("ServiceAccount"),
            ]
        }
        "Ingress" => {
            let hosts: Vec<String> = items(&spec["rules"])
                .iter()
                .map(|rule| rule["host"].as_str().filter(|host| !host.is_empty()).unwrap_or("*").to_owned())
                .collect();
            let hosts = if hosts.is_empty() { "*".to_owned() } else { first(&hosts, 3) };
            let ports = if items(&spec["tls"]).is_empty() { "80" } else { "80, 443" };
            vec![
                name(object),
                own(&spec["ingressClassName"]),
                hosts.into(),
                load_balancer(status).into(),
                ports.into(),
                age(object, now),
            ]
        }
        "IngressClass" => {
            let parameters = &spec["parameters"];
            let shown = parameters["kind"]
                .as_str()
                .map(|kind| format!("{kind}/{}", parameters["name"].as_str().unwrap_or_default()));
            vec![
                name(object),
                spec["controller"].clone(),
                text::or_none(&shown.unwrap_or_default()),
                age(object, now),
            ]
        }
        "NetworkPolicy" => {
            vec![name(object), text::pairs(&spec["podSelector"]["matchLabels"]).into(), age(object, now)]
        }
        "PersistentVolumeClaim" => vec![
            name(object),
            status["phase"].clone(),
            spec["volumeName"].as_str().unwrap_or_default().into(),
            status["capacity"]["storage"].as_str().unwrap_or_default().into(),
            modes(&status["accessModes"]).into(),
            spec["storageClassName"].as_str().unwrap_or_default().into(),
            spec["volumeAttributesClassName"].as_str().unwrap_or("<unset>").into(),
            age(object, now),
            own(&spec["volumeMode"]),
        ],
        "PersistentVolume" => {
            let claim = &spec["claimRef"];
            let claim = claim["name"]
                .as_str()
                .map(|name| format!("{}/{name}", claim["namespace"].as_str().unwrap_or_default()));
            vec![
                name(object),
                spec["capacity"]["storage"].clone(),
                modes(&spec["accessModes"]).into(),
                spec["persistentVolumeReclaimPolicy"].clone(),
                status["phase"].clone(),
                claim.unwrap_or_default().into(),
                spec["storageClassName"].as_str().unwrap_or_default().into(),
                spec["volumeAttributesClassName"].as_str().unwrap_or("<unset>").into(),
                status["reason"].as_str().unwrap_or_default().into(),
                age(object, now),
                own(&spec["volumeMode"]),
            ]
        }
        "PodTemplate" => {
            let template = &object["template"];
            let containers = &template["spec"]["containers"];
            vec![
                name(object),
                text::each(containers, "name").into(),
                text::each(containers, "image").into(),
                text::pairs(&template["metadata"]["labels"]).into(),
            ]
        }
        "StorageClass" => {
            let annotation =
                &object["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"];
            let mut own = meta::name(object).to_owned();
            if annotation == "true" {
                own.push_str(" (default)");
            }
            vec![
                own.into(),
                object["provisioner"].clone(),
                object["reclaimPolicy"].as_str().unwrap_or("Delete").into(),
                object["volumeBindingMode"].as_str().unwrap_or("Immediate").into(),
                (object["allowVolumeExpansion"] == true).to_string().into(),
                age(object, now),
            ]
        }
        "PriorityClass" => vec![
            name(object),
            object["value"].clone(),
            (object["globalDefault"] == true).into(),
            age(object, now),
            object["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").into(),
        ],
        "ResourceQuota" => {
            let list = |limits: bool| {
                let parts: Vec<String> = status["hard"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(what, _)| what.starts_with("limits.") == limits)
                    .map(|(what, hard)| {
                        let used = status["used"][what].as_str().unwrap_or("0");
                        format!("{what}: {used}/{}", hard.as_str().unwrap_or_default())
                    })
                    .collect();
                Value::from(parts.join(", "))
            };
            vec![name(object), list(false), list(true), age(object, now)]
        }
        _ => return None,
    })
}

fn load_balancer(status: &Value) -> String {
    let list: Vec<&str> = items(&status["loadBalancer"]["ingress"])
        .iter()
        .filter_map(|ingress| {
            ingress["ip"].as_str().filter(|ip| !ip.is_empty()).or(ingress["hostname"].as_str())
        })
        .collect();
    list.join(",")
}

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or("ClusterIP");
    let external = texts(&spec["externalIPs"]).join(",");
    let external = match kind {
        "ExternalName" => spec["externalName"].as_str().unwrap_or_default().to_owned(),
        "LoadBalancer" => {
            let own = load_balancer(&object["status"]);
            match (own.is_empty(), external.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (true, false) => external,
                (false, true) => own,
                (false, false) => format!("{own},{external}"),
            }
        }
        _ => external,
    };
    let ports: Vec<String> = items(&spec["ports"])
        .iter()
        .map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_i64().filter(|number| *number > 0) {
                Some(number) => format!("{}:{number}/{protocol}", port["port"]),
                None => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    vec![
        name(object),
        kind.into(),
        text::or_none(spec["clusterIP"].as_str().unwrap_or_default()),
        text::or_none(&external),
        text::or_none(&ports.join(",")),
        age(object, now),
        text::pairs(&spec["selector"]).into(),
    ]
}

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let ready = items(&status["conditions"]).iter().find(|condition| condition["type"] == "Ready");
    let mut state = match ready.and_then(|condition| condition["status"].as_str()) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object["spec"]["unschedulable"] == true {
        state.push_str(",SchedulingDisabled");
    }
    const ROLE: &str = "node-role.kubernetes.io/";
    let roles: Vec<&str> = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(label, _)| label.strip_prefix(ROLE))
        .filter(|role| !role.is_empty())
        .collect();
    let address = |kind: &str| {
        let found = items(&status["addresses"]).iter().find(|address| address["type"] == kind);
        text::or_none(found.and_then(|address| address["address"].as_str()).unwrap_or_default())
    };
    let info = |field: &str| Value::from(status["nodeInfo"][field].as_str().unwrap_or("<unknown>"));
    vec![
        name(object),
        state.into(),
        text::or_none(&roles.join(",")),
        age(object, now),
        info("kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// Events in either of their forms.
fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let either = |core: &str, new: &str| if object[core].is_null() { &object[new] } else { &object[core] };
    let about = either("involvedObject", "regarding");
    let source = either("source", "deprecatedSource");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let first_time = either("firstTimestamp", "deprecatedFirstTimestamp").as_str();
    let last_time = either("lastTimestamp", "deprecatedLastTimestamp").as_str();
    let event_time = object["eventTime"].as_str();
    let first_seen = first_time.or(event_time);
    let last_seen = object["series"]["lastObservedTime"].as_str().or(last_time).or(first_seen);
    let shown = |time: Option<&str>| {
        Value::from(time.map_or_else(|| "<unknown>".to_owned(), |time| text::age(time, now)))
    };
    let count = object["series"]["count"]
        .as_i64()
        .or_else(|| either("count", "deprecatedCount").as_i64())
        .unwrap_or(1);
    let mut component = text(&source["component"]);
    if component.is_empty() {
        component = text(either("reportingComponent", "reportingController"));
    }
    let host = text(&source["host"]);
    if !host.is_empty() {
        component = format!("{component}, {host}");
    }
    vec![
        shown(last_seen),
        object["type"].clone(),
        object["reason"].clone(),
        format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"])).into(),
        text(&about["fieldPath"]).into(),
        component.into(),
        text(either("message", "note")).trim().into(),
        shown(first_seen),
        count.to_string().into(),
        name(object),
    ]
}
