//! An epoch as sled writes it: trees of at most nine entries, so that sled never rewrites what it has written.
//!
//! A tree is named `t` and the sequence number of its first entry, big-endian; keys are sequence numbers, big-endian,
//! so that byte order is the order of the log.

use std::{os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use super::guard::{self, Opened};
use crate::log::store::{EntrySeq, StoredEntry, dir::sync_files, disk::WriteEpoch, failure::Failure};

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
