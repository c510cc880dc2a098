//! `kubectl port-forward`: connections into a pod's network namespace, many over one connection from the client.
//!
//! Three forms are spoken: SPDY inside a WebSocket (`SPDY/3.1+portforward.k8s.io`, kubectl since 1.30), SPDY as the upgraded connection itself
//! (older clients, and Go programs built on client-go), and a WebSocket with numbered channels (`v4.channel.k8s.io`, kube for Rust and others).

mod channels;
mod forward;
mod pairs;
mod spdy;

use std::sync::Arc;

use axum::extract::{Path, RawQuery, Request, State};
use axum::response::Response;
use http::{StatusCode, header};

use self::forward::Target;
use super::carrier::Carrier;
use super::spdy::UPGRADE;
use super::{PROTOCOL_HEADER, Refusal, find, socket};
use crate::context::Context;

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: &str = "v4.channel.k8s.io";
/// The one protocol of SPDY port-forwarding, in its own header.
const PROTOCOL: &str = "portforward.k8s.io";

pub(super) async fn port_forward(
    State(context): State<Arc<Context>>,
    Path((namespace, pod)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let view = find(&context, &namespace, &pod)?;
    let target = Arc::new(Target { context, view, pod });
    let ports = ports(&query.unwrap_or_default());
    let wants_spdy = request
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(UPGRADE.as_bytes()));
    if wants_spdy {
        return socket::upgrade_plain(request, UPGRADE, (PROTOCOL_HEADER, PROTOCOL), |upgraded| {
            spdy::serve(Carrier::plain(upgraded), target)
        });
    }
    // Channels are numbered by the ports of the query: without them there is only the tunnel.
    let refusal = ports.as_ref().err().cloned();
    let known: &[&'static str] = if ports.is_ok() { &[TUNNEL, CHANNELS] } else { &[TUNNEL] };
    let answer = socket::upgrade(request, known, move |socket, chosen| async move {
        match ports {
            Ok(ports) if chosen == CHANNELS => channels::serve(socket, target, &ports).await,
            _ => spdy::serve(Carrier::websocket(socket), target).await,
        }
    });
    answer.map_err(|(code, text)| match refusal {
        Some(refusal) => (StatusCode::BAD_REQUEST, format!("{}; {refusal}\n", text.trim_end())),
        None => (code, text),
    })
}

/// `ports=80,443` and `ports=80&ports=443`.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for (_, value) in url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "ports") {
        for text in value.split(',') {
            let port = text.parse::<u16>().ok().filter(|port| *port > 0);
            ports.push(port.ok_or_else(|| format!("query parameter \"ports\": {text:?} is not a port"))?);
        }
    }
    match ports.len() {
        0 => Err(format!("{CHANNELS} needs the query parameter \"ports\"")),
        // Two channels for each, numbered in a byte.
        1..=127 => Ok(ports),
        many => Err(format!(
            "query parameter \"ports\": {many} ports, at most 127 can be forwarded over one connection"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_query() {
        assert_eq!(ports("ports=80,443&ports=8080"), Ok(vec![80, 443, 8080]));
        assert_eq!(ports("ports=80%2C81"), Ok(vec![80, 81]));
        assert!(ports("").unwrap_err().contains("ports"));
        assert!(ports("ports=0").unwrap_err().contains("\"0\" is not a port"));
        assert!(ports("ports=70000").is_err());
    }
}
