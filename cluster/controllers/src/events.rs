//! Records Events as Kubernetes does, without ever making a controller wait: they go through a bounded channel to a
//! background task, which counts repetitions of the same event instead of writing new ones.

use std::{
    collections::HashMap,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::meta;

/// Events that wait to be written; more are dropped, since an event is never worth stopping for.
const WAITING: usize = 8192;
/// What is recorded is written this much later: while something starts, the processor is wanted for that.
const LATER: Duration = Duration::from_millis(200);
/// How long a repetition is counted on the event that is there already.
const SAME: Duration = Duration::from_secs(600);

/// One event that a plan wants to be recorded.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Draft {
    pub(crate) about: ObjectReference,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) component: &'static str,
}

impl Draft {
    pub(crate) fn normal<K: Resource<DynamicType = ()>>(
        about: &K,
        component: &'static str,
        reason: &'static str,
        message: String,
    ) -> Self {
        Self { about: meta::reference(about), warning: false, reason, message, component }
    }

    pub(crate) fn warning<K: Resource<DynamicType = ()>>(
        about: &K,
        component: &'static str,
        reason: &'static str,
        message: String,
    ) -> Self {
        Self { warning: true, ..Self::normal(about, component, reason, message) }
    }
}

/// Where controllers leave their events.
#[derive(Clone)]
pub(crate) struct Recorder {
    sender: mpsc::Sender<Recorded>,
}

type Recorded = (Instant, Timestamp, Draft);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Same {
    uid: String,
    reason: &'static str,
    message: String,
}

struct Written {
    namespace: String,
    name: String,
    count: i32,
    at: Instant,
}

impl Recorder {
    /// The recorder, and the task that writes what is recorded until `shutdown`.
    pub(crate) fn new(
        client: Client,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender }, write(client, receiver, shutdown))
    }

    pub(crate) fn record(&self, draft: Draft) {
        if let Err(error) = self.sender.try_send((Instant::now(), Timestamp::now(), draft)) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

async fn write(client: Client, mut receiver: mpsc::Receiver<Recorded>, shutdown: CancellationToken) {
    let mut written: HashMap<Same, Written> = HashMap::new();
    let permits = Arc::new(Semaphore::new(8));
    let mut serial = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    loop {
        let draft = tokio::select! {
            () = shutdown.cancelled() => return,
            draft = receiver.recv() => draft,
        };
        let Some((recorded, now, draft)) = draft else { return };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep_until(recorded + LATER) => {}
        }
        let namespace = draft.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let same = Same {
            uid: draft.about.uid.clone().unwrap_or_default(),
            reason: draft.reason,
            message: draft.message.clone(),
        };
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if written.len() > 4096 {
            written.retain(|_, event| event.at.elapsed() < SAME);
        }
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match written.get_mut(&same) {
            Some(known) if known.at.elapsed() < SAME => {
                known.count += 1;
                known.at = Instant::now();
                let patch = json!({"count": known.count, "lastTimestamp": meta::whole_seconds(now)});
                let (name, namespace) = (known.name.clone(), known.namespace.clone());
                tokio::spawn(async move {
                    if let Err(error) = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await
                    {
                        tracing::debug!(%error, namespace, name, "event not counted");
                    }
                    drop(permit);
                });
            }
            _ => {
                serial += 1;
                let event = event(draft, &namespace, serial, now);
                let name = event.metadata.name.clone().unwrap_or_default();
                written.insert(same, Written { namespace, name, count: 1, at: Instant::now() });
                tokio::spawn(async move {
                    if let Err(error) = api.create(&PostParams::default(), &event).await {
                        tracing::debug!(%error, reason = event.reason, "event not written");
                    }
                    drop(permit);
                });
            }
        }
    }
}

fn event(draft: Draft, namespace: &str, serial: u128, now: Timestamp) -> Event {
    let mut event = Event {
        reason: Some(draft.reason.to_owned()),
        message: Some(draft.message),
        type_: Some(if draft.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource { component: Some(draft.component.to_owned()), host: None }),
        reporting_component: Some(draft.component.to_owned()),
        reporting_instance: Some(String::new()),
        first_timestamp: Some(meta::whole_seconds(now)),
        last_timestamp: Some(meta::whole_seconds(now)),
        count: Some(1),
        ..Event::default()
    };
    event.metadata.namespace = Some(namespace.to_owned());
    event.metadata.name = Some(format!("{}.{serial:x}", draft.about.name.as_deref().unwrap_or("unknown")));
    event.involved_object = draft.about;
    event
}
