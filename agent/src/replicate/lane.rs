//! A lane: one (stream, partition) on its way to Kafka, strictly in order.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{cluster::DropReason, stamp::Stamp};
use crate::{
    log::{BatchGroup, EntrySeq, LogBatch},
    record::{DeviceId, Offset, PartitionId, Record, StreamName},
};

/// What of a batch has not been handed to the client yet.
#[derive(Debug)]
struct Pending {
    group: Arc<BatchGroup>,
    batch: usize,
    record: usize,
}

impl Pending {
    fn batch(&self) -> &LogBatch {
        &self.group.batches[self.batch]
    }
}

/// How a record ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Kafka has it.
    Delivered,
    /// Kafka never takes it.
    Dropped(DropReason),
}

/// A record that the client has.
#[derive(Debug)]
pub(super) struct Sent {
    /// Its place in the lane.
    pub(super) offset: Offset,
    /// The entry it came in.
    pub(super) entry: EntrySeq,
    /// As [`Record::size_bytes`].
    pub(super) size_bytes: usize,
    /// Key and value.
    pub(super) payload_bytes: usize,
    /// Nothing else is under way to its Kafka partition, so a refusal is meant for it alone.
    pub(super) alone: bool,
    /// Which of its times is Kafka's timestamp.
    pub(super) stamp: Stamp,
    /// How far that was ahead of the wall clock when it was sent.
    pub(super) skew_us: i64,
    /// That is not the time it should have.
    pub(super) restamped: bool,
    /// `None` while it is under way.
    pub(super) settled: Option<Settled>,
    /// The device, of a record that may still be dropped.
    pub(super) device: Option<Box<DeviceId>>,
}

/// The record that comes next in a lane.
pub(super) struct NextRecord<'a> {
    pub(super) entry: EntrySeq,
    pub(super) offset: Offset,
    pub(super) record: &'a Record,
}

/// One (stream, partition). Records come in order (`push`), go to the client in order (`sent`) and are acknowledged in
/// order (`pop_settled`), whatever order the delivery reports have.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) stream: StreamName,
    pub(super) partition: PartitionId,
    /// Index of the stream's topic.
    pub(super) topic: usize,
    /// Offset behind the last record that is settled with all before it.
    pub(super) acknowledged: Offset,
    /// Offset behind the last record known to be in the log.
    pub(super) end: Offset,
    /// Offset behind the last record that was taken from the log; `None` where it is not known.
    pub(super) taken: Option<Offset>,
    /// First offsets of what is missing here and not told to Kafka.
    pub(super) untold: BTreeSet<Offset>,
    /// False for a lane of gap records that the log does not hold: they tell of holes in it.
    pub(super) in_log: bool,
    /// Of such a lane: for each record not acknowledged the lane and offset that it tells of.
    pub(super) tells_of: VecDeque<(usize, Offset)>,
    /// Below this offset records are sent one at a time: a batch with one of them was refused.
    pub(super) alone_until: Offset,
    /// The record with this offset gets this time or a later one: those before were refused.
    pub(super) restamp: Option<(Offset, Stamp)>,
    pending: VecDeque<Pending>,
    sent: VecDeque<Sent>,
    /// Position of the first in `sent`, counted from the lane's beginning.
    first_position: u64,
}

impl Lane {
    /// A lane of the log, of which nothing was taken before `taken`.
    pub(super) fn new(
        stream: StreamName,
        partition: PartitionId,
        topic: usize,
        taken: Option<Offset>,
    ) -> Self {
        Self {
            stream,
            partition,
            topic,
            acknowledged: Offset(0),
            end: Offset(0),
            taken,
            untold: BTreeSet::new(),
            in_log: true,
            tells_of: VecDeque::new(),
            alone_until: Offset(0),
            restamp: None,
            pending: VecDeque::new(),
            sent: VecDeque::new(),
            first_position: 0,
        }
    }

    /// A lane of gap records that the log does not hold.
    pub(super) fn of_gaps(stream: StreamName, partition: PartitionId, topic: usize) -> Self {
        Self { in_log: false, ..Self::new(stream, partition, topic, None) }
    }

    /// Queues the records of a batch that are not acknowledged yet; returns how many.
    pub(super) fn push(&mut self, group: &Arc<BatchGroup>, batch: usize) -> usize {
        let LogBatch { base_offset, records, .. } = &group.batches[batch];
        let end = Offset(base_offset.0 + i64::try_from(records.len()).expect("a batch fits the memory"));
        // What is read again does not take it back.
        self.taken = Some(self.taken.map_or(end, |taken| taken.max(end)));
        let acknowledged = usize::try_from(self.acknowledged.0.saturating_sub(base_offset.0)).unwrap_or(0);
        let record = acknowledged.min(records.len());
        if record < records.len() {
            self.pending.push_back(Pending { group: Arc::clone(group), batch, record });
        }
        records.len() - record
    }

    /// The record to send next, unless it has to wait for those under way.
    pub(super) fn next(&self) -> Option<NextRecord<'_>> {
        let pending = self.pending.front()?;
        let batch = pending.batch();
        let offset = offset_of(batch, pending.record);
        if (offset < self.alone_until && self.is_under_way()) || self.sends_alone() {
            return None;
        }
        Some(NextRecord { entry: pending.group.seq, offset, record: &batch.records[pending.record] })
    }

    /// Whether the client has records of it.
    pub(super) fn is_under_way(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Whether the client has a record that is to be alone in its batch.
    fn sends_alone(&self) -> bool {
        self.sent.front().is_some_and(|sent| sent.alone)
    }

    /// Whether a record is, or is next, to be alone in its batch.
    pub(super) fn wants_alone(&self) -> bool {
        let next = self.pending.front().map(|pending| offset_of(pending.batch(), pending.record));
        self.sends_alone() || next.is_some_and(|offset| offset < self.alone_until)
    }

    /// Position that the next record sent will have.
    pub(super) fn next_position(&self) -> u64 {
        self.first_position + self.sent.len() as u64
    }

    /// Moves the next record over to those under way.
    pub(super) fn sent(&mut self, sent: Sent) {
        self.sent.push_back(sent);
        let pending = self.pending.front_mut().expect("the record sent was the front's");
        pending.record += 1;
        if pending.record == pending.batch().records.len() {
            self.pending.pop_front();
        }
    }

    /// The record at a position, if it is still under way.
    pub(super) fn at(&mut self, position: u64) -> Option<&mut Sent> {
        let index = usize::try_from(position.checked_sub(self.first_position)?).ok()?;
        self.sent.get_mut(index)
    }

    /// Takes the next record that is settled with all before it, and advances over it.
    pub(super) fn pop_settled(&mut self) -> Option<(Sent, Settled)> {
        let settled = self.sent.front()?.settled?;
        let sent = self.sent.pop_front()?;
        self.first_position += 1;
        self.acknowledged = Offset(sent.offset.0 + 1);
        Some((sent, settled))
    }

    /// Forgets what is pending and under way; it will be pushed again.
    pub(super) fn rewind(&mut self) {
        self.taken = self.taken.map(|_| self.acknowledged);
        if !self.in_log {
            self.end = self.acknowledged;
            self.tells_of.clear();
        }
        self.pending.clear();
        self.first_position += self.sent.len() as u64;
        self.sent.clear();
    }

    /// The log has no more: what is not here was trimmed, or its loss is being told.
    pub(super) fn is_at_end(&mut self) {
        if self.pending.is_empty() && self.sent.is_empty() {
            self.acknowledged = self.acknowledged.max(self.end);
            self.taken = Some(self.acknowledged);
        }
    }

    /// Offset behind the last record that is acknowledged or whose loss is told, with all before it.
    pub(super) fn cursor(&self) -> Offset {
        self.untold.first().map_or(self.acknowledged, |first| self.acknowledged.min(*first))
    }

    /// Records in the log behind the last acknowledged one.
    pub(super) fn lag_records(&self) -> u64 {
        u64::try_from(self.end.0 - self.acknowledged.0).unwrap_or(0)
    }
}

fn offset_of(batch: &LogBatch, record: usize) -> Offset {
    Offset(batch.base_offset.0 + i64::try_from(record).expect("a batch fits the memory"))
}
