//! Secrets of the platform that the controller makes itself.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::Error;

/// The data of a Secret.
pub(crate) type Data = BTreeMap<String, Vec<u8>>;

/// The data of the Secret `name`; where it is not there, `make` makes it. Of several controllers that start at once one wins, and all
/// get what that one made. Waits for the API server.
pub(crate) async fn ensure(
    client: &Client,
    namespace: &str,
    name: &str,
    make: impl Fn() -> Result<Data, Error>,
) -> Result<Data, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut tries = 0_u32;
    loop {
        let result = match api.get_opt(name).await {
            Ok(Some(found)) => {
                return Ok(found.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect());
            }
            Ok(None) => {
                let secret = Secret {
                    metadata: ObjectMeta {
                        name: Some(name.into()),
                        namespace: Some(namespace.into()),
                        ..ObjectMeta::default()
                    },
                    type_: Some("Opaque".into()),
                    data: Some(make()?.into_iter().map(|(k, v)| (k, ByteString(v))).collect()),
                    ..Secret::default()
                };
                api.create(&PostParams::default(), &secret).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(error) => {
                tries += 1;
                tracing::warn!(%name, %error, "a Secret of the platform is not to be had yet");
                tokio::time::sleep(Duration::from_millis(50 << tries.min(7))).await;
            }
        }
    }
}

/// Replaces the data of a Secret.
pub(crate) async fn replace(client: &Client, namespace: &str, name: &str, data: &Data) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let data: BTreeMap<&String, ByteString> = data.iter().map(|(k, v)| (k, ByteString(v.clone()))).collect();
    let patch = kube::api::Patch::Merge(serde_json::json!({"data": data}));
    api.patch(name, &kube::api::PatchParams::default(), &patch).await.map(drop).map_err(|source| {
        Error::Write { verb: "change", object: format!("Secret {name}"), source: Box::new(source) }
    })
}
