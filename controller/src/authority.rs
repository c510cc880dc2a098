//! The mesh's certificate authority: its key in the Secret `ebb-mesh-ca`, and the endpoint where workloads show their
//! ServiceAccount token and get a certificate for the identity that the token proves.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use ebb_api::meta::ebb::{MESH_AUDIENCE, MESH_ROOT};
use ebb_mesh::ca::{Authority, CertificateRequest};
use ebb_mesh::{Backoff, SpiffeId};
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
use crate::custody::Custody;
use crate::error::Error;
use crate::tls;

const FIELD_MANAGER: &str = "ebb-controller";
/// How often what is published is written again, should somebody have changed it.
const MAKE_SURE: Duration = Duration::from_secs(300);
/// The Secret with the authority's key.
const SECRET: &str = "ebb-mesh-ca";

/// The authority, from its Secret; the first controller makes it.
///
/// A Secret with `tls.crt`, `tls.key` and `ca.crt` made by the user (an intermediate of their own) is taken as it is.
///
/// # Errors
/// When the Secret is damaged.
pub async fn ensure_authority(client: &Client, config: &Config) -> Result<Arc<Custody>, Error> {
    let (namespace, domain) = (&config.system_namespace, &config.trust_domain);
    Custody::open(client, namespace, SECRET, domain, config.certificate_ttl, &config.renewal).await
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
    custody: Arc<Custody>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let authority = custody.authority().clone();
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
        .with_state(Endpoint { client: client.clone(), authority });
    let published = shutdown.run_until_cancelled(publish_roots(&client, namespace, &custody));
    let kept = custody.keep(shutdown.clone());
    tokio::join!(tls::serve(listener, tls, router, shutdown.clone()), kept, published);
    Ok(())
}

/// Keeps the roots where the pods of the other components mount them; they do not start before. Namespaces with revisions get theirs
/// from the reconciler.
async fn publish_roots(client: &Client, namespace: &str, custody: &Custody) {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut news = custody.changed();
    let mut pauses = pauses();
    loop {
        news.mark_unchanged();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": MESH_ROOT, "labels": {"app.kubernetes.io/managed-by": "ebb"}},
            "data": {"ca.crt": custody.authority().roots_pem()},
        });
        let wait = match api.patch(MESH_ROOT, &params, &Patch::Apply(&map)).await {
            Ok(_) => {
                pauses = self::pauses();
                MAKE_SURE
            }
            Err(error) => {
                tracing::warn!(%error, "ConfigMap {MESH_ROOT} could not be written; will be tried again");
                pauses.next(rand::random())
            }
        };
        let _ = tokio::time::timeout(wait, news.changed()).await;
    }
}

const fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(10))
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
        Ok(response) => {
            metrics::counter!("ebb_controller_certificates_issued_total").increment(1);
            Json(response).into_response()
        }
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
    metrics::counter!("ebb_controller_certificates_refused_total").increment(1);
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
