//! Answers: objects, lists, tables and errors, in the form the client accepts.

use std::borrow::Cow;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WARNING};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::accept::{Accept, Shape};
use crate::error::ApiError;
use crate::registry::Resource;
use crate::store::Object;
use crate::{convert, lean, table};

/// The type of all answers.
pub(crate) type Reply = Response<Body>;

/// Bytes with a content type.
pub(crate) fn bytes(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Body::from(body.into()));
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// A JSON value, or the same as YAML.
pub(crate) fn value(code: StatusCode, accept: Accept, value: &Value) -> Reply {
    if accept.yaml {
        let text = serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string());
        return bytes(code, "application/yaml", text);
    }
    bytes(code, "application/json", value.to_string())
}

/// An error as a `Status`.
pub(crate) fn error(error: &ApiError) -> Reply {
    if error.is_page() {
        return bytes(error.code, "text/plain; charset=utf-8", format!("{error}\n"));
    }
    let mut reply = value(error.code, Accept::JSON, &error.status());
    if error.code == StatusCode::TOO_MANY_REQUESTS {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    reply
}

/// Adds `Warning` headers.
pub(crate) fn with_warnings(mut reply: Reply, warnings: &[String]) -> Reply {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            reply.headers_mut().append(WARNING, value);
        }
    }
    reply
}

/// How much of the object a table's rows carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// `Metadata`, the default.
    Metadata,
    /// `Object`.
    Object,
    /// `None`.
    Nothing,
}

impl Include {
    /// From the parameter `includeObject`.
    ///
    /// # Errors
    /// 400 for anything else.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        match text {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("Object") => Ok(Self::Object),
            Some("None") => Ok(Self::Nothing),
            Some(other) => Err(ApiError::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        }
    }
}

/// A `PartialObjectMetadata`.
pub(crate) fn partial(accept: Accept, object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": accept.meta_version(), "metadata": object["metadata"]})
}

/// A stored object.
pub(crate) fn stored(
    code: StatusCode,
    accept: Accept,
    resource: &Resource,
    include: Include,
    object: &Object,
) -> Reply {
    if accept.is_json() && !convert::is_needed_of(resource, object.value.api_version()) {
        let json = if accept.lean { object.value.look(lean::object) } else { object.json.clone() };
        return bytes(code, "application/json", json);
    }
    self::object(code, accept, resource, include, &convert::from_storage(resource, &object.value))
}

/// An object, already in the version asked for.
pub(crate) fn object(
    code: StatusCode,
    accept: Accept,
    resource: &Resource,
    include: Include,
    object: &Value,
) -> Reply {
    let shaped = match accept.shape {
        Shape::Plain => Cow::Borrowed(object),
        Shape::Partial => Cow::Owned(partial(accept, object)),
        Shape::Table => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            Cow::Owned(table::table(accept, resource, include, &[Cow::Borrowed(object)], metadata, true))
        }
    };
    value(code, accept, &shaped)
}

/// A list of stored objects.
pub(crate) fn list(
    accept: Accept,
    resource: &Resource,
    include: Include,
    objects: &[std::sync::Arc<Object>],
    metadata: &Value,
) -> Reply {
    if accept.is_json()
        && !objects.iter().any(|object| convert::is_needed_of(resource, object.value.api_version()))
    {
        return bytes(StatusCode::OK, "application/json", list_bytes(accept, resource, objects, metadata));
    }
    let mut objects: Vec<_> =
        objects.iter().map(|object| convert::from_storage(resource, &object.value)).collect();
    let body = match accept.shape {
        Shape::Table => table::table(accept, resource, include, &objects, metadata.clone(), true),
        Shape::Partial => {
            let items: Vec<_> = objects.iter().map(|object| partial(accept, object)).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": accept.meta_version(), "metadata": metadata, "items": items})
        }
        Shape::Plain => {
            if resource.builtin {
                for object in &mut objects {
                    if let Some(map) = object.to_mut().as_object_mut() {
                        map.retain(|field, _| !is_type_meta(field));
                    }
                }
            }
            json!({"kind": resource.list_kind(), "apiVersion": resource.api_version(), "metadata": metadata, "items": objects})
        }
    };
    value(StatusCode::OK, accept, &body)
}

fn is_type_meta(field: &str) -> bool {
    matches!(field, "kind" | "apiVersion")
}

/// An item of a list of a built-in type: as upstream, without what the list says already.
struct Item<'a>(&'a Value, bool);

impl serde::Serialize for Item<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            object if self.1 => lean::fields(object, |field| !is_type_meta(field), serializer),
            Value::Object(map) => {
                serializer.collect_map(map.iter().filter(|(field, _)| !is_type_meta(field)))
            }
            other => other.serialize(serializer),
        }
    }
}

/// The list, put together from the objects' own bytes.
fn list_bytes(
    accept: Accept,
    resource: &Resource,
    objects: &[std::sync::Arc<Object>],
    metadata: &Value,
) -> Vec<u8> {
    let size: usize = objects.iter().map(|object| object.json.len() + 1).sum();
    let mut body = Vec::with_capacity(size + 200);
    body.extend_from_slice(
        format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            resource.list_kind(),
            resource.api_version()
        )
        .as_bytes(),
    );
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        // Writing to memory does not fail.
        if resource.builtin {
            let _ = object.value.look(|value| serde_json::to_writer(&mut body, &Item(value, accept.lean)));
        } else if accept.lean {
            let _ = object.value.look(|value| serde_json::to_writer(&mut body, &lean::Object(value)));
        } else {
            body.extend_from_slice(&object.json);
        }
    }
    body.extend_from_slice(b"]}");
    body
}
