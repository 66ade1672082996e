//! What sources remember, over rolls, restarts and damage.

use super::*;

fn note(source: &str, key: &str, value: Option<&[u8]>) -> Note {
    Note::new(source.into(), key.as_bytes(), value.map(Box::from)).unwrap()
}

fn remembered(recovery: &Recovery, source: &str) -> Vec<(String, Vec<u8>)> {
    let notes = recovery.notes.get(source).into_iter().flatten();
    notes.map(|(key, value)| (String::from_utf8_lossy(key).into_owned(), value.to_vec())).collect()
}

/// Else a crash between two entries would leave word of a record that is not there.
#[test]
fn notes_are_in_the_last_entry_of_what_they_came_with() {
    let disk = SimulatedDisk::new();
    let options = LogOptions { group_bytes: 1024, ..LogOptions::default() };
    let (mut log, _) = Log::open(Box::new(disk.open()), options, metrics()).unwrap();
    log.append_noting(vec![batch("vehicle", 0, 0..100)], vec![note("s", "k", Some(b"v"))]);
    assert!(log.pending.len() > 3);
    let (last, others) = log.pending.split_last().unwrap();
    assert!(others.iter().all(|pending| pending.notes().is_empty()));
    assert_eq!(last.notes().len(), 1);
}

/// Else a crash between two entries would leave a record of which nobody knows that it is there, and which comes again.
#[test]
fn what_a_crash_left_of_a_commit_is_as_if_it_had_never_come() {
    let disk = SimulatedDisk::new();
    let options = LogOptions { group_bytes: 1024, ..LogOptions::default() };
    let open = || Log::open(Box::new(disk.open()), options.clone(), metrics()).unwrap();
    let (mut log, _) = open();
    log.append_noting(vec![batch("vehicle", 0, 0..10)], vec![note("s", "k", Some(b"10"))]);
    log.sync().unwrap();
    log.append_noting(vec![batch("vehicle", 0, 10..100)], vec![note("s", "k", Some(b"100"))]);
    let parts = log.pending.len();
    assert!(parts > 3);
    // All but the last part.
    disk.die_after(u32::try_from(parts - 1).unwrap());
    let end = log.end();
    log.sync().expect_err("the process is dead");
    drop(log);
    disk.crash(usize::MAX);
    let (mut log, recovery) = open();
    assert_eq!(remembered(&recovery, "s"), [("k".into(), b"10".to_vec())]);
    assert_eq!((recovery.damaged_entries, recovery.skipped), (0, false));
    assert_eq!((recovery.end, recovery.entries_scanned), (end, end.0 + parts as u64 - 1));
    log.append_noting(vec![batch("vehicle", 0, 10..20)], vec![note("s", "k", Some(b"20"))]);
    log.sync().unwrap();
    let outcome = log.read(EntrySeq(0), 1 << 20).unwrap();
    assert_eq!(outcome.lost, []);
    let records: usize = outcome.groups.iter().flat_map(|g| &g.batches).map(|b| b.records.len()).sum();
    assert_eq!(records, 20);
    assert_eq!(remembered(&open().1, "s"), [("k".into(), b"20".to_vec())]);
}

#[test]
fn notes_survive_epochs_and_restarts_until_they_are_forgotten() {
    let disk = SimulatedDisk::new();
    let (mut log, recovery) = open_simulated(&disk);
    assert_eq!(recovery.notes, BTreeMap::new());
    let notes = vec![note("a", "x", Some(b"1")), note("a", "y", Some(b"2")), note("b", "x", Some(b"3"))];
    log.append_noting(Vec::new(), notes);
    log.append_noting(Vec::new(), vec![note("a", "x", Some(b"4")), note("b", "x", None)]);
    let committed = log.sync().unwrap();
    assert_eq!(committed.groups.len(), 2, "entries without records have their place too");
    log.append_noting(Vec::new(), vec![note("a", "never", Some(b"synced"))]);
    drop(log);
    disk.crash(0);
    // Each start begins a new epoch, with the table in its checkpoint; the ones before may go.
    for _ in 0..3 {
        let (mut log, recovery) = open_simulated(&disk);
        assert_eq!(remembered(&recovery, "a"), [("x".into(), b"4".to_vec()), ("y".into(), b"2".to_vec())]);
        assert_eq!(remembered(&recovery, "b"), []);
        commit(&mut log, 0..10);
        log.trim(log.end(), Monotonic::default()).unwrap();
        assert_eq!(log.stats().epochs, 1);
    }
    let (mut log, _) = open_simulated(&disk);
    log.forget_others(|source| source != "a");
    commit(&mut log, 0..10);
    let (_, recovery) = open_simulated(&disk);
    assert_eq!(recovery.notes, BTreeMap::new());
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_no_older_value() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open_simulated(&disk);
    let large = vec![7; NOTE_BYTES_MAX - 2];
    let keys: Vec<String> = (10..90).map(|key| key.to_string()).collect();
    log.append_noting(Vec::new(), vec![note("s", "89", Some(b"small"))]);
    for key in &keys {
        log.append_noting(Vec::new(), vec![note("s", key, Some(&large))]);
    }
    log.sync().unwrap();
    let kept = log.notes.by_source()["s"].len();
    assert!((60..64).contains(&kept), "{kept} of 64 KiB each in 4 MiB");
    assert_eq!(log.metrics.refused_notes.get(), u64::try_from(keys.len() - kept).unwrap());
    assert!(!log.notes.by_source()["s"].contains_key(b"89".as_slice()));
    assert!(Note::new("s".into(), *b"123", Some(large.into())).is_err());
    // All that is kept fits a checkpoint.
    drop(log);
    let (mut log, recovery) = open_simulated(&disk);
    assert_eq!(remembered(&recovery, "s").len(), kept);
    commit(&mut log, 0..1);
    drop(log);
    assert_eq!(remembered(&open_simulated(&disk).1, "s").len(), kept);
}

#[test]
fn compaction_may_drop_entries_with_notes_and_forgets_none() {
    let disk = SimulatedDisk::new();
    let policies = [(stream("vehicle"), Policy::DropOldest)].into();
    let options = LogOptions { policies, ..LogOptions::default() };
    let open = || Log::open(Box::new(disk.open()), options.clone(), metrics()).unwrap();
    let (mut log, _) = open();
    for n in 0..5 {
        log.append_noting(vec![batch("vehicle", 0, n..n + 1)], vec![note("s", &n.to_string(), Some(b"v"))]);
        log.sync().unwrap();
    }
    log.append_noting(Vec::new(), vec![note("s", "last", Some(b"v"))]);
    log.sync().unwrap();
    drop(log);
    let (mut log, _) = open();
    log.append(vec![batch("kept", 0, 5..6)]);
    log.sync().unwrap();
    assert!(log.compact(|_, _| true).unwrap());
    drop(log);
    let (mut log, recovery) = open();
    assert_eq!(remembered(&recovery, "s").len(), 6);
    let outcome = log.read(EntrySeq(0), 1 << 20).unwrap();
    assert_eq!(outcome.lost, []);
    let dropped: u64 = outcome.groups.iter().flat_map(|group| &group.dropped).map(|d| d.count).sum();
    assert_eq!(dropped, 5);
}
