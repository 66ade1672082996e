//! What the log takes on the disk: disk <= live + 2 epochs, whatever is appended, sent, dropped and restarted.
//!
//! *Live* are the epochs of which Kafka has nothing. One epoch more may have the cursor in it, or be the newest, which is never
//! deleted; the other is the room that `segment` takes beforehand for the one that it writes.

use std::{fs, os::unix::fs::MetadataExt};

use proptest::prelude::*;

use super::*;
use crate::log::store::disk::DiskOptions;

const EPOCH_BYTES: u64 = 32 << 10;

/// Most bytes of an operation's commit.
const COMMIT_BYTES: u64 = 64 << 10;

/// An epoch is full behind the commit that fills it, and sled's file grows by half a MiB.
const EPOCH_BYTES_MAX: u64 = EPOCH_BYTES + COMMIT_BYTES + (512 << 10);

#[derive(Clone, Debug)]
enum Operation {
    /// Appends records of so many bytes, and syncs.
    Commit(Vec<usize>),
    /// Kafka acknowledges so much of what it has not, in percent.
    Acknowledge(u64),
    /// The log drops what it may of the oldest epoch that has something to drop.
    Drop,
    /// Kill and start.
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let sizes = prop::collection::vec(prop_oneof![3 => 0..500_usize, 1 => 4_000..12_000_usize], 1..6);
    prop_oneof![
        12 => sizes.prop_map(Operation::Commit),
        2 => (0..=100_u64).prop_map(Operation::Acknowledge),
        1 => Just(Operation::Drop),
        1 => Just(Operation::Reopen),
    ]
}

/// Bytes that the files in `dir` take on the device.
fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.metadata().unwrap() {
            metadata if metadata.is_dir() => bytes_in(&entry.path()),
            metadata => metadata.blocks() * 512,
        })
        .sum()
}

/// Bytes that no engine's compression makes fewer.
fn value(id: u64, size: usize) -> Vec<u8> {
    let mut state = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..size).map(|_| byte()).collect()
}

fn run(engine: Engine, operations: &[Operation]) {
    let dir = tempfile::tempdir().unwrap();
    let name = stream("vehicle");
    let open = || {
        let options = DiskOptions { epoch_bytes: EPOCH_BYTES, ..options_of(engine) };
        let policies = [(name.clone(), Policy::DropOldest)].into();
        let options_of_log = LogOptions { policies, ..LogOptions::default() };
        let store = DiskStore::open(dir.path(), options).unwrap();
        Log::open(Box::new(store), options_of_log, metrics()).unwrap().0
    };
    let mut log = open();
    let (mut id, mut acknowledged) = (0, EntrySeq(0));
    for operation in operations {
        match operation {
            Operation::Commit(sizes) => {
                let records = sizes.iter().map(|size| {
                    id += 1;
                    Record { value: value(id, *size).into(), ..record(&name, id) }
                });
                let records = records.collect();
                log.append(vec![Batch { stream: name.clone(), partition: PartitionId(0), records }]);
                log.sync().unwrap();
            }
            Operation::Acknowledge(percent) => {
                acknowledged.0 += (log.end().0 - acknowledged.0) * percent / 100;
                log.trim(acknowledged, Monotonic::default()).unwrap();
            }
            Operation::Drop => _ = log.compact(|first, _| acknowledged <= first).unwrap(),
            Operation::Reopen => {
                drop(log);
                log = open();
            }
        }
        let not_live_bytes = log.size_bytes_before(acknowledged);
        let live_bytes = log.stats().size_bytes - not_live_bytes;
        assert!(
            not_live_bytes <= EPOCH_BYTES_MAX,
            "{not_live_bytes} bytes are not live, behind {operation:?}"
        );
        let disk_bytes = bytes_in(dir.path());
        assert!(
            disk_bytes <= live_bytes + 2 * EPOCH_BYTES_MAX,
            "{disk_bytes} bytes on the disk, {live_bytes} of them live, behind {operation:?}"
        );
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(operation(), 1..100)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(2))]

    #[test]
    fn sled_takes_no_more_than_what_is_live_and_two_epochs(operations in operations()) {
        run(Engine::Sled, &operations);
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn segment_takes_no_more_than_what_is_live_and_two_epochs(operations in operations()) {
        run(Engine::Segment, &operations);
    }
}
