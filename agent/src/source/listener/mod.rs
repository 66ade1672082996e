//! `source.listener`: an MQTT server of our own, which devices connect to. A PUBACK of it means "on flash".
//!
//! * [`packet`]: the codec
//! * [`connection`]: the rules of one connection
//! * [`broker`]: sessions, subscribers, retained messages, wills
//! * [`access`], [`questions`]: who may do what, and passwords that wait to be checked
//! * [`open`], [`peer`], [`ready`] and this module: files, sockets, time and the intake around them
//!
//! # Rules
//! * **Acknowledgement**: PUBACK and PUBREC leave for an [`Acknowledgement`], in PUBLISH order on
//!   each connection (MQTT-4.6.0-2), all that a commit covers in one write. What is not stored, since it is for subscribers alone
//!   or its client may not publish it, is answered in its turn.
//! * **Repetition**: a PUBLISH that a broken connection left unanswered is recognised when its session comes back, a QoS 2
//!   message until its PUBREL; also after a crash of the agent, if the session outlives its connections ([`broker`]'s memory).
//! * **Back-pressure**: what one round of reading brought is one submission. While the intake has no room for it, nothing is
//!   read from any client. A client that has all its credit unanswered, that does not read its answers or that is over its
//!   rate is not read either: TCP holds it back.
//! * **Passwords** are checked one at a time on a thread of their own, the networks of clients in turn: a check takes long on
//!   purpose. A CONNECT waits for it, a wrong one a second longer.
//! * **Storms**: connections are accepted at `connects_per_second`. At `max_half_open` of them without a CONNECT, the oldest goes
//!   for the next one, once it had a second.
//! * **Early commit**: a client at its receive maximum cannot go on, so that the commit is asked for at once.
//! * **Pace**: while rounds follow each other within 10 ms, sockets are read every 5 ms and not for each message.
//! * **Shutdown**: accept and read no more, wait for the acknowledgements of what was taken (at most 5 s), send them, DISCONNECT.

pub mod access;
mod broker;
mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod open;
mod outbox;
mod pace;
pub(crate) mod packet;
mod peer;
mod questions;
mod ready;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod simulated;
mod stage;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_rustls::rustls::ServerConfig;
use tracing::{debug, error, info, warn};

pub use self::open::reach;
use self::{
    broker::{Broker, ConnectionKey},
    open::{Files, listen},
    pace::Pace,
    packet::PacketError,
    peer::{Buffers, Came, Peer, Sent},
    questions::QuestionId,
    ready::Ready,
    stage::Stage,
};
use super::SourceContext;
use crate::{
    config::Listener,
    decode::mqtt::Router,
    env::Monotonic,
    intake::{Acknowledgement, IntakeClosed, Places, Reservation, Ticket, Unacknowledged},
    kept::Kept,
    tls::session::Session,
};

/// Longest time that a shutdown waits for acknowledgements.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time that a shutdown waits for clients to hang up.
const LINGER: Duration = Duration::from_secs(1);

/// Time between two looks at what lives for a limited time: keep-alives, sessions, wills.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Rounds of reading that follow each other faster than this are spaced by [`READ_PAUSE`].
const BUSY_INTERVAL: Duration = Duration::from_millis(10);

/// Pause between rounds while messages stream in: a fraction of a commit window, and many messages per system call.
const READ_PAUSE: Duration = Duration::from_millis(5);

/// Connections that are accepted before those that are there are served.
const ACCEPT_BATCH: usize = 64;

/// Pause after an error of `accept`, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Upper bound of a wait that has no deadline.
const IDLE: Duration = Duration::from_secs(3600);

/// TLS handshakes that are taken a step further before acknowledgements and others have their turn: each step takes up to a few
/// milliseconds of a small processor.
const HANDSHAKES_PER_ROUND: usize = 8;

/// Most bytes of TLS records that have not come whole, over all connections. Beyond, the one with the most is closed.
const INCOMPLETE_BYTES_MAX: usize = 8 << 20;

/// Bytes of records at which a round of reading ends and is submitted.
const GROUP_BYTES: usize = 64 * 1024;

/// Runs the source until `context.shutdown`, or until the pipeline ends. Records larger than `record_bytes_max` become
/// dead letters.
pub async fn run(config: Listener, record_bytes_max: usize, context: SourceContext) {
    let router = match Router::new(&config.name, &config.routes, record_bytes_max) {
        Ok(router) => router,
        Err(error) => {
            // The configuration is checked by the same rules before any source starts.
            error!(source = config.name, %error, "the source cannot run");
            context.health.down(&error.to_string());
            return;
        }
    };
    let Some((listener, Files { access, tls }, mut context)) = listen(&config, context).await else { return };
    context.counters.connected.set(1);
    context.counters.clients(0);
    context.health.healthy();
    let SourceContext { intake, remembered, clock, entropy, counters, mut shutdown, .. } = context;
    let mut broker = Broker::new(config.clone(), Box::new(access), entropy);
    broker.restore(clock.monotonic(), &remembered);
    drop(remembered);
    let connects = Pace::new(config.connects_per_second);
    let server = Server {
        broker,
        stage: Stage::new(&config, router, record_bytes_max, intake, counters),
        clock,
        config,
        connects,
        peers: Slab::new(),
        ready: Ready::default(),
        waiting: Vec::new(),
        paused: BTreeSet::new(),
        tls,
        incomplete_bytes: 0,
        buffers: Buffers::default(),
        room: None,
        asked: Unacknowledged::default(),
        check: None,
        leaving: None,
    };
    // Boxed, it does not grow the future that joins the sources.
    let ended = Box::pin(server.run(listener, async move {
        // A pipeline that is gone asks for the same.
        let _ = shutdown.wait_for(|asked| *asked).await;
    }));
    if ended.await.is_err() {
        debug!("the pipeline has ended before its sources");
    }
}

/// Room for the group that waits, if one does.
type Room = Option<Pin<Box<dyn Future<Output = Result<Reservation, IntakeClosed>> + Send>>>;

/// The password that is checked now, and what comes of it.
type CheckUnderWay = Option<JoinHandle<(ConnectionKey, QuestionId, bool)>>;

struct Server {
    config: Listener,
    broker: Broker,
    stage: Stage,
    clock: Arc<dyn crate::env::Clock>,
    connects: Pace,
    peers: Slab<Peer>,
    ready: Ready,
    /// Keys of the round that was cut short because the group was full.
    waiting: Vec<ConnectionKey>,
    /// Clients over their rate, by when they are read again.
    paused: BTreeSet<(Monotonic, ConnectionKey)>,
    tls: Option<Kept<ServerConfig>>,
    /// Bytes of TLS records that have not come whole.
    incomplete_bytes: usize,
    buffers: Buffers,
    room: Room,
    /// Submissions whose records a policy may drop.
    asked: Unacknowledged<(Ticket, oneshot::Receiver<Places>)>,
    check: CheckUnderWay,
    /// At the end: those that have got their last and are to hang up.
    leaving: Option<JoinSet<()>>,
}

impl Server {
    async fn run(
        mut self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), IntakeClosed> {
        let mut shutdown = Box::pin(shutdown);
        let start = self.clock.monotonic();
        let (mut accept_at, mut read_at, mut round_at, mut sweep_at) =
            (start, start, start, start + SWEEP_INTERVAL);
        let mut drained_at: Option<Monotonic> = None;
        loop {
            let now = self.clock.monotonic();
            let mut wake_at = now + IDLE;
            if let Some(deadline) = drained_at {
                if (self.room.is_none() && self.broker.unacknowledged() == 0) || now >= deadline {
                    self.hang_up(now).await;
                    return Ok(());
                }
                wake_at = wake_at.min(deadline);
            }
            if now >= sweep_at {
                self.broker.expire(now, &mut self.stage);
                self.settle(now)?;
                sweep_at = now + SWEEP_INTERVAL;
            }
            if !self.broker.is_idle() {
                wake_at = wake_at.min(sweep_at);
            }
            if let Some(&(at, _)) = self.paused.first() {
                wake_at = wake_at.min(at);
            }
            let accept_at_now = accept_at.max(self.connects.ready_at()).max(self.broker.accept_at());
            for at in [accept_at_now, read_at] {
                if now < at {
                    wake_at = wake_at.min(at);
                }
            }
            let serving = drained_at.is_none();
            tokio::select! {
                biased;
                () = &mut shutdown, if serving => {
                    drained_at = Some(now + DRAIN_TIMEOUT);
                    self.stage.intake.urge();
                }
                acknowledgement = self.stage.intake.acknowledged() => {
                    self.acknowledged(acknowledgement?);
                    self.settle(self.clock.monotonic())?;
                }
                reservation = optional(&mut self.room) => {
                    self.room = None;
                    self.submit(reservation?)?;
                    // What was not read meanwhile.
                    for (_, peer) in self.peers.iter().filter(|(_, peer)| peer.unread) {
                        peer.waker.rearm().wake();
                    }
                    self.ready.again();
                }
                // What came behind the CONNECT goes into the group, which must not wait for its room.
                answer = optional(&mut self.check), if self.room.is_none() => {
                    self.check = None;
                    let now = self.clock.monotonic();
                    self.stage.received = self.clock.wall();
                    if let Ok((key, id, passes)) = answer {
                        self.broker.answered(now, key, id, passes, &mut self.stage);
                    }
                    self.settle(now)?;
                }
                () = self.ready.wait(), if now >= read_at => {
                    let now = self.clock.monotonic();
                    self.round(now, serving)?;
                    if now.since(round_at) < BUSY_INTERVAL {
                        read_at = now + READ_PAUSE;
                    }
                    round_at = now;
                    // The other tasks of this thread: the commit, for one.
                    tokio::task::yield_now().await;
                }
                accepted = listener.accept(), if serving && now >= accept_at_now => match accepted {
                    Ok((stream, address)) => {
                        self.accept(now, stream, address.ip());
                        // The next `accept` waits for those that are not there yet.
                        let mut no_wait = Context::from_waker(Waker::noop());
                        for _ in 1..ACCEPT_BATCH {
                            if now < self.connects.ready_at().max(self.broker.accept_at()) {
                                break;
                            }
                            let Poll::Ready(Ok((stream, address))) = listener.poll_accept(&mut no_wait) else { break };
                            self.accept(now, stream, address.ip());
                        }
                    }
                    Err(error) => {
                        self.stage.counters.failures.inc();
                        warn!(source = self.config.name, %error, "cannot accept a connection");
                        accept_at = now + ACCEPT_PAUSE;
                    }
                },
                () = sleep(wake_at.since(now)) => self.resume(self.clock.monotonic()),
            }
        }
    }

    fn accept(&mut self, now: Monotonic, stream: TcpStream, address: IpAddr) {
        self.stage.counters.connections.inc();
        self.connects.take(now);
        // Answers are gathered here, per commit; the kernel shall not hold them back once more. A socket that does not take the
        // option serves all the same.
        let _ = stream.set_nodelay(true);
        let session = self.tls.as_ref().map(|tls| Session::new(tls.get()).map(Box::new)).transpose();
        let session = session.expect("the configuration has all that a session needs");
        let Some(key) = self.broker.open(now, address, &mut self.stage) else { return self.count() };
        let waker = self.ready.waker(key);
        // CONNECT is often there already.
        waker.rearm().wake();
        let entry = self.peers.insert(Peer::new(stream, session, address, waker));
        debug_assert_eq!(entry, key, "both slabs fill and empty in the same order");
    }

    /// Serves the connections that are ready.
    fn round(&mut self, now: Monotonic, serving: bool) -> Result<(), IntakeClosed> {
        self.stage.received = self.clock.wall();
        let mut keys = std::mem::take(&mut self.waiting);
        let mut woken = Vec::new();
        self.ready.take(&mut woken);
        keys.append(&mut woken);
        let mut urgent = false;
        let mut handshakes = 0;
        for (index, key) in keys.iter().enumerate() {
            let Some(peer) = self.peers.get_mut(*key) else { continue };
            peer.unread = true;
            handshakes += usize::from(peer.is_handshaking());
            self.send(now, *key);
            if serving && self.room.is_none() {
                urgent |= self.read(now, *key);
            }
            let is_full = self.stage.group.size_bytes >= GROUP_BYTES || handshakes >= HANDSHAKES_PER_ROUND;
            if is_full && self.room.is_none() {
                self.waiting = keys.split_off(index + 1);
                break;
            }
        }
        self.settle(now)?;
        if urgent {
            self.stage.intake.urge();
        }
        if !self.waiting.is_empty() && self.room.is_none() {
            self.ready.again();
        }
        Ok(())
    }

    /// Reads what came on `key`, as long as it may be read. Returns whether its client has all its credit in flight.
    fn read(&mut self, now: Monotonic, key: ConnectionKey) -> bool {
        let mut at_limit = false;
        loop {
            if !self.broker.may_read(now, key) {
                if let Some(at) = self.broker.read_at(now, key)
                    && self.paused.insert((at, key))
                {
                    self.stage.counters.held_back();
                }
                return at_limit;
            }
            let Some(peer) = self.peers.get_mut(key).filter(|peer| peer.unread) else { return at_limit };
            let (was_handshaking, before_bytes) = (peer.is_handshaking(), peer.incomplete_bytes());
            let came = peer.read(&mut self.buffers);
            self.incomplete_bytes = self.incomplete_bytes - before_bytes + peer.incomplete_bytes();
            match came {
                Came::Nothing => return at_limit,
                Came::Bytes(bytes) => {
                    if was_handshaking && !peer.is_handshaking() {
                        let user = peer.certificate_user(self.config.certificate_user);
                        self.broker.identified(key, user.map(String::into_boxed_str));
                    }
                    at_limit |= self.broker.received(now, key, bytes, &mut self.stage);
                    if self.stage.group.size_bytes >= GROUP_BYTES {
                        // There may be more; it has its turn in the next round.
                        peer.waker.rearm().wake();
                        return at_limit;
                    }
                }
                Came::End => {
                    self.close(now, key);
                    return at_limit;
                }
                Came::Refused(error) => {
                    info!(source = self.config.name, address = %peer.address, %error, "TLS ended");
                    if !was_handshaking {
                        self.stage.counters.rejected("tls", 1);
                    }
                    self.send(now, key);
                    self.close(now, key);
                    return at_limit;
                }
            }
            if self.incomplete_bytes > INCOMPLETE_BYTES_MAX {
                let largest = self.peers.iter().max_by_key(|(_, peer)| peer.incomplete_bytes());
                if let Some((largest, _)) = largest {
                    self.close(now, largest);
                }
            }
        }
    }

    /// Sends what there is for `key`, as far as the socket takes it.
    fn send(&mut self, now: Monotonic, key: ConnectionKey) {
        loop {
            let (Some(out), Some(peer)) = (self.broker.output(now, key), self.peers.get_mut(key)) else {
                return;
            };
            let had_some = !out.is_empty();
            match peer.send(out) {
                // There may be more for its subscriber now.
                Sent::All if had_some && !peer.is_handshaking() => {}
                Sent::All | Sent::Part => break,
                Sent::Broken => return self.close(now, key),
            }
        }
        if self.broker.is_done(key) {
            if let Some(peer) = self.peers.get_mut(key) {
                peer.finish();
            }
            self.close(now, key);
        }
    }

    fn close(&mut self, now: Monotonic, key: ConnectionKey) {
        self.broker.remove(now, key, &mut self.stage);
        // Dropped, the socket is closed behind what was sent.
        let Some(peer) = self.peers.try_remove(key) else { return };
        self.incomplete_bytes -= peer.incomplete_bytes();
        if peer.is_handshaking() {
            self.stage.counters.rejected("tls_handshake", 1);
        }
        if let Some(leaving) = &mut self.leaving {
            leaving.spawn(peer.read_to_end());
        }
    }

    /// Sends what was decided, submits what was read, and counts.
    fn settle(&mut self, now: Monotonic) -> Result<(), IntakeClosed> {
        for key in self.broker.touched() {
            self.send(now, key);
            // It may have been held back by what has left now.
            if let Some(peer) = self.peers.get(key)
                && peer.unread
                && self.broker.may_read(now, key)
            {
                peer.waker.rearm().wake();
            }
        }
        if self.room.is_none() {
            // What was answered waits for the next message: a sync for it alone would double those of a quiet gateway.
            if !self.stage.group.records.is_empty() || self.broker.has_news() {
                self.note(now);
            }
            let Stage { intake, group, .. } = &self.stage;
            if !group.is_empty() {
                match intake.try_reserve(group.size_bytes) {
                    Some(reservation) => self.submit(reservation)?,
                    None => self.room = Some(Box::pin(intake.reserve(group.size_bytes))),
                }
            }
        }
        if self.check.is_none()
            && let Some((key, id, check)) = self.broker.question()
        {
            // Nobody is let in by a panic; there is none.
            let passes = move || catch_unwind(AssertUnwindSafe(|| check.passes())).unwrap_or(false);
            self.check = Some(spawn_blocking(move || (key, id, passes())));
        }
        self.count();
        Ok(())
    }

    /// Adds to the group what is to be remembered once it is durable.
    fn note(&mut self, now: Monotonic) {
        let Stage { intake, group, .. } = &mut self.stage;
        for note in intake.notes(self.broker.changes(now)) {
            group.size_bytes += note.size_bytes();
            group.notes.push(note);
        }
    }

    /// Submits the group. A will that fell due while it waited for its room goes with it: it was in memory before.
    fn submit(&mut self, reservation: Reservation) -> Result<(), IntakeClosed> {
        let group = std::mem::take(&mut self.stage.group);
        let intake = &mut self.stage.intake;
        if self.config.tells_drops {
            let (ticket, places) = intake.submit_asking(reservation, group.records, group.notes)?;
            self.asked.push(ticket, (ticket, places));
        } else {
            intake.submit_noting(reservation, group.records, group.notes)?;
        }
        Ok(())
    }

    fn acknowledged(&mut self, acknowledgement: Acknowledgement) {
        let mut dropped = BTreeSet::new();
        for (ticket, mut places) in self.asked.release(acknowledgement) {
            // It was told before.
            let places = places.try_recv().unwrap_or_default();
            let gone = places.iter().enumerate().filter(|(_, place)| place.is_none());
            dropped.extend(gone.map(|(index, _)| (ticket, index)));
        }
        self.broker.acknowledged(acknowledgement, &dropped);
    }

    /// Reads clients again whose rate allows it.
    fn resume(&mut self, now: Monotonic) {
        while let Some(&(at, key)) = self.paused.first()
            && at <= now
        {
            self.paused.pop_first();
            if let Some(peer) = self.peers.get(key) {
                peer.waker.rearm().wake();
            }
        }
    }

    fn count(&mut self) {
        let counters = &mut self.stage.counters;
        for (reason, count) in self.broker.drops() {
            counters.dropped_many(reason, count);
        }
        for (address, PacketError { reason, what }) in self.broker.refusals() {
            counters.rejected(reason.label(), 1);
            info!(source = self.config.name, %address, ?reason, what, "connection ended");
        }
        counters.clients(self.broker.clients());
        counters.unacknowledged.set(i64::try_from(self.broker.unacknowledged()).unwrap_or(i64::MAX));
    }

    /// Sends the last acknowledgements and DISCONNECT, as far as the clients take them, and waits until they have hung up too.
    async fn hang_up(&mut self, now: Monotonic) {
        let unacknowledged = self.broker.unacknowledged();
        self.broker.shut_down(now, &mut self.stage);
        // No next message comes: what was answered is noted now.
        self.note(now);
        let Stage { intake, group, .. } = &self.stage;
        if !group.is_empty()
            && let Some(reservation) = intake.try_reserve(group.size_bytes)
        {
            // A pipeline that has ended keeps what was noted before.
            let _ = self.submit(reservation);
        }
        self.leaving = Some(JoinSet::new());
        for key in self.broker.touched() {
            self.send(now, key);
        }
        if let Some(mut leaving) = self.leaving.take() {
            let _ = timeout(LINGER, async { while leaving.join_next().await.is_some() {} }).await;
        }
        self.stage.counters.connected.set(0);
        info!(source = self.config.name, unacknowledged, "no longer listening");
    }
}

/// Waits for ever if there is nothing to wait for.
async fn optional<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
