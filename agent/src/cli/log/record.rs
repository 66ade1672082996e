//! How the commands choose and show records.

use std::fmt::Write as _;

use chrono::DateTime;
use clap::Args;
use serde::Serialize;

use crate::{
    decode::reading::rfc3339,
    log::{BatchGroup, EntrySeq},
    record::{BootId, DeviceId, Offset, PartitionId, Record, StreamName, UnixMicros},
};

/// Characters of a value in a line.
const VALUE_CHARS: usize = 100;

/// Bytes of a value in a line, when it is no text.
const VALUE_BYTES: usize = 32;

/// Which records.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Selection {
    /// Only records of this stream.
    #[arg(long, value_parser = stream)]
    pub(super) stream: Option<StreamName>,
    /// Only records of this device.
    #[arg(long, value_parser = device)]
    pub(super) device: Option<DeviceId>,
}

impl Selection {
    pub(super) fn takes(&self, record: &Record) -> bool {
        self.stream.as_ref().is_none_or(|stream| *stream == record.stream)
            && self.device.as_ref().is_none_or(|device| *device == record.device)
    }
}

/// When: by the gateway's receive time, which is not ordered where its clock was set.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct Period {
    /// Only records that the gateway received at this time or later (RFC 3339: 2026-03-01T08:00:00Z).
    #[arg(long, value_parser = time)]
    pub(super) from: Option<UnixMicros>,
    /// Only records that the gateway received before this time.
    #[arg(long, value_parser = time)]
    pub(super) to: Option<UnixMicros>,
}

impl Period {
    pub(super) fn takes(&self, record: &Record) -> bool {
        let at = record.received.at;
        self.from.is_none_or(|from| at >= from) && self.to.is_none_or(|to| at < to)
    }
}

fn stream(name: &str) -> Result<StreamName, String> {
    StreamName::new(name).map_err(|error| error.to_string())
}

fn device(id: &str) -> Result<DeviceId, String> {
    DeviceId::new(id).map_err(|error| error.to_string())
}

fn time(text: &str) -> Result<UnixMicros, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|time| UnixMicros(time.timestamp_micros()))
        .map_err(|error| format!("{error}; expected RFC 3339 as 2026-03-01T08:00:00Z"))
}

/// A record and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed<'a> {
    pub(super) entry: EntrySeq,
    pub(super) partition: PartitionId,
    pub(super) offset: Offset,
    pub(super) record: &'a Record,
}

/// The records of a group, in order.
pub(super) fn records(group: &BatchGroup) -> impl Iterator<Item = Placed<'_>> {
    group.batches.iter().flat_map(|batch| {
        (batch.base_offset.0..).zip(&batch.records).map(|(offset, record)| Placed {
            entry: group.seq,
            partition: batch.partition,
            offset: Offset(offset),
            record,
        })
    })
}

impl Placed<'_> {
    /// A line for people, without its end.
    pub(super) fn line(&self) -> String {
        let Record { stream, device, value, received, .. } = self.record;
        format!(
            "{}  {stream}  {}  {}/{}  {}",
            time_text(received.at),
            shown(device.as_str(), usize::MAX),
            self.partition,
            self.offset,
            value_text(value)
        )
    }

    /// One JSON object with everything, on one line without its end.
    pub(super) fn json(&self) -> String {
        let record = self.record;
        let timeline = record.received.timeline;
        let knows_boot = timeline.boot != BootId::default();
        let headers = record
            .headers
            .iter()
            .map(|header| JsonHeader { name: &header.name, value: JsonBytes::new(&header.value) });
        let json = JsonRecord {
            entry: self.entry.0,
            stream: record.stream.as_str(),
            partition: self.partition.0,
            offset: self.offset.0,
            device: record.device.as_str(),
            received: time_text(record.received.at),
            received_quality: record.received.quality.as_str(),
            boot: knows_boot.then(|| format!("{:08x}", timeline.boot.0)),
            since_boot_us: knows_boot.then(|| record.received.at.0.saturating_sub(timeline.start.0)),
            event_time: record.event_time.map(time_text),
            device_seq: record.device_seq,
            content_type: record.content_type.as_str(),
            headers: headers.collect(),
            value: JsonBytes::new(&record.value),
        };
        serde_json::to_string(&json).expect("structs with text keys are JSON")
    }
}

#[derive(Serialize)]
struct JsonRecord<'a> {
    entry: u64,
    stream: &'a str,
    partition: i32,
    offset: i64,
    device: &'a str,
    received: String,
    received_quality: &'static str,
    boot: Option<String>,
    since_boot_us: Option<i64>,
    event_time: Option<String>,
    device_seq: Option<u64>,
    content_type: &'static str,
    headers: Vec<JsonHeader<'a>>,
    #[serde(flatten)]
    value: JsonBytes<'a>,
}

#[derive(Serialize)]
struct JsonHeader<'a> {
    name: &'a str,
    #[serde(flatten)]
    value: JsonBytes<'a>,
}

/// `"value"` as text where the bytes are UTF-8, else `"value_hex"`: both give back every byte.
#[derive(Serialize)]
enum JsonBytes<'a> {
    #[serde(rename = "value")]
    Text(&'a str),
    #[serde(rename = "value_hex")]
    Hex(String),
}

impl<'a> JsonBytes<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        std::str::from_utf8(bytes).map_or_else(|_| Self::Hex(hex(bytes)), Self::Text)
    }
}

/// RFC 3339 in UTC; microseconds since 1970 for a time beyond the years that it has.
fn time_text(time: UnixMicros) -> String {
    rfc3339(time).unwrap_or_else(|| format!("{} us", time.0))
}

fn value_text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => shown(text, VALUE_CHARS),
        Err(_) if value.len() <= VALUE_BYTES => format!("0x{}", hex(value)),
        Err(_) => format!("0x{}... ({} B)", hex(&value[..VALUE_BYTES]), value.len()),
    }
}

/// `text` on one line: what a terminal would obey is escaped, and what is over `chars_max` cut off.
fn shown(text: &str, chars_max: usize) -> String {
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == chars_max {
            let _ = write!(line, "... ({} B)", text.len());
            break;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_command_the_terminal_and_binary_is_hexadecimal() {
        assert_eq!(value_text(b"a\x1b[2J\nb\xc3\xa9"), "a\\u{1b}[2J\\nb\u{e9}");
        assert_eq!(value_text(&[0xff, 0x00]), "0xff00");
        assert_eq!(value_text(&[0xff; 40]), format!("0x{}... (40 B)", "ff".repeat(32)));
        assert_eq!(
            value_text("\u{e9}".repeat(101).as_bytes()),
            format!("{}... (202 B)", "\u{e9}".repeat(100))
        );
        assert_eq!(value_text(b""), "");
    }

    #[test]
    fn times_are_rfc_3339_with_an_offset() {
        assert_eq!(time("1970-01-01T01:00:01.5+01:00"), Ok(UnixMicros(1_500_000)));
        assert!(time("yesterday").unwrap_err().contains("RFC 3339"));
    }
}
