//! The gateway's clock, which is right, in 1970 since the system started, or set wrong; and what its readings should have been.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    env::{Clock, EARLIEST, Monotonic},
    record::{BootId, ClockQuality, Offset, PartitionId, Received, Timeline, UnixMicros},
    replicate::simulated::{Appended, NOT_IN_LOG},
};

/// Wall clock less monotonic time, while it is right.
const RIGHT_US: i64 = 1_800_000_000_000_000;

/// Where a record is in Kafka, or will be.
pub(super) type Place = (String, PartitionId, Offset);

/// Time as the world says.
#[derive(Debug)]
pub(super) struct SimulatedClock {
    now_us: AtomicU64,
    /// Held for one call.
    wall: Mutex<Wall>,
}

#[derive(Debug)]
struct Wall {
    /// Wall clock less monotonic time.
    ahead_us: i64,
    boot: BootId,
    /// When the system started, in monotonic time.
    booted_us: i64,
    is_synced: bool,
    /// It was set wrong, once at least.
    has_jumped: bool,
    /// When each reading was, by the clock that is right.
    shown: BTreeMap<(BootId, UnixMicros), UnixMicros>,
    /// What Kafka's client had when the clock became right: too late for these.
    sent: BTreeSet<Place>,
}

impl SimulatedClock {
    /// One that is right, and was before.
    pub(super) fn new() -> Self {
        let wall = Wall {
            ahead_us: RIGHT_US,
            boot: BootId(1),
            booted_us: 0,
            is_synced: true,
            has_jumped: false,
            shown: BTreeMap::new(),
            sent: BTreeSet::new(),
        };
        Self { now_us: AtomicU64::new(1_000_000), wall: Mutex::new(wall) }
    }

    fn lock(&self) -> MutexGuard<'_, Wall> {
        self.wall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> i64 {
        self.now_us.load(Ordering::Relaxed).cast_signed()
    }

    pub(super) fn advance(&self, by: Duration) {
        let by_us = u64::try_from(by.as_micros()).expect("short");
        self.now_us.fetch_add(by_us, Ordering::Relaxed);
    }

    /// Somebody sets it wrong.
    pub(super) fn jump(&self, by_us: i64) {
        let mut wall = self.lock();
        wall.ahead_us += by_us;
        wall.is_synced = false;
        wall.has_jumped = true;
    }

    /// The system starts, without a battery.
    pub(super) fn boot(&self) {
        let mut wall = self.lock();
        wall.boot.0 += 1;
        wall.booted_us = self.now_us();
        wall.ahead_us = -wall.booted_us;
        wall.is_synced = false;
    }

    pub(super) fn is_synced(&self) -> bool {
        self.lock().is_synced
    }

    /// A time server answers, when Kafka's client has `sent`.
    pub(super) fn sync(&self, sent: BTreeSet<Place>) {
        let mut wall = self.lock();
        wall.ahead_us = RIGHT_US;
        wall.is_synced = true;
        wall.sent.extend(sent);
    }

    /// Holds the times in Kafka against what they should be; returns how many were corrected.
    ///
    /// # Errors
    /// What is wrong with one.
    pub(super) fn check(
        &self,
        partitions: &BTreeMap<(String, PartitionId), Vec<Appended>>,
    ) -> Result<usize, String> {
        let wall = self.lock();
        let mut corrected = 0;
        for ((topic, partition), records) in partitions {
            for appended in records {
                let place = (topic.clone(), *partition, appended.offset);
                corrected += usize::from(
                    wall.check(&place, appended).map_err(|wrong| format!("{appended:?}: {wrong}"))?,
                );
            }
        }
        Ok(corrected)
    }
}

impl Wall {
    /// Whether the time of a record was corrected.
    fn check(&self, place: &Place, appended: &Appended) -> Result<bool, &'static str> {
        let Appended { timestamp_ms, received: sent, record, .. } = appended;
        let read = record.received;
        let boot = read.timeline.boot;
        let right = self.shown.get(&(boot, read.at)).ok_or("no clock has shown this time of receipt")?;
        let moved_us = sent.at.0 - read.at.0;
        let event = record.event_time.map(|at| at.0 + if read.dates_event { moved_us } else { 0 });
        if *timestamp_ms != UnixMicros(event.unwrap_or(sent.at.0)).as_millis() {
            return Err("Kafka's timestamp is another");
        }
        if sent.quality == ClockQuality::Synced && sent.at != *right {
            return Err("the time is not that of a clock that is right");
        }
        if moved_us != 0 {
            if sent.quality != ClockQuality::Estimated || read.quality == ClockQuality::Synced {
                return Err("a time is corrected and does not say so, or was right");
            }
            // Else by a clock that was set wrong, perhaps.
            if !self.has_jumped && sent.at != *right {
                return Err("a time is corrected and not right");
            }
        } else if sent.quality != read.quality {
            return Err("another quality without a correction");
        } else if read.quality == ClockQuality::Unknown
            && boot == self.boot
            && place.2 != NOT_IN_LOG
            && !self.sent.contains(place)
        {
            return Err("the clock was set before this was sent, and the time is not corrected");
        }
        Ok(moved_us != 0)
    }
}

impl Clock for SimulatedClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic::from_start(Duration::from_micros(self.now_us.load(Ordering::Relaxed)))
    }

    fn wall(&self) -> Received {
        let now_us = self.now_us();
        let mut wall = self.lock();
        let at = UnixMicros(now_us + wall.ahead_us);
        let timeline = Timeline { boot: wall.boot, start: UnixMicros(wall.ahead_us + wall.booted_us) };
        let quality = match wall.is_synced {
            true => ClockQuality::Synced,
            false if at < EARLIEST => ClockQuality::Unknown,
            false => ClockQuality::Estimated,
        };
        wall.shown.insert((timeline.boot, at), UnixMicros(now_us + RIGHT_US));
        Received { at, quality, timeline, dates_event: false }
    }
}
