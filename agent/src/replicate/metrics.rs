//! What replication shows: metrics, and the state behind `/healthz`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::cluster::DropReason;

/// Label of what is counted by stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StreamLabel {
    pub(super) stream: String,
}

/// Labels of dropped records.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DropLabels {
    pub(super) stream: String,
    pub(super) reason: &'static str,
}

/// Metrics of the replicate stage, and its health. Cheap to clone; clones share their values.
#[derive(Clone, Debug, Default)]
pub struct ReplicateMetrics {
    pub(super) acknowledged_records: Family<StreamLabel, Counter>,
    pub(super) acknowledged_bytes: Family<StreamLabel, Counter>,
    pub(super) dropped_records: Family<DropLabels, Counter>,
    pub(super) in_flight_records: Gauge,
    pub(super) in_flight_bytes: Gauge,
    pub(super) lag_records: Gauge,
    pub(super) lag_entries: Gauge,
    pub(super) oldest_age_seconds: Gauge,
    pub(super) groups_from_memory: Counter,
    pub(super) groups_from_log: Counter,
    pub(super) catch_up_bytes: Counter,
    pub(super) overtaking_records: Counter,
    pub(super) throttle_seconds: Gauge<f64, AtomicU64>,
    pub(super) lost_entries: Counter,
    pub(super) restamped_records: Counter,
    pub(super) corrected_records: Counter,
    pub(super) errors: Counter,
    pub(super) producer_restarts: Counter,
    pub(super) transactions: Counter,
    pub(super) aborted_transactions: Counter,
    pub(super) undecided_transactions: Counter,
    pub(super) fenced: Counter,
    pub(super) cursor_writes: Counter,
    pub(super) cursor_write_failures: Counter,
    pub(super) damaged_cursor_slots: Counter,
    pub(super) waiting_topics: Gauge,
    health: ReplicateHealth,
}

impl ReplicateMetrics {
    /// Registers all under `replicate_*`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register(
            "replicate_acknowledged_records",
            "Records that Kafka acknowledged with all in-sync replicas",
            m.acknowledged_records.clone(),
        );
        registry.register_with_unit(
            "replicate_acknowledged",
            "Keys and values of acknowledged records",
            Unit::Bytes,
            m.acknowledged_bytes.clone(),
        );
        registry.register(
            "replicate_dropped_records",
            "Records that Kafka can never take, by reason",
            m.dropped_records.clone(),
        );
        registry.register(
            "replicate_in_flight_records",
            "Records handed to the Kafka client and not yet acknowledged",
            m.in_flight_records.clone(),
        );
        registry.register_with_unit(
            "replicate_in_flight",
            "Memory of records taken from the log and not yet acknowledged",
            Unit::Bytes,
            m.in_flight_bytes.clone(),
        );
        registry.register(
            "replicate_lag_records",
            "Records in the log that Kafka has not acknowledged",
            m.lag_records.clone(),
        );
        registry.register(
            "replicate_lag_entries",
            "Entries of the log that are not fully acknowledged",
            m.lag_entries.clone(),
        );
        registry.register_with_unit(
            "replicate_oldest_unacknowledged_age",
            "Time since the gateway received the oldest record that Kafka has not acknowledged, by the wall clock",
            Unit::Seconds,
            m.oldest_age_seconds.clone(),
        );
        registry.register(
            "replicate_groups_from_memory",
            "Entries that were sent as they were committed, without reading the log",
            m.groups_from_memory.clone(),
        );
        registry.register(
            "replicate_groups_from_log",
            "Entries that were read back from the log to be sent",
            m.groups_from_log.clone(),
        );
        registry.register_with_unit(
            "replicate_catch_up",
            "Records that were read back from the log to be sent, before compression",
            Unit::Bytes,
            m.catch_up_bytes.clone(),
        );
        registry.register(
            "replicate_overtaking_records",
            "Records that were sent before older ones of other partitions",
            m.overtaking_records.clone(),
        );
        registry.register_with_unit(
            "replicate_throttle",
            "Longest time that a broker throttled us for a quota, in the last ten seconds",
            Unit::Seconds,
            m.throttle_seconds.clone(),
        );
        registry.register(
            "replicate_lost_entries",
            "Entries that the log had lost when replication came to them",
            m.lost_entries.clone(),
        );
        registry.register(
            "replicate_restamped_records",
            "Records that Kafka took with the time they were received or sent, because it refuses the time they should have",
            m.restamped_records.clone(),
        );
        registry.register(
            "replicate_corrected_records",
            "Records that Kafka took with a time of receipt by a better clock than they were received by",
            m.corrected_records.clone(),
        );
        registry.register(
            "replicate_errors",
            "What brokers, the Kafka client, topics and the cursor's file failed at",
            m.errors.clone(),
        );
        registry.register(
            "replicate_waiting_topics",
            "Topics whose streams wait for an operator",
            m.waiting_topics.clone(),
        );
        registry.register(
            "replicate_producer_restarts",
            "Kafka producers that were thrown away after an error",
            m.producer_restarts.clone(),
        );
        registry.register(
            "replicate_transactions",
            "Transactions that Kafka committed",
            m.transactions.clone(),
        );
        registry.register(
            "replicate_aborted_transactions",
            "Transactions that were given up; their records go again in others",
            m.aborted_transactions.clone(),
        );
        registry.register(
            "replicate_undecided_transactions",
            "Transactions of which nobody knows whether Kafka committed them; their records may be there twice",
            m.undecided_transactions.clone(),
        );
        registry.register(
            "replicate_fenced",
            "How often another gateway with the same gateway.id took our place",
            m.fenced.clone(),
        );
        registry.register("replicate_cursor_writes", "Durable writes of the cursor", m.cursor_writes.clone());
        registry.register(
            "replicate_cursor_write_failures",
            "Writes of the cursor that failed",
            m.cursor_write_failures.clone(),
        );
        registry.register(
            "replicate_damaged_cursor_slots",
            "Halves of the cursor's file that were no cursor at the start",
            m.damaged_cursor_slots.clone(),
        );
        m
    }

    /// The state behind `/healthz`.
    pub fn health(&self) -> ReplicateHealth {
        self.health.clone()
    }

    /// Something went wrong.
    pub(super) fn error(&self, error: String) {
        self.errors.inc();
        self.health.lock().last_error = Some(error);
    }

    /// The stream of `topic` waits for an operator, who is told `advice`; or does not any more.
    pub(super) fn topic_waits(&self, topic: &str, advice: Option<String>) {
        let waiting = &mut self.health.lock().waiting_topics;
        match advice {
            Some(advice) => waiting.insert(topic.to_owned(), advice),
            None => waiting.remove(topic),
        };
        self.waiting_topics.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
    }

    pub(super) fn dropped(&self, stream: &str, reason: DropReason) {
        let labels = DropLabels { stream: stream.to_owned(), reason: reason.label() };
        self.dropped_records.get_or_create(&labels).inc();
        *self.health.lock().dropped.entry((labels.stream, labels.reason)).or_default() += 1;
    }
}

/// How replication fares, for `/healthz`. Cheap to clone; clones share their state.
#[derive(Clone, Default)]
pub struct ReplicateHealth(
    /// Written by the replicate thread, read by the HTTP task; held for a copy only.
    Arc<Mutex<HealthSnapshot>>,
);

/// A [`ReplicateHealth`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthSnapshot {
    /// Whether Kafka has acknowledged all that the log holds.
    pub caught_up: bool,
    /// Records that it has not acknowledged.
    pub lag_records: u64,
    /// Entries of the log that hold them.
    pub lag_entries: u64,
    /// Whole seconds since the gateway received the oldest of them that is on its way.
    pub oldest_age_seconds: u64,
    /// What went wrong last, cleared by the next acknowledgement.
    pub last_error: Option<String>,
    /// Another gateway with the same id has taken our place since the last transaction.
    pub fenced: bool,
    /// Topics whose streams wait, with what the operator can do.
    pub waiting_topics: BTreeMap<String, String>,
    /// Records dropped since the start, by stream and reason.
    pub dropped: BTreeMap<(String, &'static str), u64>,
}

impl HealthSnapshot {
    /// Whether an operator is needed: data waits for something that does not come by itself.
    pub fn needs_operator(&self) -> bool {
        self.fenced || !self.waiting_topics.is_empty()
    }
}

impl ReplicateHealth {
    /// The state now.
    pub fn snapshot(&self) -> HealthSnapshot {
        self.lock().clone()
    }

    pub(super) fn lag(&self, records: u64, entries: u64, oldest_age_seconds: u64, caught_up: bool) {
        let mut state = self.lock();
        state.lag_records = records;
        state.lag_entries = entries;
        state.oldest_age_seconds = oldest_age_seconds;
        state.caught_up = caught_up;
    }

    pub(super) fn fenced(&self, fenced: bool) {
        self.lock().fenced = fenced;
    }

    pub(super) fn acknowledged(&self) {
        self.lock().last_error = None;
    }

    fn lock(&self) -> MutexGuard<'_, HealthSnapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ReplicateHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}
