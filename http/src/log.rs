//! Access log lines by template, in the notation of config-observability's `logging.request-log-template`.
//!
//! A subset of Go's: `{{.Request.Method}}`, `{{.Request.Host}}`, `{{.Request.RequestURI}}`, `{{.Request.Proto}}`,
//! `{{.Request.RemoteAddr}}`, `{{.Request.UserAgent}}`, `{{.Request.Header.Get "Name"}}`, `{{.Response.Code}}`,
//! `{{.Response.Size}}`, `{{.Response.Latency}}` (seconds), `{{.Revision.Name}}` and its `Namespace`, `Service`,
//! `Configuration`, `PodName`, `PodIP`; `js` before a field escapes it for JSON. Anything else is refused when parsed.

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
    Proto,
    RemoteAddr,
    UserAgent,
    Header(HeaderName),
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
            let (before, tail) = rest.split_at(start);
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let end = tail.find("}}").ok_or(TemplateError::Unclosed)?;
            parts.push(action(tail[2..end].trim())?);
            rest = &tail[end + 2..];
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
    let (escape, path) = match text.strip_prefix("js ") {
        Some(path) => (true, path.trim()),
        None => (false, text),
    };
    let unknown = || TemplateError::Unknown(text.to_owned());
    let field = match path {
        ".Request.Method" => Field::Method,
        ".Request.Host" => Field::Host,
        ".Request.RequestURI" | ".Request.URL" | ".Request.URL.Path" => Field::RequestUri,
        ".Request.Proto" => Field::Proto,
        ".Request.RemoteAddr" => Field::RemoteAddr,
        ".Request.UserAgent" => Field::UserAgent,
        ".Response.Code" => Field::Code,
        ".Response.Size" => Field::Size,
        ".Response.Latency" => Field::Latency,
        _ => {
            if let Some(name) = path.strip_prefix(".Revision.") {
                Field::Revision(REVISION_FIELDS.iter().position(|f| *f == name).ok_or_else(unknown)?)
            } else {
                let name = path.strip_prefix(".Request.Header.Get ").ok_or_else(unknown)?;
                let name = name.trim().trim_matches('"');
                Field::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| unknown())?)
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
            Field::Proto => out.push_str(e.proto),
            Field::RemoteAddr => out.push_str(e.remote),
            Field::UserAgent => out.push_str(header(&http::header::USER_AGENT)),
            Field::Header(name) => out.push_str(header(name)),
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

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(Template::parse("a {{.Foo}}"), Err(TemplateError::Unknown(".Foo".into())));
        assert_eq!(Template::parse("a {{.Response.Code"), Err(TemplateError::Unclosed));
    }
}
