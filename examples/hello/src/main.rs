//! A web server of the smallest kind: it greets `$TARGET` on `$PORT`. Only the standard library, one thread for each connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::{env, thread};

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
    let port: u16 = env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(8080);
    let target = env::var("TARGET").unwrap_or_else(|_| "World".into());
    let greeting: &'static str = Box::leak(format!("Hello {target}!\n").into_boxed_str());
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("greeting {target} on port {port}");
    for stream in listener.incoming().flatten() {
        let worker = thread::Builder::new().stack_size(64 * 1024).spawn(move || serve(stream, greeting));
        if let Err(e) = worker {
            eprintln!("connection dropped: {e}");
        }
    }
    Ok(())
}

/// Answers one request after the other until the client closes the connection.
fn serve(stream: TcpStream, greeting: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(2048, stream.try_clone()?);
    let mut writer = stream;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{greeting}",
        greeting.len()
    );
    let mut line = String::new();
    loop {
        let mut body = 0u64;
        // The request line, then headers up to the empty line.
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let header = line.trim_end();
            if header.is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                body = value.trim().parse().unwrap_or(0);
            }
        }
        std::io::copy(&mut std::io::Read::take(&mut reader, body), &mut std::io::sink())?;
        writer.write_all(answer.as_bytes())?;
    }
}
