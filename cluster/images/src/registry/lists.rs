//! Listings: repositories, tags, referrers.

use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use super::{
    Answer,
    failure::{Code, Failure},
    json, json_as,
    path::Call,
};
use crate::{
    Digest, Store,
    manifest::{Descriptor, OCI_INDEX},
};

pub(super) fn catalog(store: &Store, call: &Call) -> Answer {
    let state = store.state();
    let (page, next) = page(call, state.repositories.keys().map(String::as_str))?;
    Ok(linked(json(StatusCode::OK, &json!({ "repositories": page })), "/v2/_catalog", next))
}

pub(super) fn tags(store: &Store, call: &Call) -> Answer {
    let state = store.state();
    let repository = state
        .repositories
        .get(&call.repository)
        .ok_or_else(|| Failure::new(Code::NameUnknown, format!("no repository {:?}", call.written)))?;
    let (page, next) = page(call, repository.tags.keys().map(String::as_str))?;
    let body = json!({ "name": call.written, "tags": page });
    Ok(linked(json(StatusCode::OK, &body), &format!("/v2/{}/tags/list", call.written), next))
}

pub(super) fn referrers(store: &Store, call: &Call, subject: &Digest) -> Answer {
    let wanted = call.query("artifactType");
    let state = store.state();
    let manifests: Vec<Descriptor> = state
        .repositories
        .get(&call.repository)
        .into_iter()
        .flat_map(|r| &r.manifests)
        .filter(|(_, e)| e.subject.as_ref() == Some(subject))
        .filter(|(_, e)| wanted.is_none_or(|w| e.artifact_type.as_deref() == Some(w)))
        .map(|(digest, e)| e.descriptor(digest))
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let mut response = json_as(StatusCode::OK, OCI_INDEX, &index);
    if wanted.is_some() {
        response.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// Of sorted names those after `last`, at most `n`; and the query of the next page, if there is more.
fn page<'a>(
    call: &Call,
    names: impl Iterator<Item = &'a str>,
) -> Result<(Vec<&'a str>, Option<String>), Failure> {
    let n = match call.query("n") {
        None => usize::MAX,
        Some(n) => {
            n.parse().map_err(|_| Failure::new(Code::Unsupported, format!("n={n} is not a number")))?
        }
    };
    let last = call.query("last");
    let mut rest = names.filter(|name| last.is_none_or(|last| *name > last)).peekable();
    let mut page = Vec::new();
    while page.len() < n
        && let Some(name) = rest.next()
    {
        page.push(name);
    }
    let next = match (page.last(), rest.peek()) {
        (Some(last), Some(_)) => Some(format!("n={n}&last={last}")),
        _ => None,
    };
    Ok((page, next))
}

fn linked(mut response: Response, path: &str, next: Option<String>) -> Response {
    if let Some(value) =
        next.and_then(|query| HeaderValue::from_str(&format!("<{path}?{query}>; rel=\"next\"")).ok())
    {
        response.headers_mut().insert(header::LINK, value);
    }
    response
}
