//! What the files of an epoch have become: each engine on a disk reads what is whole, in order and as it was written,
//! or says that the epoch is damaged; and never anything else.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::*;
use crate::log::store::disk::written_by;

const ENTRIES: u64 = 40;
const COUNT: usize = 40;

/// A directory with two epochs of 40 entries, and the file of the first.
fn written(engine: Engine) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = DiskStore::open(dir.path(), options_of(engine)).unwrap();
    for first in [0, ENTRIES] {
        store.create(id(first)).unwrap();
        write(&mut store, first..first + ENTRIES);
        store.sync().unwrap();
    }
    let path = dir.path().join(id(0).to_string());
    let file = written_by(&path).unwrap().1;
    (dir, file)
}

/// The entries that are left of the damaged epoch; none if it is damaged as a whole. One that was whole once may be there and differ:
/// the log checks. The other epoch is whole.
fn left(dir: &Path, engine: Engine) -> Option<usize> {
    let mut store = DiskStore::open(dir, options_of(engine)).unwrap();
    assert_holds(&mut store, id(ENTRIES), ENTRIES..2 * ENTRIES);
    let mut found = Vec::new();
    let mut next = EntrySeq(0);
    loop {
        match store.read(id(0), next, 3000) {
            Ok(read) if read.is_empty() => break,
            Ok(read) => {
                next = read.last().unwrap().seq.next();
                found.extend(read);
            }
            Err(StoreError::Damaged { .. }) => return None,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(found.is_sorted_by(|a, b| a.seq < b.seq));
    let is_whole = |found: &&StoredEntry| found.bytes == entry(found.seq.0, 200);
    let whole = found.iter().filter(is_whole).count();
    assert!(found.iter().all(|found| found.seq.0 < ENTRIES));
    assert!(found.len() <= whole + 1, "what is damaged is one");
    Some(whole)
}

#[test]
fn a_flipped_bit_costs_one_entry_at_most() {
    for engine in ENGINES {
        let (dir, file) = written(engine);
        let whole = fs::read(&file).unwrap();
        for part in 0..100 {
            let mut bytes = whole.clone();
            let at = part * bytes.len() / 100;
            bytes[at] ^= 1 << (part % 8);
            fs::write(&file, bytes).unwrap();
            let left = left(dir.path(), engine);
            assert!(left >= Some(39), "bit in byte {at}: {left:?} are left");
        }
    }
}

#[test]
fn a_truncated_file_has_what_comes_before() {
    for engine in ENGINES {
        let (dir, file) = written(engine);
        let length = fs::metadata(&file).unwrap().len();
        let mut before = COUNT;
        for percent in [99, 50, 1, 0] {
            File::options().write(true).open(&file).unwrap().set_len(length * percent / 100).unwrap();
            let left = left(dir.path(), engine).unwrap_or(0);
            assert!(left <= before, "{percent} % have {left} entries");
            // A header of 20 bytes, and frames of 24 more than the entry.
            let frames = (length * percent / 100).saturating_sub(20) / 224;
            assert!(engine == Engine::Sled || left as u64 == frames);
            before = left;
        }
    }
}

#[test]
fn a_missing_file_is_damage() {
    for engine in ENGINES {
        let (dir, file) = written(engine);
        fs::remove_file(file).unwrap();
        assert_eq!(left(dir.path(), engine), None);
    }
}

#[test]
fn what_is_no_file_is_damage() {
    for engine in ENGINES {
        let (dir, file) = written(engine);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(left(dir.path(), engine), None);
        fs::remove_dir(&file).unwrap();
        symlink(&file, &file).unwrap();
        assert_eq!(left(dir.path(), engine), None);
    }
}

#[test]
fn a_foreign_file_in_its_place_has_no_entries() {
    for engine in ENGINES {
        let (dir, file) = written(engine);
        fs::write(file, "somebody's notes\n".repeat(1000)).unwrap();
        assert!(left(dir.path(), engine).is_none_or(|left| left == 0));
    }
}

#[test]
fn the_file_of_another_epoch_in_its_place_is_no_entry_of_this_one() {
    let (dir, file) = written(Engine::Segment);
    fs::copy(dir.path().join(id(ENTRIES).to_string()).join("segment"), file).unwrap();
    assert_eq!(left(dir.path(), Engine::Segment), None);
}

#[test]
fn foreign_files_beside_the_entries_change_nothing() {
    for engine in ENGINES {
        let (dir, file) = written(engine);
        fs::write(file.with_file_name("notes.txt"), "x").unwrap();
        fs::write(dir.path().join("notes.txt"), "x").unwrap();
        assert_eq!(left(dir.path(), engine), Some(COUNT));
    }
}
