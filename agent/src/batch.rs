//! Batches: records of one (stream, partition) that go into the log, and to Kafka, together.

use std::collections::BTreeMap;

use crate::record::{PartitionId, Record, StreamName};

/// Records of one (stream, partition) in the order in which their sources handed them over. It has no offsets yet:
/// the log gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The stream.
    pub stream: StreamName,
    /// Its partition.
    pub partition: PartitionId,
    /// The records, never empty.
    pub records: Vec<Record>,
}

/// Gathers records into batches until a commit takes them all.
///
/// A batch is closed by the commit that takes it, so its linger is the commit's window; by size it is closed by
/// [`Batcher::is_full`], which makes the commit start early.
#[derive(Debug, Default)]
pub struct Batcher {
    open: BTreeMap<(StreamName, PartitionId), Vec<Record>>,
    size_bytes: usize,
    record_count: usize,
}

impl Batcher {
    /// Adds a record behind all others of its (stream, partition).
    pub fn push(&mut self, partition: PartitionId, record: Record) {
        self.size_bytes += record.size_bytes();
        self.record_count += 1;
        self.open.entry((record.stream.clone(), partition)).or_default().push(record);
    }

    /// Bytes gathered, as [`Record::size_bytes`] counts them.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Records gathered.
    pub fn record_count(&self) -> usize {
        self.record_count
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Takes everything gathered, one batch per (stream, partition).
    pub fn take(&mut self) -> Vec<Batch> {
        self.size_bytes = 0;
        self.record_count = 0;
        std::mem::take(&mut self.open)
            .into_iter()
            .map(|((stream, partition), records)| Batch { stream, partition, records })
            .collect()
    }
}
