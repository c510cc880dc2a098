//! The ServiceAccount plugin: a pod runs as an account, whose token it finds mounted.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::random_suffix;
use crate::error::ApiError;
use crate::handlers::Ctx;
use crate::meta;

const KIND: &str = "/serviceaccounts";
/// How long a pod's creation waits for its account.
const PATIENCE: Duration = Duration::from_secs(1);
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// As upstream: an hour and seven seconds, by which such tokens can be told.
const TOKEN_SECONDS: i64 = 3607;

fn account_name(spec: &Value) -> &str {
    let given = |field: &str| spec[field].as_str().filter(|name| !name.is_empty());
    given("serviceAccountName").or_else(|| given("serviceAccount")).unwrap_or("default")
}

/// Waits a moment for the account: that of a namespace just made is made by a controller.
pub(crate) async fn expect(ctx: &Ctx, pod: &Value) {
    let store = &ctx.server.store;
    let kind: Arc<str> = KIND.into();
    let name = account_name(&pod["spec"]).to_owned();
    if store.get(KIND, &ctx.namespace, &name).is_some() {
        return;
    }
    let Ok(mut watch) = store.watch(&kind, store.revision()) else { return };
    let appears = async {
        while store.get(KIND, &ctx.namespace, &name).is_none() {
            if watch.next().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, appears).await;
}

/// Sets the account's name and mounts its token.
pub(super) fn admit(ctx: &Ctx, pod: &mut Value) -> Result<(), ApiError> {
    // Pods that mirror a node's own have no account.
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Ok(());
    }
    let name = account_name(&pod["spec"]).to_owned();
    pod["spec"]["serviceAccountName"] = name.clone().into();
    pod["spec"]["serviceAccount"] = name.clone().into();
    let Some(account) = ctx.server.store.get(KIND, &ctx.namespace, &name) else {
        let cause = format!(
            "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
            ctx.namespace
        );
        return Err(ApiError::forbidden(ctx.resource.subject(meta::name(pod)), cause));
    };
    let wanted = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account.value["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount(&mut pod["spec"]);
    }
    let spec = &mut pod["spec"];
    if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && account.value["imagePullSecrets"].as_array().is_some_and(|list| !list.is_empty())
    {
        spec["imagePullSecrets"] = account.value["imagePullSecrets"].clone();
    }
    Ok(())
}

fn mount(spec: &mut Value) {
    let existing = spec["volumes"].as_array().into_iter().flatten().find_map(|volume| {
        volume["name"].as_str().filter(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned)
    });
    let volume = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", random_suffix()));
    let mut used = false;
    for list in ["containers", "initContainers"] {
        for container in meta::items_mut(spec, list) {
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            let Some(mounts) = container["volumeMounts"].as_array_mut() else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                used = true;
            }
        }
    }
    if !used || existing.is_some() {
        return;
    }
    if !spec["volumes"].is_array() {
        spec["volumes"] = json!([]);
    }
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 420,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{
                        "path": "namespace",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                    }]}},
                ],
            },
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once() {
        let mut spec = json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"mountPath": MOUNT_PATH, "name": "own"}]}]});
        mount(&mut spec);
        assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], spec["volumes"][0]["name"]);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let once = spec.clone();
        mount(&mut spec);
        assert_eq!(spec, once);
    }
}
