//! The fuzz targets of `fuzz/` without a fuzzer: the corpus is replayed, and each of it changed at random, so that a fault that was found once stays away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test shall fail it")]

mod harness;

use std::path::Path;

use ebb_http::balance::Random;

/// Changed inputs made of each kept one, always the same; with `EBB_FUZZ=N` it is N of them, new ones each time.
const CHANGES: usize = 300;
/// What changes put in: bytes that mean something.
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

fn replay(name: &str, target: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "the corpus in {} is gone", folder.display());
    let asked = std::env::var("EBB_FUZZ").ok().map(|n| n.parse().expect("EBB_FUZZ is a number"));
    let mut random = if asked.is_some() { Random::seeded() } else { Random::new(5) };
    for file in files {
        let input = std::fs::read(&file).unwrap();
        let tried = |input: &[u8]| {
            let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(input)));
            assert!(held.is_ok(), "{}: {:?}", file.display(), String::from_utf8_lossy(input));
        };
        tried(&input);
        for _ in 0..asked.unwrap_or(CHANGES) {
            let mut changed = input.clone();
            for _ in 0..1 + random.next_u64() % 3 {
                change(&mut changed, &mut random);
            }
            tried(&changed);
        }
    }
}

fn change(input: &mut Vec<u8>, random: &mut Random) {
    let at = random.next_u64() as usize % (input.len() + 1);
    match random.next_u64() % 4 {
        0 if at < input.len() => input[at] = random.next_u64() as u8,
        1 if at < input.len() => drop(input.remove(at)),
        2 => input.truncate(at),
        _ => {
            let word = WORDS[random.next_u64() as usize % WORDS.len()];
            input.splice(at..at, word.iter().copied());
        }
    }
}

#[test]
fn heads() {
    replay("heads", harness::heads);
}

#[test]
fn chunked() {
    replay("chunked", harness::chunked);
}

#[test]
fn templates() {
    replay("templates", harness::templates);
}
