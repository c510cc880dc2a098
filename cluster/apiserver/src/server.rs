//! The server's state and the way from a request to its handler.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::json;

use crate::accept::Accept;
use crate::auth::{Authenticator, User};
use crate::error::ApiError;
use crate::figures::Figures;
use crate::handlers::{self, Ctx};
use crate::query::Query;
use crate::registry::Registry;
use crate::reply::{self, Reply};
use crate::request;
use crate::services::Addresses;
use crate::store::Store;
use crate::webhooks::Hooks;

/// Everything a handler may need.
pub(crate) struct Server {
    pub(crate) store: Arc<Store>,
    pub(crate) registry: Registry,
    pub(crate) auth: Authenticator,
    pub(crate) addresses: Addresses,
    pub(crate) hooks: Hooks,
    pub(crate) kubelet: ArcSwapOption<axum::Router>,
    pub(crate) usage: crate::handlers::usage::History,
    pub(crate) figures: Figures,
    pub(crate) git_version: String,
    /// Where clients reach this server, as discovery tells them.
    pub(crate) address: String,
    pub(crate) shutdown: tokio_util::sync::CancellationToken,
}

/// What is said of a path that leads nowhere: outside of Kubernetes' own groups upstream answers in plain text.
fn nowhere(snapshot: &crate::registry::Snapshot, group: &str, error: ApiError) -> ApiError {
    let own = |versions: &Vec<crate::registry::Version>| {
        versions.iter().flat_map(|(_, list)| list).any(|known| known.builtin)
    };
    if snapshot.groups.get(group).is_some_and(own) { error } else { ApiError::no_such_page() }
}

impl Server {
    /// Answers one request. Whatever goes wrong becomes a `Status`.
    pub(crate) async fn handle(self: Arc<Self>, request: Request<Body>) -> Reply {
        let head = request.method() == Method::HEAD;
        let mut reply = match self.route(request).await {
            Ok(reply) => reply,
            Err(error) => reply::error(&error),
        };
        if head {
            *reply.body_mut() = Body::empty();
        }
        reply
    }

    async fn route(self: &Arc<Self>, request: Request<Body>) -> Result<Reply, ApiError> {
        let path = request.uri().path().trim_end_matches('/').to_owned();
        let user = self.auth.authenticate(self, &request)?;
        match path.as_str() {
            "/healthz" | "/livez" | "/readyz" | "/healthz/ping" | "/livez/ping" | "/readyz/ping" => {
                return Ok(reply::bytes(StatusCode::OK, "text/plain; charset=utf-8", "ok"));
            }
            "/version" => return Ok(self.version()),
            _ => {}
        }
        let segments = request::segments(&path);
        let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
        let snapshot = self.registry.snapshot();
        match parts.as_slice() {
            // The older form of a watch: the path says it, not the query.
            ["api", version, "watch", rest @ ..] if !rest.is_empty() => {
                let target = request::resolve(&snapshot, "", version, &segments[3..])?;
                self.resource(request, target, user, true).await
            }
            ["apis", group, version, "watch", rest @ ..] if !rest.is_empty() => {
                let target = request::resolve(&snapshot, group, version, &segments[4..]);
                let target = target.map_err(|error| nowhere(&snapshot, group, error))?;
                self.resource(request, target, user, true).await
            }
            ["api", version, rest @ ..] if !rest.is_empty() => {
                let target = request::resolve(&snapshot, "", version, &segments[2..])?;
                self.resource(request, target, user, false).await
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                let target = request::resolve(&snapshot, group, version, &segments[3..]);
                let target = target.map_err(|error| nowhere(&snapshot, group, error))?;
                self.resource(request, target, user, false).await
            }
            _ => {
                crate::authorize::non_resource(self, &user, request.method(), &path)?;
                match parts.as_slice() {
                    ["apis", group, ..] => {
                        crate::discovery::handle(&snapshot, &parts, request.headers(), &self.address)
                            .map_err(|error| nowhere(&snapshot, group, error))
                    }
                    ["api" | "apis", ..] => {
                        crate::discovery::handle(&snapshot, &parts, request.headers(), &self.address)
                    }
                    ["metrics"] => Ok(reply::bytes(
                        StatusCode::OK,
                        "text/plain; version=0.0.4; charset=utf-8",
                        self.figures.render(&self.store),
                    )),
                    ["openapi", "v2"] => Ok(crate::openapi::v2(request.headers())),
                    ["openapi", "v3", rest @ ..] => {
                        crate::openapi::handle(&snapshot, rest, request.headers())
                    }
                    [".well-known", "openid-configuration"] => Ok(self.auth.openid_configuration()),
                    ["openid", "v1", "jwks"] => Ok(self.auth.jwks()),
                    [] => Ok(reply::value(
                        StatusCode::OK,
                        Accept::JSON,
                        &json!({"paths": crate::discovery::paths(&snapshot)}),
                    )),
                    _ => Err(ApiError::no_such_page()),
                }
            }
        }
    }

    async fn resource(
        self: &Arc<Self>,
        request: Request<Body>,
        target: request::Target,
        user: User,
        watch: bool,
    ) -> Result<Reply, ApiError> {
        let mut query = Query::parse(request.uri().query());
        if watch {
            query.set("watch", "true");
        }
        let ctx = Ctx::new(self.clone(), target, user, query, &request)?;
        handlers::dispatch(ctx, request).await
    }

    fn version(&self) -> Reply {
        let mut parts = self.git_version.trim_start_matches('v').split('.');
        let major = parts.next().unwrap_or("1");
        let minor = parts.next().unwrap_or("0");
        let version = json!({
            "major": major,
            "minor": minor,
            "emulationMajor": major,
            "emulationMinor": minor,
            "minCompatibilityMajor": major,
            "minCompatibilityMinor": minor.parse::<u32>().map_or_else(|_| minor.to_owned(), |n| n.saturating_sub(1).to_string()),
            "gitVersion": self.git_version,
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "none",
            "compiler": "rustc",
            "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
        });
        reply::value(StatusCode::OK, Accept::JSON, &version)
    }
}
