//! Waits until a new cluster can be used, by watches.

use std::{fmt::Debug, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::{
    Api, Client, Resource,
    runtime::watcher::{self, watch_object},
};
use serde::de::DeserializeOwned;

use crate::error::Error;

const PATIENCE: Duration = Duration::from_secs(30);

/// Resolves when the node is Ready and pods can be made in namespace `default`.
pub(crate) async fn wait(client: &Client, node: &str) -> Result<(), Error> {
    let account: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let nodes: Api<Node> = Api::all(client.clone());
    let is_ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|held| held.type_ == "Ready" && held.status == "True")
    };
    let missing = |what: String| Error::NotReady { seconds: PATIENCE.as_secs(), missing: what };
    let ready = tokio::time::timeout(PATIENCE, seen(nodes, node, is_ready));
    let made = tokio::time::timeout(PATIENCE, seen(account, "default", |_| true));
    let (ready, made) = tokio::join!(ready, made);
    ready.map_err(|_| missing(format!("the node {node} is not Ready")))?;
    made.map_err(|_| missing("namespace default has no ServiceAccount".to_owned()))
}

async fn seen<K>(api: Api<K>, name: &str, wanted: impl Fn(&K) -> bool)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let stream = watch_object(api, name);
    futures::pin_mut!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(Some(object)) if wanted(&object) => return,
            Ok(_) => {}
            Err(error) => {
                let error: watcher::Error = error;
                tracing::debug!(%error, "watch failed, starting again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
