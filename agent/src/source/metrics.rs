//! What the sources count, and what they tell `/healthz`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::record::{Record, StreamName};

/// Label of what a source has one of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: String,
}

/// Labels of what a source has one of per stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    source: String,
    stream: String,
}

/// Labels of what a source has one of per cause.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    source: String,
    reason: &'static str,
}

/// `wayside_source_*` of all sources. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    records: Family<StreamLabels, Counter>,
    bytes: Family<StreamLabels, Counter>,
    connected: Family<SourceLabel, Gauge>,
    connections: Family<SourceLabel, Counter>,
    clients: Family<SourceLabel, Gauge>,
    failures: Family<SourceLabel, Counter>,
    unacknowledged: Family<SourceLabel, Gauge>,
    held_back: Family<SourceLabel, Counter>,
    rejected: Family<ReasonLabels, Counter>,
    dropped: Family<ReasonLabels, Counter>,
    lost: Family<SourceLabel, Counter>,
    /// The same as `dropped`, whose contents a family does not give out: for `/healthz`. Written once per drop, and
    /// read when somebody asks.
    drops: Arc<Mutex<BTreeMap<(String, &'static str), u64>>>,
}

impl SourceMetrics {
    /// Registers the metrics in a registry that has the prefix `wayside`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            records: Family::default(),
            bytes: Family::default(),
            connected: Family::default(),
            connections: Family::default(),
            clients: Family::default(),
            failures: Family::default(),
            unacknowledged: Family::default(),
            held_back: Family::default(),
            rejected: Family::default(),
            dropped: Family::default(),
            lost: Family::default(),
            drops: Arc::default(),
        };
        registry.register("source_records", "Records handed to the pipeline", metrics.records.clone());
        registry.register(
            "source_bytes",
            "Bytes of the values of records handed to the pipeline",
            metrics.bytes.clone(),
        );
        registry.register(
            "source_connected",
            "1 while the broker or port answers, or the address is listened on",
            metrics.connected.clone(),
        );
        registry.register(
            "source_connections",
            "Connections made or accepted, or ports opened; of a broker or port all but the first are reconnects",
            metrics.connections.clone(),
        );
        registry.register(
            "source_clients",
            "Clients that are connected to a listener",
            metrics.clients.clone(),
        );
        registry.register(
            "source_failures",
            "Attempts at a broker, a subscription, a port or an address that failed, and connections that broke",
            metrics.failures.clone(),
        );
        registry.register(
            "source_unacknowledged",
            "Frames taken whose sender has no acknowledgement yet",
            metrics.unacknowledged.clone(),
        );
        registry.register(
            "source_held_back",
            "Times that a client over its rate was left unread for a while",
            metrics.held_back.clone(),
        );
        registry.register(
            "source_rejected",
            "Frames that were no frames of the protocol, requests that were refused and clients that were disconnected, by reason",
            metrics.rejected.clone(),
        );
        registry.register(
            "source_dropped",
            "Frames that were understood and not handed on, by reason",
            metrics.dropped.clone(),
        );
        registry.register("source_lost", "Frames that devices report as lost", metrics.lost.clone());
        metrics
    }

    /// Frames that were understood and not handed on, by source and reason.
    pub fn drops(&self) -> BTreeMap<(String, &'static str), u64> {
        self.lock_drops().clone()
    }

    fn lock_drops(&self) -> MutexGuard<'_, BTreeMap<(String, &'static str), u64>> {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The metrics of the source `name`, with every lookup done once.
    pub fn source(&self, name: &str) -> SourceCounters {
        let label = SourceLabel { source: name.to_owned() };
        SourceCounters {
            connected: self.connected.get_or_create_owned(&label),
            connections: self.connections.get_or_create_owned(&label),
            clients: None,
            failures: self.failures.get_or_create_owned(&label),
            unacknowledged: self.unacknowledged.get_or_create_owned(&label),
            lost: self.lost.get_or_create_owned(&label),
            streams: BTreeMap::new(),
            families: self.clone(),
            source: label.source,
        }
    }
}

/// The metrics of one source. All clones count into the same.
#[derive(Clone, Debug)]
pub struct SourceCounters {
    /// 1 while the broker or port answers.
    pub connected: Gauge<i64, AtomicI64>,
    /// Connections made or ports opened.
    pub connections: Counter<u64, AtomicU64>,
    clients: Option<Gauge<i64, AtomicI64>>,
    /// Attempts that failed, and connections that broke.
    pub failures: Counter<u64, AtomicU64>,
    /// Frames taken and not yet acknowledged to their sender.
    pub unacknowledged: Gauge<i64, AtomicI64>,
    /// Frames that devices report as lost.
    pub lost: Counter<u64, AtomicU64>,
    streams: BTreeMap<StreamName, (Counter, Counter)>,
    families: SourceMetrics,
    source: String,
}

impl SourceCounters {
    /// Counts a record that was handed on.
    pub fn record(&mut self, record: &Record) {
        let size_bytes = record.value.len() as u64;
        if let Some((records, bytes)) = self.streams.get(&record.stream) {
            records.inc();
            bytes.inc_by(size_bytes);
            return;
        }
        let labels = StreamLabels { source: self.source.clone(), stream: record.stream.to_string() };
        let records = self.families.records.get_or_create_owned(&labels);
        let bytes = self.families.bytes.get_or_create_owned(&labels);
        records.inc();
        bytes.inc_by(size_bytes);
        self.streams.insert(record.stream.clone(), (records, bytes));
    }

    /// Says how many clients are connected. A source that has none has no such metric.
    pub(crate) fn clients(&mut self, count: usize) {
        let label = SourceLabel { source: self.source.clone() };
        let gauge = self.clients.get_or_insert_with(|| self.families.clients.get_or_create_owned(&label));
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts that a client was left unread for a while, since it was over its rate.
    pub(crate) fn held_back(&self) {
        self.families.held_back.get_or_create(&SourceLabel { source: self.source.clone() }).inc();
    }

    /// Counts `count` frames that were no frames of the protocol.
    pub fn rejected(&self, reason: &'static str, count: u64) {
        self.families.rejected.get_or_create(&self.reason(reason)).inc_by(count);
    }

    /// Counts a frame that was understood and not handed on.
    pub fn dropped(&self, reason: &'static str) {
        self.dropped_many(reason, 1);
    }

    /// Counts `count` frames that were understood and not handed on.
    pub(crate) fn dropped_many(&self, reason: &'static str, count: u64) {
        self.families.dropped.get_or_create(&self.reason(reason)).inc_by(count);
        *self.families.lock_drops().entry((self.source.clone(), reason)).or_default() += count;
    }

    fn reason(&self, reason: &'static str) -> ReasonLabels {
        ReasonLabels { source: self.source.clone(), reason }
    }
}

/// How a source is, for `/healthz`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The broker or port answers.
    pub connected: bool,
    /// What keeps it from working as configured, the latest; `None` while all is well.
    pub error: Option<String>,
}

/// Where a source publishes its [`SourceState`]. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct SourceHealth {
    // Written a few times per reconnect by the source, read by the HTTP handler; neither holds it across an await.
    state: Arc<Mutex<SourceState>>,
    // As above: files that were read again and are of no use, by key of the configuration.
    files: Arc<Mutex<BTreeMap<String, String>>>,
}

/// Where is told how rereading the files of a source went.
#[derive(Clone, Debug)]
pub struct SourceWatch {
    /// The source's.
    pub health: SourceHealth,
    /// The source's.
    pub failures: Counter<u64, AtomicU64>,
}

impl SourceWatch {
    /// The files of `key` are as good as what was read before, or of no use for `cause`.
    pub(crate) fn file(&self, key: &str, cause: Option<String>) {
        let mut files = self.health.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = cause {
            self.failures.inc();
            files.insert(key.to_owned(), cause);
        } else {
            files.remove(key);
        }
    }

    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self { health: SourceHealth::default(), failures: Counter::default() }
    }
}

impl SourceHealth {
    /// The state as it is now.
    pub fn state(&self) -> SourceState {
        let mut state = self.lock().clone();
        if state.error.is_none() {
            let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            state.error = files.values().next().cloned();
        }
        state
    }

    /// The source works as configured.
    pub(crate) fn healthy(&self) {
        *self.lock() = SourceState { connected: true, error: None };
    }

    /// The source works, but not as configured.
    pub(crate) fn degraded(&self, error: String) {
        *self.lock() = SourceState { connected: true, error: Some(error) };
    }

    /// The source has no connection. Returns whether that is for another cause than before, which is worth a line in
    /// the log; a repetition is not.
    pub(crate) fn down(&self, error: &str) -> bool {
        let mut state = self.lock();
        let news = state.connected || state.error.as_deref() != Some(error);
        *state = SourceState { connected: false, error: Some(error.to_owned()) };
        news
    }

    fn lock(&self) -> MutexGuard<'_, SourceState> {
        // A plain value is whole after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
