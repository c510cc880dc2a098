#![no_main]

#[allow(dead_code, reason = "each target uses one of them")]
#[path = "../../gateway/tests/fuzz/harness.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::hosts(data));
