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

/// How far a wall-clock reading can be trusted. A gateway has no battery clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ClockQuality {
    /// Nobody said that this clock is right.
    #[default]
    Unknown = 0,
    /// Worked out from another record's time.
    Estimated = 1,
    /// Disciplined by NTP or GNSS.
    Synced = 2,
}

/// When the gateway received a frame, by its own wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The clock's reading.
    pub at: UnixMicros,
    /// How far to trust it.
    pub quality: ClockQuality,
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

    /// Kafka's timestamp: event time where known, else gateway receive time.
    pub fn timestamp(&self) -> UnixMicros {
        self.event_time.unwrap_or(self.received.at)
    }
}
