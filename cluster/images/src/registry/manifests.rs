//! Manifests and indexes, by tag and digest.

use std::sync::Arc;

use axum::extract::Request;
use http::{StatusCode, header};
use http_body_util::{BodyExt, Limited};

use super::{
    Answer, blocking, empty,
    failure::{Code, Failure},
    path::{Call, Name},
};
use crate::{
    Digest, Store,
    manifest::{MAX_MANIFEST, Manifest},
    store::{Entry, State},
};

pub(super) async fn get(store: &Arc<Store>, call: &Call, name: &Name) -> Answer {
    let digest = resolve(&store.state(), call, name)?;
    let media_type = {
        let state = store.state();
        state
            .repositories
            .get(&call.repository)
            .and_then(|r| r.manifests.get(&digest))
            .map(|e| e.media_type.clone())
    };
    let (reader, wanted) = (store.clone(), digest.clone());
    let bytes = blocking(move || reader.read_blob(&wanted)).await?;
    let media_type = match media_type {
        Some(known) => known,
        None => Manifest::parse(&bytes, None).map_err(|_| unknown(call, name))?.media_type().to_owned(),
    };
    let length = bytes.len().to_string();
    let mut response = empty(
        StatusCode::OK,
        &[
            ("content-type", &media_type),
            ("content-length", &length),
            ("docker-content-digest", digest.as_str()),
            ("etag", &format!("\"{digest}\"")),
        ],
    );
    // The router drops the body of an answer to HEAD, and keeps its length.
    *response.body_mut() = bytes.into();
    Ok(response)
}

fn resolve(state: &State, call: &Call, name: &Name) -> Result<Digest, Failure> {
    let repository = state
        .repositories
        .get(&call.repository)
        .ok_or_else(|| Failure::new(Code::NameUnknown, format!("no repository {:?}", call.written)))?;
    match name {
        Name::Tag(tag) => repository.tags.get(tag).map(|t| t.digest.clone()),
        Name::Digest(digest) => repository.manifests.contains_key(digest).then(|| digest.clone()),
    }
    .ok_or_else(|| unknown(call, name))
}

fn unknown(call: &Call, name: &Name) -> Failure {
    let name = match name {
        Name::Tag(tag) => format!("tag {tag:?}"),
        Name::Digest(digest) => format!("manifest {digest}"),
    };
    Failure::new(Code::ManifestUnknown, format!("repository {:?} has no {name}", call.written))
}

pub(super) async fn put(store: &Arc<Store>, call: &Call, name: &Name, request: Request) -> Answer {
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|t| t.to_str().ok()).map(str::to_owned);
    let too_large = || Failure::new(Code::ManifestTooLarge, "a manifest may have 4 MiB");
    let body = Limited::new(request.into_body(), MAX_MANIFEST).collect().await;
    let bytes = body
        .map_err(|e| {
            if e.is::<http_body_util::LengthLimitError>() {
                too_large()
            } else {
                Failure::new(Code::ManifestInvalid, e.to_string())
            }
        })?
        .to_bytes();
    let digest = Digest::of(&bytes);
    if let Name::Digest(wanted) = name
        && *wanted != digest
    {
        return Err(Failure::new(
            Code::DigestInvalid,
            format!("the content has digest {digest}, not {wanted}"),
        ));
    }
    let content_type = content_type.filter(|t| !t.starts_with("application/octet-stream"));
    let manifest = Manifest::parse(&bytes, content_type.as_deref())
        .map_err(|why| Failure::new(Code::ManifestInvalid, why))?;
    let _content_stays = store.growth.read().await;
    check_children(store, &manifest)?;
    let media_type = match (&manifest, &content_type) {
        (_, Some(given)) => given.split(';').next().unwrap_or_default().trim().to_owned(),
        (manifest, None) => manifest.media_type().to_owned(),
    };
    let entry = Entry::new(&manifest, &media_type, bytes.len() as u64);
    let subject = entry.subject.clone();
    let mut tags: Vec<String> = match name {
        Name::Tag(tag) => vec![tag.clone()],
        Name::Digest(_) => vec![],
    };
    // Distribution's newer way to push by digest and name tags along.
    tags.extend(call.query("tag").filter(|t| crate::reference::is_tag(t)).map(str::to_owned));
    let (writer, repository) = (store.clone(), call.repository.clone());
    let digest = blocking(move || {
        let digest = writer.put_blob(&bytes)?;
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        writer.record(&repository, &tags, &digest, entry).map(|()| digest)
    })
    .await?;
    let mut response = empty(
        StatusCode::CREATED,
        &[
            ("location", &format!("/v2/{}/manifests/{digest}", call.written)),
            ("docker-content-digest", digest.as_str()),
        ],
    );
    if let Some(value) = subject.and_then(|s| s.as_str().parse().ok()) {
        response.headers_mut().insert("oci-subject", value);
    }
    Ok(response)
}

/// What a manifest names must be here, whole: a tag never leads to an image that cannot be run.
fn check_children(store: &Store, manifest: &Manifest) -> Result<(), Failure> {
    for child in manifest.children() {
        let size = std::fs::metadata(store.blob_path(&child.digest)).map(|m| m.len()).map_err(|_| {
            Failure::new(
                Code::ManifestBlobUnknown,
                format!("it names {}, which was not pushed; push that first", child.digest),
            )
        })?;
        if size != child.size {
            let message =
                format!("it says that {} has {} bytes, but it has {size}", child.digest, child.size);
            return Err(Failure::new(Code::ManifestInvalid, message));
        }
    }
    Ok(())
}

pub(super) async fn delete(store: &Arc<Store>, call: &Call, name: &Name) -> Answer {
    resolve(&store.state(), call, name)?;
    let (writer, repository) = (store.clone(), call.repository.clone());
    let edit: Box<dyn FnOnce(&mut State) -> bool + Send> = match name {
        Name::Tag(tag) => {
            let tag = tag.clone();
            Box::new(move |state| crate::store::remove_tag(state, &repository, &tag))
        }
        Name::Digest(digest) => {
            let digest = digest.clone();
            Box::new(move |state| crate::store::remove_manifest(state, &repository, &digest))
        }
    };
    blocking(move || writer.change(edit)).await?;
    Ok(empty(StatusCode::ACCEPTED, &[]))
}
