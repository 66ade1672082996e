//! See `wayside::fuzz::passwords`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::passwords(data));
