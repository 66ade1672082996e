//! See `wayside::fuzz::topic`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::topic(data));
