//! The store on a disk: a data directory in which each epoch is kept by one of two engines, `sled` or `segment`.
//!
//! [`DiskOptions::engine`] is the one that new epochs are written with. An epoch that is there is read with the engine
//! that wrote it, told by the name of its file: after a change of `log.engine` the old ones drain and go as if nothing
//! had changed. What the engines share is here: names, recovery, rewriting, which handle is open, and what a failure
//! means to the log.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

pub use super::dir::OpenError;
use super::{
    ENTRY_BYTES_MAX, EntrySeq, EpochId, EpochStore, StoreError, StoredEntry,
    dir::DataDir,
    failure::Failure,
    segment::{self, SegmentReader, SegmentWriter},
    sled::{self, SledReader, SledWriter},
};
use crate::config::Engine;

/// An epoch that is being written. After any failure it is only closed.
pub(super) trait WriteEpoch: fmt::Debug + Send {
    /// As [`EpochStore::append`].
    fn append(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), Failure>;

    /// As [`EpochStore::sync`], as far as the entries are concerned.
    fn sync(&mut self) -> Result<(), Failure>;

    /// Makes durable what else the files of the epoch hold; called once, behind the first sync.
    fn sync_others(&mut self) -> Result<(), Failure>;

    /// As [`EpochStore::wants_roll`].
    fn wants_roll(&self) -> bool;

    /// As [`EpochStore::read`].
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<Vec<StoredEntry>, Failure>;

    /// Bytes that it takes on the device.
    fn size_bytes(&self) -> u64;

    /// Lets it go, in a time that is bounded where the engine can.
    fn close(self: Box<Self>);
}

/// An epoch that is being read. Nothing of it is written, whatever the disk allows.
pub(super) trait ReadEpoch: fmt::Debug + Send {
    /// As [`EpochStore::read`]. After a failure it is opened again.
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<Vec<StoredEntry>, Failure>;
}

/// An open epoch.
#[derive(Debug)]
struct Writing {
    id: EpochId,
    /// Whether a sync has completed.
    synced: bool,
    epoch: Box<dyn WriteEpoch>,
}

/// How epochs are written, and the bounds of it.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// What new epochs are written with.
    pub engine: Engine,
    /// Bytes at which an epoch is full. With sled also what bounds memory: it keeps the one in it that is written.
    pub epoch_bytes: u64,
    /// Free space that the ballast leaves.
    pub reserve_bytes: u64,
    /// Bytes set aside and given back when other processes have filled the disk. 0 is none.
    pub ballast_bytes: u64,
    /// Longest wait for a Db of sled to open or close.
    pub timeout: Duration,
}

impl DiskOptions {
    /// The options for epochs of `epoch_bytes`.
    pub fn for_epoch_bytes(epoch_bytes: u64) -> Self {
        Self {
            engine: Engine::default(),
            epoch_bytes,
            reserve_bytes: reserve_bytes_min(epoch_bytes),
            ballast_bytes: 4 << 20,
            timeout: Duration::from_secs(30),
        }
    }
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self::for_epoch_bytes(8 << 20)
    }
}

/// Free space that the store needs beside epochs of `epoch_bytes`: to finish the last one, and to begin the next.
pub const fn reserve_bytes_min(epoch_bytes: u64) -> u64 {
    epoch_bytes.saturating_mul(2).saturating_add(8 << 20)
}

/// So many old epochs are open: one is read in order, and another ahead of its turn.
const READERS_MAX: usize = 2;

/// A data directory with its epochs.
#[derive(Debug)]
pub struct DiskStore {
    dir: DataDir,
    options: DiskOptions,
    write: Option<Writing>,
    /// The epoch that is written again.
    rewrite: Option<Writing>,
    /// The old epochs that are open, the one read last at the end.
    readers: Vec<(EpochId, Box<dyn ReadEpoch>)>,
    sizes: BTreeMap<EpochId, u64>,
}

impl DiskStore {
    /// Opens the store in `dir`, which is created if it is missing. Finishes deletions that a crash interrupted and
    /// removes epochs in which nothing was ever acknowledged. Opens no epoch.
    ///
    /// # Errors
    /// [`OpenError`]: the caller stops.
    pub fn open(dir: &Path, options: DiskOptions) -> Result<Self, OpenError> {
        let path = dir;
        let dir = DataDir::open(path, options.ballast_bytes)?;
        let epochs = dir.recover().map_err(|source| OpenError::of(path, source))?;
        if let Some(newest) = epochs.last() {
            segment::give_back(&dir.epoch(*newest));
        }
        if let Ok(free_bytes) = dir.free_bytes() {
            dir.take_ballast(free_bytes, options.reserve_bytes);
        }
        let sizes = epochs.into_iter().map(|epoch| (epoch, dir.size_bytes(epoch))).collect();
        Ok(Self { dir, options, write: None, rewrite: None, readers: Vec::new(), sizes })
    }

    fn close_write(&mut self) {
        if let Some(write) = self.write.take() {
            let id = write.id;
            write.epoch.close();
            self.sizes.insert(id, self.dir.size_bytes(id));
        }
    }

    fn close(&mut self, epoch: EpochId) {
        if self.write.as_ref().is_some_and(|write| write.id == epoch) {
            self.close_write();
        }
        self.readers.retain(|(id, _)| *id != epoch);
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
            rewrite.epoch.close();
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
        step: impl FnOnce(&mut dyn WriteEpoch) -> Result<(), Failure>,
    ) -> Result<(), StoreError> {
        let Some(rewrite) = &mut self.rewrite else {
            let source = io::Error::other("no epoch is written again");
            return Err(io_error("rewrite", self.dir.path(), source));
        };
        let id = rewrite.id;
        step(rewrite.epoch.as_mut()).map_err(|failure| self.rewrite_failed(id, failure))
    }

    /// Runs a step of writing on the open epoch.
    fn with_write(
        &mut self,
        step: impl FnOnce(&mut dyn WriteEpoch) -> Result<(), Failure>,
    ) -> Result<(), StoreError> {
        let Some(write) = &mut self.write else {
            return Err(io_error(
                "write",
                &self.dir.path().join("e-*"),
                io::Error::other("no epoch is open"),
            ));
        };
        let id = write.id;
        step(write.epoch.as_mut()).map_err(|failure| self.write_failed(id, failure))
    }

    fn open_reader(&mut self, epoch: EpochId) -> Result<&mut dyn ReadEpoch, Failure> {
        let reader = match self.readers.iter().position(|(id, _)| *id == epoch) {
            Some(index) => self.readers.remove(index),
            None => (epoch, open_epoch(epoch, &self.dir.epoch(epoch))?),
        };
        if self.readers.len() == READERS_MAX {
            self.readers.remove(0);
        }
        self.readers.push(reader);
        let (_, reader) = self.readers.last_mut().expect("one was just pushed");
        Ok(reader.as_mut())
    }

    fn read_failed(&self, epoch: EpochId, failure: Failure) -> StoreError {
        match failure {
            Failure::NoSpace => StoreError::NoSpace { epoch },
            Failure::Broken(reason) => StoreError::Damaged { epoch, reason },
            Failure::Transient(error) => io_error("read", &self.dir.epoch(epoch), error),
        }
    }
}

impl EpochStore for DiskStore {
    fn epochs(&mut self) -> Result<Vec<EpochId>, StoreError> {
        Ok(self.sizes.keys().copied().collect())
    }

    fn quarantined(&mut self) -> Result<Vec<EpochId>, StoreError> {
        self.dir.quarantined().map_err(|source| io_error("list", self.dir.path(), source))
    }

    fn create(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        self.close_write();
        // Whoever still reads older ones opens them again.
        self.readers.clear();
        if let Ok(free_bytes) = self.dir.free_bytes() {
            self.dir.take_ballast(free_bytes, self.options.reserve_bytes);
        }
        let created = self
            .dir
            .create(epoch)
            .map_err(Failure::of_io)
            .and_then(|path| create_epoch(epoch, &path, &self.options));
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
        self.with_write(|write| write.sync())?;
        let Some(write) = &mut self.write else { return Ok(()) };
        let id = write.id;
        self.sizes.insert(id, write.epoch.size_bytes());
        if write.synced {
            return Ok(());
        }
        write.synced = true;
        // The data is on the disk; now its names, and the word that it is there.
        let others = write.epoch.sync_others();
        others
            .and_then(|()| self.dir.mark_synced(id).map_err(Failure::of_io))
            .map_err(|failure| self.write_failed(id, failure))
    }

    fn wants_roll(&self) -> bool {
        self.write.as_ref().is_some_and(|write| write.epoch.wants_roll())
    }

    fn read(
        &mut self,
        epoch: EpochId,
        from: EntrySeq,
        limit_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        if let Some(write) = self.write.as_mut().filter(|write| write.id == epoch) {
            match write.epoch.read(from, limit_bytes) {
                Ok(read) => return Ok(read),
                Err(failure) => {
                    tracing::warn!(%epoch, reason = failure.into_reason(), "the epoch is opened again to read it");
                    self.close_write();
                }
            }
        }
        let read = self.open_reader(epoch).and_then(|reader| reader.read(from, limit_bytes));
        read.map_err(|failure| {
            self.readers.retain(|(id, _)| *id != epoch);
            self.read_failed(epoch, failure)
        })
    }

    fn begin_rewrite(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        self.close_rewrite();
        let created = self
            .dir
            .create_rewrite(epoch)
            .map_err(Failure::of_io)
            .and_then(|path| create_epoch(epoch, &path, &self.options));
        self.rewrite = Some(created.map_err(|failure| self.rewrite_failed(epoch, failure))?);
        Ok(())
    }

    fn append_rewrite(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), StoreError> {
        assert!(entry.len() <= ENTRY_BYTES_MAX, "an entry of {} bytes", entry.len());
        self.with_rewrite(|rewrite| rewrite.append(seq, entry))
    }

    fn finish_rewrite(&mut self, last: EpochId) -> Result<(), StoreError> {
        self.with_rewrite(|rewrite| rewrite.sync())?;
        let Some(rewrite) = self.rewrite.take() else { return Ok(()) };
        let first = rewrite.id;
        rewrite.epoch.close();
        self.readers.clear();
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

impl DiskStore {
    fn forget(&mut self, epoch: EpochId) {
        self.sizes.remove(&epoch);
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.close_rewrite();
        self.close_write();
    }
}

/// What wrote the epoch in `path`, and the file that has its entries; none where there is no such file.
pub(in crate::log) fn written_by(path: &Path) -> Option<(Engine, PathBuf)> {
    let files = [(Engine::Segment, segment::FILE), (Engine::Sled, sled::FILE)];
    let mut files = files.into_iter().map(|(engine, name)| (engine, path.join(name)));
    files.find(|(_, file)| file.symlink_metadata().is_ok())
}

/// Makes a new epoch in the empty directory `path`.
fn create_epoch(epoch: EpochId, path: &Path, options: &DiskOptions) -> Result<Writing, Failure> {
    let &DiskOptions { engine, epoch_bytes, timeout, .. } = options;
    let writer: Box<dyn WriteEpoch> = match engine {
        Engine::Sled => Box::new(SledWriter::create(path.into(), epoch_bytes, timeout)?),
        Engine::Segment => Box::new(SegmentWriter::create(epoch, path, epoch_bytes)?),
    };
    Ok(Writing { id: epoch, synced: false, epoch: writer })
}

/// Opens the epoch in `path` as the engine wrote it.
fn open_epoch(epoch: EpochId, path: &Path) -> Result<Box<dyn ReadEpoch>, Failure> {
    Ok(match written_by(path) {
        Some((Engine::Segment, file)) => Box::new(SegmentReader::open(epoch, &file)?),
        Some((Engine::Sled, file)) => Box::new(SledReader::open(&file)?),
        None => return Err(Failure::Broken("it has no file with entries".into())),
    })
}

fn io_error(action: &str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { action: format!("{action} {}", path.display()), source }
}
