//! The fuzz targets without a fuzzer, as tests of the crates that they are of: the corpus is replayed, and each of it changed at random, so that a fault that was
//! found once stays away.

use std::path::Path;

use ebb_http::balance::Random;

/// Changed inputs made of each kept one, always the same; with `EBB_FUZZ=N` it is N of them, new ones each time.
const CHANGES: usize = 300;

/// Holds a target against its corpus. `words` are what changes put in: bytes that mean something.
pub(crate) fn replay(name: &str, words: &[&[u8]], target: impl Fn(&[u8])) {
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
                change(&mut changed, words, &mut random);
            }
            tried(&changed);
        }
    }
}

fn change(input: &mut Vec<u8>, words: &[&[u8]], random: &mut Random) {
    let at = random.next_u64() as usize % (input.len() + 1);
    match random.next_u64() % 4 {
        0 if at < input.len() => input[at] = random.next_u64() as u8,
        1 if at < input.len() => drop(input.remove(at)),
        2 => input.truncate(at),
        _ => {
            let word = words[random.next_u64() as usize % words.len()];
            input.splice(at..at, word.iter().copied());
        }
    }
}
