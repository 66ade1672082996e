//! The log as a whole: over the simulated engine, where everything can go wrong, and over those on a disk.

mod bounds;
mod compact;
mod damage;
mod format;
mod model;
mod remembered;
mod verify;

use std::{path::Path, time::Duration};

use prometheus_client::registry::Registry;

use super::{
    store::{
        contract::{ENGINES, options_of, test_options},
        disk::DiskStore,
        simulated::{Fault, SimulatedDisk},
    },
    *,
};
use crate::{
    batch::Batch,
    config::Engine,
    env::Monotonic,
    record::{BootId, ClockQuality, ContentType, DeviceId, Received, RecordHeader, Timeline, UnixMicros},
};

fn metrics() -> LogMetrics {
    LogMetrics::register(&mut Registry::default())
}

fn open_simulated(disk: &SimulatedDisk) -> (Log, Recovery) {
    Log::open(Box::new(disk.open()), LogOptions::default(), metrics()).unwrap()
}

fn is_no_space(error: &LogError) -> bool {
    matches!(error, LogError::Store(StoreError::NoSpace { .. }))
}

fn open_sled(dir: &Path) -> (Log, Recovery) {
    open_disk(dir, Engine::Sled)
}

fn open_disk(dir: &Path, engine: Engine) -> (Log, Recovery) {
    let store = DiskStore::open(dir, options_of(engine)).unwrap();
    Log::open(Box::new(store), LogOptions::default(), metrics()).unwrap()
}

fn stream(name: &str) -> StreamName {
    StreamName::new(name).unwrap()
}

/// A record whose value tells it from all others.
fn record(stream: &StreamName, id: u64) -> Record {
    Record {
        stream: stream.clone(),
        device: DeviceId::new(&format!("device-{}", id % 7)).unwrap(),
        value: format!("{{\"id\":{id},\"speed_mps\":{}.25,\"heading_deg\":{}}}", id % 40, id % 360).into(),
        content_type: ContentType::Json,
        event_time: (!id.is_multiple_of(3))
            .then(|| UnixMicros(1_790_000_000_000_000 + id.cast_signed() * 1000)),
        received: Received {
            at: UnixMicros(1_790_000_000_250_000 + id.cast_signed() * 997),
            quality: ClockQuality::Synced,
            ..Received::default()
        },
        device_seq: id.is_multiple_of(2).then_some(id),
        headers: Vec::new(),
    }
}

fn id_of(record: &Record) -> u64 {
    let text = std::str::from_utf8(&record.value).unwrap();
    text["{\"id\":".len()..].split(',').next().unwrap().parse().unwrap()
}

fn batch(name: &str, partition: i32, ids: std::ops::Range<u64>) -> Batch {
    let stream = stream(name);
    let records = ids.map(|id| record(&stream, id)).collect();
    Batch { stream, partition: PartitionId(partition), records }
}

/// Appends and syncs one batch.
fn commit(log: &mut Log, ids: std::ops::Range<u64>) -> Vec<Arc<BatchGroup>> {
    log.append(vec![batch("vehicle", 0, ids)]);
    log.sync().unwrap().groups
}

/// Everything from `from` on, and what is lost; in small steps, which must come to an end.
fn read_all(log: &mut Log, from: EntrySeq) -> (Vec<Arc<BatchGroup>>, Vec<LostEntries>) {
    let (mut groups, mut lost) = (Vec::new(), Vec::new());
    let mut next = from;
    loop {
        let outcome = log.read(next, 2000).unwrap();
        assert!(outcome.next > next || outcome.groups.is_empty(), "no progress at {next}");
        groups.extend(outcome.groups);
        lost.extend(outcome.lost);
        if outcome.next == next {
            assert_eq!(next, log.end().max(from), "the reader stops at the end alone");
            return (groups, lost);
        }
        next = outcome.next;
    }
}

fn ids(groups: &[Arc<BatchGroup>]) -> Vec<u64> {
    groups.iter().flat_map(|g| &g.batches).flat_map(|b| &b.records).map(id_of).collect()
}

#[test]
fn what_a_sync_returns_is_what_is_read() {
    let disk = SimulatedDisk::new();
    let (mut log, recovery) = open_simulated(&disk);
    assert_eq!(recovery.boot, 1);
    log.append(vec![
        batch("occupancy", 3, 0..40),
        batch("vehicle", 0, 40..300),
        batch("vehicle", 1, 300..301),
    ]);
    assert!(log.read(EntrySeq(0), 1000).unwrap().groups.is_empty(), "nothing is durable yet");
    let committed = log.sync().unwrap().groups;
    assert_eq!(read_all(&mut log, EntrySeq(0)), (committed, vec![]));
    assert!(log.sync().unwrap().groups.is_empty());
}

#[test]
fn offsets_are_dense_over_groups_syncs_and_starts() {
    let disk = SimulatedDisk::new();
    let mut groups = Vec::new();
    for start in 0..4_u64 {
        let (mut log, recovery) = open_simulated(&disk);
        assert_eq!(recovery.boot, start + 1);
        assert!(!recovery.skipped);
        for sync in 0..3 {
            let first = start * 3000 + sync * 1000;
            groups.extend(commit(&mut log, first..first + 1000));
        }
    }
    let mut next = 0;
    for group in &groups {
        assert_eq!(group.batches[0].base_offset, Offset(next));
        next += i64::try_from(group.batches[0].records.len()).unwrap();
    }
    assert_eq!(next, 12_000);
    assert!(groups.len() > 12, "batches of 1000 records are cut");
    let (mut log, _) = open_simulated(&disk);
    assert_eq!(ids(&read_all(&mut log, EntrySeq(0)).0), (0..12_000).collect::<Vec<_>>());
}

#[test]
fn a_log_at_its_limit_takes_nothing_until_an_epoch_is_trimmed() {
    let disk = SimulatedDisk::new();
    let options = LogOptions { limit_bytes: 40_000, compression: Compression::None, ..LogOptions::default() };
    let store = Box::new(disk.open().with_epoch_bytes(10_000));
    let (mut log, _) = Log::open(store, options, metrics()).unwrap();
    let mut taken = 0;
    let full = loop {
        log.append(vec![batch("vehicle", 0, taken..taken + 50)]);
        taken += 50;
        match log.sync() {
            Ok(committed) => assert!(!committed.groups.is_empty()),
            Err(full) => break full,
        }
        assert!(taken < 10_000, "never full");
    };
    assert!(full.to_string().contains("of at most 40000 (log.limit_bytes)"), "{full}");
    assert!(log.stats().size_bytes < 60_000, "{:?}", log.stats());
    assert!(matches!(log.sync(), Err(LogError::Full { .. })));
    // What is there can be read, and goes when Kafka has it.
    let (groups, _) = read_all(&mut log, EntrySeq(0));
    assert_eq!(ids(&groups), (0..taken - 50).collect::<Vec<_>>());
    assert!(log.trim(log.epochs[1].0, Monotonic::default()).unwrap() > 0);
    assert_eq!(ids(&log.sync().unwrap().groups), (taken - 50..taken).collect::<Vec<_>>());
}

#[test]
fn a_disk_with_less_than_the_reserve_free_is_not_written_to() {
    let disk = SimulatedDisk::new();
    disk.set_capacity_bytes(Some(100_000));
    let options =
        LogOptions { reserve_bytes: 60_000, compression: Compression::None, ..LogOptions::default() };
    let (mut log, _) = Log::open(Box::new(disk.open()), options, metrics()).unwrap();
    let mut taken = 0;
    let full = loop {
        log.append(vec![batch("vehicle", 0, taken..taken + 50)]);
        taken += 50;
        if let Err(full) = log.sync() {
            break full;
        }
        assert!(taken < 10_000, "never full");
    };
    assert!(
        full.is_bound() && full.to_string().contains("60000 are to stay free (log.reserve_bytes)"),
        "{full}"
    );
    assert!((40_000..60_000).contains(&log.stats().size_bytes), "{:?}", log.stats());
    assert_eq!(ids(&read_all(&mut log, EntrySeq(0)).0), (0..taken - 50).collect::<Vec<_>>());
    disk.set_capacity_bytes(Some(200_000));
    assert_eq!(ids(&log.sync().unwrap().groups), (taken - 50..taken).collect::<Vec<_>>());
}

#[test]
fn the_largest_record_fits_an_entry_without_compression() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let options = LogOptions { compression, ..LogOptions::default() };
        let (mut log, _) = Log::open(Box::new(SimulatedDisk::new().open()), options, metrics()).unwrap();
        let mut noise = 1_u64;
        let mut big = record(&stream("raw"), 1);
        let room = RECORD_BYTES_MAX - big.size_bytes() + big.value.len();
        big.value = (0..room)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                noise.to_be_bytes()[0]
            })
            .collect();
        assert_eq!(big.size_bytes(), RECORD_BYTES_MAX);
        let records = vec![record(&stream("raw"), 0), big, record(&stream("raw"), 2)];
        log.append(vec![Batch { stream: stream("raw"), partition: PartitionId(0), records }]);
        let committed = log.sync().unwrap().groups;
        assert_eq!(read_all(&mut log, EntrySeq(0)).0, committed);
    }
}

#[test]
fn every_field_of_a_record_comes_back() {
    let (mut log, _) = open_simulated(&SimulatedDisk::new());
    let mut odd = record(&stream("x"), 1);
    odd.event_time = Some(UnixMicros(i64::MIN));
    odd.received = Received {
        at: UnixMicros(i64::MAX),
        quality: ClockQuality::Unknown,
        timeline: Timeline { boot: BootId(u32::MAX), start: UnixMicros(i64::MIN) },
        dates_event: true,
    };
    odd.device_seq = Some(u64::MAX);
    odd.content_type = ContentType::Postcard;
    odd.headers = vec![RecordHeader { name: "wayside.schema".into(), value: vec![0, 255].into() }];
    let mut empty = record(&stream("x"), 2);
    empty.value = bytes::Bytes::new();
    empty.content_type = ContentType::Nmea;
    empty.received.timeline = odd.received.timeline;
    let records = vec![odd, empty];
    log.append(vec![Batch { stream: stream("x"), partition: PartitionId(7), records: records.clone() }]);
    log.sync().unwrap();
    assert_eq!(read_all(&mut log, EntrySeq(0)).0[0].batches[0].records, records);
}

#[test]
fn values_read_back_share_their_groups_buffer_and_streams_their_name() {
    let (mut log, _) = open_simulated(&SimulatedDisk::new());
    commit(&mut log, 0..10);
    commit(&mut log, 10..20);
    let (groups, _) = read_all(&mut log, EntrySeq(0));
    let records = &groups[0].batches[0].records;
    let distance = records[9].value.as_ptr().addr() - records[0].value.as_ptr().addr();
    assert!(distance < 2000, "values are slices of one buffer");
    let name = |group: usize| groups[group].batches[0].stream.as_str().as_ptr();
    assert_eq!(name(0), name(1));
}

#[test]
fn a_partition_that_comes_twice_in_one_append_stays_in_order() {
    let (mut log, _) = open_simulated(&SimulatedDisk::new());
    log.append(vec![batch("a", 0, 0..3), batch("b", 0, 3..6), batch("a", 0, 6..9)]);
    let groups = log.sync().unwrap().groups;
    assert_eq!(ids(&groups), (0..9).collect::<Vec<_>>());
    assert_eq!(groups.len(), 2, "a group holds a partition once");
    assert_eq!(groups[1].batches[0].base_offset, Offset(3));
}

#[test]
fn a_dead_handle_costs_an_epoch_and_nothing_else() {
    // Calls of the first commit: create, append checkpoint, append group, sync; the second: append, sync.
    for calls in 0..6 {
        for fault in [Fault::HandleDead, Fault::NoSpace, Fault::Io] {
            let disk = SimulatedDisk::new();
            disk.fail_after(calls, fault);
            let (mut log, _) = open_simulated(&disk);
            commit(&mut log, 0..10);
            commit(&mut log, 10..20);
            let (groups, lost) = read_all(&mut log, EntrySeq(0));
            assert_eq!((ids(&groups), lost), ((0..20).collect(), vec![]), "call {calls} {fault:?}");
            drop(log);
            let (mut log, _) = open_simulated(&disk);
            let (groups, lost) = read_all(&mut log, EntrySeq(0));
            assert_eq!(
                (ids(&groups), lost),
                ((0..20).collect(), vec![]),
                "call {calls} {fault:?} after a restart"
            );
        }
    }
}

#[test]
fn a_full_disk_keeps_records_in_memory_until_a_trim_has_made_room() {
    let disk = SimulatedDisk::new();
    let store = disk.open().with_epoch_bytes(3_000);
    let (mut log, _) = Log::open(Box::new(store), LogOptions::default(), metrics()).unwrap();
    disk.set_capacity_bytes(Some(20_000));
    let mut next = 0;
    let error = loop {
        log.append(vec![batch("vehicle", 0, next..next + 50)]);
        next += 50;
        if let Err(error) = log.sync() {
            break error;
        }
    };
    assert!(is_no_space(&error));
    assert!(log.stats().pending_groups > 0);
    let middle = log.epochs[log.epochs.len() / 2].0;
    let acknowledged = ids(&read_all(&mut log, EntrySeq(0)).0).len() as u64;
    assert!(log.trim(middle, Monotonic::default()).unwrap() > 0);
    assert_eq!(log.first(), middle);
    assert!(!log.sync().unwrap().groups.is_empty());
    let (groups, lost) = read_all(&mut log, middle);
    let ids = ids(&groups);
    assert!(lost.is_empty());
    assert_eq!(ids, (ids[0]..next).collect::<Vec<_>>());
    assert!(ids[0] < acknowledged);
}

#[test]
fn a_trimmed_log_goes_on_from_its_newest_epoch() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    log.append(vec![batch("early", 2, 0..5)]);
    log.sync().unwrap();
    drop(log);
    for start in 1..4 {
        let (mut log, recovery) = open_simulated(&disk);
        assert_eq!(recovery.next_offsets[&(stream("early"), PartitionId(2))], Offset(5), "start {start}");
        commit(&mut log, start * 10..start * 10 + 10);
        log.trim(log.end(), Monotonic::default()).unwrap();
        assert_eq!(log.stats().epochs, 1);
    }
}

#[test]
fn a_trim_spares_the_last_durable_epoch_while_nothing_in_the_new_one_is() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    commit(&mut log, 0..10);
    drop(log);
    let (mut log, _) = open_simulated(&disk);
    disk.set_capacity_bytes(Some(log.stats().size_bytes + 1));
    log.append(vec![batch("vehicle", 0, 10..20)]);
    assert!(is_no_space(&log.sync().unwrap_err()));
    assert_eq!(log.stats().epochs, 2, "the new one is there and holds nothing durable");
    assert_eq!(log.trim(log.end(), Monotonic::default()).unwrap(), 0);
    drop(log);
    disk.crash(0);
    disk.set_capacity_bytes(None);
    let (mut log, _) = open_simulated(&disk);
    assert_eq!(commit(&mut log, 10..20)[0].batches[0].base_offset, Offset(10));
    assert_eq!(log.trim(log.end(), Monotonic::default()).unwrap(), 1);
}

#[test]
fn a_checkpoint_of_many_partitions_takes_several_entries() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    for partition in 0..30_000 {
        log.append(vec![batch("s", partition, 0..1), batch("t", partition, 0..2)]);
    }
    log.sync().unwrap();
    drop(log);
    let (mut log, before) = open_simulated(&disk);
    assert_eq!(before.next_offsets.len(), 60_000);
    let from = log.end();
    commit(&mut log, 0..1);
    assert!(log.end().0 > from.0 + 2, "more than one part");
    assert_eq!(ids(&read_all(&mut log, from).0), [0]);
    drop(log);
    let (_, after) = open_simulated(&disk);
    assert!(!after.skipped);
    assert_eq!(after.next_offsets.len(), 60_001);
}

#[test]
fn sled_keeps_a_log_over_starts_and_writes_no_blobs() {
    let dir = tempfile::tempdir().unwrap();
    for start in 0..3_u64 {
        let (mut log, recovery) = open_sled(dir.path());
        assert!(!recovery.skipped, "start {start}");
        for n in 0..20 {
            let first = start * 4000 + n * 200;
            commit(&mut log, first..first + 200);
        }
        let (groups, lost) = read_all(&mut log, EntrySeq(0));
        assert_eq!((ids(&groups), lost), ((0..(start + 1) * 4000).collect(), vec![]));
        assert!(log.stats().size_bytes > 0);
    }
    for epoch in inspect::list(dir.path()).unwrap().epochs {
        let blobs = std::fs::read_dir(dir.path().join(epoch.to_string()).join("blobs")).unwrap();
        assert_eq!(blobs.count(), 0, "{epoch}");
    }
}

#[test]
fn a_running_log_can_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open_sled(dir.path());
    commit(&mut log, 0..500);
    log.append(vec![batch("occupancy", 1, 0..20)]);
    log.sync().unwrap();
    let listed = inspect::list(dir.path()).unwrap();
    assert_eq!(listed.epochs.len(), 1);
    let report = inspect::epoch(dir.path(), listed.epochs[0]).unwrap().unwrap();
    assert_eq!(report.damage, Vec::<String>::new());
    assert_eq!((report.end, report.records), (log.end(), 520));
    assert_eq!(report.offsets[&(stream("vehicle"), PartitionId(0))], (Offset(0), Offset(500)));
    assert!(report.stored_bytes < report.raw_bytes);
    commit(&mut log, 500..510);
    assert_eq!(ids(&read_all(&mut log, EntrySeq(0)).0).len(), 530);
    assert_eq!(inspect::epoch(dir.path(), EpochId(EntrySeq(77))).unwrap(), None);
}

#[test]
fn a_checkpoint_tells_the_offsets_at_its_place_and_not_those_of_later_groups() {
    let disk = SimulatedDisk::new();
    let store = disk.open().with_epoch_bytes(1_000);
    let (mut log, _) = Log::open(Box::new(store), LogOptions::default(), metrics()).unwrap();
    // One sync over many epochs, of which the disk takes the first few.
    for (partition, first) in (0..10).zip((0..).step_by(60)) {
        log.append(vec![batch("vehicle", partition, first..first + 60)]);
    }
    disk.set_capacity_bytes(Some(5_000));
    assert!(is_no_space(&log.sync().unwrap_err()));
    assert!(log.stats().epochs > 1);
    drop(log);
    disk.crash(0);
    disk.set_capacity_bytes(None);
    let (mut log, _) = open_simulated(&disk);
    let read = ids(&read_all(&mut log, EntrySeq(0)).0).len();
    assert!((60..600).contains(&read));
    log.append(vec![batch("vehicle", 9, 600..601)]);
    assert_eq!(log.sync().unwrap().groups[0].batches[0].base_offset, Offset(0));
}

#[test]
fn acknowledged_epochs_are_kept_up_to_the_bytes_and_the_time_that_retention_says() {
    let ms = |ms| Monotonic::from_start(Duration::from_millis(ms));
    let disk = SimulatedDisk::new();
    let open = |bytes, time| {
        let retention = Retention { bytes, time };
        let options = LogOptions { retention, ..LogOptions::default() };
        Log::open(Box::new(disk.open().with_epoch_bytes(1)), options, metrics()).unwrap().0
    };
    let mut log = open(u64::MAX, Some(Duration::from_millis(100)));
    for n in 0..4 {
        commit(&mut log, n * 50..(n + 1) * 50);
    }
    let third = log.epochs[2];
    assert_eq!(log.trim(third.0, ms(1_000)).unwrap(), 0);
    assert_eq!(log.trim(log.end(), ms(1_060)).unwrap(), 0);
    assert_eq!(log.trim(log.end(), ms(1_101)).unwrap(), 2, "the two that Kafka has had for longer");
    assert_eq!(ids(&read_all(&mut log, EntrySeq(0)).0), (100..200).collect::<Vec<_>>());
    assert!(log.delete_retained().unwrap(), "one more when room is needed");
    assert!(!log.delete_retained().unwrap(), "never what is not acknowledged, nor the newest");
    drop(log);
    let size_bytes = disk.open().size_bytes();
    let mut log = open(size_bytes * 5 / 2, None);
    for n in 4..8 {
        commit(&mut log, n * 50..(n + 1) * 50);
    }
    log.trim(log.end(), ms(0)).unwrap();
    assert_eq!(log.stats().epochs, 3, "two for replay, and the newest");
}

#[test]
fn where_a_clock_was_set_a_commit_goes_on_in_another_entry_and_each_record_keeps_its_time() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    let timelines = [(1, 0), (1, 0), (1, 1_790_000_000_000_000), (2, 0)];
    let records: Vec<Record> = (0..)
        .zip(timelines)
        .map(|(id, (boot, start))| {
            let mut record = record(&stream("x"), id);
            record.received.timeline = Timeline { boot: BootId(boot), start: UnixMicros(start) };
            record
        })
        .collect();
    log.append(vec![Batch { stream: stream("x"), partition: PartitionId(0), records: records.clone() }]);
    let entries = log.sync().unwrap().groups.len();
    assert_eq!(entries, 3);
    drop(log);
    disk.crash(0);
    let (mut log, _) = open_simulated(&disk);
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!(lost, vec![]);
    let read: Vec<Record> =
        groups.iter().flat_map(|group| &group.batches).flat_map(|batch| batch.records.clone()).collect();
    assert_eq!(read, records);
}
