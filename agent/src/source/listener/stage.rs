//! From messages to the intake: what a round of reading brought, decoded and gathered.

use bytes::Bytes;

use super::{
    broker::{Incoming, Store, Taken},
    packet::Value,
};
use crate::{
    config::{DEAD_LETTER_STREAM, Listener},
    decode::{mqtt::Router, topic::TopicFilter},
    intake::{Intake, Ticket},
    log::Note,
    record::{Received, Record, RecordHeader},
    source::metrics::SourceCounters,
};

/// User properties of a message that become headers of its record.
const USER_PROPERTIES_MAX: usize = 16;

/// What one round of reading brought, not submitted yet.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Records in the order of their messages.
    pub(super) records: Vec<Record>,
    /// What is to be remembered once they are durable.
    pub(super) notes: Vec<Note>,
    /// Bytes of both.
    pub(super) size_bytes: usize,
}

impl Group {
    /// Whether there is nothing to submit.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.notes.is_empty()
    }
}

/// From messages to the intake.
pub(super) struct Stage {
    router: Router,
    local: Vec<TopicFilter>,
    record_bytes_max: usize,
    reject_invalid: bool,
    /// The way on.
    pub(super) intake: Intake,
    /// The source's own metrics.
    pub(super) counters: SourceCounters,
    /// What was read and not submitted.
    pub(super) group: Group,
    /// Time of receipt of what is read now.
    pub(super) received: Received,
}

impl Stage {
    /// Records larger than `record_bytes_max` become dead letters.
    pub(super) fn new(
        config: &Listener,
        router: Router,
        record_bytes_max: usize,
        intake: Intake,
        counters: SourceCounters,
    ) -> Self {
        Self {
            router,
            local: config.local_topic_filters.iter().map(|filter| TopicFilter::new(filter)).collect(),
            record_bytes_max,
            reject_invalid: config.reject_invalid,
            intake,
            counters,
            group: Group::default(),
            received: Received::default(),
        }
    }
}

impl Store for Stage {
    fn store(&mut self, message: Incoming<'_>) -> Option<Taken> {
        let Incoming { topic, payload, properties } = message;
        if self.local.iter().any(|filter| filter.matches(topic)) {
            return None;
        }
        let mut record = self.router.decode(topic, payload, false, self.received);
        let user = properties.iter().filter_map(|property| match property.value {
            Value::Pair(name, value) => Some((name, value)),
            _ => None,
        });
        for (name, value) in user.take(USER_PROPERTIES_MAX) {
            let fits = record.size_bytes() + name.len() + value.len() <= self.record_bytes_max;
            // Ours are not for devices to set.
            if fits && !name.is_empty() && !name.starts_with("wayside.") && name != "content-type" {
                let value = Bytes::copy_from_slice(value.as_bytes());
                record.headers.push(RecordHeader { name: name.into(), value });
            }
        }
        self.counters.record(&record);
        self.group.size_bytes += record.size_bytes();
        let place = (self.intake.next_ticket(), self.group.records.len());
        let is_invalid = self.reject_invalid && record.stream.as_str() == DEAD_LETTER_STREAM;
        self.group.records.push(record);
        Some(Taken { place, is_invalid })
    }

    fn last_ticket(&self) -> Ticket {
        if self.group.records.is_empty() { self.intake.last_ticket() } else { self.intake.next_ticket() }
    }
}
