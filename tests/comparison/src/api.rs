//! The steps' `api` command: a raw request, for what kubectl does not let one send.
//!
//! `api METHOD PATH [Header: value]...` takes a body from standard input if one is given there, prints the code, the content type,
//! warnings, and the body: JSON with sorted keys, a stream line by line, anything else as it is. `Content-Type` is JSON unless said.

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::Value;

pub(crate) async fn main(mut arguments: impl Iterator<Item = String>) -> Result<bool> {
    let usage = "usage: api METHOD PATH [Header: value]...";
    let method = arguments.next().context(usage)?;
    let path = arguments.next().context(usage)?;
    let mut body = Vec::new();
    if !matches!(method.as_str(), "GET" | "HEAD") && !std::io::stdin().is_terminal() {
        std::io::stdin().read_to_end(&mut body)?;
    }
    let mut request = http::Request::builder().method(method.as_str()).uri(path);
    let mut has_type = false;
    for header in arguments {
        let (name, value) = header.split_once(':').context("a header is `Name: value`")?;
        has_type |= name.eq_ignore_ascii_case("content-type");
        request = request.header(name, value.trim());
    }
    if !has_type && !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    let mut config = kube::Config::infer().await.context("no server from KUBECONFIG")?;
    // An answer that asks to come again later is an answer.
    config.default_retry = false;
    let client = Client::try_from(config)?;
    let response = client.send(request.body(Body::from(body))?).await?;
    let (parts, body) = response.into_parts();
    let mut out = format!("HTTP {}", parts.status.as_u16());
    for name in ["content-type", "warning", "allow"] {
        for value in parts.headers.get_all(name) {
            out.push_str(&format!(" [{name}: {}]", value.to_str().unwrap_or("?")));
        }
    }
    out.push('\n');
    let body = body.into_data_stream().try_fold(Vec::new(), |mut all, part| async move {
        all.extend_from_slice(&part);
        Ok(all)
    });
    let body = body.await.context("the body broke off")?;
    let text = String::from_utf8_lossy(&body);
    match serde_json::from_str::<Value>(&text) {
        Ok(value) => out.push_str(&format!("{}\n", serde_json::to_string_pretty(&sorted(value))?)),
        Err(_) => {
            for line in text.lines() {
                match serde_json::from_str::<Value>(line) {
                    Ok(value) => out.push_str(&format!("{}\n", sorted(value))),
                    Err(_) => out.push_str(&format!("{line}\n")),
                }
            }
        }
    }
    // Whoever reads may have seen enough, as `head` has.
    let _ = std::io::stdout().write_all(out.as_bytes());
    Ok(true)
}

/// With keys in order, whatever the map is made of.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(pairs.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}
