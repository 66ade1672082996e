//! The link protocol on a port: readings are acknowledged when they are committed, and stored once.

use bytes::{Bytes, BytesMut};
use tracing::{debug, info, warn};
use wayside_protocol::{
    decoder::DecodeCounters,
    frame::max_wire_len,
    link::{
        TO_DEVICE_LEN_MAX,
        gateway::{Counters, Data, DeviceInfo, Event, Gateway, Lost},
        is_before,
    },
    payload::CATALOG_HASH,
};

use super::{
    devices::Devices,
    line::{Frames, Line, Now},
};
use crate::{
    config::Value,
    decode::{
        Origin, dead_letter,
        native::{self, Identity, uid_device},
    },
    env::Monotonic,
    gap::Gap,
    intake::{Acknowledgement, Ticket, Unacknowledged},
    log::Remembered,
    record::{ClockQuality, Received, Record, UnixMicros},
    source::metrics::SourceCounters,
};

/// Up to here `(uid, boot)` may be told that it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    uid: u64,
    boot: u32,
    through: u32,
}

/// Where the records of a port come from and go to.
pub(super) struct NativeConfig {
    /// Name of the source, for the log.
    pub(super) source: String,
    /// The port, for dead letters.
    pub(super) port: String,
    /// What becomes Kafka's value.
    pub(super) value: Value,
    /// Bound of [`Record::size_bytes`].
    pub(super) record_bytes_max: usize,
}

/// The gateway's end of the link on one port.
pub(super) struct NativeLine {
    config: NativeConfig,
    gateway: Box<Gateway>,
    queue: Queue,
    taken: Vec<Answer>,
    waiting: Unacknowledged<Answer>,
    last_ticket: Ticket,
    counted: (DecodeCounters, Counters),
}

/// What the link has delivered and nobody has taken.
#[derive(Default)]
struct Queue {
    records: Vec<Record>,
    answers: Vec<Answer>,
    greetings: Vec<DeviceInfo>,
    devices: Devices,
}

impl NativeLine {
    /// At the start of a line, with what a life before has noted.
    pub(super) fn new(config: NativeConfig, remembered: &Remembered) -> Self {
        Self {
            config,
            gateway: Box::new(Gateway::new()),
            queue: Queue { devices: Devices::restore(remembered), ..Queue::default() },
            taken: Vec::new(),
            waiting: Unacknowledged::default(),
            last_ticket: Ticket::default(),
            counted: (DecodeCounters::default(), Counters::default()),
        }
    }

    /// Lets a device begin, as far as the answer is known.
    fn greet(&mut self, device: &DeviceInfo) {
        let DeviceInfo { uid, boot, .. } = *device;
        let next_seq = match self.queue.devices.get(uid) {
            None => None,
            // With nothing dropped in this boot, what comes before the oldest reading it has was acknowledged elsewhere.
            Some(known) if known.boot != boot => (device.lost > 0).then_some(0),
            // Some of it is on its way to the disk: the device greets again.
            Some(known) if known.committed != Some(known.delivered) => return,
            Some(known) => {
                let next_seq = known.delivered.wrapping_add(1);
                let elsewhere = device.lost == 0 && is_before(next_seq, device.oldest_unacked);
                (!elsewhere).then_some(next_seq)
            }
        };
        self.gateway.accept(uid, boot, next_seq);
    }

    fn commit(&mut self, now: Now, answer: Answer) {
        let Answer { uid, boot, through } = answer;
        self.queue.devices.committed(uid, boot, through);
        self.gateway.committed(now.monotonic.as_micros(), uid, boot, through);
    }

    /// Answers what needs no record, when nothing before it waits.
    fn commit_idle(&mut self, now: Now) {
        if self.waiting.is_empty() && self.taken.is_empty() && self.queue.records.is_empty() {
            for answer in std::mem::take(&mut self.queue.answers) {
                self.commit(now, answer);
            }
        }
    }
}

impl Queue {
    fn take_event(&mut self, now: Now, config: &NativeConfig, event: Event<'_>) {
        match event {
            Event::Hello(device) => self.take_greeting(config, device),
            Event::Data(data) => {
                self.take_reading(now, config, &data);
                self.delivered(data.uid, data.boot, data.seq);
            }
            Event::Lost(lost) => {
                let Lost { uid, boot, first, last } = lost;
                let device = format!("{uid:016x}");
                warn!(source = config.source, device, boot, first, last, "the device has lost readings");
                let gap = Gap::of_device(uid_device(uid), boot, first, last);
                self.records.push(gap.record(now.received, &config.source));
                self.delivered(uid, boot, last);
            }
            Event::Log { uid, level, text } => {
                let (device, text) = (format!("{uid:016x}"), String::from_utf8_lossy(text));
                debug!(source = config.source, device, level, %text, "the device says");
            }
            _ => {}
        }
    }

    fn take_greeting(&mut self, config: &NativeConfig, device: DeviceInfo) {
        if !device.needs_accept {
            return;
        }
        let DeviceInfo { uid, boot, firmware, catalog_hash, .. } = device;
        let (source, uid) = (&config.source, format!("{uid:016x}"));
        info!(source, device = uid, boot, firmware, "a device greets");
        if catalog_hash != CATALOG_HASH {
            warn!(
                source,
                device = uid,
                "the device knows other schemas; what is unknown is kept as it comes"
            );
        }
        self.greetings.push(device);
    }

    fn take_reading(&mut self, now: Now, config: &NativeConfig, data: &Data<'_>) {
        let body = Bytes::copy_from_slice(data.body);
        let device = uid_device(data.uid);
        let event_time = data.made.map(|made| {
            let age_us = now.monotonic.as_micros().saturating_sub(made.at_us);
            UnixMicros(now.received.at.0.saturating_sub_unsigned(age_us))
        });
        let identity = Identity { device: device.clone(), boot: data.boot, seq: data.seq };
        let schema = (data.schema, data.rev);
        let received = Received { dates_event: event_time.is_some(), ..now.received };
        let record = native::record(identity, schema, &body, event_time, received, config.value);
        let record = record.unwrap_or_else(|error| {
            let origin = Origin { device: &device, transport: "serial", place: &config.port };
            dead_letter(origin, &error, &body, now.received, config.record_bytes_max)
        });
        self.records.push(record);
    }

    /// Acknowledgements are cumulative: the last number of each device is the answer.
    fn delivered(&mut self, uid: u64, boot: u32, through: u32) {
        match self.answers.iter_mut().find(|answer| answer.uid == uid && answer.boot == boot) {
            Some(answer) => answer.through = through,
            None => self.answers.push(Answer { uid, boot, through }),
        }
        self.devices.delivered(uid, boot, through);
    }
}

impl Line for NativeLine {
    fn receive(&mut self, now: Now, bytes: &[u8]) {
        let now_us = now.monotonic.as_micros();
        // Devices are told the time by those who know it.
        let known = now.received.quality != ClockQuality::Unknown;
        let unix_us = u64::try_from(now.received.at.0).ok().filter(|_| known);
        self.gateway.set_unix_us(now_us, unix_us);
        let Self { gateway, queue, config, .. } = self;
        gateway.receive(now_us, bytes, |event| queue.take_event(now, config, event));
        for device in std::mem::take(&mut self.queue.greetings) {
            self.greet(&device);
        }
        self.commit_idle(now);
    }

    fn expire(&mut self, _: Now) {}

    fn next_deadline(&self) -> Option<Monotonic> {
        let at_us = self.gateway.next_deadline()?;
        Some(Monotonic::from_start(std::time::Duration::from_micros(at_us)))
    }

    fn take(&mut self) -> Frames {
        if self.queue.records.is_empty() {
            return Frames::default();
        }
        self.taken = std::mem::take(&mut self.queue.answers);
        let records = std::mem::take(&mut self.queue.records);
        Frames { records, changes: self.queue.devices.changes() }
    }

    fn submitted(&mut self, ticket: Ticket) {
        self.last_ticket = ticket;
        for answer in self.taken.drain(..) {
            self.waiting.push(ticket, answer);
        }
    }

    fn acknowledged(&mut self, now: Now, acknowledgement: Acknowledgement) {
        let answers: Vec<Answer> = self.waiting.release(acknowledgement).collect();
        for answer in answers {
            self.commit(now, answer);
        }
        self.commit_idle(now);
    }

    fn set_room(&mut self, now: Now, room: bool) {
        self.gateway.set_credit(now.monotonic.as_micros(), if room { u8::MAX } else { 0 });
    }

    fn transmit(&mut self, now: Now, out: &mut BytesMut) {
        const FRAME: usize = max_wire_len(TO_DEVICE_LEN_MAX);
        let mut frame = [0; FRAME];
        while let Some(size_bytes) = self.gateway.poll_transmit(now.monotonic.as_micros(), &mut frame) {
            out.extend_from_slice(&frame[..size_bytes]);
        }
    }

    fn closed(&mut self, _: Now) {}

    fn unacknowledged(&self) -> usize {
        self.waiting.len()
    }

    fn count(&mut self, counters: &mut SourceCounters) -> u64 {
        let (decoded, link) = (self.gateway.decode_counters(), self.gateway.counters());
        let (decoded_before, link_before) = std::mem::replace(&mut self.counted, (decoded, link));
        let rejected = [
            ("cobs", decoded.cobs, decoded_before.cobs),
            ("too_long", decoded.too_long, decoded_before.too_long),
            ("truncated", decoded.truncated, decoded_before.truncated),
            ("crc", decoded.crc, decoded_before.crc),
            ("version", decoded.version, decoded_before.version),
            ("kind", decoded.kind, decoded_before.kind),
            ("must_understand", decoded.must_understand, decoded_before.must_understand),
            ("malformed", link.malformed, link_before.malformed),
            ("refused", link.refused, link_before.refused),
        ];
        let mut sum = 0;
        for (reason, now, before) in rejected {
            let count = u64::from(now.wrapping_sub(before));
            if count > 0 {
                counters.rejected(reason, count);
                sum += count;
            }
        }
        counters.lost.inc_by(link.lost.wrapping_sub(link_before.lost).into());
        sum
    }
}
