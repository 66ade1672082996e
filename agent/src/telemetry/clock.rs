//! A watch on the wall clock: a gateway has no battery, starts in 1970 or at the time of its last shutdown, and is set when
//! a time server answers.
//!
//! Nothing is ordered, expired or acknowledged by the wall clock. But records carry the time of their receipt by it, so
//! that whoever reads them has to be told when it was wrong.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{sync::watch, time::sleep};
use tracing::warn;

use crate::{
    decode::reading::rfc3339,
    env::{Clock, EARLIEST, Monotonic},
    record::UnixMicros,
};

/// How often the clock is looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// A change against the monotonic clock from here on is a jump. Below, NTP slews.
const JUMP_MIN_US: u64 = 5_000_000;

/// What the watch has seen. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ClockMetrics {
    jumps: Counter,
    unset: Gauge,
    quality: Gauge,
}

impl ClockMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "clock_jumps",
            "Changes of the wall clock by 5 s or more against the monotonic one",
            metrics.jumps.clone(),
        );
        registry.register(
            "clock_unset",
            "1 while the wall clock shows a time before 2026",
            metrics.unset.clone(),
        );
        registry.register(
            "clock_quality",
            "How far the wall clock is to be trusted: 0 unknown, 1 estimated, 2 synchronised, as the kernel says",
            metrics.quality.clone(),
        );
        metrics
    }
}

/// What is to be told of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// It shows a time that cannot be.
    Unset,
    /// It shows `to` where it should show `from`.
    Jumped { from: UnixMicros, to: UnixMicros },
}

/// Compares the two clocks.
#[derive(Debug, Default)]
struct ClockWatch {
    /// The wall clock when the monotonic one was 0.
    origin: Option<UnixMicros>,
    metrics: ClockMetrics,
}

impl ClockWatch {
    /// What is new of the clock, which shows `wall` at `now`.
    fn look(&mut self, now: Monotonic, wall: UnixMicros) -> Option<News> {
        let since_us = now.as_micros();
        let origin = UnixMicros(wall.0.saturating_sub_unsigned(since_us));
        let before = self.origin.replace(origin);
        let unset = wall < EARLIEST;
        self.metrics.unset.set(unset.into());
        match before {
            Some(before) if origin.0.abs_diff(before.0) >= JUMP_MIN_US => {
                self.metrics.jumps.inc();
                Some(News::Jumped { from: UnixMicros(before.0.saturating_add_unsigned(since_us)), to: wall })
            }
            None if unset => Some(News::Unset),
            _ => None,
        }
    }
}

/// Watches `clock` until `shutdown` turns true.
pub async fn watch(clock: Arc<dyn Clock>, metrics: ClockMetrics, mut shutdown: watch::Receiver<bool>) {
    let mut watch = ClockWatch { origin: None, metrics };
    loop {
        let wall = clock.wall();
        watch.metrics.quality.set(wall.quality as i64);
        match watch.look(clock.monotonic(), wall.at) {
            Some(News::Unset) => warn!(
                wall = shown(wall.at),
                "the clock is not set: records carry this time as that of their receipt, but for those that are not sent \
                 before it is set"
            ),
            Some(News::Jumped { from, to }) => warn!(
                from = shown(from),
                to = shown(to),
                "the clock jumped: times of receipt before and after do not compare; order and acknowledgements do not \
                 go by it"
            ),
            None => {}
        }
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            () = sleep(INTERVAL) => {}
        }
    }
}

fn shown(at: UnixMicros) -> String {
    rfc3339(at).unwrap_or_else(|| format!("{} µs", at.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_US: i64 = 365 * 86_400 * 1_000_000;
    const START: UnixMicros = UnixMicros(EARLIEST.0 + YEAR_US);

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn a_jump_of_the_clock_is_told_once_and_counted() {
        let mut watch = ClockWatch::default();
        let wall = |seconds: i64, shift_us: i64| UnixMicros(START.0 + seconds * 1_000_000 + shift_us);
        assert_eq!(watch.look(at(0), wall(0, 0)), None);
        assert_eq!(watch.look(at(10), wall(10, 4_999_999)), None, "slewed");
        for (seconds, shift_us, before_us) in [(20, YEAR_US, 4_999_999), (40, -YEAR_US, YEAR_US)] {
            let expected = News::Jumped { from: wall(seconds, before_us), to: wall(seconds, shift_us) };
            let now = u64::try_from(seconds).expect("positive");
            assert_eq!(watch.look(at(now), wall(seconds, shift_us)), Some(expected));
            assert_eq!(watch.look(at(now + 10), wall(seconds + 10, shift_us)), None, "told once");
        }
        assert_eq!((watch.metrics.jumps.get(), watch.metrics.unset.get()), (2, 0));
    }

    #[test]
    fn a_clock_in_1970_is_told_at_the_start_and_shown_until_it_is_set() {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.look(at(3), UnixMicros(0)), Some(News::Unset));
        assert_eq!(watch.look(at(13), UnixMicros(10_000_000)), None, "told once");
        assert_eq!(watch.metrics.unset.get(), 1);
        let set = watch.look(at(23), START);
        assert_eq!(set, Some(News::Jumped { from: UnixMicros(20_000_000), to: START }));
        assert_eq!(watch.metrics.unset.get(), 0);
        assert!(watch.look(at(33), UnixMicros(i64::MIN)).is_some(), "no time overflows");
        assert!(watch.look(at(43), UnixMicros(i64::MAX)).is_some());
    }
}
