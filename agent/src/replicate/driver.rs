//! The thread around the [`Replicator`]: waits, polls, reads, and keeps the cursor.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::Duration,
};

use super::{
    Cluster, Cursor, CursorFile, Held, LogEnd, LogReader, PartitionsOf, ReadRequest, ReplicateMetrics,
    Replicator, Settings, TRANSACTION_TIMEOUT, TransactionSettings,
};
use crate::{
    config::{self, Delivery},
    env::{Clock, Entropy, Monotonic},
    log::{BatchGroup, EntrySeq},
};

/// Shortest and longest wait while deliveries are outstanding. It doubles while nothing is reported: with Kafka away
/// for hours the thread wakes twice a second.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// First interval between writes of the cursor, doubled at each up to `config.cursor_interval`: an agent that is killed
/// again and again soon after its start gets on nevertheless.
const CURSOR_INTERVAL_MIN: Duration = Duration::from_millis(250);

/// Everything that replication is given.
pub struct Replicate {
    /// Groups as they become durable, in order. The sender drops what does not fit the channel; the replicator reads it
    /// from the log. When all senders are gone, the replicator drains the log and returns.
    pub live: Receiver<Arc<BatchGroup>>,
    /// The log.
    pub reader: Box<dyn LogReader>,
    /// What the log held before the first group of `live`.
    pub log_end: LogEnd,
    /// Kafka.
    pub cluster: Box<dyn Cluster>,
    /// `[replicate]`.
    pub config: config::Replicate,
    /// First part of every topic.
    pub environment: String,
    /// Partitions that the topic of a stream must have.
    pub partitions: PartitionsOf,
    /// What the log leaves alone.
    pub held: Held,
    /// As [`Settings::log_drops`].
    pub log_drops: bool,
    /// As [`CursorFile::open`] returned it, before the log was opened: whoever cannot open it stops, since without a
    /// cursor every restart would send the whole log again.
    pub cursor: (CursorFile, Option<Cursor>),
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Jitter of retries.
    pub entropy: Box<dyn Entropy>,
    /// What is shown.
    pub metrics: ReplicateMetrics,
}

/// What replication had achieved when it returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Kafka has everything below this entry, and the cursor says so unless `cursor_is_durable` is false.
    pub acknowledged: EntrySeq,
    /// Whether that is all that the log holds.
    pub caught_up: bool,
    /// Records left in the log for the next start.
    pub lag_records: u64,
    /// False if the last write of the cursor failed: the next start sends some records again.
    pub cursor_is_durable: bool,
}

/// Replicates until `live` is closed and the log is drained, or `config.shutdown_flush` later. Blocks: give it a
/// thread.
pub fn run(replicate: Replicate) -> Summary {
    let (file, cursor) = replicate.cursor;
    let settings = Settings {
        environment: replicate.environment,
        partitions: replicate.partitions,
        in_flight_bytes: replicate.config.in_flight_bytes,
        held: replicate.held,
        log_drops: replicate.log_drops,
        catch_up_bytes_per_second: replicate.config.catch_up_bytes_per_second,
        transactions: match replicate.config.delivery {
            Delivery::ExactlyOnce => Some(TransactionSettings {
                interval: replicate.config.transaction_interval,
                timeout: TRANSACTION_TIMEOUT,
            }),
            Delivery::AtLeastOnce => None,
        },
    };
    let metrics = replicate.metrics;
    metrics.damaged_cursor_slots.inc_by(file.damaged_slots());
    let replicator =
        Replicator::new(settings, cursor.as_ref(), &replicate.log_end, replicate.entropy, metrics.clone());
    let mut reader = replicate.reader;
    // A crash may have come between the last cursor and its trim.
    reader.trim(replicator.acknowledged());
    let now = replicate.clock.monotonic();
    let driver = Driver {
        live: replicate.live,
        reader,
        cluster: replicate.cluster,
        clock: replicate.clock,
        metrics,
        replicator,
        keeper: CursorKeeper {
            file,
            durable: cursor.unwrap_or_default(),
            failing: false,
            trimmed: EntrySeq(0),
            interval: CURSOR_INTERVAL_MIN.min(replicate.config.cursor_interval),
            interval_max: replicate.config.cursor_interval,
            due: now,
        },
        events: Vec::new(),
        pause: PAUSE_MIN,
    };
    driver.run(replicate.config.shutdown_flush)
}

struct Driver {
    live: Receiver<Arc<BatchGroup>>,
    reader: Box<dyn LogReader>,
    cluster: Box<dyn Cluster>,
    clock: Arc<dyn Clock>,
    metrics: ReplicateMetrics,
    replicator: Replicator,
    keeper: CursorKeeper,
    events: Vec<super::cluster::ClusterEvent>,
    pause: Duration,
}

/// The cursor file and when it is written next.
struct CursorKeeper {
    file: CursorFile,
    durable: Cursor,
    /// The last write failed, which was told.
    failing: bool,
    /// What the log was told to trim.
    trimmed: EntrySeq,
    /// To the next write.
    interval: Duration,
    interval_max: Duration,
    due: Monotonic,
}

impl Driver {
    fn run(mut self, shutdown_flush: Duration) -> Summary {
        while self.take_live() {
            let now = self.clock.monotonic();
            if !self.step(now) {
                self.wait(now);
            }
        }
        self.replicator.drain();
        let deadline = self.clock.monotonic() + shutdown_flush;
        loop {
            let now = self.clock.monotonic();
            if self.replicator.is_caught_up() || deadline <= now {
                break;
            }
            if !self.step(now) {
                let pause = self.next_pause();
                self.poll(pause.min(deadline.since(now)));
            }
        }
        self.replicator.publish(self.clock.wall());
        let cursor_is_durable = self.keep_cursor();
        Summary {
            acknowledged: self.replicator.acknowledged(),
            caught_up: self.replicator.is_caught_up(),
            lag_records: self.replicator.lag_records(),
            cursor_is_durable,
        }
    }

    /// Takes what was committed; false when nothing more will be.
    fn take_live(&mut self) -> bool {
        loop {
            match self.live.try_recv() {
                Ok(group) => self.replicator.offer(group),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// One round of everything that can go on without waiting; true if something did.
    fn step(&mut self, now: Monotonic) -> bool {
        let mut progress = self.poll(Duration::ZERO);
        if self.replicator.restart_due(now) {
            let result = self.cluster.restart();
            self.replicator.restarted(now, result);
            progress = true;
        }
        if let Some(request) = self.replicator.fill(now) {
            let ReadRequest { from, limit_bytes, ahead } = request;
            let outcome = if ahead {
                self.reader.read_ahead(from, limit_bytes)
            } else {
                self.reader.read(from, limit_bytes)
            };
            progress |= outcome.as_ref().is_ok_and(|o| o.next > from);
            self.replicator.on_read(now, request, outcome.ok());
        }
        // A disk that fails is no reason to keep the data from Kafka.
        if self.replicator.outruns(&self.keeper.durable) && !self.keeper.failing {
            self.keep_cursor();
        }
        progress |= self.replicator.pump(now, self.clock.wall(), self.cluster.as_mut());
        if self.replicator.prepare_commit() {
            // Kafka's group says the same, as long as it remembers; so here too a disk that fails is no reason to wait.
            self.write_cursor();
            self.replicator.commit(now, self.cluster.as_mut());
            progress = true;
        }
        if self.keeper.due <= now {
            self.keep_cursor();
            self.keeper.due = now + self.keeper.interval;
            self.replicator.probe(false);
            self.replicator.publish(self.clock.wall());
        }
        progress
    }

    /// Takes what Kafka reported; true if there was anything.
    fn poll(&mut self, timeout: Duration) -> bool {
        self.cluster.poll(timeout, &mut self.events);
        if self.events.is_empty() {
            return false;
        }
        let now = self.clock.monotonic();
        for event in self.events.drain(..) {
            self.replicator.on_event(now, event);
        }
        self.pause = PAUSE_MIN;
        self.replicator.publish(self.clock.wall());
        true
    }

    /// Waits for the next commit, as long as nothing else is expected before.
    fn wait(&mut self, now: Monotonic) {
        let mut timeout = self.keeper.due.since(now);
        if let Some(deadline) = self.replicator.deadline() {
            timeout = timeout.min(deadline.since(now));
        }
        if !self.replicator.is_caught_up() {
            timeout = timeout.min(self.next_pause());
        }
        match self.live.recv_timeout(timeout) {
            Ok(group) => self.replicator.offer(group),
            // `take_live` sees it.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
    }

    /// Writes the cursor if it advanced, then lets the log trim. True if the file says what is acknowledged.
    ///
    /// In this order, so that the log's first entry is never above the cursor. If the write fails the log is trimmed all
    /// the same: a full disk must be able to drain, and a cursor below the log's first entry is harmless (see
    /// [`LogReader::read`]).
    fn keep_cursor(&mut self) -> bool {
        let cursor = self.replicator.cursor();
        let durable = &self.keeper.durable;
        let says_all = (cursor.next, &cursor.acknowledged, &cursor.intent)
            == (durable.next, &durable.acknowledged, &durable.intent);
        let is_durable = says_all && !self.replicator.outruns(durable);
        if !is_durable {
            self.write_cursor();
            self.keeper.interval = (self.keeper.interval * 2).min(self.keeper.interval_max);
        }
        // Transactions write it too.
        if self.keeper.trimmed < cursor.next {
            self.reader.trim(cursor.next);
            self.keeper.trimmed = cursor.next;
        }
        is_durable || !self.keeper.failing
    }

    /// Writes the cursor.
    fn write_cursor(&mut self) {
        let mut cursor = self.replicator.cursor();
        let result = self.keeper.file.write(&mut cursor);
        match &result {
            Ok(()) => {
                self.metrics.cursor_writes.inc();
                self.keeper.durable = cursor;
            }
            Err(error) => {
                self.metrics.cursor_write_failures.inc();
                self.metrics.error(format!("cursor: {error}"));
                if !self.keeper.failing {
                    tracing::warn!(%error, "the cursor is not written; a restart would send some records again");
                }
            }
        }
        self.keeper.failing = result.is_err();
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
