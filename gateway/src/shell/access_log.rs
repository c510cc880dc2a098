//! The access log: one line on standard output for each request, when it is switched on.
//!
//! Off, it costs a request one load. On, the line is made when the answer's body is through, and written by a thread of its own: who reads
//! too slowly loses lines (`ebb_gateway_access_log_lost_total` counts them), not requests.

use std::io::Write;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use ebb_http::forward::host_of;
use ebb_http::log::{Entry, Revision, Template};
use ebb_http::{Body, Peer};
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::table::Key;

/// What a line is where nobody said otherwise.
pub(super) const JSON: &str = concat!(
    r#"{"method":"{{.Request.Method}}","host":"{{js .Request.Host}}","uri":"{{js .Request.RequestURI}}","#,
    r#""protocol":"{{.Request.Proto}}","remote":"{{.Request.RemoteAddr}}","userAgent":"{{js .Request.UserAgent}}","#,
    r#""requestId":"{{js .Request.Header.Get "x-request-id"}}","status":{{.Response.Code}},"bytes":{{.Response.Size}},"#,
    r#""seconds":{{.Response.Latency}},"revision":"{{.Revision.Name}}","namespace":"{{.Revision.Namespace}}"}"#
);

/// Lines that may wait to be written.
const WAITING: usize = 4096;
/// Lines are written together up to so many bytes.
const TOGETHER: usize = 64 << 10;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct AccessLog {
    template: ArcSwapOption<Template>,
    out: OnceLock<SyncSender<String>>,
}

impl AccessLog {
    /// Switches it on, with the form of a line, or off.
    pub fn set(&self, template: Option<Template>) {
        self.template.store(template.map(Arc::new));
    }

    /// Writes to `to` instead. Only before the first line.
    pub fn write_to(&self, to: impl Write + Send + 'static) {
        let _ = self.out.set(writer(to));
    }

    /// What must be kept of a request; none when the log is off.
    pub(crate) fn begin(
        self: &Arc<Self>,
        request: &Request<hyper::body::Incoming>,
        peer: &Peer,
    ) -> Option<Box<Line>> {
        let template = self.template.load_full()?;
        Some(Box::new(Line {
            log: self.clone(),
            template,
            started: Instant::now(),
            method: request.method().clone(),
            host: host_of(request).unwrap_or_default().to_owned(),
            uri: request.uri().clone(),
            version: request.version(),
            remote: peer.remote.to_string(),
            headers: request.headers().clone(),
            revision: None,
            code: 0,
            size: 0,
        }))
    }

    fn write(&self, line: String) {
        let out = self.out.get_or_init(|| writer(std::io::stdout()));
        if out.try_send(line).is_err() {
            metrics::counter!("ebb_gateway_access_log_lost_total").increment(1);
        }
    }
}

fn writer(mut to: impl Write + Send + 'static) -> SyncSender<String> {
    let (sender, lines) = sync_channel(WAITING);
    let write = move || write_all(&lines, &mut to);
    if let Err(error) = std::thread::Builder::new().name("access-log".to_owned()).spawn(write) {
        tracing::error!(%error, "the access log cannot be written: no thread can be started");
    }
    sender
}

fn write_all(lines: &Receiver<String>, to: &mut impl Write) {
    while let Ok(mut text) = lines.recv() {
        while text.len() < TOGETHER
            && let Ok(more) = lines.try_recv()
        {
            text.push_str(&more);
        }
        let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
    }
}

/// A request whose line is still to be written; it is when this is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    log: Arc<AccessLog>,
    template: Arc<Template>,
    started: Instant,
    method: Method,
    host: String,
    uri: Uri,
    version: Version,
    remote: String,
    headers: HeaderMap,
    revision: Option<Arc<Key>>,
    code: u16,
    size: u64,
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut revision = Revision::default();
        if let Some(key) = &self.revision {
            revision.fields[0].clone_from(&key.name);
            revision.fields[1].clone_from(&key.namespace);
        }
        let mut text = String::with_capacity(512);
        let entry = Entry {
            method: self.method.as_str(),
            host: &self.host,
            uri: self.uri.path_and_query().map_or("/", |path| path.as_str()),
            proto: if self.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" },
            remote: &self.remote,
            headers: &self.headers,
            code: self.code,
            size: self.size,
            latency: self.started.elapsed(),
            revision: &revision,
        };
        self.template.write(&mut text, &entry);
        text.push('\n');
        self.log.write(text);
    }
}

/// The body of an answer, with the line to be written at its end.
#[derive(Debug)]
pub struct Answer {
    body: Body,
    line: Option<Box<Line>>,
}

impl Answer {
    /// Ties the line to the answer.
    pub(crate) fn of(
        response: Response<Body>,
        line: Option<Box<Line>>,
        revision: Option<&Arc<Key>>,
    ) -> Response<Self> {
        let code = response.status().as_u16();
        let line = line.map(|mut line| {
            line.code = code;
            line.revision = revision.cloned();
            line
        });
        response.map(|body| Self { body, line })
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = ebb_http::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ebb_http::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Some(line) = &mut this.line
            && let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            line.size += data.len() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_form_is_understood() {
        Template::parse(JSON).expect("a template");
    }
}
