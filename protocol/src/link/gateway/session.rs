//! One boot of one device: what arrived, what was passed on, what is durable.

use super::{
    Ack, CMD_CODE_LEN, COMMAND_ARGS_MAX, CommandError, Counters, Data, DataExtension, Estimate, Event, Frame,
    Hello, HelloAck, Kind, Lost, TimeReq, TimeRsp, VERSION, count, encode,
};
use crate::frame::Header;
use crate::link::{ACK_DELAY_US, ACK_EVERY, is_before};

/// A device's crystal may drift by this many parts per million, two of them by twice that.
const DRIFT_PPM: u64 = 100;

/// A frame that waits for an older one.
#[derive(Debug, Clone)]
struct Held<const FRAME: usize> {
    header: Header,
    device_time_us: u64,
    body: heapless::Vec<u8, FRAME>,
}

/// The device's clock against the gateway's, as the device measured it.
#[derive(Debug, Clone, Copy)]
struct ClockOffset {
    offset_us: i64,
    rtt_us: u32,
    told_us: u64,
}

impl ClockOffset {
    fn estimate(&self, now_us: u64, device_time_us: u64) -> Option<Estimate> {
        let drift_us = now_us.saturating_sub(self.told_us) / (1_000_000 / DRIFT_PPM);
        let at_us = device_time_us.checked_add_signed(self.offset_us)?;
        Some(Estimate { at_us, error_us: u64::from(self.rtt_us / 2) + drift_us })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for the host's `accept`; `oldest` is what the device keeps.
    Pending {
        oldest: u32,
    },
    Live,
}

#[derive(Debug)]
pub(super) struct Session<const FRAME: usize, const WINDOW: usize> {
    pub(super) uid: u64,
    pub(super) boot: u32,
    /// Short id.
    pub(super) device: u16,
    /// When the device was last heard of.
    pub(super) heard_us: u64,
    state: State,
    max_frame: u16,
    window: u8,
    committed: u32,
    delivered: u32,
    edge: u32,
    /// Frames after `delivered`, each at its sequence number modulo `WINDOW`.
    held: [Option<Held<FRAME>>; WINDOW],
    /// Committed since the last acknowledgement.
    unacknowledged: u32,
    ack_due_us: Option<u64>,
    hello_ack_due: bool,
    /// t1 and t2 of a time request.
    time_request: Option<(u64, u64)>,
    clock: Option<ClockOffset>,
    command: Option<heapless::Vec<u8, { CMD_CODE_LEN + COMMAND_ARGS_MAX }>>,
}

impl<const FRAME: usize, const WINDOW: usize> Session<FRAME, WINDOW> {
    pub(super) fn new(now_us: u64, device: u16, boot: u32, hello: &Hello) -> Self {
        Self {
            uid: hello.uid,
            boot,
            device,
            heard_us: now_us,
            state: State::Pending { oldest: hello.oldest_unacked },
            max_frame: 0,
            window: 0,
            committed: 0,
            delivered: 0,
            edge: 0,
            held: core::array::from_fn(|_| None),
            unacknowledged: 0,
            ack_due_us: None,
            hello_ack_due: false,
            time_request: None,
            clock: None,
            command: None,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.state == State::Live
    }

    /// Nothing of it would be lost or doubled if it were forgotten.
    pub(super) fn is_idle(&self) -> bool {
        self.committed == self.delivered
    }

    pub(super) fn on_hello(&mut self, now_us: u64, hello: &Hello) {
        self.heard_us = now_us;
        self.max_frame = u16::try_from(FRAME).unwrap_or(u16::MAX).min(hello.max_frame);
        self.window = u8::try_from(WINDOW).unwrap_or(u8::MAX).min(hello.window).max(1);
        self.clock = None;
        match &mut self.state {
            State::Pending { oldest } => *oldest = hello.oldest_unacked,
            State::Live => self.hello_ack_due = true,
        }
    }

    pub(super) fn accept(&mut self, next_seq: Option<u32>) {
        if let State::Pending { oldest } = self.state {
            self.committed = next_seq.unwrap_or(oldest);
            self.delivered = self.committed;
            self.edge = self.committed;
            self.state = State::Live;
            self.hello_ack_due = true;
        }
    }

    /// Takes a reading. `false` if it makes no sense.
    pub(super) fn on_data(
        &mut self,
        now_us: u64,
        frame: &Frame<'_>,
        extension: &DataExtension,
        counters: &mut Counters,
        on_event: &mut impl FnMut(Event<'_>),
    ) -> bool {
        let seq = frame.header.seq;
        let DataExtension { device_time_us, oldest_unacked } = *extension;
        if is_before(seq, oldest_unacked) {
            return false;
        }
        self.skip_to(now_us, oldest_unacked, counters, on_event);
        if is_before(seq, self.delivered) {
            count(&mut counters.duplicates);
            // Its acknowledgement was lost. One that is not durable yet gets its answer when it is.
            if is_before(seq, self.committed) {
                self.acknowledge_by(now_us);
            }
            return true;
        }
        if !is_before(seq, self.edge) {
            count(&mut counters.beyond_credit);
            self.acknowledge_by(now_us);
            return true;
        }
        if seq == self.delivered {
            self.deliver(now_us, &frame.header, device_time_us, frame.body, counters, on_event);
            self.deliver_held(now_us, counters, on_event);
            return true;
        }
        // `edge` is never more than a window after `committed`, so `seq` has a slot of its own.
        let Some(slot) = self.held.get_mut(seq as usize % WINDOW) else { return false };
        if slot.is_some() {
            count(&mut counters.duplicates);
            return true;
        }
        let Ok(body) = heapless::Vec::from_slice(frame.body) else { return false };
        *slot = Some(Held { header: frame.header, device_time_us, body });
        count(&mut counters.reordered);
        // At once, so that the device sees the hole and fills it before its timeout.
        self.acknowledge_by(now_us);
        true
    }

    fn take_held(&mut self, seq: u32) -> Option<Held<FRAME>> {
        let slot = self.held.get_mut(seq as usize % WINDOW)?;
        slot.take_if(|held| held.header.seq == seq)
    }

    fn deliver(
        &mut self,
        now_us: u64,
        header: &Header,
        device_time_us: u64,
        body: &[u8],
        counters: &mut Counters,
        on_event: &mut impl FnMut(Event<'_>),
    ) {
        self.delivered = self.delivered.wrapping_add(1);
        count(&mut counters.delivered);
        on_event(Event::Data(Data {
            uid: self.uid,
            boot: self.boot,
            seq: header.seq,
            schema: header.schema,
            rev: header.rev,
            flags: header.flags,
            device_time_us,
            made: self.clock.and_then(|clock| clock.estimate(now_us, device_time_us)),
            body,
        }));
    }

    /// Passes on what follows without a hole.
    fn deliver_held(&mut self, now_us: u64, counters: &mut Counters, on_event: &mut impl FnMut(Event<'_>)) {
        while let Some(held) = self.take_held(self.delivered) {
            self.deliver(now_us, &held.header, held.device_time_us, &held.body, counters, on_event);
        }
    }

    /// Passes on everything before `oldest`, which the device no longer has: what is held, and the holes as lost.
    fn skip_to(
        &mut self,
        now_us: u64,
        oldest: u32,
        counters: &mut Counters,
        on_event: &mut impl FnMut(Event<'_>),
    ) {
        if !is_before(self.delivered, oldest) {
            return;
        }
        while is_before(self.delivered, oldest) {
            let first = self.delivered;
            // The hole ends at a held frame, which is within the window, or at `oldest`.
            let hole = oldest.wrapping_sub(first);
            let held = (0..hole).take(WINDOW).find(|ahead| self.is_held(first.wrapping_add(*ahead)));
            let end = first.wrapping_add(held.unwrap_or(hole));
            if end != first {
                self.delivered = end;
                let lost = Lost { uid: self.uid, boot: self.boot, first, last: end.wrapping_sub(1) };
                counters.lost = counters.lost.wrapping_add(lost.count());
                on_event(Event::Lost(lost));
            }
            self.deliver_held(now_us, counters, on_event);
        }
        self.deliver_held(now_us, counters, on_event);
    }

    fn is_held(&self, seq: u32) -> bool {
        self.held
            .get(seq as usize % WINDOW)
            .is_some_and(|slot| slot.as_ref().is_some_and(|held| held.header.seq == seq))
    }

    /// The device has restarted: passes on what is held, and the holes as lost, since nothing will fill them.
    pub(super) fn flush(
        &mut self,
        now_us: u64,
        counters: &mut Counters,
        on_event: &mut impl FnMut(Event<'_>),
    ) {
        let held = self.held.iter().flatten().map(|held| held.header.seq);
        if let Some(last) = held.max_by_key(|seq| seq.wrapping_sub(self.delivered)) {
            self.skip_to(now_us, last.wrapping_add(1), counters, on_event);
        }
    }

    pub(super) fn committed(&mut self, now_us: u64, through_seq: u32, credit: u8) {
        let next = through_seq.wrapping_add(1);
        if !is_before(self.committed, next) || is_before(self.delivered, next) {
            return;
        }
        self.unacknowledged = self.unacknowledged.saturating_add(next.wrapping_sub(self.committed));
        self.committed = next;
        // A device with little credit must not wait out the delay after each few frames.
        let enough = ACK_EVERY.min(u32::from(credit.min(self.window)) / 2).max(1);
        self.acknowledge_by(if self.unacknowledged >= enough {
            now_us
        } else {
            now_us.saturating_add(ACK_DELAY_US)
        });
    }

    /// Sends an acknowledgement at `at_us`, if none leaves before.
    pub(super) fn acknowledge_by(&mut self, at_us: u64) {
        if self.is_live() {
            self.ack_due_us = Some(self.ack_due_us.map_or(at_us, |due| due.min(at_us)));
        }
    }

    pub(super) fn on_time_request(&mut self, now_us: u64, request: &TimeReq) {
        self.time_request = Some((request.t1_us, now_us));
        if request.rtt_us > 0 {
            self.clock =
                Some(ClockOffset { offset_us: request.offset_us, rtt_us: request.rtt_us, told_us: now_us });
        }
    }

    pub(super) fn command(&mut self, code: u16, args: &[u8]) -> Result<(), CommandError> {
        if self.command.is_some() {
            return Err(CommandError::Busy);
        }
        let mut body = heapless::Vec::new();
        body.extend_from_slice(&code.to_le_bytes()).map_err(|_| CommandError::TooLong)?;
        body.extend_from_slice(args).map_err(|_| CommandError::TooLong)?;
        self.command = Some(body);
        Ok(())
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        if self.hello_ack_due || self.time_request.is_some() || self.command.is_some() {
            Some(0)
        } else {
            self.ack_due_us
        }
    }

    pub(super) fn poll_transmit(
        &mut self,
        now_us: u64,
        unix_us: u64,
        credit: u8,
        counters: &mut Counters,
        out: &mut [u8],
    ) -> Option<usize> {
        let (device, boot) = (self.device, self.boot);
        if core::mem::take(&mut self.hello_ack_due) {
            let credit = self.grant(credit);
            let body = HelloAck {
                uid: self.uid,
                unix_us,
                resume_seq: self.committed,
                device,
                max_frame: self.max_frame,
                window: self.window,
                credit,
                version: VERSION,
            };
            return encode(Kind::HelloAck, device, boot, &body.to_bytes(), out);
        }
        if let Some((t1_us, t2_us)) = self.time_request.take() {
            let body = TimeRsp { t1_us, t2_us, t3_us: now_us, unix_us };
            return encode(Kind::TimeRsp, device, boot, &body.to_bytes(), out);
        }
        if self.ack_due_us.is_some_and(|due| due <= now_us) {
            self.ack_due_us = None;
            self.unacknowledged = 0;
            count(&mut counters.acks);
            let credit = self.grant(credit);
            let body = Ack { next_expected: self.committed, held: self.bitmap(), credit };
            return encode(Kind::Ack, device, boot, &body.to_bytes(), out);
        }
        let body = self.command.take()?;
        encode(Kind::Cmd, device, boot, &body, out)
    }

    /// The credit to tell the device. What was allowed once stays allowed: the frames may be on the line already.
    fn grant(&mut self, credit: u8) -> u8 {
        let credit = credit.min(self.window);
        let edge = self.committed.wrapping_add(u32::from(credit));
        if is_before(self.edge, edge) {
            self.edge = edge;
        }
        credit
    }

    /// Bit `i`: `committed + i` has arrived.
    fn bitmap(&self) -> u32 {
        (0..u32::BITS)
            .filter(|bit| {
                let seq = self.committed.wrapping_add(*bit);
                is_before(seq, self.delivered) || self.is_held(seq)
            })
            .fold(0, |bits, bit| bits | 1 << bit)
    }
}
