//! See `wayside::fuzz::acl`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::acl(data));
