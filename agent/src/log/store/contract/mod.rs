//! What every engine must do, run on each.

mod damage;
mod model;

use super::{
    ENTRY_BYTES_MAX, EntrySeq, EpochId, EpochStore, StoreError, StoredEntry,
    disk::{DiskOptions, DiskStore},
    simulated::SimulatedDisk,
};
use crate::config::Engine;

/// Opens the engine on the same disk again and again; the store opened before is dropped first.
type Reopen<'a> = &'a dyn Fn() -> Box<dyn EpochStore>;

fn on_each_engine(check: impl Fn(Reopen<'_>)) {
    let disk = SimulatedDisk::new();
    check(&|| Box::new(disk.open()));
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        check(&|| Box::new(DiskStore::open(dir.path(), options_of(engine)).unwrap()));
    }
}

/// What can keep an epoch on a disk.
pub(in crate::log) const ENGINES: [Engine; 2] = [Engine::Sled, Engine::Segment];

/// No demands on the machine's free space.
pub(in crate::log) fn test_options() -> DiskOptions {
    DiskOptions { reserve_bytes: 0, ballast_bytes: 0, ..DiskOptions::default() }
}

pub(in crate::log) fn options_of(engine: Engine) -> DiskOptions {
    DiskOptions { engine, ..test_options() }
}

fn id(seq: u64) -> EpochId {
    EpochId(EntrySeq(seq))
}

/// Bytes that differ by entry and do not compress.
fn entry(seq: u64, size: usize) -> Vec<u8> {
    let mut state = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

fn write(store: &mut dyn EpochStore, seqs: std::ops::Range<u64>) {
    for seq in seqs {
        store.append(EntrySeq(seq), &entry(seq, 200)).unwrap();
    }
}

/// Writes synced epochs of 20 entries each; the last one stays open.
fn write_epochs<const N: usize>(store: &mut dyn EpochStore, firsts: [u64; N]) {
    for first in firsts {
        store.create(id(first)).unwrap();
        write(store, first..first + 20);
        store.sync().unwrap();
    }
}

fn read_all(store: &mut dyn EpochStore, epoch: EpochId, from: u64) -> Vec<StoredEntry> {
    let mut all: Vec<StoredEntry> = Vec::new();
    let mut next = EntrySeq(from);
    loop {
        let read = store.read(epoch, next, 1000).unwrap();
        let Some(last) = read.last() else { return all };
        assert!(read.iter().all(|e| e.seq >= next), "entries from `from` on");
        next = last.seq.next();
        all.extend(read);
    }
}

fn assert_holds(store: &mut dyn EpochStore, epoch: EpochId, seqs: std::ops::Range<u64>) {
    let expected: Vec<StoredEntry> =
        seqs.clone().map(|seq| StoredEntry { seq: EntrySeq(seq), bytes: entry(seq, 200) }).collect();
    assert_eq!(read_all(store, epoch, seqs.start), expected);
}

#[test]
fn synced_entries_survive_a_reopen_in_order() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        assert_eq!(store.epochs().unwrap(), []);
        store.create(id(5)).unwrap();
        write(store.as_mut(), 5..60);
        store.sync().unwrap();
        write(store.as_mut(), 60..75);
        store.sync().unwrap();
        drop(store);
        let mut store = reopen();
        assert_eq!(store.epochs().unwrap(), [id(5)]);
        assert_holds(store.as_mut(), id(5), 5..75);
        assert_holds(store.as_mut(), id(5), 33..75);
        assert_eq!(store.read(id(5), EntrySeq(75), 1000).unwrap(), []);
        assert!(store.size_bytes() > 0);
    });
}

#[test]
fn the_open_epoch_reads_back_before_it_is_synced() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        store.create(id(0)).unwrap();
        write(store.as_mut(), 0..25);
        assert_holds(store.as_mut(), id(0), 0..25);
        assert_holds(store.as_mut(), id(0), 9..25);
    });
}

#[test]
fn a_read_returns_one_entry_even_if_it_is_over_the_limit() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        store.create(id(0)).unwrap();
        write(store.as_mut(), 0..30);
        store.sync().unwrap();
        store.create(id(30)).unwrap();
        for epoch in [0, 30] {
            if epoch == 30 {
                write(store.as_mut(), 30..60);
            }
            assert_eq!(store.read(id(epoch), EntrySeq(epoch), 1).unwrap().len(), 1);
            assert_eq!(store.read(id(epoch), EntrySeq(epoch + 3), 401).unwrap().len(), 3);
        }
    });
}

#[test]
fn an_epoch_that_was_never_synced_is_gone_after_a_reopen_and_its_id_is_free() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        store.create(id(0)).unwrap();
        write(store.as_mut(), 0..3);
        drop(store);
        let mut store = reopen();
        assert_eq!(store.epochs().unwrap(), []);
        store.create(id(0)).unwrap();
        write(store.as_mut(), 0..4);
        store.sync().unwrap();
        drop(store);
        assert_holds(reopen().as_mut(), id(0), 0..4);
    });
}

#[test]
fn an_epoch_that_was_synced_is_not_created_over() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        store.create(id(0)).unwrap();
        write(store.as_mut(), 0..3);
        store.sync().unwrap();
        assert!(store.create(id(0)).is_err());
        assert_holds(store.as_mut(), id(0), 0..3);
    });
}

#[test]
fn old_epochs_are_read_while_a_new_one_is_written() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        write_epochs(store.as_mut(), [0, 20, 40]);
        assert_eq!(store.epochs().unwrap(), [id(0), id(20), id(40)]);
        assert_holds(store.as_mut(), id(0), 0..20);
        write(store.as_mut(), 60..70);
        assert_holds(store.as_mut(), id(20), 20..40);
        store.sync().unwrap();
        assert_holds(store.as_mut(), id(40), 40..70);
    });
}

#[test]
fn what_is_written_again_takes_the_place_of_its_epochs_when_it_is_finished_and_not_before() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        for first in [0, 10, 20, 30] {
            store.create(id(first)).unwrap();
            write(store.as_mut(), first..first + 10);
            store.sync().unwrap();
        }
        store.begin_rewrite(id(10)).unwrap();
        store.append_rewrite(EntrySeq(10), b"given up").unwrap();
        store.begin_rewrite(id(10)).unwrap();
        store.append_rewrite(EntrySeq(13), &entry(13, 200)).unwrap();
        assert_holds(store.as_mut(), id(10), 10..20);
        store.append_rewrite(EntrySeq(29), &entry(29, 200)).unwrap();
        // The epoch open for writing goes on beside it.
        write(store.as_mut(), 40..41);
        store.sync().unwrap();
        store.finish_rewrite(id(20)).unwrap();
        for _ in 0..2 {
            assert_eq!(store.epochs().unwrap(), [id(0), id(10), id(30)]);
            let seqs: Vec<u64> = read_all(store.as_mut(), id(10), 10).iter().map(|e| e.seq.0).collect();
            assert_eq!(seqs, [13, 29]);
            assert_holds(store.as_mut(), id(0), 0..10);
            assert_holds(store.as_mut(), id(30), 30..41);
            store.begin_rewrite(id(0)).unwrap();
            store.append_rewrite(EntrySeq(0), b"not finished").unwrap();
            drop(store);
            store = reopen();
        }
    });
}

#[test]
fn a_deleted_epoch_is_gone_for_good_and_the_others_stay() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        write_epochs(store.as_mut(), [0, 20]);
        assert_holds(store.as_mut(), id(0), 0..20);
        store.delete(id(0)).unwrap();
        assert_eq!(store.epochs().unwrap(), [id(20)]);
        write(store.as_mut(), 40..45);
        store.sync().unwrap();
        drop(store);
        let mut store = reopen();
        assert_eq!(store.epochs().unwrap(), [id(20)]);
        assert_holds(store.as_mut(), id(20), 20..45);
    });
}

#[test]
fn a_quarantined_epoch_is_not_listed_but_remembered() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        write_epochs(store.as_mut(), [0, 20]);
        store.quarantine(id(20)).unwrap();
        assert_eq!(store.epochs().unwrap(), [id(0)]);
        assert!(store.append(EntrySeq(40), b"x").is_err(), "the open epoch was put aside");
        drop(store);
        let mut store = reopen();
        assert_eq!(store.epochs().unwrap(), [id(0)]);
        assert_eq!(store.quarantined().unwrap(), [id(20)]);
    });
}

#[test]
fn without_an_open_epoch_nothing_is_appended_or_synced() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        assert!(store.append(EntrySeq(0), b"x").is_err());
        assert!(matches!(store.sync(), Err(StoreError::Io { .. })));
        assert!(!store.wants_roll());
    });
}

#[test]
fn a_full_epoch_wants_to_roll_and_keeps_the_largest_entries() {
    on_each_engine(|reopen| {
        let mut store = reopen();
        store.create(id(0)).unwrap();
        let mut count = 0;
        while !store.wants_roll() {
            store.append(EntrySeq(count), &entry(count, ENTRY_BYTES_MAX)).unwrap();
            count += 1;
        }
        store.sync().unwrap();
        assert!((80..=90).contains(&count), "8 MiB of entries of 96 KiB, not {count}");
        drop(store);
        let mut store = reopen();
        let read = read_all(store.as_mut(), id(0), 0);
        assert_eq!(read.len() as u64, count);
        assert!(read.iter().all(|e| e.bytes == entry(e.seq.0, ENTRY_BYTES_MAX)));
    });
}
