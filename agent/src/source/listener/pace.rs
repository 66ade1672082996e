//! How fast connections are accepted: over the rate the next one waits in the kernel's queue, so that a storm costs time alone.

use std::time::Duration;

use crate::env::Monotonic;

/// How much of the rate may be used at once.
const BURST: Duration = Duration::from_secs(1);

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    interval: Duration,
    paid_until: Monotonic,
}

impl Pace {
    /// So many per second; 0 is no limit.
    pub(super) fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(per_second).unwrap_or_default();
        Self { interval, paid_until: Monotonic::default() }
    }

    /// One was taken.
    pub(super) fn take(&mut self, now: Monotonic) {
        self.paid_until = self.paid_until.max(now) + self.interval;
    }

    /// When the next may be taken.
    pub(super) fn ready_at(&self) -> Monotonic {
        Monotonic::from_start(self.paid_until.since_start().saturating_sub(BURST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many are taken at `now`.
    fn taken(pace: &mut Pace, now: Duration) -> usize {
        let now = Monotonic::from_start(now);
        let mut count = 0;
        while pace.ready_at() <= now && count < 100 {
            pace.take(now);
            count += 1;
        }
        count
    }

    #[test]
    fn a_storm_is_taken_at_the_rate_behind_the_first_second_s_worth() {
        let mut pace = Pace::new(10);
        assert_eq!(taken(&mut pace, Duration::from_secs(60)), 11);
        assert_eq!(taken(&mut pace, Duration::from_millis(60_050)), 0);
        assert_eq!(taken(&mut pace, Duration::from_secs(61)), 10);
        assert_eq!(taken(&mut pace, Duration::from_secs(600)), 11, "not all that nobody took");
        assert_eq!(taken(&mut Pace::new(0), Duration::ZERO), 100);
    }
}
