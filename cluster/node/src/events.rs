//! Events about pods: what `kubectl describe pod` lists. A repeated event raises the count of the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

/// How many different events are remembered for counting.
const REMEMBERED: usize = 4096;

/// What is recorded is written this much later: while containers start, the processor is wanted for that.
const LATER: SignedDuration = SignedDuration::from_millis(200);

/// Writes events in the background, in order, without holding anybody up. Beyond a thousand waiting they are dropped.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Entry>,
    component: Arc<str>,
}

#[derive(Debug)]
struct Entry {
    reference: ObjectReference,
    warning: bool,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    pub(crate) fn start(client: Client, node: &str) -> Self {
        let (queue, inbox) = mpsc::channel(1000);
        let component: Arc<str> = node.into();
        tokio::spawn(write(client, inbox, Arc::clone(&component)));
        Self { queue, component }
    }

    pub(crate) fn normal(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(pod, container, false, reason, message.into());
    }

    pub(crate) fn warning(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(pod, container, true, reason, message.into());
    }

    fn record(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &str, message: String) {
        debug!(node = %self.component, reason, message, "event");
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|name| format!("spec.containers{{{name}}}")),
        };
        let entry = Entry { reference, warning, reason: reason.to_owned(), message, at: Timestamp::now() };
        // A flood of events must not hold pods up.
        let _ = self.queue.try_send(entry);
    }
}

async fn write(client: Client, mut inbox: mpsc::Receiver<Entry>, node: Arc<str>) {
    let mut known: HashMap<String, (String, i32)> = HashMap::new();
    let mut serial = 0_u64;
    while let Some(entry) = inbox.recv().await {
        let left = LATER - Timestamp::now().duration_since(entry.at);
        if let Ok(left) = Duration::try_from(left) {
            tokio::time::sleep(left).await;
        }
        let namespace = entry.reference.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = format!(
            "{namespace}/{}/{}/{}/{}",
            entry.reference.uid.as_deref().unwrap_or_default(),
            entry.reference.field_path.as_deref().unwrap_or_default(),
            entry.reason,
            entry.message
        );
        if let Some((name, count)) = known.get_mut(&key) {
            *count += 1;
            let patch = json!({ "count": *count, "lastTimestamp": Time(entry.at) });
            if api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                continue;
            }
        }
        serial += 1;
        let name = format!(
            "{}.{:x}{:04x}",
            entry.reference.name.as_deref().unwrap_or_default(),
            entry.at.as_nanosecond(),
            serial & 0xffff
        );
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: entry.reference,
            reason: Some(entry.reason),
            message: Some(entry.message),
            type_: Some(if entry.warning { "Warning" } else { "Normal" }.to_owned()),
            count: Some(1),
            first_timestamp: Some(Time(entry.at)),
            last_timestamp: Some(Time(entry.at)),
            source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_string()) }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(node.to_string()),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(key, (name, 1));
            }
            Err(error) => debug!(%error, "an event was not recorded"),
        }
    }
}
