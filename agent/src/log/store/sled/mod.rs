//! The engine `sled`: one sled Db for each epoch, in a layout in which sled only ever appends.
//!
//! Plain sled 0.34.7 is not fit for a log: its `flush` is no fsync, it writes three to six bytes for each byte kept,
//! its memory grows with what was read, and its files never shrink. With a Db for each epoch (deleted as a directory),
//! at most nine entries in a tree and values below a quarter of a segment, none of that happens; the rest is guarded
//! (`guard`). All of it leans on internals of exactly this release, which is why it is pinned.

mod dir;
mod epoch;
mod guard;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::Duration,
};

use super::{ENTRY_BYTES_MAX, EntrySeq, EpochId, EpochStore, SLOW_OPENS_MAX, StoreError, StoredEntry};
pub(in crate::log) use dir::DataDir;
pub use dir::OpenError;
pub(in crate::log) use dir::{MARKER, OWN_FILES};
use epoch::{ReadEpoch, WriteEpoch};
use guard::Failure;

// A larger value would become a blob file, which sled never syncs.
const _: () = assert!(ENTRY_BYTES_MAX + 4096 <= guard::SEGMENT_BYTES / 4);

/// A file system in memory.
pub(in crate::log) const MEMORY_DIR: &str = "/dev/shm";

/// Bounds of the engine.
#[derive(Clone, Debug)]
pub struct SledOptions {
    /// Bytes at which an epoch is full. Also what bounds memory: sled keeps an epoch in it.
    pub epoch_bytes: u64,
    /// Free space that the ballast leaves.
    pub reserve_bytes: u64,
    /// Bytes set aside and given back when other processes have filled the disk: sled writes even to open. 0 is none.
    pub ballast_bytes: u64,
    /// Longest wait for a Db to open or close.
    pub timeout: Duration,
}

impl SledOptions {
    /// The options for epochs of `epoch_bytes`.
    pub fn for_epoch_bytes(epoch_bytes: u64) -> Self {
        Self {
            epoch_bytes,
            reserve_bytes: reserve_bytes_min(epoch_bytes),
            ballast_bytes: 4 << 20,
            timeout: Duration::from_secs(30),
        }
    }
}

impl Default for SledOptions {
    fn default() -> Self {
        Self::for_epoch_bytes(8 << 20)
    }
}

/// Free space that the engine needs beside epochs of `epoch_bytes`: to finish the last one, and since sled writes even to
/// open what is there.
pub const fn reserve_bytes_min(epoch_bytes: u64) -> u64 {
    epoch_bytes.saturating_mul(2).saturating_add(8 << 20)
}

/// A data directory with one sled Db for each epoch.
#[derive(Debug)]
pub struct SledStore {
    dir: DataDir,
    options: SledOptions,
    write: Option<WriteEpoch>,
    /// The epoch that is written again.
    rewrite: Option<WriteEpoch>,
    /// At most one old epoch is open: each costs its size in memory.
    reader: Option<ReadEpoch>,
    /// Trees that did not read; what was in them is a hole.
    bad_trees: BTreeSet<(EpochId, EntrySeq)>,
    slow_opens: BTreeMap<EpochId, u32>,
    sizes: BTreeMap<EpochId, u64>,
}

impl SledStore {
    /// Opens the store in `dir`, which is created if it is missing. Finishes deletions that a crash interrupted and
    /// removes epochs in which nothing was ever acknowledged. Opens no Db.
    ///
    /// # Errors
    /// [`OpenError`]: the caller stops.
    pub fn open(dir: &Path, options: SledOptions) -> Result<Self, OpenError> {
        let path = dir;
        let dir = DataDir::open(path, options.ballast_bytes)?;
        let epochs = dir.recover().map_err(|source| OpenError::of(path, source))?;
        if let Ok(free_bytes) = dir.free_bytes() {
            dir.take_ballast(free_bytes, options.reserve_bytes);
        }
        let sizes = epochs.into_iter().map(|epoch| (epoch, dir.size_bytes(epoch))).collect();
        Ok(Self {
            dir,
            options,
            write: None,
            rewrite: None,
            reader: None,
            bad_trees: BTreeSet::new(),
            slow_opens: BTreeMap::new(),
            sizes,
        })
    }

    fn close_write(&mut self) {
        if let Some(write) = self.write.take() {
            let id = write.id;
            write.close(self.options.timeout);
            self.sizes.insert(id, self.dir.size_bytes(id));
        }
    }

    fn close_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.close(self.options.timeout);
        }
    }

    fn close(&mut self, epoch: EpochId) {
        if self.write.as_ref().is_some_and(|write| write.id == epoch) {
            self.close_write();
        }
        if self.reader.as_ref().is_some_and(|reader| reader.id == epoch) {
            self.close_reader();
        }
    }

    /// What a failure while writing means to the log. The handle is dead, whatever it was.
    fn write_failed(&mut self, epoch: EpochId, failure: Failure) -> StoreError {
        self.close_write();
        self.handle_dead(epoch, failure)
    }

    fn handle_dead(&self, epoch: EpochId, failure: Failure) -> StoreError {
        match failure {
            Failure::NoSpace => {
                self.dir.drop_ballast();
                StoreError::NoSpace { epoch }
            }
            other => StoreError::HandleDead { epoch, reason: other.into_reason() },
        }
    }

    fn close_rewrite(&mut self) {
        if let Some(rewrite) = self.rewrite.take() {
            rewrite.close(self.options.timeout);
        }
    }

    /// As [`write_failed`](Self::write_failed); what was there is there.
    fn rewrite_failed(&mut self, epoch: EpochId, failure: Failure) -> StoreError {
        self.close_rewrite();
        self.handle_dead(epoch, failure)
    }

    /// Runs a step of writing on the epoch that is written again.
    fn with_rewrite(
        &mut self,
        step: impl FnOnce(&mut WriteEpoch) -> Result<(), Failure>,
    ) -> Result<(), StoreError> {
        let Some(rewrite) = &mut self.rewrite else {
            let source = io::Error::other("no epoch is written again");
            return Err(io_error("rewrite", self.dir.path(), source));
        };
        let id = rewrite.id;
        step(rewrite).map_err(|failure| self.rewrite_failed(id, failure))
    }

    /// Runs a step of writing on the open epoch.
    fn with_write(
        &mut self,
        step: impl FnOnce(&mut WriteEpoch) -> Result<(), Failure>,
    ) -> Result<(), StoreError> {
        let Some(write) = &mut self.write else {
            return Err(io_error(
                "write",
                &self.dir.path().join("e-*"),
                io::Error::other("no epoch is open"),
            ));
        };
        let id = write.id;
        step(write).map_err(|failure| self.write_failed(id, failure))
    }

    fn open_reader(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        if self.reader.as_ref().is_some_and(|reader| reader.id == epoch) {
            return Ok(());
        }
        self.close_reader();
        let path = self.dir.epoch(epoch);
        let mut opened = ReadEpoch::open(epoch, &path, self.options.timeout);
        if matches!(opened, Err(Failure::NoSpace)) && self.dir.drop_ballast() {
            opened = ReadEpoch::open(epoch, &path, self.options.timeout);
        }
        if opened.as_ref().is_err_and(Failure::is_of_writing) {
            tracing::warn!(%epoch, "the disk takes no writes: the epoch is read from a copy in memory");
            opened = ReadEpoch::open_in_memory(epoch, &path, Path::new(MEMORY_DIR), self.options.timeout);
        }
        match opened {
            Ok(reader) => {
                self.slow_opens.remove(&epoch);
                self.reader = Some(reader);
                Ok(())
            }
            Err(failure) => Err(self.read_failed(epoch, &path, failure)),
        }
    }

    fn read_failed(&mut self, epoch: EpochId, path: &Path, failure: Failure) -> StoreError {
        match failure {
            Failure::NoSpace => StoreError::NoSpace { epoch },
            Failure::Broken(reason) => StoreError::Damaged { epoch, reason },
            Failure::Locked => io_error("open", path, io::Error::other("its lock is held")),
            Failure::Transient(error) => {
                let slow = self.slow_opens.entry(epoch).or_default();
                *slow += u32::from(error.kind() == io::ErrorKind::TimedOut);
                if *slow >= SLOW_OPENS_MAX {
                    return StoreError::Damaged {
                        epoch,
                        reason: format!("did not open in time {slow} times"),
                    };
                }
                io_error("open", path, error)
            }
        }
    }
}

impl EpochStore for SledStore {
    fn epochs(&mut self) -> Result<Vec<EpochId>, StoreError> {
        Ok(self.sizes.keys().copied().collect())
    }

    fn quarantined(&mut self) -> Result<Vec<EpochId>, StoreError> {
        self.dir.quarantined().map_err(|source| io_error("list", self.dir.path(), source))
    }

    fn create(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        self.close_write();
        if let Ok(free_bytes) = self.dir.free_bytes() {
            self.dir.take_ballast(free_bytes, self.options.reserve_bytes);
        }
        let created = self
            .dir
            .create(epoch)
            .map_err(Failure::of_io)
            .and_then(|path| WriteEpoch::create(epoch, path, self.options.timeout));
        match created {
            Ok(write) => {
                self.sizes.insert(epoch, 0);
                self.write = Some(write);
                Ok(())
            }
            Err(failure) => Err(self.write_failed(epoch, failure)),
        }
    }

    fn append(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), StoreError> {
        assert!(entry.len() <= ENTRY_BYTES_MAX, "an entry of {} bytes", entry.len());
        self.with_write(|write| write.append(seq, entry))
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.with_write(WriteEpoch::sync)?;
        let Some(write) = &mut self.write else { return Ok(()) };
        let id = write.id;
        self.sizes.insert(id, write.size_bytes());
        if !write.synced {
            write.synced = true;
            // The data is on the disk; now its names, and the word that it is there.
            if let Err(error) = self.dir.mark_synced(id) {
                return Err(self.write_failed(id, Failure::of_io(error)));
            }
        }
        Ok(())
    }

    fn wants_roll(&self) -> bool {
        self.write.as_ref().is_some_and(|write| write.wants_roll(self.options.epoch_bytes))
    }

    fn read(
        &mut self,
        epoch: EpochId,
        from: EntrySeq,
        limit_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        if let Some(write) = self.write.as_ref().filter(|write| write.id == epoch) {
            match write.read(from, limit_bytes) {
                Ok(read) => {
                    // The reader has caught up: what it read from before need not stay in memory.
                    self.close_reader();
                    return Ok(read);
                }
                Err(failure) => {
                    tracing::warn!(%epoch, reason = failure.into_reason(), "the epoch is opened again to read it");
                    self.close_write();
                }
            }
        }
        // Each round reads, fails, or finds one more bad tree.
        loop {
            self.open_reader(epoch)?;
            let Some(reader) = &mut self.reader else { continue };
            let bad = self.bad_trees.iter().filter(|(of, _)| *of == epoch).map(|(_, tree)| *tree).collect();
            match reader.read(from, limit_bytes, &bad) {
                Ok(read) => return Ok(read),
                Err(failed) => {
                    self.close_reader();
                    let Failure::Broken(reason) = failed.failure else {
                        return Err(self.read_failed(epoch, &self.dir.epoch(epoch), failed.failure));
                    };
                    tracing::error!(%epoch, tree = %failed.tree, reason, "a part of the epoch does not read");
                    self.bad_trees.insert((epoch, failed.tree));
                }
            }
        }
    }

    fn begin_rewrite(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        self.close_rewrite();
        let created = self
            .dir
            .create_rewrite(epoch)
            .map_err(Failure::of_io)
            .and_then(|path| WriteEpoch::create(epoch, path, self.options.timeout));
        self.rewrite = Some(created.map_err(|failure| self.rewrite_failed(epoch, failure))?);
        Ok(())
    }

    fn append_rewrite(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), StoreError> {
        assert!(entry.len() <= ENTRY_BYTES_MAX, "an entry of {} bytes", entry.len());
        self.with_rewrite(|rewrite| rewrite.append(seq, entry))
    }

    fn finish_rewrite(&mut self, last: EpochId) -> Result<(), StoreError> {
        self.with_rewrite(WriteEpoch::sync)?;
        let Some(rewrite) = self.rewrite.take() else { return Ok(()) };
        let first = rewrite.id;
        rewrite.close(self.options.timeout);
        self.close_reader();
        let action = |source| io_error("rewrite", &self.dir.epoch(first), source);
        self.dir.finish_rewrite(first, last).map_err(action)?;
        let replaced: Vec<EpochId> = self.sizes.range(first..=last).map(|(id, _)| *id).collect();
        replaced.into_iter().for_each(|epoch| self.forget(epoch));
        self.sizes.insert(first, self.dir.size_bytes(first));
        Ok(())
    }

    fn delete(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        self.close(epoch);
        self.dir.delete(epoch).map_err(|source| io_error("delete", &self.dir.epoch(epoch), source))?;
        self.forget(epoch);
        Ok(())
    }

    fn quarantine(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        self.close(epoch);
        self.dir.quarantine(epoch).map_err(|source| io_error("put aside", &self.dir.epoch(epoch), source))?;
        self.forget(epoch);
        Ok(())
    }

    fn epoch_size_bytes(&self, epoch: EpochId) -> u64 {
        self.sizes.get(&epoch).copied().unwrap_or(0)
    }

    fn size_bytes(&self) -> u64 {
        self.sizes.values().sum()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.dir.free_bytes().ok()
    }
}

impl SledStore {
    fn forget(&mut self, epoch: EpochId) {
        self.sizes.remove(&epoch);
        self.slow_opens.remove(&epoch);
        self.bad_trees.retain(|(of, _)| *of != epoch);
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.close_reader();
        self.close_rewrite();
        self.close_write();
    }
}

/// The epoch that a directory of this name holds.
pub(in crate::log) fn parse_epoch(name: &str) -> Option<EpochId> {
    dir::parse(name, "e-")
}

/// The epoch that a directory of this name holds, put aside.
pub(in crate::log) fn parse_quarantined(name: &str) -> Option<EpochId> {
    dir::parse(name, "bad-")
}

/// The epoch that a directory of this name held before its deletion was begun.
pub(in crate::log) fn parse_half_deleted(name: &str) -> Option<EpochId> {
    dir::parse(name, "del-")
}

/// Whether a sync of the epoch at `path` has completed. Where the disk does not say, it has: as at a start.
pub(in crate::log) fn is_synced(path: &Path) -> bool {
    path.join(MARKER).try_exists().unwrap_or(true)
}

fn io_error(action: &str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { action: format!("{action} {}", path.display()), source }
}
