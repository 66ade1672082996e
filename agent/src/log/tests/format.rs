//! Bytes on disk: what a release has written opens for ever.
//!
//! `agent/testdata/log/v1-*` was written by the first release of the format: what the functions `encode_*` below returned, and an epoch with three
//! commits of 20 records each. `v2-*` is what they return since records have a timeline.

use std::{fs, path::PathBuf};

use bytes::Bytes;

use super::*;
use crate::log::{
    checkpoint::{Assembly, Checkpoint},
    entry::{EntryError, EntryKind},
};

const SEQ: EntrySeq = EntrySeq(0x0102_0304);

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/log").join(name)
}

fn compressions() -> [(&'static str, Compression); 3] {
    [("none", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)]
}

/// What version 2 says beside.
const TIMELINE: Timeline = Timeline { boot: BootId(0x0506_0708), start: UnixMicros(1_789_000_000_000_001) };

fn golden_batches_2() -> Vec<LogBatch> {
    let mut batches = golden_batches();
    let records = batches.iter_mut().flat_map(|batch| &mut batch.records);
    for (n, record) in (0..).zip(records) {
        record.received.timeline = TIMELINE;
        record.received.dates_event = n == 1;
    }
    batches
}

fn golden_batches() -> Vec<LogBatch> {
    let mut batches = Vec::new();
    for (name, partition, base_offset, records) in [("occupancy", 0, 7, 0..5), ("vehicle", 3, 1 << 40, 5..20)]
    {
        let stream = stream(name);
        let mut records: Vec<Record> = records.map(|id| record(&stream, id)).collect();
        records[1].headers = vec![RecordHeader { name: "wayside.retained".into(), value: "true".into() }];
        let partition = PartitionId(partition);
        batches.push(LogBatch { stream, partition, base_offset: Offset(base_offset), records });
    }
    batches
}

fn golden_checkpoint() -> Checkpoint {
    let mut offsets = NextOffsets::default();
    offsets.raise_floor(EntrySeq(3));
    offsets.set((stream("occupancy"), PartitionId(0)), Offset(7));
    offsets.set((stream("vehicle"), PartitionId(0)), Offset(0));
    offsets.set((stream("vehicle"), PartitionId(3)), Offset(1 << 40));
    Checkpoint { boot: 300, offsets, notes: NoteTable::default() }
}

fn encode_group(compression: Compression) -> Vec<u8> {
    let mut raw = Vec::new();
    group::encode(&golden_batches_2(), &mut raw);
    EntryCodec::new(compression).encode(EntryKind::Group, TIMELINE, &raw).seal(SEQ).to_vec()
}

/// An entry without compression.
fn encode_as(kind: EntryKind, timeline: Timeline, raw: &[u8]) -> Vec<u8> {
    EntryCodec::new(Compression::None).encode(kind, timeline, raw).seal(SEQ).to_vec()
}

fn encode_checkpoint() -> Vec<u8> {
    let parts = golden_checkpoint().encode();
    assert_eq!(parts.len(), 1);
    encode_as(EntryKind::Checkpoint, Timeline::default(), &parts[0])
}

fn golden_notes() -> Vec<Note> {
    let note = |source: &str, key: &[u8], value: Option<&[u8]>| {
        Note::new(source.into(), key, value.map(Box::from)).unwrap()
    };
    vec![
        note("devices", b"w\0client-1", Some(&[0, 1, 0xde, 0xad, 0xbe, 0xef])),
        note("devices", b"s\0client-2", None),
        note("http", &[0xff], Some(b"")),
    ]
}

fn encode_noted() -> Vec<u8> {
    let mut raw = notes::encode(&golden_notes());
    group::encode(&golden_batches_2(), &mut raw);
    encode_as(EntryKind::Noted, TIMELINE, &raw)
}

fn golden_noted_checkpoint() -> Checkpoint {
    let mut checkpoint = golden_checkpoint();
    golden_notes().into_iter().for_each(|note| assert!(checkpoint.notes.set(note)));
    checkpoint
}

fn encode_noted_checkpoint() -> Vec<u8> {
    let parts = golden_noted_checkpoint().encode();
    encode_as(EntryKind::Checkpoint, Timeline::default(), &parts[0])
}

/// The bodies of the entries in `v1-<name>` and `v2-<name>`, each with the timeline and the batches that it must have.
fn both(name: &str, expected: EntryKind) -> [(Timeline, Bytes, Vec<LogBatch>); 2] {
    [("v1", golden_batches()), ("v2", golden_batches_2())].map(|(version, batches)| {
        let bytes = fs::read(golden(&format!("{version}-{name}.bin"))).unwrap();
        let (kind, timeline, raw) = EntryCodec::new(Compression::None).decode(SEQ, bytes).unwrap();
        assert_eq!(kind, expected, "{version}-{name}");
        (timeline, raw, batches)
    })
}

#[test]
fn groups_with_notes_of_all_versions_open() {
    for (timeline, raw, batches) in both("noted", EntryKind::Noted) {
        let (notes, group) = notes::split(&raw).unwrap();
        assert_eq!(notes, golden_notes());
        assert_eq!(group::decode(&group, timeline, &mut Names::default()).unwrap(), batches);
    }
}

#[test]
fn checkpoints_with_notes_of_all_versions_open() {
    for (_, raw, _) in both("checkpoint-noted", EntryKind::Checkpoint) {
        assert_eq!(Assembly::default().push(&raw).unwrap(), Some(golden_noted_checkpoint()));
    }
}

fn golden_dropped() -> Vec<Dropped> {
    let element = |policy, device: Option<&str>, first, last, count| Dropped {
        stream: stream("vehicle"),
        partition: PartitionId(3),
        device: device.map(|id| DeviceId::new(id).unwrap()),
        policy,
        first: Offset(first),
        last: Offset(last),
        count,
    };
    vec![
        element(Policy::DropOldest, None, 5, 1 << 40, 1 << 39),
        element(Policy::LatestPerDevice, Some("device-1"), 7, 7, 1),
    ]
}

fn encode_compacted() -> Vec<u8> {
    let mut raw = Vec::new();
    dropped::encode(EntrySeq(300), &golden_dropped(), &golden_batches_2(), &mut raw);
    encode_as(EntryKind::Compacted, TIMELINE, &raw)
}

#[test]
fn compacted_groups_of_all_versions_open() {
    for (timeline, raw, batches) in both("compacted", EntryKind::Compacted) {
        let found = dropped::decode(&raw, timeline, &mut Names::default()).unwrap();
        assert_eq!(found.first, EntrySeq(300));
        assert_eq!((found.dropped, found.batches), (golden_dropped(), batches));
        assert_eq!(dropped::first(&raw), Some(EntrySeq(300)));
    }
}

#[test]
fn groups_of_all_versions_open() {
    for (name, _) in compressions() {
        for (timeline, raw, batches) in both(&format!("group-{name}"), EntryKind::Group) {
            assert_eq!(group::decode(&raw, timeline, &mut Names::default()).unwrap(), batches, "{name}");
        }
    }
}

#[test]
fn checkpoints_of_all_versions_open() {
    for (_, raw, _) in both("checkpoint", EntryKind::Checkpoint) {
        assert_eq!(Assembly::default().push(&raw).unwrap(), Some(golden_checkpoint()));
    }
}

#[test]
fn an_epoch_of_version_1_opens() {
    let dir = tempfile::tempdir().unwrap();
    let epoch = dir.path().join("e-0000000000000000");
    fs::create_dir(&epoch).unwrap();
    for name in ["conf", "db", "synced"] {
        fs::copy(golden("v1-epoch").join(name), epoch.join(name)).unwrap();
    }
    let (mut log, recovery) = open_sled(dir.path());
    assert!(!recovery.skipped);
    assert_eq!((recovery.end, recovery.boot), (EntrySeq(4), 2));
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!((ids(&groups), lost), ((0..60).collect(), vec![]));
}

#[test]
fn version_2_is_still_what_is_written() {
    assert_eq!(encode_group(Compression::None), fs::read(golden("v2-group-none.bin")).unwrap());
    assert_eq!(encode_compacted(), fs::read(golden("v2-compacted.bin")).unwrap());
    assert_eq!(encode_noted(), fs::read(golden("v2-noted.bin")).unwrap());
    assert_eq!(encode_checkpoint(), fs::read(golden("v2-checkpoint.bin")).unwrap());
    assert_eq!(encode_noted_checkpoint(), fs::read(golden("v2-checkpoint-noted.bin")).unwrap());
}

#[test]
fn any_flipped_bit_is_found() {
    let whole = encode_group(Compression::Zstd);
    let mut codec = EntryCodec::new(Compression::None);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(codec.decode(SEQ, flipped), Err(EntryError::Checksum), "bit {bit}");
    }
    for size in 0..whole.len() {
        assert!(codec.decode(SEQ, whole[..size].to_vec()).is_err(), "cut to {size}");
    }
    assert_eq!(codec.decode(EntrySeq(9), whole), Err(EntryError::Misplaced(SEQ)));
}

proptest::proptest! {
    #[test]
    fn bodies_of_any_bytes_never_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let raw = bytes::Bytes::from(body);
        let _ = group::decode(&raw, TIMELINE, &mut Names::default());
        let _ = group::decode_ranges(&raw, &mut Names::default());
        let _ = dropped::decode(&raw, TIMELINE, &mut Names::default());
        let _ = notes::split(&raw);
        let _ = Assembly::default().push(&raw);
    }

    #[test]
    fn damaged_bodies_never_panic(bit in 0_usize..3000 * 8, cut in 0_usize..3000) {
        let mut raw = Vec::new();
        group::encode(&golden_batches(), &mut raw);
        let size = raw.len();
        raw[bit / 8 % size] ^= 1 << (bit % 8);
        raw.truncate(size - cut % size);
        let _ = group::decode(&raw.into(), TIMELINE, &mut Names::default());
    }
}
