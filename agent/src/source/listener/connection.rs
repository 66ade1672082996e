//! One connection: bytes and `now` in, packets and what is to be sent out. No socket, no clock.
//!
//! What concerns more than one connection, sessions and messages to subscribers, is in [`broker`](super::broker).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    broker::{Place, Taken},
    outbox::Capacity,
    packet::{self, PacketError, Publish, Reason},
    questions::QuestionId,
    subscriptions::SessionKey,
};
use crate::{
    config::{Listener, MqttVersion, Qos},
    env::Monotonic,
    intake::{Acknowledgement, Ticket, Unacknowledged},
    log::CRC_32C,
    source::{answered::Answered, window::Noted},
};

/// Topic aliases that a client may set. Each keeps a topic in memory.
pub(super) const ALIAS_MAXIMUM: u16 = 8;

/// Bytes that wait for a client that does not read, at which nothing more is read from it.
const OUT_BYTES_MAX: usize = 64 * 1024;

/// Largest CONNECT, in bytes: a will may have 64 KiB.
const CONNECT_BYTES_MAX: usize = 80 * 1024;

/// Why a client with a wrong password is not let in.
pub(super) const WRONG_PASSWORD: PacketError =
    PacketError { reason: Reason::BadUserNameOrPassword, what: "wrong user name or password" };

/// How much of its rate a client may use at once.
const BURST: Duration = Duration::from_secs(1);

/// Messages of a session that must not be stored again.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// With the digest of each: those of QoS 2 until PUBREL, and those of a broken connection that were not answered, or answered
    /// last: the client may not have read it.
    pub(super) by_id: BTreeMap<u16, Seen>,
    /// What is noted of these, and of those that the connection has.
    pub(super) noted: Noted,
}

/// A message that was stored, or was on its way to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// CRC-32C of the payload.
    pub(super) digest: u32,
    /// It is from before a restart, and may have been answered since it was noted.
    pub(super) restored: bool,
    /// It was answered by PUBACK, which may have gone with the connection.
    pub(super) answered: bool,
}

/// What it takes to answer a PUBLISH of QoS 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    packet_id: u16,
    qos: Qos,
    digest: u32,
    /// For MQTT 5.
    reason: Reason,
    /// Where the message is to be stored.
    place: Option<Place>,
}

impl Answer {
    /// The message, by packet id and digest.
    pub(super) fn message(&self) -> (u16, u32) {
        (self.packet_id, self.digest)
    }

    /// The same for what became of the message.
    pub(super) fn to(self, taken: Option<Taken>) -> Self {
        let reason = match taken {
            Some(taken) if taken.is_invalid => Reason::PayloadFormatInvalid,
            _ => self.reason,
        };
        Self { reason, place: taken.map(|taken| taken.place), ..self }
    }

    /// The same with another reason code than success.
    pub(super) fn with_reason(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }
}

/// What a PUBLISH is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// To be handed on, then answered unless it has QoS 0.
    New(Option<Answer>),
    /// Handed on before the last connection broke; to be answered when all that was handed on is durable.
    Known(Answer),
    /// Repeated on the same connection; its answer is on its way.
    UnderWay,
}

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// CONNECT has to come by this time.
    Connecting(Monotonic),
    /// CONNECT has come, and its password is checked.
    Asking(QuestionId),
    /// The password is right.
    Vouched,
    /// The password is wrong, and the client is told so at this time.
    Denied(Monotonic),
    /// It has a session.
    Serving(SessionKey),
    /// Nothing more is read; what is to be sent leaves, then the socket is closed.
    Closing,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Where it comes from.
    pub(super) address: IpAddr,
    /// What it speaks; before CONNECT the guess that makes a refusal readable to most.
    pub(super) version: MqttVersion,
    /// Who it is by its TLS certificate, where that counts.
    pub(super) certificate_user: Option<Box<str>>,
    /// How far it is.
    pub(super) phase: Phase,
    /// What it takes as a subscriber.
    pub(super) capacity: Capacity,
    /// What is to be sent.
    pub(super) out: BytesMut,
    /// The beginning of a packet whose rest has not come.
    tail: BytesMut,
    /// How long the packet that `tail` begins will be, in bytes; 0 while that is not known.
    packet_bytes: usize,
    /// PUBACKs and PUBRECs that wait for their commit, in PUBLISH order.
    waiting: Unacknowledged<Answer>,
    last_ticket: Ticket,
    /// Messages of QoS 1 that were answered.
    answered: Answered,
    /// Messages came since the last acknowledgement that were not sent before.
    goes_on: bool,
    /// Messages of QoS 2 of this connection that were answered by PUBREC and not released yet: they count as credit used.
    unreleased: usize,
    receive_maximum: usize,
    packet_bytes_max: usize,
    aliases: Vec<Box<str>>,
    /// One and a half times what was agreed on.
    silence_max: Option<Duration>,
    heard_at: Monotonic,
    /// When all that was read would have come at the allowed rate.
    rate: Rate,
    paid_until: Monotonic,
}

/// What a client may send.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_byte: Duration,
    per_message: Duration,
}

impl Rate {
    /// 0 is no limit.
    fn new(bytes_per_second: u32, messages_per_second: u32) -> Self {
        let share = |per_second: u32| Duration::from_secs(1).checked_div(per_second).unwrap_or_default();
        Self { per_byte: share(bytes_per_second), per_message: share(messages_per_second) }
    }
}

impl Connection {
    /// A connection from `address` that was accepted `now`.
    pub(super) fn new(now: Monotonic, address: IpAddr, config: &Listener) -> Self {
        Self {
            address,
            version: MqttVersion::V3,
            certificate_user: None,
            phase: Phase::Connecting(now + config.connect_timeout),
            capacity: Capacity { version: MqttVersion::V3, receive_maximum: 0, packet_bytes_max: 0 },
            out: BytesMut::new(),
            tail: BytesMut::new(),
            packet_bytes: 0,
            waiting: Unacknowledged::default(),
            last_ticket: Ticket::default(),
            answered: Answered::new(config.receive_maximum.into()),
            goes_on: false,
            unreleased: 0,
            receive_maximum: config.receive_maximum.into(),
            packet_bytes_max: config.max_packet_bytes,
            aliases: Vec::new(),
            silence_max: None,
            heard_at: now,
            rate: Rate::new(config.client_bytes_per_second, config.client_messages_per_second),
            paid_until: now,
        }
    }

    /// CONNECT was accepted: the client has `session` and sends something each `keep_alive_s`, unless that is 0.
    pub(super) fn serve(&mut self, session: SessionKey, keep_alive_s: u16, capacity: Capacity) {
        self.phase = Phase::Serving(session);
        self.capacity = capacity;
        let interval = Duration::from_secs(keep_alive_s.into());
        self.silence_max = (keep_alive_s != 0).then_some(interval * 3 / 2); // MQTT-3.1.2-22
    }

    /// The session, once CONNECT was accepted.
    pub(super) fn session(&self) -> Option<SessionKey> {
        match self.phase {
            Phase::Serving(session) => Some(session),
            _ => None,
        }
    }

    /// What is to be looked at now that `bytes` came: with what came before, or nothing while the packet that this begins is
    /// not whole.
    pub(super) fn take(&mut self, now: Monotonic, bytes: &[u8]) -> Bytes {
        self.paid_until =
            self.paid_until.max(now) + self.rate.per_byte * u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if self.tail.is_empty() {
            // Payloads are slices of this one copy until they are durable.
            return Bytes::copy_from_slice(bytes);
        }
        self.tail.extend_from_slice(bytes);
        if self.tail.len() < self.packet_bytes {
            return Bytes::new(); // a packet that comes byte by byte is not copied for each
        }
        self.packet_bytes = 0;
        std::mem::take(&mut self.tail).freeze()
    }

    /// Takes the next whole packet off the front of `input`; keeps the rest if there is none.
    ///
    /// # Errors
    /// What comes is no packet, or one beyond the limit.
    pub(super) fn next_packet(
        &mut self,
        now: Monotonic,
        input: &mut Bytes,
    ) -> Result<Option<Bytes>, PacketError> {
        let limit_bytes = match self.phase {
            Phase::Connecting(_) | Phase::Vouched => self.packet_bytes_max.min(CONNECT_BYTES_MAX),
            Phase::Serving(_) => self.packet_bytes_max,
            Phase::Asking(_) | Phase::Denied(_) => {
                self.tail.extend_from_slice(input);
                return Ok(None);
            }
            Phase::Closing => return Ok(None),
        };
        match packet::frame(input, limit_bytes)? {
            Some(size_bytes) if size_bytes <= input.len() => {
                self.heard_at = now;
                Ok(Some(input.split_to(size_bytes)))
            }
            size_bytes => {
                if input.has_remaining() {
                    self.packet_bytes = size_bytes.unwrap_or(0);
                    self.tail.reserve(self.packet_bytes.max(input.len()));
                    self.tail.extend_from_slice(input);
                }
                Ok(None)
            }
        }
    }

    /// Keeps `packet` and the `rest` behind it, to be taken again.
    pub(super) fn put_back(&mut self, packet: &[u8], rest: &[u8]) {
        self.tail.reserve(packet.len() + rest.len());
        self.tail.extend_from_slice(packet);
        self.tail.extend_from_slice(rest);
    }

    /// The packet that was put back.
    pub(super) fn kept_packet(&self) -> Option<&[u8]> {
        let size_bytes = packet::frame(&self.tail, CONNECT_BYTES_MAX).ok()??;
        self.tail.get(..size_bytes)
    }

    /// Bytes of packets that have not come whole, or were put back.
    pub(super) fn incomplete_bytes(&self) -> usize {
        self.tail.len()
    }

    /// The topic of `publish`, and what its alias is from now on (section 3.3.2.3.4).
    ///
    /// # Errors
    /// An alias that is not set, or beyond what CONNACK allowed.
    pub(super) fn topic<'a>(&'a mut self, publish: &Publish<'a>) -> Result<&'a str, PacketError> {
        let invalid = |what| PacketError { reason: Reason::TopicAliasInvalid, what };
        let Some(alias) = publish.alias else { return Ok(publish.topic) };
        if alias > ALIAS_MAXIMUM {
            return Err(invalid("a topic alias above the maximum"));
        }
        let index = usize::from(alias) - 1;
        if publish.topic.is_empty() {
            let known = self.aliases.get(index).filter(|topic| !topic.is_empty());
            return known.map(|topic| &**topic).ok_or(PacketError::protocol("a topic alias that is not set"));
        }
        if self.aliases.len() <= index {
            self.aliases.resize(index + 1, Box::default());
        }
        self.aliases[index] = publish.topic.into();
        Ok(publish.topic)
    }

    /// Judges a PUBLISH. Called in their order; `known` is the session's.
    ///
    /// # Errors
    /// More messages are unanswered than CONNACK allowed (section 3.3.4).
    pub(super) fn arrive(
        &mut self,
        publish: &Publish<'_>,
        known: &mut Known,
    ) -> Result<Arrival, PacketError> {
        self.paid_until = self.paid_until + self.rate.per_message;
        if publish.qos == Qos::AtMostOnce {
            return Ok(Arrival::New(None));
        }
        let digest = digest(publish);
        let answer = Answer {
            packet_id: publish.packet_id,
            qos: publish.qos,
            digest,
            reason: Reason::Success,
            place: None,
        };
        if !publish.dup {
            self.goes_on = true;
            if self.answered.is_given_anew(publish.packet_id, digest) {
                known.noted.rewrite();
            }
        }
        let answered = self.answered.get(publish.packet_id).map(|digest| Seen {
            digest,
            restored: false,
            answered: true,
        });
        let before =
            known.by_id.remove(&publish.packet_id).or(answered.filter(|_| publish.qos == Qos::AtLeastOnce));
        // A client that lost its memory gives an id to another message: only one that is equal is a repetition, and with QoS 1,
        // where the id is free after PUBACK, only one that says so.
        let repeated = before.is_some_and(|seen| {
            let certain = publish.qos == Qos::ExactlyOnce && !seen.restored;
            seen.digest == digest && (publish.dup || certain)
        });
        if publish.qos == Qos::ExactlyOnce {
            self.remember(known, publish.packet_id, digest, false);
        }
        if repeated {
            let under_way = self.waiting.iter().any(|waiting| waiting.packet_id == publish.packet_id);
            return Ok(if under_way { Arrival::UnderWay } else { Arrival::Known(answer) });
        }
        // MQTT 3.1.1 has no such limit; `may_read` holds it back, and what PUBREL does not release it must not pile up.
        let used = if self.version == MqttVersion::V5 { self.in_flight() } else { self.unreleased };
        if used >= self.receive_maximum {
            return Err(PacketError {
                reason: Reason::ReceiveMaximumExceeded,
                what: "more messages unanswered than allowed",
            });
        }
        Ok(Arrival::New(Some(answer)))
    }

    /// `answer` leaves when `ticket` is durable, or in its turn if nothing has to be; in PUBLISH order (MQTT-4.6.0-2).
    pub(super) fn answer(&mut self, ticket: Option<Ticket>, answer: Answer, known: &mut Known) {
        match ticket {
            None if self.waiting.is_empty() => self.write(answer, known),
            None => self.waiting.push(self.last_ticket, answer),
            Some(ticket) => {
                self.last_ticket = self.last_ticket.max(ticket);
                self.waiting.push(self.last_ticket, answer);
            }
        }
    }

    /// Answers what `acknowledgement` covers, of which a policy has `dropped` some.
    pub(super) fn acknowledged(
        &mut self,
        acknowledgement: Acknowledgement,
        dropped: &BTreeSet<Place>,
        known: &mut Known,
    ) {
        self.answered.begin();
        if std::mem::take(&mut self.goes_on) {
            // What was to come again came before what is new (MQTT-4.4.0-1, MQTT-4.6.0-1).
            let before = known.by_id.len();
            known.by_id.retain(|_, seen| !seen.answered);
            if known.by_id.len() < before {
                known.noted.rewrite();
            }
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        for answer in waiting.release(acknowledgement) {
            let is_dropped = answer.place.is_some_and(|place| dropped.contains(&place));
            let answer = if is_dropped { answer.with_reason(Reason::QuotaExceeded) } else { answer };
            self.write(answer, known);
        }
        if !waiting.is_empty() {
            self.waiting = waiting;
        }
        // Some clients send what is new first, and repeat after a second; a client that has left so many behind has it no more.
        if self.answered.is_full() {
            known.by_id.retain(|_, seen| !seen.restored);
        }
    }

    fn write(&mut self, answer: Answer, known: &mut Known) {
        let Answer { packet_id, qos, reason, digest, .. } = answer;
        if qos == Qos::ExactlyOnce {
            packet::pubrec(&mut self.out, self.version, packet_id, reason);
            if reason == Reason::Success || self.version == MqttVersion::V3 {
                self.unreleased += 1;
            } else {
                known.by_id.remove(&packet_id); // section 4.3.3: no PUBREL follows
                known.noted.release(packet_id);
            }
        } else {
            packet::puback(&mut self.out, self.version, packet_id, reason);
            // Of what it may not publish nothing was stored.
            if reason != Reason::NotAuthorized && !self.answered.push(packet_id, digest) {
                known.noted.rewrite();
            }
        }
    }

    /// PUBREL came: the id is free.
    pub(super) fn release(&mut self, packet_id: u16, known: &mut Known) {
        let reason = match known.by_id.remove(&packet_id) {
            Some(_) => {
                self.unreleased = self.unreleased.saturating_sub(1);
                known.noted.release(packet_id);
                Reason::Success
            }
            None => Reason::PacketIdentifierNotFound,
        };
        packet::pubcomp(&mut self.out, self.version, packet_id, reason);
    }

    /// The connection ends: what has no answer yet will come again, and must be known then; so may what was answered last.
    pub(super) fn close(&mut self, known: &mut Known) {
        for (packet_id, digest) in self.answered.take() {
            self.remember(known, packet_id, digest, true);
        }
        for answer in std::mem::take(&mut self.waiting).abandon() {
            self.remember(known, answer.packet_id, answer.digest, false);
        }
        self.tail = BytesMut::new();
        self.phase = Phase::Closing;
    }

    /// What was answered will not come again.
    pub(super) fn forget_answered(&mut self, known: &mut Known) {
        self.answered.take();
        known.noted.rewrite();
    }

    /// Keeps no more ids than two connections can leave behind: a client that never releases its own costs no memory, and may see
    /// a message stored twice.
    fn remember(&self, known: &mut Known, packet_id: u16, digest: u32, answered: bool) {
        while known.by_id.len() >= 2 * self.receive_maximum {
            known.by_id.pop_first();
        }
        known.by_id.insert(packet_id, Seen { digest, restored: false, answered });
    }

    /// Why the connection has to end now, if so.
    pub(super) fn overdue(&self, now: Monotonic) -> Option<PacketError> {
        let timeout =
            PacketError { reason: Reason::KeepAliveTimeout, what: "no packet within the time allowed" };
        match self.phase {
            Phase::Connecting(until) => (now >= until).then_some(timeout),
            Phase::Denied(at) => (now >= at).then_some(WRONG_PASSWORD),
            Phase::Serving(_) => {
                let silent = self.silence_max.is_some_and(|longest| now.since(self.heard_at) > longest);
                // A client whose packets we do not read is not silent.
                (silent && self.may_read(now)).then_some(timeout)
            }
            Phase::Asking(_) | Phase::Vouched | Phase::Closing => None,
        }
    }

    /// When the client may be read again as far as its rate goes.
    pub(super) fn read_at(&self) -> Monotonic {
        Monotonic::from_start(self.paid_until.since_start().saturating_sub(BURST))
    }

    /// Whether more is wanted: not from one that does not read its answers, or that has all its credit in flight.
    pub(super) fn may_read(&self, now: Monotonic) -> bool {
        matches!(self.phase, Phase::Connecting(_) | Phase::Serving(_))
            && self.out.len() < OUT_BYTES_MAX
            && (self.version == MqttVersion::V5 || self.waiting.len() < self.receive_maximum)
            && now >= self.read_at()
    }

    /// Whether it waits for the commit before it can send more.
    pub(super) fn is_at_its_limit(&self) -> bool {
        self.in_flight() >= self.receive_maximum && !self.waiting.is_empty()
    }

    /// Messages whose PUBACK the client may not have read.
    pub(super) fn answered(&self) -> &Answered {
        &self.answered
    }

    /// What is stored, or on its way to be, and has no answer.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (u16, u32)> {
        self.waiting.iter().map(Answer::message)
    }

    /// Messages without their PUBACK or PUBREC.
    pub(super) fn unacknowledged(&self) -> usize {
        self.waiting.len()
    }

    fn in_flight(&self) -> usize {
        self.waiting.len() + self.unreleased
    }
}

fn digest(publish: &Publish<'_>) -> u32 {
    CRC_32C.checksum(publish.payload)
}
