//! The app that the end-to-end tests deploy: a web server whose behaviour a request or the environment decides.
//!
//! Paths: `/` says `NAME`; `/?sleep=MS` answers later; `/echo` gives the request's head back; `/env` the environment;
//! `/exit?code=N` ends the process; `/fill?mb=N` takes memory and keeps it. A request for an upgrade gets it, and then its bytes back. Environment: `NAME`; `START_DELAY_MS` before listening; `FAIL_AT_START=code`.
//!
//! `testapp get ADDRESS:PORT`, run by `kubectl exec`, is a client instead.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Mutex;
use std::time::Duration;
use std::{env, process, thread};

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn _exit(code: i32) -> !;
}

const SIGTERM: i32 = 15;

/// Requests have ended by the time a pod's app is told to: it may go at once. The first process of a container must say so itself,
/// or the kernel lets it ignore the signal, and its pod lingers until the grace period is over.
extern "C" fn end(_: i32) {
    // SAFETY: `_exit` may be called from a signal's handler.
    unsafe { _exit(0) }
}

fn main() -> std::io::Result<()> {
    // SAFETY: the handler only calls `_exit`.
    unsafe { signal(SIGTERM, end) };
    let arguments: Vec<String> = env::args().collect();
    if let [_, command, address] = arguments.as_slice()
        && command == "get"
    {
        return get(address);
    }
    if let Some(code) = number("FAIL_AT_START") {
        eprintln!("told to fail at start");
        process::exit(code as i32);
    }
    thread::sleep(Duration::from_millis(number("START_DELAY_MS").unwrap_or(0)));
    let port = number("PORT").unwrap_or(8080) as u16;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on {port}");
    for stream in listener.incoming().flatten() {
        if let Err(e) = thread::Builder::new().stack_size(128 * 1024).spawn(move || serve(stream)) {
            eprintln!("connection dropped: {e}");
        }
    }
    Ok(())
}

/// A request as another pod would send it; its answer is printed, and that there is none is an error.
fn get(address: &str) -> std::io::Result<()> {
    let mut last = std::io::Error::other("no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(3)) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(3)))?;
                write!(stream, "GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
                let mut reader = BufReader::new(stream);
                let (mut line, mut length) = (String::new(), 0);
                reader.read_line(&mut line)?;
                print!("{line}");
                while line.trim_end() != "" {
                    line.clear();
                    reader.read_line(&mut line)?;
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap_or(0);
                    }
                }
                let mut body = String::new();
                reader.take(length).read_to_string(&mut body)?;
                print!("{body}");
                return Ok(());
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut head = String::new();
        let mut length = 0u64;
        loop {
            let start = head.len();
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
            let line = head[start..].trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = Vec::new();
        (&mut reader).take(length).read_to_end(&mut body)?;
        if head.to_ascii_lowercase().contains("\nupgrade: websocket") {
            write!(writer, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")?;
            return std::io::copy(&mut reader, &mut writer).map(drop);
        }
        let target = head.split_whitespace().nth(1).unwrap_or("/").to_string();
        let (status, text) = answer(&target, &head, &body);
        let revision = env::var("K_REVISION").unwrap_or_default();
        write!(
            writer,
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\nx-revision: {revision}\r\ncontent-length: {}\r\n\r\n",
            text.len()
        )?;
        writer.write_all(text.as_bytes())?;
    }
}

fn answer(target: &str, head: &str, body: &[u8]) -> (&'static str, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let argument = |name: &str| -> Option<u64> {
        query.split('&').find_map(|p| p.split_once('=').filter(|(k, _)| *k == name)).and_then(|(_, v)| v.parse().ok())
    };
    if let Some(ms) = argument("sleep") {
        thread::sleep(Duration::from_millis(ms));
    }
    match path {
        "/" => ("200 OK", format!("{}\n", env::var("NAME").unwrap_or_else(|_| "app".into()))),
        "/echo" => ("200 OK", format!("{head}{}", String::from_utf8_lossy(body))),
        "/env" => {
            let mut all: Vec<String> = env::vars().map(|(k, v)| format!("{k}={v}")).collect();
            all.sort();
            ("200 OK", all.join("\n"))
        }
        "/exit" => process::exit(argument("code").unwrap_or(1) as i32),
        "/fill" => {
            let block = vec![1u8; (argument("mb").unwrap_or(1) as usize) << 20];
            KEPT.lock().expect("no holder of the lock panics").push(block);
            ("200 OK", "kept\n".into())
        }
        _ => ("404 Not Found", "no such path\n".into()),
    }
}
