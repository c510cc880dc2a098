//! The WebSocket end of a request: Kubernetes' channel protocols put a channel's number before each message
//! (`remotecommand` of k8s.io/apimachinery: v4 and v5; v5 adds closing one channel).

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Refusal;

/// A connection after its upgrade.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Accepts an upgrade with the first of `known` subprotocols that the client offers, and runs `serve` on it.
pub(crate) fn upgrade<F, S>(
    mut request: Request,
    known: &[&'static str],
    serve: S,
) -> Result<Response, Refusal>
where
    S: FnOnce(Socket, &'static str) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let text = |name: header::HeaderName| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    if !text(header::UPGRADE).eq_ignore_ascii_case("websocket") {
        return Err(bad(format!(
            "this path wants a WebSocket with one of the subprotocols {}; or an upgrade to SPDY/3.1\n",
            known.join(", ")
        )));
    }
    let key = text(header::SEC_WEBSOCKET_KEY);
    let offered: Vec<String> = request
        .headers()
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_owned()))
        .collect();
    let chosen = known.iter().copied().find(|name| offered.iter().any(|offer| offer == name));
    let Some(chosen) = chosen else {
        return Err(bad(format!("no common subprotocol: offered {offered:?}, known {known:?}\n")));
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => {
                let socket =
                    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
                serve(socket, chosen).await;
            }
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()))
        .header(header::SEC_WEBSOCKET_PROTOCOL, chosen)
        .body(Body::empty())
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Accepts an upgrade to a protocol that is no WebSocket, named by the token `protocol`, and runs `serve` on the connection. What is spoken inside it
/// is in a header of its own, of which the client must offer the value that is known.
pub(super) fn upgrade_plain<F, S>(
    mut request: Request,
    protocol: &'static str,
    (name, known): (&'static str, &'static str),
    serve: S,
) -> Result<Response, Refusal>
where
    S: FnOnce(Upgraded) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let offered: Vec<&str> =
        request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    if !offered.iter().flat_map(|value| value.split(',')).any(|value| value.trim() == known) {
        return Err((
            StatusCode::FORBIDDEN,
            format!("no common protocol: offered {offered:?}, known {known:?}\n"),
        ));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => serve(upgraded).await,
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocol)
        .header(name, known)
        .body(Body::empty())
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
