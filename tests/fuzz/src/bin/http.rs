//! See `wayside::fuzz::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::http(data));
