//! See `wayside::fuzz::nmea`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wayside::fuzz::nmea(data));
