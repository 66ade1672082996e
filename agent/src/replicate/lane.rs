//! A lane: one (stream, partition) on its way to Kafka, strictly in order.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{cluster::DropReason, stamp::Stamp};
use crate::{
    env::Monotonic,
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
    /// Its partition in Kafka.
    pub(super) partition: PartitionId,
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
    /// Its time of receipt was worked out from a better clock than it was received by.
    pub(super) corrected: bool,
    /// `None` while it is under way.
    pub(super) settled: Option<Settled>,
    /// The device, of a record that may still be dropped.
    pub(super) device: Option<Box<DeviceId>>,
}

/// What of a batch or group was queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    pub(super) records: usize,
    /// As [`Record::size_bytes`].
    pub(super) bytes: usize,
}

/// The record that comes next in a lane.
pub(super) struct NextRecord<'a> {
    pub(super) entry: EntrySeq,
    pub(super) offset: Offset,
    pub(super) record: &'a Record,
}

/// Kafka refuses a whole batch for one record and does not say which. So it is looked for in ever smaller parts: after a
/// refusal half as many records go at a time as were refused, until one is refused alone; then twice as many whenever
/// all are settled. A batch of 100 000 gives up its one bad record after 17 restarts of the producer; one by one it would
/// take hours.
#[derive(Debug)]
struct Window {
    /// Records that may be under way together.
    records: usize,
    /// Of these, how many may still be sent before all have to be settled.
    left: usize,
    /// So many were refused together: not to be tried again soon.
    too_many: usize,
    /// How often all were settled since the last refusal.
    settled: u32,
}

impl Window {
    fn new(records: usize, too_many: usize) -> Self {
        Self { records, left: records, too_many, settled: 0 }
    }

    /// The window for what follows, when all under way is settled. `None` where it would be larger than any batch.
    fn next(mut self, settled: Settled) -> Option<Self> {
        self.left = self.records;
        if settled != Settled::Delivered {
            return Some(self);
        }
        self.settled += 1;
        // A topic may take no batch of this size, for none of its records.
        if self.records * 2 < self.too_many || self.settled >= SETTLED_BEFORE_MORE {
            self.records *= 2;
            self.left = self.records;
        }
        (self.records <= WINDOW_MAX_RECORDS).then_some(self)
    }
}

const WINDOW_MAX_RECORDS: usize = 1 << 17;
const SETTLED_BEFORE_MORE: u32 = 64;

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
    /// While what was refused is looked for.
    window: Option<Window>,
    /// Records refused together since the producer was started.
    refused: usize,
    /// Kafka did not take its records in the time of a transaction while it took others': it sits out until then.
    pub(super) sits_out: Option<Monotonic>,
    /// The record with this offset gets this time or a later one: those before were refused.
    pub(super) restamp: Option<(Offset, Stamp)>,
    /// Offset behind the last record pushed since the last rewind. Unlike `taken`, not moved by what the log dropped.
    pushed: Offset,
    /// Of the records pushed and not acknowledged.
    pub(super) in_flight_bytes: usize,
    /// Of those that the client does not have.
    pub(super) pending_bytes: usize,
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
            window: None,
            refused: 0,
            sits_out: None,
            restamp: None,
            pushed: Offset(0),
            in_flight_bytes: 0,
            pending_bytes: 0,
            pending: VecDeque::new(),
            sent: VecDeque::new(),
            first_position: 0,
        }
    }

    /// A lane of gap records that the log does not hold.
    pub(super) fn of_gaps(stream: StreamName, partition: PartitionId, topic: usize) -> Self {
        Self { in_log: false, ..Self::new(stream, partition, topic, None) }
    }

    /// Queues the records of a batch that were not taken before.
    pub(super) fn push(&mut self, group: &Arc<BatchGroup>, batch: usize) -> Pushed {
        let log_batch = &group.batches[batch];
        let done = self.done_of(log_batch);
        let end = log_batch.end_offset();
        self.taken = Some(self.taken.map_or(end, |taken| taken.max(end)));
        self.pushed = self.pushed.max(end);
        let records = &log_batch.records[done..];
        if !records.is_empty() {
            self.pending.push_back(Pending { group: Arc::clone(group), batch, record: done });
        }
        let bytes = records.iter().map(Record::size_bytes).sum();
        self.in_flight_bytes += bytes;
        self.pending_bytes += bytes;
        Pushed { records: records.len(), bytes }
    }

    /// How many records of a batch, from its first on, are acknowledged or were pushed already.
    pub(super) fn done_of(&self, batch: &LogBatch) -> usize {
        let done = self.pushed.max(self.acknowledged);
        let records = usize::try_from(done.0.saturating_sub(batch.base_offset.0)).unwrap_or(0);
        records.min(batch.records.len())
    }

    /// The record to send next, unless it has to wait for those under way.
    pub(super) fn next(&self) -> Option<NextRecord<'_>> {
        if self.window.as_ref().is_some_and(|window| window.left == 0) {
            return None;
        }
        let pending = self.pending.front()?;
        let batch = pending.batch();
        let offset = offset_of(batch, pending.record);
        Some(NextRecord { entry: pending.group.seq, offset, record: &batch.records[pending.record] })
    }

    /// Whether the client has records of it.
    pub(super) fn is_under_way(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Whether its next record goes alone, so that a refusal is meant for that.
    pub(super) fn sends_alone(&self) -> bool {
        self.window.as_ref().is_some_and(|window| window.records == 1)
    }

    /// Whether it has records that no other lane's may share a batch with: one of them was refused.
    pub(super) fn is_suspect(&self) -> bool {
        self.window.is_some() && (self.is_under_way() || !self.pending.is_empty())
    }

    /// Notes that a record was refused, perhaps for another one of its batch.
    pub(super) fn refused_with_others(&mut self) {
        self.refused += 1;
    }

    /// Position that the next record sent will have.
    pub(super) fn next_position(&self) -> u64 {
        self.first_position + self.sent.len() as u64
    }

    /// Moves the next record over to those under way.
    pub(super) fn sent(&mut self, sent: Sent) {
        self.pending_bytes -= sent.size_bytes;
        self.sent.push_back(sent);
        if let Some(window) = &mut self.window {
            window.left -= 1;
        }
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

    /// Of the records that the client has, whether any is settled and whether any is not.
    pub(super) fn fared(&self) -> (bool, bool) {
        let settled = |sent: &Sent| sent.settled.is_some();
        (self.sent.iter().any(settled), !self.sent.iter().all(settled))
    }

    /// The records that are settled with all before them.
    pub(super) fn settled(&self) -> impl Iterator<Item = (&Sent, Settled)> {
        self.sent.iter().map_while(|sent| Some((sent, sent.settled?)))
    }

    /// Kafka turns out to have everything before `offset`, or what tells of it. To be rewound; what is missing behind is
    /// found again.
    pub(super) fn adopt(&mut self, offset: Offset) {
        self.acknowledged = self.cursor().max(offset);
        self.taken = Some(self.acknowledged);
        self.end = self.end.max(offset);
        self.untold.clear();
    }

    /// Takes the next record that is settled with all before it, and advances over it.
    pub(super) fn pop_settled(&mut self) -> Option<(Sent, Settled)> {
        let settled = self.sent.front()?.settled?;
        let sent = self.sent.pop_front()?;
        self.first_position += 1;
        self.acknowledged = Offset(sent.offset.0 + 1);
        self.in_flight_bytes -= sent.size_bytes;
        if self.sent.is_empty() {
            self.window = self.window.take().and_then(|window| window.next(settled));
        }
        Some((sent, settled))
    }

    /// Kafka has what was to be told of the record with this offset.
    pub(super) fn told(&mut self, missing: Offset) {
        self.untold.remove(&missing);
        if self.acknowledged == missing {
            // It is settled: read again, or found missing, it is not told again.
            self.acknowledged = Offset(missing.0 + 1);
            self.taken = self.taken.map(|taken| taken.max(self.acknowledged));
        }
    }

    /// Forgets what is pending and under way; it will be pushed again.
    pub(super) fn rewind(&mut self) {
        self.taken = self.taken.map(|_| self.acknowledged);
        if !self.in_log {
            self.end = self.acknowledged;
            self.tells_of.clear();
        }
        let found = self.window.take().map(|window| Window::new(window.records, usize::MAX));
        let refused = std::mem::take(&mut self.refused);
        self.window = if refused == 0 { found } else { Some(Window::new((refused / 2).max(1), refused)) };
        self.pending.clear();
        self.first_position += self.sent.len() as u64;
        self.sent.clear();
        self.pushed = self.acknowledged;
        self.in_flight_bytes = 0;
        self.pending_bytes = 0;
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
