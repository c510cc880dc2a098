//! The mesh's certificate authority: its key in the Secret `ebb-mesh-ca`, and the endpoint where workloads show their
//! ServiceAccount token and get a certificate for the identity that the token proves.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use ebb_api::meta::ebb::{MESH_AUDIENCE, MESH_ROOT};
use ebb_mesh::SpiffeId;
use ebb_mesh::ca::{Authority, CertificateRequest, MaterialPem};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::{secrets, tls};

/// The Secret with the authority's key.
const SECRET: &str = "ebb-mesh-ca";

/// The authority, from its Secret; the first controller makes it.
///
/// A Secret with `tls.crt`, `tls.key` and `ca.crt` made by the user (an intermediate of their own) is taken as it is.
///
/// # Errors
/// When the Secret cannot be had or is damaged.
pub async fn ensure_authority(client: &Client, config: &Config) -> Result<Arc<Authority>, Error> {
    let make = || {
        let root = MaterialPem::generate_root(&config.trust_domain, SystemTime::now())?;
        Ok(secrets::Data::from([
            ("tls.crt".to_owned(), root.chain.into_bytes()),
            ("tls.key".to_owned(), root.key.into_bytes()),
            ("ca.crt".to_owned(), root.roots.into_bytes()),
        ]))
    };
    let data = secrets::ensure(client, &config.system_namespace, SECRET, make).await?;
    let field = |key: &str| {
        data.get(key).and_then(|v| String::from_utf8(v.clone()).ok()).ok_or_else(|| Error::Secret {
            name: SECRET.into(),
            message: format!("{key} is missing or no text"),
        })
    };
    let pem = MaterialPem { chain: field("tls.crt")?, key: field("tls.key")?, roots: field("ca.crt")? };
    let authority = Authority::new(config.trust_domain.clone(), config.certificate_ttl, &pem)?;
    Ok(Arc::new(authority))
}

#[derive(Clone)]
struct Endpoint {
    client: Client,
    authority: Arc<Authority>,
}

/// Serves the endpoint until `shutdown`.
pub(crate) async fn run(
    config: &Arc<Config>,
    client: Client,
    authority: Arc<Authority>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let namespace = &config.system_namespace;
    let mut names = vec![
        format!("controller.{namespace}"),
        format!("controller.{namespace}.svc"),
        format!("controller.{namespace}.svc.cluster.local"),
        ebb_mesh::CA_SERVER_NAME.to_owned(),
    ];
    names.dedup();
    let tls = authority.server_config(&names)?;
    let listener = ebb_component::listen(SocketAddr::new(config.bind_address, config.ca_port)).await?;
    let router = Router::new()
        .route(ebb_mesh::CERTIFICATES_PATH, post(certificates))
        .layer(axum::extract::DefaultBodyLimit::max(64 * 1024))
        .with_state(Endpoint { client: client.clone(), authority: authority.clone() });
    let published = shutdown.run_until_cancelled(publish_roots(&client, namespace, &authority));
    tokio::join!(tls::serve(listener, tls, router, shutdown.clone()), published);
    Ok(())
}

/// Keeps the roots where the pods of the other components mount them; they do not start before. Namespaces with revisions get theirs
/// from the reconciler.
async fn publish_roots(client: &Client, namespace: &str, authority: &Authority) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply("ebb-controller").force();
    let mut failures = 0_u32;
    loop {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": MESH_ROOT, "labels": {"app.kubernetes.io/managed-by": "ebb"}},
            "data": {"ca.crt": authority.roots_pem()},
        });
        let wait = match api.patch(MESH_ROOT, &params, &Patch::Apply(&map)).await {
            Ok(_) => {
                failures = 0;
                Duration::from_secs(60)
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "the mesh's roots could not be published; will be tried again");
                Duration::from_millis(100 << failures.min(6))
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn certificates(
    State(endpoint): State<Endpoint>,
    headers: HeaderMap,
    Json(request): Json<CertificateRequest>,
) -> Response {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    let Some(token) = bearer else {
        return refuse(StatusCode::UNAUTHORIZED, "a Bearer token of the audience ebb-mesh is needed");
    };
    let review = TokenReview {
        spec: TokenReviewSpec { token: Some(token.into()), audiences: Some(vec![MESH_AUDIENCE.into()]) },
        ..TokenReview::default()
    };
    let reviews: Api<TokenReview> = Api::all(endpoint.client.clone());
    let status = match reviews.create(&PostParams::default(), &review).await {
        Ok(review) => review.status.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "a token could not be reviewed");
            return refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "the token cannot be reviewed at the moment: try again",
            );
        }
    };
    let in_audience = status.audiences.iter().flatten().any(|a| a == MESH_AUDIENCE);
    if status.authenticated != Some(true) || !in_audience {
        let why = status.error.unwrap_or_else(|| "the token is not valid for the audience ebb-mesh".into());
        return refuse(StatusCode::UNAUTHORIZED, &why);
    }
    let user = status.user.and_then(|u| u.username).unwrap_or_default();
    let Some((namespace, account)) = account_of(&user) else {
        return refuse(StatusCode::FORBIDDEN, "only ServiceAccounts have an identity in the mesh");
    };
    let issued = SpiffeId::new(endpoint.authority.trust_domain(), namespace, account)
        .map_err(|e| e.to_string())
        .and_then(|id| {
            endpoint.authority.issue(&request.csr, &id, SystemTime::now()).map_err(|e| e.to_string())
        });
    match issued {
        Ok(response) => Json(response).into_response(),
        Err(error) => refuse(StatusCode::BAD_REQUEST, &error),
    }
}

/// Namespace and name of a ServiceAccount's user name.
fn account_of(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?
        .split_once(':')
        .filter(|(ns, name)| !ns.is_empty() && !name.is_empty())
}

fn refuse(code: StatusCode, message: &str) -> Response {
    (code, Json(json!({"error": message}))).into_response()
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_accounts_have_identities() {
        for (user, want) in [
            ("system:serviceaccount:default:hello", Some(("default", "hello"))),
            ("system:serviceaccount::hello", None),
            ("system:serviceaccount:default:", None),
            ("system:serviceaccount:default", None),
            ("jo", None),
        ] {
            assert_eq!(super::account_of(user), want);
        }
    }
}
