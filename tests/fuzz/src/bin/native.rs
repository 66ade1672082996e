//! See `wayside::fuzz::native`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::native(data));
