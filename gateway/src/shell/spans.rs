//! The span of a request, and of the parts of its way that others tell in `Server-Timing`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ebb_component::Traces;
use ebb_component::traces::context::TRACEPARENT;
use ebb_component::traces::{Context, Span, Value};
use ebb_http::forward::host_of;
use ebb_http::{Body, headers, timing};
use http::{HeaderMap, HeaderValue, Method, Request, Response};

use super::handler::Met;

/// A request that is traced.
#[derive(Debug)]
pub(super) struct Trace {
    traces: Arc<Traces>,
    context: Context,
    start: SystemTime,
    began: tokio::time::Instant,
    /// What is told of a sampled one.
    about: Option<Box<About>>,
}

#[derive(Debug)]
struct About {
    method: Method,
    host: String,
    path: String,
    /// The client asked for the breakdown itself.
    timed: bool,
}

impl Trace {
    /// None while tracing is off.
    pub(super) fn begin<B>(traces: &Arc<Traces>, request: &Request<B>) -> Option<Self> {
        let context = traces.begin(request.headers())?;
        let about = context.sampled.then(|| {
            Box::new(About {
                method: request.method().clone(),
                host: host_of(request).unwrap_or_default().to_owned(),
                path: request.uri().path().to_owned(),
                timed: timing::wanted(request.headers()),
            })
        });
        let (start, began) = (SystemTime::now(), tokio::time::Instant::now());
        Some(Self { traces: traces.clone(), context, start, began, about })
    }

    /// Those behind see this span as theirs, and tell their parts of the time.
    pub(super) fn pass_on(&self, to: &mut HeaderMap) {
        if let Some(header) = self.context.header() {
            to.insert(TRACEPARENT, header);
        }
        if self.about.is_some() {
            to.insert(headers::TIMING_REQUEST, HeaderValue::from_static("1"));
        }
    }

    /// The answer's head is there.
    pub(super) fn end(self, response: &mut Response<Body>, met: &Met) {
        let Some(about) = self.about else { return };
        let took = self.began.elapsed();
        let status = response.status();
        let mut attributes = vec![
            ("http.request.method", Value::Text(about.method.as_str().to_owned())),
            ("server.address", Value::Text(about.host)),
            ("url.path", Value::Text(about.path)),
            ("http.response.status_code", Value::Number(status.as_u16().into())),
            ("ebb.through_activator", Value::Flag(met.activator)),
        ];
        if let Some(revision) = &met.revision {
            attributes.push(("k8s.namespace.name", Value::Text(revision.namespace.clone())));
            attributes.push(("ebb.revision", Value::Text(revision.name.clone())));
        }
        for (name, part) in parts(response.headers()) {
            // A wait comes first, an app's own time last; where the others lie nobody said.
            let start = if name == "app" { self.start + took.saturating_sub(part) } else { self.start };
            self.traces.record(Span {
                context: self.context.child(&mut ebb_http::balance::random),
                name,
                server: false,
                start,
                took: part,
                attributes: Vec::new(),
                failed: false,
            });
        }
        if !about.timed {
            response.headers_mut().remove(headers::SERVER_TIMING);
        }
        self.traces.record(Span {
            context: self.context,
            name: "request",
            server: true,
            start: self.start,
            took,
            attributes,
            failed: status.is_server_error(),
        });
    }
}

/// The parts of a request's time that are known by name.
const PARTS: [&str; 8] = ["queued", "decided", "pod", "certified", "listening", "announced", "queue", "app"];

fn parts(headers: &HeaderMap) -> Vec<(&'static str, Duration)> {
    let all = headers.get_all(headers::SERVER_TIMING).iter().filter_map(|value| value.to_str().ok());
    let entry = |text: &str| {
        let (name, milliseconds) = text.trim().split_once(";dur=")?;
        let name = PARTS.iter().find(|known| **known == name)?;
        let seconds = milliseconds.parse::<f64>().ok()? / 1e3;
        Some((*name, Duration::try_from_secs_f64(seconds).ok()?))
    };
    all.flat_map(|value| value.split(',')).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_by_name() {
        let mut headers = HeaderMap::new();
        headers.append(headers::SERVER_TIMING, HeaderValue::from_static("app;dur=1.5, other;dur=2"));
        headers
            .append(headers::SERVER_TIMING, HeaderValue::from_static("queued;dur=20.25, pod;dur=-1, queue"));
        let expected = [("app", Duration::from_micros(1500)), ("queued", Duration::from_micros(20_250))];
        assert_eq!(parts(&headers), expected);
    }
}
