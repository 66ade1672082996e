//! The log: one per gateway, a sequence of epochs that hold the batches of all partitions in arrival order.

pub mod store;

use std::sync::Arc;

use crate::record::{Offset, PartitionId, Record, StreamName};
pub use store::EntrySeq;

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

/// What one entry of the log holds: batches that were committed together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchGroup {
    /// Position of the entry.
    pub seq: EntrySeq,
    /// At most one per (stream, partition).
    pub batches: Vec<LogBatch>,
}

/// Proof that everything appended before is on stable storage: it survives a power cut.
///
/// Only [`Log::sync`] makes one, after the store's `fdatasync` returned, and nothing but it can become an
/// [`Acknowledgement`](crate::commit::Acknowledgement).
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostEntries {
    /// First entry that is gone.
    pub first: EntrySeq,
    /// Entry behind the last one that is gone.
    pub end: EntrySeq,
    /// What was found.
    pub reason: String,
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
}
