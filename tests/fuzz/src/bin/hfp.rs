//! See `wayside::fuzz::hfp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::hfp(data));
