//! What damage alone does not reach: locks, a full disk, a disk that takes no writes, another engine.

use std::{fs, io::Write as _, path::Path, process::Command, time::Duration};

use rustix::fs::FlockOperation;

use super::*;
use crate::log::store::contract::{ENGINES, options_of, test_options};

fn id(seq: u64) -> EpochId {
    EpochId(EntrySeq(seq))
}

/// Writes an epoch of 20 synced entries.
fn write_epoch(store: &mut DiskStore, first: u64) {
    store.create(id(first)).unwrap();
    for seq in first..first + 20 {
        store.append(EntrySeq(seq), &[7; 100]).unwrap();
    }
    store.sync().unwrap();
}

fn read_count(store: &mut DiskStore, epoch: EpochId) -> usize {
    store.read(epoch, epoch.0, usize::MAX).unwrap().len()
}

#[test]
fn an_epoch_whose_lock_is_held_for_ever_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = DiskStore::open(dir.path(), test_options()).unwrap();
    write_epoch(&mut store, 0);
    write_epoch(&mut store, 20);
    let held = fs::File::open(dir.path().join("e-0000000000000000/db")).unwrap();
    rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(read_count(&mut store, id(0)), 20);
}

/// A bit of sled's settings, which are the same in every epoch, cost a whole one: the campaign flipped it.
#[test]
fn an_epoch_whose_settings_are_damaged_has_all_its_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = DiskStore::open(dir.path(), test_options()).unwrap();
    write_epoch(&mut store, 0);
    drop(store);
    let conf = dir.path().join(id(0).to_string()).join("conf");
    let mut settings = fs::read(&conf).unwrap();
    settings[3] ^= 1;
    fs::write(&conf, settings).unwrap();
    let mut store = DiskStore::open(dir.path(), test_options()).unwrap();
    assert_eq!(read_count(&mut store, id(0)), 20);
}

#[test]
fn an_open_epoch_that_dies_is_closed_and_its_synced_entries_stay() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path(), options_of(engine)).unwrap();
        write_epoch(&mut store, 0);
        let error = store.with_write(|_| Err(Failure::Broken("simulated".into()))).unwrap_err();
        assert!(matches!(error, StoreError::HandleDead { .. }));
        assert!(store.append(EntrySeq(20), b"x").is_err());
        assert_eq!(read_count(&mut store, id(0)), 20);
        write_epoch(&mut store, 20);
        assert_eq!(read_count(&mut store, id(20)), 20);
    }
}

#[test]
fn after_a_change_of_the_engine_the_epochs_of_the_other_are_read_rewritten_and_deleted() {
    for (before, after) in [(Engine::Sled, Engine::Segment), (Engine::Segment, Engine::Sled)] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path(), options_of(before)).unwrap();
        (0..4).for_each(|epoch| write_epoch(&mut store, epoch * 20));
        drop(store);
        let mut store = DiskStore::open(dir.path(), options_of(after)).unwrap();
        write_epoch(&mut store, 80);
        assert_eq!(store.epochs().unwrap(), [0, 20, 40, 60, 80].map(id));
        for epoch in [0, 20, 40, 60, 80] {
            assert_eq!(read_count(&mut store, id(epoch)), 20);
        }
        store.begin_rewrite(id(20)).unwrap();
        store.append_rewrite(EntrySeq(59), &[9; 100]).unwrap();
        store.finish_rewrite(id(40)).unwrap();
        store.delete(id(0)).unwrap();
        store.quarantine(id(60)).unwrap();
        drop(store);
        // And back again.
        let mut store = DiskStore::open(dir.path(), options_of(before)).unwrap();
        assert_eq!(store.epochs().unwrap(), [20, 80].map(id));
        assert_eq!((read_count(&mut store, id(20)), read_count(&mut store, id(80))), (1, 20));
        assert_eq!(store.quarantined().unwrap(), [id(60)]);
        write_epoch(&mut store, 100);
        assert_eq!(read_count(&mut store, id(100)), 20);
    }
}

#[test]
fn a_ballast_that_does_not_fit_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path(), 1 << 60).unwrap();
    data.take_ballast(u64::MAX, 0);
    assert!(!dir.path().join("ballast").exists());
}

#[test]
fn a_start_finishes_to_put_what_was_written_again_in_its_place() {
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path(), options_of(engine)).unwrap();
        for first in [0, 20, 40] {
            write_epoch(&mut store, first);
        }
        store.begin_rewrite(id(0)).unwrap();
        store.append_rewrite(EntrySeq(39), &[9; 100]).unwrap();
        store.finish_rewrite(id(20)).unwrap();
        drop(store);
        // As a power cut leaves it, before or between the deletions.
        let path = |name: &str| dir.path().join(name);
        fs::rename(path(&id(0).to_string()), path("swap-0000000000000000-0000000000000014")).unwrap();
        fs::create_dir(path(&id(20).to_string())).unwrap();
        fs::create_dir(path("new-0000000000000028")).unwrap();
        let mut store = DiskStore::open(dir.path(), options_of(engine)).unwrap();
        assert_eq!(store.epochs().unwrap(), [id(0), id(40)]);
        assert_eq!(read_count(&mut store, id(0)), 1);
        assert!(!path("new-0000000000000028").exists());
    }
}

/// A tmpfs of 48 MB, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root to mount a small tmpfs");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"]).arg(dir.path()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: a tmpfs cannot be mounted here");
            return None;
        }
        Some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Lets nobody write to what is opened from now on.
    fn write_protect(&self) {
        let status = Command::new("mount").args(["-o", "bind,ro"]).args([self.path(), self.path()]).status();
        assert!(status.unwrap().success());
    }

    fn unmount(&self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Writes epochs until the disk is full; returns the first entry that was not synced.
fn fill(store: &mut DiskStore, mut next: u64) -> u64 {
    loop {
        let mut synced = next;
        let epoch = (|| {
            store.create(id(next))?;
            while !store.wants_roll() {
                store.append(EntrySeq(next), &[next.to_le_bytes()[0]; 16 * 1024])?;
                next += 1;
                if next.is_multiple_of(8) {
                    store.sync()?;
                    synced = next;
                }
            }
            store.sync()?;
            synced = next;
            Ok(())
        })();
        match epoch {
            Ok(()) => {}
            Err(StoreError::NoSpace { .. }) => return synced,
            Err(other) => panic!("a full disk says so: {other}"),
        }
    }
}

#[test]
fn a_full_disk_is_read_trimmed_and_written_again_by_the_same_process() {
    for engine in ENGINES {
        let Some(disk) = SmallDisk::mount() else { return };
        let options = DiskOptions {
            engine,
            epoch_bytes: 4 << 20,
            reserve_bytes: 0,
            ballast_bytes: 2 << 20,
            timeout: Duration::from_secs(20),
        };
        let mut store = DiskStore::open(disk.path(), options.clone()).unwrap();
        assert!(disk.path().join("ballast").exists());
        let synced = fill(&mut store, 0);
        let epochs = store.epochs().unwrap();
        assert!(epochs.len() > 5);
        assert!(!store.read(epochs[0], epochs[0].0, usize::MAX).unwrap().is_empty());
        drop(store);
        // Drained as replication does it.
        let mut store = DiskStore::open(disk.path(), options).unwrap();
        let mut next = EntrySeq(0);
        for epoch in store.epochs().unwrap() {
            next = read_on(&mut store, epoch, next);
            if epoch < epochs[3] {
                store.delete(epoch).unwrap();
            }
        }
        assert!(next.0 >= synced, "{next} of {synced} synced entries are there");
        assert!(fill(&mut store, next.0) > next.0);
    }
}

#[test]
fn a_start_on_a_disk_without_a_free_byte_reads() {
    for engine in ENGINES {
        let Some(disk) = SmallDisk::mount() else { return };
        let mut store = DiskStore::open(disk.path(), options_of(engine)).unwrap();
        for epoch in 0..3 {
            write_epoch(&mut store, epoch * 20);
        }
        drop(store);
        let mut filler = fs::File::create(disk.path().join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        let mut store = DiskStore::open(disk.path(), options_of(engine)).unwrap();
        let mut next = EntrySeq(0);
        for epoch in store.epochs().unwrap() {
            next = read_on(&mut store, epoch, next);
        }
        assert_eq!(next, EntrySeq(60));
        let written = store.create(id(60)).and_then(|()| store.append(EntrySeq(60), &[7; 5000]));
        assert!(matches!(written.and_then(|()| store.sync()), Err(StoreError::NoSpace { .. })));
        drop(filler);
        fs::remove_file(disk.path().join("filler")).unwrap();
        write_epoch(&mut store, 60);
    }
}

#[test]
fn a_disk_that_turns_read_only_is_read_and_written_again_later() {
    for engine in ENGINES {
        let Some(disk) = SmallDisk::mount() else { return };
        let mut store = DiskStore::open(disk.path(), options_of(engine)).unwrap();
        for epoch in 0..3 {
            write_epoch(&mut store, epoch * 20);
        }
        disk.write_protect();
        assert!(matches!(store.create(id(60)), Err(StoreError::HandleDead { .. })));
        for epoch in 0..3 {
            assert_eq!(read_count(&mut store, id(epoch * 20)), 20);
        }
        disk.unmount();
        write_epoch(&mut store, 60);
        assert_eq!(read_count(&mut store, id(60)), 20);
    }
}

/// Reads an epoch to its end, without a hole; returns where that is.
fn read_on(store: &mut DiskStore, epoch: EpochId, mut next: EntrySeq) -> EntrySeq {
    loop {
        let read = store.read(epoch, next, 1 << 20).unwrap();
        let Some(last) = read.last() else { return next };
        assert_eq!(read[0].seq, next);
        next = last.seq.next();
    }
}

#[test]
fn sled_writes_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = DiskStore::open(dir.path(), test_options()).unwrap();
    store.create(id(0)).unwrap();
    for seq in 0..400 {
        store.append(EntrySeq(seq), &[7; 16 * 1024]).unwrap();
        store.sync().unwrap();
    }
    let (written, stored) = (400 * 16 * 1024, store.size_bytes());
    assert!(stored < written * 13 / 10, "{stored} bytes for {written}: sled rewrites its leaves");
    assert_eq!(fs::read_dir(dir.path().join("e-0000000000000000/blobs")).unwrap().count(), 0);
}

#[test]
fn two_readers_and_the_writer_do_not_close_each_others_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = DiskStore::open(dir.path(), DiskOptions::default()).unwrap();
    for first in [0, 10, 20, 30] {
        write_epoch(&mut store, first);
    }
    for epoch in [0, 10, 30, 20, 30, 20, 10].map(id) {
        assert!(!store.read(epoch, epoch.0, 1).unwrap().is_empty());
    }
    let open: Vec<_> = store.readers.iter().map(|(epoch, _)| *epoch).collect();
    assert_eq!(open, [id(20), id(10)]);
}
