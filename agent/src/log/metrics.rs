//! What the log tells about itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::config::Policy;

/// Upper bounds of the sync histogram, in seconds: from a good SSD to an SD card in garbage collection.
const SYNC_SECONDS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];

/// Metrics of the log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogMetrics {
    pub(super) syncs: Counter,
    pub(super) sync_failures: Counter,
    pub(super) sync_seconds: Histogram,
    pub(super) written_bytes: Counter,
    pub(super) payload_bytes: Counter,
    pub(super) epochs: Gauge,
    pub(super) size_bytes: Gauge,
    pub(super) entries: Gauge,
    pub(super) quarantined: Counter,
    pub(super) lost_entries: Counter,
    pub(super) damaged_entries: Counter,
    pub(super) refused_notes: Counter,
    dropped_records: Family<DropLabels, Counter>,
    /// The same, to be listed; held for one entry.
    drops: Arc<Mutex<BTreeMap<(String, &'static str), u64>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    stream: String,
    policy: &'static str,
}

impl LogMetrics {
    /// Creates the metrics and names them in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            syncs: Counter::default(),
            sync_failures: Counter::default(),
            sync_seconds: Histogram::new(SYNC_SECONDS),
            written_bytes: Counter::default(),
            payload_bytes: Counter::default(),
            epochs: Gauge::default(),
            size_bytes: Gauge::default(),
            entries: Gauge::default(),
            quarantined: Counter::default(),
            lost_entries: Counter::default(),
            damaged_entries: Counter::default(),
            refused_notes: Counter::default(),
            dropped_records: Family::default(),
            drops: Arc::default(),
        };
        registry.register("log_syncs", "Syncs that made entries durable", metrics.syncs.clone());
        registry.register(
            "log_sync_failures",
            "Attempts to make entries durable that failed; each is repeated",
            metrics.sync_failures.clone(),
        );
        registry.register(
            "log_sync_seconds",
            "Time of a commit: entries to the store and fdatasync",
            metrics.sync_seconds.clone(),
        );
        registry.register(
            "log_written_bytes",
            "Bytes given to the store, compressed, checkpoints included",
            metrics.written_bytes.clone(),
        );
        registry.register(
            "log_payload_bytes",
            "Bytes of groups made durable, before compression",
            metrics.payload_bytes.clone(),
        );
        registry.register("log_epochs", "Epochs present", metrics.epochs.clone());
        registry.register("log_size_bytes", "Bytes of all epochs on the device", metrics.size_bytes.clone());
        registry.register(
            "log_entries",
            "Entries from the first one that is present on",
            metrics.entries.clone(),
        );
        registry.register(
            "log_quarantined_epochs",
            "Epochs that could not be read and were put aside",
            metrics.quarantined.clone(),
        );
        registry.register(
            "log_lost_entries",
            "Upper bound of the entries found missing or damaged by readers",
            metrics.lost_entries.clone(),
        );
        registry.register(
            "log_damaged_entries",
            "Entries that were there and did not pass their checks",
            metrics.damaged_entries.clone(),
        );
        registry.register(
            "log_refused_notes",
            "Notes of sources beyond the bound of all, which a restart forgets: sessions, retained messages, repetitions",
            metrics.refused_notes.clone(),
        );
        registry.register(
            "log_dropped_records",
            "Records dropped at the log's limit, by stream and policy; each is told on the stream gaps",
            metrics.dropped_records.clone(),
        );
        metrics
    }

    pub(crate) fn dropped(&self, stream: &str, policy: Policy, records: u64) {
        let labels = DropLabels { stream: stream.to_owned(), policy: policy.as_str() };
        self.dropped_records.get_or_create(&labels).inc_by(records);
        *self.lock_drops().entry((labels.stream, labels.policy)).or_default() += records;
    }

    /// Records dropped since the start, by stream and policy.
    pub fn drops(&self) -> BTreeMap<(String, &'static str), u64> {
        self.lock_drops().clone()
    }

    fn lock_drops(&self) -> MutexGuard<'_, BTreeMap<(String, &'static str), u64>> {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Epochs present.
    pub fn epochs(&self) -> u64 {
        value(&self.epochs)
    }

    /// Bytes of all epochs on the device.
    pub fn size_bytes(&self) -> u64 {
        value(&self.size_bytes)
    }

    /// Bytes of the last `entries` entries on the device, if all were of one size.
    pub fn size_bytes_of(&self, entries: u64) -> u64 {
        let share =
            u128::from(self.size_bytes()) * u128::from(entries) / u128::from(value(&self.entries).max(1));
        u64::try_from(share).unwrap_or(u64::MAX).min(self.size_bytes())
    }

    /// Notes how long a call of [`super::Log::sync`] took: the log knows no clock, its driver does.
    pub fn observe_sync(&self, took: Duration) {
        self.sync_seconds.observe(took.as_secs_f64());
    }
}

fn value(gauge: &Gauge) -> u64 {
    u64::try_from(gauge.get()).unwrap_or(0)
}
