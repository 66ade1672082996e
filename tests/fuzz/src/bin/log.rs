//! See `wayside::fuzz::log`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::log(data));
