//! One life of the agent: the stages of [`crate::pipeline`], stepped by one thread.

use std::{
    num::NonZeroU16,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    time::Duration,
};

use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::world::{ENVIRONMENT, Outside, SimulatedEntropy, partitions, routes};
use crate::{
    commit::{
        GroupCommit, Start,
        metrics::CommitMetrics,
        owner::{Acknowledgers, GapMaker, Owner, Request},
    },
    config,
    env::{Clock, Monotonic},
    intake::{Intake, IntakeEvent, SourceIndex},
    log::{BatchGroup, EntrySeq, Log, LogMetrics, LogOptions},
    replicate::{
        Cluster, Cursor, Held, LogEnd, ReplicateMetrics, Replicator, Settings, TRANSACTION_TIMEOUT,
        TransactionSettings,
    },
    source::{mqtt::simulated::SimulatedSession, serial::simulated::SimulatedPort},
};

/// Groups that may wait for the replicator.
const FEED_GROUPS_MAX: usize = 4;

/// Time between two writes of the cursor.
const CURSOR_INTERVAL: Duration = Duration::from_millis(250);

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
    events: mpsc::UnboundedReceiver<IntakeEvent>,
    commit: GroupCommit,
    under_way: Option<oneshot::Receiver<()>>,
    owner: Owner,
    feed: Receiver<Arc<BatchGroup>>,
    replicator: Replicator,
    durable: Cursor,
    cursor_due: Monotonic,
    /// Replication was told to look for what it may not have heard of.
    is_probed: bool,
}

impl Agent {
    /// Starts on what the disk has. `None` if it cannot be read now.
    pub(super) fn start(outside: &mut Outside, entropy_seed: u64) -> Option<Self> {
        let mut registry = Registry::default();
        let log_metrics = LogMetrics::register(&mut registry);
        let commit_metrics = CommitMetrics::register(&mut registry);
        let cursor = outside.cursor.clone();
        let (next_seq_min, offsets_min) = cursor.as_ref().map(Cursor::beyond).unwrap_or_default();
        let options = LogOptions {
            group_bytes: 1024,
            limit_bytes: outside.limit_bytes,
            next_seq_min,
            offsets_min,
            ..LogOptions::default()
        };
        let store = Box::new(outside.disk.open().with_epoch_bytes(outside.epoch_bytes));
        let (log, mut recovery) = Log::open(store, options, log_metrics.clone()).ok()?;
        let log_end = LogEnd { first: log.first(), next: recovery.end, offsets: recovery.next_offsets };

        let (sender, events) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(INTAKE_BYTES));
        let mut acknowledgers = Acknowledgers::new();
        let mut intake = |name: &str| {
            let index = SourceIndex(acknowledgers.len());
            let (acknowledger, acknowledged) = watch::channel(None);
            acknowledgers.insert(index, acknowledger);
            Intake::new(index, name, sender.clone(), Arc::clone(&room), INTAKE_BYTES, acknowledged)
        };
        let remembered = recovery.notes.remove("line").unwrap_or_default();
        let port = SimulatedPort::new(RECORD_BYTES_MAX, intake("line"), &remembered);
        let remembered = recovery.notes.remove("broker").unwrap_or_default();
        let session = SimulatedSession::new(
            &routes(),
            RECORD_BYTES_MAX,
            RECEIVE_MAXIMUM,
            intake("broker"),
            &remembered,
        );

        let of_this_log = cursor.as_ref().filter(|cursor| cursor.next <= log_end.next);
        let held = Held::new(of_this_log.map(|cursor| cursor.begun).unwrap_or_default());
        let (feed_sender, feed) = sync_channel(FEED_GROUPS_MAX);
        let gap_maker = GapMaker { environment: ENVIRONMENT.into(), partitions: NonZeroU16::MIN };
        let owner =
            Owner::new(log, acknowledgers, feed_sender, gap_maker, held.clone(), commit_metrics, log_metrics);
        let settings = Settings {
            environment: ENVIRONMENT.into(),
            partitions: Arc::new(partitions),
            in_flight_bytes: 4096,
            held,
            log_drops: false,
            catch_up_bytes_per_second: 0,
            transactions: outside.transactions.then_some(TransactionSettings {
                interval: TRANSACTION_INTERVAL,
                timeout: TRANSACTION_TIMEOUT,
            }),
        };
        let entropy = Box::new(SimulatedEntropy::new(entropy_seed));
        let metrics = ReplicateMetrics::default();
        let replicator = Replicator::new(settings, cursor.as_ref(), &log_end, entropy, metrics);
        let window = Duration::from_millis(20);
        let commit = config::Commit { window, batch_bytes: 2048, intake_bytes: INTAKE_BYTES };
        outside.cluster.restart().expect("a simulated producer starts");
        let mut agent = Self {
            port,
            session,
            events,
            commit: GroupCommit::new(commit),
            under_way: None,
            owner,
            feed,
            durable: cursor.unwrap_or_default(),
            cursor_due: outside.clock.monotonic(),
            replicator,
            is_probed: false,
        };
        let acknowledged = agent.replicator.acknowledged();
        agent.trim(outside, acknowledged);
        Some(agent)
    }

    /// The batch stage and the owner of the log take their turn.
    pub(super) fn commit(&mut self, outside: &Outside) {
        if self.under_way.as_mut().is_some_and(|done| done.try_recv().is_ok()) {
            self.under_way = None;
            self.commit.completed();
        }
        let now = outside.clock.monotonic();
        while let Ok(event) = self.events.try_recv() {
            match event {
                IntakeEvent::Submission(submission) => self.commit.push(now, submission, partitions),
                IntakeEvent::Urge => self.commit.urge(),
            }
        }
        let request = (self.commit.next_start(now) == Start::Now).then(|| {
            let (done, completed) = oneshot::channel();
            self.under_way = Some(completed);
            Request::Commit(self.commit.start(now), done)
        });
        self.owner.step(request, &*outside.clock);
    }

    /// Replication takes its turn.
    pub(super) fn replicate(&mut self, outside: &mut Outside) {
        let now = outside.clock.monotonic();
        while let Ok(group) = self.feed.try_recv() {
            self.replicator.offer(group);
        }
        let mut events = Vec::new();
        outside.cluster.poll(Duration::ZERO, &mut events);
        for event in events {
            self.replicator.on_event(now, event);
        }
        if self.replicator.restart_due(now) {
            let restarted = outside.cluster.restart();
            self.replicator.restarted(now, restarted);
        }
        if let Some(request) = self.replicator.fill(now) {
            let (answer, answered) = sync_channel(1);
            self.owner.step(Some(Request::Read(request.from, request.limit_bytes, answer)), &*outside.clock);
            let outcome = answered.try_recv().expect("the owner answers");
            self.replicator.on_read(now, outcome.ok());
        }
        if self.replicator.outruns(&self.durable) {
            self.keep_cursor(outside);
        }
        self.replicator.pump(now, outside.clock.wall(), &mut outside.cluster);
        if self.replicator.prepare_commit() {
            self.keep_cursor(outside);
            self.replicator.commit(now, &mut outside.cluster);
        }
        if self.cursor_due <= now {
            self.keep_cursor(outside);
            self.cursor_due = now + CURSOR_INTERVAL;
            self.replicator.probe(false);
        }
    }

    /// Whether Kafka has all that is in the log.
    pub(super) fn is_caught_up(&mut self) -> bool {
        if !self.commit.is_idle() || !self.is_probed {
            self.is_probed = self.commit.is_idle();
            self.replicator.probe(true);
            return false;
        }
        self.replicator.is_caught_up()
    }

    fn keep_cursor(&mut self, outside: &mut Outside) {
        let cursor = self.replicator.cursor();
        if cursor == self.durable {
            return;
        }
        outside.cursor = Some(cursor.clone());
        self.trim(outside, cursor.next);
        self.durable = cursor;
    }

    fn trim(&mut self, outside: &Outside, acknowledged: EntrySeq) {
        self.owner.step(Some(Request::Trim(acknowledged)), &*outside.clock);
    }
}
