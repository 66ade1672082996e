//! The bodies of the fuzz targets in `../tests/fuzz`, on their kept corpus and on bytes that proptest makes up.

#![allow(clippy::unwrap_used)]

#[path = "harness/bytes.rs"]
mod bytes;
mod harness;

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn every_kept_input_passes_its_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
    let link = |data: &[u8]| {
        bytes::ends_survive(data);
        harness::steered_by(data);
    };
    for (name, target) in [("decoder", &bytes::decoder_survives as &dyn Fn(&[u8])), ("link", &link)] {
        for input in fs::read_dir(corpus.join(name)).unwrap() {
            let path = input.unwrap().path();
            println!("{}", path.display());
            target(&fs::read(path).unwrap());
        }
    }
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![2 => Just(0u8), 1 => Just(255), 3 => 0..20u8, 5 => any::<u8>()], 0..2000)
}

proptest! {
    #[test]
    fn decoder_takes_any_bytes_in_any_chunks_and_resyncs(data in noise()) {
        bytes::decoder_survives(&data);
    }

    #[test]
    fn both_ends_take_any_bytes(data in noise()) {
        bytes::ends_survive(&data);
    }

    #[test]
    fn conversation_steered_by_any_bytes_keeps_the_promises(data in vec(any::<u8>(), 0..400)) {
        harness::steered_by(&data);
    }
}
