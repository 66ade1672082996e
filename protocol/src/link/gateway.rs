//! The gateway's end: puts readings back in order, passes each on once, and acknowledges what its host has made durable.
//!
//! A reading goes through three counters of its session, each at or before the next: `committed` (durable, acknowledged),
//! `delivered` (passed to the host), `edge` (first one that the device was not allowed to send).
//!
//! The host keeps three promises:
//!
//! 1. It answers [`Event::Hello`] with `needs_accept` by [`Gateway::accept`], from its own durable record of the device.
//! 2. It makes [`Event::Data`] and [`Event::Lost`] durable in the order in which they come, then calls [`Gateway::committed`].
//! 3. It has room for what the credit allows: after a call of [`Gateway::set_credit`] with 0, up to one window per device still comes.

mod session;

use self::session::Session;
use super::control::{Ack, CMD_CODE_LEN, CMD_SAY_HELLO, DataExtension, Hello, HelloAck, TimeReq, TimeRsp};
use super::{COMMAND_ARGS_MAX, WINDOW_DEFAULT, WINDOW_MAX};
use crate::decoder::{DecodeCounters, Decoder};
use crate::frame::{FRAME_LEN_DEFAULT, FRAME_LEN_MAX, Flags, Frame, Header, Kind, VERSION};
use crate::partition::murmur2;

/// Pause between two requests for a HELLO, so that a window of frames from a stranger is answered once.
pub const ASK_HELLO_EVERY_US: u64 = 100_000;

/// Something that the host must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A device greets.
    Hello(DeviceInfo),
    /// A reading: the next one of its device, once.
    Data(Data<'a>),
    /// Readings that will never come: the device dropped them before they got through.
    Lost(Lost),
    /// A line of text for people.
    Log {
        /// Who says it.
        uid: u64,
        /// 1 error, 2 warning, 3 information, 4 debug.
        level: u8,
        /// UTF-8, if the device keeps to the rules.
        text: &'a [u8],
    },
}

/// What a device says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number for life.
    pub uid: u64,
    /// Its boot number.
    pub boot: u32,
    /// Firmware version: major, minor, patch in 8, 8 and 16 bits.
    pub firmware: u32,
    /// The schemas that it knows. Another value than [`crate::payload::CATALOG_HASH`] is worth a warning, no more.
    pub catalog_hash: u32,
    /// Sequence number of its next new reading.
    pub next_seq: u32,
    /// Sequence number of the oldest reading that it still keeps.
    pub oldest_unacked: u32,
    /// Readings that it dropped in this boot.
    pub lost: u32,
    /// The session waits for [`Gateway::accept`]. Otherwise the gateway knows it already and goes on by itself.
    pub needs_accept: bool,
}

/// A reading as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data<'a> {
    /// Who made it. `(uid, boot, seq)` names the reading for ever.
    pub uid: u64,
    /// The boot in which it was made.
    pub boot: u32,
    /// Its number in that boot.
    pub seq: u32,
    /// What the body is: see [`crate::payload`].
    pub schema: u16,
    /// Revision of the schema.
    pub rev: u8,
    /// Flags of the frame that brought it.
    pub flags: Flags,
    /// When it was made, in us of the device's monotonic clock.
    pub device_time_us: u64,
    /// The same moment on the gateway's clock, once device and gateway have exchanged timestamps.
    pub made: Option<Estimate>,
    /// The payload.
    pub body: &'a [u8],
}

/// A moment on the gateway's monotonic clock that is known up to an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// The moment, in us.
    pub at_us: u64,
    /// It may be off by this much either way.
    pub error_us: u64,
}

/// A run of readings that will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Whose they were.
    pub uid: u64,
    /// In which boot.
    pub boot: u32,
    /// The first number.
    pub first: u32,
    /// The last number.
    pub last: u32,
}

impl Lost {
    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.last.wrapping_sub(self.first).wrapping_add(1)
    }
}

/// What a gateway has counted since it was made. The counters wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Readings passed to the host.
    pub delivered: u32,
    /// Readings reported as lost.
    pub lost: u32,
    /// DATA that had come before.
    pub duplicates: u32,
    /// DATA that came before an older one, and was held.
    pub reordered: u32,
    /// DATA beyond what the credit allowed: dropped, to be sent again.
    pub beyond_credit: u32,
    /// Sound frames whose content makes no sense: dropped.
    pub malformed: u32,
    /// Frames of devices that had not greeted: dropped, and asked to.
    pub strangers: u32,
    /// HELLOs refused since every session is in use, or the versions do not meet.
    pub refused: u32,
    /// Acknowledgements sent.
    pub acks: u32,
}

/// Adds one.
fn count(counter: &mut u32) {
    *counter = counter.wrapping_add(1);
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandError {
    /// No session of that device: wait until it greets.
    UnknownDevice,
    /// The previous one has not left yet: try again after the next transmission.
    Busy,
    /// More than [`COMMAND_ARGS_MAX`] bytes of arguments. Never retried.
    TooLong,
}

/// The gateway's end of one serial line, for up to `SESSIONS` devices on it.
///
/// Frames have up to `FRAME` bytes before COBS; `WINDOW`, a power of two, is what may be in flight per device. It takes about
/// `FRAME * (1 + SESSIONS * WINDOW)` bytes of memory.
#[derive(Debug)]
pub struct Gateway<
    const FRAME: usize = FRAME_LEN_MAX,
    const SESSIONS: usize = 4,
    const WINDOW: usize = WINDOW_DEFAULT,
> {
    decoder: Decoder<FRAME>,
    table: Table<FRAME, SESSIONS, WINDOW>,
}

/// Everything but the decoder, which lends out frames while this changes.
#[derive(Debug)]
struct Table<const FRAME: usize, const SESSIONS: usize, const WINDOW: usize> {
    sessions: heapless::Vec<Session<FRAME, WINDOW>, SESSIONS>,
    credit: u8,
    /// Unix time minus the gateway's monotonic clock.
    unix_offset_us: Option<i64>,
    /// Short id and boot of a device that is to greet.
    ask: Option<(u16, u32)>,
    asked_us: Option<u64>,
    /// The session whose turn it is to transmit.
    turn: usize,
    counters: Counters,
}

impl<const FRAME: usize, const SESSIONS: usize, const WINDOW: usize> Default
    for Gateway<FRAME, SESSIONS, WINDOW>
{
    fn default() -> Self {
        Self::new()
    }
}

impl<const FRAME: usize, const SESSIONS: usize, const WINDOW: usize> Gateway<FRAME, SESSIONS, WINDOW> {
    /// A gateway that knows no device yet, with credit for the whole window.
    #[must_use]
    pub fn new() -> Self {
        const {
            assert!(
                FRAME >= FRAME_LEN_DEFAULT && FRAME <= FRAME_LEN_MAX,
                "devices send frames of the default size unasked"
            );
            assert!(WINDOW <= WINDOW_MAX, "the bitmap has no more bits");
            assert!(
                WINDOW.is_power_of_two(),
                "slots are found by the low bits of the sequence number, also where it wraps"
            );
            assert!(SESSIONS > 0);
        }
        Self {
            decoder: Decoder::new(),
            table: Table {
                sessions: heapless::Vec::new(),
                credit: u8::MAX,
                unix_offset_us: None,
                ask: None,
                asked_us: None,
                turn: 0,
                counters: Counters::default(),
            },
        }
    }

    /// Takes bytes from the line, any number, and calls `on_event` for what they bring.
    pub fn receive(&mut self, now_us: u64, mut bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) {
        while let Some(outcome) = self.decoder.next(&mut bytes) {
            if let Ok(frame) = outcome {
                self.table.on_frame(now_us, &frame, &mut on_event);
            }
        }
    }

    /// Lets a device that greeted begin. `next_seq` is the number after the last one of `(uid, boot)` that the host has made
    /// durable: the device forgets everything before it. While anything of that boot is still on its way to the disk (this
    /// gateway is younger than the host), the host waits with the answer; the device greets again.
    ///
    /// `None` says that the host has nothing of this boot, and begins with the oldest reading that the device keeps. A host that
    /// knows the device, but not this boot, passes `Some(0)`: then what the device dropped before it greeted is reported as
    /// [`Event::Lost`].
    ///
    /// Without a session that waits for it, it does nothing.
    pub fn accept(&mut self, uid: u64, boot: u32, next_seq: Option<u32>) {
        if let Some(session) = self.table.session(uid, boot) {
            session.accept(next_seq);
        }
    }

    /// Notes that the host has made everything of `(uid, boot)` up to and with `through_seq` durable: the last
    /// [`Data::seq`] or [`Lost::last`]. Only this brings an acknowledgement about.
    ///
    /// What was never passed to the host cannot be committed: such a call does nothing.
    pub fn committed(&mut self, now_us: u64, uid: u64, boot: u32, through_seq: u32) {
        let credit = self.table.credit;
        if let Some(session) = self.table.session(uid, boot) {
            session.committed(now_us, through_seq, credit);
        }
    }

    /// How many frames each device may have in flight, at most the window; 0 holds all of them back. They are told at once.
    pub fn set_credit(&mut self, now_us: u64, credit: u8) {
        if self.table.credit != credit {
            self.table.credit = credit;
            for session in &mut self.table.sessions {
                session.acknowledge_by(now_us);
            }
        }
    }

    /// Tells the gateway the Unix time in us, or that it is not known (`None`). Devices get it with their next exchange.
    pub fn set_unix_us(&mut self, now_us: u64, unix_us: Option<u64>) {
        self.table.unix_offset_us = unix_us.map(|unix_us| unix_us.wrapping_sub(now_us).cast_signed());
    }

    /// Sends a command of the application to a device, once and unacknowledged. Codes below
    /// [`super::control::CMD_APPLICATION_FIRST`] are the link's own.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn command(&mut self, uid: u64, code: u16, args: &[u8]) -> Result<(), CommandError> {
        // A device that restarted has two sessions for a while: the later one is at the end.
        let sessions = &mut self.table.sessions;
        let session = sessions.iter_mut().rev().find(|session| session.uid == uid && session.is_live());
        session.ok_or(CommandError::UnknownDevice)?.command(code, args)
    }

    /// Writes the next frame to send to the start of `out` and returns its length; `None` if there is nothing to send now.
    ///
    /// Call it when the line is free, until it returns `None`. `out` must have [`crate::frame::max_wire_len`] of
    /// [`super::TO_DEVICE_LEN_MAX`] bytes: a frame that does not fit is lost.
    pub fn poll_transmit(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        self.table.poll_transmit(now_us, out)
    }

    /// When to call [`Self::poll_transmit`] again even if nothing was received, sent or committed; a time in the past means now,
    /// `None` never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let ask = self.table.ask.map(|_| self.table.ask_due_us());
        self.table.sessions.iter().filter_map(Session::deadline).chain(ask).min()
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.table.counters
    }

    /// What the line has brought so far.
    #[must_use]
    pub fn decode_counters(&self) -> DecodeCounters {
        self.decoder.counters()
    }
}

impl<const FRAME: usize, const SESSIONS: usize, const WINDOW: usize> Table<FRAME, SESSIONS, WINDOW> {
    fn session(&mut self, uid: u64, boot: u32) -> Option<&mut Session<FRAME, WINDOW>> {
        self.sessions.iter_mut().find(|session| session.uid == uid && session.boot == boot)
    }

    fn on_frame(&mut self, now_us: u64, frame: &Frame<'_>, on_event: &mut impl FnMut(Event<'_>)) {
        let header = &frame.header;
        match header.kind {
            Kind::Hello => match Hello::from_bytes(frame.body) {
                Some(hello) => self.on_hello(now_us, header.boot, &hello, on_event),
                None => count(&mut self.counters.malformed),
            },
            Kind::Data | Kind::TimeReq | Kind::Log => self.on_session_frame(now_us, frame, on_event),
            // What gateways send: the echo of a two-wire line.
            Kind::HelloAck | Kind::Ack | Kind::TimeRsp | Kind::Cmd => {}
        }
    }

    fn on_session_frame(&mut self, now_us: u64, frame: &Frame<'_>, on_event: &mut impl FnMut(Event<'_>)) {
        let header = &frame.header;
        let known =
            self.sessions.iter_mut().find(|known| known.device == header.device && known.boot == header.boot);
        let Some(session) = known else {
            count(&mut self.counters.strangers);
            self.ask = Some((header.device, header.boot));
            return;
        };
        session.heard_us = now_us;
        if !session.is_live() {
            return;
        }
        let sound = match header.kind {
            Kind::Data => match DataExtension::from_bytes(frame.extension) {
                Some(extension) => session.on_data(now_us, frame, &extension, &mut self.counters, on_event),
                None => false,
            },
            Kind::TimeReq => match TimeReq::from_bytes(frame.body) {
                Some(request) => {
                    session.on_time_request(now_us, &request);
                    true
                }
                None => false,
            },
            _ => match frame.body.split_first() {
                Some((&level, text)) => {
                    on_event(Event::Log { uid: session.uid, level, text });
                    true
                }
                None => false,
            },
        };
        if !sound {
            count(&mut self.counters.malformed);
        }
    }

    fn on_hello(&mut self, now_us: u64, boot: u32, hello: &Hello, on_event: &mut impl FnMut(Event<'_>)) {
        let (oldest_version, newest_version) = (hello.versions >> 4, hello.versions & 0x0f);
        if !(oldest_version..=newest_version).contains(&VERSION) {
            count(&mut self.counters.refused);
            return;
        }
        if self.session(hello.uid, boot).is_none() && !self.open_session(now_us, boot, hello, on_event) {
            count(&mut self.counters.refused);
            return;
        }
        let Some(session) = self.session(hello.uid, boot) else { return };
        session.on_hello(now_us, hello);
        on_event(Event::Hello(DeviceInfo {
            uid: hello.uid,
            boot,
            firmware: hello.firmware,
            catalog_hash: hello.catalog_hash,
            next_seq: hello.next_seq,
            oldest_unacked: hello.oldest_unacked,
            lost: hello.lost,
            needs_accept: !session.is_live(),
        }));
    }

    /// Makes a session; `false` if there is no room for it.
    fn open_session(
        &mut self,
        now_us: u64,
        boot: u32,
        hello: &Hello,
        on_event: &mut impl FnMut(Event<'_>),
    ) -> bool {
        for earlier in self.sessions.iter_mut().filter(|earlier| earlier.uid == hello.uid) {
            earlier.flush(now_us, &mut self.counters, on_event);
        }
        if self.sessions.is_full() {
            // The one that was silent for longest, unless something of it is still on its way to the disk: its device, if it is
            // there at all, will be asked to greet again.
            let idle = self.sessions.iter().enumerate().filter(|(_, session)| session.is_idle());
            let Some((index, _)) = idle.min_by_key(|(_, session)| session.heard_us) else { return false };
            self.sessions.remove(index);
        }
        let device = self.free_short_id(hello.uid, boot);
        self.sessions.push(Session::new(now_us, device, boot, hello)).is_ok()
    }

    /// A short id that hardly another device has, even after this gateway restarts and gives out ids anew: a frame with a
    /// stale id must not pass for one of a neighbour on the same line.
    fn free_short_id(&self, uid: u64, boot: u32) -> u16 {
        let mut key = [0; 12];
        key[..8].copy_from_slice(&uid.to_le_bytes());
        key[8..].copy_from_slice(&boot.to_le_bytes());
        let [b0, b1, ..] = murmur2(&key).to_le_bytes();
        let mut id = u16::from_le_bytes([b0, b1]);
        while id == 0 || self.sessions.iter().any(|session| session.device == id) {
            id = id.wrapping_add(1);
        }
        id
    }

    fn ask_due_us(&self) -> u64 {
        self.asked_us.map_or(0, |asked| asked.saturating_add(ASK_HELLO_EVERY_US))
    }

    fn poll_transmit(&mut self, now_us: u64, out: &mut [u8]) -> Option<usize> {
        if let Some((device, boot)) = self.ask
            && self.ask_due_us() <= now_us
        {
            self.ask = None;
            self.asked_us = Some(now_us);
            return encode(Kind::Cmd, device, boot, &CMD_SAY_HELLO.to_le_bytes(), out);
        }
        let unix_us = self.unix_offset_us.and_then(|offset| now_us.checked_add_signed(offset)).unwrap_or(0);
        let len = self.sessions.len();
        for step in 0..len {
            let index = (self.turn + step) % len;
            let session = self.sessions.get_mut(index)?;
            if let Some(written) =
                session.poll_transmit(now_us, unix_us, self.credit, &mut self.counters, out)
            {
                self.turn = (index + 1) % len;
                return Some(written);
            }
        }
        None
    }
}

fn encode(kind: Kind, device: u16, boot: u32, body: &[u8], out: &mut [u8]) -> Option<usize> {
    Frame { header: Header::control(kind, device, boot), extension: &[], body }.encode(out).ok()
}
