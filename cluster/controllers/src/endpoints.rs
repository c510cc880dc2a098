//! `Endpoints`, the older form of a Service's addresses: written from its EndpointSlices, for those who still read them.
//!
//! Nothing here is in anybody's way: changes are gathered for a moment, as a rollout makes many slices and one list of addresses
//! is enough.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::api::{DeleteParams, PostParams};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    cache::{Change, Key},
    endpointslice,
    queue::Queue,
    world::World,
};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(100);
const MANAGER: &str = "endpoints.kubernetes.io/managed-by";
const OURS: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let queue: Arc<Queue<Key>> = Queue::new();
    world.services.on_change({
        let queue = Arc::clone(&queue);
        move |change| queue.add_after(Key::of(change.latest().as_ref()), GATHER)
    });
    world.endpoint_slices.on_change({
        let queue = Arc::clone(&queue);
        move |change: &Change<EndpointSlice>| {
            let slice = change.latest();
            if let Some(service) = endpointslice::service_of(slice) {
                queue.add_after(Key::new(Key::of(slice.as_ref()).namespace, service), GATHER);
            }
        }
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        tokio::join!(world.services.synced(), world.endpoint_slices.synced());
        queue.run("endpoints", 4, shutdown, move |key: Key| reconcile(Arc::clone(&world), key)).await;
    });
}

async fn reconcile(world: Arc<World>, key: Key) -> Result<Option<Duration>, Error> {
    let api = world.api::<Endpoints>(&key.namespace);
    let service = world.services.get(&key).filter(|service| service.metadata.deletion_timestamp.is_none());
    let gone = |result: Result<(), kube::Error>| match result.map_err(Error::from) {
        // Gone, or another's write was faster: its event is on the way.
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(None),
        other => other.map(|()| None),
    };
    // Those of a Service without a selector are its maker's: not even looked at.
    if service.as_ref().is_some_and(|service| !endpointslice::has_selector(service)) {
        return Ok(None);
    }
    let held = api.get_opt(&key.name).await?;
    let Some(service) = service else {
        // Only those of a Service that is no more; what people made themselves is theirs.
        return match held.filter(is_ours) {
            Some(_) => gone(api.delete(&key.name, &DeleteParams::default()).await.map(drop)),
            None => Ok(None),
        };
    };
    let mut slices = world.endpoint_slices.find(&key.namespace, &key.name);
    slices.retain(|slice| endpointslice::is_ours(slice));
    let wanted = plan(&service, &slices);
    match held {
        None => gone(api.create(&PostParams::default(), &wanted).await.map(drop)),
        Some(held) if held.subsets == wanted.subsets && held.metadata.labels == wanted.metadata.labels => {
            Ok(None)
        }
        Some(held) => {
            let mut new = wanted;
            new.metadata.resource_version = held.metadata.resource_version;
            gone(api.replace(&key.name, &PostParams::default(), &new).await.map(drop))
        }
    }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGER)).is_some_and(|manager| manager == OURS)
}

/// The Endpoints of a Service with these slices.
fn plan(service: &Service, slices: &[Arc<EndpointSlice>]) -> Endpoints {
    let mut endpoints = Endpoints::default();
    endpoints.metadata.name.clone_from(&service.metadata.name);
    endpoints.metadata.namespace.clone_from(&service.metadata.namespace);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGER.to_owned(), OURS.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    endpoints.metadata.labels = Some(labels);
    let trigger = slices.iter().filter_map(|slice| slice.metadata.annotations.as_ref()?.get(TRIGGER)).max();
    endpoints.metadata.annotations = trigger.map(|time| [(TRIGGER.to_owned(), time.clone())].into());
    let subsets: Vec<EndpointSubset> = slices.iter().filter_map(|slice| subset(slice)).collect();
    endpoints.subsets = (!subsets.is_empty()).then_some(subsets);
    endpoints
}

fn subset(slice: &EndpointSlice) -> Option<EndpointSubset> {
    let of = |wanted: bool| -> Option<Vec<EndpointAddress>> {
        let ready = |endpoint: &&Endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|conditions| conditions.ready).unwrap_or(true) == wanted
        };
        let mut addresses: Vec<EndpointAddress> =
            slice.endpoints.iter().filter(ready).filter_map(address).collect();
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!addresses.is_empty()).then_some(addresses)
    };
    let (addresses, not_ready_addresses) = (of(true), of(false));
    if addresses.is_none() && not_ready_addresses.is_none() {
        return None;
    }
    let ports: Vec<EndpointPort> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(EndpointPort {
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: port.port?,
                protocol: port.protocol.clone(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    Some(EndpointSubset { addresses, not_ready_addresses, ports: (!ports.is_empty()).then_some(ports) })
}

fn address(endpoint: &Endpoint) -> Option<EndpointAddress> {
    let target = endpoint.target_ref.as_ref().map(|target| ObjectReference {
        kind: target.kind.clone(),
        name: target.name.clone(),
        namespace: target.namespace.clone(),
        uid: target.uid.clone(),
        ..ObjectReference::default()
    });
    Some(EndpointAddress {
        ip: endpoint.addresses.first()?.clone(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        target_ref: target,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_and_unready_addresses_stand_apart() {
        let service: Service = serde_json::from_value(
            json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {}}),
        )
        .unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({"addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {"ready": true}}, {"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]}))
        .unwrap();
        let made = plan(&service, &[Arc::new(slice)]);
        let subset = &made.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap()[0].ip, "10.0.0.2");
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(subset.ports.as_ref().unwrap()[0].name, None);
        assert!(is_ours(&made));
        assert_eq!(plan(&service, &[]).subsets, None);
    }
}
