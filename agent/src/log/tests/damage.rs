//! Damage: whatever the disk did, the log opens, reads what is whole, tells what is not, and uses no number twice.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use super::*;
use crate::{log::store::disk::written_by, testing::without_privileges};

/// A sled log of three epochs with 10 entries of 20 records each.
pub(super) fn three_epochs(dir: &Path) -> Vec<EpochId> {
    three_epochs_of(dir, Engine::Sled)
}

/// The same, kept by `engine`.
pub(super) fn three_epochs_of(dir: &Path, engine: Engine) -> Vec<EpochId> {
    for start in 0..3_u64 {
        let (mut log, _) = open_disk(dir, engine);
        for n in 0..10 {
            let first = start * 200 + n * 20;
            commit(&mut log, first..first + 20);
        }
    }
    inspect::list(dir).unwrap().epochs
}

/// The file of its entries.
pub(super) fn db(dir: &Path, epoch: EpochId) -> PathBuf {
    written_by(&dir.join(epoch.to_string())).unwrap().1
}

/// A directory with the same epochs.
pub(super) fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for epoch in inspect::list(dir).unwrap().epochs {
        let to = copy.path().join(epoch.to_string());
        fs::create_dir(&to).unwrap();
        let files = fs::read_dir(dir.join(epoch.to_string())).unwrap().map(|entry| entry.unwrap().path());
        for file in files.filter(|file| file.is_file()) {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
    copy
}

/// Flips a bit of a file.
pub(super) fn flip(path: &Path, at: u64) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

/// Opens the damaged log, checks that what it reads is right and that it goes on; returns how many records were read.
fn check_goes_on(dir: &Path, used: EntrySeq) -> usize {
    check_goes_on_with(Engine::Sled, dir, used)
}

fn check_goes_on_with(engine: Engine, dir: &Path, used: EntrySeq) -> usize {
    let (mut log, recovery) = open_disk(dir, engine);
    let (before, lost) = read_all(&mut log, EntrySeq(0));
    let before = ids(&before);
    assert!(before.is_sorted_by(|a, b| a < b), "no record twice");
    // A checkpoint has no records.
    assert!(before.len() == 600 || !lost.is_empty() || log.end() < used, "what is missing is told");
    let end = log.end();
    if recovery.skipped {
        assert!(end >= used, "no sequence number is used twice");
    }
    commit(&mut log, 1000..1010);
    let (after, _) = read_all(&mut log, end);
    assert_eq!(ids(&after), (1000..1010).collect::<Vec<_>>());
    if recovery.skipped {
        assert!(after[0].batches[0].base_offset >= Offset(600), "no offset is used twice");
    }
    drop(log);
    let (mut log, recovery) = open_disk(dir, engine);
    assert!(!recovery.skipped, "one start is enough to be sound again");
    assert_eq!(ids(&read_all(&mut log, end).0), (1000..1010).collect::<Vec<_>>());
    before.len()
}

#[test]
fn an_epoch_whose_db_is_gone_is_put_aside_wherever_it_is() {
    for engine in ENGINES {
        for index in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let epochs = three_epochs_of(dir.path(), engine);
            fs::remove_file(db(dir.path(), epochs[index])).unwrap();
            assert_eq!(check_goes_on_with(engine, dir.path(), EntrySeq(33)), 400);
            assert!(inspect::list(dir.path()).unwrap().quarantined.values().eq([&epochs[index]]));
        }
    }
}

#[test]
fn a_truncated_db_is_a_reported_hole() {
    for engine in ENGINES {
        for index in 0..2 {
            for share in [0, 1, 30, 60, 90] {
                let dir = tempfile::tempdir().unwrap();
                let epochs = three_epochs_of(dir.path(), engine);
                let file = OpenOptions::new().write(true).open(db(dir.path(), epochs[index])).unwrap();
                file.set_len(file.metadata().unwrap().len() * share / 100).unwrap();
                drop(file);
                let read = check_goes_on_with(engine, dir.path(), EntrySeq(33));
                assert!((400..=600).contains(&read), "{read} records, truncated to {share} %");
            }
        }
    }
}

#[test]
fn a_log_that_lost_its_end_goes_on_behind_the_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let epochs = three_epochs(dir.path());
    let file = OpenOptions::new().write(true).open(db(dir.path(), epochs[2])).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    drop(file);
    let (log, recovery) = open_sled(dir.path());
    assert!(log.end() < EntrySeq(33) && !recovery.skipped, "sled says nothing of it");
    drop(log);
    let store = DiskStore::open(dir.path(), test_options()).unwrap();
    let options = LogOptions { next_seq_min: EntrySeq(33), ..LogOptions::default() };
    let (mut log, recovery) = Log::open(Box::new(store), options, metrics()).unwrap();
    assert!(recovery.skipped);
    assert!(log.end() >= EntrySeq(33));
    let committed = commit(&mut log, 1000..1001);
    assert!(committed[0].seq >= EntrySeq(33));
    assert!(committed[0].batches[0].base_offset >= Offset(600));
}

#[test]
fn a_log_that_gives_out_offsets_below_the_cursor_skips_ahead() {
    let key = |partition| (stream("vehicle"), PartitionId(partition));
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    log.append(vec![batch("vehicle", 1, 0..5)]);
    log.sync().unwrap();
    drop(log);
    // The newest epoch has no record of partition 1, and its checkpoint knows it all the same.
    let (mut log, _) = open_simulated(&disk);
    commit(&mut log, 5..15);
    log.trim(log.end(), Monotonic::default()).unwrap();
    drop(log);
    let open = |offsets_min| {
        let options = LogOptions { offsets_min, ..LogOptions::default() };
        Log::open(Box::new(disk.open()), options, metrics()).unwrap()
    };
    let whole = BTreeMap::from([(key(0), Offset(10)), (key(1), Offset(5))]);
    assert!(!open(whole).1.skipped);
    for (partition, used) in [(0, 11), (1, 6), (2, 1), (0, 1_000_000_000)] {
        let offsets_min = BTreeMap::from([(key(partition), Offset(used))]);
        let (log, recovery) = open(offsets_min);
        assert!(recovery.skipped, "partition {partition} had {used} records");
        assert!(log.end() >= EntrySeq(2 + EPOCH_ENTRIES_MAX));
        assert!(log.offsets.next(&key(partition)) >= Offset(used));
        assert!(log.offsets.next(&key(7)) >= Offset(used), "no partition goes on below");
    }
    let offsets_min = BTreeMap::from([(key(0), Offset(11))]);
    let (mut log, _) = open(offsets_min.clone());
    commit(&mut log, 15..20);
    drop(log);
    assert!(!open(offsets_min).1.skipped, "one commit is enough to be sound again");
}

#[test]
fn an_epoch_whose_marker_cannot_be_looked_at_stays() {
    for engine in ENGINES {
        for index in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let epochs = three_epochs_of(dir.path(), engine);
            let marker = dir.path().join(epochs[index].to_string()).join("synced");
            fs::remove_file(&marker).unwrap();
            // A link to itself: the system answers with an error, not with a no.
            symlink(&marker, &marker).unwrap();
            assert_eq!(check_goes_on_with(engine, dir.path(), EntrySeq(33)), 600);
        }
    }
}

#[test]
fn an_old_epoch_that_lost_its_marker_is_put_aside_and_told() {
    for engine in ENGINES {
        for index in 0..2 {
            let dir = tempfile::tempdir().unwrap();
            let epochs = three_epochs_of(dir.path(), engine);
            fs::remove_file(dir.path().join(epochs[index].to_string()).join("synced")).unwrap();
            assert_eq!(check_goes_on_with(engine, dir.path(), EntrySeq(33)), 400);
            assert!(inspect::list(dir.path()).unwrap().quarantined.values().eq([&epochs[index]]));
        }
    }
}

#[test]
fn what_was_trimmed_is_not_lost_and_what_was_put_aside_is_lost_and_counted_once() {
    let disk = SimulatedDisk::new();
    for start in 0..4 {
        let (mut log, _) = open_simulated(&disk);
        commit(&mut log, start..start + 1);
    }
    let (mut log, _) = open_simulated(&disk);
    assert_eq!(log.epochs, [0, 2, 4, 6].map(|id| EpochId(EntrySeq(id))));
    log.trim(EntrySeq(2), Monotonic::default()).unwrap();
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!((ids(&groups), lost), (vec![1, 2, 3], vec![]));
    log.store.quarantine(EpochId(EntrySeq(2))).unwrap();
    drop(log);
    let (mut log, _) = open_simulated(&disk);
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    let ranges: Vec<_> = lost.iter().map(|l| (l.first.0, l.end.0)).collect();
    assert_eq!((ids(&groups), ranges), (vec![2, 3], vec![(2, 4)]));
    assert_eq!(log.metrics.lost_entries.get(), 2);
    // Told again to a reader that goes back, and counted once.
    let (_, again) = read_all(&mut log, EntrySeq(0));
    assert_eq!((again, log.metrics.lost_entries.get()), (lost, 2));
}

#[test]
fn a_read_over_a_hole_says_what_the_log_had_handed_out_behind_it() {
    let disk = SimulatedDisk::new();
    for start in 0..3 {
        let (mut log, _) = open_simulated(&disk);
        commit(&mut log, start..start + 1);
    }
    let (mut log, _) = open_simulated(&disk);
    let handed_out = |outcome: &ReadOutcome| -> Vec<_> {
        outcome.checkpoints.iter().map(|c| (c.seq.0, c.next.values().map(|next| next.0).sum())).collect()
    };
    assert_eq!(handed_out(&log.read(EntrySeq(0), usize::MAX).unwrap()), [(0, 0), (2, 1), (4, 2)]);
    // The end of the middle epoch and all of the last.
    log.store.quarantine(EpochId(EntrySeq(4))).unwrap();
    log.epochs.pop();
    let outcome = log.read(EntrySeq(3), usize::MAX).unwrap();
    assert_eq!((outcome.lost.len(), handed_out(&outcome)), (1, vec![(6, 3)]), "asked at its end");
}

#[test]
fn flipped_bits_cost_what_they_hit() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let epochs = three_epochs_of(dir.path(), engine);
        // Epoch and place in its file, in percent: header of the segment, entries, tail.
        for (index, percent) in [(0, 0), (0, 20), (0, 50), (1, 80), (1, 99), (2, 1), (2, 50), (2, 90)] {
            let copy = copy_of(dir.path());
            let file = db(copy.path(), epochs[index]);
            let at = file.metadata().unwrap().len() * percent / 100;
            flip(&file, at);
            // An entry, and where it is a checkpoint nothing else.
            let read = check_goes_on_with(engine, copy.path(), EntrySeq(33));
            assert!(read >= 580, "{read} records, bit at {at} of epoch {index}");
        }
    }
}

#[test]
fn half_a_snapshot_of_sled_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let epochs = three_epochs(dir.path());
    for epoch in &epochs {
        let path = dir.path().join(epoch.to_string());
        fs::write(path.join("snap.7FFFFFFFFFFFFFFF.generating"), b"half").unwrap();
        fs::write(path.join("snap.7FFFFFFFFFFFFFFE"), b"half a snapshot that was renamed").unwrap();
    }
    assert_eq!(check_goes_on(dir.path(), EntrySeq(33)), 600);
}

#[test]
fn a_missing_conf_of_sled_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for epoch in three_epochs(dir.path()) {
        fs::remove_file(dir.path().join(epoch.to_string()).join("conf")).unwrap();
    }
    assert_eq!(check_goes_on(dir.path(), EntrySeq(33)), 600);
}

#[test]
fn leftovers_of_a_crash_are_cleaned_up_and_foreign_files_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path());
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("del-0000000000000005/blobs")).unwrap();
    fs::write(path("del-0000000000000005/db"), b"x").unwrap();
    fs::create_dir(path("e-00000000000000ff")).unwrap();
    fs::write(path("e-0000000000000100"), b"a file under an epoch's name").unwrap();
    fs::create_dir(path("e-xyz")).unwrap();
    fs::write(path("cursor"), b"somebody else's").unwrap();
    let (log, recovery) = open_sled(dir.path());
    assert_eq!(recovery.epochs, 3);
    drop(log);
    assert!(!path("del-0000000000000005").exists());
    assert!(!path("e-00000000000000ff").exists(), "an epoch that was never synced");
    assert!(path("bad-0000000000000100").exists());
    assert!(path("e-xyz").exists() && path("cursor").exists());
}

#[test]
fn a_marked_epoch_without_anything_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path());
    fs::create_dir(dir.path().join("e-0000000000000030")).unwrap();
    File::create(dir.path().join("e-0000000000000030/synced")).unwrap();
    let (log, recovery) = open_sled(dir.path());
    assert_eq!(recovery.quarantined, [EpochId(EntrySeq(0x30))]);
    assert_eq!(log.end(), EntrySeq(0x30 + EPOCH_ENTRIES_MAX));
}

#[test]
fn a_data_directory_is_private_and_of_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/log");
    let store = DiskStore::open(&path, test_options()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let second = DiskStore::open(&path, test_options()).unwrap_err();
    assert!(second.to_string().contains("in use by another agent"), "{second}");
    drop(store);
    DiskStore::open(&path, test_options()).unwrap();
}

#[test]
fn a_data_directory_of_another_user_is_refused_with_its_owner() {
    without_privileges(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        drop(DiskStore::open(&path, test_options()).unwrap());
        let us = rustix::process::geteuid().as_raw();
        // Closed to us too, as it is to every user but its owner.
        for (closed, what) in [(path.join("lock"), path.join("lock")), (path.clone(), path.clone())] {
            let open = fs::metadata(&closed).unwrap().permissions();
            fs::set_permissions(&closed, Permissions::from_mode(0o0)).unwrap();
            let said = DiskStore::open(&path, test_options()).unwrap_err().to_string();
            fs::set_permissions(&closed, open).unwrap();
            let expected = format!(
                "data directory {}: no permission for user {us}: {} belongs to user {us}, mode 0: run",
                path.display(),
                what.display()
            );
            assert!(said.starts_with(&expected), "{said}");
        }
        DiskStore::open(&path, test_options()).unwrap();
    });
}

#[test]
fn a_damaged_entry_is_lost_alone_and_told_once() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    for n in 0..10 {
        commit(&mut log, n..n + 1);
    }
    assert!(disk.flip_bit(EntrySeq(4), 200));
    assert!(disk.remove_entry(EntrySeq(6)));
    for _ in 0..2 {
        let (groups, lost) = read_all(&mut log, EntrySeq(0));
        assert_eq!(ids(&groups), [0, 1, 2, 4, 6, 7, 8, 9]);
        let ranges: Vec<_> = lost.iter().map(|l| (l.first.0, l.end.0)).collect();
        assert_eq!(ranges, [(4, 5), (6, 7)]);
    }
    assert_eq!(log.metrics.lost_entries.get(), 2);
    assert_eq!(log.metrics.damaged_entries.get(), 1);
}

#[test]
fn a_damaged_newest_epoch_makes_the_next_start_skip_ahead() {
    // Checkpoint, middle, last.
    for seq in [0, 3, 5] {
        let disk = SimulatedDisk::new();
        let (mut log, _) = open_simulated(&disk);
        for n in 0..5 {
            commit(&mut log, n..n + 1);
        }
        drop(log);
        assert!(disk.flip_bit(EntrySeq(seq), 77));
        let (mut log, recovery) = open_simulated(&disk);
        assert!(recovery.skipped);
        assert_eq!((recovery.damaged_entries, recovery.torn_tail), (1, seq == 5));
        assert_eq!(recovery.end, EntrySeq(EPOCH_ENTRIES_MAX));
        let committed = commit(&mut log, 100..101);
        assert!(committed[0].batches[0].base_offset >= Offset(5));
        let (groups, lost) = read_all(&mut log, EntrySeq(0));
        assert_eq!(ids(&groups).last(), Some(&100));
        assert!(!lost.is_empty());
    }
}

#[test]
fn a_flipped_bit_in_the_last_entry_is_noticed_and_a_torn_one_is_not() {
    let whole = tempfile::tempdir().unwrap();
    let (mut log, _) = open_sled(whole.path());
    commit(&mut log, 0..20);
    // Of several sectors.
    let last = commit(&mut log, 20..420)[0].seq;
    drop(log);
    for torn in [false, true] {
        let dir = copy_of(whole.path());
        let path = db(dir.path(), EpochId(EntrySeq(0)));
        let mut bytes = fs::read(&path).unwrap();
        let key = [&[8][..], &last.0.to_be_bytes()].concat();
        let at = bytes.windows(9).position(|window| window == key).unwrap();
        if torn {
            bytes[(at + 50).next_multiple_of(512)..].fill(0);
        } else {
            bytes[at + 50] ^= 1;
        }
        fs::write(&path, bytes).unwrap();
        let (mut log, recovery) = open_sled(dir.path());
        assert_eq!(recovery.skipped, !torn);
        assert_eq!(read_all(&mut log, EntrySeq(0)).1.is_empty(), torn);
    }
}

/// Two partitions in turn, five entries behind the checkpoint.
fn two_partitions(disk: &SimulatedDisk) {
    let (mut log, _) = open_simulated(disk);
    for n in 0..5 {
        log.append(vec![batch("vehicle", i32::try_from(n % 2).unwrap(), n..n + 1)]);
        log.sync().unwrap();
    }
}

#[test]
fn a_partition_with_records_behind_the_damage_goes_on_where_it_was_and_its_loss_is_counted() {
    let disk = SimulatedDisk::new();
    two_partitions(&disk);
    // Partition 0 alone has a record behind it.
    assert!(disk.remove_entry(EntrySeq(4)));
    let (log, recovery) = open_simulated(&disk);
    assert!(recovery.skipped);
    let next = |partition| log.next_offset(stream("vehicle"), PartitionId(partition));
    assert_eq!(next(0), Offset(3));
    assert!(next(1) >= Offset(i64::try_from(EPOCH_ENTRIES_MAX).unwrap()), "nobody knows");
}

#[test]
fn damage_that_the_cursor_is_past_skips_nothing() {
    let disk = SimulatedDisk::new();
    two_partitions(&disk);
    assert!(disk.remove_entry(EntrySeq(3)));
    let key = |partition| (stream("vehicle"), PartitionId(partition));
    let open = |next_seq_min, offsets_min| {
        let options = LogOptions { next_seq_min, offsets_min, ..LogOptions::default() };
        Log::open(Box::new(disk.open()), options, metrics()).unwrap()
    };
    let acknowledged = BTreeMap::from([(key(0), Offset(2)), (key(1), Offset(1))]);
    assert!(open(EntrySeq(3), acknowledged.clone()).1.skipped, "Kafka may not have it");
    assert!(open(EntrySeq(4), BTreeMap::new()).1.skipped, "how far the partitions came is not known");
    let (mut log, recovery) = open(EntrySeq(4), acknowledged);
    assert!(!recovery.skipped);
    assert_eq!((recovery.end, log.next_offset(stream("vehicle"), PartitionId(0))), (EntrySeq(6), Offset(3)));
    assert_eq!(commit(&mut log, 5..6)[0].batches[0].base_offset, Offset(3));
    assert_eq!(read_all(&mut log, EntrySeq(4)).1, []);
}

/// Each record takes an entry.
fn large_batch(ids: std::ops::Range<u64>) -> Batch {
    let mut batch = batch("vehicle", 0, ids);
    for record in &mut batch.records {
        record.value = format!("{{\"id\":{},\"text\":\"{}\"}}", id_of(record), "x".repeat(40_000)).into();
    }
    batch
}

#[test]
fn what_a_power_cut_leaves_of_the_last_commit_is_no_damage() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    commit(&mut log, 0..5);
    // A commit of three entries, of which the disk had the last one alone.
    log.append(vec![large_batch(5..8)]);
    assert_eq!(log.sync().unwrap().groups.len(), 3);
    drop(log);
    assert!(disk.remove_entry(EntrySeq(3)));
    let (mut log, recovery) = open_simulated(&disk);
    assert_eq!((recovery.skipped, recovery.end), (false, EntrySeq(2)));
    assert_eq!(commit(&mut log, 100..101)[0].batches[0].base_offset, Offset(5));
    assert_eq!(read_all(&mut log, EntrySeq(0)).1, []);
    drop(log);
    // With a commit behind it, it had been synced: it is missing.
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    log.append(vec![large_batch(0..3)]);
    log.sync().unwrap();
    commit(&mut log, 3..4);
    drop(log);
    assert!(disk.remove_entry(EntrySeq(2)));
    let (mut log, recovery) = open_simulated(&disk);
    assert!(recovery.skipped);
    assert_eq!(ids(&read_all(&mut log, EntrySeq(0)).0), [0, 2, 3]);
}

#[test]
fn what_sources_remember_outlives_damage_elsewhere() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    let note = |value: &[u8]| vec![Note::new("source".into(), *b"key", Some(value.into())).unwrap()];
    log.append_noting(Vec::new(), note(b"value"));
    log.sync().unwrap();
    commit(&mut log, 0..1);
    commit(&mut log, 1..2);
    drop(log);
    assert!(disk.remove_entry(EntrySeq(2)));
    let (_, recovery) = open_simulated(&disk);
    assert_eq!(recovery.notes["source"][b"key".as_slice()].as_ref(), b"value");
}

#[test]
fn an_epoch_put_aside_while_running_keeps_its_numbers_after_a_restart() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    commit(&mut log, 0..1);
    drop(log);
    let (mut log, _) = open_simulated(&disk);
    commit(&mut log, 1..2);
    let newest = *log.epochs.last().unwrap();
    disk.break_epoch(newest);
    let (groups, lost) = read_all(&mut log, EntrySeq(0));
    assert_eq!((ids(&groups), lost.len()), (vec![0], 1));
    assert_eq!(disk.quarantined(), [newest]);
    drop(log);
    let (mut log, recovery) = open_simulated(&disk);
    assert_eq!(recovery.end, EntrySeq(newest.0.0 + EPOCH_ENTRIES_MAX));
    assert!(commit(&mut log, 2..3)[0].batches[0].base_offset >= Offset(2));
}

#[test]
fn who_reads_ahead_of_the_turn_takes_no_loss_from_who_reads_in_order() {
    /// What is found in order, and what is counted.
    fn found(dir: &Path, looks_ahead: bool) -> (Vec<String>, u64, u64) {
        let store = DiskStore::open(dir, test_options()).unwrap();
        let metrics = metrics();
        let (mut log, _) = Log::open(Box::new(store), LogOptions::default(), metrics.clone()).unwrap();
        let (mut found, mut next) = (Vec::new(), EntrySeq(0));
        while next < log.end() {
            if looks_ahead {
                for from in (next.0..log.end().0).rev().map(EntrySeq) {
                    assert!(log.read_ahead(from, 1).unwrap().next > from);
                }
            }
            let outcome = log.read(next, 1).unwrap();
            next = outcome.next;
            found.extend(outcome.groups.iter().map(|group| format!("group {}", group.seq)));
            found.extend(outcome.lost.iter().map(|lost| format!("lost {} to {}", lost.first, lost.end)));
            found.extend(
                outcome.checkpoints.iter().map(|known| format!("known at {}: {:?}", known.seq, known.next)),
            );
        }
        (found, metrics.lost_entries.get(), metrics.damaged_entries.get())
    }
    let dir = tempfile::tempdir().unwrap();
    let epochs = three_epochs(dir.path());
    fs::remove_file(db(dir.path(), epochs[1])).unwrap();
    let file = db(dir.path(), epochs[0]);
    // In the middle of what is written of it.
    let written = fs::read(&file).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64;
    flip(&file, written / 2);
    let (in_order, other) = (found(copy_of(dir.path()).path(), false), found(dir.path(), true));
    assert!(in_order.1 > 10, "{in_order:?}");
    assert_eq!(in_order, other);
}
