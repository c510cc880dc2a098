//! One module for each thing that can be done to a resource.

pub(crate) mod delete;
pub(crate) mod ephemeral;
pub(crate) mod kubelet;
pub(crate) mod patch;
pub(crate) mod pods;
pub(crate) mod read;
pub(crate) mod reviews;
pub(crate) mod scale;
pub(crate) mod token;
pub(crate) mod usage;
pub(crate) mod watch;
pub(crate) mod write;

use std::sync::Arc;

use axum::body::Body;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{Method, Request};
use parking_lot::Mutex;

use crate::accept::Accept;
use crate::auth::User;
use crate::authorize;
use crate::error::{ApiError, Subject};
use crate::lean::Lean;
use crate::query::Query;
use crate::registry::Resource;
use crate::reply::{self, Include, Reply};
use crate::request::{self, Target};
use crate::selector::FieldSelector;
use crate::server::Server;
use crate::store::Key;

/// One request on one resource.
pub(crate) struct Ctx {
    pub(crate) server: Arc<Server>,
    pub(crate) resource: Arc<Resource>,
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) sub: String,
    pub(crate) user: User,
    pub(crate) query: Query,
    pub(crate) accept: Accept,
    pub(crate) include: Include,
    pub(crate) content_type: Option<String>,
    pub(crate) user_agent: Option<String>,
    warnings: Mutex<Vec<String>>,
}

impl Ctx {
    pub(crate) fn new(
        server: Arc<Server>,
        target: Target,
        user: User,
        query: Query,
        request: &Request<Body>,
    ) -> Result<Self, ApiError> {
        let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let sub = target.sub.unwrap_or_default();
        // Streams and logs answer with what they are, whatever is accepted.
        let mut accept = match sub.as_str() {
            "log" | "exec" | "attach" | "portforward" => Accept::JSON,
            _ => Accept::negotiate(request.headers())?,
        };
        accept.lean = request.extensions().get::<Lean>().is_some();
        Ok(Self {
            server,
            resource: target.resource,
            namespace: target.namespace,
            name: target.name,
            sub,
            user,
            include: Include::parse(query.get("includeObject"))?,
            query,
            accept,
            content_type: header(CONTENT_TYPE),
            user_agent: header(USER_AGENT),
            warnings: Mutex::default(),
        })
    }

    /// The same request, on another object: what one handler asks of another.
    pub(crate) fn of(&self, resource: Arc<Resource>, name: &str) -> Self {
        Self {
            server: self.server.clone(),
            resource,
            namespace: self.namespace.clone(),
            name: Some(name.to_owned()),
            sub: String::new(),
            user: self.user.clone(),
            query: self.query.clone(),
            accept: self.accept,
            include: self.include,
            content_type: self.content_type.clone(),
            user_agent: self.user_agent.clone(),
            warnings: Mutex::default(),
        }
    }

    /// What an error is about.
    pub(crate) fn subject(&self) -> Subject<'_> {
        self.resource.subject(self.name.as_deref().unwrap_or_default())
    }

    pub(crate) fn key(&self, name: &str) -> Key {
        Key::new(&self.resource.storage, &self.namespace, name)
    }

    pub(crate) fn object_name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    pub(crate) fn finish(&self, reply: Reply) -> Reply {
        reply::with_warnings(reply, &self.warnings.lock())
    }
}

fn verb(ctx: &Ctx, method: &Method) -> Result<&'static str, ApiError> {
    let connect = matches!(ctx.sub.as_str(), "exec" | "attach" | "portforward");
    Ok(match (method.as_str(), ctx.name.is_some()) {
        ("GET" | "POST", true) if connect => "create",
        ("GET", true) => {
            if ctx.query.flag("watch") {
                "watch"
            } else {
                "get"
            }
        }
        ("GET", false) => {
            if ctx.query.flag("watch") {
                "watch"
            } else {
                "list"
            }
        }
        ("POST", _) => "create",
        ("PUT", true) => "update",
        ("PATCH", true) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => return Err(ApiError::method_not_allowed()),
    })
}

/// Has a request answered, and counts it.
pub(crate) async fn dispatch(ctx: Ctx, request: Request<Body>) -> Result<Reply, ApiError> {
    let verb = verb(&ctx, request.method())?;
    let server = ctx.server.clone();
    let apply = ctx.content_type.as_deref() == Some("application/apply-patch+yaml");
    let agent = ctx.user_agent.as_deref();
    let request_of = server.figures.request(agent, verb, apply, &ctx.resource.storage, &ctx.sub);
    let mut counted = server.figures.count(request_of);
    let answer = handle(ctx, verb, request).await;
    counted.code = answer.as_ref().map_or_else(|error| error.code, Reply::status).as_u16();
    answer
}

/// Hands a request to the handler of its verb and subresource.
async fn handle(ctx: Ctx, verb: &'static str, request: Request<Body>) -> Result<Reply, ApiError> {
    // A list or watch of one name is a request for that name: rules with `resourceNames` allow it.
    let selected = FieldSelector::parse(ctx.query.get("fieldSelector").unwrap_or_default()).ok();
    let one = selected.as_ref().filter(|_| ctx.name.is_none()).and_then(FieldSelector::name);
    let attributes = authorize::Attributes {
        verb,
        group: &ctx.resource.group,
        resource: &ctx.resource.plural,
        subresource: &ctx.sub,
        namespace: &ctx.namespace,
        name: one.unwrap_or_else(|| ctx.object_name()),
    };
    authorize::resource(&ctx.server, &ctx.user, &attributes)?;
    if ctx.resource.virtual_only {
        if verb != "create" || ctx.name.is_some() {
            return Err(ApiError::method_not_allowed());
        }
        let body = request::read(request.into_body()).await?;
        return reviews::create(&ctx, request::decode(ctx.content_type.as_deref(), &body)?).await;
    }
    if ctx.resource.computed {
        return match verb {
            "get" if ctx.sub.is_empty() => usage::get(&ctx).await,
            "list" => usage::list(&ctx).await,
            _ => Err(ApiError::method_not_allowed()),
        };
    }
    if let Some(deprecation) = &ctx.resource.deprecation {
        ctx.warn(deprecation.clone());
    }
    match ctx.sub.as_str() {
        "" => {}
        "status" if ctx.resource.status => {}
        // Written as the pod itself; `ephemeral` says what may change.
        "ephemeralcontainers" => {}
        "scale" if ctx.resource.scale.is_some() => return scale::handle(&ctx, verb, request).await,
        sub if ctx.resource.subresources.iter().any(|known| known.name == sub) => {
            return subresource(ctx, request).await;
        }
        // Of a custom object upstream says that it has no such thing, by its name.
        _ if !ctx.resource.builtin => return Err(ApiError::not_found(ctx.subject())),
        _ => return Err(ApiError::no_such_path()),
    }
    let reply = match verb {
        "get" => read::get(&ctx).await?,
        "list" => read::list(&ctx).await?,
        "watch" => watch::watch(&ctx).await?,
        _ => {
            let nowhere = ctx.resource.namespaced && ctx.namespace.is_empty();
            if verb == "create" && (nowhere || ctx.name.is_some() || !ctx.sub.is_empty()) {
                return Err(ApiError::method_not_allowed());
            }
            let body = request::read(request.into_body()).await?;
            match verb {
                "create" => write::create(&ctx, &body).await?,
                "update" => write::update(&ctx, &body).await?,
                "patch" => patch::patch(&ctx, &body).await?,
                "delete" if ctx.sub.is_empty() => delete::delete(&ctx, &body).await?,
                "deletecollection" => delete::collection(&ctx, &body).await?,
                _ => return Err(ApiError::method_not_allowed()),
            }
        }
    };
    Ok(ctx.finish(reply))
}

async fn subresource(ctx: Ctx, request: Request<Body>) -> Result<Reply, ApiError> {
    match (ctx.resource.plural.as_str(), ctx.sub.as_str()) {
        ("pods", "log" | "exec" | "attach" | "portforward") => kubelet::handle(&ctx, request).await,
        (_, sub) => {
            let sub = sub.to_owned();
            let method = request.method().clone();
            let body = request::read(request.into_body()).await?;
            let reply = match (sub.as_str(), method.as_str()) {
                ("binding", "POST") => pods::bind(&ctx, &body).await?,
                ("eviction", "POST") => pods::evict(&ctx, &body).await?,
                ("token", "POST") => token::create(&ctx, &body)?,
                ("finalize", "PUT") => write::finalize_namespace(&ctx, &body).await?,
                _ => return Err(ApiError::method_not_allowed()),
            };
            Ok(ctx.finish(reply))
        }
    }
}
