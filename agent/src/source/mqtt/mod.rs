//! `source.mqtt`: a client of somebody's broker, with a persistent session.
//!
//! The packets are rumqttc's ([`wire`]); the connection around them is our own, because three properties of rumqttc's
//! event loop (0.25) are at odds with what this source promises:
//! * It flushes after each acknowledgement: one system call per message. Here the acknowledgements of a commit window
//!   leave in one write.
//! * It reads and pings in one step, so that a reader who holds back lets the keep-alive lapse.
//! * It forgets the packet ids of QoS 2 when a connection breaks and answers the broker's PUBREL on the next one with
//!   an error that breaks it again, for ever.
//!
//! # Rules
//! * **Acknowledgement**: PUBACK and PUBREC leave in PUBLISH order, only for what an
//!   [`Acknowledgement`](crate::intake::Acknowledgement) covers, and only on the connection that brought the message.
//! * **Repetition**: what a broken connection leaves unanswered comes again with the DUP flag, before anything new. It is
//!   held back if its packet id, topic and payload are those of a message of this session that was handed on and for which
//!   the broker may have no PUBACK, or for QoS 2 sent no PUBREL. What the log has of them is noted in it ([`memory`]), so
//!   that this holds after a crash of the agent too. A session that the broker has lost begins with nothing.
//! * **Back-pressure**: what one read brought is one submission. While the intake has no room for it, nothing is read:
//!   TCP holds the broker back, and the broker queues by its own rules, which for QoS 0 is to drop. Acknowledgements and
//!   pings go on leaving meanwhile, and the missing answer to a ping is nobody's fault.
//! * **Early commit**: a broker stops at its in-flight limit until it is answered. At `receive_maximum` unacknowledged
//!   messages the commit is asked for at once. A lower limit of the broker (20 at Mosquitto with MQTT 3.1.1) is known from
//!   silence alone: 3 ms of it, with at least 20 messages in flight and no fewer than there were since the broker was last
//!   seen to wait for an answer.
//! * **Pace**: while messages come faster than one per 5 ms, the socket is read every 2 ms and not for each of them.
//! * **Brokers** are tried in turn after a failed attempt; a broker that was lost is tried first again, since it has the
//!   session, also after a restart of the agent.
//! * **Shutdown**: read no more, wait for the acknowledgements of what was taken (at most 5 s), send them, DISCONNECT.
//!   The session stays at the broker.

mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod memory;
mod session;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::{pin::Pin, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use self::{
    connection::{Connection, ConnectionError, Exchanged},
    memory::Memory,
    session::{Answer, Arrival, Deliveries, KeepAlive, Subscriptions},
    wire::{Packet, Publish},
};
use super::{SourceContext, backoff::Backoff};
use crate::{
    config::{self, Broker, MqttSource},
    decode::mqtt::Router,
    env::Monotonic,
    gap::Gap,
    intake::{self, IntakeClosed, Reservation},
    log::Note,
    record::{Received, Record},
};

/// Longest time that a shutdown waits for acknowledgements.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time that a DISCONNECT may take to leave.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest time that a broker may take to answer SUBSCRIBE.
const SUBACK_TIMEOUT: Duration = Duration::from_secs(20);

/// Delays before a filter that was refused is asked for again: its cause is mostly an access list that a person edits.
const RESUBSCRIBE: config::Backoff =
    config::Backoff { min: Duration::from_secs(5), max: Duration::from_secs(300) };

/// Reads that follow each other faster than this are spaced by [`READ_PAUSE`].
const BUSY_INTERVAL: Duration = Duration::from_millis(5);

/// Pause between reads while messages stream in: a fraction of a commit window, and many messages per system call.
const READ_PAUSE: Duration = Duration::from_millis(2);

/// Upper bound of a wait that has no deadline.
const IDLE: Duration = Duration::from_secs(3600);

/// Connects to `broker` as `wayside check --connect` does, and hangs up: under a client id of its own and with a session
/// that ends, so that an agent that runs keeps its connection and its session. Subscribes to nothing: a shared
/// subscription would take messages away. Says what it found; takes 10 s at most.
///
/// # Errors
/// Why the broker cannot be had.
pub async fn reach(broker: &Broker, source: &MqttSource) -> Result<String, String> {
    let client_id = format!("{}-check", source.client_id);
    let source = MqttSource { client_id, session_expiry_s: 0, ..source.clone() };
    let mut connection = Connection::open(broker, &source, true).await.map_err(|error| error.to_string())?;
    connection.writer.disconnect();
    // The broker has said what was asked.
    let _ = timeout(DISCONNECT_TIMEOUT, connection.flush()).await;
    Ok(format!("accepts us as client {}", source.client_id))
}

/// Runs the source until `context.shutdown`, or until the pipeline ends. Records larger than `record_bytes_max` become
/// dead letters.
pub async fn run(config: MqttSource, record_bytes_max: usize, context: SourceContext) {
    let router = match Router::new(&config.name, &config.routes, record_bytes_max) {
        Ok(router) => router,
        Err(error) => {
            // The configuration is checked by the same rules before any source starts.
            error!(source = config.name, %error, "the source cannot run");
            context.health.down(&error.to_string());
            return;
        }
    };
    let (memory, window, noted) = Memory::restore(&context.remembered);
    let session_at = memory
        .broker(&config.client_id)
        .and_then(|broker| config.brokers.iter().position(|known| address(known) == broker));
    let window = session_at.map(|_| window).unwrap_or_default();
    let source = Source {
        deliveries: Deliveries::new(config.receive_maximum, window, noted),
        subscriptions: Subscriptions::new(config.routes.iter().map(|route| route.topic_filter.as_str())),
        reconnect: Backoff::new(config.reconnect),
        resubscribe: Backoff::new(RESUBSCRIBE),
        causes: vec![String::new(); config.brokers.len()],
        session_at,
        memory,
        group: Group::default(),
        config,
        router,
        context,
    };
    // The future holds a connection's state; boxed, it does not grow those that join the sources.
    Box::pin(source.run()).await;
}

/// Why [`Source::serve`] returned.
enum Ended {
    /// Shutdown, or the pipeline is gone.
    ForGood,
    /// To be connected again.
    Lost(ConnectionError),
}

impl From<ConnectionError> for Ended {
    fn from(error: ConnectionError) -> Self {
        Self::Lost(error)
    }
}

impl From<IntakeClosed> for Ended {
    fn from(_: IntakeClosed) -> Self {
        Self::ForGood
    }
}

/// What one read brought, not submitted yet.
#[derive(Debug, Default)]
struct Group {
    records: Vec<Record>,
    answers: Vec<Answer>,
    /// What is to be remembered once the records are durable.
    notes: Vec<Note>,
}

impl Group {
    /// Whether there is nothing to submit.
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.notes.is_empty()
    }

    /// Bytes of what is to be submitted.
    fn size_bytes(&self) -> usize {
        intake::size_bytes(&self.records) + self.notes.iter().map(Note::size_bytes).sum::<usize>()
    }
}

/// Room for the group that waits, if one does.
type Room = Option<Pin<Box<dyn Future<Output = Result<Reservation, IntakeClosed>> + Send>>>;

struct Source {
    config: MqttSource,
    router: Router,
    context: SourceContext,
    deliveries: Deliveries,
    subscriptions: Subscriptions,
    reconnect: Backoff,
    resubscribe: Backoff,
    /// The last failure of each broker, so that a repetition is not logged again.
    causes: Vec<String>,
    /// The broker that has the session of the last connection.
    session_at: Option<usize>,
    memory: Memory,
    group: Group,
}

impl Source {
    async fn run(mut self) {
        let mut broker = self.session_at.unwrap_or(0);
        let mut shutdown = self.context.shutdown.clone();
        loop {
            let opened = tokio::select! {
                biased;
                _ = shutdown.wait_for(|asked| *asked) => break,
                opened = Connection::open(&self.config.brokers[broker], &self.config, false) => opened,
            };
            let (failed, error) = match opened {
                Ok(connection) => {
                    let since = self.context.clock.monotonic();
                    let ended = self.serve(connection, broker).await;
                    self.disconnected();
                    self.reconnect.lived(since, self.context.clock.monotonic());
                    match ended {
                        Ended::ForGood => break,
                        Ended::Lost(error) => (broker, error),
                    }
                }
                Err(error) => {
                    let failed = broker;
                    broker = (broker + 1) % self.config.brokers.len();
                    (failed, error)
                }
            };
            self.report(failed, &error);
            let delay = self.reconnect.next(&mut *self.context.entropy);
            let goes_on = tokio::select! {
                biased;
                _ = shutdown.wait_for(|asked| *asked) => false,
                goes_on = async {
                    // What was read before the connection broke is handed on first: with QoS 0 it comes only once.
                    let goes_on = self.submit_rest().await.is_ok();
                    sleep(delay).await;
                    goes_on
                } => goes_on,
            };
            if !goes_on {
                break;
            }
        }
    }

    /// Serves `connection` until it ends. What was read and not submitted stays in the group.
    async fn serve(&mut self, mut connection: Connection, broker: usize) -> Ended {
        match self.exchange(&mut connection, broker).await {
            Ok(()) => Ended::ForGood,
            Err(ended) => ended,
        }
    }

    async fn exchange(&mut self, connection: &mut Connection, broker: usize) -> Result<(), Ended> {
        let start = self.context.clock.monotonic();
        self.connected(connection, broker);
        let keep_alive = connection.ack.keep_alive_s.map(|s| Duration::from_secs(s.into()));
        let mut keep_alive = KeepAlive::new(keep_alive.unwrap_or(self.config.keep_alive), start);
        let mut shutdown = self.context.shutdown.clone();
        let mut drained_at: Option<Monotonic> = None;
        let mut room: Room = None;
        let mut read_at = start;
        let mut received_at = start;
        let mut subscribe_at = start;
        // CONNACK and the first messages may have come in one read.
        self.take_packets(connection, &mut room, &mut subscribe_at)?;
        loop {
            let now = self.context.clock.monotonic();
            let mut wake_at = now + IDLE;
            if let Some(deadline) = drained_at {
                if room.is_none() && self.deliveries.unacknowledged() == 0 || now >= deadline {
                    self.hang_up(connection).await;
                    return Ok(());
                }
                wake_at = wake_at.min(deadline);
            }
            if let Some(urge_at) = self.deliveries.urge_at() {
                if now >= urge_at {
                    self.context.intake.urge();
                    self.deliveries.urged();
                } else {
                    wake_at = wake_at.min(urge_at);
                }
            }
            if let Some(ping_at) = keep_alive.ping_at() {
                if now >= ping_at {
                    connection.writer.pingreq();
                    keep_alive.pinged(now);
                } else {
                    wake_at = wake_at.min(ping_at);
                }
            }
            let reading = room.is_none() && drained_at.is_none();
            if reading && self.subscriptions.is_incomplete() && now >= subscribe_at {
                self.subscriptions.ask(self.config.qos, &mut connection.writer);
                subscribe_at = now + SUBACK_TIMEOUT;
            }
            if reading && (self.subscriptions.is_asked() || self.subscriptions.is_incomplete()) {
                wake_at = wake_at.min(subscribe_at);
            }
            if reading {
                wake_at = wake_at.min(keep_alive.dead_at().unwrap_or(wake_at));
                if now < read_at {
                    wake_at = wake_at.min(read_at);
                }
            }
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|asked| *asked), if drained_at.is_none() => {
                    drained_at = Some(now + DRAIN_TIMEOUT);
                    self.context.intake.urge();
                }
                acknowledgement = self.context.intake.acknowledged() => {
                    let now = self.context.clock.monotonic();
                    self.deliveries.acknowledged(now, acknowledgement?, &mut connection.writer);
                    self.count_unacknowledged();
                }
                reservation = optional(&mut room) => {
                    room = None;
                    self.submit(reservation?)?;
                }
                exchanged = connection.exchange(reading && now >= read_at) => match exchanged? {
                    Exchanged::Sent => keep_alive.sent(now),
                    Exchanged::Received { full } => {
                        let now = self.context.clock.monotonic();
                        keep_alive.received();
                        let busy = now.since(received_at) < BUSY_INTERVAL;
                        received_at = now;
                        if busy && !full {
                            read_at = now + READ_PAUSE;
                        }
                        self.take_packets(connection, &mut room, &mut subscribe_at)?;
                    }
                },
                () = sleep(wake_at.since(now)) => {
                    let now = self.context.clock.monotonic();
                    // Last in the order: whatever the broker sent was read before.
                    if reading && now >= read_at {
                        if keep_alive.dead_at().is_some_and(|at| now >= at) {
                            return Err(ConnectionError::NoPingResponse.into());
                        }
                        if self.subscriptions.is_asked() && now >= subscribe_at {
                            return Err(ConnectionError::NoSubAck.into());
                        }
                    }
                }
            }
        }
    }

    fn connected(&mut self, connection: &Connection, broker: usize) {
        let Connection { ack, .. } = connection;
        let address = self.address(broker);
        let same_session = ack.session_present && self.session_at.is_none_or(|at| at == broker);
        if !same_session {
            self.deliveries.session_lost();
            self.subscriptions.session_lost();
            if self.session_at == Some(broker) {
                warn!(
                    source = self.config.name,
                    broker = address,
                    "the broker has lost the session and its queue"
                );
            }
        }
        let begins_anew = self.session_at.replace(broker).is_some() && !same_session;
        if begins_anew {
            self.note();
        }
        if let Some(granted_s) = ack.session_expiry_s.filter(|s| *s < self.config.session_expiry_s) {
            warn!(
                source = self.config.name,
                broker = address,
                granted_s,
                "the broker keeps the session for less"
            );
        }
        info!(
            source = self.config.name,
            broker = address,
            session_present = ack.session_present,
            "connected"
        );
        self.context.counters.connections.inc();
        self.context.counters.connected.set(1);
        self.context.health.healthy();
    }

    fn disconnected(&mut self) {
        self.deliveries.disconnected();
        self.subscriptions.disconnected();
        self.count_unacknowledged();
        self.context.counters.connected.set(0);
    }

    /// Logs a failure, once per broker and cause.
    fn report(&mut self, broker: usize, error: &ConnectionError) {
        let (address, text) = (self.address(broker), error.to_string());
        let source = &self.config.name;
        self.context.counters.failures.inc();
        self.context.health.down(&format!("{address}: {text}"));
        match error {
            _ if self.causes[broker] == text => {
                debug!(source, broker = address, error = text, "no connection")
            }
            _ if error.needs_operator() => error!(source, broker = address, error = text, "no connection"),
            _ => warn!(source, broker = address, error = text, "no connection"),
        }
        self.causes[broker] = text;
    }

    fn address(&self, broker: usize) -> String {
        address(&self.config.brokers[broker])
    }

    /// Adds to the group what is to be remembered of the session once it is durable.
    fn note(&mut self) {
        let Some(broker) = self.session_at else { return };
        let noting = self.deliveries.noting(&self.group.answers);
        let changes = self.memory.changes(&self.config.client_id, &self.address(broker), noting);
        self.group.notes.extend(self.context.intake.notes(changes));
    }

    /// Takes the packets that have arrived whole. Messages become the group, and `room` the wait for its place.
    fn take_packets(
        &mut self,
        connection: &mut Connection,
        room: &mut Room,
        subscribe_at: &mut Monotonic,
    ) -> Result<(), Ended> {
        let (now, received) = (self.context.clock.monotonic(), self.context.clock.wall());
        let outcome = loop {
            let packet = match connection.packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            match packet {
                Packet::Publish(publish) => self.take_message(now, received, publish),
                Packet::Oversize { publish, size_bytes } => {
                    self.drop_oversize(now, received, &publish, size_bytes);
                }
                Packet::PubRel(packet_id) => {
                    self.deliveries.release(now, packet_id, &mut connection.writer);
                }
                Packet::SubAck { packet_id, granted } => {
                    let refusals = self.subscriptions.answered(packet_id, granted);
                    if refusals.is_empty() {
                        self.resubscribe.reset();
                        self.context.health.healthy();
                    } else {
                        *subscribe_at = now + self.resubscribe.next(&mut *self.context.entropy);
                        self.context.counters.failures.inc();
                        for refusal in &refusals {
                            let (source, filter) = (&self.config.name, &refusal.filter);
                            error!(source, filter, reason = refusal.reason, "subscription refused");
                        }
                        let filters: Vec<_> = refusals.iter().map(|r| r.filter.as_str()).collect();
                        self.context.health.degraded(format!("subscription refused: {}", filters.join(", ")));
                    }
                }
                Packet::PingResp => {}
                Packet::Disconnect(reason) => break Err(ConnectionError::Disconnected(reason)),
                Packet::ConnAck(_) | Packet::Unexpected => break Err(ConnectionError::Unexpected),
            }
        };
        // What came before an error counts.
        if !self.group.records.is_empty() {
            self.note();
        }
        if !self.group.is_empty() {
            let size_bytes = self.group.size_bytes();
            match self.context.intake.try_reserve(size_bytes) {
                Some(reservation) => self.submit(reservation)?,
                None => *room = Some(Box::pin(self.context.intake.reserve(size_bytes))),
            }
        } else if !self.group.answers.is_empty() {
            self.deliveries.submitted(None, self.group.answers.drain(..));
            self.deliveries.answer(&mut connection.writer);
        }
        outcome.map_err(Ended::Lost)
    }

    fn take_message(&mut self, now: Monotonic, received: Received, publish: Publish) {
        match self.deliveries.arrive(now, &publish) {
            Arrival::Known(answer) => {
                self.context.counters.dropped("redelivered");
                self.group.answers.push(answer);
            }
            Arrival::New(answer) => {
                self.group.answers.extend(answer);
                let topic = std::str::from_utf8(&publish.topic).expect("the reader checks topics");
                let record = self.router.decode(topic, publish.payload, publish.retain, received);
                self.context.counters.record(&record);
                self.group.records.push(record);
            }
        }
    }

    fn drop_oversize(&mut self, now: Monotonic, received: Received, publish: &Publish, size_bytes: usize) {
        let (source, topic) = (&self.config.name, String::from_utf8_lossy(&publish.topic));
        error!(source, %topic, size_bytes, "message dropped: larger than max_packet_bytes");
        self.context.counters.dropped("oversize");
        // Answered in its turn: unanswered, it would stand in the broker's queue for ever.
        match self.deliveries.arrive(now, publish) {
            Arrival::Known(answer) => self.group.answers.push(answer),
            Arrival::New(answer) => {
                self.group.answers.extend(answer);
                let gap = Gap::of_oversize().record(received, source);
                self.context.counters.record(&gap);
                self.group.records.push(gap);
            }
        }
    }

    fn submit(&mut self, reservation: Reservation) -> Result<(), IntakeClosed> {
        let Group { records, answers, notes } = std::mem::take(&mut self.group);
        let ticket = self.context.intake.submit_noting(reservation, records, notes)?;
        self.deliveries.submitted(Some(ticket), answers);
        self.count_unacknowledged();
        Ok(())
    }

    /// Submits what a lost connection left in the group; it is answered when the broker sends it again.
    async fn submit_rest(&mut self) -> Result<(), IntakeClosed> {
        if self.group.is_empty() {
            self.group.answers.clear();
            return Ok(());
        }
        let reservation = self.context.intake.reserve(self.group.size_bytes()).await?;
        self.submit(reservation)?;
        self.disconnected();
        Ok(())
    }

    /// Sends the last acknowledgements and DISCONNECT, as far as the broker takes them.
    async fn hang_up(&mut self, connection: &mut Connection) {
        connection.writer.disconnect();
        let sent_and_read = async {
            connection.flush().await?;
            connection.closed().await
        };
        if !matches!(timeout(DRAIN_TIMEOUT, sent_and_read).await, Ok(Ok(()))) {
            debug!(source = self.config.name, "the broker did not wait for DISCONNECT");
        } else {
            // No next message comes: that it was answered is noted now. A pipeline that has ended keeps what was noted before.
            self.deliveries.all_arrived();
            self.note();
            if !self.group.is_empty()
                && let Some(reservation) = self.context.intake.try_reserve(self.group.size_bytes())
            {
                let _ = self.submit(reservation);
            }
        }
        info!(source = self.config.name, unacknowledged = self.deliveries.unacknowledged(), "disconnected");
    }

    fn count_unacknowledged(&self) {
        let count = i64::try_from(self.deliveries.unacknowledged()).unwrap_or(i64::MAX);
        self.context.counters.unacknowledged.set(count);
    }
}

fn address(broker: &Broker) -> String {
    format!("{}:{}", broker.host, broker.port)
}

/// Waits for ever if there is nothing to wait for.
async fn optional(room: &mut Room) -> Result<Reservation, IntakeClosed> {
    match room {
        Some(room) => room.await,
        None => std::future::pending().await,
    }
}
