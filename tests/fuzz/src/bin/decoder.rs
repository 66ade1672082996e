//! Any bytes in any chunks into the decoder, then a sound frame.
#![no_main]

#[path = "../../../../protocol/tests/harness/bytes.rs"]
#[allow(dead_code)]
mod bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bytes::decoder_survives(data));
