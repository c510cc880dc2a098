//! Which slices a Service should have: one set of slices for each set of resolved ports, endpoints staying where they are.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::util::intstr::IntOrString,
    jiff::Timestamp,
};

use crate::meta;

const SERVICE: &str = "kubernetes.io/service-name";
const MANAGER: &str = "endpointslice.kubernetes.io/managed-by";
const OURS: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// When that changed which a slice was last written for: what the delay of the network's programming is reckoned from.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Endpoints of one slice at most, as in Kubernetes.
const FULL: usize = 100;

pub(crate) fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE).map(String::as_str)
}

pub(crate) fn is_ours(slice: &EndpointSlice) -> bool {
    slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGER))
        .is_some_and(|manager| manager == OURS)
}

pub(crate) fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName") && spec.selector.as_ref().is_some_and(|s| !s.is_empty())
    })
}

pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else { return false };
    let label = |key: &String| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    !selector.is_empty() && selector.iter().all(|(key, value)| label(key) == Some(value))
}

/// The labels of a pod, each as one word.
pub(crate) fn labels_of(pod: &Pod) -> Vec<String> {
    pod.metadata.labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect()
}

/// One of the labels that a Service's pods must have, as [`labels_of`] writes it.
pub(crate) fn selector_of(service: &Service) -> Vec<String> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let last = selector.and_then(|selector| selector.last_key_value());
    last.map(|(key, value)| format!("{key}={value}")).into_iter().collect()
}

/// The writes that make the slices right.
#[derive(Default, Debug)]
pub(crate) struct Plan {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

/// `pods` are those that the Service selects, `slices` those that this controller made for it.
pub(crate) fn plan(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    // By resolved ports (named target ports differ from pod to pod), then by address.
    let mut groups: BTreeMap<String, (Vec<EndpointPort>, BTreeMap<String, Endpoint>)> = BTreeMap::new();
    for pod in pods {
        if let Some(endpoint) = endpoint(service, pod) {
            let ports = ports(service, pod);
            let group = groups.entry(port_key(&ports)).or_insert_with(|| (ports, BTreeMap::new()));
            group.1.insert(endpoint.addresses.join(","), endpoint);
        }
    }
    let empty = groups.is_empty();
    let mut kept_empty = false;
    let mut rooms: Vec<(&Arc<EndpointSlice>, String, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let key = port_key(slice.ports.as_deref().unwrap_or_default());
        let Some((_, wanted)) = groups.get_mut(&key) else {
            // A Service without endpoints keeps one slice, with its ports: the next pod fits into it again.
            if empty && !kept_empty {
                kept_empty = true;
                rooms.push((slice, key, Vec::new()));
            } else {
                plan.delete.push(Arc::clone(slice));
            }
            continue;
        };
        let held = slice.endpoints.iter().filter_map(|held| wanted.remove(&held.addresses.join(",")));
        rooms.push((slice, key, held.collect()));
    }
    for (key, (ports, mut wanted)) in groups {
        for (_, _, held) in rooms.iter_mut().filter(|(_, room, _)| *room == key) {
            while held.len() < FULL
                && let Some((_, endpoint)) = wanted.pop_first()
            {
                held.push(endpoint);
            }
        }
        let left: Vec<Endpoint> = wanted.into_values().collect();
        plan.create.extend(left.chunks(FULL).map(|chunk| new_slice(service, ports.clone(), chunk.to_vec())));
    }
    if empty && !kept_empty {
        let declared: Vec<EndpointPort> = declared_ports(service);
        plan.create.push(new_slice(service, declared, Vec::new()));
    }
    for slice in &mut plan.create {
        note_trigger(slice, &[], meta::created(service), pods);
    }
    for (slice, _, endpoints) in rooms {
        if endpoints.is_empty() && !empty {
            plan.delete.push(Arc::clone(slice));
            continue;
        }
        let labels = labels(service);
        let same_labels = slice.metadata.labels.as_ref() == Some(&labels);
        if !same_labels || slice.endpoints != endpoints {
            let mut changed = slice.as_ref().clone();
            changed.metadata.labels = Some(labels);
            changed.endpoints = endpoints;
            note_trigger(&mut changed, &slice.endpoints, None, pods);
            plan.update.push(changed);
        }
    }
    plan
}

/// Notes when the first of what a slice is written for happened: the Service made, or a pod of a new or changed endpoint ready or unready.
fn note_trigger(slice: &mut EndpointSlice, before: &[Endpoint], made: Option<Timestamp>, pods: &[Arc<Pod>]) {
    let changed = slice.endpoints.iter().filter(|endpoint| !before.contains(endpoint));
    let uids: Vec<&str> =
        changed.filter_map(|endpoint| endpoint.target_ref.as_ref()?.uid.as_deref()).collect();
    let turned = pods.iter().filter(|pod| uids.contains(&meta::uid(pod.as_ref()))).filter_map(|pod| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        Some(conditions.iter().find(|held| held.type_ == "Ready")?.last_transition_time.as_ref()?.0)
    });
    let first = turned.chain(made).min();
    let annotations = slice.metadata.annotations.get_or_insert_default();
    match first {
        Some(time) => drop(annotations.insert(TRIGGER.to_owned(), time.to_string())),
        None => drop(annotations.remove(TRIGGER)),
    }
    if annotations.is_empty() {
        slice.metadata.annotations = None;
    }
}

fn endpoint(service: &Service, pod: &Pod) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.as_ref().filter(|address| !address.is_empty())?;
    if meta::is_finished(pod) {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let published = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let (serving, terminating) = (meta::is_ready(pod), pod.metadata.deletion_timestamp.is_some());
    let in_subdomain = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    Some(Endpoint {
        addresses: vec![address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(published || serving && !terminating),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec.hostname.clone().filter(|_| in_subdomain),
        node_name: spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let declared = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    declared.iter().filter_map(|port| Some(endpoint_port(port, target(port, pod)?))).collect()
}

/// The ports of a slice that has no endpoints: those that need no pod to be resolved.
fn declared_ports(service: &Service) -> Vec<EndpointPort> {
    let declared = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let number = |port: &ServicePort| match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(if *number == 0 { port.port } else { *number }),
        Some(IntOrString::String(_)) => None,
    };
    declared.iter().filter_map(|port| Some(endpoint_port(port, number(port)?))).collect()
}

fn endpoint_port(port: &ServicePort, number: i32) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(number),
        protocol: Some(protocol(port.protocol.as_deref()).to_owned()),
        app_protocol: port.app_protocol.clone(),
    }
}

fn protocol(protocol: Option<&str>) -> &str {
    protocol.unwrap_or("TCP")
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut all =
                spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let named = all.find(|held| {
                held.name.as_ref() == Some(name)
                    && protocol(held.protocol.as_deref()) == protocol(port.protocol.as_deref())
            });
            named.map(|held| held.container_port)
        }
    }
}

fn port_key(ports: &[EndpointPort]) -> String {
    let one = |port: &EndpointPort| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let number = port.port.unwrap_or(0);
        format!(
            "{}/{}/{number}/{}",
            text(&port.name),
            protocol(port.protocol.as_deref()),
            text(&port.app_protocol)
        )
    };
    let mut keys: Vec<String> = ports.iter().map(one).collect();
    keys.sort();
    keys.join(";")
}

fn labels(service: &Service) -> meta::Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE.to_owned(), meta::name(service).to_owned());
    labels.insert(MANAGER.to_owned(), OURS.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn new_slice(service: &Service, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut slice = EndpointSlice {
        address_type: "IPv4".to_owned(),
        ports: Some(ports),
        endpoints,
        ..Default::default()
    };
    slice.metadata.generate_name = Some(format!("{}-", meta::name(service)));
    slice.metadata.namespace.clone_from(&service.metadata.namespace);
    slice.metadata.labels = Some(labels(service));
    slice.metadata.owner_references = Some(vec![meta::controller_ref(service)]);
    slice
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{self, Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "s", "labels": {"team": "x"}},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.0.0.1", "ports": [{"port": 80, "targetPort": "http"}]},
        });
        service["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(service).unwrap()
    }

    fn pod(number: usize, port: i32, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("p{number}"), "namespace": "ns", "uid": format!("u{number}"), "labels": {"app": "web"}},
                "spec": {
                    "nodeName": "n", "hostname": "h", "subdomain": "web",
                    "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}],
                },
                "status": {
                    "phase": "Running", "podIP": format!("10.1.{}.{}", number / 250, number % 250),
                    "conditions": [{"type": "Ready", "status": status}],
                },
            }))
            .unwrap(),
        )
    }

    fn named(mut slice: EndpointSlice, name: &str) -> Arc<EndpointSlice> {
        slice.metadata.name = Some(name.into());
        Arc::new(slice)
    }

    #[test]
    fn one_ready_pod() {
        let made = plan(&service(json!({})), &[pod(1, 8080, true)], &[]);
        let slice = &made.create[0];
        assert_eq!(made.create.len(), 1);
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
        let endpoint = &slice.endpoints[0];
        assert_eq!(endpoint.addresses, ["10.1.0.1"]);
        assert_eq!(endpoint.hostname.as_deref(), Some("h"));
        assert_eq!(endpoint.target_ref.as_ref().unwrap().uid.as_deref(), Some("u1"));
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!((labels["team"].as_str(), labels[SERVICE].as_str()), ("x", "web"));
        assert!(!labels.contains_key(HEADLESS));
    }

    #[test]
    fn conditions() {
        let mut dying = pod(1, 8080, true).as_ref().clone();
        dying.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let cases = [
            (json!({}), pod(1, 8080, false), (false, false, false)),
            (json!({"publishNotReadyAddresses": true}), pod(1, 8080, false), (true, false, false)),
            (json!({}), Arc::new(dying), (false, true, true)),
        ];
        for (spec, pod, expected) in cases {
            let made = plan(&service(spec), &[pod], &[]);
            let held = made.create[0].endpoints[0].conditions.clone().unwrap();
            assert_eq!((held.ready.unwrap(), held.serving.unwrap(), held.terminating.unwrap()), expected);
        }
    }

    #[test]
    fn a_settled_service_writes_nothing_and_a_change_touches_one_slice() {
        let service = service(json!({}));
        let mut pods: Vec<Arc<Pod>> = (0..150).map(|n| pod(n, 8080, true)).collect();
        let made = plan(&service, &pods, &[]);
        let slices: Vec<_> =
            made.create.into_iter().enumerate().map(|(n, slice)| named(slice, &n.to_string())).collect();
        assert_eq!(slices.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [100, 50]);
        let again = plan(&service, &pods, &slices);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        pods[3] = pod(3, 8080, false);
        let changed = plan(&service, &pods, &slices);
        assert_eq!((changed.create.len(), changed.update.len(), changed.delete.len()), (0, 1, 0));
        pods.push(pod(200, 9090, true));
        let other_port = plan(&service, &pods, &slices);
        assert_eq!(other_port.create[0].ports.as_ref().unwrap()[0].port, Some(9090));
    }

    #[test]
    fn a_slice_tells_what_it_was_written_for() {
        let at = |time: &str| json!([{"type": "Ready", "status": "True", "lastTransitionTime": time}]);
        let ready = |number: usize, time: &str| -> Arc<Pod> {
            let mut value = serde_json::to_value(pod(number, 8080, true).as_ref()).unwrap();
            value["status"]["conditions"] = at(time);
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let told = |slice: &EndpointSlice| {
            slice.metadata.annotations.as_ref().and_then(|all| all.get(TRIGGER).cloned())
        };
        let mut service = service(json!({}));
        service.metadata.creation_timestamp = serde_json::from_value(json!("2026-01-01T00:00:05Z")).unwrap();
        let pods = vec![ready(1, "2026-01-01T00:00:03Z"), ready(2, "2026-01-01T00:00:04Z")];
        let first = named(plan(&service, &pods, &[]).create.remove(0), "a");
        assert_eq!(told(&first).as_deref(), Some("2026-01-01T00:00:03Z"), "the first of them");
        let more = [pods, vec![ready(3, "2026-01-01T00:00:09Z")]].concat();
        let second = plan(&service, &more, std::slice::from_ref(&first)).update.remove(0);
        assert_eq!(told(&second).as_deref(), Some("2026-01-01T00:00:09Z"), "only what changed");
        let fewer = plan(&service, &more[..2], &[named(second, "a")]).update.remove(0);
        assert_eq!(told(&fewer), None, "what went tells no time");
    }

    #[test]
    fn the_last_slice_stays_with_its_ports() {
        let service = service(json!({"clusterIP": "None"}));
        let slice = named(plan(&service, &[pod(1, 8080, true)], &[]).create.remove(0), "a");
        let idle = plan(&service, &[], std::slice::from_ref(&slice));
        assert!(idle.delete.is_empty() && idle.create.is_empty());
        assert!(idle.update[0].endpoints.is_empty());
        let kept = named(idle.update[0].clone(), "a");
        let back = plan(&service, &[pod(2, 8080, true)], &[kept]);
        assert_eq!((back.create.len(), back.update.len()), (0, 1));
        assert!(back.update[0].metadata.labels.as_ref().unwrap().contains_key(HEADLESS));
    }

    #[test]
    fn pods_without_address_or_with_their_work_done_are_none() {
        let mut without = pod(1, 8080, true).as_ref().clone();
        without.status.as_mut().unwrap().pod_ip = None;
        let mut done = pod(2, 8080, true).as_ref().clone();
        done.status.as_mut().unwrap().phase = Some("Succeeded".into());
        let made = plan(&service(json!({})), &[Arc::new(without), Arc::new(done)], &[]);
        assert!(made.create[0].endpoints.is_empty());
    }
}
