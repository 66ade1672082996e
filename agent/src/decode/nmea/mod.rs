//! NMEA 0183 and AIS from a serial line.
//!
//! ```text
//! bytes -> framer (sentences with a right checksum) -> sentence (fields) -> epoch (one moment) -> record
//! ```
//!
//! What becomes of a sentence:
//! * RMC, GGA, GNS, GLL, VTG and ZDA of one moment make one [`VehiclePosition`](super::reading::VehiclePosition) in `stream`.
//! * GSA, GSV, GST, GBS and GRS, which only support a fix, go with it: into the value if that is `raw`, else no further. Where
//!   there is no fix for them to go with, they are one record of `raw_stream`.
//! * Everything else, AIS among it, is a record of its own in `raw_stream`, its value the sentence with CR LF. The line end
//!   is always that, whatever the receiver sent, because a sentence is complete with its checksum.
//! * A well-framed sentence with a wrong checksum or without one is a dead letter, at most [`DEAD_LETTERS_MAX`] in
//!   [`DEAD_LETTER_WINDOW`]; the next one says how many were left out.
//! * Bytes that are no sentence (binary protocols on the same line, a wrong bit rate) are counted and skipped.

mod calendar;
mod epoch;
mod framer;
mod sentence;

use std::time::Duration;

use bytes::Bytes;

pub use self::framer::{FramerCounters, SENTENCE_BYTES_MAX};
use self::{
    calendar::Calendar,
    epoch::Epochs,
    framer::{Framed, Framer},
    sentence::Sentence,
};
use super::{Origin, dead_letter, reading::to_json};
use crate::{
    config::Value,
    env::Monotonic,
    record::{ContentType, DeviceId, Received, Record, StreamName, UnixMicros},
};

/// Dead letters of damaged sentences in one [`DEAD_LETTER_WINDOW`]: enough to see what is wrong with a line, and no flood
/// from one that is bad for days.
pub const DEAD_LETTERS_MAX: u32 = 10;
/// See [`DEAD_LETTERS_MAX`].
pub const DEAD_LETTER_WINDOW: Duration = Duration::from_secs(60);

/// What a port's records are.
#[derive(Clone, Debug)]
pub struct NmeaRoute {
    /// The port, for `wayside.origin` of dead letters.
    pub port: Box<str>,
    /// Stream of positions.
    pub stream: StreamName,
    /// Stream of the sentences that are no position.
    pub raw_stream: StreamName,
    /// Device id of all that the port says.
    pub device: DeviceId,
    /// `Raw`: a position's value is its sentences; `Json`: the normalised reading.
    pub value: Value,
}

/// Decodes the bytes of one port. It has no clock: it is told the time, and says when it wants to be called.
#[derive(Clone, Debug)]
pub struct NmeaDecoder {
    framer: Framer,
    output: Output,
}

/// Everything behind the framer, apart so that the framer can hand its sentences over.
#[derive(Clone, Debug)]
struct Output {
    route: NmeaRoute,
    epochs: Epochs,
    calendar: Calendar,
    limiter: Limiter,
    records: Vec<Record>,
}

impl NmeaDecoder {
    /// A decoder at the start of a line.
    pub fn new(route: NmeaRoute) -> Self {
        let output = Output {
            route,
            epochs: Epochs::default(),
            calendar: Calendar::default(),
            limiter: Limiter::default(),
            records: Vec::new(),
        };
        Self { framer: Framer::default(), output }
    }

    /// Takes `bytes`, read at `now` and `received`, and returns the records that they complete.
    pub fn push(&mut self, now: Monotonic, received: Received, bytes: &[u8]) -> Vec<Record> {
        let Self { framer, output } = self;
        let mut records = output.expire(now);
        framer.push(bytes, &mut |framed| output.take(now, received, framed));
        records.append(&mut output.records);
        records
    }

    /// Returns the position that is complete because its moment is over: call it at [`Self::next_deadline`].
    pub fn expire(&mut self, now: Monotonic) -> Vec<Record> {
        self.output.expire(now)
    }

    /// When to call [`Self::expire`], unless bytes come before.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.output.epochs.next_deadline()
    }

    /// The line has ended: returns what is still open, and forgets a sentence that was cut.
    pub fn finish(&mut self) -> Vec<Record> {
        self.framer.reset();
        if let Some(epoch) = self.output.epochs.finish() {
            self.output.close(epoch);
        }
        std::mem::take(&mut self.output.records)
    }

    /// What was seen on the line since the decoder was made.
    pub fn counters(&self) -> FramerCounters {
        self.framer.counters()
    }
}

impl Output {
    fn take(&mut self, now: Monotonic, received: Received, framed: Framed<'_>) {
        let text = match framed {
            Framed::Sentence(text) => text,
            Framed::WrongChecksum(text) => return self.damaged(now, received, "wrong checksum", text),
            Framed::NoChecksum(text) => return self.damaged(now, received, "no checksum", text),
        };
        match Sentence::parse(text) {
            Sentence::Other => {
                let value = Bytes::from(format!("{text}\r\n"));
                let stream = self.route.raw_stream.clone();
                self.records.push(self.record(stream, value, ContentType::Nmea, None, received));
            }
            sentence => {
                if let Some(epoch) = self.epochs.push(now, received, sentence, text) {
                    self.close(epoch);
                }
            }
        }
    }

    fn expire(&mut self, now: Monotonic) -> Vec<Record> {
        if let Some(epoch) = self.epochs.expire(now) {
            self.close(epoch);
        }
        std::mem::take(&mut self.records)
    }

    /// Makes the record of a complete epoch.
    fn close(&mut self, epoch: epoch::Epoch) {
        let raw_value = || Bytes::copy_from_slice(epoch.sentences());
        let Some(position) = epoch.position(&mut self.calendar) else {
            let stream = self.route.raw_stream.clone();
            let record = self.record(stream, raw_value(), ContentType::Nmea, None, epoch.received);
            return self.records.push(record);
        };
        let (value, content_type) = match self.route.value {
            Value::Raw => (raw_value(), ContentType::Nmea),
            Value::Json => (to_json(&position.reading), ContentType::Json),
        };
        let stream = self.route.stream.clone();
        self.records.push(self.record(stream, value, content_type, position.event_time, epoch.received));
    }

    fn record(
        &self,
        stream: StreamName,
        value: Bytes,
        content_type: ContentType,
        event_time: Option<UnixMicros>,
        received: Received,
    ) -> Record {
        Record {
            stream,
            device: self.route.device.clone(),
            value,
            content_type,
            event_time,
            received,
            device_seq: None,
            headers: Vec::new(),
        }
    }

    fn damaged(&mut self, now: Monotonic, received: Received, what: &str, text: &str) {
        let Some(left_out) = self.limiter.allow(now) else { return };
        let reason = match left_out {
            0 => what.to_owned(),
            _ => format!("{what}; {left_out} damaged sentences before were left out"),
        };
        let origin = Origin { device: &self.route.device, transport: "serial", place: &self.route.port };
        let frame = Bytes::copy_from_slice(text.as_bytes());
        self.records.push(dead_letter(origin, &reason, &frame, received, usize::MAX));
    }
}

/// Lets [`DEAD_LETTERS_MAX`] through in each [`DEAD_LETTER_WINDOW`].
#[derive(Clone, Debug, Default)]
struct Limiter {
    window_start: Option<Monotonic>,
    in_window: u32,
    left_out: u64,
}

impl Limiter {
    /// `Some(left out since the last that went through)` if one more may go through.
    fn allow(&mut self, now: Monotonic) -> Option<u64> {
        if self.window_start.is_none_or(|start| now >= start + DEAD_LETTER_WINDOW) {
            self.window_start = Some(now);
            self.in_window = 0;
        }
        if self.in_window == DEAD_LETTERS_MAX {
            self.left_out += 1;
            return None;
        }
        self.in_window += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod recordings;
#[cfg(test)]
mod tests;
