//! See `wayside::fuzz::mqtt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::mqtt(data));
