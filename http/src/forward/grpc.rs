//! What a client of gRPC is told in place of a proxy's own answer.
//!
//! Its library looks for `grpc-status`; of an answer without one it makes a status of its own, and the reason is lost. The proxy next to the client
//! therefore puts answers of proxies into gRPC's words. Those behind it do not: to them, and to what they count and balance by, a failure stays one.
//!
//! Statuses by gRPC's own table for HTTP (`doc/http-grpc-status-mapping.md` of grpc/grpc), which is also what a client would make of them.

use std::fmt::Write;
use std::pin::Pin;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;

use crate::body::Body;
use crate::headers::PROXY_ERROR;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The longest reason that is passed on, in bytes, and how long it is waited for.
const REASON: usize = 4 << 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// The content type of a call of gRPC, web form included; `None` of anything else.
pub fn content_type(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(header::CONTENT_TYPE).filter(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// Puts a failure that a proxy made, here or further on, into an answer to a call with this content type. Whatever the app said stays as it is.
pub async fn answer(call: HeaderValue, response: Response<Body>) -> Response<Body> {
    let status = response.status();
    let failure = status.is_client_error() || status.is_server_error();
    if !failure || !response.headers().contains_key(PROXY_ERROR) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let reason = read(body).await;
    let reason = if reason.is_empty() { status.to_string() } else { reason };
    parts.status = StatusCode::OK;
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, call);
    parts.headers.insert(GRPC_STATUS, HeaderValue::from(code(status)));
    if let Ok(message) = HeaderValue::from_str(&encoded(&reason)) {
        parts.headers.insert(GRPC_MESSAGE, message);
    }
    // Without a body the head is all: gRPC calls it trailers only.
    Response::from_parts(parts, Body::Empty)
}

fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,             // INTERNAL
        401 => 16,             // UNAUTHENTICATED
        403 => 7,              // PERMISSION_DENIED
        404 => 12,             // UNIMPLEMENTED
        429 | 502..=504 => 14, // UNAVAILABLE
        _ => 2,                // UNKNOWN
    }
}

/// The text of a proxy's answer, as far as it comes.
async fn read(mut body: Body) -> String {
    let mut text = Vec::new();
    let reading = async {
        while text.len() < REASON
            && let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
        {
            text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    };
    // What has come by then will do.
    let _ = tokio::time::timeout(PATIENCE, reading).await;
    text.truncate(REASON);
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// Percent-encoded, as `grpc-message` asks for.
fn encoded(reason: &str) -> String {
    let mut out = String::with_capacity(reason.len());
    for byte in reason.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            // Writing to a string does not fail.
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::forward::{error_response, own_response};

    fn call() -> HeaderValue {
        HeaderValue::from_static("application/grpc+proto")
    }

    #[tokio::test]
    async fn a_proxys_failure_becomes_a_status_and_a_message() {
        for (status, code) in
            [(400, "13"), (401, "16"), (403, "7"), (404, "12"), (500, "2"), (503, "14"), (504, "14")]
        {
            let status = StatusCode::from_u16(status).unwrap();
            let told = answer(call(), own_response(status, "100 % naïve\nyes\n")).await;
            assert_eq!(told.status(), StatusCode::OK);
            assert!(told.body().is_end_stream());
            assert_eq!(told.headers()[GRPC_STATUS], code, "{status}");
            assert_eq!(told.headers()[GRPC_MESSAGE], "100 %25 na%C3%AFve%0Ayes");
            assert_eq!(told.headers()[header::CONTENT_TYPE], call());
        }
        let told = answer(call(), error_response(&Error::Overloaded("full"))).await;
        assert_eq!(
            (&told.headers()[GRPC_STATUS], &told.headers()[GRPC_MESSAGE]),
            (&"14".parse().unwrap(), &"full".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn what_the_app_said_stays() {
        let mut said = Response::new(Body::from("no such method"));
        *said.status_mut() = StatusCode::NOT_FOUND;
        let told = answer(call(), said).await;
        assert_eq!(told.status(), StatusCode::NOT_FOUND);
        assert!(!told.headers().contains_key(GRPC_STATUS));
        assert_eq!(answer(call(), own_response(StatusCode::OK, "queue")).await.status(), StatusCode::OK);
    }

    #[test]
    fn calls_are_known_by_their_content_type() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))])
        };
        for grpc in ["application/grpc", "application/grpc+json", "application/grpc-web-text"] {
            assert!(content_type(&headers(grpc)).is_some());
        }
        assert!(content_type(&headers("application/json")).is_none());
        assert!(content_type(&HeaderMap::new()).is_none());
    }
}
