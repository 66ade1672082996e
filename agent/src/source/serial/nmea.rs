//! NMEA 0183 on a port: receivers talk, nobody answers.

use bytes::BytesMut;

use super::line::{Frames, Line, Now};
use crate::{
    decode::nmea::{FramerCounters, NmeaDecoder, NmeaRoute},
    env::Monotonic,
    intake::{Acknowledgement, Ticket},
    record::Record,
    source::metrics::SourceCounters,
};

/// Bytes of records that may wait for room in the intake: about a minute of a talkative receiver. It cannot be told to
/// wait, so that what comes on top is dropped and counted.
const QUEUE_BYTES_MAX: usize = 64 * 1024;

/// The line protocol without a protocol.
pub(super) struct NmeaLine {
    decoder: NmeaDecoder,
    queue: Vec<Record>,
    queue_bytes: usize,
    dropped: u64,
    counted: FramerCounters,
}

impl NmeaLine {
    /// At the start of a line.
    pub(super) fn new(route: NmeaRoute) -> Self {
        Self {
            decoder: NmeaDecoder::new(route),
            queue: Vec::new(),
            queue_bytes: 0,
            dropped: 0,
            counted: FramerCounters::default(),
        }
    }

    fn queue(&mut self, records: Vec<Record>) {
        for record in records {
            let size_bytes = record.size_bytes();
            if self.queue_bytes + size_bytes > QUEUE_BYTES_MAX {
                self.dropped += 1;
                continue;
            }
            self.queue_bytes += size_bytes;
            self.queue.push(record);
        }
    }
}

impl Line for NmeaLine {
    fn receive(&mut self, now: Now, bytes: &[u8]) {
        let records = self.decoder.push(now.monotonic, now.received, bytes);
        self.queue(records);
    }

    fn expire(&mut self, now: Now) {
        let records = self.decoder.expire(now.monotonic);
        self.queue(records);
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        self.decoder.next_deadline()
    }

    fn take(&mut self) -> Frames {
        self.queue_bytes = 0;
        Frames { records: std::mem::take(&mut self.queue), changes: Vec::new() }
    }

    fn submitted(&mut self, _: Ticket) {}

    fn acknowledged(&mut self, _: Now, _: Acknowledgement) {}

    fn set_room(&mut self, _: Now, _: bool) {}

    fn transmit(&mut self, _: Now, _: &mut BytesMut) {}

    fn closed(&mut self, _: Now) {
        let records = self.decoder.finish();
        self.queue(records);
    }

    fn unacknowledged(&self) -> usize {
        0
    }

    fn count(&mut self, counters: &mut SourceCounters) -> u64 {
        let seen = self.decoder.counters();
        let before = std::mem::replace(&mut self.counted, seen);
        let rejected = [
            ("wrong_checksum", seen.wrong_checksums - before.wrong_checksums),
            ("no_checksum", seen.no_checksums - before.no_checksums),
            ("skipped_byte", seen.skipped_bytes - before.skipped_bytes),
        ];
        for (reason, count) in rejected {
            if count > 0 {
                counters.rejected(reason, count);
            }
        }
        for _ in 0..std::mem::take(&mut self.dropped) {
            counters.dropped("intake_full");
        }
        rejected.iter().map(|(_, count)| count).sum()
    }
}
