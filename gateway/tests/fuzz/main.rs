//! The fuzz targets of this crate, replayed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test shall fail it")]

mod harness;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn proxy() {
    let words: [&[u8]; 15] = [
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\x21\x11\0\x0c",
        b"\x21\x21\0\x24",
        b"\x20\0\0\0",
        b"\r\n",
        b"\0",
        b" ",
        b"0",
        b"65535",
        b"PROXY ",
        b"TCP4 ",
        b"TCP6 ",
        b"UNKNOWN",
        b"192.0.2.1 ",
        b"::ffff:192.0.2.1 ",
    ];
    replay("proxy", &words, harness::proxy);
}

#[test]
fn hosts() {
    let words: [&[u8]; 14] = [
        b"\n",
        b" ",
        b".",
        b":",
        b"*.",
        b"*",
        b"]",
        b"\nI ",
        b"\nE ",
        b".svc.cluster.local",
        b"a.example",
        b"A.EXAMPLE",
        b":80",
        b"/a",
    ];
    replay("hosts", &words, harness::hosts);
}
