//! What is sent when: the part of replication that decides. It knows no thread, no socket and no file.

mod account;
mod ahead;
mod failures;
mod holes;
mod send;
mod transactions;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use slab::Slab;

use ahead::Ahead;
use holes::Holes;
use transactions::Transactions;

use super::{
    LogEnd, ReadRequest, Settings,
    cluster::{ClusterEvent, TopicOutcome},
    cursor::Cursor,
    lane::{Lane, Pushed, Settled},
    metrics::ReplicateMetrics,
    pace::Pace,
    recent::Recent,
    topic::{Topic, TopicState},
    wall::Wall,
};
use crate::{
    env::{Entropy, Monotonic},
    log::{BatchGroup, EntrySeq, LogBatch, ReadOutcome},
    record::{Offset, PartitionId, Received, Record, StreamName},
};

/// Delay after the log could not answer or had not what it should have.
const READ_RETRY: Duration = Duration::from_secs(1);

/// Most that is read from the log at once, in bytes: the log's thread commits between reads.
const READ_BYTES_MAX: usize = 256 * 1024;

/// An entry that was taken and is not fully acknowledged, or that is missing and not told.
#[derive(Debug, Default)]
struct Entry {
    /// Records that Kafka has not acknowledged, and other reasons for the cursor to stay.
    unacknowledged: usize,
    /// Records not handed to the client: while there are any, the whole group stays in memory.
    unsent: usize,
    /// Bytes that are counted for that.
    pinned_bytes: usize,
    received: Option<Received>,
}

/// Decides what is sent to Kafka and keeps account of what was acknowledged.
///
/// The driver calls, in any order: [`offer`](Self::offer) for what was just committed, [`on_event`](Self::on_event) for
/// what Kafka reports, [`fill`](Self::fill) and [`on_read`](Self::on_read) to take entries, [`pump`](Self::pump) to hand
/// records over, [`prepare_commit`](Self::prepare_commit) with [`commit`](Self::commit) to end a transaction, and
/// [`restart_due`](Self::restart_due) with [`restarted`](Self::restarted) after failures.
pub struct Replicator {
    settings: Settings,
    entropy: Box<dyn Entropy>,
    metrics: ReplicateMetrics,
    /// The next entry to take.
    next: EntrySeq,
    /// Behind the last entry known to be in the log.
    end: EntrySeq,
    /// What was committed and not taken in order yet.
    recent: Recent,
    /// What may not wait for its turn and is not there.
    ahead: Ahead,
    /// When what is not in memory is read.
    pace: Pace,
    /// That is what reading waits for.
    paced_until: Option<Monotonic>,
    entries: BTreeMap<EntrySeq, Entry>,
    lanes: Vec<Lane>,
    lane_of: BTreeMap<(StreamName, PartitionId), usize>,
    topics: Vec<Topic>,
    /// (lane, position) by token.
    tokens: Slab<(usize, u64)>,
    pinned_bytes: usize,
    sent_bytes: usize,
    /// When the producer was restarted last.
    started: Monotonic,
    restart_at: Option<Monotonic>,
    wall: Wall,
    /// Restarts in a row of producers that did not live long.
    failures: u32,
    /// The health shows an error that the next acknowledgement clears.
    shows_error: bool,
    read_retry_at: Option<Monotonic>,
    /// When the gateway received the last entry that was taken in order.
    taken_received: Option<Received>,
    /// Something was offered since the log was last asked for more than is known.
    offered: bool,
    /// The log is to be asked for more than is known.
    probes: bool,
    holes: Holes,
    /// Exactly once; without, at least once.
    transactions: Option<Transactions>,
    /// Offsets below may have been skipped by the log without knowing how many were used.
    floor: Offset,
    /// Where a lane begins that nobody has heard of; `None` if what it had may be acknowledged and gone.
    new_lane_begins: Option<Offset>,
}

impl Replicator {
    /// Starts at `cursor`, or at the log's first entry.
    ///
    /// A cursor that points behind the log's end belongs to another log (somebody removed the epochs and left the
    /// cursor): it is not used, since all that the new log gathers up to there would be skipped.
    pub fn new(
        settings: Settings,
        cursor: Option<&Cursor>,
        log_end: &LogEnd,
        entropy: Box<dyn Entropy>,
        metrics: ReplicateMetrics,
    ) -> Self {
        // A quarter of the bound: enough for several commits, and what does not fit is read back from the log.
        let recent = Recent::new(settings.in_flight_bytes / 4);
        let pace = Pace::new(settings.catch_up_bytes_per_second);
        let mut replicator = Self {
            settings,
            entropy,
            metrics,
            next: EntrySeq(0),
            end: log_end.next,
            recent,
            ahead: Ahead::default(),
            pace,
            paced_until: None,
            entries: BTreeMap::new(),
            lanes: Vec::new(),
            lane_of: BTreeMap::new(),
            topics: Vec::new(),
            tokens: Slab::new(),
            pinned_bytes: 0,
            sent_bytes: 0,
            started: Monotonic::default(),
            restart_at: None,
            wall: Wall::default(),
            failures: 0,
            shows_error: false,
            read_retry_at: None,
            taken_received: None,
            offered: false,
            probes: false,
            holes: Holes::default(),
            transactions: None,
            floor: Offset(0),
            new_lane_begins: (log_end.first == EntrySeq(0)).then_some(Offset(0)),
        };
        let of_this_log = cursor.filter(|cursor| cursor.next <= log_end.next);
        replicator.transactions = replicator.settings.transactions.map(|settings| {
            let (in_flight_bytes, entropy) =
                (replicator.settings.in_flight_bytes, replicator.entropy.as_mut());
            Transactions::new(settings, of_this_log, &log_end.offsets, in_flight_bytes, entropy)
        });
        match cursor {
            Some(cursor) if of_this_log.is_some() => {
                replicator.next = cursor.next;
                replicator.new_lane_begins = Some(Offset(0));
                for ((stream, partition), offset) in &cursor.acknowledged {
                    let lane = replicator.lane(stream, *partition);
                    lane.acknowledged = *offset;
                    lane.end = *offset;
                    lane.taken = Some(*offset);
                }
            }
            Some(cursor) => tracing::error!(
                cursor = cursor.next.0,
                log_end = log_end.next.0,
                "the cursor points behind the end of the log; all that the log holds is sent to Kafka"
            ),
            None => {}
        }
        for ((stream, partition), offset) in &log_end.offsets {
            let lane = replicator.lane(stream, *partition);
            lane.end = lane.end.max(*offset);
        }
        replicator
    }

    /// Notes entries that were just committed, and keeps them for sending while there is room.
    pub fn offer(&mut self, group: Arc<BatchGroup>) {
        self.offered = true;
        if self.end < group.seq {
            self.miss(self.end);
        }
        self.note(&group);
        if group.seq >= self.next && self.recent.last().is_none_or(|last| last < group.seq) {
            let size_bytes = size_bytes(&group);
            self.recent.push(group, size_bytes);
        }
        while let Some(group) = self.recent.excess() {
            let untaken = group.batches.iter().map(|batch| self.untaken_bytes(batch)).sum();
            self.pace.fell_behind(untaken);
            self.miss_in(&group);
        }
    }

    /// Bytes of the records of a batch that are still to be taken.
    fn untaken_bytes(&mut self, batch: &LogBatch) -> usize {
        let lane = self.lane(&batch.stream, batch.partition);
        batch.records[lane.done_of(batch)..].iter().map(Record::size_bytes).sum()
    }

    /// Asks the log once for what it may have behind the last group offered: the live feed drops what does not fit, and
    /// nothing offered later may show the gap. Does nothing if there was no offer since, unless `always`.
    pub fn probe(&mut self, always: bool) {
        if std::mem::take(&mut self.offered) {
            self.probes = true;
            self.miss(self.end);
        }
        self.probes |= always;
    }

    /// Nothing more will be offered: asks the log for what it may have, and sends without waiting for more.
    pub fn drain(&mut self) {
        self.probe(true);
        self.transactions.iter_mut().for_each(Transactions::flush);
    }

    /// Takes what it can from memory, and says what is to be read from the log to go on.
    pub fn fill(&mut self, now: Monotonic) -> Option<ReadRequest> {
        let idle = self.in_flight_bytes() == 0;
        self.pace.tick(now, idle);
        self.paced_until = None;
        if self.read_retry_at.is_some_and(|at| at <= now) {
            self.read_retry_at = None;
        }
        while self.has_room_in_order()
            && let Some((group, size_bytes)) = self.recent.pop_through(self.next)
        {
            // What the log has changed since is read from it.
            if group.seq == self.next && self.settings.held.take(group.seq) {
                self.metrics.groups_from_memory.inc();
                self.take_in_order(&group, size_bytes);
            }
        }
        self.overtake();
        if let Some(request) = self.look_ahead(now) {
            return Some(request);
        }
        let in_memory = self.recent.first() == Some(self.next);
        let wanted = !in_memory && (self.next < self.end || self.probes || self.has_open_hole());
        if wanted && self.has_room_in_order() && self.read_retry_at.is_none() {
            if now < self.pace.due() {
                self.paced_until = Some(self.pace.due());
                return None;
            }
            let room = self.room_in_order_bytes().saturating_sub(self.in_flight_bytes()).max(1);
            let limit_bytes = room.min(READ_BYTES_MAX).min(self.pace.piece_bytes());
            return Some(ReadRequest { from: self.next, limit_bytes, ahead: false });
        }
        if self.next == self.end && !self.has_open_hole() {
            self.lanes.iter_mut().for_each(Lane::is_at_end);
        }
        None
    }

    /// Most bytes under way at which the log is taken in its order; the rest is left to what overtakes.
    fn room_in_order_bytes(&self) -> usize {
        self.settings.in_flight_bytes - self.settings.in_flight_bytes / 4
    }

    /// Whether the next entry may be taken. One at a time may in any case: however much overtakes, the log gets on.
    fn has_room_in_order(&self) -> bool {
        self.restart_at.is_none()
            && (self.in_flight_bytes() < self.room_in_order_bytes() || self.acknowledged() == self.next)
    }

    /// Takes what the log answered to a request; `None` where it could not answer.
    pub fn on_read(&mut self, now: Monotonic, request: ReadRequest, outcome: Option<ReadOutcome>) {
        if request.ahead {
            return self.on_read_ahead(now, request.from, outcome);
        }
        let before = self.next;
        let answered = outcome.is_some();
        if let Some(outcome) = outcome {
            let bytes = self.take_read(&outcome);
            self.pace.read(now, bytes);
            self.metrics.catch_up_bytes.inc_by(bytes as u64);
            self.next = self.next.max(outcome.next);
            self.end = self.end.max(self.next);
        }
        // Where more is known to be, no progress is a failure; an answer to a probe may be that there is none.
        let failed = self.next == before && (before < self.end || !answered || self.has_open_hole());
        self.read_retry_at = failed.then_some(now + READ_RETRY);
        if self.next == before && answered {
            self.probes = false;
        }
    }

    /// Takes what was read, and what is missing in it, in the order of the log. Returns the bytes of records taken.
    fn take_read(&mut self, outcome: &ReadOutcome) -> usize {
        let mut bytes = 0;
        let mut lost = outcome.lost.iter().peekable();
        let mut checkpoints = outcome.checkpoints.iter().peekable();
        for group in outcome.groups.iter().map(Some).chain([None]) {
            let until = group.map_or(outcome.next, |group| group.seq);
            while let Some(checkpoint) = checkpoints.next_if(|checkpoint| checkpoint.seq <= until) {
                while let Some(lost) = lost.next_if(|lost| lost.first < checkpoint.seq) {
                    self.on_lost(lost);
                }
                self.on_checkpoint(checkpoint);
            }
            while let Some(lost) = lost.next_if(|lost| lost.first <= until) {
                self.on_lost(lost);
            }
            if let Some(group) = group.filter(|group| group.seq >= self.next) {
                self.note(group);
                self.metrics.groups_from_log.inc();
                bytes += self.take_in_order(group, size_bytes(group)).bytes;
            }
        }
        bytes
    }

    fn note(&mut self, group: &BatchGroup) {
        self.end = self.end.max(group.seq.next());
        for batch in &group.batches {
            let count = i64::try_from(batch.records.len()).expect("a batch fits the memory");
            let lane = self.lane(&batch.stream, batch.partition);
            lane.end = lane.end.max(Offset(batch.base_offset.0 + count));
        }
    }

    /// Takes all of the next entry that was not taken before.
    fn take_in_order(&mut self, group: &Arc<BatchGroup>, size_bytes: usize) -> Pushed {
        self.take_dropped(group);
        let taken = self.take(group, size_bytes, |_, _| true);
        self.next = group.seq.next();
        self.taken_received = received(group);
        taken
    }

    /// Takes those batches of a group that `chosen` says.
    fn take(
        &mut self,
        group: &Arc<BatchGroup>,
        size_bytes: usize,
        chosen: impl Fn(&Lane, &LogBatch) -> bool,
    ) -> Pushed {
        let mut all = Pushed::default();
        for (index, batch) in group.batches.iter().enumerate() {
            let lane_index = self.lane_index(&batch.stream, batch.partition);
            if !chosen(&self.lanes[lane_index], batch) {
                continue;
            }
            self.goes_on_at(lane_index, batch.base_offset, self.floor);
            let lane = &mut self.lanes[lane_index];
            let pushed = lane.push(group, index);
            let topic = lane.topic;
            if pushed.records > 0 && self.topics[topic].state == TopicState::Unused {
                self.topics[topic].state = TopicState::Wanted;
            }
            all.records += pushed.records;
            all.bytes += pushed.bytes;
        }
        if all.records > 0 {
            self.pinned_bytes += size_bytes;
            let entry = self.entries.entry(group.seq).or_default();
            entry.unacknowledged += all.records;
            entry.unsent += all.records;
            entry.pinned_bytes += size_bytes;
            entry.received = received(group);
        }
        all
    }

    /// Takes a report of the cluster into account.
    pub fn on_event(&mut self, now: Monotonic, event: ClusterEvent) {
        match event {
            ClusterEvent::Delivered { token, kafka_offset } => {
                if let Some(outage) = self.pace.answered(now, self.entropy.as_mut()) {
                    tracing::info!(
                        outage_ms = outage.lasted.as_millis(),
                        delay_ms = outage.delay.as_millis(),
                        "Kafka answers again; the backlog follows after a random delay"
                    );
                    self.miss_no_more();
                }
                if let Some((index, position)) = self.tokens.try_remove(token) {
                    if let Some(sent) = self.lanes[index].at(position) {
                        sent.settled = Some(Settled::Delivered);
                    }
                    if self.transactions.is_some() {
                        self.delivered_in_transaction(index, position, kafka_offset);
                    } else {
                        self.advance(index);
                    }
                }
            }
            ClusterEvent::Failed { token, error } => self.on_failed(now, token, error),
            ClusterEvent::Topic { topic, outcome } => self.on_topic(now, &topic, outcome),
            ClusterEvent::Initialized(offsets) => self.on_initialized(&offsets),
            ClusterEvent::Found(presence) => self.settle(presence),
            ClusterEvent::Committed => self.on_committed(now),
            ClusterEvent::Fenced(reason) => self.on_fenced(now, &reason),
            ClusterEvent::Fatal(reason) => self.fail(now, reason),
            ClusterEvent::Trouble(reason) => self.show_error(reason),
            ClusterEvent::Throttled(time) => {
                self.metrics.throttle_seconds.set(time.as_secs_f64());
                self.transactions.iter_mut().for_each(|t| t.throttle(!time.is_zero()));
            }
        }
    }

    fn on_topic(&mut self, now: Monotonic, name: &str, outcome: TopicOutcome) {
        let Some(index) = self.topics.iter().position(|t| t.name == name) else { return };
        let delay = self.backoff(self.topics[index].attempts);
        self.shows_error |= matches!(outcome, TopicOutcome::Failed(_));
        self.topics[index].answered(outcome, now + delay, &self.metrics);
    }

    /// Advances a lane over what is settled.
    fn advance(&mut self, index: usize) {
        let (mut records, mut restamped, mut corrected, mut payload_bytes) = (0, 0, 0, 0);
        while let Some((sent, settled)) = self.lanes[index].pop_settled() {
            let entry = sent.entry;
            self.sent_bytes -= sent.size_bytes;
            match settled {
                Settled::Delivered => {
                    records += 1;
                    restamped += u64::from(sent.restamped);
                    corrected += u64::from(sent.corrected);
                    payload_bytes += sent.payload_bytes as u64;
                }
                Settled::Dropped(reason) => self.on_dropped(index, sent, reason),
            }
            self.on_told(index);
            self.release(entry);
        }
        if records > 0 && std::mem::take(&mut self.shows_error) {
            self.metrics.health().acknowledged();
        }
        let topic = &self.topics[self.lanes[index].topic];
        self.metrics.restamped_records.inc_by(restamped);
        self.metrics.corrected_records.inc_by(corrected);
        topic.acknowledged_records.inc_by(records);
        topic.acknowledged_bytes.inc_by(payload_bytes);
    }

    /// One reason less for the cursor to stay at `entry`.
    fn release(&mut self, entry: EntrySeq) {
        let state = self.entries.get_mut(&entry).expect("as many as were counted");
        state.unacknowledged -= 1;
        if state.unacknowledged == 0 {
            self.entries.remove(&entry);
        }
    }

    fn lane(&mut self, stream: &StreamName, partition: PartitionId) -> &mut Lane {
        let index = self.lane_index(stream, partition);
        &mut self.lanes[index]
    }

    fn lane_index(&mut self, stream: &StreamName, partition: PartitionId) -> usize {
        let key = (stream.clone(), partition);
        if let Some(index) = self.lane_of.get(&key) {
            return *index;
        }
        let topic = self.topic(stream);
        let is_beyond = is_beyond(partition, &self.topics[topic]);
        self.topics[topic].lanes_share_partitions |= is_beyond;
        self.lanes.push(Lane::new(stream.clone(), partition, topic, self.new_lane_begins));
        self.lane_of.insert(key, self.lanes.len() - 1);
        self.lanes.len() - 1
    }

    fn topic(&mut self, stream: &StreamName) -> usize {
        if let Some(index) = self.topics.iter().position(|t| t.stream == *stream) {
            return index;
        }
        let name = format!("{}.{stream}", self.settings.environment);
        let partitions = (self.settings.partitions)(stream.as_str());
        self.topics.push(Topic::new(name, stream.clone(), partitions, &self.metrics));
        self.topics.len() - 1
    }
}

/// Whether a topic has no such partition.
fn is_beyond(partition: PartitionId, topic: &Topic) -> bool {
    partition.0 >= i32::from(topic.partitions.get())
}

/// When the first record of a group was received.
fn received(group: &BatchGroup) -> Option<Received> {
    let first = group.batches.iter().flat_map(|batch| batch.records.first());
    first.map(|record| record.received).min_by_key(|received| received.at)
}

fn size_bytes(group: &BatchGroup) -> usize {
    group.batches.iter().flat_map(|batch| &batch.records).map(Record::size_bytes).sum()
}

#[cfg(test)]
mod tests;
