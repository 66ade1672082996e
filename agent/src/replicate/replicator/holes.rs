//! Holes in the log and records that Kafka never takes: each is told as a gap record, and the cursor waits for it.
//!
//! The reader says *that* entries are missing. How many records of which partition shows where the partition goes on: at
//! its next batch, where the next epoch begins, or when the log is asked at its end. Until then the cursor stays before the hole, and a
//! partition's offset in it before the first record that is missing and not told: after a restart both are found again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{Replicator, TopicState};
use crate::{
    config::GAPS_STREAM,
    gap::{Gap, Reason},
    log::{BatchGroup, EntrySeq, KnownOffsets, LogBatch, LostEntries},
    partition::partition_of,
    record::{Offset, PartitionId, Received, StreamName},
    replicate::{
        cluster::DropReason,
        lane::{Lane, Sent},
    },
};

/// A gap that Kafka does not have yet.
#[derive(Debug)]
struct Untold {
    /// The cursor does not pass this entry before Kafka has the gap.
    entry: EntrySeq,
    /// The lane that the records are missing in, and the first of them.
    missing: (usize, Offset),
    gap: Gap,
}

/// What is missing and not told.
#[derive(Debug, Default)]
pub(super) struct Holes {
    /// The first missing entry, while it is not known for every partition what was in it.
    open: Option<EntrySeq>,
    waiting: VecDeque<Untold>,
    /// On their way, by what is missing.
    told: BTreeMap<(usize, Offset), Untold>,
}

impl Replicator {
    /// Entries are missing; what was in them shows later.
    pub(super) fn on_lost(&mut self, lost: &LostEntries) {
        tracing::error!(
            first = lost.first.0,
            end = lost.end.0,
            reason = lost.reason,
            "entries of the log are lost"
        );
        self.metrics.lost_entries.inc_by(lost.end.0.saturating_sub(lost.first.0));
        if self.holes.open.is_none() {
            self.holes.open = Some(lost.first);
            self.hold(lost.first);
        }
    }

    /// A lane goes on at `found`. With a hole open, what is missing before is told.
    ///
    /// Where offsets below `floor` were skipped without knowing how many were used, the count is not known.
    pub(super) fn goes_on_at(&mut self, index: usize, found: Offset, floor: Offset) {
        let lane = &mut self.lanes[index];
        let (Some(entry), Some(taken)) = (self.holes.open, lane.taken) else { return };
        if !lane.in_log || found <= taken {
            return;
        }
        let end = (taken >= floor || found < floor).then_some(found);
        let gap = Gap::of_log(Reason::Damaged, lane.stream.clone(), lane.partition, taken, end);
        lane.taken = Some(found);
        lane.end = lane.end.max(found);
        lane.untold.insert(taken);
        self.wait(Untold { entry, missing: (index, taken), gap });
    }

    /// The log says what it has handed out up to here: all holes before are known now.
    pub(super) fn on_checkpoint(&mut self, known: &KnownOffsets) {
        self.floor = known.floor;
        let Some(hole) = self.holes.open else { return };
        for ((stream, partition), next) in &known.next {
            let index = self.lane_index(stream, *partition);
            self.goes_on_at(index, *next, known.floor);
        }
        // What was skipped: the partitions are not in the checkpoint, and the end of what they had is not known. Those that
        // are in it may go on below the floor.
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            if !known.next.contains_key(&(lane.stream.clone(), lane.partition)) {
                self.goes_on_at(index, known.floor, known.floor);
            }
        }
        self.holes.open = None;
        self.release(hole);
    }

    /// Whether the log has to be asked what was in a hole.
    pub(super) fn has_open_hole(&self) -> bool {
        self.holes.open.is_some()
    }

    /// What the log has dropped is told in its place. Read again, it is told again only if Kafka may not have it.
    pub(super) fn take_dropped(&mut self, group: &BatchGroup) {
        let batches = group.batches.iter().map(|batch| (&batch.stream, batch.partition, batch.base_offset));
        let dropped = group.dropped.iter().map(|dropped| (&dropped.stream, dropped.partition, dropped.first));
        let mut begins: BTreeMap<usize, Offset> = BTreeMap::new();
        for (stream, partition, first) in dropped.chain(batches).filter(|_| !group.dropped.is_empty()) {
            let begin = begins.entry(self.lane_index(stream, partition)).or_insert(first);
            *begin = first.min(*begin);
        }
        // What is missing before is a hole; from there on all is here or dropped.
        for (index, begin) in begins {
            self.goes_on_at(index, begin, self.floor);
        }
        for dropped in &group.dropped {
            let index = self.lane_index(&dropped.stream, dropped.partition);
            let lane = &mut self.lanes[index];
            let end = Offset(dropped.last.0.saturating_add(1));
            lane.taken = Some(lane.taken.map_or(end, |taken| taken.max(end)));
            lane.end = lane.end.max(end);
            if lane.acknowledged <= dropped.first && lane.untold.insert(dropped.first) {
                let missing = (index, dropped.first);
                self.wait(Untold { entry: group.seq, missing, gap: Gap::of_dropped(dropped) });
            }
        }
    }

    /// Kafka never takes a record that was popped from a lane; its entry is still held for it.
    pub(super) fn on_dropped(&mut self, index: usize, sent: Sent, reason: DropReason) {
        let lane = &mut self.lanes[index];
        self.metrics.dropped(lane.stream.as_str(), reason);
        tracing::error!(
            stream = %lane.stream, partition = lane.partition.0, offset = sent.offset.0,
            size_bytes = sent.size_bytes, %reason, "record dropped: Kafka never takes it"
        );
        // A gap record that Kafka does not take cannot be told of by another.
        if lane.stream.as_str() == GAPS_STREAM {
            return;
        }
        let reason = match reason {
            DropReason::TooLarge => Reason::TooLarge,
            DropReason::Invalid => Reason::Invalid,
        };
        let end = Some(Offset(sent.offset.0 + 1));
        let mut gap = Gap::of_log(reason, lane.stream.clone(), lane.partition, sent.offset, end);
        gap.device = sent.device.map(|device| *device);
        lane.untold.insert(sent.offset);
        self.wait(Untold { entry: sent.entry, missing: (index, sent.offset), gap });
    }

    /// Kafka has the gap that a lane outside the log told of.
    pub(super) fn on_told(&mut self, index: usize) {
        if let Some(missing) = self.lanes[index].tells_of.pop_front() {
            self.lanes[missing.0].told(missing.1);
            self.holes.told.remove(&missing);
        }
    }

    /// Gives what is to be told to its lanes.
    pub(super) fn tell(&mut self, wall: Received) {
        while let Some(untold) = self.holes.waiting.pop_front() {
            let record = untold.gap.record(wall, &self.settings.environment);
            let partition = partition_of(&record.device, (self.settings.partitions)(GAPS_STREAM));
            let index = self.gap_lane(partition);
            let lane = &mut self.lanes[index];
            let batch = LogBatch {
                stream: lane.stream.clone(),
                partition,
                base_offset: lane.end,
                records: vec![record],
            };
            lane.end = Offset(lane.end.0 + 1);
            lane.tells_of.push_back(untold.missing);
            lane.push(
                &Arc::new(BatchGroup { seq: untold.entry, batches: vec![batch], dropped: Vec::new() }),
                0,
            );
            let topic = &mut self.topics[lane.topic];
            if topic.state == TopicState::Unused {
                topic.state = TopicState::Wanted;
            }
            self.entries.entry(untold.entry).or_default().unsent += 1;
            self.holes.told.insert(untold.missing, untold);
        }
    }

    /// Whether there are gaps that were not handed to the client.
    pub(super) fn has_gaps_to_send(&self) -> bool {
        !self.holes.waiting.is_empty() || self.lanes.iter().any(|lane| !lane.in_log && lane.pending_bytes > 0)
    }

    /// Nothing is on its way any more and no entry is held. What was told is told again, but for holes that are read
    /// again: they are found again, and may have grown.
    pub(super) fn tell_again(&mut self) {
        let Holes { open: _, waiting, told } = std::mem::take(&mut self.holes);
        for untold in told.into_values().chain(waiting) {
            let (lane, first) = (&mut self.lanes[untold.missing.0], untold.missing.1);
            if untold.gap.reason == Reason::Damaged && lane.acknowledged <= first {
                lane.untold.remove(&first);
            } else {
                self.wait(untold);
            }
        }
    }

    fn wait(&mut self, untold: Untold) {
        self.hold(untold.entry);
        self.holes.waiting.push_back(untold);
    }

    fn hold(&mut self, entry: EntrySeq) {
        self.entries.entry(entry).or_default().unacknowledged += 1;
    }

    /// The lane for what the log does not hold. It shares its Kafka partition with the log's own gap records.
    fn gap_lane(&mut self, partition: PartitionId) -> usize {
        if let Some(index) = self.lanes.iter().position(|lane| !lane.in_log && lane.partition == partition) {
            return index;
        }
        let stream = StreamName::new(GAPS_STREAM).expect("a constant that is a stream name");
        let topic = self.topic(&stream);
        self.topics[topic].lanes_share_partitions = true;
        self.lanes.push(Lane::of_gaps(stream, partition, topic));
        self.lanes.len() - 1
    }
}
