//! At its limit the log drops by policy, and tells of each record that is gone.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const KEEP: &str = "keep";
const OLD: &str = "old";
const LAST: &str = "last";
/// With it what tells of a record is longer than the record.
const LONG: &str =
    "old-with-a-name-that-is-as-long-as-a-name-may-be-and-so-tells-of-a-record-in-more-bytes-than-it-had";

fn options() -> LogOptions {
    let policies = [(OLD, Policy::DropOldest), (LONG, Policy::DropOldest), (LAST, Policy::LatestPerDevice)];
    let policies = policies.map(|(name, policy)| (stream(name), policy)).into();
    LogOptions { policies, ..LogOptions::default() }
}

fn open(disk: &SimulatedDisk, epoch_bytes: u64) -> Log {
    let store = disk.open().with_epoch_bytes(epoch_bytes);
    Log::open(Box::new(store), options(), metrics()).unwrap().0
}

/// One epoch for each commit.
fn commit_epochs(log: &mut Log, commits: &[&[(&str, std::ops::Range<u64>)]]) {
    for batches in commits {
        log.append(batches.iter().map(|(name, ids)| batch(name, 0, ids.clone())).collect());
        log.sync().unwrap();
    }
}

fn compact_all(log: &mut Log) -> usize {
    (0..).take_while(|_| log.compact(|_, _| true).unwrap()).count()
}

fn ids_of(groups: &[Arc<BatchGroup>], name: &str) -> Vec<u64> {
    let batches = groups.iter().flat_map(|g| &g.batches).filter(|b| b.stream.as_str() == name);
    batches.flat_map(|b| &b.records).map(id_of).collect()
}

fn dropped_of(groups: &[Arc<BatchGroup>], name: &str) -> u64 {
    let dropped = groups.iter().flat_map(|g| &g.dropped).filter(|d| d.stream.as_str() == name);
    dropped.map(|d| d.count).sum()
}

#[test]
fn drop_oldest_drops_the_oldest_epochs_and_keeps_other_streams_in_place() {
    let disk = SimulatedDisk::new();
    let mut log = open(&disk, 1);
    commit_epochs(&mut log, &[&[(KEEP, 0..5), (OLD, 5..60)], &[(OLD, 60..100)], &[(OLD, 100..110)]]);
    let before = log.stats().size_bytes;
    assert!(log.compact(|_, _| true).unwrap());
    assert!(log.stats().size_bytes < before);
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!(lost, []);
    assert_eq!(ids_of(&groups, KEEP), (0..5).collect::<Vec<_>>());
    assert_eq!(ids_of(&groups, OLD), (60..110).collect::<Vec<_>>());
    assert_eq!(dropped_of(&groups, OLD), 55);
    let of_device =
        groups.iter().flat_map(|g| &g.dropped).find(|d| d.device.as_ref().unwrap().as_str() == "device-5");
    let of_device = of_device.unwrap();
    assert_eq!((of_device.first, of_device.last, of_device.count), (Offset(0), Offset(49), 8));
    // The newest epoch is not touched.
    assert_eq!(compact_all(&mut log), 1);
    assert!(!log.compact(|_, _| true).unwrap());
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!((ids_of(&groups, OLD), dropped_of(&groups, OLD), lost), ((100..110).collect(), 95, vec![]));
    assert_eq!(log.stats().epochs, 2, "what was compacted is one");
}

#[test]
fn latest_per_device_keeps_the_last_record_of_each_at_its_place() {
    let disk = SimulatedDisk::new();
    let mut log = open(&disk, 1);
    commit_epochs(&mut log, &[&[(LAST, 0..50)], &[(LAST, 50..100)], &[(LAST, 100..101)]]);
    assert_eq!(compact_all(&mut log), 2);
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!((ids_of(&groups, LAST), lost), ((93..101).collect(), vec![]));
    assert_eq!(dropped_of(&groups, LAST), 93);
    let offsets: Vec<i64> =
        groups.iter().flat_map(|g| &g.batches).flat_map(|b| b.base_offset.0..b.end_offset().0).collect();
    assert_eq!(offsets, (93..101).collect::<Vec<_>>());
}

#[test]
fn what_replication_has_begun_with_stays() {
    let disk = SimulatedDisk::new();
    let mut log = open(&disk, 1);
    commit_epochs(&mut log, &[&[(OLD, 0..50)], &[(OLD, 50..100)], &[(OLD, 100..101)]]);
    let mut asked = Vec::new();
    assert!(
        !log.compact(|first, end| {
            asked.push((first.0, end.0));
            false
        })
        .unwrap()
    );
    assert_eq!(asked.len(), 2, "each but the newest");
    assert_eq!(ids(&read_all(&mut log, EntrySeq(0)).0), (0..101).collect::<Vec<_>>());
}

/// Found by the system test: replication holds the oldest epochs while Kafka is away, and nothing was dropped at all.
#[test]
fn behind_what_replication_has_begun_with_the_log_drops() {
    let disk = SimulatedDisk::new();
    let mut log = open(&disk, 1);
    commit_epochs(&mut log, &[&[(OLD, 0..50)], &[(OLD, 50..100)], &[(OLD, 100..101)]]);
    assert!(log.compact(|first, _| first > EntrySeq(1)).unwrap());
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!((ids(&groups), lost), ((0..50).chain(100..101).collect(), vec![]));
    assert_eq!(dropped_of(&groups, OLD), 50);
}

#[test]
fn an_epoch_of_which_little_would_go_is_not_written_again() {
    let disk = SimulatedDisk::new();
    let mut log = open(&disk, 1);
    commit_epochs(&mut log, &[&[(KEEP, 0..50), (OLD, 50..60)], &[(KEEP, 60..61)]]);
    let written = log.stats().size_bytes;
    assert!(!log.compact(|_, _| true).unwrap());
    assert_eq!(log.stats().size_bytes, written);
}

#[test]
fn damage_is_left_for_the_reader_to_find() {
    let disk = SimulatedDisk::new();
    let mut log = open(&disk, 1);
    commit_epochs(&mut log, &[&[(OLD, 0..50)], &[(OLD, 50..60)]]);
    assert!(disk.flip_bit(EntrySeq(1), 400));
    assert!(!log.compact(|_, _| true).unwrap());
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!((ids(&groups), lost.len()), ((50..60).collect(), 1));
}

#[test]
fn devices_that_are_too_many_to_name_are_counted() {
    let disk = SimulatedDisk::new();
    let mut log = open(&disk, 1);
    let name = stream(LONG);
    let records = (0..2_000).map(|id| {
        let device = DeviceId::new(&format!("{id}")).unwrap();
        Record { device, value: "v".into(), ..record(&name, id) }
    });
    log.append(vec![Batch { stream: name.clone(), partition: PartitionId(0), records: records.collect() }]);
    log.sync().unwrap();
    commit_epochs(&mut log, &[&[(OLD, 0..1)]]);
    assert!(compact_all(&mut log) > 0);
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!((dropped_of(&groups, LONG), lost), (2_000, vec![]));
    assert!(groups.iter().flat_map(|g| &g.dropped).any(|d| d.device.is_none()));
}

#[derive(Clone, Debug)]
enum Operation {
    Append(Vec<(&'static str, i32, u64)>),
    Sync,
    /// Replication has begun with this share of the log, in percent.
    Hold(u64),
    Compact,
    Trim(u64),
    Reopen,
    Crash(usize),
    Fail(u32, Fault),
}

fn operation() -> impl Strategy<Value = Operation> {
    let batch = (prop::sample::select(vec![KEEP, OLD, LAST]), 0..2, 1..40_u64);
    prop_oneof![
        8 => prop::collection::vec(batch, 1..4).prop_map(Operation::Append),
        8 => Just(Operation::Sync),
        1 => (0..60_u64).prop_map(Operation::Hold),
        4 => Just(Operation::Compact),
        1 => (0..60_u64).prop_map(Operation::Trim),
        1 => Just(Operation::Reopen),
        1 => (0..4_usize).prop_map(Operation::Crash),
        1 => (0..9_u32, prop_oneof![Just(Fault::HandleDead), Just(Fault::NoSpace), Just(Fault::Io)])
            .prop_map(|(calls, fault)| Operation::Fail(calls, fault)),
    ]
}

/// Everything acknowledged above the trim is read in order or told as dropped, to the record; a stream without policy
/// loses nothing, and no device of the stream that keeps the last loses that.
fn check(log: &mut Log, acknowledged: &BTreeMap<u64, (EntrySeq, &'static str, i32)>, trimmed: EntrySeq) {
    let first = log.first();
    assert!(first <= trimmed, "nothing goes that was not trimmed");
    let (groups, lost) = read_all(log, first);
    assert_eq!(lost, [], "nothing is damaged");
    for name in [KEEP, OLD, LAST] {
        for partition in 0..2 {
            let of = |b: &&LogBatch| b.stream.as_str() == name && b.partition.0 == partition;
            let found: Vec<u64> = groups
                .iter()
                .flat_map(|g| &g.batches)
                .filter(of)
                .flat_map(|b| &b.records)
                .map(id_of)
                .collect();
            assert!(found.is_sorted(), "{name}/{partition}: {found:?}");
            let found: BTreeSet<u64> = found.into_iter().collect();
            let expected: BTreeSet<u64> = acknowledged
                .iter()
                .filter(|(_, (seq, of, p))| (*of, *p) == (name, partition) && *seq >= first)
                .map(|(id, _)| *id)
                .collect();
            let missing = expected.difference(&found).count() as u64;
            let told: u64 = groups
                .iter()
                .flat_map(|g| &g.dropped)
                .filter(|d| d.stream.as_str() == name && d.partition.0 == partition)
                .map(|d| d.count)
                .sum();
            assert_eq!(told, missing, "{name}/{partition}");
            assert!(name != KEEP || missing == 0);
        }
    }
    let found: BTreeSet<u64> = ids(&groups).into_iter().collect();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for (id, (seq, name, _)) in acknowledged {
        if *name == LAST && *seq >= first {
            last.insert(id % 7, *id);
        }
    }
    assert!(last.values().all(|id| found.contains(id)), "each device's last of {last:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_compaction_drops_is_told_to_the_record(operations in prop::collection::vec(operation(), 1..60)) {
        let disk = SimulatedDisk::new();
        let mut log = open(&disk, 3_000);
        let mut next_id = 0;
        let mut partitions: BTreeMap<u64, (&'static str, i32)> = BTreeMap::new();
        let mut acknowledged = BTreeMap::new();
        let (mut held, mut trimmed) = (EntrySeq(0), EntrySeq(0));
        for operation in operations {
            let mut reopened = false;
            match operation {
                Operation::Append(mut batches) => {
                    batches.sort_unstable();
                    batches.dedup_by_key(|(name, partition, _)| (*name, *partition));
                    let batches = batches.into_iter().map(|(name, partition, records)| {
                        let ids = next_id..next_id + records;
                        next_id = ids.end;
                        partitions.extend(ids.clone().map(|id| (id, (name, partition))));
                        batch(name, partition, ids)
                    });
                    log.append(batches.collect());
                }
                Operation::Sync => {
                    if let Ok(committed) = log.sync() {
                        for group in committed.groups {
                            for id in ids(std::slice::from_ref(&group)) {
                                let (name, partition) = partitions[&id];
                                acknowledged.insert(id, (group.seq, name, partition));
                            }
                        }
                    }
                }
                Operation::Hold(percent) => held = held.max(EntrySeq(log.end().0 * percent / 100)),
                Operation::Compact => {
                    // A failure changes nothing.
                    let _ = log.compact(|first, _| first >= held);
                    check(&mut log, &acknowledged, trimmed);
                }
                Operation::Trim(percent) => {
                    let to = EntrySeq(log.end().0 * percent / 100);
                    held = held.max(to);
                    trimmed = trimmed.max(to);
                    let _ = log.trim(to, Monotonic::default());
                }
                Operation::Reopen => reopened = true,
                Operation::Crash(keep) => {
                    disk.crash(keep);
                    reopened = true;
                }
                Operation::Fail(calls, fault) => disk.fail_after(calls, fault),
            }
            if reopened {
                drop(log);
                log = open(&disk, 3_000);
                // What was written and not acknowledged may be there: as good as acknowledged from now on.
                for group in read_all(&mut log, EntrySeq(0)).0 {
                    for id in ids(std::slice::from_ref(&group)) {
                        let (name, partition) = partitions[&id];
                        acknowledged.entry(id).or_insert((group.seq, name, partition));
                    }
                }
                check(&mut log, &acknowledged, trimmed);
            }
        }
        check(&mut log, &acknowledged, trimmed);
    }
}
