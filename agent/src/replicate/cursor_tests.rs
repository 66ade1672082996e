//! Tests of the cursor's file: what a power cut or a flipped bit leaves is never a wrong cursor, only an older one.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::replicate::tests::stream;

fn cursor(generation: u64, next: u64, lanes: &[(&str, i32, i64)]) -> Cursor {
    let lanes = lanes.iter().map(|&(name, p, offset)| ((stream(name), PartitionId(p)), Offset(offset)));
    Cursor {
        generation,
        next: EntrySeq(next),
        begun: EntrySeq(next + 9),
        acknowledged: lanes.collect(),
        ..Cursor::default()
    }
}

/// Of the first version, and of this one; both must load for ever.
const GOLDEN_V1: &[u8] = include_bytes!("testdata/cursor-v1.bin");
const GOLDEN: &[u8] = include_bytes!("testdata/cursor-v2.bin");

fn golden() -> Cursor {
    cursor(7, 4_711, &[("dead-letter", 0, 1), ("occupancy", 0, 9_000), ("occupancy", 3, 1 << 40)])
}

fn golden_with_intent() -> Cursor {
    let intent = Intent {
        next: EntrySeq(4_720),
        acknowledged: cursor(0, 0, &[("dead-letter", 0, 2), ("vehicle", 1, 1)]).acknowledged,
        last: Some(LastRecord {
            topic: "prod.vehicle".into(),
            partition: PartitionId(1),
            kafka_offset: 1 << 33,
            offset: Some(Offset(0)),
        }),
    };
    let [log, next_log] = [0x0123_4567_89ab_cdef, 0xfedc].map(|number| NonZeroU64::new(number).map(LogId));
    Cursor { log, next_log, transaction: 42, intent: Some(intent), ..golden() }
}

#[test]
fn golden_cursors_still_load() {
    assert_eq!(Cursor::decode(GOLDEN_V1), Some(golden()));
    assert_eq!(Cursor::decode(GOLDEN), Some(golden_with_intent()));
}

#[test]
fn encoding_is_the_golden_one() {
    assert_eq!(golden_with_intent().encode(), GOLDEN);
}

#[test]
fn a_missing_file_is_no_cursor() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Cursor::load(&dir.path().join(FILE_NAME)).unwrap(), None);
    assert_eq!(CursorFile::open(dir.path()).unwrap().1, None);
}

#[test]
fn the_last_write_is_what_a_reopen_finds() {
    let dir = tempfile::tempdir().unwrap();
    for n in 1..=5 {
        let (mut file, _) = CursorFile::open(dir.path()).unwrap();
        let mut written = cursor(0, n, &[("occupancy", 1, 10)]);
        file.write(&mut written).unwrap();
        assert_eq!(written.generation, n);
        assert_eq!(Cursor::load(&dir.path().join(FILE_NAME)).unwrap(), Some(written));
    }
}

#[test]
fn a_torn_slot_falls_back_to_the_one_before_and_is_written_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let (mut file, _) = CursorFile::open(dir.path()).unwrap();
    let mut cursors = [cursor(0, 1, &[]), cursor(0, 2, &[])];
    cursors.iter_mut().for_each(|c| file.write(c).unwrap());
    let newest = OpenOptions::new().write(true).open(&path).unwrap();
    newest.write_all_at(&[0xff; 20], slot_offset(1)).unwrap();

    let (mut file, found) = CursorFile::open(dir.path()).unwrap();
    assert_eq!(found.as_ref(), Some(&cursors[0]));
    // The intact slot is not the one that the next write risks.
    assert_eq!(file.write_to, 1);
    file.write(&mut cursor(0, 3, &[])).unwrap();
    assert_eq!(Cursor::load(&path).unwrap().unwrap().next, EntrySeq(3));
}

#[test]
fn two_damaged_slots_are_no_cursor() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE_NAME), vec![0xa5; 2 * SLOT_BYTES]).unwrap();
    assert_eq!(CursorFile::open(dir.path()).unwrap().1, None);
}

#[test]
fn writes_leave_the_size_of_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = CursorFile::open(dir.path()).unwrap();
    for n in 0..4 {
        file.write(&mut cursor(0, n, &[("occupancy", 0, 5)])).unwrap();
        assert_eq!(file.file.metadata().unwrap().len(), slot_offset(2));
    }
}

#[test]
fn more_partitions_than_a_slot_holds_leave_their_offsets_out() {
    let mut many = cursor(1, 5, &[]);
    for p in 0..6_000 {
        many.acknowledged.insert((stream("occupancy"), PartitionId(p)), Offset(1));
    }
    let slot = many.encode();
    assert!(slot.len() <= SLOT_BYTES);
    assert_eq!(Cursor::decode(&slot), Some(cursor(1, 5, &[])));
}

prop_compose! {
    fn any_offsets()(
        lanes in prop::collection::btree_map(("[a-z.-]{1,20}", 0..64i32), 0..i64::MAX, 0..20),
    ) -> Acknowledged {
        lanes.into_iter().map(|((name, p), o)| ((stream(&name), PartitionId(p)), Offset(o))).collect()
    }
}

prop_compose! {
    fn any_last()(topic in "[a-z.]{1,249}", partition: i32, kafka_offset: i64, offset in prop::option::of(0..i64::MAX)) -> LastRecord {
        LastRecord { topic, partition: PartitionId(partition), kafka_offset, offset: offset.map(Offset) }
    }
}

prop_compose! {
    fn any_intent()(next: u64, acknowledged in any_offsets(), last in prop::option::of(any_last())) -> Intent {
        Intent { next: EntrySeq(next), acknowledged, last }
    }
}

prop_compose! {
    fn any_cursor()(
        generation: u64,
        next: u64,
        acknowledged in any_offsets(),
        logs: [u64; 2],
        transaction: u64,
        intent in prop::option::of(any_intent()),
    ) -> Cursor {
        let [log, next_log] = logs.map(|log| NonZeroU64::new(log).map(LogId));
        let (next, begun) = (EntrySeq(next), EntrySeq(next));
        Cursor { generation, next, begun, acknowledged, log, next_log, transaction, intent }
    }
}

proptest! {
    #[test]
    fn any_cursor_comes_back_from_its_slot(cursor in any_cursor()) {
        let mut slot = cursor.encode();
        // What is left behind it of a longer one does not matter.
        slot.extend_from_slice(&[0x55; 100]);
        prop_assert_eq!(Cursor::decode(&slot), Some(cursor));
    }

    #[test]
    fn a_flipped_bit_is_never_another_cursor(cursor in any_cursor(), at: prop::sample::Index, bit in 0..8u32) {
        let mut slot = cursor.encode();
        let at = at.index(slot.len());
        slot[at] ^= 1 << bit;
        prop_assert_eq!(Cursor::decode(&slot), None);
    }

    #[test]
    fn any_bytes_decode_without_a_panic(slot in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(Cursor::decode(&slot), None);
    }

    /// The write of the newest cursor is torn at any byte, over what the slot held before.
    #[test]
    fn a_torn_write_leaves_the_cursor_before_or_the_new_one(
        cursors in prop::collection::vec(any_cursor(), 1..5),
        torn_at: prop::sample::Index,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let (mut file, _) = CursorFile::open(dir.path()).unwrap();
        let mut before = None;
        let mut image = fs::read(&path).unwrap();
        let mut newest = None;
        for mut cursor in cursors {
            before = newest;
            image = fs::read(&path).unwrap();
            file.write(&mut cursor).unwrap();
            newest = Some(cursor);
        }
        let written = fs::read(&path).unwrap();
        let slot = (1 - file.write_to) * SLOT_BYTES;
        let newest = newest.unwrap();
        let cut = slot + torn_at.index(newest.encode().len() + 1);
        image[slot..cut].copy_from_slice(&written[slot..cut]);
        fs::write(&path, &image).unwrap();
        let found = Cursor::load(&path).unwrap();
        prop_assert!(found == before || found.as_ref() == Some(&newest), "{:?}", found);
        if cut == slot + newest.encode().len() {
            prop_assert_eq!(found, Some(newest));
        }
    }
}

#[test]
fn a_cursor_that_cannot_be_opened_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(CursorFile::open(&dir.path().join("missing")).is_err());
}
