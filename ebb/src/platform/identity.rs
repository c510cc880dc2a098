//! The identities of the components in this process: the same tokens and the same authority as in pods.

use std::sync::Arc;

use anyhow::Context;
use ebb_mesh::{DEFAULT_TRUST_DOMAIN, Identity, IdentityConfig, Source, TOKEN_AUDIENCE};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use kube::Client;

/// Obtains the certificate of a system ServiceAccount, and keeps it fresh.
pub(super) async fn obtain(client: &Client, namespace: &str, account: &str, ca: &str, roots: &str) -> anyhow::Result<Identity> {
    let config = IdentityConfig {
        ca_address: ca.into(),
        ca_name: ebb_mesh::CA_SERVER_NAME.into(),
        roots: Source::Text(roots.into()),
        token: token(client.clone(), namespace.into(), account.into()),
        trust_domain: DEFAULT_TRUST_DOMAIN.into(),
    };
    Identity::obtain(config).await.with_context(|| format!("obtaining the identity of {account}"))
}

/// A fresh token at each renewal, as kubelet would have put it into a file.
fn token(client: Client, namespace: String, account: String) -> Source {
    Source::Fetch(Arc::new(move || {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
        let account = account.clone();
        Box::pin(async move {
            let spec = TokenRequestSpec {
                audiences: vec![TOKEN_AUDIENCE.into()],
                expiration_seconds: Some(3600),
                ..TokenRequestSpec::default()
            };
            let request = TokenRequest { spec, ..TokenRequest::default() };
            let answer = accounts.create_token_request(&account, &PostParams::default(), &request).await;
            let status = answer.map_err(std::io::Error::other)?.status;
            status.map(|s| s.token).ok_or_else(|| std::io::Error::other("the TokenRequest was answered without a token"))
        })
    }))
}
