//! A client of the embedded registry: what `ebb build` and `ebb image` say to the running platform.
//!
//! Blobs are streamed from files, never held whole in memory, and only those that the registry lacks are sent.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use cluster::images::{Reference, Store};
use futures::TryStreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::io::ReaderStream;

type Body = BoxBody<Bytes, std::io::Error>;

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
    pub(crate) async fn push(&self, store: &Store, name: &str) -> anyhow::Result<String> {
        let reference = Reference::parse(name)?;
        let repository = reference.local_repository();
        let listed = store.list();
        let found = listed.iter().find(|image| {
            Reference::parse(&format!("{}:{}", image.repository, image.tag)).is_ok_and(|r| r.to_string() == reference.to_string())
        });
        let digest = &found.with_context(|| format!("{name} is not in the store it was built into"))?.digest;
        let blobs = store.root().join("blobs").join("sha256");
        let tag = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or("latest", |(_, tag)| tag);
        self.push_manifest(&blobs, &repository, digest, tag).await?;
        Ok(digest.clone())
    }

    /// A manifest after what it refers to; an index after its manifests.
    async fn push_manifest(&self, blobs: &Path, repository: &str, digest: &str, name: &str) -> anyhow::Result<()> {
        let text = std::fs::read(blob(blobs, digest)).with_context(|| format!("reading manifest {digest}"))?;
        let manifest: Value = serde_json::from_slice(&text).with_context(|| format!("manifest {digest}"))?;
        for child in manifest["manifests"].as_array().into_iter().flatten() {
            let child = child["digest"].as_str().context("an index entry has no digest")?;
            // Archives may leave out the platforms that nobody asked for.
            if blob(blobs, child).exists() {
                Box::pin(self.push_manifest(blobs, repository, child, child)).await?;
            }
        }
        let config = manifest.get("config").into_iter();
        for part in config.chain(manifest["layers"].as_array().into_iter().flatten()) {
            let digest = part["digest"].as_str().context("a part of the manifest has no digest")?;
            self.push_blob(blobs, repository, digest).await?;
        }
        let media_type = manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let request = Request::put(format!("/v2/{repository}/manifests/{name}")).header("content-type", media_type);
        let answer = self.ask(request.body(full(text))?).await?;
        ensure!(answer.status == StatusCode::CREATED, "the registry refused manifest {digest}: {}", answer.why());
        Ok(())
    }

    async fn push_blob(&self, blobs: &Path, repository: &str, digest: &str) -> anyhow::Result<()> {
        let head = Request::head(format!("/v2/{repository}/blobs/{digest}")).body(full(Vec::new()))?;
        if self.ask(head).await?.status == StatusCode::OK {
            return Ok(());
        }
        let path = blob(blobs, digest);
        let file = tokio::fs::File::open(&path).await.with_context(|| format!("opening {}", path.display()))?;
        let length = file.metadata().await?.len();
        let stream = StreamBody::new(ReaderStream::with_capacity(file, 256 * 1024).map_ok(Frame::data));
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v2/{repository}/blobs/uploads/?digest={digest}"))
            .header("content-type", "application/octet-stream")
            .header("content-length", length)
            .body(BoxBody::new(stream))?;
        let answer = self.ask(request).await?;
        ensure!(answer.status == StatusCode::CREATED, "the registry refused blob {digest}: {}", answer.why());
        Ok(())
    }

    /// Everything that has a tag.
    pub(crate) async fn list(&self) -> anyhow::Result<Vec<Listed>> {
        let mut all = Vec::new();
        for repository in self.names("/v2/_catalog?n=10000", "repositories").await? {
            for tag in self.names(&format!("/v2/{repository}/tags/list"), "tags").await? {
                let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                              application/vnd.docker.distribution.manifest.v2+json, \
                              application/vnd.docker.distribution.manifest.list.v2+json";
                let request = Request::get(format!("/v2/{repository}/manifests/{tag}")).header("accept", accept);
                let answer = self.ask(request.body(full(Vec::new()))?).await?;
                let digest = answer.headers.get("docker-content-digest").and_then(|v| v.to_str().ok()).unwrap_or_default();
                let manifest: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let parts = manifest.get("config").into_iter().chain(manifest["layers"].as_array().into_iter().flatten());
                let size = parts.filter_map(|p| p["size"].as_u64()).sum::<u64>() + answer.body.len() as u64;
                all.push(Listed { name: format!("{repository}:{tag}"), digest: digest.into(), size });
            }
        }
        Ok(all)
    }

    async fn names(&self, path: &str, field: &str) -> anyhow::Result<Vec<String>> {
        let answer = self.ask(Request::get(path).body(full(Vec::new()))?).await?;
        if answer.status != StatusCode::OK {
            bail!("the registry refused {path}: {}", answer.why());
        }
        let value: Value = serde_json::from_slice(&answer.body).with_context(|| format!("the registry's answer to {path}"))?;
        let names = value[field].as_array().cloned().unwrap_or_default();
        Ok(names.iter().filter_map(|n| n.as_str().map(str::to_string)).collect())
    }

    async fn ask(&self, mut request: Request<Body>) -> anyhow::Result<Answer> {
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

fn blob(blobs: &Path, digest: &str) -> PathBuf {
    blobs.join(digest.strip_prefix("sha256:").unwrap_or(digest))
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}
