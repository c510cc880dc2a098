//! Reading a log back: the options of `kubectl logs`.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::watch;

use super::writer::rotated;

/// What to show (`PodLogOptions`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) tail: Option<usize>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<usize>,
}

/// A record of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    time: &'a str,
    whole: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Record<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let whole = parts.next()? == b"F";
    Some(Record { time, whole, text: parts.next().unwrap_or_default() })
}

/// Turns records into what a user sees. Remembers whether the last record left its line open.
#[derive(Debug, Default)]
struct Renderer {
    open: bool,
}

impl Renderer {
    fn render(&mut self, line: &[u8], options: &Options) -> Option<Vec<u8>> {
        let record = parse(line)?;
        if let Some(since) = options.since
            && record.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return None;
        }
        let mut out = Vec::with_capacity(record.text.len() + 36);
        if options.timestamps && !self.open {
            out.extend_from_slice(record.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(record.text);
        if record.whole {
            out.push(b'\n');
        }
        self.open = !record.whole;
        Some(out)
    }
}

/// The log as a stream of bytes; with `follow` until `live` says that it is no longer written.
pub(crate) fn read(
    path: PathBuf,
    options: Options,
    live: Option<watch::Receiver<u64>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    async_stream::try_stream! {
        let mut left = options.limit_bytes.unwrap_or(usize::MAX);
        let mut renderer = Renderer::default();
        let mut live = live.filter(|_| options.follow);
        let mut lines = Reader::open(&path, options.tail).await?;
        loop {
            while let Some(line) = lines.next().await? {
                let Some(mut out) = renderer.render(&line, &options) else { continue };
                out.truncate(left);
                left -= out.len();
                yield Bytes::from(out);
                if left == 0 {
                    return;
                }
            }
            let Some(growing) = &mut live else { break };
            if growing.changed().await.is_err() {
                // Ended: what was written last is read in one more round.
                live = None;
            }
        }
    }
}

/// Lines of a log over its rotated files, oldest first, then as the current file grows and is rotated.
struct Reader {
    path: PathBuf,
    old: Vec<PathBuf>,
    current: Option<BufReader<tokio::fs::File>>,
    inode: u64,
    partial: Vec<u8>,
    skip: usize,
}

impl Reader {
    async fn open(path: &Path, tail: Option<usize>) -> io::Result<Self> {
        let mut old: Vec<PathBuf> =
            (1..16).rev().map(|number| rotated(path, number)).filter(|path| path.exists()).collect();
        let mut skip = 0;
        if let Some(tail) = tail {
            let all: Vec<PathBuf> = old.iter().cloned().chain([path.to_owned()]).collect();
            let total =
                tokio::task::spawn_blocking(move || all.iter().map(|path| whole_lines(path)).sum::<usize>())
                    .await
                    .unwrap_or(0);
            skip = total.saturating_sub(tail);
        }
        old.reverse();
        Ok(Self { path: path.to_owned(), old, current: None, inode: 0, partial: Vec::new(), skip })
    }

    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(line) = self.next_line().await? else { return Ok(None) };
            if self.skip == 0 {
                return Ok(Some(line));
            }
            if parse(&line).is_none_or(|record| record.whole) {
                self.skip -= 1;
            }
        }
    }

    async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.current.is_none() {
                let path = self.old.pop().unwrap_or_else(|| self.path.clone());
                match tokio::fs::File::open(&path).await {
                    Ok(file) => {
                        self.inode = inode(&file.metadata().await?);
                        self.current = Some(BufReader::new(file));
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            let Some(file) = &mut self.current else { return Ok(None) };
            let read = file.read_until(b'\n', &mut self.partial).await?;
            if self.partial.ends_with(b"\n") {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            if read > 0 {
                continue;
            }
            // The end of this file. Is there a newer one?
            let newest =
                tokio::fs::metadata(&self.path).await.map(|metadata| inode(&metadata)).unwrap_or(self.inode);
            if newest == self.inode {
                let position = file.stream_position().await?;
                file.seek(io::SeekFrom::Start(position)).await?;
                return Ok(None);
            }
            self.current = None;
        }
    }
}

fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

fn whole_lines(path: &Path) -> usize {
    let Ok(bytes) = std::fs::read(path) else { return 0 };
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let whole = lines.iter().filter(|line| parse(line).is_some_and(|record| record.whole)).count();
    // A last line without an end counts as a line too.
    whole + usize::from(lines.last().and_then(|line| parse(line)).is_some_and(|record| !record.whole))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::StreamExt;

    use super::*;

    fn log(lines: &[(&str, char, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut file = std::fs::File::create(&path).unwrap();
        for (second, tag, text) in lines {
            writeln!(file, "2026-01-02T03:04:{second}.000000000Z stdout {tag} {text}").unwrap();
        }
        (folder, path)
    }

    async fn text(path: &Path, options: Options) -> String {
        let parts: Vec<_> = read(path.to_owned(), options, None).collect().await;
        parts.into_iter().map(|part| String::from_utf8(part.unwrap().to_vec()).unwrap()).collect()
    }

    #[tokio::test]
    async fn options() {
        let (_folder, path) =
            log(&[("01", 'F', "one"), ("02", 'P', "two-"), ("02", 'F', "b"), ("03", 'F', "three")]);
        assert_eq!(text(&path, Options::default()).await, "one\ntwo-b\nthree\n");
        assert_eq!(text(&path, Options { tail: Some(2), ..Options::default() }).await, "two-b\nthree\n");
        assert_eq!(text(&path, Options { tail: Some(0), ..Options::default() }).await, "");
        assert_eq!(text(&path, Options { limit_bytes: Some(5), ..Options::default() }).await, "one\nt");
        let since = Some("2026-01-02T03:04:03Z".parse().unwrap());
        assert_eq!(
            text(&path, Options { since, timestamps: true, ..Options::default() }).await,
            "2026-01-02T03:04:03.000000000Z three\n"
        );
    }

    #[tokio::test]
    async fn following_sees_growth_rotation_and_the_end() {
        let (_folder, path) = log(&[("01", 'F', "one")]);
        let (sender, receiver) = watch::channel(0);
        let options = Options { follow: true, ..Options::default() };
        let mut stream = Box::pin(read(path.clone(), options, Some(receiver)));
        assert_eq!(stream.next().await.unwrap().unwrap(), "one\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writeln!(file, "2026-01-02T03:04:02.000000000Z stdout F two").unwrap();
        sender.send(1).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "two\n");
        std::fs::rename(&path, rotated(&path, 1)).unwrap();
        std::fs::write(&path, "2026-01-02T03:04:03.000000000Z stdout F three\n").unwrap();
        sender.send(2).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "three\n");
        drop(sender);
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn rotated_files_come_first() {
        let (_folder, path) = log(&[("03", 'F', "new")]);
        std::fs::write(rotated(&path, 1), "2026-01-02T03:04:02.000000000Z stdout F old\n").unwrap();
        std::fs::write(rotated(&path, 2), "2026-01-02T03:04:01.000000000Z stdout F oldest\n").unwrap();
        assert_eq!(text(&path, Options::default()).await, "oldest\nold\nnew\n");
        assert_eq!(text(&path, Options { tail: Some(2), ..Options::default() }).await, "old\nnew\n");
    }
}
