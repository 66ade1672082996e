//! Time and chance come in here, and nowhere else.
//!
//! Production uses [`SystemClock`] and [`SystemEntropy`]; tests and simulations bring their own, so that a whole
//! run is a function of its seed. Everything that decides is given a [`Monotonic`] as `now`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::record::{ClockQuality, Received, UnixMicros};

/// A reading of the monotonic clock: time since an arbitrary start, never stepped by NTP.
///
/// Deadlines, windows and timeouts are made of this; the wall clock only labels records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// The reading `since_start` after the clock's start.
    pub const fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Time since the clock's start.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Microseconds since the clock's start; what the link protocol counts in.
    pub fn as_micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Monotonic {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// Monotonic time, for every decision.
    fn monotonic(&self) -> Monotonic;

    /// Wall clock with its quality, for labels alone: nothing is ordered or expired by it.
    fn wall(&self) -> Received;
}

/// Where chance comes from: jitter of retries, ids of connections.
pub trait Entropy: Send + Sync {
    /// 64 uniform random bits.
    fn next_u64(&mut self) -> u64;

    /// A uniform share of `span`, in `[0, span)`: full jitter for a delay.
    fn jitter(&mut self, span: Duration) -> Duration {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        if micros == 0 {
            return Duration::ZERO;
        }
        Duration::from_micros(self.next_u64() % micros)
    }
}

/// The system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[allow(clippy::disallowed_methods, reason = "this is the door")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.start.elapsed())
    }

    #[allow(clippy::disallowed_methods, reason = "this is the door")]
    fn wall(&self) -> Received {
        let at = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => UnixMicros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
            Err(before) => UnixMicros(-i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX)),
        };
        // The kernel's NTP state is not read: a clock that is not known to be synchronised says so.
        Received { at, quality: ClockQuality::Unknown }
    }
}

/// The system's randomness: a small generator seeded by the kernel.
#[derive(Debug)]
pub struct SystemEntropy(SmallRng);

impl SystemEntropy {
    /// Seeds a generator from the kernel.
    pub fn new() -> Self {
        Self(SmallRng::from_os_rng())
    }
}

impl Default for SystemEntropy {
    fn default() -> Self {
        Self::new()
    }
}

impl Entropy for SystemEntropy {
    fn next_u64(&mut self) -> u64 {
        self.0.random()
    }
}
