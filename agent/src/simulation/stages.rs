//! The stages of [`crate::pipeline`] behind the sources, stepped by one thread.

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

use super::world::{ENVIRONMENT, Outside, SimulatedEntropy};
use crate::{
    commit::{
        GroupCommit, Start,
        metrics::CommitMetrics,
        owner::{Acknowledgers, GapMaker, Owner, Request},
    },
    config,
    env::{Clock, Monotonic},
    intake::{Intake, IntakeEvent, SourceIndex},
    log::{BatchGroup, EntrySeq, Log, LogMetrics, LogOptions, Remembered, store::EpochStore},
    replicate::{
        Cluster, Cursor, Held, LogEnd, PartitionsOf, ReplicateMetrics, Replicator, Settings,
        TRANSACTION_TIMEOUT, TransactionSettings,
    },
};

/// Time between two writes of the cursor.
const CURSOR_INTERVAL: Duration = Duration::from_millis(250);

/// What stages are told once.
pub(super) struct Plan {
    /// How the log is written, but for what the cursor says of it.
    pub(super) log: LogOptions,
    pub(super) commit: config::Commit,
    /// Groups that may wait for the replicator.
    pub(super) feed_groups: usize,
    /// Bytes on their way to Kafka.
    pub(super) in_flight_bytes: usize,
    /// Time between the beginnings of two transactions; none of at least once.
    pub(super) transaction_interval: Option<Duration>,
    pub(super) partitions: PartitionsOf,
}

/// The stages between two crashes.
pub(super) struct Stages {
    events: mpsc::UnboundedReceiver<IntakeEvent>,
    partitions: PartitionsOf,
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

impl Stages {
    /// Starts on what `store` has, with an intake for each of `sources` and what they remember. `None` if the store cannot be
    /// read now.
    pub(super) fn start<const N: usize>(
        outside: &mut Outside,
        store: Box<dyn EpochStore>,
        plan: Plan,
        sources: [&str; N],
        entropy_seed: u64,
    ) -> Option<(Self, [(Intake, Remembered); N])> {
        let mut registry = Registry::default();
        let log_metrics = LogMetrics::register(&mut registry);
        let commit_metrics = CommitMetrics::register(&mut registry);
        let cursor = outside.cursor.clone();
        let (next_seq_min, offsets_min) = cursor.as_ref().map(Cursor::beyond).unwrap_or_default();
        let log_drops = plan.log.policies.values().any(|policy| policy.drops_stored());
        let options = LogOptions { next_seq_min, offsets_min, ..plan.log };
        let (log, mut recovery) = Log::open(store, options, log_metrics.clone()).ok()?;
        let log_end = LogEnd { first: log.first(), next: recovery.end, offsets: recovery.next_offsets };

        let (sender, events) = mpsc::unbounded_channel();
        let intake_bytes = plan.commit.intake_bytes;
        let room = Arc::new(Semaphore::new(intake_bytes));
        let mut acknowledgers = Acknowledgers::new();
        let intakes = sources.map(|name| {
            let index = SourceIndex(acknowledgers.len());
            let (acknowledger, acknowledged) = watch::channel(None);
            acknowledgers.insert(index, acknowledger);
            let intake =
                Intake::new(index, name, sender.clone(), Arc::clone(&room), intake_bytes, acknowledged);
            (intake, recovery.notes.remove(name).unwrap_or_default())
        });

        let of_this_log = cursor.as_ref().filter(|cursor| cursor.next <= log_end.next);
        let held = Held::new(of_this_log.map(|cursor| cursor.begun).unwrap_or_default());
        let (feed_sender, feed) = sync_channel(plan.feed_groups);
        let gap_maker = GapMaker { environment: ENVIRONMENT.into(), partitions: NonZeroU16::MIN };
        let owner =
            Owner::new(log, acknowledgers, feed_sender, gap_maker, held.clone(), commit_metrics, log_metrics);
        let settings = Settings {
            environment: ENVIRONMENT.into(),
            partitions: Arc::clone(&plan.partitions),
            in_flight_bytes: plan.in_flight_bytes,
            held,
            log_drops,
            catch_up_bytes_per_second: 0,
            transactions: plan
                .transaction_interval
                .map(|interval| TransactionSettings { interval, timeout: TRANSACTION_TIMEOUT }),
        };
        let entropy = Box::new(SimulatedEntropy::new(entropy_seed));
        let metrics = ReplicateMetrics::default();
        let replicator = Replicator::new(settings, cursor.as_ref(), &log_end, entropy, metrics);
        outside.cluster.restart().expect("a simulated producer starts");
        let mut stages = Self {
            events,
            partitions: plan.partitions,
            commit: GroupCommit::new(plan.commit),
            under_way: None,
            owner,
            feed,
            durable: cursor.unwrap_or_default(),
            cursor_due: outside.clock.monotonic(),
            replicator,
            is_probed: false,
        };
        let acknowledged = stages.replicator.acknowledged();
        stages.trim(outside, acknowledged);
        Some((stages, intakes))
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
                IntakeEvent::Submission(submission) => {
                    self.commit.push(now, submission, |stream| (self.partitions)(stream))
                }
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
            self.owner.step(Some(Request::Read(request, answer)), &*outside.clock);
            let outcome = answered.try_recv().expect("the owner answers");
            self.replicator.on_read(now, request, outcome.ok());
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

    /// Bytes of the log on the disk, and those of them that are of epochs of which Kafka has something.
    pub(super) fn disk_bytes(&self) -> (u64, u64) {
        let log = self.owner.log();
        (log.stats().size_bytes, log.size_bytes_before(self.durable.next))
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
