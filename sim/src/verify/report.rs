//! What the verifier found: counts, a table for people, one JSON object for programs.

use std::{fmt, ops::AddAssign};

use serde::Serialize;

/// Counts of one stream or of all; the words are defined in [`super`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Readings that a load sent.
    pub sent: u64,
    /// Of these, those that were acknowledged.
    pub acknowledged: u64,
    /// Readings of the ledgers found in Kafka.
    pub delivered: u64,
    /// Acknowledged, not delivered.
    pub lost: u64,
    /// Deliveries beyond the number sent.
    pub duplicated: u64,
    /// First deliveries behind one that was sent later by the same device.
    pub reordered: u64,
    /// Records in Kafka that no ledger names.
    pub unknown: u64,
    /// Records that are not in the partition that the Java producer would have chosen.
    pub foreign_partition: u64,
    /// Devices found in two partitions: their order cannot be judged.
    pub split_devices: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.unknown += other.unknown;
        self.foreign_partition += other.foreign_partition;
        self.split_devices += other.split_devices;
    }
}

/// How late first deliveries were, in milliseconds; all 0 when there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Late {
    /// Half of them were not later.
    #[serde(rename = "late_ms_p50")]
    pub p50_ms: f64,
    /// 99 of 100 were not later.
    #[serde(rename = "late_ms_p99")]
    pub p99_ms: f64,
    /// The latest.
    #[serde(rename = "late_ms_max")]
    pub max_ms: f64,
}

impl Late {
    /// Of lateness in microseconds; what two clocks make negative counts as 0.
    pub fn of(mut micros: Vec<i64>) -> Self {
        micros.sort_unstable();
        // The smallest value that at least `percent` of 100 do not exceed.
        let rank = |percent: usize| {
            let index = (micros.len() * percent).div_ceil(100).saturating_sub(1);
            #[allow(clippy::cast_precision_loss)] // 2^53 us are 285 years
            micros.get(index).map_or(0.0, |us| (*us).max(0) as f64 / 1000.0)
        };
        Self { p50_ms: rank(50), p99_ms: rank(99), max_ms: rank(100) }
    }
}

/// Counts of one stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamReport {
    /// Its name, without the environment.
    pub stream: String,
    /// Its counts.
    #[serde(flatten)]
    pub totals: Totals,
    /// Its lateness.
    #[serde(flatten)]
    pub late: Late,
}

/// The verdict. As JSON one object: the totals on top, `streams` as a list. As text a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Over all streams.
    #[serde(flatten)]
    pub totals: Totals,
    /// Over all streams.
    #[serde(flatten)]
    pub late: Late,
    /// Each stream, by name.
    pub streams: Vec<StreamReport>,
}

impl Report {
    /// Whether the promise was kept: nothing lost, nothing reordered, no device in two partitions, and nothing twice
    /// where `exactly_once` was promised.
    pub fn holds(&self, exactly_once: bool) -> bool {
        let t = &self.totals;
        t.lost == 0 && t.reordered == 0 && t.split_devices == 0 && !(exactly_once && t.duplicated > 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.streams.iter().map(|s| s.stream.len()).max().unwrap_or(0).max("in total".len());
        writeln!(
            f,
            "{:width$} {:>9} {:>12} {:>9} {:>6} {:>10} {:>9}   late p50 / p99 / max",
            "stream", "sent", "acknowledged", "delivered", "lost", "duplicated", "reordered"
        )?;
        let mut row = |name: &str, t: &Totals, late: &Late| {
            writeln!(
                f,
                "{name:width$} {:>9} {:>12} {:>9} {:>6} {:>10} {:>9}   {} / {} / {}",
                t.sent,
                t.acknowledged,
                t.delivered,
                t.lost,
                t.duplicated,
                t.reordered,
                Millis(late.p50_ms),
                Millis(late.p99_ms),
                Millis(late.max_ms),
            )
        };
        for stream in &self.streams {
            row(&stream.stream, &stream.totals, &stream.late)?;
        }
        row("in total", &self.totals, &self.late)?;
        let t = &self.totals;
        for (count, meaning) in [
            (t.unknown, "records in Kafka that no ledger names"),
            (t.foreign_partition, "records in another partition than the Java producer would choose"),
            (t.split_devices, "devices found in two partitions: their order cannot be judged"),
        ] {
            if count > 0 {
                writeln!(f, "{count} {meaning}")?;
            }
        }
        Ok(())
    }
}

/// Milliseconds for people.
struct Millis(f64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1000.0 { write!(f, "{:.0} ms", self.0) } else { write!(f, "{:.1} s", self.0 / 1000.0) }
    }
}
