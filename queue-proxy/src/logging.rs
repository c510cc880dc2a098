//! The optional request log: one line on standard output for each request.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use ebb_http::log::{Entry, Revision, Template};
use http::{HeaderMap, Version};

use crate::config::Config;

/// What the log needs of a request after the request is gone. Made only when the log is on.
#[derive(Debug)]
pub(crate) struct Line {
    method: http::Method,
    host: String,
    uri: http::Uri,
    version: Version,
    headers: HeaderMap,
    remote: SocketAddr,
}

/// The log.
#[derive(Debug)]
pub(crate) struct RequestLog {
    template: Template,
    revision: Revision,
}

impl RequestLog {
    pub(crate) fn new(config: &Config) -> Option<Self> {
        let template = config.request_log.clone()?;
        let revision = Revision {
            fields: [
                config.revision.clone(),
                config.namespace.clone(),
                config.service.clone(),
                config.configuration.clone(),
                config.pod.clone(),
                config.pod_ip.to_string(),
            ],
        };
        Some(Self { template, revision })
    }

    pub(crate) fn line(
        &self,
        request: &http::Request<hyper::body::Incoming>,
        remote: SocketAddr,
    ) -> Box<Line> {
        Box::new(Line {
            method: request.method().clone(),
            host: ebb_http::forward::host_of(request).unwrap_or("").to_owned(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            remote,
        })
    }

    pub(crate) fn write(&self, line: &Line, code: u16, size: u64, latency: Duration) {
        let mut out = String::with_capacity(256);
        self.template.write(
            &mut out,
            &Entry {
                method: line.method.as_str(),
                host: &line.host,
                uri: line.uri.path_and_query().map_or("/", |p| p.as_str()),
                proto: if line.version == Version::HTTP_2 { "HTTP/2.0" } else { "HTTP/1.1" },
                remote: &line.remote.to_string(),
                headers: &line.headers,
                code,
                size,
                latency,
                revision: &self.revision,
            },
        );
        out.push('\n');
        // A full pipe must not stop requests: the line is lost then.
        let _ = std::io::stdout().write_all(out.as_bytes());
    }
}
