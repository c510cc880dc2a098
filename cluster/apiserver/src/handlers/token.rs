//! serviceaccounts/token: TokenRequest.

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Ctx, read};
use crate::auth::token::{Bound, Claims, ISSUER};
use crate::error::ApiError;
use crate::reply::{self, Reply};
use crate::{meta, request};

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

/// Signs a token for the account.
pub(crate) fn create(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let mut request = request::decode(ctx.content_type.as_deref(), body)?;
    let account = read::find(ctx)?;
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
        let detail = if seconds < MIN_SECONDS {
            "may not specify a duration less than 10 minutes"
        } else {
            "may not specify a duration larger than 2^32 seconds"
        };
        let error = cluster_schema::FieldError::invalid("spec.expirationSeconds", &seconds.into(), detail);
        return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
    }
    let mut audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let bound = bound(ctx, &spec["boundObjectRef"])?;
    let claims = Claims {
        namespace: &ctx.namespace,
        name: &account.key.name,
        uid: meta::uid(&account.value),
        audiences: &audiences,
        seconds,
        bound: &bound,
    };
    let (token, expires) =
        ctx.server.auth.tokens.sign(&claims, Timestamp::now()).map_err(ApiError::internal)?;
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["kind"] = "TokenRequest".into();
    request["metadata"] = json!({"name": account.key.name, "namespace": ctx.namespace, "uid": meta::uid(&account.value),
        "creationTimestamp": meta::now()});
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    super::write::track_token(ctx, &mut request)?;
    request["spec"]["boundObjectRef"] = request["spec"]["boundObjectRef"].take();
    request["status"] = json!({"token": token, "expirationTimestamp": meta::rfc3339(expires)});
    Ok(reply::value(StatusCode::CREATED, ctx.accept, &request))
}

fn bound(ctx: &Ctx, reference: &Value) -> Result<Bound, ApiError> {
    if reference.is_null() {
        return Ok(Bound::default());
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default().to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let (storage, plural) = match kind.as_str() {
        "Pod" => ("/pods", "pods"),
        "Secret" => ("/secrets", "secrets"),
        _ => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount to kind {kind:?}"
            )));
        }
    };
    let subject = crate::error::Subject { group: "", resource: plural, name: &name };
    let object =
        ctx.server.store.get(storage, &ctx.namespace, &name).ok_or_else(|| ApiError::not_found(subject))?;
    let actual = meta::uid(&object.value);
    if !uid.is_empty() && uid != actual {
        return Err(ApiError::conflict(
            subject,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    if kind == "Pod" && object.value["spec"]["serviceAccountName"] != ctx.object_name() {
        return Err(ApiError::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            ctx.object_name()
        )));
    }
    let node = object.value["spec"]["nodeName"]
        .as_str()
        .filter(|node| kind == "Pod" && !node.is_empty())
        .map(|node| {
            let object = ctx.server.store.get("/nodes", "", node);
            (node.to_owned(), object.map(|object| meta::uid(&object.value).to_owned()).unwrap_or_default())
        });
    Ok(Bound { kind, name: name.clone(), uid: actual.to_owned(), node })
}
