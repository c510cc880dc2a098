//! A client of the embedded registry: what `ebb build` and `ebb image` say to the running platform.

use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use cluster::images::{Reference, Store};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// The registry of a platform on this machine.
pub(crate) struct Registry {
    port: u16,
}

/// A line of `ebb image list`.
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Registry {
    pub(crate) fn new(port: u16) -> Self {
        Self { port }
    }

    /// Copies an image of a store into the registry, under the same name. Gives its digest.
    pub(crate) async fn push(&self, store: &Arc<Store>, name: &str) -> anyhow::Result<String> {
        let repository = Reference::parse(name)?.local_repository();
        let tag =
            name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or("latest", |(_, tag)| tag);
        let target = format!("127.0.0.1:{}/{repository}:{tag}", self.port);
        store
            .push(name, &target, &[])
            .await
            .context("pushing into the platform's registry; is `ebb up` still running?")
    }

    /// Everything that has a tag.
    pub(crate) async fn list(&self) -> anyhow::Result<Vec<Listed>> {
        let mut all = Vec::new();
        for repository in self.names("/v2/_catalog?n=10000", "repositories").await? {
            for tag in self.names(&format!("/v2/{repository}/tags/list"), "tags").await? {
                let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                              application/vnd.docker.distribution.manifest.v2+json, \
                              application/vnd.docker.distribution.manifest.list.v2+json";
                let request =
                    Request::get(format!("/v2/{repository}/manifests/{tag}")).header("accept", accept);
                let answer = self.ask(request.body(Empty::new())?).await?;
                let digest = answer
                    .headers
                    .get("docker-content-digest")
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or_default();
                let manifest: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let parts = manifest
                    .get("config")
                    .into_iter()
                    .chain(manifest["layers"].as_array().into_iter().flatten());
                let size = parts.filter_map(|p| p["size"].as_u64()).sum::<u64>() + answer.body.len() as u64;
                all.push(Listed { name: format!("{repository}:{tag}"), digest: digest.into(), size });
            }
        }
        Ok(all)
    }

    async fn names(&self, path: &str, field: &str) -> anyhow::Result<Vec<String>> {
        let answer = self.ask(Request::get(path).body(Empty::new())?).await?;
        if answer.status != StatusCode::OK {
            bail!("the registry refused {path}: {}", answer.why());
        }
        let value: Value = serde_json::from_slice(&answer.body)
            .with_context(|| format!("the registry's answer to {path}"))?;
        let names = value[field].as_array().cloned().unwrap_or_default();
        Ok(names.iter().filter_map(|n| n.as_str().map(str::to_string)).collect())
    }

    async fn ask(&self, mut request: Request<Empty<Bytes>>) -> anyhow::Result<Answer> {
        let host = format!("localhost:{}", self.port);
        let stream = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .with_context(|| format!("the registry at {host} does not answer; is `ebb up` running?"))?;
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        request.headers_mut().insert(http::header::HOST, host.parse()?);
        let (parts, body) = send.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        driver.abort();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}

impl Answer {
    fn why(&self) -> String {
        format!("{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}
