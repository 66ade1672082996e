//! How often the I/O thread wakes up: each time costs several system calls, however much or little has come.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use crate::env::{Clock as _, Monotonic, SystemClock};

/// Time between two wake-ups while much comes: a fraction of a commit window.
const INTERVAL: Duration = Duration::from_millis(4);

/// So many follow each other at once after a quiet time: what comes alone is served at once.
const BURST: u32 = 16;

/// Counts wake-ups, and says how long to rest before the next.
#[derive(Debug, Default)]
struct Rest {
    paid_until: Monotonic,
}

impl Rest {
    /// Before a wait for what comes.
    fn before_wait(&mut self, now: Monotonic) -> Duration {
        let burst = Monotonic::from_start(now.since_start().saturating_sub(INTERVAL * BURST));
        self.paid_until = self.paid_until.max(burst) + INTERVAL;
        self.paid_until.since(now)
    }
}

/// To be called by the I/O thread when it has nothing to do. What comes while it rests, for all sources at once, waits in the
/// kernel: the next wake-up finds many messages, where the thread would have been woken for each of them.
pub(super) fn when_idle() -> impl Fn() + Send + Sync + 'static {
    let (clock, rest) = (SystemClock::new(), Mutex::new(Rest::default()));
    move || {
        let pause = rest.lock().unwrap_or_else(PoisonError::into_inner).before_wait(clock.monotonic());
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_alone_is_served_at_once_and_what_streams_in_at_an_interval() {
        let mut rest = Rest::default();
        let mut now = Monotonic::from_start(Duration::from_secs(10));
        for _ in 0..BURST {
            assert_eq!(rest.before_wait(now), Duration::ZERO);
        }
        for _ in 0..100 {
            assert_eq!(rest.before_wait(now), INTERVAL);
            now = now + INTERVAL;
        }
        now = now + Duration::from_millis(1);
        assert_eq!(rest.before_wait(now), INTERVAL - Duration::from_millis(1));
        now = now + Duration::from_secs(10);
        assert_eq!(rest.before_wait(now), Duration::ZERO, "quiet again");
    }
}
