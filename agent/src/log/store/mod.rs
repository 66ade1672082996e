//! The seam under the log: a place that keeps epochs of entries and can be asked to make them durable.
//!
//! An **epoch** is a run of entries that is created, synced and deleted as one; an **entry** is a byte string under a
//! dense sequence number. Nothing above this trait knows which engine runs; offsets, checksums, retention, recovery and
//! quarantine belong to the log above. Every engine passes the one contract suite in `contract.rs`:
//! * [`disk`]: a data directory, in which `sled` or `segment` keeps an epoch
//! * [`simulated`]: in memory, with every fault that a disk can have; for tests and simulations

mod blocks;
#[cfg(test)]
pub(in crate::log) mod contract;
pub(in crate::log) mod dir;
pub mod disk;
mod failure;
pub(crate) mod segment;
pub mod simulated;
mod sled;

use std::fmt;

/// Position of an entry in the log, dense over all epochs, from 0. The id of an epoch is that of its first entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntrySeq(pub u64);

impl EntrySeq {
    /// The position after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for EntrySeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Id of an epoch: the sequence number of its first entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(pub EntrySeq);

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e-{:016x}", self.0.0)
    }
}

/// Largest entry that an engine must keep, in bytes. With sled's 512 KiB segments a value over 128 KiB would become a
/// blob file, which sled never syncs; a quarter stays in reserve for sled's own framing.
pub const ENTRY_BYTES_MAX: usize = 96 * 1024;

/// What went wrong in a store, by what the log must do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The open epoch's handle is unusable; unsynced entries may be gone. The log opens a new epoch and appends what
    /// was not synced again.
    #[error("epoch {epoch}: {reason}")]
    HandleDead {
        /// The epoch whose handle died.
        epoch: EpochId,
        /// The engine's words.
        reason: String,
    },
    /// The disk is full. As [`StoreError::HandleDead`], and the log frees space first.
    #[error("epoch {epoch}: no space left on the device")]
    NoSpace {
        /// The epoch that was being written.
        epoch: EpochId,
    },
    /// The epoch cannot be read at all. The log quarantines it and goes on behind it.
    #[error("epoch {epoch} is damaged: {reason}")]
    Damaged {
        /// The epoch.
        epoch: EpochId,
        /// The engine's words.
        reason: String,
    },
    /// Input or output failed outside an epoch (listing, deleting, renaming). The log tries again later.
    #[error("{action}")]
    Io {
        /// What was tried, with the path.
        action: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// An entry as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// Its position.
    pub seq: EntrySeq,
    /// Its bytes, as given to [`EpochStore::append`] if nothing damaged them: the log checks.
    pub bytes: Vec<u8>,
}

/// Keeps epochs. One thread owns it; at most one epoch is open for writing.
pub trait EpochStore: Send {
    /// Epochs present, ascending. Quarantined ones are not listed.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn epochs(&mut self) -> Result<Vec<EpochId>, StoreError>;

    /// Epochs put aside by [`quarantine`](Self::quarantine), now or before, ascending: their ids are used up.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn quarantined(&mut self) -> Result<Vec<EpochId>, StoreError>;

    /// Creates the epoch and opens it for writing; the one open before is closed. Durable, with its directory entry,
    /// when the first [`sync`](Self::sync) returns; an epoch that never got so far is not there after a restart.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::HandleDead`], [`StoreError::Io`]; nothing is open for writing then.
    fn create(&mut self, epoch: EpochId) -> Result<(), StoreError>;

    /// Appends to the epoch open for writing. Not durable before [`sync`](Self::sync). `entry` has at most
    /// [`ENTRY_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// After any error the epoch is closed for writing, and its unsynced entries may or may not be there.
    fn append(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), StoreError>;

    /// Makes every entry appended before durable: on return it survives a power cut.
    ///
    /// # Errors
    /// As [`append`](Self::append): nothing since the last good sync counts as durable.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// Whether the engine wants the log to roll to a new epoch before the next append (by size or count).
    fn wants_roll(&self) -> bool;

    /// Entries of `epoch` from `from` on, ascending, until `limit_bytes` are exceeded or the epoch ends; at least one
    /// if there is one. Also reads the epoch open for writing, including what is not synced yet. A part that does not
    /// read may be left out: the log looks for holes.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the epoch will not open; any other error may pass by waiting or freeing space.
    fn read(
        &mut self,
        epoch: EpochId,
        from: EntrySeq,
        limit_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError>;

    /// Begins to write `epoch`, which is there and not open for writing, again, beside the one open for writing. What
    /// was begun before and not finished is given up.
    ///
    /// # Errors
    /// As [`create`](Self::create); nothing has changed then.
    fn begin_rewrite(&mut self, epoch: EpochId) -> Result<(), StoreError>;

    /// Appends to the epoch that is written again.
    ///
    /// # Errors
    /// As [`append`](Self::append); the rewriting is given up then.
    fn append_rewrite(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), StoreError>;

    /// Puts what was written in the place of the epoch and of those behind it to `last`. A crash in between leaves all
    /// of them or it alone.
    ///
    /// # Errors
    /// As [`sync`](Self::sync); what was there is there then.
    fn finish_rewrite(&mut self, last: EpochId) -> Result<(), StoreError>;

    /// Deletes the epoch and gives its space back. A crash in between leaves it deleted or whole.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn delete(&mut self, epoch: EpochId) -> Result<(), StoreError>;

    /// Puts the epoch aside under a name that [`epochs`](Self::epochs) does not list; never deletes it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn quarantine(&mut self, epoch: EpochId) -> Result<(), StoreError>;

    /// Bytes that an epoch takes on the device, an estimate; 0 if it is not there.
    fn epoch_size_bytes(&self, epoch: EpochId) -> u64;

    /// Bytes that all epochs take on the device, an estimate for metrics and bounds.
    fn size_bytes(&self) -> u64;

    /// Bytes that are free on the device; none where nobody knows.
    fn free_bytes(&self) -> Option<u64>;
}
