//! Overtaking: partitions that have nothing in older entries do not wait for those that have. They are live.
//!
//! A lane's offsets have no holes. So a batch that begins where its lane was taken to may go at once, wherever the log is
//! being read, and is skipped when its entry comes.
//!
//! A live lane's records come from memory. Some are missed there: while Kafka hesitates there is no room for them, and the
//! feed drops what the thread does not fetch in time. They are read from the log before their turn, or else the lane would
//! have a backlog from then on and wait for that of all.

use std::{sync::Arc, time::Duration};

use super::{READ_BYTES_MAX, Replicator, size_bytes};
use crate::{
    env::Monotonic,
    log::{BatchGroup, EntrySeq, ReadOutcome},
    replicate::{
        ReadRequest,
        lane::{Lane, Pushed},
    },
};

/// So near the end of the log what was missed is read before its turn; what is older is backlog. That bounds what is read
/// twice: entries of a minute and more at a window of 20 ms.
const ENTRIES_MAX: u64 = 4096;

/// A lane that has so much on its way and gets no room for more in this time is no longer waited for: perhaps its
/// partition has no leader.
const PATIENCE: Duration = Duration::from_secs(5);

/// What live lanes have missed.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The first entry that may hold any of it.
    missed: Option<EntrySeq>,
    /// A lane that has no room for what it missed there, and until when it is waited for.
    waits: Option<(usize, Monotonic)>,
}

impl Replicator {
    /// Live lanes may have records from this entry on that were not taken. What is next in order anyway is not missed.
    pub(super) fn miss(&mut self, seq: EntrySeq) {
        if self.next < seq && !self.settings.log_drops {
            let missed = self.ahead.missed.filter(|missed| self.next < *missed);
            self.ahead.missed = Some(missed.map_or(seq, |missed| missed.min(seq)));
        }
    }

    /// Kafka was away for so long that what was missed is backlog.
    pub(super) fn miss_no_more(&mut self) {
        self.ahead = Ahead::default();
    }

    /// As [`miss`](Self::miss), if a live lane has records in `group` that were not taken.
    pub(super) fn miss_in(&mut self, group: &BatchGroup) {
        if self.live_in(group).is_some() {
            self.miss(group.seq);
        }
    }

    /// Takes from memory what may go before older entries.
    pub(super) fn overtake(&mut self) {
        while !self.settings.log_drops
            && self.has_room_ahead()
            && let Some((group, size_bytes)) = self.recent.look()
        {
            self.take_live(&group, size_bytes);
            self.miss_in(&group);
        }
    }

    /// What is to be read to go on with what was missed, if that is not next in order anyway.
    pub(super) fn look_ahead(&mut self, now: Monotonic) -> Option<ReadRequest> {
        let from = self.ahead.missed?.max(EntrySeq(self.end.0.saturating_sub(ENTRIES_MAX)));
        let waits = self.ahead.waits.is_some_and(|(lane, until)| !self.has_room(lane) && now < until);
        if from <= self.next || waits || !self.has_room_ahead() {
            return None;
        }
        let room = self.settings.in_flight_bytes - self.in_flight_bytes();
        Some(ReadRequest { from, limit_bytes: room.min(READ_BYTES_MAX), ahead: true })
    }

    /// Takes what live lanes have in what was read ahead, as far as there is room. What is missing is left to be found in
    /// its turn, and so is all of it if the log does not answer.
    pub(super) fn on_read_ahead(&mut self, now: Monotonic, from: EntrySeq, outcome: Option<ReadOutcome>) {
        let waited = self.ahead.waits.take();
        self.ahead.missed = None;
        let Some(outcome) = outcome.filter(|outcome| outcome.next > from) else { return };
        for group in &outcome.groups {
            if !self.has_room_ahead() {
                return self.miss(group.seq);
            }
            self.note(group);
            // What the log dropped is told in its turn.
            if !group.dropped.is_empty() {
                continue;
            }
            let taken = self.take_live(group, size_bytes(group));
            self.metrics.catch_up_bytes.inc_by(taken.bytes as u64);
            let waited = waited.filter(|_| group.seq == from).map(|(_, until)| until);
            let until = waited.unwrap_or(now + PATIENCE);
            if let Some(lane) = self.live_in(group).filter(|_| now < until) {
                self.ahead.waits = Some((lane, until));
                return self.miss(group.seq);
            }
        }
        if outcome.next < self.end {
            self.miss(outcome.next);
        }
    }

    /// Takes the batches of live lanes that have room.
    fn take_live(&mut self, group: &Arc<BatchGroup>, size_bytes: usize) -> Pushed {
        let lane_max_bytes = self.lane_max_bytes();
        let taken = self.take(group, size_bytes, |lane, batch| {
            lane.taken == Some(batch.base_offset) && lane.in_flight_bytes < lane_max_bytes
        });
        if taken.records > 0 {
            self.settings.held.take(group.seq);
        }
        self.metrics.overtaking_records.inc_by(taken.records as u64);
        taken
    }

    /// A live lane that has records in `group` that were not taken.
    fn live_in(&self, group: &BatchGroup) -> Option<usize> {
        group.batches.iter().find_map(|batch| {
            let lane = *self.lane_of.get(&(batch.stream.clone(), batch.partition))?;
            (self.lanes[lane].taken == Some(batch.base_offset)).then_some(lane)
        })
    }

    fn has_room_ahead(&self) -> bool {
        self.restart_at.is_none() && self.in_flight_bytes() < self.settings.in_flight_bytes
    }

    fn has_room(&self, lane: usize) -> bool {
        self.lanes[lane].in_flight_bytes < self.lane_max_bytes()
    }

    /// Most bytes that a lane has under way when it takes more ahead of its turn.
    fn lane_max_bytes(&self) -> usize {
        self.settings.in_flight_bytes / 8
    }

    /// Whether what a lane sends next is before its turn.
    pub(super) fn is_ahead(&self, lane: &Lane) -> bool {
        lane.next().is_some_and(|next| next.entry >= self.next)
    }
}
