//! Blobs: reading them, whole or by range, and the ways to push one.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{
    Answer, blocking, empty,
    failure::{Code, Failure},
    path::Call,
    uploads::Session,
};
use crate::{Digest, Store, error::Context};

pub(super) async fn get(
    store: &Store,
    digest: &Digest,
    head: bool,
    range: Option<http::HeaderValue>,
) -> Answer {
    let path = store.blob_path(digest);
    let mut file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(unknown(digest)),
        Err(e) => return Err(Err::<(), _>(e).at("open blob", &path).expect_err("made of an error").into()),
    };
    let size = file.metadata().await.at("look at", &path)?.len();
    let range = match range.as_ref().and_then(|r| r.to_str().ok()) {
        Some(text) => parse_range(text, size).map_err(|()| {
            Failure::new(Code::RangeInvalid, format!("range {text:?} is not within {size} bytes"))
                .with("content-range", format!("bytes */{size}"))
        })?,
        None => None,
    };
    if head {
        // A client that learns this will not send it: it must still be there when the manifest comes.
        store.keep_blob(digest);
    }
    let (start, length) = range.unwrap_or((0, size));
    let body = if head {
        Body::empty()
    } else {
        file.seek(std::io::SeekFrom::Start(start)).await.at("seek in", &path)?;
        Body::from_stream(ReaderStream::with_capacity(file.take(length), 128 << 10))
    };
    let mut response = Response::new(body);
    let mut set = |name: header::HeaderName, value: String| {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, "application/octet-stream".into());
    set(header::CONTENT_LENGTH, length.to_string());
    set(header::ACCEPT_RANGES, "bytes".into());
    set(header::ETAG, format!("\"{digest}\""));
    set(header::HeaderName::from_static("docker-content-digest"), digest.to_string());
    if range.is_some() {
        set(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", start + length - 1));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// RFC 9110, 14.2, one range: start and length. Forms that are not understood mean the whole, as the RFC allows.
fn parse_range(text: &str, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some((from, to)) =
        text.strip_prefix("bytes=").filter(|r| !r.contains(',')).and_then(|r| r.split_once('-'))
    else {
        return Ok(None);
    };
    let (start, end) = match (from.trim().parse::<u64>(), to.trim().parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, end.min(size.saturating_sub(1))),
        (Ok(start), Err(_)) if to.trim().is_empty() => (start, size.saturating_sub(1)),
        (Err(_), Ok(0)) if from.trim().is_empty() => return Err(()),
        (Err(_), Ok(last)) if from.trim().is_empty() => (size.saturating_sub(last), size.saturating_sub(1)),
        _ => return Ok(None),
    };
    if start >= size { Err(()) } else { Ok(Some((start, end - start + 1))) }
}

pub(super) async fn delete(store: &Arc<Store>, digest: &Digest) -> Answer {
    if !store.has_blob(digest) {
        return Err(unknown(digest));
    }
    let _nothing_is_named = store.growth.write().await;
    let (store, digest) = (store.clone(), digest.clone());
    blocking(move || {
        // Every repository shares it, and containers may be made of it.
        let used = store.is_used(&digest);
        if !used {
            let path = store.blob_path(&digest);
            std::fs::remove_file(&path).at("remove blob", &path)?;
        }
        Ok(used)
    })
    .await
    .and_then(|used| {
        if used {
            Err(Failure::new(Code::Denied, "a manifest still needs this blob; delete that first"))
        } else {
            Ok(empty(StatusCode::ACCEPTED, &[]))
        }
    })
}

pub(super) async fn start(store: &Arc<Store>, call: &Call, request: Request) -> Answer {
    if let Some(digest) = call.query("mount")
        && let Ok(digest) = digest.parse::<Digest>()
        && store.keep_blob(&digest)
    {
        return Ok(created(call, &digest));
    }
    let wanted = call.query("digest").map(parse_digest).transpose()?;
    let (id, session) = store.uploads.start().await?;
    match wanted {
        None => Ok(accepted(call, &id, 0)),
        Some(digest) => finish(store, call, &id, session, &digest, request).await,
    }
}

pub(super) fn status(store: &Store, call: &Call, id: &str) -> Answer {
    let done = store.uploads.get(id)?.done();
    let mut response = accepted(call, id, done);
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

pub(super) async fn patch(store: &Store, call: &Call, id: &str, request: Request) -> Answer {
    let mut session = store.uploads.get(id)?;
    check_range(call, id, &session, request.headers())?;
    session.append(request.into_body()).await?;
    Ok(accepted(call, id, session.done()))
}

pub(super) async fn put(store: &Arc<Store>, call: &Call, id: &str, request: Request) -> Answer {
    let digest = call
        .query("digest")
        .ok_or_else(|| Failure::new(Code::DigestInvalid, "the query parameter digest is missing"))?;
    let digest = parse_digest(digest)?;
    let session = store.uploads.get(id)?;
    check_range(call, id, &session, request.headers())?;
    finish(store, call, id, session, &digest, request).await
}

pub(super) fn cancel(store: &Store, id: &str) -> Answer {
    store.uploads.get(id)?;
    store.uploads.forget(id)?;
    Ok(empty(StatusCode::NO_CONTENT, &[]))
}

async fn finish(
    store: &Arc<Store>,
    call: &Call,
    id: &str,
    mut session: Session,
    digest: &Digest,
    request: Request,
) -> Answer {
    session.append(request.into_body()).await?;
    let sealed = session.seal(digest).await;
    // Right or wrong, nothing more can be made of this session.
    store.uploads.forget(id)?;
    sealed?;
    let (target, path, digest) = (store.clone(), session.path.clone(), digest.clone());
    let digest = blocking(move || target.adopt(&path, &digest).map(|()| digest)).await?;
    Ok(created(call, &digest))
}

/// A chunk must begin where the last one ended: `Content-Range: START-END`, both included.
fn check_range(call: &Call, id: &str, session: &Session, headers: &HeaderMap) -> Result<(), Failure> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(()) };
    let text = range.to_str().unwrap_or_default();
    let numbers = text.trim_start_matches("bytes").trim_start_matches(['=', ' ']);
    let numbers = numbers.split('/').next().unwrap_or_default();
    let (start, end) = numbers
        .split_once('-')
        .and_then(|(s, e)| Some((s.trim().parse::<u64>().ok()?, e.trim().parse::<u64>().ok()?)))
        .ok_or_else(|| {
            Failure::new(Code::BlobUploadInvalid, format!("Content-Range {text:?} must be START-END"))
        })?;
    let wrong_place = start != session.done();
    if wrong_place || end < start {
        let message = format!("the next chunk must begin at {}, not {start}", session.done());
        return Err(Failure::new(Code::RangeInvalid, message)
            .with("location", location(call, id))
            .with("range", so_far(session.done()))
            .with("docker-upload-uuid", id.to_owned()));
    }
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|l| l.to_str().ok()).and_then(|l| l.parse::<u64>().ok());
    match length {
        Some(length) if length != end - start + 1 => Err(Failure::new(
            Code::SizeInvalid,
            format!("Content-Range {text:?} does not fit the Content-Length of {length}"),
        )),
        _ => Ok(()),
    }
}

fn parse_digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|why: String| Failure::new(Code::DigestInvalid, why))
}

fn unknown(digest: &Digest) -> Failure {
    Failure::new(Code::BlobUnknown, format!("no blob {digest}"))
}

fn location(call: &Call, id: &str) -> String {
    format!("/v2/{}/blobs/uploads/{id}", call.written)
}

fn so_far(done: u64) -> String {
    format!("0-{}", done.saturating_sub(1))
}

fn accepted(call: &Call, id: &str, done: u64) -> Response {
    let headers = [("location", &*location(call, id)), ("range", &so_far(done)), ("docker-upload-uuid", id)];
    empty(StatusCode::ACCEPTED, &headers).into_response()
}

fn created(call: &Call, digest: &Digest) -> Response {
    let location = format!("/v2/{}/blobs/{digest}", call.written);
    empty(StatusCode::CREATED, &[("location", &location), ("docker-content-digest", digest.as_str())])
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_are_within_the_content() {
        for (text, expected) in [
            ("bytes=0-3", Ok(Some((0, 4)))),
            ("bytes=4-", Ok(Some((4, 6)))),
            ("bytes=-3", Ok(Some((7, 3)))),
            ("bytes=-99", Ok(Some((0, 10)))),
            ("bytes=8-99", Ok(Some((8, 2)))),
            ("bytes=10-", Err(())),
            ("bytes=-0", Err(())),
            ("bytes=3-2", Ok(None)),
            ("bytes=0-1,3-4", Ok(None)),
            ("lines=1-2", Ok(None)),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Err(()));
    }
}
