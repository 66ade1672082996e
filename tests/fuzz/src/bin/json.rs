//! See `wayside::fuzz::json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::json(data));
