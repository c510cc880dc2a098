//! Passing a request on: what a proxy must change in it and in its response, and nothing else.
//!
//! RFC 9110 7.6.1 (hop-by-hop fields), RFC 7239 (`Forwarded`), RFC 9112 3.2 (request target), RFC 9113 8.2.3 and 8.3.
//! Bodies and trailers stream through with backpressure. `100 Continue` is passed from backend to client by letting the
//! body flow only then. Other 1xx responses end here: hyper's server cannot send them.
//!
//! An upgrade of HTTP/1.1 and a web socket of HTTP/2 (extended CONNECT, RFC 8441) both become an upgrade towards the backend. Any other CONNECT is
//! refused: this is no way into a network.

pub mod grpc;
pub mod hop;
mod tunnel;

use std::net::IpAddr;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::ext::Protocol as Protocol8441;
use hyper::upgrade::OnUpgrade;

pub use self::tunnel::Tunnels;
use crate::body::{Body, Limits, RequestBody};
use crate::connect::{Protocol, Security};
use crate::error::Error;
use crate::headers;
use crate::pool::Backend;
use crate::server::Busy;

/// What to do with the headers that tell where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// Replace what the client said: for the edge, which trusts nobody.
    Replace,
    /// Add this hop to what a trusted hop before said.
    Append,
    /// Leave `X-Forwarded-*`; make `Forwarded` from them where it is missing.
    Complete,
    /// Leave all.
    Keep,
}

/// How a request reached this proxy.
#[derive(Clone, Copy, Debug)]
pub struct Via<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// Whether it came in over TLS.
    pub secure: bool,
    /// What to do with the headers that say so.
    pub forwarded: Forwarded,
    /// Where upgraded connections are counted and ended.
    pub tunnels: &'a Tunnels,
}

/// A request ready to be sent on, if need be several times.
pub struct Outgoing {
    request: Option<Request<RequestBody>>,
    upgrade: Option<Upgrade>,
    from_http1: bool,
}

struct Upgrade {
    client: OnUpgrade,
    tunnels: Tunnels,
    guard: Option<Box<dyn Send>>,
    /// The connection of an HTTP/2 client is in use as long as the tunnel.
    stream: Option<Arc<Busy>>,
    limits: Limits,
}

impl Outgoing {
    /// Takes over a request: strips what is meant for this hop only, adds where it came from.
    ///
    /// # Errors
    /// [`Error::BadRequest`] when it names no host.
    pub fn new(mut request: Request<Incoming>, via: &Via<'_>) -> Result<Self, Error> {
        let extended = request.extensions().get::<Protocol8441>().cloned();
        if request.method() == Method::CONNECT && extended.is_none() {
            return Err(Error::NoTunnel);
        }
        // A wish that comes with a body is not heard, as RFC 9110 7.8 allows: whose bytes follow would be a matter of opinion.
        let upgrading =
            extended.is_some() || (hop::upgrade_of(&request).is_some() && request.body().is_end_stream());
        let upgrade = upgrading.then(|| Upgrade {
            client: hyper::upgrade::on(&mut request),
            tunnels: via.tunnels.clone(),
            guard: None,
            stream: request.extensions_mut().remove(),
            limits: Limits::default(),
        });
        let (mut parts, body) = request.into_parts();
        let from_http1 = parts.version < Version::HTTP_2;
        let wait = hop::expects_continue(&parts.headers);
        hop::strip(&mut parts.headers, upgrading);
        if !from_http1 {
            same_host(&parts.headers, &parts.uri)?;
            hop::join_cookies(&mut parts.headers);
        }
        move_host(&mut parts.headers, &mut parts.uri)?;
        if let Some(protocol) = &extended {
            hop::upgrade_to(&mut parts, protocol.as_str())?;
        }
        hop::forwarded(&mut parts.headers, via);
        // What hyper's server put there (its upgrade handle among them) is of no use to its client.
        parts.extensions.clear();
        let body = if upgrading { RequestBody::empty() } else { RequestBody::stream(body, wait) };
        // hyper's client sends no body with these unless it is told to.
        let unusual = matches!(parts.method, Method::GET | Method::HEAD);
        if unusual && body.is_streaming() && body.size_hint().exact().is_none() {
            parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Ok(Self { request: Some(Request::from_parts(parts, body)), upgrade, from_http1 })
    }

    /// A request of the proxy's own making; `request` needs a `Host` header or an absolute URI.
    ///
    /// # Errors
    /// [`Error::BadRequest`] when it names no host.
    pub fn own(request: Request<RequestBody>) -> Result<Self, Error> {
        let (mut parts, body) = request.into_parts();
        move_host(&mut parts.headers, &mut parts.uri)?;
        Ok(Self { request: Some(Request::from_parts(parts, body)), upgrade: None, from_http1: true })
    }

    /// Whether the client wants to change the protocol (web socket, CONNECT). Needs an HTTP/1.1 backend.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }

    /// The protocol that its way must have from here to the app, if it must: an upgrade is of HTTP/1.1, and only HTTP/2 carries trailers that
    /// nobody announced, which gRPC ends with.
    pub fn needs(&self) -> Option<Protocol> {
        if self.is_upgrade() {
            return Some(Protocol::Http1);
        }
        let headers = self.request.as_ref()?.headers();
        (!self.from_http1 && headers.contains_key(header::TE)).then_some(Protocol::Http2)
    }

    /// About how many bytes it holds while it waits: its head, as much of a body as is read ahead, and what a task costs.
    pub fn held_bytes(&self) -> u64 {
        const TASK: u64 = 4 << 10;
        const READ_AHEAD: u64 = 64 << 10;
        let Some(request) = &self.request else { return TASK };
        let head: usize = request.headers().iter().map(|(k, v)| k.as_str().len() + v.len() + 64).sum();
        let body = request.body().size_hint().upper().unwrap_or(READ_AHEAD).min(READ_AHEAD);
        TASK + head as u64 + request.uri().path().len() as u64 + body
    }

    /// Keeps `guard` while an upgraded connection lives. Without an upgrade it is dropped at once.
    pub fn hold(&mut self, guard: impl Send + 'static) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.guard = Some(Box::new(guard));
        }
    }

    /// Cuts an upgraded connection when one of `limits` passes.
    pub fn limit_upgrade(&mut self, limits: Limits) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.limits = limits;
        }
    }

    /// The headers, for additions. `None` after a failure that consumed the request.
    pub fn headers_mut(&mut self) -> Option<&mut HeaderMap> {
        self.request.as_mut().map(Request::headers_mut)
    }

    /// The request in its HTTP/1.1 form (origin-form target, `Host`). `None` after a failure that consumed it.
    pub fn request_mut(&mut self) -> Option<&mut Request<RequestBody>> {
        self.request.as_mut()
    }

    /// Whether another attempt is possible: the request is still whole.
    pub fn can_retry(&self) -> bool {
        self.request.is_some()
    }

    /// Sends it and waits for the response's head, which comes back ready for the client.
    ///
    /// After an error with [`crate::Retry::Safe`], [`Self::can_retry`] tells whether it can be sent to another backend.
    pub async fn send(&mut self, backend: &Arc<Backend>) -> Result<Response<Body>, Error> {
        let Some(mut request) = self.request.take() else {
            return Err(Error::BadRequest("it was sent already and cannot be repeated"));
        };
        let target = backend.target();
        match target.protocol {
            Protocol::Http1 => *request.version_mut() = Version::HTTP_11,
            Protocol::Http2 if self.upgrade.is_some() => {
                self.request = Some(request);
                return Err(Error::BadRequest(
                    "an upgrade needs an HTTP/1.1 backend, this one speaks HTTP/2",
                ));
            }
            Protocol::Http2 => shape_h2(&mut request, target.security != Security::Plain)?,
        }
        match backend.send(request).await {
            Ok(response) => Ok(self.finish(response.map(Body::Upstream))),
            Err(failed) => {
                let failed = *failed;
                self.request = failed.request.map(|mut request| {
                    if target.protocol == Protocol::Http2 {
                        let _ = move_host_parts(&mut request);
                    }
                    request
                });
                Err(failed.error)
            }
        }
    }

    fn finish(&mut self, mut response: Response<Body>) -> Response<Body> {
        let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        hop::strip(response.headers_mut(), switching && self.from_http1);
        if let Some(upgrade) = self.upgrade.take() {
            if switching {
                let backend = hyper::upgrade::on(&mut response);
                upgrade.tunnels.splice(
                    upgrade.client,
                    backend,
                    (upgrade.guard, upgrade.stream),
                    upgrade.limits,
                );
                *response.body_mut() = Body::Empty;
                if !self.from_http1 {
                    *response.status_mut() = StatusCode::OK;
                    response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
                }
            } else if !self.from_http1 && response.status().is_success() {
                // To this client that would mean the web socket is open.
                response = error_response(&Error::NoUpgrade);
            }
        }
        *response.version_mut() = if self.from_http1 { Version::HTTP_11 } else { Version::HTTP_2 };
        response
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing")
            .field("can_retry", &self.can_retry())
            .field("is_upgrade", &self.is_upgrade())
            .finish_non_exhaustive()
    }
}

/// The host of a request: of its URI if that is absolute (RFC 9112 3.2.2), else of its `Host` header. What it yields for a request that
/// [`Outgoing::new`] refuses says nothing.
pub fn host_of<B>(request: &Request<B>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST)?.to_str().ok(),
    }
}

/// HTTP/2 may name the host twice, but only the same one (RFC 9113 8.3.1).
fn same_host(headers: &HeaderMap, uri: &Uri) -> Result<(), Error> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    let differs = match (first, uri.authority()) {
        (Some(host), Some(authority)) => !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()),
        _ => false,
    };
    if differs || second.is_some() { Err(Error::BadRequest("it names more than one host")) } else { Ok(()) }
}

/// Moves an absolute URI's authority into `Host`, leaving the origin form.
fn move_host(headers: &mut HeaderMap, uri: &mut Uri) -> Result<(), Error> {
    if uri.path_and_query().is_some_and(|path| !path.as_str().starts_with(['/', '*'])) {
        return Err(Error::BadRequest("its path does not begin with a slash"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(Error::BadRequest("its authority carries a user's name"));
    }
    if uri.authority().is_none() {
        if headers.contains_key(header::HOST) {
            return Ok(());
        }
        return Err(Error::BadRequest("it names no host"));
    }
    let mut parts = std::mem::take(uri).into_parts();
    if let Some(authority) = parts.authority.take() {
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| Error::BadRequest("its authority is no valid header value"))?;
        headers.insert(header::HOST, host);
    }
    *uri = Uri::from(parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Ok(())
}

fn move_host_parts(request: &mut Request<RequestBody>) -> Result<(), Error> {
    let mut headers = std::mem::take(request.headers_mut());
    let moved = move_host(&mut headers, request.uri_mut());
    *request.headers_mut() = headers;
    moved
}

/// Origin form and `Host` become the pseudo-header fields' absolute URI.
fn shape_h2(request: &mut Request<RequestBody>, secure: bool) -> Result<(), Error> {
    *request.version_mut() = Version::HTTP_2;
    if request.uri().authority().is_some() {
        return Ok(());
    }
    let host = request.headers_mut().remove(header::HOST).ok_or(Error::BadRequest("it names no host"))?;
    let authority =
        Authority::from_maybe_shared(host).map_err(|_| Error::BadRequest("its Host header is not a host"))?;
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(authority);
    parts.path_and_query =
        Some(request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.uri_mut() =
        Uri::from_parts(parts).map_err(|_| Error::BadRequest("its target is not a valid URI"))?;
    Ok(())
}

/// An answer of the proxy's own to a failure, with the cause as text and its side in a header.
pub fn error_response(error: &Error) -> Response<Body> {
    let mut response = own_response(error.status(), format!("{error}\n"));
    response.headers_mut().insert(headers::PROXY_ERROR, HeaderValue::from_static(error.side_name()));
    response
}

/// An answer of the proxy's own; that of a failure says in a header whose it is.
pub fn own_response(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status.is_client_error() {
        headers.insert(headers::PROXY_ERROR, HeaderValue::from_static("downstream"));
    } else if status.is_server_error() {
        headers.insert(headers::PROXY_ERROR, HeaderValue::from_static("internal"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(uri: &str, host: Option<&str>) -> Result<Request<RequestBody>, Error> {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header(header::HOST, host);
        }
        Outgoing::own(request.body(RequestBody::empty()).unwrap()).map(|mut o| o.request.take().unwrap())
    }

    #[test]
    fn absolute_form_wins_over_host() {
        let r = own("http://a.example:81/x?y", Some("b.example")).unwrap();
        assert_eq!(r.uri(), "/x?y");
        assert_eq!(r.headers()[header::HOST], "a.example:81");
        assert!(own("/x", None).is_err());
    }

    #[test]
    fn http2_form_and_back() {
        let mut r = own("/x?y", Some("b.example:80")).unwrap();
        shape_h2(&mut r, true).unwrap();
        assert_eq!(r.uri(), "https://b.example:80/x?y");
        assert!(!r.headers().contains_key(header::HOST));
        move_host_parts(&mut r).unwrap();
        assert_eq!(
            (r.uri().to_string().as_str(), &r.headers()[header::HOST]),
            ("/x?y", &HeaderValue::from_static("b.example:80"))
        );
    }
}
