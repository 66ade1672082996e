//! What is around the agent, and the weather in it: a disk, a cluster, a line with devices, a broker, time.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    Counts, Faults, Scenario, Summary, agent::Agent, broker::Broker, checker::Ledger, clients::Clients,
    clock::SimulatedClock, line::Wire,
};
use crate::{
    config::{Route, RouteDecode, Value},
    env::{Clock as _, Entropy, Monotonic},
    log::store::simulated::{Fault, SimulatedDisk},
    record::{PartitionId, StreamName},
    replicate::{
        Cursor,
        simulated::{self, SimulatedBrokers, SimulatedCluster},
    },
};

/// First part of the topics.
pub(super) const ENVIRONMENT: &str = "sim";

/// Partitions of every stream.
const PARTITIONS: NonZeroU16 = NonZeroU16::new(3).expect("not 0");

/// Topics that have leaders to lose.
const TOPICS: [&str; 3] = ["sim.raw", "sim.readings", "sim.gaps"];

/// Turns after the weather has cleared within which everything must have arrived.
const SETTLE_STEPS: u32 = 4000;

/// How often, in so many of a thousand turns, a time server answers a gateway whose clock is not right.
const SYNC_PER_MILLE: u16 = 20;

/// Most turns of the agent whose answers a broker has not read when the connection ends.
const LOST_TURNS_MAX: u64 = 6;

/// Partitions of a stream.
pub(super) fn partitions(_stream: &str) -> NonZeroU16 {
    PARTITIONS
}

/// What the broker's messages are.
pub(super) fn routes() -> Vec<Route> {
    let stream = StreamName::new("readings").expect("a name");
    let decode = RouteDecode::Raw { stream, device_topic: "vehicle/{device}".into() };
    vec![Route { topic_filter: "vehicle/+".into(), decode, value: Value::Raw }]
}

/// Chance as the seed says.
#[derive(Debug)]
pub(super) struct SimulatedEntropy(SmallRng);

impl SimulatedEntropy {
    pub(super) fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }
}

impl Entropy for SimulatedEntropy {
    fn next_u64(&mut self) -> u64 {
        self.0.random()
    }
}

/// What outlives the agent and is used by it, but for the disk.
pub(super) struct Outside {
    pub(super) clock: Arc<SimulatedClock>,
    /// The cursor's file.
    pub(super) cursor: Option<Cursor>,
    pub(super) cluster: SimulatedCluster,
}

impl Outside {
    /// A clock that is right, nothing sent, and a cluster.
    pub(super) fn new(cluster: SimulatedCluster) -> Self {
        Self { clock: Arc::new(SimulatedClock::new()), cursor: None, cluster }
    }
}

/// Everything.
pub(super) struct World {
    rng: SmallRng,
    faults: Faults,
    outside: Outside,
    disk: SimulatedDisk,
    epoch_bytes: u64,
    limit_bytes: u64,
    /// Records go to Kafka in transactions.
    transactions: bool,
    brokers: SimulatedBrokers,
    wire: Wire,
    broker: Broker,
    clients: Clients,
    ledger: Ledger,
    /// None between a crash and the next start.
    agent: Option<Agent>,
    /// Until then the thread that owns the log waits for the disk.
    disk_busy_until: Monotonic,
    crashes: u32,
}

impl World {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let mut rng = SmallRng::seed_from_u64(scenario.seed);
        let (cluster, brokers) = simulated::cluster(rng.random());
        let epoch_bytes = rng.random_range(1000..8000);
        let limit_bytes = if rng.random_bool(0.3) { rng.random_range(8_000..30_000) } else { u64::MAX };
        let outside = Outside::new(cluster);
        if scenario.faults.boot > 0 {
            outside.clock.boot();
        }
        let wire = Wire::new(&mut rng);
        let clients = Clients::new(&mut rng);
        Self {
            rng,
            faults: scenario.faults,
            outside,
            disk: SimulatedDisk::new(),
            epoch_bytes,
            limit_bytes,
            transactions: scenario.transactions,
            brokers,
            wire,
            broker: Broker::default(),
            clients,
            ledger: Ledger::default(),
            agent: None,
            disk_busy_until: Monotonic::default(),
            crashes: 0,
        }
    }

    /// Lets the world run for `steps` turns, then clears the weather and waits until everything has arrived.
    pub(super) fn run(mut self, steps: u32, exactly_once: bool) -> Result<Summary, String> {
        for _ in 0..steps {
            self.weather();
            self.load();
            self.turn();
        }
        self.clear_up();
        let mut left = SETTLE_STEPS;
        while !self.is_settled() {
            left = left.checked_sub(1).ok_or_else(|| self.why_not_settled())?;
            self.turn();
        }
        // Without transactions a crash or a new producer sends again.
        let may_repeat = !exactly_once && (self.crashes > 0 || self.brokers.restarts() > 1);
        let partitions = self.brokers.partitions();
        let corrected = self.outside.clock.check(&partitions)?;
        let counts = Counts { corrected, ..self.ledger.check(partitions, may_repeat)? };
        Ok(Summary {
            crashes: self.crashes,
            restarts: self.brokers.restarts(),
            now_us: self.outside.clock.monotonic().as_micros(),
            counts,
        })
    }

    /// Whether something happens that happens `per_mille` times in a thousand.
    fn happens(&mut self, per_mille: u16) -> bool {
        self.rng.random_range(0..1000) < per_mille
    }

    fn weather(&mut self) {
        let faults = self.faults;
        let (disk, brokers) = (self.disk.clone(), self.brokers.clone());
        if self.happens(faults.store_call) {
            disk.die_after(self.rng.random_range(0..12));
        }
        if self.happens(faults.disk) {
            let fault = [Fault::HandleDead, Fault::NoSpace, Fault::Io][self.rng.random_range(0..3)];
            disk.fail_after(self.rng.random_range(0..6), fault);
        }
        if self.happens(faults.disk_full) {
            let full = self.rng.random_bool(0.4);
            disk.set_capacity_bytes(full.then(|| self.rng.random_range(0..20_000)));
        }
        if self.happens(faults.slow_disk) {
            let busy = Duration::from_millis(self.rng.random_range(100..10_000));
            self.disk_busy_until = self.outside.clock.monotonic() + busy;
        }
        if self.happens(faults.kafka) {
            let partition = PartitionId(self.rng.random_range(0..3));
            let topic = TOPICS[self.rng.random_range(0..TOPICS.len())];
            match self.rng.random_range(0..9) {
                0 => brokers.set_away(true),
                1 => brokers.set_away(false),
                2 => brokers.hold_reports(true),
                3 => brokers.hold_reports(false),
                4 => brokers.fail_next("simulated"),
                5 => brokers.set_leader(topic, partition, false),
                6 if self.transactions => brokers.fence(),
                7 => brokers.forget_group(),
                _ => brokers.set_leader(topic, partition, true),
            }
        }
        if self.happens(faults.clock) {
            let jump_us = self.rng.random_range(-10_000_000_000..10_000_000_000);
            self.outside.clock.jump(jump_us);
        }
        if faults.boot > 0 && self.happens(faults.boot) {
            self.crash();
            self.outside.clock.boot();
        } else if faults.boot > 0 && !self.outside.clock.is_synced() && self.happens(SYNC_PER_MILLE) {
            self.outside.clock.sync(self.brokers.handed());
        }
        if self.happens(faults.connection) {
            self.break_connection();
        }
        if self.happens(faults.connection)
            && let Some(agent) = &mut self.agent
        {
            let clock = &*self.outside.clock;
            self.clients.break_connection(&mut self.rng, clock, &mut agent.listener, &mut self.ledger);
        }
        if self.happens(faults.restart_of_device) {
            self.wire.restart(&mut self.rng, &mut self.ledger);
        }
        if self.happens(faults.session) {
            self.break_connection();
            self.broker.forget_session();
        }
        self.wire.noise = faults.noise;
    }

    fn load(&mut self) {
        let now_us = self.outside.clock.monotonic().as_micros();
        self.wire.load(&mut self.rng, now_us, &mut self.ledger);
        self.broker.load(&mut self.rng);
        self.clients.load(&mut self.rng);
    }

    fn clear_up(&mut self) {
        self.outside.clock.sync(self.brokers.handed());
        self.faults = Faults::default();
        self.wire.noise = 0;
        self.disk.set_capacity_bytes(None);
        self.brokers.set_away(false);
        self.brokers.hold_reports(false);
        for topic in TOPICS {
            for partition in 0..i32::from(PARTITIONS.get()) {
                self.brokers.set_leader(topic, PartitionId(partition), true);
            }
        }
    }

    /// Everybody's turn; a crash may come behind each.
    fn turn(&mut self) {
        let ms = if self.rng.random_bool(0.02) { 2000 } else { self.rng.random_range(0..30) };
        self.outside.clock.advance(Duration::from_millis(ms));
        if self.agent.is_none() {
            let seed = self.rng.random();
            let store = Box::new(self.disk.open().with_epoch_bytes(self.epoch_bytes));
            let (limit_bytes, transactions) = (self.limit_bytes, self.transactions);
            self.agent = Agent::start(&mut self.outside, store, limit_bytes, transactions, seed);
            self.broker.disconnect();
        }
        for stage in 0..5 {
            let Some(agent) = &mut self.agent else { return };
            let clock = &*self.outside.clock;
            match stage {
                0 => self.wire.talk(&mut self.rng, clock, &mut agent.port, &mut self.ledger),
                1 => self.broker.talk(&mut self.rng, clock, &mut agent.session, &mut self.ledger),
                2 => self.clients.talk(&mut self.rng, clock, &mut agent.listener, &mut self.ledger),
                // Replication asks the log too, and waits with it.
                3 | 4 if clock.monotonic() < self.disk_busy_until => {}
                3 => agent.stages.commit(&self.outside),
                _ => agent.stages.replicate(&mut self.outside),
            }
            if self.disk.is_dead() || self.happens(self.faults.crash) {
                self.crash();
            }
        }
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.agent = None;
        self.clients.disconnect(&mut self.rng, &mut self.ledger);
        // Killed, the kernel writes what it has; without power some of it, by luck.
        if self.rng.random_bool(0.5) {
            self.disk.crash(usize::MAX);
            self.broker.kill(&mut self.ledger);
        } else {
            self.disk.crash(self.rng.random_range(0..3));
            self.broker.lose_last(self.rng.random_range(1..=LOST_TURNS_MAX), &mut self.ledger);
        }
    }

    fn break_connection(&mut self) {
        if let Some(agent) = &mut self.agent {
            let lost_turns = self.rng.random_range(1..=LOST_TURNS_MAX);
            self.broker.break_connection(lost_turns, &mut agent.session, &mut self.ledger);
        }
    }

    fn is_settled(&mut self) -> bool {
        let quiet = self.wire.is_quiet() && self.broker.is_quiet() && self.clients.is_quiet();
        quiet && self.agent.as_mut().is_some_and(|agent| agent.stages.is_caught_up())
    }

    fn why_not_settled(&mut self) -> String {
        let (line, broker, clients) = (self.wire.is_quiet(), self.broker.is_quiet(), self.clients.is_quiet());
        let kafka = self.agent.as_mut().map(|agent| agent.stages.is_caught_up());
        format!("not settled: line {line}, broker {broker}, clients {clients}, Kafka {kafka:?}")
    }
}
