//! Access log lines by template, in the notation of config-observability's `logging.request-log-template`.
//!
//! A subset of Go's: `{{.Request.Method}}`, `{{.Request.Host}}`, `{{.Request.RequestURI}}`, `{{.Request.URL}}` and its `Path`,
//! `{{.Request.Proto}}`, `{{.Request.RemoteAddr}}`, `{{.Request.UserAgent}}`, `{{.Request.Referer}}`, `{{.Request.ContentLength}}` (-1 when it
//! is not known), `{{.Request.Header.Get "Name"}}`, `{{index .Request.Header "Name"}}` (all values, as `[a b]`), `{{.Response.Code}}`,
//! `{{.Response.Size}}`, `{{.Response.Latency}}` (seconds), `{{.Revision.Name}}` and its `Namespace`, `Service`, `Configuration`,
//! `PodName`, `PodIP`, and `{{.TraceID}}`; `js` before a field, or `| js` after it, escapes it for JSON; comments, and `{{-` and `-}}`, which eat the blanks
//! beside them. Anything else is refused when parsed.

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderMap, HeaderName};

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Field { field: Field, escape: bool },
}

#[derive(Clone, Debug, PartialEq)]
enum Field {
    Method,
    Host,
    RequestUri,
    Path,
    ContentLength,
    Proto,
    RemoteAddr,
    UserAgent,
    Header(HeaderName),
    AllHeaders(HeaderName),
    TraceId,
    Code,
    Size,
    Latency,
    Revision(usize),
}

/// Why a template is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// `{{` without `}}`.
    #[error("the request log template has an unclosed `{{{{`")]
    Unclosed,
    /// An action outside the subset.
    #[error("the request log template uses `{0}`, which is not supported; see the list of fields")]
    Unknown(String),
}

/// What the revision's fields are filled with.
#[derive(Clone, Debug, Default)]
pub struct Revision {
    /// In the order of `Name`, `Namespace`, `Service`, `Configuration`, `PodName`, `PodIP`.
    pub fields: [String; 6],
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REVISION_FIELDS: [&str; 6] = ["Name", "Namespace", "Service", "Configuration", "PodName", "PodIP"];

/// One answered request.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// GET, ...
    pub method: &'a str,
    /// As the client sent it.
    pub host: &'a str,
    /// Path and query.
    pub uri: &'a str,
    /// HTTP/1.1 or HTTP/2.0.
    pub proto: &'a str,
    /// Address and port.
    pub remote: &'a str,
    /// Of the request.
    pub headers: &'a HeaderMap,
    /// Of the response.
    pub code: u16,
    /// Bytes of the response's body.
    pub size: u64,
    /// From the request's head to the response's end.
    pub latency: Duration,
    /// Where it was served.
    pub revision: &'a Revision,
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            let (mut before, tail) = rest.split_at(start);
            let end = tail.find("}}").ok_or(TemplateError::Unclosed)?;
            let mut inside = &tail[2..end];
            rest = &tail[end + 2..];
            // The blank tells a trim marker from a negative number.
            if let Some(trimmed) = inside.strip_prefix("- ") {
                (inside, before) = (trimmed, before.trim_end());
            }
            if let Some(trimmed) = inside.strip_suffix(" -") {
                (inside, rest) = (trimmed, rest.trim_start());
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let inside = inside.trim();
            if !(inside.starts_with("/*") && inside.ends_with("*/")) {
                parts.push(action(inside)?);
            }
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Appends the line for `entry`, without a line feed. Line feeds in values become spaces: one request, one line.
    pub fn write(&self, out: &mut String, entry: &Entry<'_>) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field { field, escape } => {
                    let start = out.len();
                    field.write(out, entry);
                    if *escape || out[start..].contains(['\n', '\r']) {
                        let value = out.split_off(start);
                        escape_into(out, &value);
                    }
                }
            }
        }
    }
}

fn action(text: &str) -> Result<Part, TemplateError> {
    let piped = text.strip_suffix("js").map(str::trim_end).and_then(|before| before.strip_suffix('|'));
    let (escape, path) = match (text.strip_prefix("js "), piped) {
        (Some(path), _) | (None, Some(path)) => (true, path.trim()),
        (None, None) => (false, text),
    };
    let unknown = || TemplateError::Unknown(text.to_owned());
    let header = |name: &str| {
        let name = name.trim().trim_matches(['"', '`']);
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| unknown())
    };
    let field = match path {
        ".Request.Method" => Field::Method,
        ".Request.Host" => Field::Host,
        ".Request.RequestURI" | ".Request.URL" | ".Request.URL.String" => Field::RequestUri,
        ".Request.URL.Path" => Field::Path,
        ".Request.ContentLength" => Field::ContentLength,
        ".Request.Referer" => Field::Header(http::header::REFERER),
        ".Request.Proto" => Field::Proto,
        ".Request.RemoteAddr" => Field::RemoteAddr,
        ".Request.UserAgent" => Field::UserAgent,
        ".TraceID" => Field::TraceId,
        ".Response.Code" => Field::Code,
        ".Response.Size" => Field::Size,
        ".Response.Latency" => Field::Latency,
        _ => {
            if let Some(name) = path.strip_prefix(".Revision.") {
                Field::Revision(REVISION_FIELDS.iter().position(|f| *f == name).ok_or_else(unknown)?)
            } else if let Some(name) = path.strip_prefix("index .Request.Header ") {
                Field::AllHeaders(header(name)?)
            } else {
                Field::Header(header(path.strip_prefix(".Request.Header.Get ").ok_or_else(unknown)?)?)
            }
        }
    };
    Ok(Part::Field { field, escape })
}

impl Field {
    fn write(&self, out: &mut String, e: &Entry<'_>) {
        let header = |name: &HeaderName| e.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        match self {
            Field::Method => out.push_str(e.method),
            Field::Host => out.push_str(e.host),
            Field::RequestUri => out.push_str(e.uri),
            Field::Path => out.push_str(e.uri.split('?').next().unwrap_or("")),
            Field::ContentLength => {
                let length = header(&http::header::CONTENT_LENGTH);
                let chunked = e.headers.contains_key(http::header::TRANSFER_ENCODING);
                out.push_str(if chunked {
                    "-1"
                } else if length.is_empty() {
                    "0"
                } else {
                    length
                });
            }
            Field::AllHeaders(name) => {
                out.push('[');
                for (n, value) in e.headers.get_all(name).iter().enumerate() {
                    out.push_str(if n > 0 { " " } else { "" });
                    out.push_str(value.to_str().unwrap_or(""));
                }
                out.push(']');
            }
            Field::Proto => out.push_str(e.proto),
            Field::RemoteAddr => out.push_str(e.remote),
            Field::UserAgent => out.push_str(header(&http::header::USER_AGENT)),
            Field::Header(name) => out.push_str(header(name)),
            // version-trace-span-flags.
            Field::TraceId => out.push_str(header(&TRACEPARENT).split('-').nth(1).unwrap_or("")),
            Field::Code => {
                let _ = write!(out, "{}", e.code);
            }
            Field::Size => {
                let _ = write!(out, "{}", e.size);
            }
            Field::Latency => {
                let _ = write!(out, "{:.6}", e.latency.as_secs_f64());
            }
            Field::Revision(i) => out.push_str(&e.revision.fields[*i]),
        }
    }
}

fn escape_into(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_by_template() {
        let t = Template::parse(
            r#"{"m":"{{.Request.Method}}","u":"{{js .Request.RequestURI}}","a":"{{js .Request.Header.Get "X-A"}}","s":{{.Response.Code}},"l":"{{.Response.Latency}}s","r":"{{.Revision.Name}}"}"#,
        )
        .unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "say \"hi\"".parse().unwrap());
        let mut revision = Revision::default();
        revision.fields[0] = "r1".into();
        let mut out = String::new();
        t.write(
            &mut out,
            &Entry {
                method: "GET",
                host: "h",
                uri: "/x",
                proto: "HTTP/1.1",
                remote: "1.1.1.1:1",
                headers: &headers,
                code: 200,
                size: 3,
                latency: Duration::from_millis(1500),
                revision: &revision,
            },
        );
        let parsed: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(parsed["a"], "say \"hi\"");
        assert_eq!(parsed["l"], "1.500000s");
        assert_eq!(parsed["r"], "r1");
    }

    fn written(template: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.append("x-a", "1".parse().unwrap());
        headers.append("x-a", "2".parse().unwrap());
        headers.insert("referer", "r".parse().unwrap());
        headers.insert("content-length", "7".parse().unwrap());
        headers
            .insert(TRACEPARENT, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
        let entry = Entry {
            method: "GET",
            host: "h",
            uri: "/x?\"y",
            proto: "HTTP/1.1",
            remote: "1.1.1.1:1",
            headers: &headers,
            code: 200,
            size: 3,
            latency: Duration::from_millis(1500),
            revision: &Revision::default(),
        };
        let mut out = String::new();
        Template::parse(template).unwrap().write(&mut out, &entry);
        out
    }

    #[test]
    fn what_templates_of_knative_use() {
        assert_eq!(written(r#"{{.Request.Referer}} {{.Request.ContentLength}}"#), "r 7");
        assert_eq!(written(r#"{{index .Request.Header "X-A"}}{{index .Request.Header "none"}}"#), "[1 2][]");
        assert_eq!(written("{{.Request.URL.Path}} {{.Request.RequestURI | js}}"), "/x /x?\\\"y");
        assert_eq!(written("a \n {{- .Request.Method -}} \n b{{/* nothing */}}"), "aGETb");
        // The example of Knative's own ConfigMap.
        let line = written(
            r#"{"httpRequest": {"requestMethod": "{{.Request.Method}}", "requestUrl": "{{js .Request.RequestURI}}", "requestSize": "{{.Request.ContentLength}}", "status": {{.Response.Code}}, "responseSize": "{{.Response.Size}}", "userAgent": "{{js .Request.UserAgent}}", "remoteIp": "{{js .Request.RemoteAddr}}", "serverIp": "{{.Revision.PodIP}}", "referer": "{{js .Request.Referer}}", "latency": "{{.Response.Latency}}s", "protocol": "{{.Request.Proto}}"}, "traceId": "{{.TraceID}}"}"#,
        );
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["httpRequest"]["status"], &line["traceId"]),
            (&200.into(), &"4bf92f3577b34da6a3ce929d0e0e4736".into())
        );
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(Template::parse("a {{.Foo}}"), Err(TemplateError::Unknown(".Foo".into())));
        assert_eq!(Template::parse("a {{.Response.Code"), Err(TemplateError::Unclosed));
    }
}
