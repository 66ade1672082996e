//! Figures of the commit stage.

use std::time::Duration;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Bounds of the latency buckets in seconds: around the 20 ms window, and up to a card that stalls.
const LATENCY_BUCKETS_S: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Counters and histograms of commits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CommitMetrics {
    commits: Counter,
    failures: Counter,
    failing: Gauge,
    latency_seconds: Histogram,
}

impl CommitMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            commits: Counter::default(),
            failures: Counter::default(),
            failing: Gauge::default(),
            latency_seconds: Histogram::new(LATENCY_BUCKETS_S),
        };
        registry.register("commit_commits", "Commits that became durable", metrics.commits.clone());
        registry.register("commit_failures", "Tries of a commit that failed", metrics.failures.clone());
        registry.register(
            "commit_failing",
            "1 while commits fail: nothing is acknowledged",
            metrics.failing.clone(),
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
        self.latency_seconds.observe(wait.as_secs_f64());
    }

    /// A try failed.
    pub(crate) fn failed(&self) {
        self.failures.inc();
        self.failing.set(1);
    }

    /// Whether the last try failed.
    pub fn failing(&self) -> bool {
        self.failing.get() != 0
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
