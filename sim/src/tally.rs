//! Counts what a run sent and what came back, and keeps the ledger.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::ledger::{Id, LedgerWriter, unix_micros};

/// Shared by the tasks of one run; a cheap clone. The mutex is held for a few counters, never across an await.
#[derive(Debug, Clone)]
pub struct Tally {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stream: &'static str,
    device_ids: Vec<String>,
    ledger: Option<LedgerWriter>,
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    sent: u64,
    acked: u64,
    refused: u64,
    resent: u64,
    reconnects: u64,
    latency_micros: Histogram<u64>,
}

impl Tally {
    /// `device_ids` are the Kafka keys by device index.
    pub fn new(stream: &'static str, device_ids: Vec<String>, ledger: Option<LedgerWriter>) -> Self {
        // 1 % resolution from 1 us to an hour; what is longer counts as an hour.
        let latency_micros =
            Histogram::new_with_max(3_600_000_000, 2).expect("the bounds are valid constants");
        let counts = Counts { sent: 0, acked: 0, refused: 0, resent: 0, reconnects: 0, latency_micros };
        Self { shared: Arc::new(Shared { stream, device_ids, ledger, counts: Mutex::new(counts) }) }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the reading leaves for the first time and returns when, in Unix microseconds.
    pub fn sent(&self, device: u32, seq: u64) -> u64 {
        let now = unix_micros();
        if let Some(ledger) = &self.shared.ledger {
            ledger.sent(self.shared.stream, &self.shared.device_ids[device as usize], Id::Seq(seq), now);
        }
        self.counts().sent += 1;
        now
    }

    /// Notes the acknowledgement of a reading that left at `sent_micros`.
    pub fn acked(&self, device: u32, seq: u64, sent_micros: u64) {
        let now = unix_micros();
        if let Some(ledger) = &self.shared.ledger {
            ledger.acked(self.shared.stream, &self.shared.device_ids[device as usize], Id::Seq(seq), now);
        }
        let mut counts = self.counts();
        counts.acked += 1;
        counts.latency_micros.saturating_record(now.saturating_sub(sent_micros));
    }

    /// Notes a reading that the other side refused for good.
    pub fn refused(&self) {
        self.counts().refused += 1;
    }

    /// Notes readings that were sent again.
    pub fn resent(&self, readings: u64) {
        self.counts().resent += readings;
    }

    /// Notes that a connection was lost.
    pub fn reconnecting(&self) {
        self.counts().reconnects += 1;
    }

    /// The figures so far; `generated` is how long the generator ran.
    pub fn summary(&self, generated: Duration) -> Summary {
        let counts = self.counts();
        let latency_ms = |micros: u64| micros as f64 / 1000.0;
        Summary {
            stream: self.shared.stream,
            devices: self.shared.device_ids.len(),
            sent: counts.sent,
            acked: counts.acked,
            refused: counts.refused,
            resent: counts.resent,
            reconnects: counts.reconnects,
            seconds: generated.as_secs_f64(),
            latency_ms_p50: latency_ms(counts.latency_micros.value_at_quantile(0.5)),
            latency_ms_p99: latency_ms(counts.latency_micros.value_at_quantile(0.99)),
            latency_ms_max: latency_ms(counts.latency_micros.max()),
        }
    }
}

/// The figures of a run.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// Stream name.
    pub stream: &'static str,
    /// Number of devices.
    pub devices: usize,
    /// Readings sent, each counted once.
    pub sent: u64,
    /// Readings acknowledged.
    pub acked: u64,
    /// Readings that the broker refused, by a reason code of 0x80 or above, or that a link gave up.
    pub refused: u64,
    /// Readings sent again after a lost connection or a timeout, each time counted.
    pub resent: u64,
    /// Connections lost.
    pub reconnects: u64,
    /// How long readings were generated.
    pub seconds: f64,
    /// Half of the acknowledgements came within this time of the first sending, ms.
    pub latency_ms_p50: f64,
    /// 99 % came within this time, ms.
    pub latency_ms_p99: f64,
    /// The slowest, ms.
    pub latency_ms_max: f64,
}

impl Summary {
    /// Whether all that was sent is acknowledged.
    pub fn is_complete(&self) -> bool {
        self.acked == self.sent
    }

    /// One JSON object on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and plain strings serialise")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.sent as f64 / self.seconds.max(0.001);
        writeln!(f, "stream         {} of {} devices", self.stream, self.devices)?;
        writeln!(f, "sent           {} in {:.1} s, {rate:.0}/s", self.sent, self.seconds)?;
        writeln!(
            f,
            "acknowledged   {} ({} missing, {} refused)",
            self.acked,
            self.sent - self.acked,
            self.refused
        )?;
        writeln!(f, "sent again     {} after {} lost connections", self.resent, self.reconnects)?;
        let (p50, p99, max) = (self.latency_ms_p50, self.latency_ms_p99, self.latency_ms_max);
        writeln!(f, "until acked    p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms")
    }
}
