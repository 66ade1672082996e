//! See `wayside::fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::config(data));
