//! A command in a container, and watching the container's own process, with a client at the other end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::super::session::{Input, STDERR, STDOUT, Session};
use super::Wanted;
use crate::context::Context;
use crate::pod::container::Live;
use crate::runtime::{Exit, Streams};
use crate::spec;
use crate::terminal::Terminal;

type Reader = Pin<Box<dyn AsyncRead + Send>>;
type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// How long one waits for more when a process has ended and another holds its output open.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// Our ends of a command's streams.
#[derive(Default)]
struct Ends {
    outputs: Vec<(u8, Reader)>,
    input: Option<Writer>,
    terminal: Option<OwnedFd>,
}

impl Ends {
    fn pipes(stdin: bool) -> io::Result<(Streams, Self)> {
        let (out_reader, stdout) = io::pipe()?;
        let (err_reader, stderr) = io::pipe()?;
        let outputs: Vec<(u8, Reader)> = vec![
            (STDOUT, Box::pin(pipe::Receiver::from_owned_fd(out_reader.into())?)),
            (STDERR, Box::pin(pipe::Receiver::from_owned_fd(err_reader.into())?)),
        ];
        let mut ends = Self { outputs, ..Self::default() };
        let stdin = if stdin {
            let (reader, writer) = io::pipe()?;
            ends.input = Some(Box::pin(pipe::Sender::from_owned_fd(writer.into())?));
            Some(reader.into())
        } else {
            None
        };
        Ok((Streams::Pipes { stdout: stdout.into(), stderr: stderr.into(), stdin }, ends))
    }

    fn terminal(master: OwnedFd, stdin: bool) -> io::Result<Self> {
        let output: Reader = Box::pin(Terminal::another(&master)?);
        let input: Option<Writer> = if stdin { Some(Box::pin(Terminal::another(&master)?)) } else { None };
        Ok(Self { outputs: vec![(STDOUT, output)], input, terminal: Some(master) })
    }
}

/// Runs a command to its end, or until the client is gone.
pub(super) async fn run(
    context: &Context,
    live: &Live,
    wanted: Wanted,
    session: Session,
) -> Result<Exit, String> {
    let text = |error: io::Error| error.to_string();
    let id = crate::new_id();
    let process = spec::Process { args: wanted.command, terminal: wanted.tty, ..live.process.clone() };
    let exited = context.exits.expect(&id);
    let (streams, mut ends) = match wanted.tty {
        true => (Streams::Terminal, Ends::default()),
        false => Ends::pipes(wanted.stdin).map_err(text)?,
    };
    let started = match context.runtime.exec(&live.id, &id, &process, streams).await {
        Ok(started) => started,
        Err(error) => {
            context.exits.forget(&id);
            return Err(error.to_string());
        }
    };
    if let Some(master) = started.terminal {
        ends = Ends::terminal(master, wanted.stdin).map_err(text)?;
    }
    let Session { input, output } = session;
    let ended = CancellationToken::new();
    let pumps: Vec<_> = ends
        .outputs
        .into_iter()
        .map(|(channel, from)| tokio::spawn(pump(channel, from, output.clone(), ended.clone())))
        .collect();
    drop(output);
    let mut exited = exited;
    let exit = tokio::select! {
        exit = &mut exited => exit,
        () = typed(input, ends.input, ends.terminal.as_ref()) => {
            // The client has gone: a shell without anybody at it must not stay.
            let _ = context.runtime.signal(&id, if wanted.tty { 1 } else { 9 }).await;
            match tokio::time::timeout(Duration::from_secs(2), &mut exited).await {
                Ok(exit) => exit,
                Err(_) => {
                    let _ = context.runtime.signal(&id, 9).await;
                    exited.await
                }
            }
        }
    };
    ended.cancel();
    futures::future::join_all(pumps).await;
    exit.map_err(|_: oneshot::error::RecvError| "the container helper has ended".to_owned())
}

/// Sends what a command says until all that can write has ended, or the command has and what it wrote is sent: a child that it left behind
/// may hold its pipe for ever. A client that takes its time gets all of it.
async fn pump(channel: u8, mut from: Reader, output: mpsc::Sender<(u8, Bytes)>, ended: CancellationToken) {
    let mut buffer = vec![0; 32 * 1024];
    // More than a pipe holds.
    let mut rest: usize = 2 << 20;
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => Some(read),
            () = ended.cancelled() => tokio::time::timeout(LAST_WORDS, from.read(&mut buffer)).await.ok(),
        };
        let Some(Ok(length @ 1..)) = read else { return };
        let piece = Bytes::copy_from_slice(&buffer[..length]);
        if output.send((channel, piece)).await.is_err() {
            return;
        }
        if ended.is_cancelled() {
            rest = rest.saturating_sub(length);
            if rest == 0 {
                return;
            }
        }
    }
}

/// Passes input on until the client is gone.
async fn typed(mut input: mpsc::Receiver<Input>, mut to: Option<Writer>, terminal: Option<&OwnedFd>) {
    while let Some(event) = input.recv().await {
        match event {
            Input::Bytes(bytes) => {
                if let Some(writer) = &mut to
                    && (writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err())
                {
                    to = None;
                }
            }
            Input::End => to = None,
            Input::Resize(columns, rows) => {
                if let Some(terminal) = terminal {
                    Terminal::resize(terminal.as_fd(), columns, rows);
                }
            }
        }
    }
}

/// Shows a client the output of a container's own process from now on, and passes on what it types.
pub(super) async fn follow(live: &Live, wanted: &Wanted, session: Session) -> Exit {
    let mut chunks = live.output.join();
    let input = match wanted.stdin {
        true => input_of(live),
        false => None,
    };
    let Session { input: typing, output } = session;
    let watching = async {
        loop {
            let chunk = tokio::select! {
                biased;
                chunk = chunks.recv() => chunk,
                () = live.ended.cancelled() => {
                    tokio::time::timeout(LAST_WORDS, chunks.recv()).await.ok().flatten()
                }
            };
            let Some(chunk) = chunk else { return };
            let (channel, asked) =
                if chunk.stderr { (STDERR, wanted.stderr) } else { (STDOUT, wanted.stdout) };
            if asked && output.send((channel, chunk.bytes)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = typed(typing, input, live.terminal.as_ref()) => {}
    }
    Exit { code: 0, signal: None, oom: false }
}

/// Where typed text goes. With `stdinOnce`, the container's standard input ends with the first client's.
fn input_of(live: &Live) -> Option<Writer> {
    if let Some(master) = &live.terminal {
        return Terminal::another(master).ok().map(|terminal| -> Writer { Box::pin(terminal) });
    }
    let mut stdin = live.stdin.lock();
    let fd = match live.spec.stdin_once {
        Some(true) => stdin.take(),
        _ => stdin.as_ref().and_then(|fd| fd.try_clone().ok()),
    };
    fd.and_then(|fd| pipe::Sender::from_owned_fd(fd).ok()).map(|sender| -> Writer { Box::pin(sender) })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_slow_client_gets_all_and_a_stray_child_holds_nobody_up() {
        let (reader, mut writer) = io::pipe().unwrap();
        let from: Reader = Box::pin(pipe::Receiver::from_owned_fd(reader.into()).unwrap());
        let (output, mut client) = mpsc::channel(1);
        let ended = CancellationToken::new();
        let pumping = tokio::spawn(pump(STDOUT, from, output, ended.clone()));
        writer.write_all(&[b'x'; 60_000]).unwrap();
        // The command has ended; `writer` stays open as a child's would.
        ended.cancel();
        let mut heard = 0;
        while let Some((STDOUT, bytes)) = client.recv().await {
            heard += bytes.len();
            tokio::time::sleep(2 * LAST_WORDS).await;
        }
        assert_eq!(heard, 60_000);
        pumping.await.unwrap();
    }
}
