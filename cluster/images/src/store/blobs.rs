//! Content by digest.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::Store;
use crate::{
    Digest, ImageError,
    digest::Hashing,
    error::Context,
    manifest::{MAX_MANIFEST, Manifest},
};

impl Store {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Whether the blob is here; if so, garbage collection will leave it alone for an hour, named or not.
    pub(crate) fn keep_blob(&self, digest: &Digest) -> bool {
        let now = fs::FileTimes::new().set_modified(std::time::SystemTime::now());
        fs::File::open(self.blob_path(digest)).is_ok_and(|file| {
            if let Err(error) = file.set_times(now) {
                tracing::debug!(%digest, %error, "blob not marked as wanted");
            }
            true
        })
    }

    pub(crate) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).at("read blob", &path)?;
        // Small documents only come this way, so the check costs nothing; it catches a damaged disk.
        let found = Digest::of(&bytes);
        if found == *digest {
            Ok(bytes)
        } else {
            Err(ImageError::corrupt(
                path.display().to_string(),
                format!("its content has digest {found}; remove it and pull again"),
            ))
        }
    }

    /// A manifest or index in the blobs, with its size.
    pub(crate) fn manifest(&self, digest: &Digest) -> Result<(Manifest, u64), ImageError> {
        let size = fs::metadata(self.blob_path(digest)).map_or(0, |m| m.len());
        if size > MAX_MANIFEST as u64 {
            return Err(ImageError::invalid(
                format!("manifest {digest}"),
                format!("{size} bytes are too many for a manifest"),
            ));
        }
        let bytes = self.read_blob(digest)?;
        let manifest = Manifest::parse(&bytes, None)
            .map_err(|e| ImageError::invalid(format!("manifest {digest}"), e))?;
        Ok((manifest, size))
    }

    /// Puts small content into the blobs.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        if !self.keep_blob(&digest) {
            let mut writer = BlobWriter::new(self)?;
            writer.write_all(bytes).at("write", &writer.path.clone())?;
            writer.commit(self, Some(&digest))?;
        }
        Ok(digest)
    }

    /// Copies a file into the blobs, checking it against `expected` if given.
    pub(crate) fn copy_blob(
        &self,
        from: &Path,
        expected: Option<&Digest>,
    ) -> Result<(Digest, u64), ImageError> {
        let mut file = fs::File::open(from).at("open", from)?;
        let mut writer = BlobWriter::new(self)?;
        copy(&mut file, &mut writer).at("copy", from)?;
        writer.commit(self, expected)
    }

    /// Gives a file that is complete, verified and synced its place. Harmless if another has done so before.
    pub(crate) fn adopt(&self, file: &Path, digest: &Digest) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        fs::rename(file, &path).at("place blob", &path)?;
        let folder = self.root.join("blobs/sha256");
        fs::File::open(&folder).and_then(|dir| dir.sync_all()).at("sync", &folder)
    }
}

/// A blob that is being written; nobody sees it before [`BlobWriter::commit`], and dropping it removes it.
pub(crate) struct BlobWriter {
    file: Option<Hashing<fs::File>>,
    path: PathBuf,
}

impl BlobWriter {
    pub(crate) fn new(store: &Store) -> Result<Self, ImageError> {
        let path = store.tmp();
        let file = fs::File::create_new(&path).at("create", &path)?;
        Ok(Self { file: Some(Hashing::new(file)), path })
    }

    pub(crate) fn commit(
        mut self,
        store: &Store,
        expected: Option<&Digest>,
    ) -> Result<(Digest, u64), ImageError> {
        let (file, digest, size) =
            self.file.take().ok_or_else(|| ImageError::Internal("blob committed twice".into()))?.finish();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(ImageError::corrupt(
                format!("blob {expected}"),
                format!("its content has digest {digest}"),
            ));
        }
        if store.keep_blob(&digest) {
            return Ok((digest, size));
        }
        file.sync_all().at("sync", &self.path)?;
        store.adopt(&self.path, &digest)?;
        Ok((digest, size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(0), |f| f.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // Gone already if it was committed.
        let _ = fs::remove_file(&self.path);
    }
}

/// `io::copy` with a buffer that suits hashing.
pub(crate) fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                to.write_all(&buffer[..n])?;
                total += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
