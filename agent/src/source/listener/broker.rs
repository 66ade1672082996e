//! What the listener decides, without sockets: who is let in, which session goes on, what is stored, who gets a message, when
//! a will is due. [`Connection`] has the rules of one connection.
//!
//! The driver calls [`Broker::received`] with what a socket brought, [`Broker::acknowledged`] when a commit is done and
//! [`Broker::expire`] now and then; then it sends [`Broker::output`] of every connection that [`Broker::touched`] names, and
//! closes those that are [done](Broker::is_done).

mod admission;
mod memory;
mod messages;
mod sessions;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use slab::Slab;

use self::{
    admission::Admission,
    memory::Memory,
    messages::will_packet,
    sessions::{Session, StoredWill},
};
use super::{
    access::{Access, Client},
    connection::{ALIAS_MAXIMUM, Connection, Known, Phase},
    outbox::Capacity,
    packet::{self, ConnAck, Connect, Packet, PacketError, Properties, Reason, TOPIC_BYTES_MAX},
    questions::Questions,
    subscriptions::{Retained, SessionKey, Subscriptions},
};
use crate::{
    config::{Listener, MqttVersion},
    env::{Entropy, Monotonic},
    intake::{Acknowledgement, Ticket},
};

/// Most bytes of packets that have not come whole, over all connections. Beyond, the largest of them ends its connection.
const INCOMPLETE_BYTES_MAX: usize = 8 << 20;

/// Messages of QoS 1 that a subscriber may have unacknowledged, if it takes as many.
const OUT_IN_FLIGHT_MAX: u16 = 64;

/// Which connection, by its place in the broker.
pub(super) type ConnectionKey = usize;

/// A message that came.
#[derive(Clone, Debug)]
pub(super) struct Incoming<'a> {
    /// Topic, checked.
    pub(super) topic: &'a str,
    /// Payload.
    pub(super) payload: Bytes,
    /// MQTT 5 properties.
    pub(super) properties: Properties<'a>,
}

/// A message that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// What it becomes durable with, and its place there.
    pub(super) place: Place,
    /// It does not decode, and its client is to be told so.
    pub(super) is_invalid: bool,
}

/// The ticket of a submission, and which of its records.
pub(super) type Place = (Ticket, usize);

/// Where messages are made durable.
pub(super) trait Store {
    /// Takes a message; `None` if it is not to be stored.
    fn store(&mut self, message: Incoming<'_>) -> Option<Taken>;

    /// The ticket that covers all that was taken.
    fn last_ticket(&self) -> Ticket;
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client said so; the will goes with it unless it said otherwise.
    Disconnected {
        /// The will is wanted.
        with_will: bool,
    },
    /// The socket broke.
    Lost,
    /// We have a reason to end it.
    Refused(PacketError),
}

impl From<PacketError> for End {
    fn from(error: PacketError) -> Self {
        Self::Refused(error)
    }
}

fn refused(reason: Reason, what: &'static str) -> End {
    End::Refused(PacketError { reason, what })
}

/// The server without its sockets.
pub(super) struct Broker {
    config: Listener,
    access: Box<dyn Access>,
    questions: Questions,
    /// Connections without a whole CONNECT, by when it has to come.
    half_open: BTreeSet<(Monotonic, ConnectionKey)>,
    entropy: Box<dyn Entropy>,
    connections: Slab<Connection>,
    sessions: Slab<Session>,
    clients: BTreeMap<Arc<str>, SessionKey>,
    subscriptions: Subscriptions,
    retained: Retained,
    memory: Memory,
    /// Connections that wait for a ticket, in ticket order.
    due: VecDeque<(Ticket, ConnectionKey)>,
    last_acknowledgement: Option<Acknowledgement>,
    touched: BTreeSet<ConnectionKey>,
    drops: BTreeMap<&'static str, u64>,
    refusals: Vec<(IpAddr, PacketError)>,
    incomplete_bytes: usize,
    unacknowledged: usize,
    connected: usize,
}

impl Broker {
    /// Nobody is connected.
    pub(super) fn new(config: Listener, access: Box<dyn Access>, entropy: Box<dyn Entropy>) -> Self {
        Self {
            retained: Retained::new(config.retained_bytes),
            config,
            access,
            questions: Questions::default(),
            half_open: BTreeSet::new(),
            entropy,
            connections: Slab::new(),
            sessions: Slab::new(),
            clients: BTreeMap::new(),
            subscriptions: Subscriptions::default(),
            memory: Memory::default(),
            due: VecDeque::new(),
            last_acknowledgement: None,
            touched: BTreeSet::new(),
            drops: BTreeMap::new(),
            refusals: Vec::new(),
            incomplete_bytes: 0,
            unacknowledged: 0,
            connected: 0,
        }
    }

    /// A connection was accepted. `None` if there are as many as allowed: it is to be closed.
    pub(super) fn open(
        &mut self,
        now: Monotonic,
        address: IpAddr,
        store: &mut dyn Store,
    ) -> Option<ConnectionKey> {
        if self.connections.len() >= self.config.max_connections {
            *self.drops.entry("too_many_connections").or_default() += 1;
            return None;
        }
        self.make_room(now, store);
        let key = self.connections.insert(Connection::new(now, address, &self.config));
        self.half_open.insert((now + self.config.connect_timeout, key));
        Some(key)
    }

    /// The socket of `key` is closed; the key is free.
    pub(super) fn remove(&mut self, now: Monotonic, key: ConnectionKey, store: &mut dyn Store) {
        self.end(now, key, End::Lost, store);
        self.connections.try_remove(key);
        self.touched.remove(&key);
    }

    /// Connections that may have something to send or to close, since the last call.
    pub(super) fn touched(&mut self) -> BTreeSet<ConnectionKey> {
        std::mem::take(&mut self.touched)
    }

    /// What is to be sent on `key`, with what waits for its subscriber.
    pub(super) fn output(&mut self, now: Monotonic, key: ConnectionKey) -> Option<&mut BytesMut> {
        let connection = self.connections.get_mut(key)?;
        if let Some(session) = connection.session() {
            let outbox = &mut self.sessions[session].outbox;
            let lost = outbox.fill(now, &connection.capacity, &mut connection.out);
            if lost > 0 {
                *self.drops.entry("subscriber_packet_limit").or_default() += lost;
            }
        }
        Some(&mut connection.out)
    }

    /// Whether the socket of `key` is to be closed, once what there is to send was offered to it.
    pub(super) fn is_done(&self, key: ConnectionKey) -> bool {
        self.connections.get(key).is_none_or(|connection| connection.phase == Phase::Closing)
    }

    /// Whether `key` is to be read.
    pub(super) fn may_read(&self, now: Monotonic, key: ConnectionKey) -> bool {
        self.connections.get(key).is_some_and(|connection| connection.may_read(now))
    }

    /// When the rate of `key` allows to read it, if that is what keeps it waiting.
    pub(super) fn read_at(&self, now: Monotonic, key: ConnectionKey) -> Option<Monotonic> {
        self.connections.get(key).map(Connection::read_at).filter(|at| *at > now)
    }

    /// Clients that are connected.
    pub(super) fn clients(&self) -> usize {
        self.connected
    }

    /// Messages without their PUBACK or PUBREC.
    pub(super) fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// Whether there is anything that time can change.
    pub(super) fn is_idle(&self) -> bool {
        self.connections.is_empty() && self.sessions.is_empty()
    }

    /// Messages that were not handed on since the last call, by reason.
    pub(super) fn drops(&mut self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.drops)
    }

    /// Connections that were ended for what the client did, since the last call.
    pub(super) fn refusals(&mut self) -> Vec<(IpAddr, PacketError)> {
        std::mem::take(&mut self.refusals)
    }

    /// `bytes` came on `key`. Returns whether the client has all its credit in flight, so that the commit should not wait.
    pub(super) fn received(
        &mut self,
        now: Monotonic,
        key: ConnectionKey,
        bytes: &[u8],
        store: &mut dyn Store,
    ) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let before = connection.phase;
        self.incomplete_bytes -= connection.incomplete_bytes();
        let mut input = connection.take(now, bytes);
        let end = loop {
            let connection = &mut self.connections[key];
            let packet = match connection.next_packet(now, &mut input) {
                Ok(Some(packet)) => packet,
                Ok(None) => break None,
                Err(error) => break Some(error.into()),
            };
            let version = connection.version;
            let handled = match packet::decode(version, &packet) {
                Ok(decoded) => self.handle(now, key, decoded, &packet, store),
                Err(error) => Err(error.into()),
            };
            if let Err(end) = handled {
                break Some(end);
            }
            let connection = &mut self.connections[key];
            if matches!(connection.phase, Phase::Asking(_)) {
                connection.put_back(&packet, &input);
                break None;
            }
        };
        self.touched.insert(key);
        self.incomplete_bytes += self.connections[key].incomplete_bytes();
        if let Some(end) = end {
            self.end(now, key, end, store);
        } else if self.incomplete_bytes > INCOMPLETE_BYTES_MAX {
            let largest = self.connections.iter().max_by_key(|(_, connection)| connection.incomplete_bytes());
            if let Some((largest, _)) = largest {
                let what = "the largest of too many packets that did not come whole";
                self.end(now, largest, refused(Reason::QuotaExceeded, what), store);
            }
        }
        self.moved_on(key, before);
        self.connections[key].is_at_its_limit()
    }

    /// A commit is done: answers what it covers. Instead of what is `dropped` it holds gap records.
    pub(super) fn acknowledged(&mut self, acknowledgement: Acknowledgement, dropped: &BTreeSet<Place>) {
        self.last_acknowledgement = Some(acknowledgement);
        while let Some((_, key)) = self.due.pop_front_if(|(ticket, _)| *ticket <= acknowledgement.through()) {
            self.answer_due(key, acknowledgement, dropped);
        }
    }

    fn answer_due(
        &mut self,
        key: ConnectionKey,
        acknowledgement: Acknowledgement,
        dropped: &BTreeSet<Place>,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(session) = connection.session() else { return };
        let before = connection.unacknowledged();
        connection.acknowledged(acknowledgement, dropped, &mut self.sessions[session].known);
        self.unacknowledged -= before - connection.unacknowledged();
        self.touched.insert(key);
        self.note_window(session);
    }

    /// Ends what has lived long enough: connections without packets, sessions, delays of wills.
    pub(super) fn expire(&mut self, now: Monotonic, store: &mut dyn Store) {
        let overdue: Vec<_> = self
            .connections
            .iter()
            .filter_map(|(key, connection)| Some((key, connection.overdue(now)?)))
            .collect();
        for (key, error) in overdue {
            self.end(now, key, error.into(), store);
        }
        let is_due = |at: Option<Monotonic>| at.is_some_and(|at| at <= now);
        let due: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| is_due(session.will_at) || is_due(session.ends_at))
            .map(|(key, session)| (key, is_due(session.ends_at)))
            .collect();
        for (key, ends) in due {
            self.publish_will(now, key, store);
            if ends {
                self.forget(key);
            }
        }
    }

    /// Tells every client that the server goes.
    pub(super) fn shut_down(&mut self, now: Monotonic, store: &mut dyn Store) {
        let keys: Vec<_> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            let connection = &mut self.connections[key];
            if let Some(session) = connection.session() {
                let session = &mut self.sessions[session];
                // Not the client's fault, so no will: it comes back to the next life of this server.
                session.will = None;
                // It is waited for until it has read them.
                connection.forget_answered(&mut session.known);
            }
            self.end(now, key, refused(Reason::ServerShuttingDown, "the agent stops"), store);
        }
        self.refusals.clear();
    }

    fn handle(
        &mut self,
        now: Monotonic,
        key: ConnectionKey,
        packet: Packet<'_>,
        bytes: &Bytes,
        store: &mut dyn Store,
    ) -> Result<(), End> {
        if let Packet::Connect(connect) = packet {
            if self.connections[key].session().is_some() {
                return Err(PacketError::protocol("a second CONNECT").into()); // MQTT-3.1.0-2
            }
            return self.connect(now, key, &connect, store);
        }
        let connection = &mut self.connections[key];
        let Some(session) = connection.session() else {
            return Err(PacketError::protocol("a packet before CONNECT").into()); // MQTT-3.1.0-1
        };
        match packet {
            Packet::Publish(publish) => {
                let payload = bytes.slice_ref(publish.payload);
                return self.publish(now, key, session, &publish, payload, store);
            }
            Packet::PubAck(packet_id) => self.sessions[session].outbox.acknowledged(packet_id),
            Packet::PubRel(packet_id) => {
                connection.release(packet_id, &mut self.sessions[session].known);
                self.note_window(session);
            }
            Packet::Subscribe(subscribe) => return self.subscribe(key, session, &subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(key, session, &unsubscribe),
            Packet::PingReq => packet::pingresp(&mut connection.out),
            Packet::Disconnect(disconnect) => {
                if let Some(expiry_s) = disconnect.session_expiry_s {
                    let state = &mut self.sessions[session];
                    if state.expiry.is_zero() && expiry_s != 0 {
                        return Err(PacketError::protocol("a session expiry where CONNECT had none").into());
                    }
                    state.expiry = Duration::from_secs(expiry_s.into()).min(self.config.session_expiry_max);
                    self.note_session(session);
                }
                return Err(End::Disconnected { with_will: disconnect.with_will });
            }
            Packet::Connect(_) => {}
        }
        Ok(())
    }

    fn connect(
        &mut self,
        now: Monotonic,
        key: ConnectionKey,
        connect: &Connect<'_>,
        store: &mut dyn Store,
    ) -> Result<(), End> {
        let connection = &mut self.connections[key];
        connection.version = connect.version;
        let given = if connect.client_id.is_empty() {
            if connect.version == MqttVersion::V3 && !connect.clean {
                let what = "a session without a client identifier"; // 3.1.1: MQTT-3.1.3-8
                return Err(refused(Reason::ClientIdentifierNotValid, what));
            }
            Some(format!("wayside-{:016x}", self.entropy.next_u64()))
        } else {
            None
        };
        let client_id = given.as_deref().unwrap_or(connect.client_id);
        if client_id.len() > TOPIC_BYTES_MAX {
            return Err(refused(Reason::ClientIdentifierNotValid, "a client identifier longer than allowed"));
        }
        let Admission::In(user) = self.admit(key, connect, client_id)? else { return Ok(()) };
        let client = Client { id: client_id, user: user.as_deref() };
        if connect.will.is_some_and(|will| !self.access.publish(client, will.publish.topic)) {
            return Err(refused(Reason::NotAuthorized, "a will for a topic that is not allowed"));
        }

        let session_present = self.prepare_session(now, client, connect.clean, store);
        let session = match self.clients.get(client_id) {
            Some(session) => *session,
            None => self.new_session(client_id),
        };
        let asked = match (connect.version, connect.clean) {
            (MqttVersion::V5, _) => Duration::from_secs(connect.session_expiry_s.into()),
            (MqttVersion::V3, true) => Duration::ZERO,
            (MqttVersion::V3, false) => Duration::MAX,
        };
        let expiry = asked.min(self.config.session_expiry_max);
        let state = &mut self.sessions[session];
        state.connection = Some(key);
        state.user = user;
        let is_news = !session_present || state.expiry != expiry;
        state.expiry = expiry;
        (state.ends_at, state.will_at) = (None, None);
        state.will = connect.will.map(|will| StoredWill {
            delay: Duration::from_secs(will.delay_s.into()),
            packet: will_packet(&will.publish),
        });
        if is_news {
            self.note_session(session);
        }

        let keep_alive_max_s = self.config.keep_alive_max_s;
        let too_long = connect.keep_alive_s == 0 || connect.keep_alive_s > keep_alive_max_s;
        let server_keep_alive_s =
            (connect.version == MqttVersion::V5 && too_long).then_some(keep_alive_max_s);
        let capacity = Capacity {
            version: connect.version,
            receive_maximum: connect.receive_maximum.min(OUT_IN_FLIGHT_MAX),
            packet_bytes_max: usize::try_from(connect.maximum_packet_bytes).unwrap_or(usize::MAX),
        };
        let connection = &mut self.connections[key];
        self.connected += 1;
        connection.serve(session, server_keep_alive_s.unwrap_or(connect.keep_alive_s), capacity);
        let ack = ConnAck {
            session_present,
            session_expiry_s: (expiry < asked).then(|| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX)),
            receive_maximum: self.config.receive_maximum,
            maximum_packet_bytes: u32::try_from(self.config.max_packet_bytes).unwrap_or(u32::MAX),
            assigned_client_id: given.as_deref(),
            alias_maximum: ALIAS_MAXIMUM,
            server_keep_alive_s,
        };
        packet::connack(&mut connection.out, connect.version, Ok(&ack));
        Ok(())
    }

    /// Ends a connection: tells the client why, if it can be told, and leaves its session to wait for it.
    fn end(&mut self, now: Monotonic, key: ConnectionKey, end: End, store: &mut dyn Store) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let (session, before) = (connection.session(), connection.phase);
        if let End::Refused(error) = end {
            match connection.phase {
                Phase::Connecting(_) | Phase::Asking(_) | Phase::Vouched | Phase::Denied(_) => {
                    packet::connack(&mut connection.out, connection.version, Err(error.reason));
                }
                Phase::Serving(_) => {
                    packet::disconnect(&mut connection.out, connection.version, error.reason)
                }
                Phase::Closing => return,
            }
            self.refusals.push((connection.address, error));
        }
        if let Phase::Asking(id) = connection.phase {
            self.questions.remove(connection.address, id);
        }
        self.incomplete_bytes -= connection.incomplete_bytes();
        self.unacknowledged -= connection.unacknowledged();
        self.touched.insert(key);
        let Some(session) = session else {
            connection.close(&mut Known::default());
            return self.moved_on(key, before);
        };
        let state = &mut self.sessions[session];
        connection.close(&mut state.known);
        self.connected -= 1;
        state.connection = None;
        state.outbox.disconnected();
        state.ends_at = Some(now + state.expiry);
        if end == (End::Disconnected { with_will: false }) {
            state.will = None; // MQTT-3.14.4-3
        }
        match &state.will {
            Some(will) if !will.delay.is_zero() && !state.expiry.is_zero() => {
                state.will_at = Some(now + will.delay);
            }
            _ => self.publish_will(now, session, store),
        }
        self.note_window(session);
        if self.sessions[session].expiry.is_zero() {
            self.forget(session);
        } else {
            self.bound_sessions(now, store);
        }
    }
}
