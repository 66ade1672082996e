//! Figures of the commit stage.

use std::{
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::log::LogError;

/// Bounds of the latency buckets in seconds: around the 20 ms window, and up to a card that stalls.
const LATENCY_BUCKETS_S: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Counters and histograms of commits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CommitMetrics {
    commits: Counter,
    failures: Counter,
    failing: Gauge,
    waiting: Gauge,
    /// Why the last try failed or was not made. Locked for a copy or comparison alone.
    last_error: Arc<Mutex<Option<String>>>,
    latency_seconds: Histogram,
}

impl CommitMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            commits: Counter::default(),
            failures: Counter::default(),
            failing: Gauge::default(),
            waiting: Gauge::default(),
            last_error: Arc::default(),
            latency_seconds: Histogram::new(LATENCY_BUCKETS_S),
        };
        registry.register("commit_commits", "Commits that became durable", metrics.commits.clone());
        registry.register("commit_failures", "Tries of a commit that failed", metrics.failures.clone());
        registry.register(
            "commit_failing",
            "1 while the disk fails commits: nothing is acknowledged",
            metrics.failing.clone(),
        );
        registry.register(
            "commit_waiting",
            "1 while the log is at a bound, log.limit_bytes or log.reserve_bytes: nothing is acknowledged",
            metrics.waiting.clone(),
        );
        registry.register(
            "commit_latency_seconds",
            "Time from the arrival of the oldest record of a commit until it was durable",
            metrics.latency_seconds.clone(),
        );
        metrics
    }

    /// A commit became durable whose oldest record had waited `wait`.
    pub(crate) fn committed(&self, wait: Duration) {
        self.commits.inc();
        self.failing.set(0);
        self.waiting.set(0);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.latency_seconds.observe(wait.as_secs_f64());
    }

    /// A try failed, or was not made since the log is at a bound. Returns why, if that is news.
    pub(crate) fn failed(&self, cause: &LogError) -> Option<String> {
        let bound = cause.is_bound();
        if !bound {
            self.failures.inc();
        }
        let waited = self.waiting();
        self.failing.set((!bound).into());
        self.waiting.set(bound.into());
        let text = with_causes(cause);
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).replace(text.clone());
        // The bytes that are free may change all the time.
        let news = if bound { !waited } else { last.as_ref() != Some(&text) };
        news.then_some(text)
    }

    /// Whether the disk failed the last try.
    pub fn failing(&self) -> bool {
        self.failing.get() != 0
    }

    /// Whether the log waits for room, at a bound of its own.
    pub fn waiting(&self) -> bool {
        self.waiting.get() != 0
    }

    /// Why commits fail or wait, while they do.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Commits so far.
    pub fn commits(&self) -> u64 {
        self.commits.get()
    }

    /// Failed tries so far.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }
}

/// The words of an error and of what caused it.
pub(super) fn with_causes(error: &LogError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
