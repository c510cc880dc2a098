//! Blobs from a registry to disk: several at a time, resumed where they broke off, checked before they count.

use std::{fs, io::Read, path::PathBuf, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{client::BlobResponse, errors::OciDistributionError};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use super::remote::{Remote, chain};
use crate::{
    Digest, ImageError, Progress, ProgressSender, Store, error::Context, manifest::Descriptor, report,
};

/// Blobs of one image that are transferred at a time, as containerd and docker do.
const PARALLEL: usize = 3;
/// Attempts in a row that bring no byte before giving up.
const FRUITLESS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Bytes between two progress reports.
const STEP: u64 = 1 << 20;

pub(super) async fn all<'a>(
    store: &Arc<Store>,
    remote: &Remote,
    blobs: impl Iterator<Item = &'a Descriptor>,
    progress: Option<&ProgressSender>,
) -> Result<(), ImageError> {
    let transfers = blobs.map(|blob| one(store, remote, blob, progress)).collect::<Vec<_>>();
    stream::iter(transfers).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await.map(drop)
}

async fn one(
    store: &Arc<Store>,
    remote: &Remote,
    blob: &Descriptor,
    progress: Option<&ProgressSender>,
) -> Result<(), ImageError> {
    let lock = store.lock_of(&format!("blob {}", blob.digest));
    let _one_writer = lock.lock().await;
    if store.keep_blob(&blob.digest) {
        return Ok(());
    }
    let mut partial = Partial::open(store, blob).await?;
    let (mut fruitless, mut pause) = (0, FIRST_PAUSE);
    while partial.done < blob.size {
        let before = partial.done;
        let Err(broken) = transfer(remote, &mut partial, blob, progress).await else { continue };
        let error = match broken {
            Broken::Fatal(error) => return Err(error),
            Broken::Connection(error) => error,
        };
        fruitless = if partial.done > before { 0 } else { fruitless + 1 };
        if fruitless >= FRUITLESS {
            return Err(error);
        }
        tracing::info!(image = remote.image, blob = %blob.digest, done = partial.done, %error, "transfer broke off, resuming");
        pause = if fruitless == 0 { FIRST_PAUSE } else { pause * 2 };
        tokio::time::sleep(pause).await;
    }
    partial.finish(store, &blob.digest).await
}

enum Broken {
    /// To be tried again.
    Connection(ImageError),
    /// Not to be.
    Fatal(ImageError),
}

async fn transfer(
    remote: &Remote,
    partial: &mut Partial,
    blob: &Descriptor,
    progress: Option<&ProgressSender>,
) -> Result<(), Broken> {
    let classify = |e: OciDistributionError| {
        if Remote::is_broken_connection(&e) {
            Broken::Connection(remote.error(e))
        } else {
            Broken::Fatal(remote.error(e))
        }
    };
    let digest = blob.digest.as_str();
    let mut body = if partial.done == 0 {
        remote.client.pull_blob_stream(&remote.named, digest).await.map_err(classify)?
    } else {
        match remote
            .client
            .pull_blob_stream_partial(&remote.named, digest, partial.done, None)
            .await
            .map_err(classify)?
        {
            BlobResponse::Partial(rest) => rest,
            BlobResponse::Full(whole) => {
                partial.restart().await.map_err(Broken::Fatal)?;
                whole
            }
        }
    };
    let mut reported = partial.done;
    while let Some(chunk) = body.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            // The client checks whole bodies and says so at their end; the check below gives the better message.
            Err(_) if partial.done == blob.size => break,
            Err(e) => {
                partial.flush().await.map_err(Broken::Fatal)?;
                return Err(Broken::Connection(remote.unreachable(chain(&e))));
            }
        };
        if partial.done + chunk.len() as u64 > blob.size {
            let error = ImageError::corrupt(
                format!("blob {digest}"),
                format!("the registry sent more than its {} bytes", blob.size),
            );
            partial.discard().await;
            return Err(Broken::Fatal(error));
        }
        partial.write(&chunk).await.map_err(Broken::Fatal)?;
        if partial.done - reported >= STEP || partial.done == blob.size {
            reported = partial.done;
            report(progress, || Progress::Downloading {
                digest: digest.into(),
                done: partial.done,
                total: blob.size,
            });
        }
    }
    partial.flush().await.map_err(Broken::Fatal)?;
    if partial.done < blob.size {
        return Err(Broken::Connection(
            remote.unreachable(format!("the transfer ended after {} of {} bytes", partial.done, blob.size)),
        ));
    }
    Ok(())
}

/// A blob that is not whole yet, kept over restarts.
struct Partial {
    path: PathBuf,
    file: tokio::io::BufWriter<tokio::fs::File>,
    hash: Sha256,
    done: u64,
}

impl Partial {
    async fn open(store: &Store, blob: &Descriptor) -> Result<Self, ImageError> {
        let path = store.root().join("partial").join(blob.digest.hex());
        let (at, size) = (path.clone(), blob.size);
        let read = move || -> Result<_, ImageError> {
            let mut file =
                fs::File::options().create(true).append(true).read(true).open(&at).at("open", &at)?;
            if file.metadata().at("look at", &at)?.len() > size {
                file.set_len(0).at("shorten", &at)?;
            }
            let mut hash = Sha256::new();
            let (mut done, mut buffer) = (0, vec![0; 256 << 10]);
            loop {
                let n = file.read(&mut buffer).at("read", &at)?;
                if n == 0 {
                    return Ok((file, hash, done));
                }
                hash.update(&buffer[..n]);
                done += n as u64;
            }
        };
        let (file, hash, done) =
            tokio::task::spawn_blocking(read).await.map_err(|e| ImageError::Internal(e.to_string()))??;
        Ok(Self {
            path,
            file: tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::from_std(file)),
            hash,
            done,
        })
    }

    async fn write(&mut self, chunk: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(chunk).await.at("write", &self.path)?;
        self.hash.update(chunk);
        self.done += chunk.len() as u64;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), ImageError> {
        self.file.flush().await.at("write", &self.path)
    }

    async fn restart(&mut self) -> Result<(), ImageError> {
        self.flush().await?;
        self.file.get_mut().set_len(0).await.at("shorten", &self.path)?;
        (self.hash, self.done) = (Sha256::new(), 0);
        Ok(())
    }

    async fn discard(&mut self) {
        // If it cannot be removed, the next attempt finds it too long or wrong and removes it then.
        let _ = tokio::fs::remove_file(&self.path).await;
    }

    async fn finish(mut self, store: &Arc<Store>, expected: &Digest) -> Result<(), ImageError> {
        self.flush().await?;
        // A write of an attempt that was dropped may have landed after this one looked: then the file is not what was hashed.
        let length = self.file.get_ref().metadata().await.at("look at", &self.path)?.len();
        if length != self.done {
            self.discard().await;
            let detail = format!("its file has {length} bytes, not {}; pull it again", self.done);
            return Err(ImageError::corrupt(format!("blob {expected}"), detail));
        }
        let found = Digest::from_hash(std::mem::take(&mut self.hash));
        if found != *expected {
            self.discard().await;
            return Err(ImageError::corrupt(
                format!("blob {expected}"),
                format!("what the registry sent has digest {found}"),
            ));
        }
        self.file.get_mut().sync_all().await.at("sync", &self.path)?;
        let (store, path, digest) = (store.clone(), self.path, expected.clone());
        tokio::task::spawn_blocking(move || store.adopt(&path, &digest))
            .await
            .map_err(|e| ImageError::Internal(e.to_string()))?
    }
}
