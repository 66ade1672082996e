//! What a frame becomes when it is decoded: a [`Record`] of a device in a stream, its value exactly as Kafka gets it.

use std::{borrow::Borrow, fmt, sync::Arc};

use bytes::Bytes;

/// Longest device id in bytes. It is the Kafka key of every record of the device.
pub const DEVICE_ID_BYTES_MAX: usize = 255;

/// Longest stream name in bytes: with an environment prefix it stays under the 249 characters of a Kafka topic.
pub const STREAM_NAME_BYTES_MAX: usize = 100;

/// Why a text is no name of a device or stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Longer than its limit.
    #[error("has {size_bytes} bytes, more than {limit_bytes}")]
    TooLong {
        /// Bytes found.
        size_bytes: usize,
        /// Bytes allowed.
        limit_bytes: usize,
    },
    /// A character that Kafka does not take in a topic.
    #[error("has the character {0:?}; allowed are a-z A-Z 0-9 . _ -")]
    Character(char),
}

/// Name of a stream: one kind of record from any number of devices, one topic in Kafka.
///
/// 1 to [`STREAM_NAME_BYTES_MAX`] characters of `a-z A-Z 0-9 . _ -`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName(Arc<str>);

impl StreamName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`NameError`]; in a config the caller reports it with the key.
    pub fn new(name: &str) -> Result<Self, NameError> {
        check_length(name, STREAM_NAME_BYTES_MAX)?;
        match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
            Some(c) => Err(NameError::Character(c)),
            None => Ok(Self(name.into())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for StreamName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Identity of a device; the Kafka key, and what partitions are chosen by.
///
/// 1 to [`DEVICE_ID_BYTES_MAX`] bytes of UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Box<str>);

impl DeviceId {
    /// Checks `id`.
    ///
    /// # Errors
    /// [`NameError::Empty`] or [`NameError::TooLong`]: the frame has no usable device and is a dead letter.
    pub fn new(id: &str) -> Result<Self, NameError> {
        check_length(id, DEVICE_ID_BYTES_MAX)?;
        Ok(Self(id.into()))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as Kafka's key bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_length(text: &str, limit_bytes: usize) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        size_bytes if size_bytes > limit_bytes => Err(NameError::TooLong { size_bytes, limit_bytes }),
        _ => Ok(()),
    }
}

/// Kafka partition of a stream; local partition `i` replicates into partition `i` of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub i32);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of a record in its (stream, partition) of the local log: dense, from 0. Not Kafka's offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub i64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Microseconds since 1970-01-01T00:00:00Z, without leap seconds; negative before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMicros(pub i64);

impl UnixMicros {
    /// Whole milliseconds, rounded down: Kafka's timestamp.
    pub fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// How far a wall-clock reading can be trusted. A gateway has no battery clock. The better is the greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ClockQuality {
    /// The clock shows a time that cannot be: it was not set since the system started.
    #[default]
    Unknown = 0,
    /// The clock shows a time that can be, and nobody says that it is right; or the time was worked out later.
    Estimated = 1,
    /// The kernel says that NTP or GNSS keeps the clock.
    Synced = 2,
}

impl ClockQuality {
    /// The word for it in headers, reports and exports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Estimated => "estimated",
            Self::Synced => "synced",
        }
    }
}

/// Names a start of the system, for ever: a hash of the kernel's boot id. 0 where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootId(pub u32);

/// Against the monotonic time, a change of a wall clock from here on means that it was set: the two are not read at one
/// moment, and each [`Timeline`] costs an entry of the log.
pub const SET_MIN_US: u64 = 10_000;

/// A wall clock from when it was set until it is set again: what ties it to the monotonic time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The start of the system that monotonic time counts from.
    pub boot: BootId,
    /// What the clock would have shown then. A reading less this is monotonic time.
    pub start: UnixMicros,
}

/// When the gateway received a frame, by its own wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The clock's reading.
    pub at: UnixMicros,
    /// How far to trust it.
    pub quality: ClockQuality,
    /// Which clock it was.
    pub timeline: Timeline,
    /// The record's event time was counted back from `at`, and is wrong by as much.
    pub dates_event: bool,
}

impl Received {
    /// The same moment by `clock`, which is of `quality` now, if that is better and both count from one start of the system.
    ///
    /// The monotonic time in between went by the gateway's crystal, which nobody steered before the clock was set: up to some
    /// hundred ms an hour. Hence never better than estimated.
    pub fn corrected(self, quality: ClockQuality, clock: Timeline) -> Option<Self> {
        let Timeline { boot, start } = self.timeline;
        let is_better = boot == clock.boot && boot != BootId::default() && quality > self.quality;
        (is_better && start.0.abs_diff(clock.start.0) >= SET_MIN_US).then(|| Self {
            at: UnixMicros(self.at.0.saturating_sub(start.0).saturating_add(clock.start.0)),
            quality: ClockQuality::Estimated,
            timeline: clock,
            dates_event: self.dates_event,
        })
    }

    /// Microseconds from `earlier` to this, by the monotonic time where both have the same: the clock may have been set in
    /// between.
    pub fn micros_since(self, earlier: Self) -> i64 {
        let set_us = if self.timeline.boot == earlier.timeline.boot {
            self.timeline.start.0.saturating_sub(earlier.timeline.start.0)
        } else {
            0
        };
        self.at.0.saturating_sub(earlier.at.0).saturating_sub(set_us)
    }
}

/// What the bytes of a value are; the `content-type` header in Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ContentType {
    /// Bytes that nobody has looked into.
    OctetStream = 0,
    /// JSON, UTF-8.
    Json = 1,
    /// NMEA 0183 or AIS sentences, each with its line end.
    Nmea = 2,
    /// The postcard body of a native frame; header `wayside.schema` says which.
    Postcard = 3,
}

impl ContentType {
    /// The MIME type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OctetStream => "application/octet-stream",
            Self::Json => "application/json",
            Self::Nmea => "text/x-nmea-0183",
            Self::Postcard => "application/x-postcard",
        }
    }
}

/// A further header of a record in Kafka, beside those that every record carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Header key, one of the constants in [`header`].
    pub name: Box<str>,
    /// Header value.
    pub value: Bytes,
}

/// Keys of headers that some records carry.
pub mod header {
    /// `true` where the broker delivered the message as retained: a state from before the subscription, not an event.
    pub const RETAINED: &str = "wayside.retained";
    /// Why a dead letter did not decode.
    pub const ERROR: &str = "wayside.error";
    /// Where a dead letter came from: `mqtt:<topic>` or `serial:<port>`.
    pub const ORIGIN: &str = "wayside.origin";
    /// `<schema>.<rev>` of a native frame whose value is its postcard body.
    pub const SCHEMA: &str = "wayside.schema";
    /// Input of a native device that raw bytes came from, decimal.
    pub const PORT: &str = "wayside.port";
    /// `true` where `wayside log replay` sent the record once more.
    pub const REPLAYED: &str = "wayside.replayed";
    /// `Idempotency-Key` of the HTTP request that the record came in, and behind a dot its place there, from 0: a request that
    /// was sent again brings the same.
    pub const IDEMPOTENCY_KEY: &str = "wayside.idempotency-key";
    /// Restart epoch of a native device; with `wayside.seq` the identity of the frame.
    pub const BOOT: &str = "wayside.boot";
}

/// One reading of one device, its value exactly as Kafka will get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The stream that it belongs to.
    pub stream: StreamName,
    /// The device, Kafka's key.
    pub device: DeviceId,
    /// Kafka's value.
    pub value: Bytes,
    /// What `value` is.
    pub content_type: ContentType,
    /// When the reading was taken, by the device, where it says so. Kafka's timestamp, else `received` is.
    pub event_time: Option<UnixMicros>,
    /// When the gateway received the frame.
    pub received: Received,
    /// The device's own sequence number of the reading, where it has one.
    pub device_seq: Option<u64>,
    /// Further headers, mostly none.
    pub headers: Vec<RecordHeader>,
}

impl Record {
    /// Bytes that this record is counted with in every bound: contents plus a fixed share for the structure.
    pub fn size_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|h| h.name.len() + h.value.len()).sum();
        size_of::<Self>() + self.device.as_bytes().len() + self.value.len() + headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEARS_US: i64 = 1_800_000_000_000_000;

    fn received(boot: u32, since_start_us: i64, start_us: i64, quality: ClockQuality) -> Received {
        let timeline = Timeline { boot: BootId(boot), start: UnixMicros(start_us) };
        Received { at: UnixMicros(start_us + since_start_us), quality, timeline, dates_event: false }
    }

    #[test]
    fn a_time_is_corrected_by_a_better_clock_of_the_same_boot_alone() {
        use ClockQuality::{Estimated, Synced, Unknown};
        let clock = Timeline { boot: BootId(7), start: UnixMicros(YEARS_US) };
        for (boot, before, now, is_corrected) in [
            (7, Unknown, Synced, true),
            (7, Unknown, Estimated, true),
            (7, Estimated, Synced, true),
            (7, Unknown, Unknown, false),
            (7, Synced, Synced, false),
            (7, Estimated, Estimated, false),
            (6, Unknown, Synced, false),
        ] {
            let corrected = received(boot, 5_000, 0, before).corrected(now, clock);
            let expected = is_corrected.then(|| received(7, 5_000, YEARS_US, Estimated));
            assert_eq!(corrected, expected, "{boot} {before:?} {now:?}");
        }
        let unchanged = received(7, 5_000, YEARS_US + 9_999, Estimated);
        assert_eq!(unchanged.corrected(Synced, clock), None, "it was right");
        let unnamed = received(0, 5_000, 0, Unknown);
        assert_eq!(
            unnamed.corrected(Synced, Timeline { boot: BootId(0), ..clock }),
            None,
            "of a boot without a name"
        );
        let odd = received(7, 0, 0, Unknown);
        let odd = Received { at: UnixMicros(i64::MIN), ..odd }.corrected(Synced, clock);
        assert!(odd.is_some(), "no time overflows");
    }

    #[test]
    fn an_age_does_not_count_by_how_much_the_clock_was_set() {
        let before = received(7, 5_000, 0, ClockQuality::Unknown);
        assert_eq!(received(7, 8_000, YEARS_US, ClockQuality::Synced).micros_since(before), 3_000);
        assert_eq!(
            received(8, 8_000, 0, ClockQuality::Unknown).micros_since(before),
            3_000,
            "all that is known"
        );
    }
}
