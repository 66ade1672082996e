//! What a restart brings back: sessions with their subscriptions, which messages were stored and not answered, and the
//! retained messages. Wills, and what waited for a subscriber, go with the process.
//!
//! # Format of the notes
//! | key | value |
//! |-----|-------|
//! | `s` and the client identifier | a session, in postcard: seconds that it outlives its connection (u32), its user (option of string), and its subscriptions, a list of filter (string) and options (u8, as in SUBSCRIBE, section 3.8.3.1) |
//! | `w` and the client identifier | its messages that must not be stored again, by the CRC-32C of their payload: see [`mod@window`] |
//! | `x`, a number (u8) and the client identifier | a piece, of what came since `w` was noted |
//! | `r` and the topic | its retained message, as a PUBLISH packet of MQTT 5 |
//!
//! A window is noted with the messages in it, so that it is durable if and only if they are. Those that were answered stay in
//! it, since the client may not have read it: as many as it may have without an answer, or what [`ANSWERED_MAX`] allows where
//! there are many sessions, and at least those that were answered last. So a message that a device sends with the packet id, the DUP
//! flag and the very payload of one shortly before, and that a power cut took before it was stored, passes for a repetition of that.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};

use super::Broker;
use crate::{
    config::MqttVersion,
    env::Monotonic,
    log::{Change, Remembered},
    source::{
        listener::{
            connection::{Connection, Known, Seen},
            packet::{self, Packet, Property, SubscribeOptions},
            subscriptions::{Message, SessionKey},
        },
        window::{self, Noted, Part, Window},
    },
};

/// Seconds that it outlives its connection, its user, its filters with their options.
type SessionNote<'a> = (u32, Option<&'a str>, Vec<(&'a str, u8)>);

const SESSION: u8 = b's';
const WINDOW: u8 = b'w';
const PIECE: u8 = b'x';
const RETAINED: u8 = b'r';

/// Messages that are noted beyond what has to be, over all sessions: they take half a mebibyte of the notes, and their pieces as much.
const ANSWERED_MAX: usize = (512 << 10) / 6;

/// What was changed since it was noted.
#[derive(Debug, Default)]
pub(super) struct Memory {
    sessions: BTreeSet<SessionKey>,
    windows: BTreeSet<SessionKey>,
    retained: BTreeSet<Box<str>>,
    /// Keys of sessions that were noted and have ended.
    ended: Vec<Box<[u8]>>,
}

impl Memory {
    /// A retained message was set or removed.
    pub(super) fn retained(&mut self, topic: &str) {
        self.retained.insert(topic.into());
    }
}

impl Broker {
    /// The session of `key` was begun, or changed in what is noted of it.
    pub(super) fn note_session(&mut self, key: SessionKey) {
        let session = &mut self.sessions[key];
        if !session.expiry.is_zero() {
            self.memory.sessions.insert(key);
            session.noted = true;
        } else if std::mem::take(&mut session.noted) {
            let noted = std::mem::take(&mut session.known.noted);
            self.memory.forget(key, &session.client_id, &noted);
        }
    }

    /// A message of the session was taken or answered.
    pub(super) fn note_window(&mut self, key: SessionKey) {
        let session = &mut self.sessions[key];
        if session.noted {
            self.memory.windows.insert(key);
        } else {
            session.known.noted.skip();
        }
    }

    /// Whether something is to be noted that should not wait for the next message.
    pub(in crate::source::listener) fn has_news(&self) -> bool {
        let Memory { sessions, retained, ended, .. } = &self.memory;
        !(sessions.is_empty() && retained.is_empty() && ended.is_empty())
    }

    /// What is to be noted together with all messages that were taken since the last call.
    pub(in crate::source::listener) fn changes(&mut self, now: Monotonic) -> Vec<Change> {
        let Memory { sessions, windows, retained, ended } = std::mem::take(&mut self.memory);
        let mut changes: Vec<Change> = ended.into_iter().map(|key| (key, None)).collect();
        changes.extend(sessions.into_iter().map(|session| {
            let state = &self.sessions[session];
            let options = |filter| self.subscriptions.options(filter, session).map_or(0, |o| o.bits());
            let filters: Vec<_> = state.filters.iter().map(|filter| (&**filter, options(filter))).collect();
            let expiry_s = u32::try_from(state.expiry.as_secs()).unwrap_or(u32::MAX);
            let value = postcard::to_stdvec(&(expiry_s, state.user.as_deref(), filters))
                .expect("memory is the only limit");
            (key(SESSION, &state.client_id), Some(value.into()))
        }));
        let answered_max = ANSWERED_MAX / self.sessions.len().max(1);
        for session in windows {
            let state = &mut self.sessions[session];
            let connection = state.connection.map(|connection| &self.connections[connection]);
            let parts = if state.known.noted.is_due(messages(&state.known, connection, answered_max)) {
                let window = window(&state.known, connection, answered_max);
                state.known.noted.whole(&window)
            } else {
                state.known.noted.further()
            };
            let client_id = &state.client_id;
            changes.extend(parts.into_iter().map(|(part, value)| (window_key(part, client_id), value)));
        }
        changes.extend(retained.into_iter().map(|topic| {
            let packet = self.retained.get(&topic).and_then(|message| {
                let mut packet = BytesMut::new();
                packet::publish(&mut packet, MqttVersion::V5, &message.outgoing(now)?);
                Some(packet.as_ref().into())
            });
            (key(RETAINED, &topic), packet)
        }));
        changes
    }

    /// Goes on with what a life before has noted. What is not understood, and more sessions than allowed, are passed over.
    pub(in crate::source::listener) fn restore(&mut self, now: Monotonic, remembered: &Remembered) {
        for (key, value) in remembered {
            let Some((&kind, name)) = key.split_first() else { continue };
            match kind {
                SESSION => self.restore_session(now, name, value),
                // `w` comes behind `s`, and `x` behind `w`.
                WINDOW => self.restore_window(None, name, value),
                PIECE => {
                    let Some((number, name)) = name.split_first() else { continue };
                    self.restore_window(Some(*number), name, value);
                }
                RETAINED => self.restore_retained(now, Bytes::copy_from_slice(value)),
                _ => {}
            }
        }
        self.memory = Memory::default();
    }

    fn restore_window(&mut self, part: Part, client_id: &[u8], value: &[u8]) {
        let Some(session) = str::from_utf8(client_id).ok().and_then(|id| self.clients.get(id)) else {
            return;
        };
        let Known { by_id, noted } = &mut self.sessions[*session].known;
        noted.restore(part);
        let mut window: Window =
            std::mem::take(by_id).into_iter().map(|(id, seen)| (id, seen.digest)).collect();
        window::decode(&mut window, value);
        let seen = |digest| Seen { digest, restored: true, answered: false };
        by_id.extend(window.into_iter().map(|(id, digest)| (id, seen(digest))));
    }

    fn restore_session(&mut self, now: Monotonic, client_id: &[u8], value: &[u8]) {
        let Ok(client_id) = str::from_utf8(client_id) else { return };
        let Ok((expiry_s, user, filters)) = postcard::from_bytes::<SessionNote<'_>>(value) else { return };
        if self.sessions.len() >= 2 * self.config.max_connections {
            return;
        }
        let session = self.new_session(client_id);
        for (filter, bits) in filters {
            if self.subscriptions.insert(filter, session, SubscribeOptions::from_bits(bits)).is_ok() {
                self.sessions[session].filters.insert(filter.into());
            }
        }
        let state = &mut self.sessions[session];
        state.noted = true;
        state.user = user.map(Box::from);
        state.expiry = Duration::from_secs(expiry_s.into()).min(self.config.session_expiry_max);
        // Nobody knows how long the agent was away: its client gets its whole time.
        state.ends_at = Some(now + state.expiry);
    }

    fn restore_retained(&mut self, now: Monotonic, packet: Bytes) {
        let Ok(Packet::Publish(publish)) = packet::decode(MqttVersion::V5, &packet) else { return };
        let expiry_s = publish.properties.number(Property::MESSAGE_EXPIRY);
        let properties = publish.properties.iter().filter(|p| p.id != Property::MESSAGE_EXPIRY);
        let message = Message {
            topic: publish.topic.into(),
            payload: packet.slice_ref(publish.payload),
            qos: publish.qos,
            retain: true,
            properties: properties.flat_map(|property| property.raw).copied().collect(),
            expires_at: expiry_s.map(|s| now + Duration::from_secs(s.into())),
        };
        // A bound that was lowered since lets the rest go.
        let _ = self.retained.set(Arc::new(message));
    }
}

impl Memory {
    /// The session of `key` has ended.
    pub(super) fn forget(&mut self, session: SessionKey, client_id: &str, noted: &Noted) {
        self.sessions.remove(&session);
        self.windows.remove(&session);
        self.ended.push(key(SESSION, client_id));
        self.ended.extend(noted.parts().map(|part| window_key(part, client_id)));
    }
}

/// What must be known as stored after a crash: what has no answer, and `answered_max` messages that have one, but at least those of
/// the last acknowledgement. The oldest come first, as far as that is known.
fn window(known: &Known, connection: Option<&Connection>, answered_max: usize) -> Vec<(u16, u32)> {
    let may_be_answered = |seen: &Seen| seen.restored || seen.answered;
    let of_before = |answered| {
        let those = known.by_id.iter().filter(move |(_, seen)| may_be_answered(seen) == answered);
        those.map(|(id, seen)| (*id, seen.digest)).collect::<Vec<_>>()
    };
    let [mut answered, mut unanswered] = [true, false].map(of_before);
    let mut least = 0;
    if let Some(connection) = connection {
        answered.extend(connection.answered().iter());
        least = connection.answered().latest();
        // Those of QoS 2 are known from their PUBLISH on.
        unanswered.extend(connection.unanswered().filter(|(id, _)| !known.by_id.contains_key(id)));
    }
    let too_many = answered.len().saturating_sub(answered_max.max(least));
    answered.drain(..too_many);
    answered.extend(unanswered);
    answered
}

/// How many these are at most.
fn messages(known: &Known, connection: Option<&Connection>, answered_max: usize) -> usize {
    let of_connection = connection.map_or(0, |connection| {
        let answered = connection.answered();
        answered.iter().len().min(answered_max.max(answered.latest())) + connection.unacknowledged()
    });
    known.by_id.len() + of_connection
}

fn key(kind: u8, name: &str) -> Box<[u8]> {
    [&[kind], name.as_bytes()].concat().into()
}

fn window_key(part: Part, client_id: &str) -> Box<[u8]> {
    match part {
        None => key(WINDOW, client_id),
        Some(number) => [&[PIECE, number], client_id.as_bytes()].concat().into(),
    }
}
