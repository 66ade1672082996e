//! See `wayside::fuzz::segment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::segment(data));
