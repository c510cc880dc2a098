//! Header surgery of a hop. Free functions on header maps, without IO.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Version};

use super::{Forwarded, Via};
use crate::balance::random;
use crate::error::Error;
use crate::headers::{
    FORWARDED, KEEP_ALIVE, PROXY_CONNECTION, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO,
};

/// The protocol an HTTP/1.1 request wants to change to, if it does.
pub fn upgrade_of<B>(request: &Request<B>) -> Option<&HeaderValue> {
    if request.version() != Version::HTTP_11 {
        return None;
    }
    let wanted = request.headers().get(header::UPGRADE)?;
    // h2c by upgrade is deprecated (RFC 9113 3.1); a server may ignore the wish.
    if wanted.as_bytes().eq_ignore_ascii_case(b"h2c") {
        return None;
    }
    connection_has(request.headers(), "upgrade").then_some(wanted)
}

/// Makes an HTTP/1.1 upgrade of an extended CONNECT (RFC 8441 5).
pub(super) fn upgrade_to(parts: &mut http::request::Parts, protocol: &str) -> Result<(), Error> {
    let value = HeaderValue::from_str(protocol)
        .map_err(|_| Error::BadRequest("its :protocol is no valid header value"))?;
    parts.method = Method::GET;
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(header::UPGRADE, value);
    if protocol.eq_ignore_ascii_case("websocket") {
        // Only a proof that the other end speaks HTTP, which the tunnel itself proves: any 16 bytes in base64 will do.
        let key = format!("{:05x}{:016x}A==", random() >> 44, random());
        if let Ok(key) = HeaderValue::from_str(&key) {
            parts.headers.insert(header::SEC_WEBSOCKET_KEY, key);
        }
    }
    Ok(())
}

/// Whether the client waits for `100 Continue`.
pub fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or("").split(',').map(str::trim).filter(|t| !t.is_empty())
}

fn connection_has(headers: &HeaderMap, token: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|v| tokens(v).any(|t| t.eq_ignore_ascii_case(token)))
}

/// Removes the fields that are for one connection only (RFC 9110 7.6.1): those that `Connection` names and the
/// well-known ones. With `upgrading`, `Connection: upgrade` and `Upgrade` stay.
pub fn strip(headers: &mut HeaderMap, upgrading: bool) {
    if headers.contains_key(header::CONNECTION) {
        strip_named(headers);
        headers.remove(header::CONNECTION);
    }
    // `TE: trailers` is the one value that may pass (RFC 9113 8.2.2), and gRPC servers insist on it.
    if let Entry::Occupied(mut te) = headers.entry(header::TE) {
        let trailers = te.iter().any(|v| tokens(v).any(|t| t.eq_ignore_ascii_case("trailers")));
        if trailers {
            te.insert(HeaderValue::from_static("trailers"));
        } else {
            te.remove_entry_mult();
        }
    }
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    if upgrading && headers.contains_key(header::UPGRADE) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::UPGRADE);
    }
}

fn strip_named(headers: &mut HeaderMap) {
    let named: smallvec::SmallVec<[HeaderName; 4]> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        // Fields that a client must not be able to have removed, and those handled apart.
        .filter(|name| {
            ![
                header::HOST,
                header::CONNECTION,
                header::UPGRADE,
                header::TE,
                header::CONTENT_LENGTH,
                header::AUTHORIZATION,
                header::COOKIE,
                X_FORWARDED_FOR,
                X_FORWARDED_PROTO,
                X_FORWARDED_HOST,
                FORWARDED,
                crate::headers::K_PROXY_REQUEST,
                crate::headers::K_NETWORK_PROBE,
            ]
            .contains(name)
        })
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// HTTP/2 may split cookies over fields; HTTP/1.1 may not (RFC 9113 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (all.next(), all.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in headers.get_all(header::COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

/// Writes where the request came from, as `via` says.
pub(super) fn forwarded(headers: &mut HeaderMap, via: &Via<'_>) {
    let proto = HeaderValue::from_static(if via.secure { "https" } else { "http" });
    match via.forwarded {
        Forwarded::Keep => return,
        Forwarded::Complete => {
            if headers.contains_key(&FORWARDED) {
                return;
            }
        }
        Forwarded::Replace => {
            headers.remove(&FORWARDED);
            headers.insert(X_FORWARDED_FOR, ip_value(via.client));
            headers.insert(X_FORWARDED_PROTO, proto);
            set_forwarded_host(headers);
        }
        Forwarded::Append => {
            append_list(headers, &X_FORWARDED_FOR, ip_value(via.client));
            if !headers.contains_key(&X_FORWARDED_PROTO) {
                headers.insert(X_FORWARDED_PROTO, proto);
            }
            if !headers.contains_key(&X_FORWARDED_HOST) {
                set_forwarded_host(headers);
            }
            if let Some(before) = headers.get(&FORWARDED) {
                let mut element = String::with_capacity(32);
                node(&mut element, &via.client.to_string());
                let joined = [before.as_bytes(), b", ", element.as_bytes()].concat();
                if let Ok(value) = HeaderValue::from_bytes(&joined) {
                    headers.insert(FORWARDED, value);
                }
                return;
            }
        }
    }
    if let Some(value) = synthesize(headers) {
        headers.insert(FORWARDED, value);
    }
}

fn set_forwarded_host(headers: &mut HeaderMap) {
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

fn ip_value(ip: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

fn append_list(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    let joined = match headers.get(name) {
        Some(before) => [before.as_bytes(), b", ", value.as_bytes()].concat(),
        None => {
            headers.insert(name.clone(), value);
            return;
        }
    };
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(name.clone(), value);
    }
}

/// `Forwarded` (RFC 7239) out of `X-Forwarded-*`: the first element carries host and protocol.
fn synthesize(headers: &HeaderMap) -> Option<HeaderValue> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    let mut out = String::with_capacity(64);
    for address in text(&X_FORWARDED_FOR).unwrap_or("").split(',').map(str::trim).filter(|a| !a.is_empty()) {
        if !out.is_empty() {
            out.push_str(", ");
        }
        let first = out.is_empty();
        node(&mut out, address);
        if first {
            host_and_proto(&mut out, text(&X_FORWARDED_HOST), text(&X_FORWARDED_PROTO));
        }
    }
    if out.is_empty() {
        host_and_proto(&mut out, text(&X_FORWARDED_HOST), text(&X_FORWARDED_PROTO));
    }
    if out.is_empty() { None } else { HeaderValue::from_str(&out).ok() }
}

fn node(out: &mut String, address: &str) {
    let quoted = address.contains(':');
    let bracketed = quoted && !address.starts_with('[') && address.matches(':').count() > 1;
    let _ = match (quoted, bracketed) {
        (false, _) => write!(out, "for={address}"),
        (true, false) => write!(out, "for=\"{address}\""),
        (true, true) => write!(out, "for=\"[{address}]\""),
    };
}

fn host_and_proto(out: &mut String, host: Option<&str>, proto: Option<&str>) {
    for (key, value) in [("host", host), ("proto", proto)] {
        let Some(value) = value.filter(|v| !v.is_empty() && !v.contains('"')) else { continue };
        if !out.is_empty() {
            out.push(';');
        }
        let quote = if value.contains(':') { "\"" } else { "" };
        let _ = write!(out, "{key}={quote}{value}{quote}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::Tunnels;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (k, v) in pairs {
            headers.append(*k, HeaderValue::from_str(v).unwrap());
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn hop_by_hop_goes_the_rest_stays() {
        let mut h = map(&[
            ("connection", "close, X-Mine, Host, k-proxy-request"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip;q=1, trailers"),
            ("upgrade", "websocket"),
            ("host", "a"),
            ("k-proxy-request", "activator"),
            ("trailer", "x-checksum"),
        ]);
        strip(&mut h, false);
        assert_eq!(
            names(&h),
            ["host", "k-proxy-request", "te", "trailer"],
            "a client must not strip what we rely on"
        );
        assert_eq!(h["te"], "trailers");

        let mut h = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        strip(&mut h, true);
        assert_eq!(names(&h), ["connection", "upgrade"]);
    }

    #[test]
    fn cookies_are_joined() {
        let mut h = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut h);
        assert_eq!(h.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    fn run(pairs: &[(&'static str, &str)], forwarded_mode: Forwarded, client: &str) -> HeaderMap {
        let tunnels = Tunnels::default();
        let mut h = map(pairs);
        let via = Via {
            client: client.parse().unwrap(),
            secure: true,
            forwarded: forwarded_mode,
            tunnels: &tunnels,
        };
        forwarded(&mut h, &via);
        h
    }

    #[test]
    fn the_edge_believes_nothing() {
        let h = run(
            &[("host", "h:80"), ("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=6.6.6.6")],
            Forwarded::Replace,
            "1.2.3.4",
        );
        assert_eq!(h["x-forwarded-for"], "1.2.3.4");
        assert_eq!(h["forwarded"], "for=1.2.3.4;host=\"h:80\";proto=https");
    }

    #[test]
    fn an_inner_hop_appends_or_completes() {
        let before = [("host", "h"), ("x-forwarded-for", "9.9.9.9"), ("x-forwarded-proto", "http")];
        let h = run(&before, Forwarded::Append, "::1");
        assert_eq!(h["x-forwarded-for"], "9.9.9.9, ::1");
        assert_eq!(h["forwarded"], "for=9.9.9.9;host=h;proto=http, for=\"[::1]\"");
        let h = run(&before, Forwarded::Complete, "::1");
        assert_eq!(h["x-forwarded-for"], "9.9.9.9");
        assert_eq!(h["forwarded"], "for=9.9.9.9;proto=http");
        assert_eq!(run(&before, Forwarded::Keep, "::1").get("forwarded"), None);
    }
}
