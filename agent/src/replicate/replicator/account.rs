//! The account of replication: how far Kafka has the log, what is under way, and when there is more to do.

use super::{Lane, Replicator, TopicState};
use crate::{
    env::Monotonic,
    log::EntrySeq,
    record::{Offset, Received},
    replicate::Cursor,
};

/// Entries that the cursor says are begun before they are, so that it is not written for each. After a crash the log
/// drops none of them: at most 2 MiB of what arrives by then.
const BEGUN_AHEAD: u64 = 32;

impl Replicator {
    /// Everything below is fully acknowledged, or was lost by the log.
    pub fn acknowledged(&self) -> EntrySeq {
        self.entries.first_key_value().map_or(self.next, |(seq, _)| self.next.min(*seq))
    }

    /// The cursor as of now.
    pub fn cursor(&self) -> Cursor {
        let acknowledged = self.lane_of.iter().filter_map(|(key, index)| {
            let offset = self.lanes[*index].cursor();
            (offset > Offset(0)).then(|| (key.clone(), offset))
        });
        let ahead = if self.settings.log_drops { BEGUN_AHEAD } else { 0 };
        let mut cursor = Cursor {
            next: self.acknowledged(),
            begun: EntrySeq(self.settings.held.begun().0.saturating_add(ahead)),
            acknowledged: acknowledged.collect(),
            ..Cursor::default()
        };
        if let Some(transactions) = &self.transactions {
            transactions.say(&mut cursor);
        }
        cursor
    }

    /// Whether the `durable` cursor must be written again before [`pump`](Self::pump) is called: else a crash would let the
    /// log drop, and tell as missing, what Kafka has got; or leave a cursor that does not know the log's name in Kafka.
    pub fn outruns(&self, durable: &Cursor) -> bool {
        let begun_beyond = self.settings.log_drops && durable.begun < self.settings.held.begun();
        begun_beyond
            || self.transactions.as_ref().is_some_and(|transactions| transactions.is_renamed(durable))
    }

    /// Records handed to the client that it has not reported.
    pub fn in_flight_records(&self) -> usize {
        self.tokens.len()
    }

    /// Bytes of records on their way: copies in the client, and groups that are kept for records not handed over yet.
    pub fn in_flight_bytes(&self) -> usize {
        self.pinned_bytes + self.sent_bytes
    }

    /// Whether Kafka has acknowledged all that the log is known to hold, and no probe is under way.
    pub fn is_caught_up(&self) -> bool {
        self.acknowledged() >= self.end && !self.probes
    }

    /// Records in the log, as far as known, that Kafka has not acknowledged.
    pub fn lag_records(&self) -> u64 {
        self.lanes.iter().map(Lane::lag_records).sum()
    }

    /// When there is something to do that nothing from outside announces.
    pub fn deadline(&self) -> Option<Monotonic> {
        let topics = self.topics.iter().filter_map(|t| match t.state {
            TopicState::RetryAt(at) => Some(at),
            _ => None,
        });
        let further = [self.restart_at, self.read_retry_at, self.paced_until, self.transaction_due()];
        topics.chain(further.into_iter().flatten()).min()
    }

    /// Brings gauges and health up to date.
    pub fn publish(&self, wall: Received) {
        let m = &self.metrics;
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let lag_records = self.lag_records();
        m.in_flight_records.set(gauge(self.tokens.len() as u64));
        m.in_flight_bytes.set(gauge(self.in_flight_bytes() as u64));
        m.lag_records.set(gauge(lag_records));
        let lag_entries = self.end.0.saturating_sub(self.acknowledged().0);
        m.lag_entries.set(gauge(lag_entries));
        // What is read next is hardly older than what was read last.
        let behind = self.taken_received.filter(|_| self.next < self.end);
        let under_way = self.entries.range(..self.next).find_map(|(_, entry)| entry.received);
        let oldest = under_way.or(behind).unwrap_or(wall);
        let age_seconds = u64::try_from(wall.micros_since(oldest) / 1_000_000).unwrap_or(0);
        m.oldest_age_seconds.set(gauge(age_seconds));
        m.health().lag(lag_records, lag_entries, age_seconds, self.is_caught_up());
    }
}
