//! One epoch in sled: trees of at most nine entries, so that sled never rewrites what it has written.
//!
//! A tree is named `t` and the sequence number of its first entry, big-endian; keys are sequence numbers, big-endian,
//! so that byte order is the order of the log.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use super::guard::{self, Opened};
use crate::log::store::{
    EntrySeq, StoredEntry,
    dir::sync_files,
    disk::{PartFailure, ReadEpoch, WriteEpoch},
    failure::Failure,
};

/// sled consolidates a leaf, that is writes all of it again, at its tenth change.
const TREE_ENTRIES_MAX: usize = 9;

/// More trees make the page rewritten that lists them noticeable: 1.15 bytes written per byte at 128, 1.67 unbounded.
const TREES_MAX: usize = 128;

/// What an entry takes beside its bytes, about.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// The epoch that is being written.
#[derive(Debug)]
pub(in crate::log::store) struct SledWriter {
    path: PathBuf,
    timeout: Duration,
    epoch_bytes: u64,
    opened: Opened,
    trees: Vec<(EntrySeq, ::sled::Tree)>,
    in_last_tree: usize,
    bytes: u64,
}

impl SledWriter {
    /// Opens a new epoch of `epoch_bytes` in the empty directory `path`, which takes no longer than `timeout`.
    pub(in crate::log::store) fn create(
        path: PathBuf,
        epoch_bytes: u64,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let opened = guard::open(&path, timeout)?;
        Ok(Self { path, timeout, epoch_bytes, opened, trees: Vec::new(), in_last_tree: 0, bytes: 0 })
    }
}

impl WriteEpoch for SledWriter {
    fn append(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), Failure> {
        if self.trees.is_empty() || self.in_last_tree == TREE_ENTRIES_MAX {
            let tree = guard::call(|| self.opened.db.open_tree(tree_name(seq)))?;
            self.trees.push((seq, tree));
            self.in_last_tree = 0;
        }
        let (_, tree) = self.trees.last().expect("one was just made");
        guard::call(|| tree.insert(seq.0.to_be_bytes(), entry))?;
        self.in_last_tree += 1;
        self.bytes += entry.len() as u64 + ENTRY_OVERHEAD_BYTES;
        Ok(())
    }

    /// Entries to the file, the file to the disk.
    fn sync(&mut self) -> Result<(), Failure> {
        guard::call(|| self.opened.db.flush())?;
        self.opened.file.sync_data().map_err(Failure::of_io)
    }

    fn sync_others(&mut self) -> Result<(), Failure> {
        sync_files(&self.path).map_err(Failure::of_io)
    }

    fn wants_roll(&self) -> bool {
        self.bytes >= self.epoch_bytes
            || (self.trees.len() >= TREES_MAX && self.in_last_tree == TREE_ENTRIES_MAX)
    }

    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<Vec<StoredEntry>, Failure> {
        let start = self.trees.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        let mut read = Vec::new();
        let mut bytes = 0;
        for (_, tree) in &self.trees[start..] {
            read_tree(tree, from, limit_bytes, &mut bytes, &mut read)?;
        }
        Ok(read)
    }

    /// Bytes that its file takes on the device.
    fn size_bytes(&self) -> u64 {
        self.opened.file.metadata().map_or(self.bytes, |meta| meta.blocks() * 512)
    }

    fn close(self: Box<Self>) {
        guard::close((self.trees, self.opened), self.path, self.timeout);
    }
}

/// An epoch that is being read.
#[derive(Debug)]
pub(in crate::log::store) struct SledReader {
    path: PathBuf,
    timeout: Duration,
    opened: Opened,
    /// First entries of the trees, ascending.
    trees: Vec<EntrySeq>,
    /// The tree read last.
    tree: Option<(EntrySeq, ::sled::Tree)>,
    /// Where the files are, if not in the data directory.
    copy: Option<TempDir>,
}

impl SledReader {
    pub(in crate::log::store) fn open(path: &Path, timeout: Duration) -> Result<Self, Failure> {
        // Of a missing file sled would make an empty Db.
        if !fs::metadata(path.join(super::FILE)).map_err(Failure::of_io)?.is_file() {
            return Err(Failure::Broken("db is no file".into()));
        }
        let opened = guard::open(path, timeout)?;
        let names = match guard::call(|| Ok(opened.db.tree_names())) {
            Ok(names) => names,
            Err(failure) => {
                guard::close(opened, path.into(), timeout);
                return Err(failure);
            }
        };
        let mut trees: Vec<EntrySeq> = names.iter().filter_map(|name| tree_first(name)).collect();
        trees.sort_unstable();
        Ok(Self { path: path.into(), timeout, opened, trees, tree: None, copy: None })
    }

    /// Opens a copy of the epoch in `memory_dir`, a file system in memory, for a disk that is so full that sled cannot
    /// open there.
    pub(in crate::log::store) fn open_in_memory(
        path: &Path,
        memory_dir: &Path,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        // That there is no copy says nothing about the epoch.
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::NoSpace,
            _ => Failure::Transient(io::Error::other(format!("copy to {}: {error}", memory_dir.display()))),
        };
        let copy = tempfile::Builder::new().prefix("wayside-").tempdir_in(memory_dir).map_err(failed)?;
        for name in ["conf", "db"] {
            let from = path.join(name);
            // sled makes a missing `conf` again.
            if from.try_exists().map_err(failed)? {
                fs::copy(&from, copy.path().join(name)).map_err(failed)?;
            }
        }
        let reader = Self::open(copy.path(), timeout)?;
        Ok(Self { copy: Some(copy), ..reader })
    }
}

impl ReadEpoch for SledReader {
    fn read(
        &mut self,
        from: EntrySeq,
        limit_bytes: usize,
        bad: &BTreeSet<EntrySeq>,
    ) -> Result<Vec<StoredEntry>, PartFailure> {
        let start = self.trees.partition_point(|first| *first <= from).saturating_sub(1);
        let mut read = Vec::new();
        let mut bytes = 0;
        for &first in self.trees[start..].iter().filter(|first| !bad.contains(first)) {
            if bytes >= limit_bytes && !read.is_empty() {
                break;
            }
            let outcome = match &self.tree {
                Some((open, tree)) if *open == first => Ok(tree.clone()),
                _ => guard::call(|| self.opened.db.open_tree(tree_name(first))),
            }
            .and_then(|tree| {
                let outcome = read_tree(&tree, from, limit_bytes, &mut bytes, &mut read);
                self.tree = Some((first, tree));
                outcome
            });
            if let Err(failure) = outcome {
                return Err(PartFailure { part: Some(first), failure });
            }
        }
        Ok(read)
    }

    fn close(self: Box<Self>) {
        guard::close((self.tree, self.opened, self.copy), self.path, self.timeout);
    }
}

fn read_tree(
    tree: &::sled::Tree,
    from: EntrySeq,
    limit_bytes: usize,
    bytes: &mut usize,
    read: &mut Vec<StoredEntry>,
) -> Result<(), Failure> {
    guard::call(|| {
        for item in tree.range(from.0.to_be_bytes()..) {
            if *bytes >= limit_bytes && !read.is_empty() {
                break;
            }
            let (key, value) = item?;
            // Another key length was not written by the log: a hole for its continuity check.
            if let Ok(key) = <[u8; 8]>::try_from(key.as_ref()) {
                *bytes += value.len();
                read.push(StoredEntry { seq: EntrySeq(u64::from_be_bytes(key)), bytes: value.to_vec() });
            }
        }
        Ok(())
    })
}

fn tree_name(first: EntrySeq) -> [u8; 9] {
    let mut name = [b't'; 9];
    name[1..].copy_from_slice(&first.0.to_be_bytes());
    name
}

fn tree_first(name: &[u8]) -> Option<EntrySeq> {
    let digits = <[u8; 8]>::try_from(name.strip_prefix(b"t")?).ok()?;
    Some(EntrySeq(u64::from_be_bytes(digits)))
}
