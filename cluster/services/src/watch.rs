//! Keeps the index by two watches and tells the proxy of each Service that changed.

use std::{collections::HashSet, fmt::Debug, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, Resource,
    runtime::watcher::{self, Event},
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    index::{Changed, Index, Key},
    proxy::Proxy,
};

pub(crate) async fn run(client: Client, index: Arc<Index>, proxy: Arc<Proxy>, shutdown: CancellationToken) {
    let tell = |changes: Vec<Changed>| {
        for change in changes {
            proxy.update(&change.key, change.service.as_deref());
        }
    };
    let services = follow::<Service>(
        Api::all(client.clone()),
        &shutdown,
        |service| tell(index.put_service(service).into_iter().collect()),
        |key| tell(index.remove_service(key).into_iter().collect()),
        || index.keys().0,
    );
    let slices = follow::<EndpointSlice>(
        Api::all(client),
        &shutdown,
        |slice| tell(index.put_slice(slice)),
        |key| tell(index.remove_slice(key)),
        || index.keys().1,
    );
    tokio::join!(services, slices);
}

async fn follow<K>(
    api: Api<K>,
    shutdown: &CancellationToken,
    put: impl Fn(K),
    remove: impl Fn(&Key),
    known: impl Fn() -> Vec<Key>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let key = |object: &K| {
        let meta = object.meta();
        (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    };
    let stream = watcher::watcher(api, watcher::Config::default());
    futures::pin_mut!(stream);
    let mut listed: Option<HashSet<Key>> = None;
    let mut failures = 0u32;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                failures += 1;
                let pause = Duration::from_millis(20 << failures.min(8));
                tracing::warn!(kind = %K::kind(&()), %error, ?pause, "watch failed, starting again");
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => continue,
                }
            }
            Some(Ok(Event::Apply(object))) => put(object),
            Some(Ok(Event::Delete(object))) => remove(&key(&object)),
            Some(Ok(Event::Init)) => listed = Some(HashSet::new()),
            Some(Ok(Event::InitApply(object))) => {
                if let Some(listed) = &mut listed {
                    listed.insert(key(&object));
                }
                put(object);
            }
            Some(Ok(Event::InitDone)) => {
                if let Some(listed) = listed.take() {
                    known().iter().filter(|key| !listed.contains(key)).for_each(&remove);
                }
            }
        }
        failures = 0;
    }
}
