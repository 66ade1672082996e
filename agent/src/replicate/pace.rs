//! The pace of the catch-up: when backlog is read from the log to be sent.
//!
//! Backlog is what replication does not send from memory as it is committed. It is bounded in two ways, both by the time
//! before which nothing is read:
//!
//! * By `catch_up_bytes_per_second`, on top of what falls behind meanwhile: partitions that have a backlog get their new
//!   records through it too. So the backlog shrinks by the configured rate, whatever the live rate is, and never grows
//!   for it.
//! * After an outage, by a random delay once: a fleet whose Kafka comes back does not send its backlogs at one moment.
//!   Its connects are spread by librdkafka, whose `reconnect.backoff.ms` to `.max.ms` (100 ms to 10 s) have a jitter of
//!   -25 % to +50 %. What was in flight is sent again at once: that is bounded.

use std::time::Duration;

use crate::env::{Entropy, Monotonic};

/// So much that was not used may be made up for: what falls behind in the meantime is a second's worth.
const BURST: Duration = Duration::from_secs(1);

/// The backlog is read in pieces that are worth so much time.
const PIECES_PER_SECOND: u64 = 10;

/// What falls behind is counted so long to know its rate.
const INFLOW_WINDOW: Duration = Duration::from_secs(5);

/// Shorter silence of Kafka is no outage: a slow uplink, a broker that throttles, a new leader.
const OUTAGE_MIN: Duration = Duration::from_secs(10);

/// Longest random delay after an outage, which is a tenth of the outage at most. Half a minute is long for fifty gateways
/// to spread their connects and first requests over, and short beside what there is to send.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// An outage that has just ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutageEnded {
    /// How long Kafka had not answered.
    pub(super) lasted: Duration,
    /// So long the backlog waits.
    pub(super) delay: Duration,
}

/// Decides when backlog may be read.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes per second by which the backlog shrinks; 0 is no limit.
    limit: u64,
    /// No backlog is read before.
    due: Monotonic,
    /// Bytes that fell behind since `inflow_since`, and per second in the window before.
    fell_behind: u64,
    inflow: u64,
    inflow_since: Monotonic,
    /// Since when Kafka owes an answer.
    waits_since: Monotonic,
}

impl Pace {
    /// With a `limit` of 0 only outages delay the backlog.
    pub(super) fn new(limit_bytes_per_second: u64) -> Self {
        Self { limit: limit_bytes_per_second, ..Self::default() }
    }

    /// Tells the time; to be called before the questions below. `idle`: nothing is under way to Kafka.
    pub(super) fn tick(&mut self, now: Monotonic, idle: bool) {
        if idle {
            self.waits_since = now;
        }
        let elapsed = now.since(self.inflow_since);
        if elapsed >= INFLOW_WINDOW {
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            self.inflow = std::mem::take(&mut self.fell_behind).saturating_mul(1_000) / millis;
            self.inflow_since = now;
        }
    }

    /// When backlog may be read.
    pub(super) fn due(&self) -> Monotonic {
        self.due
    }

    /// About how many bytes of it at once.
    pub(super) fn piece_bytes(&self) -> usize {
        match self.limit {
            0 => usize::MAX,
            _ => usize::try_from(self.rate() / PIECES_PER_SECOND).unwrap_or(usize::MAX).max(1),
        }
    }

    /// So much backlog was read and is on its way.
    pub(super) fn read(&mut self, now: Monotonic, bytes: usize) {
        if self.limit == 0 {
            return;
        }
        let micros = (bytes as u64).saturating_mul(1_000_000) / self.rate();
        let earliest = Monotonic::from_start(now.since_start().saturating_sub(BURST));
        self.due = self.due.max(earliest) + Duration::from_micros(micros);
    }

    /// So much will have to be read that was in memory: it was committed and not sent, or given up.
    pub(super) fn fell_behind(&mut self, bytes: usize) {
        self.fell_behind = self.fell_behind.saturating_add(bytes as u64);
    }

    /// Kafka has acknowledged something. Says whether that ended an outage.
    pub(super) fn answered(&mut self, now: Monotonic, entropy: &mut dyn Entropy) -> Option<OutageEnded> {
        let lasted = now.since(std::mem::replace(&mut self.waits_since, now));
        if lasted < OUTAGE_MIN {
            return None;
        }
        let delay = entropy.jitter((lasted / 10).min(DELAY_MAX));
        self.due = self.due.max(now + delay);
        Some(OutageEnded { lasted, delay })
    }

    /// Bytes per second that may be read. Not 0.
    fn rate(&self) -> u64 {
        self.limit.saturating_add(self.inflow).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemEntropy;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_start(Duration::from_millis(ms))
    }

    /// Reads all that may be read in `seconds`, looking every `step_ms`, while `inflow` bytes fall behind in each second.
    fn read_in(pace: &mut Pace, seconds: u64, step_ms: u64, inflow: usize) -> usize {
        let mut read = 0;
        for now in (0..seconds * 1_000).step_by(usize::try_from(step_ms).unwrap()).map(at) {
            pace.fell_behind(inflow * usize::try_from(step_ms).unwrap() / 1_000);
            pace.tick(now, false);
            while pace.due() <= now {
                let bytes = pace.piece_bytes();
                pace.read(now, bytes);
                read += bytes;
            }
        }
        read
    }

    #[track_caller]
    fn assert_about(value: usize, expected: usize) {
        assert!(value.abs_diff(expected) <= expected / 50, "{value} is not about {expected}");
    }

    #[test]
    fn the_backlog_is_read_at_the_limit() {
        assert_about(read_in(&mut Pace::new(20_000), 1_000, 10, 0), 20_000_000);
    }

    #[test]
    fn a_driver_that_looks_seldom_makes_up_for_it() {
        assert_about(read_in(&mut Pace::new(20_000), 1_000, 500, 0), 20_000_000);
    }

    #[test]
    fn what_falls_behind_meanwhile_is_read_on_top() {
        let (seconds, limit, inflow) = (1_000, 1_000, 50_000);
        let read = read_in(&mut Pace::new(limit), seconds, 20, inflow);
        let shrunk = read - inflow * 1_000;
        // Behind by one window of the measurement, once.
        assert!(shrunk > 700_000 && shrunk < 1_010_000, "shrunk by {shrunk} instead of 1 000 000");
    }

    #[test]
    fn time_in_which_nothing_could_be_read_is_not_made_up_for() {
        let mut pace = Pace::new(10_000);
        pace.tick(at(0), false);
        let mut read = 0;
        while pace.due() <= at(3_600_000) {
            pace.read(at(3_600_000), pace.piece_bytes());
            read += pace.piece_bytes();
        }
        assert_eq!(read, 11_000, "a burst of a second and one piece");
    }

    #[test]
    fn a_read_of_more_than_a_piece_is_paid_for_later() {
        let mut pace = Pace::new(10_000);
        pace.tick(at(5_000), false);
        pace.read(at(5_000), 300_000);
        assert_eq!(pace.due(), at(34_000));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut pace = Pace::new(0);
        pace.tick(at(1), false);
        pace.read(at(1), usize::MAX);
        assert_eq!((pace.due(), pace.piece_bytes()), (at(0), usize::MAX));
    }

    #[test]
    fn after_an_outage_the_backlog_waits_a_random_share_of_it_with_a_bound() {
        for (outage_ms, delay_max_ms) in [(10_000, 1_000), (60_000, 6_000), (86_400_000, 30_000)] {
            let mut entropy = SystemEntropy::new();
            let delays = (0..50).map(|_| {
                let mut pace = Pace::new(0);
                pace.tick(at(1_000), true);
                let ended = pace.answered(at(1_000 + outage_ms), &mut entropy).expect("it was an outage");
                assert_eq!(ended.lasted, Duration::from_millis(outage_ms));
                assert_eq!(pace.due(), at(1_000 + outage_ms) + ended.delay);
                ended.delay
            });
            let (min, max) = delays
                .fold((Duration::MAX, Duration::ZERO), |(min, max), delay| (min.min(delay), max.max(delay)));
            let bound = Duration::from_millis(delay_max_ms);
            // Of fifty gateways one comes in the first third, and one in the last, but for 1 in 10^8.
            assert!(min < bound / 3 && bound * 2 / 3 < max && max < bound, "{min:?} to {max:?}");
        }
    }

    #[test]
    fn a_hiccup_is_no_outage_and_neither_is_a_time_without_records() {
        let mut pace = Pace::new(0);
        pace.tick(at(0), true);
        pace.tick(at(3_600_000), true);
        assert_eq!(pace.answered(at(3_609_999), &mut SystemEntropy::new()), None);
        assert_eq!(pace.answered(at(3_619_998), &mut SystemEntropy::new()), None);
        assert_eq!(pace.due(), at(0));
    }
}
