//! Blobs that are being pushed. Sessions live in memory: after a restart a client begins anew, as it does with any registry
//! that lost a session.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use dashmap::DashMap;
use futures::StreamExt;
use http_body_util::BodyDataStream;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use super::failure::{Code, Failure};
use crate::{Digest, ImageError, error::Context};

pub(crate) struct Uploads {
    folder: PathBuf,
    sessions: DashMap<String, Arc<tokio::sync::Mutex<Upload>>>,
}

pub(super) type Session = tokio::sync::OwnedMutexGuard<Upload>;

impl Uploads {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, sessions: DashMap::new() }
    }

    pub(super) async fn start(&self) -> Result<(String, Session), Failure> {
        let id = uuid::Uuid::new_v4().to_string();
        let path = self.folder.join(&id);
        let file = tokio::fs::File::create_new(&path).await.at("create", &path)?;
        let upload = Upload {
            file: tokio::io::BufWriter::with_capacity(256 << 10, file),
            path,
            hash: Sha256::new(),
            done: 0,
            torn: false,
            touched: Instant::now(),
        };
        let session = Arc::new(tokio::sync::Mutex::new(upload));
        self.sessions.insert(id.clone(), session.clone());
        Ok((id, session.lock_owned().await))
    }

    /// The session, for one request at a time.
    pub(super) fn get(&self, id: &str) -> Result<Session, Failure> {
        let session = self.sessions.get(id).map(|s| s.clone()).ok_or_else(|| unknown(id))?;
        session.try_lock_owned().map_err(|_| {
            Failure::new(
                Code::BlobUploadInvalid,
                "another request of this upload is under way; send its chunks one after the other",
            )
        })
    }

    pub(super) fn forget(&self, id: &str) -> Result<(), Failure> {
        self.sessions.remove(id).map(drop).ok_or_else(|| unknown(id))
    }

    /// Gives up sessions that nobody has written to for `age`.
    pub(crate) fn drop_older(&self, age: Duration) {
        self.sessions
            .retain(|_, session| session.try_lock().map_or(true, |upload| upload.touched.elapsed() < age));
    }
}

fn unknown(id: &str) -> Failure {
    Failure::new(
        Code::BlobUploadUnknown,
        format!("no upload {id:?}: it was finished, cancelled, or the registry restarted; begin anew"),
    )
}

/// A blob as far as it has come. Its file goes when this is dropped, unless it was finished.
pub(crate) struct Upload {
    file: tokio::io::BufWriter<tokio::fs::File>,
    pub(super) path: PathBuf,
    hash: Sha256,
    done: u64,
    /// A write was begun and not seen to end: how much of it is in the file is unknown.
    torn: bool,
    touched: Instant,
}

impl Upload {
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// Appends a request's body. What arrived before a connection broke counts: the client may ask how much that is and go on.
    pub(super) async fn append(&mut self, body: axum::body::Body) -> Result<(), Failure> {
        if self.torn {
            // The future of an earlier request was dropped in the middle of a write, or the disk is full.
            return Err(Failure::new(
                Code::BlobUploadInvalid,
                "an earlier chunk was torn; cancel this upload and begin anew",
            ));
        }
        let mut body = BodyDataStream::new(body);
        let mut broken = None;
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => {
                    self.torn = true;
                    self.file.write_all(&chunk).await.at("write", &self.path)?;
                    self.torn = false;
                    self.hash.update(&chunk);
                    self.done += chunk.len() as u64;
                }
                Err(e) => {
                    broken = Some(Failure::new(Code::BlobUploadInvalid, format!("the body broke off: {e}")));
                    break;
                }
            }
        }
        self.file.flush().await.at("write", &self.path)?;
        self.touched = Instant::now();
        broken.map_or(Ok(()), Err)
    }

    /// Checks the content against its digest and makes it durable; the file may then be moved to its place.
    pub(super) async fn seal(&mut self, expected: &Digest) -> Result<(), Failure> {
        let found = Digest::from_hash(self.hash.clone());
        if found != *expected {
            return Err(Failure::new(
                Code::DigestInvalid,
                format!("the content has digest {found}, not {expected}"),
            ));
        }
        self.file.get_mut().sync_all().await.at("sync", &self.path).map_err(|e: ImageError| e.into())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Not there any more if it has become a blob.
        let _ = std::fs::remove_file(&self.path);
    }
}
