//! The other direction: an image of this store to a registry elsewhere, such as that of a running platform.

use std::sync::Arc;

use futures::TryStreamExt;
use oci_client::{RegistryOperation, secrets::RegistryAuth as Login};
use tokio_util::io::ReaderStream;

use super::remote::Remote;
use crate::{Digest, ImageError, Reference, RegistryAuth, Store, auth, error::Context, manifest::Manifest};

impl Store {
    /// Pushes the image `name` of this store as `target`, a full reference with the registry's `host:port`; blobs that are
    /// there already are not sent. Gives the digest pushed. Registries on loopback are spoken to without TLS.
    ///
    /// # Errors
    /// As [`Store::ensure`].
    pub async fn push(
        self: &Arc<Self>,
        name: &str,
        target: &str,
        auths: &[RegistryAuth],
    ) -> Result<String, ImageError> {
        let (digest, _) = self.find(name)?;
        let reference = Reference::parse(target)?;
        let login = auth::candidates(auths, &reference).into_iter().next().unwrap_or(Login::Anonymous);
        let remote = Remote::new(target, &reference, login.clone(), false).await?;
        remote
            .client
            .auth(&remote.named, &login, RegistryOperation::Push)
            .await
            .map_err(|e| remote.error(e))?;
        self.push_tree(&remote, &digest, true).await?;
        Ok(digest.to_string())
    }

    async fn push_tree(&self, remote: &Remote, digest: &Digest, top: bool) -> Result<(), ImageError> {
        let (manifest, _) = self.manifest(digest)?;
        match &manifest {
            // What is not here was not wanted when the index was pulled; a registry then refuses the index and says so.
            Manifest::Index(index) => {
                for child in index.manifests.iter().filter(|d| self.has_blob(&d.digest)) {
                    Box::pin(self.push_tree(remote, &child.digest, false)).await?;
                }
            }
            Manifest::Image(_) => {
                for blob in manifest.children() {
                    self.push_blob(remote, &blob.digest, blob.size).await?;
                }
            }
        }
        let named =
            if top { remote.named.clone() } else { remote.named.clone_with_digest(digest.to_string()) };
        let kind = manifest
            .media_type()
            .parse()
            .map_err(|_| ImageError::invalid(format!("manifest {digest}"), "its media type"))?;
        remote
            .client
            .push_manifest_raw(&named, self.read_blob(digest)?, kind)
            .await
            .map_err(|e| remote.error(e))?;
        Ok(())
    }

    async fn push_blob(&self, remote: &Remote, digest: &Digest, size: u64) -> Result<(), ImageError> {
        if remote.client.blob_exists(&remote.named, digest.as_str()).await.map_err(|e| remote.error(e))? {
            return Ok(());
        }
        let path = self.blob_path(digest);
        let file = tokio::fs::File::open(&path).await.at("open blob", &path)?;
        let stream = ReaderStream::with_capacity(file, 1 << 20)
            .map_err(oci_client::errors::OciDistributionError::from);
        let pushed = remote.client.push_blob_stream(&remote.named, stream, digest.as_str(), Some(size)).await;
        pushed.map(drop).map_err(|e| remote.error(e))
    }
}
