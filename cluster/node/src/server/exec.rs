//! `kubectl exec` and `kubectl attach`.

mod run;

use std::sync::Arc;

use axum::extract::{Path, RawQuery, Request, State};
use axum::response::Response;
use http::{StatusCode, header};

use super::carrier::Carrier;
use super::session::{STDERR, STDIN, STDOUT, Session};
use super::socket::{upgrade, upgrade_plain};
use super::spdy::UPGRADE;
use super::{PROTOCOL_HEADER, Refusal, find};
use crate::context::Context;
use crate::pod::container::Live;
use crate::runtime::Exit;

const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The one that SPDY clients have in common.
const PLAIN_PROTOCOL: &str = "v4.channel.k8s.io";
/// The channel on which SPDY clients send sizes.
const RESIZE: u8 = 4;

/// What the client wants, from the query.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Wanted {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn parse(query: &str) -> Self {
        let mut wanted = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let on = matches!(value.as_ref(), "true" | "1");
            match name.as_ref() {
                "command" => wanted.command.push(value.into_owned()),
                "stdin" | "input" => wanted.stdin |= on,
                "stdout" | "output" => wanted.stdout |= on,
                "stderr" | "error" => wanted.stderr |= on,
                "tty" => wanted.tty |= on,
                _ => {}
            }
        }
        wanted
    }

    /// The channels that a client opens for it.
    fn channels(&self) -> Vec<u8> {
        let all = [
            (self.stdin, STDIN),
            (self.stdout, STDOUT),
            // A terminal mixes the two.
            (self.stderr && !self.tty, STDERR),
            (self.tty, RESIZE),
        ];
        all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, channel)| channel).collect()
    }
}

fn live(context: &Context, namespace: &str, pod: &str, container: &str) -> Result<Arc<Live>, Refusal> {
    let view = find(context, namespace, pod)?;
    let found = view.live.lock().get(container).cloned();
    found.ok_or_else(|| {
        (StatusCode::NOT_FOUND, format!("container {container} of pod {pod} is not running\n"))
    })
}

pub(super) async fn exec(
    State(context): State<Arc<Context>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let live = live(&context, &namespace, &pod, &container)?;
    let wanted = Wanted::parse(&query.unwrap_or_default());
    if wanted.command.is_empty() {
        return Err((
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 command for the container\n".to_owned(),
        ));
    }
    serve(request, wanted, async move |wanted, session| run::run(&context, &live, wanted, session).await)
}

pub(super) async fn attach(
    State(context): State<Arc<Context>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let live = live(&context, &namespace, &pod, &container)?;
    let mut wanted = Wanted::parse(&query.unwrap_or_default());
    if wanted.stdin && live.spec.stdin != Some(true) {
        return Err((
            StatusCode::BAD_REQUEST,
            format!(
                "container {container} of pod {pod} has no standard input: its spec does not say stdin: true\n"
            ),
        ));
    }
    if wanted.tty && live.terminal.is_none() {
        return Err((
            StatusCode::BAD_REQUEST,
            format!("container {container} of pod {pod} has no terminal: its spec does not say tty: true\n"),
        ));
    }
    wanted.command.clear();
    serve(request, wanted, async move |wanted, session| Ok(run::follow(&live, &wanted, session).await))
}

/// Upgrades the connection to what the client speaks and does the work on it.
fn serve<F, W>(request: Request, wanted: Wanted, work: W) -> Result<Response, Refusal>
where
    W: FnOnce(Wanted, Session) -> F + Send + 'static,
    F: Future<Output = Result<Exit, String>> + Send + 'static,
{
    let plain = request
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(UPGRADE.as_bytes()));
    if plain {
        let protocol = (PROTOCOL_HEADER, PLAIN_PROTOCOL);
        return upgrade_plain(request, UPGRADE, protocol, move |upgraded| async move {
            let carrier = Carrier::plain(upgraded);
            if let Some((session, moving)) = Session::spdy(carrier, &wanted.channels()).await {
                moving.finish(work(wanted, session).await).await;
            }
        });
    }
    upgrade(request, &PROTOCOLS, move |socket, _| async move {
        let (session, moving) = Session::websocket(socket);
        moving.finish(work(wanted, session).await).await;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_what_is_wanted() {
        let wanted = Wanted::parse("command=sh&command=-c&command=a%20b&stdin=true&stdout=1&stderr=false");
        assert_eq!(wanted.command, ["sh", "-c", "a b"]);
        assert_eq!((wanted.stdin, wanted.stdout, wanted.stderr, wanted.tty), (true, true, false, false));
        assert_eq!(wanted.channels(), [STDIN, STDOUT]);
        let all = Wanted::parse("stdin=true&stdout=true&stderr=true&tty=true");
        assert_eq!(all.channels(), [STDIN, STDOUT, RESIZE]);
    }
}
