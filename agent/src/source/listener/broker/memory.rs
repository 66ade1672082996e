//! What a restart brings back: sessions with their subscriptions, which messages were stored and not answered, and the
//! retained messages. Wills, and what waited for a subscriber, go with the process.
//!
//! # Format of the notes
//! | key | value |
//! |-----|-------|
//! | `s` and the client identifier | a session, in postcard: seconds that it outlives its connection (u32), its user (option of string), and its subscriptions, a list of filter (string) and options (u8, as in SUBSCRIBE, section 3.8.3.1) |
//! | `w` and the client identifier | its messages that must not be stored again, by the CRC-32C of their payload: see [`window`] |
//! | `r` and the topic | its retained message, as a PUBLISH packet of MQTT 5 |
//!
//! A window is noted with the messages in it, so that it is durable if and only if they are, and again when they were
//! answered: with the next commit, since to hurry would cost each message a second sync. So a message that a device sends
//! with the packet id, the DUP flag and the very payload of its last one, and that a power cut took before it was stored,
//! passes for a repetition of that.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};

use super::Broker;
use crate::{
    config::MqttVersion,
    env::Monotonic,
    log::{Change, Remembered},
    source::{
        listener::{
            connection::{Connection, Seen},
            packet::{self, Packet, Property, SubscribeOptions},
            subscriptions::{Message, SessionKey},
        },
        window,
    },
};

/// Seconds that it outlives its connection, its user, its filters with their options.
type SessionNote<'a> = (u32, Option<&'a str>, Vec<(&'a str, u8)>);

const SESSION: u8 = b's';
const WINDOW: u8 = b'w';
const RETAINED: u8 = b'r';

/// What was changed since it was noted.
#[derive(Debug, Default)]
pub(super) struct Memory {
    sessions: BTreeSet<SessionKey>,
    windows: BTreeSet<SessionKey>,
    retained: BTreeSet<Box<str>>,
    /// Sessions that were noted and have ended.
    ended: Vec<Arc<str>>,
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
            let client_id = Arc::clone(&session.client_id);
            self.memory.forget(key, client_id);
        }
    }

    /// A message of the session was taken or answered.
    pub(super) fn note_window(&mut self, key: SessionKey) {
        if self.sessions[key].noted {
            self.memory.windows.insert(key);
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
        let gone = ended.iter().flat_map(|id| [(key(SESSION, id), None), (key(WINDOW, id), None)]);
        let mut changes: Vec<Change> = gone.collect();
        changes.extend(sessions.into_iter().map(|session| {
            let state = &self.sessions[session];
            let options = |filter| self.subscriptions.options(filter, session).map_or(0, |o| o.bits());
            let filters: Vec<_> = state.filters.iter().map(|filter| (&**filter, options(filter))).collect();
            let expiry_s = u32::try_from(state.expiry.as_secs()).unwrap_or(u32::MAX);
            let value = postcard::to_stdvec(&(expiry_s, state.user.as_deref(), filters))
                .expect("memory is the only limit");
            (key(SESSION, &state.client_id), Some(value.into()))
        }));
        changes.extend(windows.into_iter().map(|session| {
            let state = &self.sessions[session];
            let connection = state.connection.map(|connection| &self.connections[connection]);
            let unanswered = connection.into_iter().flat_map(Connection::unanswered);
            let known = state.known.iter().map(|(id, seen)| (*id, seen.digest));
            // Those of QoS 2 are known from their PUBLISH on.
            let others = unanswered.filter(|(id, _)| !state.known.contains_key(id));
            let value = window::encode(known.chain(others));
            (key(WINDOW, &state.client_id), (!value.is_empty()).then_some(value))
        }));
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
            let Ok(name) = str::from_utf8(name) else { continue };
            match kind {
                SESSION => self.restore_session(now, name, value),
                // `w` comes behind `s`.
                WINDOW => {
                    let Some(session) = self.clients.get(name) else { continue };
                    let seen = |digest| Seen { digest, restored: true, answered: false };
                    let window = window::decode(value).into_iter();
                    self.sessions[*session].known = window.map(|(id, digest)| (id, seen(digest))).collect();
                }
                RETAINED => self.restore_retained(now, Bytes::copy_from_slice(value)),
                _ => {}
            }
        }
        self.memory = Memory::default();
    }

    fn restore_session(&mut self, now: Monotonic, client_id: &str, value: &[u8]) {
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
    pub(super) fn forget(&mut self, key: SessionKey, client_id: Arc<str>) {
        self.sessions.remove(&key);
        self.windows.remove(&key);
        self.ended.push(client_id);
    }
}

fn key(kind: u8, name: &str) -> Box<[u8]> {
    [&[kind], name.as_bytes()].concat().into()
}
