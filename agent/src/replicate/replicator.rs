//! What is sent when: the part of replication that decides. It knows no thread, no socket and no file.

mod account;
mod failures;
mod holes;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use slab::Slab;

use holes::Holes;

use super::{
    LogEnd, ReadRequest, Settings,
    cluster::{Cluster, ClusterEvent, Outgoing, ProduceError, TopicOutcome},
    cursor::Cursor,
    lane::{Lane, Pushed, Sent, Settled},
    metrics::ReplicateMetrics,
    pace::Pace,
    recent::Recent,
    stamp::{Stamp, skew_us},
    topic::{Topic, TopicState},
};
use crate::{
    env::{Entropy, Monotonic},
    log::{BatchGroup, EntrySeq, LogBatch, ReadOutcome},
    partition::partition_of,
    record::{Offset, PartitionId, Record, StreamName, UnixMicros},
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
    received: Option<UnixMicros>,
}

/// Decides what is sent to Kafka and keeps account of what was acknowledged.
///
/// The driver calls, in any order: [`offer`](Self::offer) for what was just committed, [`on_event`](Self::on_event) for
/// what Kafka reports, [`fill`](Self::fill) and [`on_read`](Self::on_read) to take entries, [`pump`](Self::pump) to hand
/// records over, and [`restart_due`](Self::restart_due) with [`restarted`](Self::restarted) after failures.
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
    /// Restarts in a row of producers that did not live long.
    failures: u32,
    /// The health shows an error that the next acknowledgement clears.
    shows_error: bool,
    read_retry_at: Option<Monotonic>,
    /// When the gateway received the last entry that was taken in order.
    taken_received: Option<UnixMicros>,
    /// Something was offered since the log was last asked for more than is known.
    offered: bool,
    /// The log is to be asked for more than is known.
    probes: bool,
    holes: Holes,
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
            failures: 0,
            shows_error: false,
            read_retry_at: None,
            taken_received: None,
            offered: false,
            probes: false,
            holes: Holes::default(),
            floor: Offset(0),
            new_lane_begins: (log_end.first == EntrySeq(0)).then_some(Offset(0)),
        };
        match cursor {
            Some(cursor) if cursor.next <= log_end.next => {
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
        self.note(&group);
        if group.seq >= self.next && self.recent.last().is_none_or(|last| last < group.seq) {
            let size_bytes = size_bytes(&group);
            self.recent.push(group, size_bytes);
        }
        while let Some(group) = self.recent.excess() {
            let untaken = group.batches.iter().map(|batch| self.untaken_bytes(batch)).sum();
            self.pace.fell_behind(untaken);
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
        self.probes |= std::mem::take(&mut self.offered) || always;
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
        let in_memory = self.recent.first() == Some(self.next);
        let wanted = !in_memory && (self.next < self.end || self.probes || self.has_open_hole());
        if wanted && self.has_room_in_order() && self.read_retry_at.is_none() {
            if now < self.pace.due() {
                self.paced_until = Some(self.pace.due());
                return None;
            }
            let room = self.room_in_order_bytes().saturating_sub(self.in_flight_bytes()).max(1);
            let limit_bytes = room.min(READ_BYTES_MAX).min(self.pace.piece_bytes());
            return Some(ReadRequest { from: self.next, limit_bytes });
        }
        if self.next == self.end && !self.has_open_hole() {
            self.lanes.iter_mut().for_each(Lane::is_at_end);
        }
        None
    }

    /// Takes from memory what may go before older entries: batches of lanes that have nothing in those. A lane's offsets
    /// have no holes, so that is known without reading them; and what was taken is skipped when its entry comes.
    ///
    /// A lane that has much under way already waits in its order: perhaps its partition has no leader.
    fn overtake(&mut self) {
        let lane_max_bytes = self.settings.in_flight_bytes / 8;
        while !self.settings.log_drops
            && self.restart_at.is_none()
            && self.in_flight_bytes() < self.settings.in_flight_bytes
            && let Some((group, size_bytes)) = self.recent.look()
        {
            let taken = self.take(&group, size_bytes, |lane, batch| {
                lane.taken == Some(batch.base_offset) && lane.in_flight_bytes < lane_max_bytes
            });
            if taken.records > 0 {
                self.settings.held.take(group.seq);
            }
            self.metrics.overtaking_records.inc_by(taken.records as u64);
        }
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

    /// Takes what the log answered to a [`ReadRequest`]; `None` where it could not answer.
    pub fn on_read(&mut self, now: Monotonic, outcome: Option<ReadOutcome>) {
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

    /// Hands records to the client as far as it and their topics take them. True if it handed over any.
    ///
    /// `wall` is the present time, for records whose own times their topic refuses.
    pub fn pump(&mut self, now: Monotonic, wall: UnixMicros, cluster: &mut dyn Cluster) -> bool {
        self.tell(wall);
        self.ask_for_topics(now, cluster);
        let mut progress = false;
        for index in 0..self.lanes.len() {
            if self.restart_at.is_some() {
                break;
            }
            if self.topics[self.lanes[index].topic].state != TopicState::Ready {
                continue;
            }
            loop {
                match self.send_next(index, wall, cluster) {
                    Ok(true) => progress = true,
                    Ok(false) => break,
                    Err(ProduceError::NoTopic) => {
                        self.no_topic(now, index);
                        break;
                    }
                    Err(ProduceError::Failed(reason)) => {
                        self.fail(now, reason);
                        break;
                    }
                    Err(ProduceError::QueueFull | ProduceError::Undeliverable(_)) => return progress,
                }
            }
        }
        progress
    }

    /// Hands over the next record of a lane; false if there is none that may go now.
    fn send_next(
        &mut self,
        index: usize,
        wall: UnixMicros,
        cluster: &mut dyn Cluster,
    ) -> Result<bool, ProduceError> {
        let lane = &self.lanes[index];
        let topic = &self.topics[lane.topic];
        if topic.lanes_share_partitions && self.waits_for_others(index) {
            return Ok(false);
        }
        let Some(next) = lane.next() else { return Ok(false) };
        let (record, offset, entry) = (next.record, next.offset, next.entry);
        let first = lane.restamp.filter(|(restamped, _)| *restamped == offset);
        let first = first.map_or(Stamp::Event, |(_, stamp)| stamp);
        let (stamp, timestamp) = topic.limits.choose(record, first, wall);
        // Written when the config said more partitions than the topic has. A device's records on both sides of such a
        // change have no order anyway, as ever when partitions change in Kafka.
        let partition = if is_beyond(lane.partition, topic) {
            partition_of(&record.device, topic.partitions)
        } else {
            lane.partition
        };
        let slot = self.tokens.vacant_entry();
        let result = cluster.produce(&Outgoing {
            topic: &topic.name,
            partition,
            record,
            offset: lane.in_log.then_some(offset),
            timestamp_ms: timestamp.as_millis(),
            refused_event_time: record.event_time.filter(|_| stamp != Stamp::Event),
            token: slot.key(),
        });
        let settled = match result {
            Ok(()) => {
                slot.insert((index, lane.next_position()));
                None
            }
            Err(ProduceError::Undeliverable(reason)) => Some(Settled::Dropped(reason)),
            Err(error) => return Err(error),
        };
        let alone = lane.sends_alone();
        let device = (alone || settled.is_some()).then(|| Box::new(record.device.clone()));
        let sent = Sent {
            offset,
            entry,
            size_bytes: record.size_bytes(),
            payload_bytes: record.device.as_bytes().len() + record.value.len(),
            alone,
            stamp,
            skew_us: skew_us(timestamp, wall),
            restamped: timestamp != record.timestamp(),
            settled,
            device,
        };
        self.sent_bytes += sent.size_bytes;
        let lane = &mut self.lanes[index];
        lane.sent(sent);
        let state =
            self.entries.get_mut(&entry).expect("a record's entry stays until the record is acknowledged");
        state.unsent -= 1;
        if state.unsent == 0 {
            self.pinned_bytes -= std::mem::take(&mut state.pinned_bytes);
        }
        if settled.is_some() {
            self.advance(index);
        }
        Ok(true)
    }

    /// Whether a lane that may share its Kafka partition must not send now: what is looked for in one lane must not be
    /// in a batch with what another lane of the topic has under way.
    fn waits_for_others(&self, index: usize) -> bool {
        let lane = &self.lanes[index];
        let mut others =
            self.lanes.iter().enumerate().filter(|(i, other)| *i != index && other.topic == lane.topic);
        if lane.is_suspect() {
            others.any(|(_, other)| other.is_under_way())
        } else {
            others.any(|(_, other)| other.is_suspect())
        }
    }

    fn ask_for_topics(&mut self, now: Monotonic, cluster: &mut dyn Cluster) {
        for topic in self.topics.iter_mut().filter(|t| t.is_due(now)) {
            topic.state = TopicState::Asked;
            cluster.ensure_topic(&topic.name, topic.partitions);
        }
    }

    /// Takes a report of the cluster into account.
    pub fn on_event(&mut self, now: Monotonic, event: ClusterEvent) {
        match event {
            ClusterEvent::Delivered(token) => {
                if let Some(outage) = self.pace.answered(now, self.entropy.as_mut()) {
                    tracing::info!(
                        outage_ms = outage.lasted.as_millis(),
                        delay_ms = outage.delay.as_millis(),
                        "Kafka answers again; the backlog follows after a random delay"
                    );
                }
                if let Some((index, position)) = self.tokens.try_remove(token) {
                    if let Some(sent) = self.lanes[index].at(position) {
                        sent.settled = Some(Settled::Delivered);
                    }
                    self.advance(index);
                }
            }
            ClusterEvent::Failed { token, error } => self.on_failed(now, token, error),
            ClusterEvent::Topic { topic, outcome } => self.on_topic(now, &topic, outcome),
            ClusterEvent::Fatal(reason) => self.fail(now, reason),
            ClusterEvent::Trouble(reason) => self.show_error(reason),
            ClusterEvent::Throttled(time) => {
                self.metrics.throttle_seconds.set(time.as_secs_f64());
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
        let (mut records, mut restamped, mut payload_bytes) = (0, 0, 0);
        while let Some((sent, settled)) = self.lanes[index].pop_settled() {
            let entry = sent.entry;
            self.sent_bytes -= sent.size_bytes;
            match settled {
                Settled::Delivered => {
                    records += 1;
                    restamped += u64::from(sent.restamped);
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
fn received(group: &BatchGroup) -> Option<UnixMicros> {
    group.batches.iter().flat_map(|batch| batch.records.first()).map(|record| record.received.at).min()
}

fn size_bytes(group: &BatchGroup) -> usize {
    group.batches.iter().flat_map(|batch| &batch.records).map(Record::size_bytes).sum()
}

#[cfg(test)]
mod tests;
