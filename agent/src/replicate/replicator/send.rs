//! Handing records to the Kafka client: which, in what order, with which of their times.

use super::{Replicator, is_beyond};
use crate::{
    env::Monotonic,
    partition::partition_of,
    record::Received,
    replicate::{
        cluster::{Cluster, Outgoing, ProduceError},
        lane::{Sent, Settled},
        stamp::{Stamp, Times, skew_us},
        topic::TopicState,
    },
};

impl Replicator {
    /// Hands records to the client as far as it and their topics take them. True if it handed over any.
    ///
    /// `wall` is the present time, for records whose own times their topic refuses, and the clock by which those are corrected
    /// that were received by a worse one.
    pub fn pump(&mut self, now: Monotonic, wall: Received, cluster: &mut dyn Cluster) -> bool {
        if self.wall.was_set_back(wall.at) {
            self.clock_set_back(now);
        }
        self.tell(wall);
        self.ask_for_topics(now, cluster);
        if self.transactions.is_some() {
            self.pump_transaction(now, wall, cluster)
        } else {
            self.send(now, wall, cluster, usize::MAX)
        }
    }

    /// Hands over records until they are `limit_bytes` or the client takes no more. True if it handed over any.
    pub(super) fn send(
        &mut self,
        now: Monotonic,
        wall: Received,
        cluster: &mut dyn Cluster,
        limit_bytes: usize,
    ) -> bool {
        let full = self.sent_bytes.saturating_add(limit_bytes);
        let mut progress = false;
        // Gaps go before what is behind them, and live records before what has waited anyway.
        for rank in 0..3 {
            for index in 0..self.lanes.len() {
                while self.rank(index) <= rank
                    && self.restart_at.is_none()
                    && self.sent_bytes < full
                    && self.may_send(index)
                {
                    match self.send_next(index, wall, cluster) {
                        Ok(None) => progress = true,
                        Ok(Some(_)) => {
                            progress = true;
                            if self.transactions.is_some() {
                                // What follows goes with the gap that tells of it.
                                break;
                            }
                            self.advance(index);
                        }
                        Err(ProduceError::NoTopic) => self.no_topic(now, index),
                        Err(ProduceError::Failed(reason)) => self.fail(now, reason),
                        Err(ProduceError::QueueFull | ProduceError::Undeliverable(_)) => return progress,
                    }
                }
            }
        }
        progress
    }

    fn rank(&self, index: usize) -> u8 {
        let lane = &self.lanes[index];
        match (lane.in_log, self.is_ahead(lane)) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => 2,
        }
    }

    /// Whether a lane has a record that may be handed over now.
    pub(super) fn may_send(&self, index: usize) -> bool {
        let lane = &self.lanes[index];
        let topic = &self.topics[lane.topic];
        topic.state == TopicState::Ready
            && lane.next().is_some()
            && lane.sits_out.is_none()
            && !(topic.lanes_share_partitions && self.waits_for_others(index))
            && !self.waits_for_gaps(index)
    }

    /// Hands over the next record of a lane. Says if it was settled at once.
    fn send_next(
        &mut self,
        index: usize,
        wall: Received,
        cluster: &mut dyn Cluster,
    ) -> Result<Option<Settled>, ProduceError> {
        let lane = &self.lanes[index];
        let topic_index = lane.topic;
        let topic = &self.topics[topic_index];
        let Some(next) = lane.next() else { return Ok(None) };
        let (record, offset, entry) = (next.record, next.offset, next.entry);
        let first = lane.restamp.filter(|(restamped, _)| *restamped == offset);
        let first = first.map_or(Stamp::Event, |(_, stamp)| stamp);
        let times = Times::of(record, wall);
        let (stamp, timestamp) = topic.limits.choose(&times, first, wall.at);
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
            received: times.received,
            timestamp_ms: timestamp.as_millis(),
            refused_event_time: times.event.filter(|_| stamp != Stamp::Event),
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
            partition,
            entry,
            size_bytes: record.size_bytes(),
            payload_bytes: record.device.as_bytes().len() + record.value.len(),
            alone,
            stamp,
            skew_us: skew_us(timestamp, wall.at),
            restamped: timestamp != times.proper(),
            corrected: times.received.at != record.received.at,
            settled,
            device,
        };
        let size_bytes = sent.size_bytes;
        self.sent_bytes += size_bytes;
        let lane = &mut self.lanes[index];
        lane.sent(sent);
        let state =
            self.entries.get_mut(&entry).expect("a record's entry stays until the record is acknowledged");
        state.unsent -= 1;
        if state.unsent == 0 {
            self.pinned_bytes -= std::mem::take(&mut state.pinned_bytes);
        }
        if let Some(transactions) = &mut self.transactions {
            transactions.handed_over(topic_index, partition, size_bytes, settled.is_some());
        }
        Ok(settled)
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
}
