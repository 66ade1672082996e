//! Decode: from a frame to records. Pure: bytes, where they came from and the time of receipt in, records out.
//!
//! * [`mqtt`]: the routes of a broker; a message becomes one record by [`json`], [`hfp`], [`native`] or as it is
//! * [`nmea`]: bytes of a serial line with NMEA 0183 and AIS
//! * [`native`]: frames of the link protocol
//! * [`reading`]: the normalised readings that all of them agree on
//!
//! What does not decode is not lost: it becomes a [`dead_letter`] with the reason and the bytes.

use std::fmt;

use bytes::Bytes;

use crate::{
    config::DEAD_LETTER_STREAM,
    record::{
        ContentType, DEVICE_ID_BYTES_MAX, DeviceId, Received, Record, RecordHeader, StreamName, header,
    },
};

pub mod hfp;
pub mod json;
pub mod mqtt;
pub mod native;
pub mod nmea;
pub mod reading;
pub mod topic;

/// Longest text in a header of a dead letter, in bytes. An MQTT topic may have 64 KiB; the start tells where it came from.
pub const HEADER_TEXT_BYTES_MAX: usize = 512;

/// Where a frame came from: what a dead letter needs when the frame itself does not say.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Key of the dead letter: the device where it is known, else [`source_device`].
    pub device: &'a DeviceId,
    /// `mqtt` or `serial`.
    pub transport: &'static str,
    /// Topic or port.
    pub place: &'a str,
}

/// Key of what no device is known for: the source's name.
pub fn source_device(name: &str) -> DeviceId {
    let name = if name.is_empty() { "unknown" } else { truncated(name, DEVICE_ID_BYTES_MAX) };
    DeviceId::new(name).expect("not empty and not too long")
}

/// The record of a frame that did not decode: its bytes, `reason` in `wayside.error`, `origin` in `wayside.origin`.
///
/// It has at most `record_bytes_max` by [`Record::size_bytes`]; bytes beyond are cut off, and the reason says how many
/// there were.
pub fn dead_letter(
    origin: Origin<'_>,
    reason: &dyn fmt::Display,
    frame: &Bytes,
    received: Received,
    record_bytes_max: usize,
) -> Record {
    let record = |value: Bytes, reason: &str| Record {
        stream: StreamName::new(DEAD_LETTER_STREAM).expect("a constant that is a stream name"),
        device: origin.device.clone(),
        value,
        content_type: ContentType::OctetStream,
        event_time: None,
        received,
        device_seq: None,
        headers: vec![
            text_header(header::ERROR, reason),
            text_header(header::ORIGIN, &format!("{}:{}", origin.transport, origin.place)),
        ],
    };
    let whole = record(frame.clone(), &reason.to_string());
    let excess_bytes = whole.size_bytes().saturating_sub(record_bytes_max);
    if excess_bytes == 0 {
        return whole;
    }
    let note = format!("cut, of {} bytes: {reason}", frame.len());
    // The note makes the header longer than it was measured with.
    let kept = frame.len().saturating_sub(excess_bytes + HEADER_TEXT_BYTES_MAX);
    // A copy: a slice would keep all of the oversized frame in memory.
    record(Bytes::copy_from_slice(&frame[..kept]), &note)
}

/// A header with `text`, cut to [`HEADER_TEXT_BYTES_MAX`].
fn text_header(name: &'static str, text: &str) -> RecordHeader {
    let value = Bytes::copy_from_slice(truncated(text, HEADER_TEXT_BYTES_MAX).as_bytes());
    RecordHeader { name: name.into(), value }
}

/// The first at most `bytes_max` bytes of `text` that are whole characters.
fn truncated(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letter_keeps_the_first_bytes_and_says_how_many_there_were() {
        let device = source_device("broker");
        let origin = Origin { device: &device, transport: "mqtt", place: "a/b" };
        let frame = Bytes::from(vec![7; 5000]);
        let received = Received::default();
        let record = dead_letter(origin, &"too big", &frame, received, 2000);
        assert!(record.size_bytes() <= 2000, "{}", record.size_bytes());
        assert!(record.value.len() > 500);
        assert_eq!(record.headers[0].value, "cut, of 5000 bytes: too big");
        assert_eq!(record.headers[1].value, "mqtt:a/b");
        assert_eq!(dead_letter(origin, &"x", &frame, received, 6000).value, frame);
        assert!(dead_letter(origin, &"x", &frame, received, 0).value.is_empty());
    }

    #[test]
    fn dead_letter_cuts_a_long_topic_between_characters() {
        let device = source_device(&"ä".repeat(300));
        assert_eq!(device.as_bytes().len(), 254);
        let topic = "ä".repeat(40_000);
        let origin = Origin { device: &device, transport: "mqtt", place: &topic };
        let record = dead_letter(origin, &"x", &Bytes::new(), Received::default(), 64 * 1024);
        assert!(std::str::from_utf8(&record.headers[1].value).unwrap().ends_with('ä'));
        assert!(record.headers[1].value.len() <= HEADER_TEXT_BYTES_MAX);
    }
}
