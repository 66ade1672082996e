//! Delays between attempts: exponential with full jitter, so that a thousand gateways do not come back as one.

use std::time::Duration;

use crate::{
    config,
    env::{Entropy, Monotonic},
};

/// How long a connection must have lived before the next failure counts as the first one again. A broker that accepts
/// and drops at once is thereby not hammered.
pub const STABLE_AFTER: Duration = Duration::from_secs(5);

/// Counts failures of one connection, port or subscription and says how long to wait before the next attempt.
#[derive(Debug)]
pub struct Backoff {
    limits: config::Backoff,
    failures: u32,
}

impl Backoff {
    /// No failure so far.
    pub fn new(limits: config::Backoff) -> Self {
        Self { limits, failures: 0 }
    }

    /// Notes a failure and returns how long to wait: a uniform share of `min * 2^failures`, at most of `max`.
    pub fn next(&mut self, entropy: &mut dyn Entropy) -> Duration {
        let doubled = self.limits.min.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        entropy.jitter(doubled.min(self.limits.max))
    }

    /// Starts from the shortest delay again, if what began at `since` held for [`STABLE_AFTER`].
    pub fn lived(&mut self, since: Monotonic, now: Monotonic) {
        if now.since(since) >= STABLE_AFTER {
            self.reset();
        }
    }

    /// Starts from the shortest delay again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the longest delay that the jitter allows.
    struct Longest;

    impl Entropy for Longest {
        fn next_u64(&mut self) -> u64 {
            u64::MAX
        }

        fn jitter(&mut self, span: Duration) -> Duration {
            span
        }
    }

    const LIMITS: config::Backoff =
        config::Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) };

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::new(LIMITS);
        let delays: Vec<_> = (0..6).map(|_| backoff.next(&mut Longest).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn only_a_connection_that_lived_resets_the_delay() {
        let mut backoff = Backoff::new(LIMITS);
        let start = Monotonic::default();
        backoff.next(&mut Longest);
        backoff.lived(start, start + Duration::from_millis(4_999));
        assert_eq!(backoff.next(&mut Longest).as_millis(), 200);
        backoff.lived(start, start + STABLE_AFTER);
        assert_eq!(backoff.next(&mut Longest).as_millis(), 100);
    }

    #[test]
    fn a_very_long_outage_does_not_overflow() {
        let mut backoff = Backoff { limits: LIMITS, failures: u32::MAX };
        assert_eq!(backoff.next(&mut Longest), LIMITS.max);
    }
}
