//! Who sent a request: in-process components, client certificates, ServiceAccount tokens.

pub(crate) mod token;

use axum::body::Body;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Map, Value, json};

use crate::accept::Accept;
use crate::authorize::{self, Attributes};
use crate::error::ApiError;
use crate::reply::{self, Reply};
use crate::server::Server;
use token::Tokens;

/// The group that may do anything.
pub const MASTERS: &str = "system:masters";

const IMPERSONATE: &str = "impersonate-";
const AS_USER: &str = "impersonate-user";
const AS_GROUP: &str = "impersonate-group";
const AS_UID: &str = "impersonate-uid";

/// Who sent a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    /// The name.
    pub name: String,
    /// The uid, of ServiceAccounts.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// More, such as the pod a token is bound to.
    pub extra: Map<String, Value>,
}

impl User {
    /// A user with its groups, authenticated.
    pub(crate) fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        groups.push("system:authenticated".to_owned());
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    /// Nobody in particular.
    pub(crate) fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// Is it in this group?
    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// As `userInfo` of reviews and webhooks.
    pub(crate) fn info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.clone().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = Value::Object(self.extra.clone());
        }
        info
    }
}

/// Whom a request wants to act as (`kubectl --as`).
fn impersonate(server: &Server, user: &User, headers: &HeaderMap) -> Result<User, ApiError> {
    let texts = |name| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let name = texts(AS_USER).next().unwrap_or_default();
    let groups: Vec<&str> = texts(AS_GROUP).collect();
    let may = |resource: &str, name: &str, namespace: &str| {
        let attributes =
            Attributes { verb: "impersonate", group: "", resource, subresource: "", namespace, name };
        authorize::resource(server, user, &attributes)
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => may("serviceaccounts", name, namespace)?,
        None => may("users", name, "")?,
    }
    for group in &groups {
        may("groups", group, "")?;
    }
    if name == "system:anonymous" {
        return Ok(User::anonymous());
    }
    let mut other = match account {
        Some((namespace, _)) if groups.is_empty() => {
            User::new(name, &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")])
        }
        _ => User::new(name, &groups),
    };
    other.uid = texts(AS_UID).next().unwrap_or_default().to_owned();
    Ok(other)
}

/// Checks what a request brings to prove who sent it.
pub(crate) struct Authenticator {
    pub(crate) tokens: Tokens,
}

impl Authenticator {
    /// The sender, or whom it may act as.
    pub(crate) fn authenticate(&self, server: &Server, request: &Request<Body>) -> Result<User, ApiError> {
        let user = self.sender(server, request)?;
        let headers = request.headers();
        if headers.contains_key(AS_USER) {
            return impersonate(server, &user, headers);
        }
        // Heeded in part, such a request would be done as somebody whom the client did not mean.
        if headers.keys().any(|name| name.as_str().starts_with(IMPERSONATE)) {
            return Err(ApiError::failure(
                "requested groups, uid or extra of a user to act as without naming the user",
            ));
        }
        Ok(user)
    }

    /// The sender: a bearer token counts before the connection's certificate.
    fn sender(&self, server: &Server, request: &Request<Body>) -> Result<User, ApiError> {
        if let Some(header) = request.headers().get(AUTHORIZATION) {
            let bearer = header.to_str().ok().and_then(|text| {
                let (scheme, token) = text.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
            });
            if let Some(token) = bearer {
                return self
                    .tokens
                    .verify(&server.store, token, &[token::ISSUER])
                    .map(|verified| verified.user)
                    .ok_or_else(ApiError::unauthorized);
            }
            return Err(ApiError::unauthorized());
        }
        Ok(request.extensions().get::<User>().cloned().unwrap_or_else(User::anonymous))
    }

    /// OpenID discovery, for those who verify tokens themselves.
    pub(crate) fn openid_configuration(&self) -> Reply {
        let document = json!({
            "issuer": token::ISSUER,
            "jwks_uri": format!("{}/openid/v1/jwks", token::ISSUER),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        });
        reply::value(StatusCode::OK, Accept::JSON, &document)
    }

    pub(crate) fn jwks(&self) -> Reply {
        reply::value(StatusCode::OK, Accept::JSON, &self.tokens.jwks())
    }
}
