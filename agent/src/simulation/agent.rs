//! One life of the agent: its sources, and the stages behind them.

use std::{sync::Arc, time::Duration};

use super::{
    clients,
    stages::{Plan, Stages},
    world::{Outside, SimulatedEntropy, partitions, routes},
};
use crate::{
    config,
    log::{LogOptions, store::EpochStore},
    source::{
        listener::simulated::SimulatedListener, mqtt::simulated::SimulatedSession,
        serial::simulated::SimulatedPort,
    },
};

/// Time between the beginnings of two transactions.
const TRANSACTION_INTERVAL: Duration = Duration::from_millis(100);

/// Largest record.
const RECORD_BYTES_MAX: usize = 4096;

/// Bytes that may be on their way to the log.
const INTAKE_BYTES: usize = 8192;

/// Messages that the broker may have unanswered.
pub(super) const RECEIVE_MAXIMUM: u16 = 8;

/// The agent between two crashes.
pub(super) struct Agent {
    /// The serial line.
    pub(super) port: SimulatedPort,
    /// The session at the broker.
    pub(super) session: SimulatedSession,
    /// Connections of devices.
    pub(super) listener: SimulatedListener,
    /// All that is behind them.
    pub(super) stages: Stages,
}

impl Agent {
    /// Starts on what `store` has. `None` if it cannot be read now.
    pub(super) fn start(
        outside: &mut Outside,
        store: Box<dyn EpochStore>,
        limit_bytes: u64,
        transactions: bool,
        entropy_seed: u64,
    ) -> Option<Self> {
        let plan = Plan {
            log: LogOptions { group_bytes: 1024, limit_bytes, ..LogOptions::default() },
            commit: config::Commit {
                window: Duration::from_millis(20),
                batch_bytes: 2048,
                intake_bytes: INTAKE_BYTES,
            },
            feed_groups: 4,
            in_flight_bytes: 4096,
            transaction_interval: transactions.then_some(TRANSACTION_INTERVAL),
            partitions: Arc::new(partitions),
        };
        let sources = ["line", "broker", "clients"];
        let (stages, [line, broker, clients]) = Stages::start(outside, store, plan, sources, entropy_seed)?;
        let ((line, line_remembers), (broker, broker_remembers)) = (line, broker);
        let (clients, clients_remember) = clients;
        let port = SimulatedPort::new(RECORD_BYTES_MAX, line, &line_remembers);
        let session =
            SimulatedSession::new(&routes(), RECORD_BYTES_MAX, RECEIVE_MAXIMUM, broker, &broker_remembers);
        let listener = SimulatedListener::new(
            &*outside.clock,
            routes(),
            clients::RECEIVE_MAXIMUM,
            RECORD_BYTES_MAX,
            clients,
            &clients_remember,
            Box::new(SimulatedEntropy::new(entropy_seed)),
        );
        Some(Self { port, session, listener, stages })
    }
}
