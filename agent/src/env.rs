//! Time and chance come in here, and nowhere else.
//!
//! Production uses [`SystemClock`] and [`SystemEntropy`]; tests and simulations bring their own, so that a whole
//! run is a function of its seed. Everything that decides is given a [`Monotonic`] as `now`.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    log::CRC_32C,
    record::{BootId, ClockQuality, Received, SET_MIN_US, Timeline, UnixMicros},
};

/// 2026-01-01: no clock that is right shows less to this release.
pub const EARLIEST: UnixMicros = UnixMicros(1_767_225_600_000_000);

/// The kernel's random name of the start of the system.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How often the kernel is asked whether the clock is synchronised, unless it was set: each time costs a system call.
const ASK_INTERVAL_US: i64 = 1_000_000;

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
    boot: BootId,
    /// [`Timeline::start`] of the last reading.
    timeline_start_us: AtomicI64,
    /// When the kernel is asked again, in its monotonic time.
    ask_at_us: AtomicI64,
    /// What it said.
    is_synced: AtomicBool,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[allow(clippy::disallowed_methods, reason = "this is the door")]
    pub fn new() -> Self {
        let boot = fs::read(BOOT_ID).map(|id| BootId(CRC_32C.checksum(&id)));
        Self {
            start: Instant::now(),
            boot: boot.unwrap_or_default(),
            timeline_start_us: AtomicI64::new(i64::MIN),
            ask_at_us: AtomicI64::new(0),
            is_synced: AtomicBool::new(false),
        }
    }

    /// The quality and the timeline of a reading. Threads that read at once at worst ask the kernel twice.
    fn judge(&self, at: UnixMicros) -> (ClockQuality, Timeline) {
        let since_boot_us = kernel::since_boot_us();
        let mut start_us = at.0.saturating_sub(since_boot_us);
        let last_us = self.timeline_start_us.load(Ordering::Relaxed);
        let was_set = start_us.abs_diff(last_us) >= SET_MIN_US;
        if was_set {
            self.timeline_start_us.store(start_us, Ordering::Relaxed);
        } else {
            start_us = last_us;
        }
        if was_set || since_boot_us >= self.ask_at_us.load(Ordering::Relaxed) {
            self.is_synced.store(kernel::is_synced(), Ordering::Relaxed);
            self.ask_at_us.store(since_boot_us.saturating_add(ASK_INTERVAL_US), Ordering::Relaxed);
        }
        let quality = match self.is_synced.load(Ordering::Relaxed) {
            _ if at < EARLIEST => ClockQuality::Unknown,
            true => ClockQuality::Synced,
            false => ClockQuality::Estimated,
        };
        (quality, Timeline { boot: self.boot, start: UnixMicros(start_us) })
    }
}

/// What the standard library does not ask the kernel.
mod kernel {
    #![allow(
        unsafe_code,
        reason = "two calls of libc that fill a struct; no crate in the tree has the second"
    )]

    use std::{mem::MaybeUninit, time::Duration};

    /// Microseconds since the start of the system, time asleep included; 0 where the kernel has no such clock.
    pub(super) fn since_boot_us() -> i64 {
        let mut time = MaybeUninit::<libc::timespec>::zeroed();
        // SAFETY: the pointer is to a timespec; zeros are one, and the kernel leaves them or writes another.
        let time = unsafe {
            libc::clock_gettime(libc::CLOCK_BOOTTIME, time.as_mut_ptr());
            time.assume_init()
        };
        let secs = u64::try_from(time.tv_sec).unwrap_or_default();
        let since = Duration::new(secs, u32::try_from(time.tv_nsec).unwrap_or_default());
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    /// Whether somebody keeps the clock in step with a better one, by what they tell the kernel. Where asking is not
    /// allowed, nobody says so.
    pub(super) fn is_synced() -> bool {
        let mut state = MaybeUninit::<libc::timex>::zeroed();
        // SAFETY: the pointer is to a timex; its `modes`, zero, ask for nothing to be changed.
        let answer = unsafe { libc::ntp_adjtime(state.as_mut_ptr()) };
        // TIME_OK to TIME_WAIT; TIME_ERROR is a clock that nobody keeps, -1 a refusal.
        (libc::TIME_OK..libc::TIME_ERROR).contains(&answer)
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
        let (quality, timeline) = self.judge(at);
        Received { at, quality, timeline, dates_event: false }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readings_of_one_clock_have_one_timeline_over_restarts_of_the_agent() {
        let clock = SystemClock::new();
        let (first, second) = (clock.wall(), clock.wall());
        assert_eq!(first.timeline, second.timeline);
        assert_ne!(first.timeline.boot, BootId::default(), "the kernel has a name for each start");
        let restarted = SystemClock::new().wall();
        assert_eq!(restarted.timeline.boot, first.timeline.boot);
        assert!(
            restarted.timeline.start.0.abs_diff(first.timeline.start.0) < SET_MIN_US,
            "unless it was set just now"
        );
    }

    #[test]
    fn a_clock_that_is_set_has_another_timeline_and_one_in_1970_is_unknown_whatever_the_kernel_says() {
        let clock = SystemClock::new();
        let now = clock.wall();
        let (quality, _) = clock.judge(UnixMicros(5_000_000));
        assert_eq!(quality, ClockQuality::Unknown);
        let (quality, set) = clock.judge(UnixMicros(now.at.0 + 3_600_000_000));
        assert!(quality > ClockQuality::Unknown);
        let ahead_us = set.start.0 - now.timeline.start.0;
        assert!(ahead_us.abs_diff(3_600_000_000) < 60_000_000, "{ahead_us}");
        let (_, slewed) = clock.judge(UnixMicros(now.at.0 + 3_600_000_500));
        assert_eq!(slewed.boot, set.boot);
    }
}
