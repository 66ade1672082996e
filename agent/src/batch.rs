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
/// A batch is closed by the commit that takes it: its linger is the commit's window, its size what starts a commit early
/// (`commit.batch_bytes`).
#[derive(Debug, Default)]
pub struct Batcher {
    open: BTreeMap<(StreamName, PartitionId), Vec<Record>>,
    size_bytes: usize,
    record_count: usize,
}

impl Batcher {
    /// Adds a record behind all others of its (stream, partition). Returns how many these are.
    pub fn push(&mut self, partition: PartitionId, record: Record) -> usize {
        self.size_bytes += record.size_bytes();
        self.record_count += 1;
        let records = self.open.entry((record.stream.clone(), partition)).or_default();
        records.push(record);
        records.len() - 1
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::{ContentType, DeviceId, Received};

    fn record(stream: &str, value: &str) -> Record {
        Record {
            stream: StreamName::new(stream).unwrap(),
            device: DeviceId::new("d").unwrap(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            content_type: ContentType::OctetStream,
            event_time: None,
            received: Received::default(),
            device_seq: None,
            headers: Vec::new(),
        }
    }

    #[test]
    fn records_of_a_partition_keep_their_order() {
        let mut batcher = Batcher::default();
        for (partition, value) in [(1, "a"), (0, "b"), (1, "c")] {
            batcher.push(PartitionId(partition), record("s", value));
        }
        let batches = batcher.take();
        let values: Vec<_> = batches
            .iter()
            .map(|batch| {
                (batch.partition.0, batch.records.iter().map(|r| r.value.to_vec()).collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(values, [(0, vec![b"b".to_vec()]), (1, vec![b"a".to_vec(), b"c".to_vec()])]);
    }

    #[test]
    fn a_taken_batcher_counts_from_zero() {
        let mut batcher = Batcher::default();
        batcher.push(PartitionId(0), record("s", "a"));
        assert!(batcher.size_bytes() > 0);
        batcher.take();
        assert_eq!((batcher.size_bytes(), batcher.record_count(), batcher.is_empty()), (0, 0, true));
    }
}
