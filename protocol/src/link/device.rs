//! The device's end: keeps readings until the gateway has made them durable.
//!
//! ```text
//!            HELLO_ACK: resume
//!  Greeting ------------------> Up: DATA, TIME_REQ, LOG
//!     ^  HELLO every 0.25 .. 3 s   |
//!     +----------------------------+
//!       CMD "say hello", or 5 timeouts without an answer
//! ```

mod clock;
mod ring;

use self::clock::Clock;
use self::ring::{Ring, Slot};
use super::control::{Ack, CMD_CODE_LEN, CMD_SAY_HELLO, DataExtension, Hello, HelloAck, TimeRsp};
use super::{
    BODY_LEN_DEFAULT, DATA_OVERHEAD, LOG_TEXT_MAX, TO_DEVICE_LEN_MAX, WINDOW_DEFAULT, WINDOW_MAX, is_before,
};
use crate::decoder::{DecodeCounters, Decoder};
use crate::error::SendError;
use crate::frame::{FRAME_LEN_DEFAULT, FRAME_LEN_MAX, Flags, Frame, Header, Kind, VERSION};
use crate::payload::{CATALOG_HASH, Payload};

/// Shortest resend timeout: below it a gateway's ordinary commit would look like a loss.
pub const RTO_MIN_US: u64 = 50_000;
/// Longest one, and the longest silence before the device asks again for credit.
pub const RTO_MAX_US: u64 = 3_000_000;
/// Before the first round trip was measured.
pub const RTO_INITIAL_US: u64 = 500_000;
/// First pause between two HELLOs; it doubles up to [`RTO_MAX_US`].
pub const HELLO_MIN_US: u64 = 250_000;
/// A reading that left later than this after it was made carries the backlog flag.
pub const BACKLOG_AFTER_US: u64 = 1_000_000;
/// Timeouts in a row without a frame from the gateway after which the device greets again, instead of resending into the void.
pub const TIMEOUTS_MAX: u8 = 5;

const _: () = assert!(RTO_MIN_US <= RTO_INITIAL_US && RTO_INITIAL_US <= RTO_MAX_US);
const _: () = assert!(HELLO_MIN_US <= RTO_MAX_US);

/// What to do with a reading when every slot holds one that is not durable yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Refuse the new one with [`SendError::Full`]; the caller keeps it.
    Refuse,
    /// Drop the oldest one and count it: the gateway reports its number as lost.
    DropOldest,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Its number for life, unique in the fleet: a serial number in flash, or the microcontroller's unique id.
    pub uid: u64,
    /// Firmware version: major, minor, patch in 8, 8 and 16 bits.
    pub firmware: u32,
    /// What to do when the ring is full.
    pub overflow: Overflow,
}

/// What a device has counted since it was made. The counters wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Readings taken by `send`.
    pub taken: u32,
    /// Readings that the gateway has made durable.
    pub durable: u32,
    /// Readings dropped by [`Overflow::DropOldest`], durable at the gateway or not.
    pub lost: u32,
    /// DATA frames sent, the resent ones among them.
    pub sent: u32,
    /// DATA frames sent again.
    pub resent: u32,
    /// Resend timeouts.
    pub timeouts: u32,
    /// HELLOs sent.
    pub hellos: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting { due_us: u64, pause_us: u64 },
    Up,
}

/// The device's end of a link.
///
/// `RING` readings of up to `BODY` bytes are kept, of which at most 32 are in flight at once. It takes about
/// `RING * (BODY + 56)` bytes of RAM.
#[derive(Debug)]
pub struct Device<const RING: usize = WINDOW_DEFAULT, const BODY: usize = BODY_LEN_DEFAULT> {
    config: Config,
    boot: u32,
    decoder: Decoder<TO_DEVICE_LEN_MAX>,
    state: State,
    ring: Ring<RING, BODY>,
    /// Short id, 0 before the first HELLO_ACK.
    device: u16,
    /// Frames in flight, as agreed.
    window: u8,
    /// Longest frame before COBS, as agreed.
    max_frame: u16,
    /// The highest `next_expected` of this session: acknowledgements that say less are late ones.
    acked: u32,
    /// First sequence number that the gateway does not take yet.
    edge: u32,
    /// Counts transmissions of DATA, to know which of two left first. 0 stands for none.
    order: u64,
    /// The latest transmission that is known to have arrived.
    arrived: u64,
    rto_us: u64,
    /// Smoothed round trip and its mean deviation (RFC 6298).
    rtt_us: Option<(u64, u64)>,
    resend_at_us: Option<u64>,
    timeouts: u8,
    clock: Clock,
    log: Option<(u8, heapless::Vec<u8, LOG_TEXT_MAX>)>,
    counters: Counters,
}

impl<const RING: usize, const BODY: usize> Device<RING, BODY> {
    // Both fit: WINDOW_MAX is 32, and `new` does not compile with a body beyond FRAME_LEN_MAX.
    #[allow(clippy::cast_possible_truncation)]
    const WINDOW: u8 = if RING < WINDOW_MAX { RING as u8 } else { WINDOW_MAX as u8 };
    #[allow(clippy::cast_possible_truncation)]
    const MAX_FRAME: u16 = (BODY + DATA_OVERHEAD) as u16;
    /// What may be sent before anything was agreed on.
    #[allow(clippy::cast_possible_truncation)]
    const FIRST_FRAME: u16 =
        if Self::MAX_FRAME < FRAME_LEN_DEFAULT as u16 { Self::MAX_FRAME } else { FRAME_LEN_DEFAULT as u16 };

    /// A device that was just switched on.
    ///
    /// `boot` must differ from every earlier one of this `uid`: 32 random bits, or a counter in flash. It is what tells a new
    /// reading number 0 from an old one.
    #[must_use]
    pub fn new(config: Config, boot: u32) -> Self {
        const {
            assert!(RING > 0, "a device without a slot cannot send");
            assert!(BODY + DATA_OVERHEAD <= FRAME_LEN_MAX, "no frame holds such a body");
        }
        Self {
            config,
            boot,
            decoder: Decoder::new(),
            state: State::Greeting { due_us: 0, pause_us: HELLO_MIN_US },
            ring: Ring::new(),
            device: 0,
            window: Self::WINDOW,
            max_frame: Self::FIRST_FRAME,
            acked: 0,
            edge: 0,
            order: 0,
            arrived: 0,
            rto_us: RTO_INITIAL_US,
            rtt_us: None,
            resend_at_us: None,
            timeouts: 0,
            clock: Clock::new(),
            log: None,
            counters: Counters::default(),
        }
    }

    /// Takes a reading to be delivered and returns its sequence number.
    ///
    /// # Errors
    /// [`SendError::Full`] with [`Overflow::Refuse`] alone; [`SendError::TooLong`].
    pub fn send(&mut self, now_us: u64, schema: u16, rev: u8, body: &[u8]) -> Result<u32, SendError> {
        self.make_room(body.len())?;
        let body = heapless::Vec::from_slice(body).map_err(|_| SendError::TooLong)?;
        self.push(now_us, schema, rev, body)
    }

    /// [`Self::send`] of a payload, serialised in place.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_payload<'de, P: Payload<'de>>(&mut self, now_us: u64, payload: &P) -> Result<u32, SendError> {
        let mut body = heapless::Vec::new();
        // Cannot fail: the vector has no more capacity than BODY.
        body.resize(BODY, 0).map_err(|_| SendError::TooLong)?;
        let len = payload.encode(&mut body).map_err(|_| SendError::TooLong)?;
        body.truncate(len);
        self.make_room(len)?;
        self.push(now_us, P::SCHEMA, P::REV, body)
    }

    fn make_room(&mut self, body_len: usize) -> Result<(), SendError> {
        if body_len > BODY || body_len + DATA_OVERHEAD > usize::from(self.max_frame) {
            return Err(SendError::TooLong);
        }
        if self.ring.is_full() {
            match self.config.overflow {
                Overflow::Refuse => return Err(SendError::Full),
                Overflow::DropOldest => self.drop_oldest(),
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        now_us: u64,
        schema: u16,
        rev: u8,
        body: heapless::Vec<u8, BODY>,
    ) -> Result<u32, SendError> {
        let seq = self.ring.push(Slot::new(now_us, schema, rev, body)).ok_or(SendError::Full)?;
        self.counters.taken = self.counters.taken.wrapping_add(1);
        if self.state == State::Up && self.resend_at_us.is_none() {
            self.resend_at_us = Some(now_us.saturating_add(self.rto_us));
        }
        Ok(seq)
    }

    fn drop_oldest(&mut self) {
        if self.ring.pop_oldest().is_some() {
            self.counters.lost = self.counters.lost.wrapping_add(1);
        }
    }

    /// Keeps a line of text for people, to be sent when the line has nothing better to do. Not acknowledged; cut to
    /// [`LOG_TEXT_MAX`] bytes. `level`: 1 error, 2 warning, 3 information, 4 debug.
    ///
    /// Returns whether it was taken: one line waits at a time.
    pub fn log(&mut self, level: u8, text: &str) -> bool {
        if self.log.is_some() {
            return false;
        }
        let mut end = text.len().min(LOG_TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let Ok(text) = heapless::Vec::from_slice(text.as_bytes().get(..end).unwrap_or_default()) else {
            return false;
        };
        self.log = Some((level, text));
        true
    }

    /// Takes bytes from the line, any number. `on_command` gets the commands of the application: code and arguments.
    pub fn receive(&mut self, now_us: u64, mut bytes: &[u8], mut on_command: impl FnMut(u16, &[u8])) {
        // The decoder is taken out for the time of the loop, since a frame borrows from it.
        let mut decoder = core::mem::take(&mut self.decoder);
        while let Some(outcome) = decoder.next(&mut bytes) {
            if let Ok(frame) = outcome {
                self.on_frame(now_us, &frame, &mut on_command);
            }
        }
        self.decoder = decoder;
    }

    fn on_frame(&mut self, now_us: u64, frame: &Frame<'_>, on_command: &mut impl FnMut(u16, &[u8])) {
        let header = &frame.header;
        if header.boot != self.boot {
            return;
        }
        if header.kind == Kind::HelloAck {
            if let Some(body) = HelloAck::from_bytes(frame.body) {
                self.on_hello_ack(now_us, &body);
            }
            return;
        }
        if header.device != self.device || self.state != State::Up {
            return;
        }
        self.timeouts = 0;
        match header.kind {
            Kind::Ack => {
                if let Some(body) = Ack::from_bytes(frame.body) {
                    self.on_ack(now_us, &body);
                }
            }
            Kind::TimeRsp => {
                if let Some(body) = TimeRsp::from_bytes(frame.body) {
                    self.clock.on_response(now_us, &body);
                }
            }
            Kind::Cmd => match frame.body.split_first_chunk::<CMD_CODE_LEN>() {
                Some((code, _)) if u16::from_le_bytes(*code) == CMD_SAY_HELLO => self.greet(now_us),
                Some((code, args)) => on_command(u16::from_le_bytes(*code), args),
                None => {}
            },
            // What devices send: the echo of a two-wire line, or a neighbour on it.
            Kind::Hello | Kind::HelloAck | Kind::Data | Kind::TimeReq | Kind::Log => {}
        }
    }

    fn greet(&mut self, now_us: u64) {
        self.state = State::Greeting { due_us: now_us, pause_us: HELLO_MIN_US };
        self.resend_at_us = None;
        self.timeouts = 0;
    }

    fn on_hello_ack(&mut self, now_us: u64, ack: &HelloAck) {
        // Without a HELLO that waits for it, it is the second answer to one that was doubled on the line.
        if self.state == State::Up || ack.uid != self.config.uid || ack.version != VERSION {
            return;
        }
        if is_before(self.ring.next_seq(), ack.resume_seq) {
            // The gateway has seen more of this boot than there is: the number is not new. Take another one.
            self.boot = self.boot.wrapping_add(1);
            self.ring.restart();
            self.greet(now_us);
            return;
        }
        self.device = ack.device;
        self.window = ack.window.clamp(1, Self::WINDOW);
        self.max_frame = ack.max_frame.min(Self::MAX_FRAME);
        self.acked = ack.resume_seq;
        self.edge = ack.resume_seq.wrapping_add(u32::from(ack.credit.min(self.window)));
        self.release(now_us, ack.resume_seq);
        self.drop_what_no_longer_fits();
        // What the gateway held is gone if it restarted. The oldest reading goes out whatever the credit: it tells a gateway that
        // expects an older one that there is none.
        self.ring.forget_transmissions();
        if let Some(oldest) = self.ring.get_mut(0) {
            oldest.due = true;
        }
        self.arrived = self.order;
        self.state = State::Up;
        self.timeouts = 0;
        self.clock.restart(now_us, ack.unix_us);
        self.restart_timer(now_us);
    }

    /// Frames above the size that was agreed just now can never arrive. They go with all before them, since only the oldest
    /// readings can be reported as lost. It takes a gateway that was replaced by one with smaller buffers.
    fn drop_what_no_longer_fits(&mut self) {
        let limit = usize::from(self.max_frame).saturating_sub(DATA_OVERHEAD);
        let too_long = self.ring.iter().filter(|(_, slot)| slot.body.len() > limit).map(|(seq, _)| seq);
        if let Some(last) = too_long.last() {
            while !is_before(last, self.ring.base()) {
                self.drop_oldest();
            }
        }
    }

    fn on_ack(&mut self, now_us: u64, ack: &Ack) {
        let next = ack.next_expected;
        if is_before(next, self.acked) || is_before(self.ring.next_seq(), next) {
            return;
        }
        let progress = next != self.acked;
        self.acked = next;
        self.edge = next.wrapping_add(u32::from(ack.credit.min(self.window)));
        self.release(now_us, next);
        let mut arrived = self.arrived;
        for (seq, slot) in self.ring.iter_mut() {
            let bit = seq.wrapping_sub(next);
            slot.held = slot.order > 0 && bit < u32::BITS && ack.held & (1 << bit) != 0;
            if slot.held {
                slot.due = false;
                arrived = arrived.max(slot.order);
            }
        }
        self.arrived = arrived;
        // A hole: something that left later has arrived.
        for (_, slot) in self.ring.iter_mut() {
            slot.due |= slot.order > 0 && !slot.held && slot.order < arrived;
        }
        if progress {
            self.restart_timer(now_us);
        }
    }

    /// Forgets what is durable: everything before `next`.
    fn release(&mut self, now_us: u64, next: u32) {
        let mut sample = None;
        while is_before(self.ring.base(), next) {
            let Some(slot) = self.ring.pop_oldest() else { break };
            self.counters.durable = self.counters.durable.wrapping_add(1);
            self.arrived = self.arrived.max(slot.order);
            // Karn's rule: of a frame that was sent twice nobody knows which one was acknowledged.
            if slot.order > 0 && !slot.resent {
                sample = Some(now_us.saturating_sub(slot.sent_us));
            }
        }
        if let Some(sample) = sample {
            self.on_round_trip(sample);
        }
    }

    fn on_round_trip(&mut self, sample_us: u64) {
        let (srtt, rttvar) = match self.rtt_us {
            None => (sample_us, sample_us / 2),
            Some((srtt, rttvar)) => ((7 * srtt + sample_us) / 8, (3 * rttvar + srtt.abs_diff(sample_us)) / 4),
        };
        self.rtt_us = Some((srtt, rttvar));
        self.rto_us = (srtt + 4 * rttvar).clamp(RTO_MIN_US, RTO_MAX_US);
    }

    fn restart_timer(&mut self, now_us: u64) {
        self.resend_at_us = (!self.ring.is_empty()).then(|| now_us.saturating_add(self.rto_us));
    }

    fn on_timeout(&mut self, now_us: u64) {
        self.counters.timeouts = self.counters.timeouts.wrapping_add(1);
        self.timeouts = self.timeouts.saturating_add(1);
        if self.timeouts >= TIMEOUTS_MAX {
            self.greet(now_us);
            return;
        }
        self.rto_us = (self.rto_us * 2).min(RTO_MAX_US);
        for (index, (_, slot)) in self.ring.iter_mut().enumerate() {
            // The oldest one even if the gateway holds it or gives no credit: the answer says how things stand.
            slot.due |= index == 0 || (slot.order > 0 && !slot.held);
        }
        self.restart_timer(now_us);
    }

    /// Index in the ring of the frame to send now.
    fn next_data(&self) -> Option<usize> {
        if self.state != State::Up {
            return None;
        }
        self.ring
            .iter()
            .take(usize::from(self.window))
            .position(|(seq, slot)| slot.due || (slot.order == 0 && is_before(seq, self.edge)))
    }

    /// Writes the next frame to send to the start of `out` and returns its length; `None` if there is nothing to send now.
    ///
    /// Call it when the line is free, until it returns `None`. `out` should have [`crate::frame::max_wire_len`] of
    /// `BODY + DATA_OVERHEAD` bytes and at least 160: a frame that does not fit is not sent.
    pub fn poll_transmit(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        if self.resend_at_us.is_some_and(|at| at <= now_us) {
            self.on_timeout(now_us);
        }
        if let State::Greeting { due_us, pause_us } = self.state {
            return if due_us <= now_us { self.transmit_hello(now_us, pause_us, out) } else { None };
        }
        if self.clock.request_due_us() <= now_us {
            let body = self.clock.request(now_us).to_bytes();
            return self.transmit_control(Kind::TimeReq, &body, out);
        }
        if let Some(index) = self.next_data() {
            return self.transmit_data(now_us, index, out);
        }
        let (level, text) = self.log.take()?;
        let mut body = heapless::Vec::<u8, { LOG_TEXT_MAX + 1 }>::new();
        body.push(level).ok()?;
        body.extend_from_slice(&text).ok()?;
        self.transmit_control(Kind::Log, &body, out)
    }

    fn transmit_control(&self, kind: Kind, body: &[u8], out: &mut [u8]) -> Option<usize> {
        let header = Header::control(kind, self.device, self.boot);
        Frame { header, extension: &[], body }.encode(out).ok()
    }

    fn transmit_hello(&mut self, now_us: u64, pause_us: u64, out: &mut [u8]) -> Option<usize> {
        let body = Hello {
            uid: self.config.uid,
            firmware: self.config.firmware,
            catalog_hash: CATALOG_HASH,
            next_seq: self.ring.next_seq(),
            oldest_unacked: self.ring.base(),
            lost: self.counters.lost,
            max_frame: Self::MAX_FRAME,
            window: Self::WINDOW,
            versions: VERSION << 4 | VERSION,
        };
        let header = Header::control(Kind::Hello, 0, self.boot);
        let len = Frame { header, extension: &[], body: &body.to_bytes() }.encode(out).ok()?;
        self.counters.hellos = self.counters.hellos.wrapping_add(1);
        self.state = State::Greeting {
            due_us: now_us.saturating_add(pause_us),
            pause_us: (pause_us * 2).min(RTO_MAX_US),
        };
        Some(len)
    }

    fn transmit_data(&mut self, now_us: u64, index: usize, out: &mut [u8]) -> Option<usize> {
        let oldest_unacked = self.ring.base();
        let seq = oldest_unacked.wrapping_add(u32::try_from(index).ok()?);
        let unsynced = self.clock.unix_us(now_us).is_none();
        let slot = self.ring.get_mut(index)?;
        let resend = slot.order > 0 || slot.resent;
        let header = Header {
            kind: Kind::Data,
            flags: Flags::NEEDS_ACK
                .with_if(Flags::RETRANSMIT, resend)
                .with_if(Flags::BACKLOG, now_us.saturating_sub(slot.made_us) > BACKLOG_AFTER_US)
                .with_if(Flags::TIME_UNSYNCED, unsynced),
            device: self.device,
            boot: self.boot,
            seq,
            schema: slot.schema,
            rev: slot.rev,
        };
        let extension = DataExtension { device_time_us: slot.made_us, oldest_unacked }.to_bytes();
        let len = Frame { header, extension: &extension, body: &slot.body }.encode(out).ok()?;
        self.order += 1;
        slot.order = self.order;
        slot.sent_us = now_us;
        slot.due = false;
        slot.resent = resend;
        self.counters.sent = self.counters.sent.wrapping_add(1);
        self.counters.resent = self.counters.resent.wrapping_add(u32::from(resend));
        if index == 0 {
            self.restart_timer(now_us);
        }
        Some(len)
    }

    /// When to call [`Self::poll_transmit`] again even if nothing was received or sent; a time in the past means now.
    #[must_use]
    pub fn next_deadline(&self) -> u64 {
        match self.state {
            State::Greeting { due_us, .. } => due_us,
            State::Up if self.next_data().is_some() || self.log.is_some() => 0,
            State::Up => self.clock.request_due_us().min(self.resend_at_us.unwrap_or(u64::MAX)),
        }
    }

    /// Whether the gateway has answered the last HELLO.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// The boot number in use: the one given, or a later one if the gateway knew that one already.
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.boot
    }

    /// Readings that are not durable yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.ring.len()
    }

    /// Unix time in us, if the gateway knows it.
    #[must_use]
    pub fn unix_us(&self, now_us: u64) -> Option<u64> {
        self.clock.unix_us(now_us)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What the line has brought so far.
    #[must_use]
    pub fn decode_counters(&self) -> DecodeCounters {
        self.decoder.counters()
    }
}
