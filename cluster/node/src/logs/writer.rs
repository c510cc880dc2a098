//! From a container's pipes to its log file.
//!
//! One task a container reads both pipes and writes at once; lines reach the file before the pod's status says that
//! the container has ended. A file that cannot be written (a full disk) loses lines, with a warning, rather than stop
//! the container: its pipe is read on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tracing::warn;

use super::attached::Attached;
use super::{Logs, MAX_LINE};
use crate::terminal::Terminal;

/// When a file is full.
const MAX_FILE: u64 = 10 << 20;
/// How many files a run keeps, the current one included.
const FILES: u32 = 5;

/// A piece of output for those attached.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) stderr: bool,
    pub(crate) bytes: bytes::Bytes,
}

/// Where a container's output comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Standard output and standard error.
    Pipes(OwnedFd, OwnedFd),
    /// The master of its terminal, which mixes the two.
    Terminal(OwnedFd),
}

type Reader = Pin<Box<dyn AsyncRead + Send>>;

impl Source {
    fn open(self) -> io::Result<(Reader, Reader)> {
        Ok(match self {
            Self::Pipes(stdout, stderr) => {
                (Box::pin(Receiver::from_owned_fd(stdout)?), Box::pin(Receiver::from_owned_fd(stderr)?))
            }
            Self::Terminal(master) => (Box::pin(Terminal::new(master)?), Box::pin(tokio::io::empty())),
        })
    }
}

/// Reads until all that writes has ended.
pub(crate) async fn capture(logs: Logs, path: PathBuf, source: Source, attached: Arc<Attached>) {
    let grown = logs.begin(&path);
    let mut sink = Sink { file: Rotating::open(&path), path: path.clone(), grown, warned: false };
    match source.open() {
        Ok((out, err)) => {
            let (mut out, mut err) = (Stream::new(out, "stdout"), Stream::new(err, "stderr"));
            while out.open || err.open {
                let chunk = tokio::select! {
                    result = out.read(), if out.open => Chunk { stderr: false, bytes: result },
                    result = err.read(), if err.open => Chunk { stderr: true, bytes: result },
                };
                let stream = if chunk.stderr { &mut err } else { &mut out };
                sink.write(&stream.lines.push(&chunk.bytes, stream.name, Timestamp::now()));
                if !chunk.bytes.is_empty() {
                    attached.send(&chunk).await;
                }
            }
            for stream in [&mut out, &mut err] {
                sink.write(&stream.lines.finish(stream.name, Timestamp::now()));
            }
        }
        Err(error) => warn!(%error, "cannot read a container's output"),
    }
    attached.close();
    logs.end(&path);
}

struct Stream {
    from: Reader,
    name: &'static str,
    lines: Lines,
    open: bool,
    buffer: Vec<u8>,
}

impl Stream {
    fn new(from: Reader, name: &'static str) -> Self {
        Self { from, name, lines: Lines::default(), open: true, buffer: vec![0; MAX_LINE] }
    }

    /// Empty at the end.
    async fn read(&mut self) -> bytes::Bytes {
        match self.from.read(&mut self.buffer).await {
            Ok(length) if length > 0 => bytes::Bytes::copy_from_slice(&self.buffer[..length]),
            _ => {
                self.open = false;
                bytes::Bytes::new()
            }
        }
    }
}

/// Cuts a stream into records.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The records that these bytes complete.
    pub(crate) fn push(&mut self, mut bytes: &[u8], stream: &str, now: Timestamp) -> Vec<u8> {
        let mut records = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.flush_long(&mut records, stream, now);
            record(&mut records, stream, 'F', &self.rest, now);
            self.rest.clear();
        }
        self.rest.extend_from_slice(bytes);
        self.flush_long(&mut records, stream, now);
        records
    }

    fn flush_long(&mut self, records: &mut Vec<u8>, stream: &str, now: Timestamp) {
        while self.rest.len() > MAX_LINE {
            record(records, stream, 'P', &self.rest[..MAX_LINE], now);
            self.rest.drain(..MAX_LINE);
        }
    }

    /// The last line, which has no end.
    pub(crate) fn finish(&mut self, stream: &str, now: Timestamp) -> Vec<u8> {
        let mut records = Vec::new();
        if !self.rest.is_empty() {
            record(&mut records, stream, 'P', &self.rest, now);
            self.rest.clear();
        }
        records
    }
}

fn record(out: &mut Vec<u8>, stream: &str, tag: char, text: &[u8], now: Timestamp) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{now:.9} {stream} {tag} ");
    out.extend_from_slice(text);
    out.push(b'\n');
}

struct Sink {
    file: io::Result<Rotating>,
    path: PathBuf,
    grown: watch::Sender<u64>,
    warned: bool,
}

impl Sink {
    fn write(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        let written = match &mut self.file {
            Ok(file) => file.write(records),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        match written {
            Ok(()) => self.grown.send_modify(|count| *count += 1),
            Err(error) if !self.warned => {
                self.warned = true;
                warn!(path = %self.path.display(), %error, "log lines are being lost");
            }
            Err(_) => {}
        }
    }
}

/// A file that starts anew when it is full and keeps a few old ones.
struct Rotating {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Rotating {
    fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size })
    }

    fn write(&mut self, records: &[u8]) -> io::Result<()> {
        let length = records.len() as u64;
        if self.size > 0 && self.size + length > MAX_FILE {
            for number in (1..FILES - 1).rev() {
                let _ = fs::rename(rotated(&self.path, number), rotated(&self.path, number + 1));
            }
            fs::rename(&self.path, rotated(&self.path, 1))?;
            *self = Self::open(&self.path)?;
        }
        self.file.write_all(records)?;
        self.size += length;
        Ok(())
    }
}

/// The name of the n-th oldest file of a log.
pub(crate) fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        "2026-01-02T03:04:05.000000006Z".parse().unwrap()
    }

    #[test]
    fn records_are_cri_lines() {
        let mut lines = Lines::default();
        assert!(lines.push(b"hel", "stdout", at()).is_empty());
        let records = String::from_utf8(lines.push(b"lo\n\nx", "stdout", at())).unwrap();
        assert_eq!(
            records,
            "2026-01-02T03:04:05.000000006Z stdout F hello\n2026-01-02T03:04:05.000000006Z stdout F \n"
        );
        let last = String::from_utf8(lines.finish("stdout", at())).unwrap();
        assert_eq!(last, "2026-01-02T03:04:05.000000006Z stdout P x\n");
    }

    #[test]
    fn long_lines_are_cut() {
        let mut lines = Lines::default();
        let records = lines.push(&vec![b'a'; 2 * MAX_LINE + 5], "stderr", at());
        let text = String::from_utf8(records).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| line.contains(" stderr P a")));
        let end = String::from_utf8(lines.push(b"\n", "stderr", at())).unwrap();
        assert!(end.ends_with("F aaaaa\n"), "{end}");
    }

    #[tokio::test]
    async fn nothing_is_lost_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c/0.log");
        let (out_reader, mut out) = io::pipe().unwrap();
        let (err_reader, err) = io::pipe().unwrap();
        let logs = Logs::new(folder.path().to_owned());
        let source = Source::Pipes(out_reader.into(), err_reader.into());
        let task = tokio::spawn(capture(logs, path.clone(), source, Arc::default()));
        let writer = std::thread::spawn(move || {
            for number in 0..10_000 {
                writeln!(out, "line {number}").unwrap();
            }
        });
        drop(err);
        task.await.unwrap();
        writer.join().unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 10_000);
        assert!(text.ends_with("line 9999\n"));
    }

    #[test]
    fn full_files_are_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut file = Rotating::open(&path).unwrap();
        let block = vec![b'x'; 6 << 20];
        for _ in 0..8 {
            file.write(&block).unwrap();
        }
        assert!(rotated(&path, 4).exists());
        assert!(!rotated(&path, 5).exists());
        assert_eq!(fs::metadata(&path).unwrap().len(), 6 << 20);
    }
}
