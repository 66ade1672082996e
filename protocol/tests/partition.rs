//! The partitioner against Kafka's own Java client.

#![allow(clippy::unwrap_used)]

use std::num::NonZeroU32;
use wayside_protocol::partition::{murmur2, partition};

const VECTORS: &str = include_str!("../testdata/murmur2.tsv");
const PARTITIONS: [u32; 6] = [1, 3, 4, 7, 12, 1000];

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn partitions_are_those_of_the_java_client() {
    let mut keys = 0;
    for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t');
        let key = from_hex(fields.next().unwrap());
        assert_eq!(murmur2(&key), fields.next().unwrap().parse::<i32>().unwrap(), "murmur2 of {line}");
        for count in PARTITIONS {
            let expected = fields.next().unwrap().parse::<i32>().unwrap();
            assert_eq!(
                partition(&key, NonZeroU32::new(count).unwrap()),
                expected,
                "{count} partitions, {line}"
            );
        }
        keys += 1;
    }
    assert!(keys > 50, "only {keys} vectors");
}

#[test]
fn partition_is_in_range_for_the_largest_counts() {
    for count in [i32::MAX as u32, u32::MAX] {
        let count = NonZeroU32::new(count).unwrap();
        for key in 0..1000u32 {
            assert!(partition(&key.to_le_bytes(), count) >= 0);
        }
    }
}
