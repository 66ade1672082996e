//! Verify and the readers from outside: what is damaged is found and told to the record, and what is whole is called so.

use std::fs::{self, File};

use super::{
    damage::{copy_of, db, flip, three_epochs, three_epochs_of},
    *,
};
use crate::log::{
    inspect::{DirReader, Found},
    verify::{LostRecords, Verification, verify},
};

fn check(dir: &Path) -> Verification {
    verify(dir, |_, _| true).unwrap()
}

/// Records lost for certain.
fn lost_records(found: &Verification) -> u64 {
    assert!(found.lost.iter().all(|lost| lost.exact), "{:?}", found.lost);
    found.lost.iter().map(|lost| u64::try_from(lost.end.0 - lost.first.0).unwrap()).sum()
}

fn lost_range(first: i64, end: i64) -> LostRecords {
    LostRecords {
        stream: stream("vehicle"),
        partition: PartitionId(0),
        first: Offset(first),
        end: Offset(end),
        exact: true,
    }
}

/// Reads all there is from outside.
fn read_dir(reader: &mut DirReader) -> (Vec<u64>, Vec<LostEntries>) {
    let (mut groups, mut lost) = (Vec::new(), Vec::new());
    while let Some(found) = reader.read_next().unwrap() {
        match found {
            Found::Group(group) => groups.push(Arc::new(group)),
            Found::Lost(entries) => lost.push(entries),
        }
    }
    (ids(&groups), lost)
}

#[test]
fn a_log_that_changed_its_engine_is_read_from_outside_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut epochs = three_epochs_of(dir.path(), Engine::Segment);
    for (engine, ids) in [(Engine::Sled, 600..610), (Engine::Segment, 610..620)] {
        let (mut log, _) = open_disk(dir.path(), engine);
        commit(&mut log, ids);
    }
    epochs.extend(&inspect::list(dir.path()).unwrap().epochs[3..]);
    let found = check(dir.path());
    assert!(found.is_whole(), "{found:?}");
    assert_eq!((found.dir.epochs.clone(), found.records, found.unsynced), (epochs.clone(), 620, None));
    let (ids, lost) = read_dir(&mut DirReader::new(dir.path(), EntrySeq(0)));
    assert_eq!((ids, lost), ((0..620).collect(), vec![]));
    // In the middle of a segment.
    let file = db(dir.path(), epochs[1]);
    flip(&file, file.metadata().unwrap().len() / 2);
    let found = check(dir.path());
    assert_eq!((found.damage.len(), lost_records(&found), found.records), (1, 20, 600), "{found:?}");
    let (ids, lost) = read_dir(&mut DirReader::new(dir.path(), EntrySeq(0)));
    assert_eq!((ids.len(), lost.len()), (600, 1));
}

#[test]
fn a_follower_sees_what_is_added_to_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open_disk(dir.path(), Engine::Segment);
    let mut reader = DirReader::new(dir.path(), EntrySeq(0));
    for start in [0, 10, 20] {
        commit(&mut log, start..start + 10);
        assert_eq!(read_dir(&mut reader), ((start..start + 10).collect(), vec![]));
    }
}

#[test]
fn what_was_dropped_by_policy_is_counted_and_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path());
    let store = DiskStore::open(dir.path(), test_options()).unwrap();
    let policies = BTreeMap::from([(stream("vehicle"), Policy::LatestPerDevice)]);
    let options = LogOptions { policies, ..LogOptions::default() };
    let (mut log, _) = Log::open(Box::new(store), options, metrics()).unwrap();
    while log.compact(|_, _| true).unwrap() {}
    let found = check(dir.path());
    assert!(found.is_whole(), "{found:?}");
    assert_eq!((found.records + found.dropped_records, found.records < 300), (600, true), "{found:?}");
    let mut reader = DirReader::new(dir.path(), EntrySeq(0));
    let (ids, lost) = read_dir(&mut reader);
    assert_eq!((ids.len() as u64, lost), (found.records, vec![]));
}

#[test]
fn a_log_that_is_being_written_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    assert!(check(dir.path()).is_whole(), "empty");
    three_epochs(dir.path());
    let (mut log, _) = open_sled(dir.path());
    for n in 0..5 {
        commit(&mut log, 600 + n * 10..610 + n * 10);
        log.append(vec![batch("occupancy", 3, n..n + 1)]);
        log.sync().unwrap();
        let found = check(dir.path());
        assert!(found.is_whole(), "{found:?}");
        assert_eq!((found.first, found.end), (EntrySeq(0), log.end()));
        assert_eq!(found.records, 600 + (n + 1) * 11);
        assert_eq!(found.next_offsets[&(stream("vehicle"), PartitionId(0))].0.unsigned_abs(), 610 + n * 10);
    }
    log.trim(log.end(), Monotonic::default()).unwrap();
    let found = check(dir.path());
    assert!(found.is_whole(), "{found:?}");
    assert_eq!(found.first, log.first());
}

#[test]
fn an_agent_that_writes_all_the_time_does_not_make_a_whole_log_look_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        DiskStore::open(dir.path(), store::disk::DiskOptions { epoch_bytes: 60_000, ..test_options() });
    let (mut log, _) = Log::open(Box::new(store.unwrap()), LogOptions::default(), metrics()).unwrap();
    commit(&mut log, 0..100);
    std::thread::scope(|scope| {
        // A round of writes for each look, beside it: a writer without a bound would outrun a slow machine's reader. Dropped
        // by a failed assertion too, or the scope would wait for ever.
        let (round, rounds) = std::sync::mpsc::sync_channel::<()>(0);
        scope.spawn(move || {
            let mut next = 100;
            while rounds.recv().is_ok() {
                for _ in 0..30 {
                    commit(&mut log, next..next + 100);
                    next += 100;
                }
                log.trim(EntrySeq(log.end().0.saturating_sub(60)), Monotonic::default()).unwrap();
            }
        });
        let mut reader = DirReader::new(dir.path(), EntrySeq(0));
        let mut read = Vec::new();
        for _ in 0..20 {
            round.send(()).unwrap();
            let found = check(dir.path());
            assert!(found.is_whole(), "{found:?}");
            read.extend(read_dir(&mut reader).0);
        }
        assert!(read.is_sorted_by(|a, b| a < b), "in order, and none twice");
    });
}

#[test]
fn a_flipped_bit_is_found_and_costs_what_the_next_checkpoint_says() {
    let dir = tempfile::tempdir().unwrap();
    let epochs = three_epochs(dir.path());
    let mut damaged = 0;
    for (index, epoch) in epochs.iter().enumerate() {
        for percent in [0, 20, 50, 80, 99] {
            let copy = copy_of(dir.path());
            let file = db(copy.path(), *epoch);
            let used = fs::read(&file).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64;
            flip(&file, used * percent / 100);
            let found = check(copy.path());
            damaged += usize::from(!found.is_whole());
            // The end of the newest epoch may be gone without a trace; only the cursor can know it.
            if index < 2 {
                assert_eq!(found.records + lost_records(&found), 600, "{epoch} at {percent} %: {found:?}");
                assert_eq!(found.damage.is_empty(), found.lost.is_empty(), "{found:?}");
                assert!(lost_records(&found) <= 20, "an entry: {found:?}");
            }
        }
    }
    // The others hit what sled alone reads.
    assert!(damaged >= 5, "{damaged} of 15 hit something");
}

#[test]
fn a_missing_epoch_is_told_with_its_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let epochs = three_epochs(dir.path());
    fs::remove_dir_all(dir.path().join(epochs[1].to_string())).unwrap();
    let found = check(dir.path());
    assert_eq!(found.lost, [lost_range(200, 400)]);
    assert_eq!(found.damage.len(), 1);
    assert_eq!(found.damage[0].entries, Some((epochs[1].0, epochs[2].0)));
    let (ids, lost) = read_dir(&mut DirReader::new(dir.path(), EntrySeq(0)));
    assert_eq!(ids, (0..200).chain(400..600).collect::<Vec<_>>());
    assert_eq!((lost.len(), lost[0].first, lost[0].end), (1, epochs[1].0, epochs[2].0));
}

#[test]
fn an_epoch_that_does_not_open_or_is_no_directory_is_damage_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let epochs = three_epochs(dir.path());
    let spoilt: [&dyn Fn(&Path); 4] = [
        &|epoch| fs::remove_file(epoch.join("db")).unwrap(),
        &|epoch| File::create(epoch.join("db")).map(drop).unwrap(),
        &|epoch| {
            fs::remove_file(epoch.join("db")).unwrap();
            fs::create_dir(epoch.join("db")).unwrap();
        },
        &|epoch| {
            fs::remove_dir_all(epoch).unwrap();
            fs::write(epoch, b"a file").unwrap();
        },
    ];
    for (case, spoil) in spoilt.iter().enumerate() {
        let copy = copy_of(dir.path());
        spoil(&copy.path().join(epochs[1].to_string()));
        let found = check(copy.path());
        assert_eq!((found.records, lost_records(&found)), (400, 200), "case {case}: {found:?}");
        assert!(!found.damage.is_empty(), "case {case}");
        assert_eq!(read_dir(&mut DirReader::new(copy.path(), EntrySeq(0))).0.len(), 400, "case {case}");

        let copy = copy_of(dir.path());
        spoil(&copy.path().join(epochs[2].to_string()));
        let (ids, lost) = read_dir(&mut DirReader::new(copy.path(), EntrySeq(0)));
        assert_eq!((ids.len(), check(copy.path()).is_whole()), (400, false), "case {case}, newest");
        assert_eq!(lost.len(), usize::from(case != 1), "case {case}, newest: {lost:?}");
    }
}

#[test]
fn what_was_put_aside_is_no_whole_log_and_says_what_can_still_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let epochs = three_epochs(dir.path());
    fs::remove_file(dir.path().join(epochs[0].to_string()).join("synced")).unwrap();
    let found = check(dir.path());
    assert_eq!((&found.damage[..], &found.unmarked[..]), (&[][..], &epochs[..1]));
    let (log, _) = open_sled(dir.path());
    drop(log);
    let found = check(dir.path());
    assert!(!found.is_whole());
    let [(name, report)] = found.put_aside.iter().collect::<Vec<_>>()[..] else { panic!("{found:?}") };
    assert_eq!((name.as_str(), report.records), ("bad-0000000000000000", 200));
    assert_eq!(found.damage, []);
}

#[test]
fn leftovers_and_foreign_files_are_named_and_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    three_epochs(dir.path());
    fs::create_dir(dir.path().join("del-0000000000000005")).unwrap();
    fs::create_dir(dir.path().join("e-0000000000000021")).unwrap();
    fs::write(dir.path().join("notes.txt"), b"somebody else's").unwrap();
    let found = check(dir.path());
    assert!(found.is_whole(), "{found:?}");
    assert_eq!(found.unsynced, Some(EpochId(EntrySeq(33))));
    assert_eq!(found.dir.half_deleted, ["del-0000000000000005"]);
    assert_eq!(found.dir.foreign, ["notes.txt"]);
}

#[test]
fn a_skip_behind_damage_bounds_the_loss_and_does_not_state_it() {
    let dir = tempfile::tempdir().unwrap();
    let epochs = three_epochs(dir.path());
    fs::remove_file(db(dir.path(), epochs[2])).unwrap();
    let (mut log, recovery) = open_sled(dir.path());
    assert!(recovery.skipped);
    commit(&mut log, 600..610);
    let found = check(dir.path());
    assert_eq!(found.lost.len(), 1, "{found:?}");
    assert!(!found.lost[0].exact && found.lost[0].first == Offset(400), "{found:?}");
    assert_eq!(found.put_aside.len(), 1);
    assert_eq!(found.records, 410);
}

#[test]
fn a_reader_follows_the_log_over_new_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = DirReader::new(dir.path(), EntrySeq(0));
    assert_eq!(read_dir(&mut reader), (vec![], vec![]));
    let mut read = Vec::new();
    for start in 0..3_u64 {
        let (mut log, _) = open_sled(dir.path());
        for n in 0..3 {
            let first = start * 30 + n * 10;
            commit(&mut log, first..first + 10);
            let (ids, lost) = read_dir(&mut reader);
            assert_eq!(lost, []);
            read.extend(ids);
            assert_eq!(read, (0..first + 10).collect::<Vec<_>>());
        }
    }
}
