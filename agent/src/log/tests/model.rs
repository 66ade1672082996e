//! The log against a model: random operations, starts, crashes and failures among them.
//!
//! The model knows which records were acknowledged and which were only appended. The promise: what was acknowledged and
//! not trimmed is read, once, in order, with dense offsets; of the rest any prefix may be there.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::log::store::disk::DiskOptions;

#[derive(Clone, Debug)]
enum Operation {
    Append {
        partition: i32,
        records: u64,
    },
    Sync,
    ReadAll,
    /// Trims what is below this share of the sequence, in percent.
    Trim(u64),
    /// Kill and start: what the kernel has stays.
    Reopen,
    /// Power cut: what was not synced goes, but for this many entries.
    Crash(usize),
    Fail(u32, Fault),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0..3, 1..60_u64).prop_map(|(partition, records)| Operation::Append { partition, records }),
        6 => Just(Operation::Sync),
        2 => Just(Operation::ReadAll),
        1 => (0..110_u64).prop_map(Operation::Trim),
        1 => Just(Operation::Reopen),
        1 => (0..4_usize).prop_map(Operation::Crash),
        1 => (0..6_u32, prop_oneof![Just(Fault::HandleDead), Just(Fault::NoSpace), Just(Fault::Io)])
            .prop_map(|(calls, fault)| Operation::Fail(calls, fault)),
    ]
}

#[derive(Default)]
struct Model {
    next_id: u64,
    /// Acknowledged records: id, and where the log said that it put them.
    acknowledged: BTreeMap<u64, EntrySeq>,
}

impl Model {
    fn append(&mut self, log: &mut Log, partition: i32, records: u64) {
        let ids = self.next_id..self.next_id + records;
        self.next_id = ids.end;
        // The last one is noted; some notes are so large that they take an entry of their own, and are forgotten again.
        let large = vec![0; usize::try_from(ids.end % 3 * 20_000).unwrap()];
        let value = |bytes: &[u8]| (!bytes.is_empty()).then(|| bytes.into());
        let note =
            |key: &str, bytes: &[u8]| Note::new("source".into(), key.as_bytes(), value(bytes)).unwrap();
        let notes = vec![note("large", &large), note("last", &(ids.end - 1).to_be_bytes())];
        log.append_noting(vec![batch("vehicle", partition, ids)], notes);
    }

    fn acknowledge(&mut self, groups: &[Arc<BatchGroup>]) {
        for group in groups {
            for record in group.batches.iter().flat_map(|b| &b.records) {
                let twice = self.acknowledged.insert(id_of(record), group.seq);
                assert_eq!(twice, None, "record {} is acknowledged twice", id_of(record));
            }
        }
    }

    fn check(&mut self, log: &mut Log) {
        let first = log.first();
        let (groups, lost) = read_all(log, first);
        assert_eq!(lost, [], "nothing is damaged");
        let mut next_offsets: BTreeMap<PartitionId, Offset> = BTreeMap::new();
        let mut found = BTreeMap::new();
        let mut last = None;
        for group in &groups {
            for batch in &group.batches {
                let next = next_offsets.entry(batch.partition).or_insert(batch.base_offset);
                assert_eq!(*next, batch.base_offset, "dense offsets in partition {}", batch.partition);
                next.0 += i64::try_from(batch.records.len()).unwrap();
                for record in &batch.records {
                    let id = id_of(record);
                    assert!(last < Some(id), "record {id} comes behind {last:?}");
                    last = Some(id);
                    found.insert(id, group.seq);
                }
            }
        }
        let noted = log.notes.by_source().get("source").and_then(|notes| notes.get(b"last".as_slice()));
        let noted = noted.map(|id| u64::from_be_bytes(id[..].try_into().unwrap()));
        assert!(
            noted >= self.acknowledged.last_key_value().map(|(id, _)| *id),
            "what is acknowledged is noted"
        );
        if let Some(noted) = noted {
            let trimmed = self.acknowledged.get(&noted).is_some_and(|seq| *seq < first);
            assert!(trimmed || found.contains_key(&noted), "{noted} is noted and not there");
        }
        for (id, seq) in &self.acknowledged {
            if *seq >= first {
                assert_eq!(found.get(id), Some(seq), "acknowledged record {id}");
            }
        }
    }
}

/// Runs `operations`; `open` opens the engine, `crash` and `fail` do what they say where the engine can.
fn run(operations: &[Operation], open: &dyn Fn() -> Log, crash: &dyn Fn(usize), fail: &dyn Fn(u32, Fault)) {
    let mut model = Model::default();
    let mut log = open();
    for operation in operations {
        match operation {
            Operation::Append { partition, records } => model.append(&mut log, *partition, *records),
            // A failed sync acknowledges nothing; its records stay in memory.
            Operation::Sync => {
                if let Ok(committed) = log.sync() {
                    model.acknowledge(&committed.groups);
                    assert_eq!(log.stats().pending_groups, 0);
                }
            }
            Operation::ReadAll => model.check(&mut log),
            Operation::Trim(percent) => {
                // A failure is tried again by the next one.
                let _ = log.trim(EntrySeq(log.end().0 * percent / 100), Monotonic::default());
            }
            Operation::Reopen => {
                drop(log);
                log = open();
                model.check(&mut log);
            }
            Operation::Crash(keep) => {
                drop(log);
                crash(*keep);
                log = open();
                model.check(&mut log);
            }
            Operation::Fail(calls, fault) => fail(*calls, *fault),
        }
    }
    drop(log);
    model.check(&mut open());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_simulated_engine_keeps_the_promise(operations in prop::collection::vec(operation(), 1..60)) {
        let disk = SimulatedDisk::new();
        let open = || {
            let store = disk.open().with_epoch_bytes(2_000);
            Log::open(Box::new(store), LogOptions::default(), metrics()).unwrap().0
        };
        run(&operations, &open, &|keep| disk.crash(keep), &|calls, fault| disk.fail_after(calls, fault));
    }
}

fn run_on_disk(operations: &[Operation], engine: Engine) {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let options = DiskOptions { epoch_bytes: 4_000, ..options_of(engine) };
        let store = DiskStore::open(dir.path(), options).unwrap();
        Log::open(Box::new(store), LogOptions::default(), metrics()).unwrap().0
    };
    run(operations, &open, &|_| {}, &|_, _| {});
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sled_keeps_the_promise(operations in prop::collection::vec(operation(), 1..40)) {
        run_on_disk(&operations, Engine::Sled);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn segment_keeps_the_promise(operations in prop::collection::vec(operation(), 1..60)) {
        run_on_disk(&operations, Engine::Segment);
    }
}
