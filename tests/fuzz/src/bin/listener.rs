//! See `wayside::fuzz::listener`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::listener(data));
