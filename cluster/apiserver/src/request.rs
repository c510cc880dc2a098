//! What a path means, and reading bodies.

pub(crate) mod duplicates;

use std::sync::Arc;

use axum::body::Body;
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use crate::error::ApiError;
use crate::registry::{Resource, Snapshot};

/// The largest body read: as upstream's limit on a write.
const MAX_BODY: usize = 3 << 20;

/// So much of a body that is no object is shown.
const SHOWN_BODY: usize = 1024;

/// A path below `/api/v1` or `/apis/GROUP/VERSION`.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The resource type.
    pub resource: Arc<Resource>,
    /// Empty if the path names none.
    pub namespace: String,
    /// The object's name, unless the path is that of a collection.
    pub name: Option<String>,
    /// The subresource.
    pub sub: Option<String>,
}

/// Splits a path into its decoded segments.
pub(crate) fn segments(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect()
}

/// Resolves the segments after the version.
///
/// # Errors
/// 404 if there is no such resource or the path has too many parts.
pub(crate) fn resolve(
    snapshot: &Snapshot,
    group: &str,
    version: &str,
    rest: &[String],
) -> Result<Target, ApiError> {
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let (namespace, rest) = match rest.as_slice() {
        // `namespaces/x/status` is a subresource of the namespace itself.
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] if group.is_empty() => {
            ("", rest.as_slice())
        }
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let [plural, rest @ ..] = rest else { return Err(ApiError::no_such_path()) };
    let resource = snapshot.find(group, version, plural).ok_or_else(ApiError::no_such_path)?;
    if !resource.namespaced && !namespace.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let (name, sub) = match rest {
        [] => (None, None),
        [name] => (Some((*name).to_owned()), None),
        [name, sub] => (Some((*name).to_owned()), Some((*sub).to_owned())),
        _ => return Err(ApiError::no_such_path()),
    };
    if resource.namespaced && namespace.is_empty() && name.is_some() {
        return Err(ApiError::no_such_path());
    }
    Ok(Target { resource: resource.clone(), namespace: namespace.to_owned(), name, sub })
}

/// Reads a body to its end.
///
/// # Errors
/// 413 if it is too large, 400 if it breaks off.
pub(crate) async fn read(body: Body) -> Result<bytes::Bytes, ApiError> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError {
            code: http::StatusCode::PAYLOAD_TOO_LARGE,
            reason: "RequestEntityTooLarge",
            message: format!("Request entity too large: limit is {MAX_BODY}"),
            details: None,
        }),
        Err(error) => Err(ApiError::bad_request(format!("the request's body could not be read: {error}"))),
    }
}

/// Decodes a body that holds an object.
///
/// # Errors
/// 415 for a media type other than JSON and YAML, 400 for a body that is neither.
pub(crate) fn decode(content_type: Option<&str>, body: &[u8]) -> Result<Value, ApiError> {
    let media = content_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
    match media {
        "application/json" | "" => serde_json::from_slice(body).map_err(|error| {
            ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type JSON): {error}"
            ))
        }),
        "application/yaml" | "application/x-yaml" | "text/yaml" | "application/apply-patch+yaml" => {
            yaml(body)
        }
        "application/vnd.kubernetes.protobuf" => crate::protobuf::decode(body)
            .map_err(|error| ApiError::bad_request(format!("the protobuf body cannot be decoded: {error}"))),
        _ => Err(ApiError::unsupported_media(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// What a JSON body that is no object is told.
pub(crate) fn no_object(kind: &str, value: &Value, body: &[u8]) -> String {
    let got = cluster_schema::decode::kind(value);
    let wanted = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    format!(
        "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: json: cannot unmarshal {got} \
         into Go value of type {wanted} ({})",
        hex::encode(&body[..body.len().min(SHOWN_BODY)])
    )
}

/// Decodes YAML (or JSON, which is YAML too).
///
/// # Errors
/// 400 with the parser's message.
pub(crate) fn yaml(body: &[u8]) -> Result<Value, ApiError> {
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    serde_saphyr::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn target(
        group: &str,
        version: &str,
        path: &str,
    ) -> Result<(String, String, Option<String>, Option<String>), ApiError> {
        let snapshot = Registry::new().snapshot();
        let target = resolve(&snapshot, group, version, &segments(path))?;
        Ok((target.resource.plural.clone(), target.namespace, target.name, target.sub))
    }

    #[test]
    fn paths() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(target("", "v1", "pods").unwrap(), ("pods".into(), String::new(), None, None));
        assert_eq!(
            target("", "v1", "namespaces/a/pods/b/log").unwrap(),
            ("pods".into(), "a".into(), some("b"), some("log"))
        );
        assert_eq!(
            target("", "v1", "namespaces/a").unwrap(),
            ("namespaces".into(), String::new(), some("a"), None)
        );
        assert_eq!(
            target("", "v1", "namespaces/a/status").unwrap(),
            ("namespaces".into(), String::new(), some("a"), some("status"))
        );
        assert!(target("", "v1", "pods/b").is_err(), "a namespaced object needs its namespace");
        assert!(target("", "v1", "namespaces/a/nodes").is_err());
        assert!(target("apps", "v2", "deployments").is_err());
    }

    #[test]
    fn bodies() {
        assert_eq!(decode(Some("application/yaml"), b"a: 1\nb: [x]").unwrap()["b"][0], "x");
        assert_eq!(decode(None, b"{\"a\":1}").unwrap()["a"], 1);
        assert_eq!(decode(Some("application/vnd.kubernetes.protobuf"), b"k8s").unwrap_err().code, 400);
        assert_eq!(decode(Some("application/cbor"), b"").unwrap_err().code, 415);
    }
}
