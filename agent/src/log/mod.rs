//! The log: one per gateway, a sequence of epochs that hold the batches of all partitions in arrival order.
//!
//! # What is where
//! * [`store`]: the engines that keep epochs of entries, behind one trait
//! * `entry`: an entry's bytes: header, checksum, compression
//! * `group` and `checkpoint`: what an entry holds
//! * `append`, `reader`, `recovery`, `retention`, `compact`: what becomes of them
//! * `dropped`: what a compacted entry tells of what is gone
//! * `notes`: what sources remember over restarts
//! * [`identity`]: whose data directory it is
//! * [`inspect`], [`verify`]: a look from outside; [`repair`]: a hand
//!
//! # Invariants
//! * An epoch starts with a checkpoint, so that it needs no other epoch; the newest one is never deleted.
//! * The id of a new epoch is the end of what is durable. What an older epoch holds from there on was never
//!   acknowledged and was written again: a reader ignores it.
//! * Every start of the agent begins a new epoch with its first commit. To go on in the old one would mean to write
//!   behind a tail that a power cut may have left in any state; a new one costs a directory.
//! * No sequence number and no offset that the replication cursor is past is given out again, whatever became of the
//!   disk, and none at all where damage shows: an epoch holds at most [`EPOCH_ENTRIES_MAX`] entries, so that behind a
//!   damaged one the sequence goes on at its id plus that, and offsets where none can have been (see
//!   [`Recovery::skipped`]). What a disk that lied about a sync takes back without a trace, and the cursor does not
//!   know yet, nobody notices: its numbers are given out again.

mod append;
mod checkpoint;
mod compact;
mod dropped;
mod entry;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod group;
pub mod identity;
pub mod inspect;
mod metrics;
mod notes;
mod reader;
mod recovery;
pub mod repair;
mod retention;
pub mod store;
#[cfg(test)]
mod tests;
pub mod verify;

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    config::{Compression, Policy},
    record::{Offset, PartitionId, Record, StreamName},
};
use append::Pending;
use checkpoint::NextOffsets;
use compact::Compaction;
pub use dropped::Dropped;
pub(crate) use entry::CRC_32C;
use entry::EntryCodec;
use group::Names;
pub use metrics::LogMetrics;
use notes::NoteTable;
pub use notes::{Change, NOTE_BYTES_MAX, NOTES_BYTES_MAX, Note, NoteBatch, NoteTooLarge, Remembered};
use reader::Continuity;
pub use recovery::Recovery;
use retention::Retained;
pub use retention::Retention;
pub use store::EntrySeq;
use store::{EpochId, EpochStore, StoreError};

/// Most entries in an epoch, checkpoint included; what the sequence skips behind a damaged epoch.
pub const EPOCH_ENTRIES_MAX: u64 = 4096;

/// Largest record that the log takes, in bytes as [`Record::size_bytes`] counts: alone in a group that does not
/// compress it still fits an entry.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Gap records may go over [`LogOptions::limit_bytes`] by one part of so many: what is dropped there must be told.
pub const GAP_PARTS: u64 = 16;

/// A batch with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogBatch {
    /// The stream.
    pub stream: StreamName,
    /// Its partition.
    pub partition: PartitionId,
    /// Offset of the first record; the others follow without a hole.
    pub base_offset: Offset,
    /// The records, never empty.
    pub records: Vec<Record>,
}

impl LogBatch {
    /// Offset behind the last record.
    pub fn end_offset(&self) -> Offset {
        Offset(self.base_offset.0.saturating_add(i64::try_from(self.records.len()).unwrap_or(i64::MAX)))
    }
}

/// What one entry of the log holds: batches that were committed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchGroup {
    /// Position of the entry.
    pub seq: EntrySeq,
    /// At most one per (stream, partition), but where compaction has left holes in one.
    pub batches: Vec<LogBatch>,
    /// What the log dropped here and of the entries before, back to the one that was read before this.
    pub dropped: Vec<Dropped>,
}

/// Proof that everything appended before is on stable storage: it survives a power cut.
///
/// Only [`Log::sync`] makes one, after the store's `fdatasync` returned, and nothing but it can become an
/// [`Acknowledgement`](crate::intake::Acknowledgement).
/// ```compile_fail
/// let forged = wayside::log::CommitReceipt { _private: () };
/// ```
#[derive(Debug)]
pub struct CommitReceipt {
    _private: (),
}

/// A completed sync.
#[derive(Debug)]
pub struct Committed {
    /// The proof.
    pub receipt: CommitReceipt,
    /// What became durable, in order, for replication from memory.
    pub groups: Vec<Arc<BatchGroup>>,
}

/// Entries that the log had and has no more, found by a gap in the sequence or a checksum. Counted and reported; the
/// reader goes on behind them.
///
/// Where the end of an epoch is gone nobody knows how far it went, and the range reaches to where the log went on: it
/// bounds the loss from above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostEntries {
    /// First entry that is gone.
    pub first: EntrySeq,
    /// Entry behind the last one that is gone.
    pub end: EntrySeq,
    /// What was found.
    pub reason: String,
}

/// The offsets in use where an epoch begins, or at the end of the log. Held against what was read before, they tell how many records are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownOffsets {
    /// The position.
    pub seq: EntrySeq,
    /// By partition the offset behind its last record.
    pub next: BTreeMap<(StreamName, PartitionId), Offset>,
    /// Below it the log may have skipped offsets without knowing how many were used; 0 if it never did.
    pub floor: Offset,
}

/// What [`Log::read`] found.
#[derive(Debug, Default)]
pub struct ReadOutcome {
    /// Groups, ascending; empty when the reader has reached the end of what is durable.
    pub groups: Vec<Arc<BatchGroup>>,
    /// Where to read next.
    pub next: EntrySeq,
    /// What is missing between `from` and `next`.
    pub lost: Vec<LostEntries>,
    /// What the log knew at some positions passed, ascending: where an epoch begins, and at the end if something was
    /// missing before.
    pub checkpoints: Vec<KnownOffsets>,
}

/// How to write.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Compression of entries. Entries written otherwise stay readable.
    pub compression: Compression,
    /// Bytes of a group before compression at which the next one is begun. 64 KiB at most: it must fit an entry.
    pub group_bytes: usize,
    /// Bytes on the device beyond which nothing is written but gap records, which may take [`GAP_PARTS`] more. What is
    /// under way may go over it, by the entries of one sync.
    pub limit_bytes: u64,
    /// Bytes that are to stay free on the device: with fewer nothing is written. As with `limit_bytes`, the entries of
    /// one sync may go over it.
    pub reserve_bytes: u64,
    /// What is kept though Kafka has it.
    pub retention: Retention,
    /// What may be dropped when the log is at its limit; [`Policy::Block`] for streams that are not named.
    pub policies: BTreeMap<StreamName, Policy>,
    /// A position that is known to be used: that of the replication cursor, 0 if none. A log that finds itself before
    /// it has lost its end unnoticed (a disk that lied about a sync) and goes on from here, so that the cursor does not
    /// take new entries for replicated ones.
    pub next_seq_min: EntrySeq,
    /// By partition the offset behind the last one that is known to be used, as the cursor has it; empty if there is
    /// none. A log that would give out one below goes on as with `next_seq_min`: without it new records would pass for
    /// replicated ones.
    pub offsets_min: BTreeMap<(StreamName, PartitionId), Offset>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            group_bytes: 64 * 1024,
            limit_bytes: u64::MAX,
            reserve_bytes: 0,
            retention: Retention::default(),
            policies: BTreeMap::new(),
            next_seq_min: EntrySeq(0),
            offsets_min: BTreeMap::new(),
        }
    }
}

/// What was asked is not done. What was appended stays in memory and nothing durable is gone: the caller waits, trims if
/// it can, and calls again.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The store could not do it.
    #[error("the log's store failed")]
    Store(#[from] StoreError),
    /// [`LogOptions::limit_bytes`] is reached: only [`Log::trim`] helps.
    #[error("the log has {size_bytes} bytes of at most {limit_bytes} (log.limit_bytes) and waits for Kafka")]
    Full {
        /// Bytes of all epochs on the device.
        size_bytes: u64,
        /// The bound.
        limit_bytes: u64,
    },
    /// Less than [`LogOptions::reserve_bytes`] is free: [`Log::trim`] helps, or whoever else fills the device.
    #[error(
        "{free_bytes} bytes are free where the log is, and {reserve_bytes} are to stay free (log.reserve_bytes)"
    )]
    Reserve {
        /// Bytes that are free.
        free_bytes: u64,
        /// The bound.
        reserve_bytes: u64,
    },
}

impl LogError {
    /// Whether the log has met a bound of its own: nothing is wrong with the disk, and nothing was tried.
    pub fn is_bound(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Reserve { .. })
    }

    /// Whether room would help, which [`Log::compact`] and [`Log::trim`] may make.
    pub fn is_full(&self) -> bool {
        self.is_bound() || matches!(self, Self::Store(StoreError::NoSpace { .. }))
    }
}

/// What the log holds, for metrics and bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStats {
    /// Bytes on the device, an estimate.
    pub size_bytes: u64,
    /// Epochs present.
    pub epochs: usize,
    /// Position of the first entry that is still there.
    pub first: EntrySeq,
    /// Position behind the last durable entry.
    pub end: EntrySeq,
    /// Bytes that wait in memory for the next sync, as they will be stored.
    pub pending_bytes: usize,
    /// Groups that wait in memory for the next sync.
    pub pending_groups: usize,
}

/// The log. One thread owns it; every call may block on the disk.
pub struct Log {
    store: Box<dyn EpochStore>,
    options: LogOptions,
    metrics: LogMetrics,
    codec: EntryCodec,
    names: Names,
    /// Body of the entry that is being encoded.
    raw: Vec<u8>,
    /// Epochs present, ascending.
    epochs: Vec<EpochId>,
    /// Whether the last of `epochs` is open for writing.
    writing: bool,
    /// Position behind the last durable entry.
    end: EntrySeq,
    boot: u64,
    /// Next offset of every partition, what waits in `pending` included.
    offsets: NextOffsets,
    /// What sources remember, as far as it is durable.
    notes: NoteTable,
    /// Appended, not durable.
    pending: Vec<Pending>,
    /// Durable, not yet handed out: by a sync that failed after it had made a part durable.
    committed: Vec<Arc<BatchGroup>>,
    continuity: Continuity,
    compaction: Compaction,
    retained: Retained,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log that `store` keeps, in a time that depends on its newest epoch alone. Damage is put aside, counted
    /// and told, and never a reason to refuse.
    ///
    /// # Errors
    /// [`LogError`] when the store cannot list or read at all, or when a full disk keeps it from opening the newest
    /// epoch. The caller waits and tries again.
    pub fn open(
        mut store: Box<dyn EpochStore>,
        options: LogOptions,
        metrics: LogMetrics,
    ) -> Result<(Self, Recovery), LogError> {
        assert!(
            (1..=append::GROUP_BYTES_MAX).contains(&options.group_bytes),
            "group_bytes is checked with the config"
        );
        let mut codec = EntryCodec::new(options.compression);
        let mut names = Names::default();
        let recovered = recovery::recover(store.as_mut(), &mut codec, &mut names, &options)?;
        let log = Self {
            store,
            codec,
            names,
            raw: Vec::new(),
            epochs: recovered.epochs,
            writing: false,
            end: recovered.report.end,
            boot: recovered.report.boot,
            offsets: recovered.offsets,
            notes: recovered.notes,
            pending: Vec::new(),
            committed: Vec::new(),
            continuity: Continuity::default(),
            compaction: Compaction::default(),
            retained: Retained::new(),
            options,
            metrics,
        };
        let quarantined = recovered.report.quarantined.len();
        log.metrics.quarantined.inc_by(u64::try_from(quarantined).unwrap_or(u64::MAX));
        log.metrics.damaged_entries.inc_by(recovered.report.damaged_entries);
        log.update_gauges();
        Ok((log, recovered.report))
    }

    /// Forgets what sources remember that are not named: they are not in the configuration any more.
    pub fn forget_others(&mut self, is_named: impl Fn(&str) -> bool) {
        self.notes.retain(is_named);
    }

    /// Position behind the last durable entry.
    pub fn end(&self) -> EntrySeq {
        self.end
    }

    /// Position of the first entry that is still there; [`Log::end`] when there is none.
    pub fn first(&self) -> EntrySeq {
        self.epochs.first().map_or(self.end, |epoch| epoch.0.min(self.end))
    }

    /// Starts that committed something to this log, this one included: a start that committed nothing gives its number
    /// to the next.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// What the log holds.
    pub fn stats(&self) -> LogStats {
        LogStats {
            size_bytes: self.store.size_bytes(),
            epochs: self.epochs.len(),
            first: self.first(),
            end: self.end,
            pending_bytes: self.pending.iter().map(Pending::stored_bytes).sum(),
            pending_groups: self.pending.len(),
        }
    }

    /// Bytes on the device of the epochs that begin before `seq`.
    pub fn size_bytes_before(&self, seq: EntrySeq) -> u64 {
        let before = self.epochs.iter().take_while(|epoch| epoch.0 < seq);
        before.map(|epoch| self.store.epoch_size_bytes(*epoch)).sum()
    }

    /// The offset of the next record that is appended to a partition.
    pub fn next_offset(&self, stream: StreamName, partition: PartitionId) -> Offset {
        self.offsets.next(&(stream, partition))
    }

    /// Whether a bound is met, [`LogOptions::limit_bytes`] or [`LogOptions::reserve_bytes`].
    pub fn is_full(&self) -> bool {
        self.bound_met(false).is_some()
    }

    /// The policy of a stream.
    pub fn policy(&self, stream: &StreamName) -> Policy {
        self.options.policies.get(stream).copied().unwrap_or_default()
    }

    fn update_gauges(&self) {
        self.metrics.epochs.set(i64::try_from(self.epochs.len()).unwrap_or(i64::MAX));
        self.metrics.size_bytes.set(i64::try_from(self.store.size_bytes()).unwrap_or(i64::MAX));
        self.metrics.entries.set(i64::try_from(self.end.0 - self.first().0).unwrap_or(i64::MAX));
    }
}
