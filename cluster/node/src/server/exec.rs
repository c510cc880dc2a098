//! `kubectl exec` and `kubectl attach`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::socket::{Socket, upgrade};
use super::{Refusal, find};
use crate::context::Context;
use crate::pod::container::Live;
use crate::runtime::{Exit, Streams, seqpacket};
use crate::spec;

const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What the client wants, from the query.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn parse(query: &str) -> Self {
        let mut wanted = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let on = matches!(value.as_ref(), "true" | "1");
            match name.as_ref() {
                "command" => wanted.command.push(value.into_owned()),
                "stdin" | "input" => wanted.stdin |= on,
                "stdout" | "output" => wanted.stdout |= on,
                "stderr" | "error" => wanted.stderr |= on,
                "tty" => wanted.tty |= on,
                _ => {}
            }
        }
        wanted
    }
}

fn live(context: &Context, namespace: &str, pod: &str, container: &str) -> Result<Arc<Live>, Refusal> {
    let view = find(context, namespace, pod)?;
    let found = view.live.lock().get(container).cloned();
    found.ok_or_else(|| {
        (StatusCode::NOT_FOUND, format!("container {container} of pod {pod} is not running\n"))
    })
}

pub(crate) async fn exec(
    State(context): State<Arc<Context>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let live = live(&context, &namespace, &pod, &container)?;
    let wanted = Wanted::parse(&query.unwrap_or_default());
    if wanted.command.is_empty() {
        return Err((
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 command for the container\n".to_owned(),
        ));
    }
    upgrade(request, &PROTOCOLS, move |socket, _| async move {
        let (session, socket) = Session::new(socket);
        let result = run(&context, &live, wanted, session).await;
        finish(socket, result).await;
    })
}

pub(crate) async fn attach(
    State(context): State<Arc<Context>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let live = live(&context, &namespace, &pod, &container)?;
    let wanted = Wanted::parse(&query.unwrap_or_default());
    upgrade(request, &PROTOCOLS, move |socket, _| async move {
        let (session, socket) = Session::new(socket);
        follow(&live, &wanted, session).await;
        finish(socket, Ok(Exit { code: 0, signal: None, oom: false })).await;
    })
}

/// The client's side: what it types and where answers go.
struct Session {
    input: mpsc::Receiver<Input>,
    output: mpsc::Sender<Message>,
}

enum Input {
    Bytes(Bytes),
    End,
    Resize(u16, u16),
}

/// The tasks that move messages; ends when all output is sent.
struct Moving {
    output: mpsc::Sender<Message>,
    writer: tokio::task::JoinHandle<()>,
    reader: tokio::task::JoinHandle<()>,
}

impl Session {
    fn new(socket: Socket) -> (Self, Moving) {
        let (mut sink, mut stream) = socket.split();
        let (output, mut outbox) = mpsc::channel::<Message>(16);
        let (typed, input) = mpsc::channel(16);
        let writer = tokio::spawn(async move {
            while let Some(message) = outbox.recv().await {
                let last = matches!(message, Message::Close(_));
                if sink.send(message).await.is_err() || last {
                    break;
                }
            }
            let _ = sink.close().await;
        });
        let pongs = output.clone();
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                let event = match message {
                    Message::Binary(bytes) => parse(&bytes),
                    Message::Text(text) => parse(&Bytes::copy_from_slice(text.as_bytes())),
                    Message::Ping(payload) => {
                        let _ = pongs.send(Message::Pong(payload)).await;
                        None
                    }
                    Message::Close(_) => break,
                    _ => None,
                };
                if let Some(event) = event
                    && typed.send(event).await.is_err()
                {
                    break;
                }
            }
        });
        (Self { input, output: output.clone() }, Moving { output, writer, reader })
    }
}

fn parse(message: &Bytes) -> Option<Input> {
    let channel = *message.first()?;
    let rest = message.slice(1..);
    match channel {
        STDIN => Some(Input::Bytes(rest)),
        RESIZE => {
            let size: Value = serde_json::from_slice(&rest).ok()?;
            let side = |name: &str| size[name].as_u64().and_then(|value| u16::try_from(value).ok());
            Some(Input::Resize(side("Width")?, side("Height")?))
        }
        CLOSE if rest.first() == Some(&STDIN) => Some(Input::End),
        _ => None,
    }
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

/// The last message of a session, as client-go reads it.
fn verdict(result: &Result<Exit, String>) -> Value {
    match result {
        Ok(Exit { code: 0, .. }) => json!({ "metadata": {}, "status": "Success" }),
        Ok(Exit { code, .. }) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(message) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("error executing command in container: {message}"),
        }),
    }
}

async fn finish(moving: Moving, result: Result<Exit, String>) {
    let text = verdict(&result).to_string();
    let _ = moving.output.send(framed(ERROR, text.as_bytes())).await;
    // Without the code 1000 client-go takes the end for a failure.
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = moving.output.send(Message::Close(Some(normal))).await;
    drop(moving.output);
    let _ = tokio::time::timeout(Duration::from_secs(5), moving.writer).await;
    moving.reader.abort();
}

type Reader = Pin<Box<dyn AsyncRead + Send>>;
type Writer = Pin<Box<dyn AsyncWrite + Send>>;

async fn run(context: &Context, live: &Live, wanted: Wanted, session: Session) -> Result<Exit, String> {
    let text = |error: io::Error| error.to_string();
    let id = crate::new_id();
    let process =
        spec::process(&spec::Process { args: wanted.command, terminal: wanted.tty, ..live.process.clone() });
    let exited = context.exits.expect(&id);
    let mut terminal = None;
    let (mut outputs, mut input): (Vec<(u8, Reader)>, Option<Writer>) = (Vec::new(), None);
    let console = if wanted.tty { Some(Console::listen(&context.data_dir, &id)?) } else { None };
    let streams = match &console {
        Some(console) => Streams::Console(console.path.clone()),
        None => {
            let (out_reader, stdout) = io::pipe().map_err(text)?;
            let (err_reader, stderr) = io::pipe().map_err(text)?;
            let mut reader_of = |channel: u8, fd: OwnedFd| -> io::Result<()> {
                outputs.push((channel, Box::pin(pipe::Receiver::from_owned_fd(fd)?)));
                Ok(())
            };
            reader_of(STDOUT, out_reader.into()).map_err(text)?;
            reader_of(STDERR, err_reader.into()).map_err(text)?;
            let stdin = if wanted.stdin {
                let (reader, writer) = io::pipe().map_err(text)?;
                input = Some(Box::pin(pipe::Sender::from_owned_fd(writer.into()).map_err(text)?));
                Some(reader.into())
            } else {
                None
            };
            Streams::Pipes { stdout: stdout.into(), stderr: stderr.into(), stdin }
        }
    };
    if let Err(error) = context.runtime.exec(&live.id, &id, &live.bundle, &process, streams).await {
        context.exits.forget(&id);
        return Err(error.to_string());
    }
    if let Some(console) = console {
        let master = console.accept().await?;
        let file = std::fs::File::from(master);
        let read = tokio::fs::File::from_std(file.try_clone().map_err(text)?);
        let write = tokio::fs::File::from_std(file.try_clone().map_err(text)?);
        outputs.push((STDOUT, Box::pin(read)));
        if wanted.stdin {
            input = Some(Box::pin(write));
        }
        terminal = Some(file);
    }
    let output = session.output.clone();
    let pumps: Vec<_> =
        outputs.into_iter().map(|(channel, from)| pump(channel, from, output.clone())).collect();
    let exit = {
        let mut typing = std::pin::pin!(typed(session.input, input, terminal));
        let mut exited = exited;
        tokio::select! {
            exit = &mut exited => exit,
            () = &mut typing => {
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
        }
    };
    // What it wrote last is still in the pipes; a child that keeps them open may not hold the end up.
    let _ = tokio::time::timeout(Duration::from_millis(300), futures::future::join_all(pumps)).await;
    exit.map_err(|_: oneshot::error::RecvError| "the container helper has ended".to_owned())
}

async fn pump(channel: u8, mut from: Reader, output: mpsc::Sender<Message>) {
    let mut buffer = vec![0; 16 * 1024];
    // A terminal whose last process has ended reads as EIO.
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 || output.send(framed(channel, &buffer[..length])).await.is_err() {
            return;
        }
    }
}

/// Passes input on until the client is gone.
async fn typed(mut input: mpsc::Receiver<Input>, mut to: Option<Writer>, terminal: Option<std::fs::File>) {
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
                if let Some(terminal) = &terminal {
                    let size = rustix::termios::Winsize {
                        ws_row: rows,
                        ws_col: columns,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    let _ = rustix::termios::tcsetwinsize(terminal, size);
                }
            }
        }
    }
}

async fn follow(live: &Live, wanted: &Wanted, session: Session) {
    let mut chunks = live.output.subscribe();
    let stdin =
        if wanted.stdin { live.stdin.lock().as_ref().and_then(|fd| fd.try_clone().ok()) } else { None };
    let once = live.spec.stdin_once == Some(true);
    if once && wanted.stdin {
        live.stdin.lock().take();
    }
    let input: Option<Writer> = stdin
        .and_then(|fd| pipe::Sender::from_owned_fd(fd).ok())
        .map(|sender| -> Writer { Box::pin(sender) });
    let output = session.output.clone();
    let watching = async {
        loop {
            let chunk = tokio::select! {
                biased;
                chunk = chunks.recv() => chunk,
                () = live.ended.cancelled() => return,
            };
            match chunk {
                Ok(chunk) if chunk.stderr && wanted.stderr => {
                    let _ = output.send(framed(STDERR, &chunk.bytes)).await;
                }
                Ok(chunk) if !chunk.stderr && wanted.stdout => {
                    let _ = output.send(framed(STDOUT, &chunk.bytes)).await;
                }
                // A client that is too slow misses output here; the log has all of it.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = typed(session.input, input, None) => {}
    }
}

/// The socket on which the runtime hands over a terminal's master.
struct Console {
    path: PathBuf,
    listener: tokio::net::UnixListener,
}

impl Console {
    fn listen(data_dir: &std::path::Path, id: &str) -> Result<Self, String> {
        let folder = data_dir.join("run").join("tty");
        let path = folder.join(&id[..12]);
        let fail = |error: io::Error| format!("cannot listen at {} for a terminal: {error}", path.display());
        std::fs::create_dir_all(&folder).map_err(fail)?;
        let listener = tokio::net::UnixListener::bind(&path).map_err(fail)?;
        Ok(Self { path, listener })
    }

    async fn accept(self) -> Result<OwnedFd, String> {
        let accepting = async {
            let (stream, _) = self.listener.accept().await?;
            loop {
                stream.readable().await?;
                let mut name = [0; 256];
                let received = stream.try_io(tokio::io::Interest::READABLE, || {
                    seqpacket::receive(stream.as_fd(), &mut name).map_err(io::Error::from)
                });
                match received {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                    Ok((_, mut fds)) => return fds.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(5), accepting).await {
            Ok(Ok(fd)) => Ok(fd),
            Ok(Err(error)) => Err(format!("no terminal: {error}")),
            Err(_) => Err("no terminal within 5 s".to_owned()),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_what_is_wanted() {
        let wanted = Wanted::parse("command=sh&command=-c&command=a%20b&stdin=true&stdout=1&stderr=false");
        assert_eq!(wanted.command, ["sh", "-c", "a b"]);
        assert_eq!((wanted.stdin, wanted.stdout, wanted.stderr, wanted.tty), (true, true, false, false));
    }

    #[test]
    fn channels() {
        assert!(matches!(parse(&Bytes::from_static(b"\x00ab")), Some(Input::Bytes(bytes)) if bytes == "ab"));
        assert!(matches!(parse(&Bytes::from_static(b"\xff\x00")), Some(Input::End)));
        let resize = Bytes::from_static(b"\x04{\"Width\":80,\"Height\":24}");
        assert!(matches!(parse(&resize), Some(Input::Resize(80, 24))));
        assert!(parse(&Bytes::new()).is_none());
    }

    #[test]
    fn verdicts_are_what_client_go_reads() {
        let failed = verdict(&Ok(Exit { code: 3, signal: None, oom: false }));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
        assert_eq!(verdict(&Ok(Exit { code: 0, signal: None, oom: false }))["status"], "Success");
        assert_eq!(verdict(&Err("x".to_owned()))["status"], "Failure");
    }
}
