//! The fuzz targets of this crate, replayed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test shall fail it")]

mod harness;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::replay;

/// What changes put in.
const WORDS: [&[u8]; 16] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"0",
    b"5",
    b";",
    b"\r\n\r\n",
    b"chunked",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"{{",
];

#[test]
fn heads() {
    replay("heads", &WORDS, harness::heads);
}

#[test]
fn chunked() {
    replay("chunked", &WORDS, harness::chunked);
}

#[test]
fn templates() {
    replay("templates", &WORDS, harness::templates);
}
