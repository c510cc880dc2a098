//! Filling a pod's volumes, and keeping them up to date with the objects they come from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Source, Token, TokenWish, Tokens, due_tokens, is_secret, make_empty, renew_at, source, write};
use crate::context::Context;
use crate::objects::Change;
use crate::pod::{container, volume_root};
use crate::runtime::RuntimeError;

/// Writes all volumes; `first` also makes the empty ones.
pub(crate) async fn fill(
    context: &Context,
    pod: &Pod,
    pod_dir: &Path,
    tokens: &mut Tokens,
    first: bool,
) -> Result<(), String> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    if spec.volumes.as_ref().is_none_or(Vec::is_empty) {
        return Ok(());
    }
    let now = Timestamp::now();
    for wish in due_tokens(pod, tokens, now) {
        let token = request_token(context, pod, &wish).await?;
        tokens.insert((wish.volume, wish.path), token);
    }
    let found = context.objects.find(pod).await;
    let facts = container::facts(context, None);
    let group =
        spec.security_context.as_ref().and_then(|s| s.fs_group).and_then(|gid| u32::try_from(gid).ok());
    for volume in spec.volumes.iter().flatten() {
        let folder = volume_root(context, pod_dir, volume);
        let fail = |error: std::io::Error| format!("volume {:?}: {error}", volume.name);
        let lost = |error: RuntimeError| format!("volume {:?}: {error}", volume.name);
        match source(pod, volume, &facts, &found, tokens)
            .map_err(|message| format!("MountVolume.SetUp failed for volume {:?} : {message}", volume.name))?
        {
            Source::Host(_) => {}
            Source::Files(files) if is_secret(volume) => {
                let write = move || write(&folder, &files, group);
                context.runtime.among_mounts(write).await.map_err(lost)?.map_err(fail)?;
            }
            Source::Files(files) => {
                write(&folder, &files, group).map_err(fail)?;
            }
            Source::Empty if first => make_empty(&folder, group).map_err(fail)?,
            Source::Memory(size) if first => {
                make_empty(&folder, group).map_err(fail)?;
                // An earlier try, which failed at another volume, has mounted it already.
                context.runtime.unmount(&folder).await.map_err(lost)?;
                context.runtime.mount_tmpfs(&folder, size).await.map_err(|error| error.to_string())?;
                let own = move || make_empty(&folder, group);
                context.runtime.among_mounts(own).await.map_err(lost)?.map_err(fail)?;
            }
            Source::Empty | Source::Memory(_) => {}
        }
    }
    Ok(())
}

/// Rewrites volumes when an object they come from changes and when a token has to be replaced.
pub(crate) async fn keep(
    context: &Context,
    pod: Pod,
    pod_dir: PathBuf,
    mut tokens: Tokens,
    mut changes: broadcast::Receiver<Change>,
    ended: CancellationToken,
) {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut kept = volumes.filter(|v| v.config_map.is_some() || v.secret.is_some() || v.projected.is_some());
    if kept.next().is_none() {
        return;
    }
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    loop {
        let renew = tokens.values().map(|token| token.renew_at).min();
        let wait =
            renew.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        tokio::select! {
            () = ended.cancelled() => return,
            () = tokio::time::sleep(wait.unwrap_or(Duration::from_secs(86_400))) => {}
            change = changes.recv() => match change {
                // Without a name: the watch was interrupted, and anything may have changed.
                Ok((changed, _)) if !changed.is_empty() && changed != namespace => continue,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
        }
        if let Err(message) = fill(context, &pod, &pod_dir, &mut tokens, false).await {
            // What is there stays until the object is whole again.
            debug!(pod = pod.metadata.name, message, "volumes are not renewed");
            tokio::select! {
                () = ended.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }
}

async fn request_token(context: &Context, pod: &Pod, wish: &TokenWish) -> Result<Token, String> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone())
        .unwrap_or_else(|| "default".to_owned());
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: wish.audience.iter().cloned().collect(),
            expiration_seconds: Some(wish.seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let answer = api
        .create_token_request(&account, &PostParams::default(), &request)
        .await
        .map_err(|error| format!("no token for service account {namespace}/{account}: {error}"))?;
    let status = answer.status.ok_or("the token request was answered without a status")?;
    let renew_at = renew_at(Timestamp::now(), status.expiration_timestamp.0);
    Ok(Token { text: status.token, renew_at })
}
