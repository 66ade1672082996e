//! Which time a record has as Kafka's timestamp: a topic may refuse times far from the brokers' clock.

use crate::record::{Received, Record, UnixMicros};

/// Times nearer to the wall clock than a minute are always tried: where one is refused, the wall clock is wrong.
const SKEW_LEARNT_MIN_US: u64 = 60_000_000;

/// When a record happened and came, as far as is known when it is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// When it happened, where that is known.
    pub(super) event: Option<UnixMicros>,
    /// When the gateway received it.
    pub(super) received: Received,
}

impl Times {
    /// The times of `record` by the gateway's clock as it is now, if that is better than it was then.
    pub(super) fn of(record: &Record, clock: Received) -> Self {
        let before = record.received;
        let received = before.corrected(clock.quality, clock.timeline).unwrap_or(before);
        let moved_us = if before.dates_event { received.at.0.saturating_sub(before.at.0) } else { 0 };
        let event = record.event_time.map(|at| UnixMicros(at.0.saturating_add(moved_us)));
        Self { event, received }
    }

    /// Kafka's timestamp, where the topic takes it.
    pub(super) fn proper(&self) -> UnixMicros {
        self.event.unwrap_or(self.received.at)
    }
}

/// The times a record can have, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stamp {
    /// When it happened, as the device says.
    Event,
    /// When the gateway received it.
    Receive,
    /// When it is sent.
    Send,
}

impl Stamp {
    /// What is tried after this was refused.
    pub(super) fn next(self) -> Option<Self> {
        match self {
            Self::Event => Some(Self::Receive),
            Self::Receive => Some(Self::Send),
            Self::Send => None,
        }
    }
}

/// Times so far ahead of (or, negative, behind) the wall clock that a topic refuses them, as learnt from refusals.
#[derive(Debug, Default)]
pub(super) struct StampLimits {
    ahead_us: Option<i64>,
    behind_us: Option<i64>,
}

impl StampLimits {
    /// The first of `times` from `from` on that is not known to be refused at `wall`.
    pub(super) fn choose(&self, times: &Times, from: Stamp, wall: UnixMicros) -> (Stamp, UnixMicros) {
        let event = times.event.map(|at| (Stamp::Event, at));
        let times = event.into_iter().chain([(Stamp::Receive, times.received.at)]);
        times
            .filter(|(stamp, _)| *stamp >= from)
            .find(|(_, at)| self.takes(skew_us(*at, wall)))
            .unwrap_or((Stamp::Send, wall))
    }

    fn takes(&self, skew_us: i64) -> bool {
        self.ahead_us.is_none_or(|limit| skew_us < limit)
            && self.behind_us.is_none_or(|limit| skew_us > limit)
    }

    /// Notes that a time was refused. One device with a wrong clock, or a backlog from a time when the gateway's was
    /// wrong, must not cost a refusal for each of its records, which all others would wait for; a tenth less takes in
    /// the jitter.
    pub(super) fn refused(&mut self, skew_us: i64) {
        if skew_us.unsigned_abs() < SKEW_LEARNT_MIN_US {
            return;
        }
        let limit = skew_us - skew_us / 10;
        if skew_us > 0 {
            self.ahead_us = Some(self.ahead_us.map_or(limit, |l| l.min(limit)));
        } else {
            self.behind_us = Some(self.behind_us.map_or(limit, |l| l.max(limit)));
        }
    }
}

/// How far `at` is ahead of the wall clock.
pub(super) fn skew_us(at: UnixMicros, wall: UnixMicros) -> i64 {
    at.0.saturating_sub(wall.0)
}
