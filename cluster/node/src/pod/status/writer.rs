//! Writing a pod's status: of several changes only the last.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::is_news;

/// How long a status that is no news is held.
const SETTLE: Duration = Duration::from_millis(50);

/// Writes each latest status until the sender is gone; a failed write is repeated unless the pod is gone.
pub(crate) async fn write(api: Api<Pod>, name: String, uid: String, mut latest: watch::Receiver<PodStatus>) {
    let mut wait = Duration::from_millis(100);
    let mut written = latest.borrow().clone();
    while latest.changed().await.is_ok() {
        // While containers start, states that nobody acts on follow each other closely: they are written once they have settled.
        let settled = tokio::time::Instant::now() + SETTLE;
        while !is_news(&written, &latest.borrow_and_update()) {
            match tokio::time::timeout_at(settled, latest.changed()).await {
                Ok(Ok(())) => {}
                _ => break,
            }
        }
        loop {
            let status = latest.borrow_and_update().clone();
            written.clone_from(&status);
            let patch = json!({ "metadata": { "uid": uid }, "status": nulls(&status) });
            match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    debug!(pod = name, reason = status.reason, "the pod is gone, its status is not written");
                    break;
                }
                Err(error) => warn!(pod = name, %error, "cannot write the pod's status; trying again"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
        wait = Duration::from_millis(100);
    }
}

/// The status as a patch: what may vanish (reason, message) is removed by an explicit null.
fn nulls(status: &PodStatus) -> serde_json::Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        for name in ["reason", "message"] {
            object.entry(name).or_insert(serde_json::Value::Null);
        }
    }
    value
}
