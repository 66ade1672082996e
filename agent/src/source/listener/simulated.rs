//! The listener without sockets: what its driver does with the bytes of clients, one step at a time, for the deterministic
//! simulation.

use std::collections::BTreeSet;

use bytes::BytesMut;
use prometheus_client::registry::Registry;

use super::{
    access::Configured,
    broker::{Broker, ConnectionKey},
    stage::{Group, Stage},
};
use crate::{
    config::{Anonymous, Listener, Route},
    decode::mqtt::Router,
    env::{Clock, Entropy},
    intake::Intake,
    log::Remembered,
    source::{metrics::SourceMetrics, ready},
};

/// The agent's end of its clients' connections.
pub(crate) struct SimulatedListener {
    broker: Broker,
    stage: Stage,
    /// The group waits for room.
    waits: bool,
}

impl SimulatedListener {
    /// Nobody is connected, after a life that noted `remembered`.
    pub(crate) fn new(
        clock: &dyn Clock,
        routes: Vec<Route>,
        receive_maximum: u16,
        record_bytes_max: usize,
        intake: Intake,
        remembered: &Remembered,
        entropy: Box<dyn Entropy>,
    ) -> Self {
        let config = Listener { name: "clients".into(), receive_maximum, routes, ..Listener::for_test() };
        let router =
            Router::new(&config.name, &config.routes, record_bytes_max).expect("routes that are right");
        let counters = SourceMetrics::register(&mut Registry::default()).source(&config.name);
        let stage = Stage::new(&config, router, record_bytes_max, intake, counters);
        let mut broker = Broker::new(config, Box::new(Configured::from(Anonymous::Loopback)), entropy);
        broker.restore(clock.monotonic(), remembered);
        Self { broker, stage, waits: false }
    }

    /// A client has connected.
    pub(crate) fn open(&mut self, clock: &dyn Clock) -> ConnectionKey {
        let address = [127, 0, 0, 1].into();
        self.broker.open(clock.monotonic(), address, &mut self.stage).expect("few clients")
    }

    /// The connection is gone.
    pub(crate) fn close(&mut self, clock: &dyn Clock, key: ConnectionKey) {
        self.broker.remove(clock.monotonic(), key, &mut self.stage);
    }

    /// Whether `key` is read.
    pub(crate) fn reads(&self, clock: &dyn Clock, key: ConnectionKey) -> bool {
        !self.waits && self.broker.may_read(clock.monotonic(), key)
    }

    /// `bytes` came on `key`, which [`reads`](Self::reads).
    pub(crate) fn received(&mut self, clock: &dyn Clock, key: ConnectionKey, bytes: &[u8]) {
        self.stage.received = clock.wall();
        self.broker.received(clock.monotonic(), key, bytes, &mut self.stage);
    }

    /// What is to be sent on `key`, and whether it is to be closed then.
    pub(crate) fn sent(&mut self, clock: &dyn Clock, key: ConnectionKey) -> (BytesMut, bool) {
        let sent = self.broker.output(clock.monotonic(), key).map(BytesMut::split).unwrap_or_default();
        (sent, self.broker.is_done(key))
    }

    /// One turn behind what was read: submits it, and takes what became durable.
    pub(crate) fn turn(&mut self, clock: &dyn Clock) {
        if let Some(Ok(acknowledgement)) = ready(self.stage.intake.acknowledged()) {
            self.broker.acknowledged(acknowledgement, &BTreeSet::new());
        }
        let now = clock.monotonic();
        if !self.waits {
            self.broker.expire(now, &mut self.stage);
            if !self.stage.group.records.is_empty() || self.broker.has_news() {
                let changes = self.broker.changes(now);
                for note in self.stage.intake.notes(changes) {
                    self.stage.group.size_bytes += note.size_bytes();
                    self.stage.group.notes.push(note);
                }
            }
        }
        self.waits = !self.stage.group.is_empty();
        if self.waits
            && let Some(room) = self.stage.intake.try_reserve(self.stage.group.size_bytes)
        {
            let Group { records, notes, .. } = std::mem::take(&mut self.stage.group);
            self.stage.intake.submit_noting(room, records, notes).expect("the pipeline lives");
            self.waits = false;
        }
    }
}
