//! Any bytes into both ends, and a whole conversation whose faults the input chooses.
#![no_main]

#[path = "../../../../protocol/tests/harness/bytes.rs"]
#[allow(dead_code)]
mod bytes;
#[path = "../../../../protocol/tests/harness/mod.rs"]
#[allow(dead_code)]
mod harness;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bytes::ends_survive(data);
    harness::steered_by(data);
});
