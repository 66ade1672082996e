//! The one thread that touches the log. Everybody else asks it through a [`LogClient`].
//!
//! At a bound the log drops what its streams' policies let go (see [`crate::log`]'s compaction), or takes of what comes
//! word alone: a gap record in the place of each device's records.
//!
//! A commit that fails (failing disk) or has no room (full disk, `log.limit_bytes`) stays in memory and is tried again;
//! meanwhile nothing is acknowledged, the intake's bound stops the sources, and reads and trims go on, so that space can
//! come free.

use std::{
    collections::BTreeMap,
    io,
    num::NonZeroU16,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{oneshot, watch};
use tracing::{debug, error, info, warn};

use super::{
    Asked, PendingCommit,
    metrics::{CommitMetrics, with_causes},
};
use crate::{
    batch::{Batch, Batcher},
    config::{GAPS_STREAM, Policy},
    env::{Clock, Monotonic},
    gap::Gap,
    intake::{Acknowledgement, Places, SourceIndex},
    log::{BatchGroup, Committed, EntrySeq, Log, LogError, LogMetrics, ReadOutcome},
    partition::partition_of,
    record::{DeviceId, Offset, PartitionId, Received, StreamName},
    replicate::{Held, LogReader, LogUnavailable, ReadRequest},
};

/// First delay before a failed commit is tried again; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest delay between two tries of a commit.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Shortest time between two commits while what comes is dropped: each tells of it with a few bytes of a full log.
const DROP_WINDOW: Duration = Duration::from_secs(1);
/// Time between two looks at whether there is room: a look costs one system call, and devices wait.
const ROOM_INTERVAL: Duration = Duration::from_millis(250);

/// What the owner is asked.
pub(crate) enum Request {
    Commit(PendingCommit, oneshot::Sender<()>),
    Read(ReadRequest, mpsc::SyncSender<Result<ReadOutcome, LogUnavailable>>),
    Trim(EntrySeq),
    CloseFeed,
    Answer(oneshot::Sender<()>),
    Stop,
}

/// Asks the owner of the log. Cheap to clone.
#[derive(Clone)]
pub struct LogClient {
    requests: mpsc::Sender<Request>,
}

impl LogClient {
    /// Starts a commit; the receiver resolves when it is durable and acknowledged, and fails if the owner has ended.
    pub(crate) fn commit(&self, pending: PendingCommit) -> oneshot::Receiver<()> {
        let (done, completed) = oneshot::channel();
        // An owner that has ended drops `done`, which the caller sees.
        let _ = self.requests.send(Request::Commit(pending, done));
        completed
    }

    /// The receiver resolves when the owner comes to it after what it was asked before, and fails if it has ended.
    pub(crate) fn answer(&self) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Answer(answer));
        answered
    }

    /// Ends the feed of fresh batches: the replicator then drains what the log has and returns.
    pub(crate) fn close_feed(&self) {
        let _ = self.requests.send(Request::CloseFeed);
    }

    fn ask(&self, request: ReadRequest) -> Result<ReadOutcome, LogUnavailable> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.requests.send(Request::Read(request, answer)).map_err(|_| LogUnavailable)?;
        answered.recv().map_err(|_| LogUnavailable)?
    }

    /// Ends the owner after what it was asked before.
    pub(crate) fn stop(&self) {
        let _ = self.requests.send(Request::Stop);
    }
}

impl LogReader for LogClient {
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<ReadOutcome, LogUnavailable> {
        self.ask(ReadRequest { from, limit_bytes, ahead: false })
    }

    fn read_ahead(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<ReadOutcome, LogUnavailable> {
        self.ask(ReadRequest { from, limit_bytes, ahead: true })
    }

    fn trim(&mut self, acknowledged: EntrySeq) {
        // An owner that has ended trims at the next start, by the cursor.
        let _ = self.requests.send(Request::Trim(acknowledged));
    }
}

/// Where acknowledgements go: one watch per source.
pub(crate) type Acknowledgers = BTreeMap<SourceIndex, watch::Sender<Option<Acknowledgement>>>;

/// A commit that is not durable yet.
struct Unfinished {
    pending: PendingCommit,
    /// Where records are, for those who want to know.
    places: Vec<(oneshot::Sender<Places>, Places)>,
    done: oneshot::Sender<()>,
    retry_at: Monotonic,
    delay: Duration,
}

/// Owns the log and decides what each request does to it. [`spawn`] gives it a thread.
pub(crate) struct Owner {
    log: Log,
    acknowledgers: Acknowledgers,
    feed: Option<mpsc::SyncSender<Arc<BatchGroup>>>,
    unfinished: Option<Unfinished>,
    gap_maker: GapMaker,
    held: Held,
    /// When a commit may be made in which something was dropped.
    next_drop: Monotonic,
    /// Why the last trim failed, as it was told.
    trim_trouble: Option<String>,
    metrics: CommitMetrics,
    log_metrics: LogMetrics,
}

/// Makes the records that tell of dropped ones.
pub(crate) struct GapMaker {
    /// As in the configuration: a part of the key of gaps without a device.
    pub(crate) environment: String,
    /// Partitions of the stream of gap records.
    pub(crate) partitions: NonZeroU16,
}

impl GapMaker {
    /// A gap record for each device of `batch`.
    fn tell(&self, batch: Batch, gaps: &mut Batcher) {
        let mut dropped: BTreeMap<DeviceId, (Received, u64)> = BTreeMap::new();
        for record in batch.records {
            dropped.entry(record.device).or_insert((record.received, 0)).1 += 1;
        }
        for (device, (received, count)) in dropped {
            let gap = Gap::of_newest(batch.stream.clone(), device, count);
            let record = gap.record(received, &self.environment);
            gaps.push(partition_of(&record.device, self.partitions), record);
        }
    }
}

impl Owner {
    /// `feed` takes fresh groups for replication from memory; when it is full the replicator reads them from the log.
    pub(crate) fn new(
        log: Log,
        acknowledgers: Acknowledgers,
        feed: mpsc::SyncSender<Arc<BatchGroup>>,
        gap_maker: GapMaker,
        held: Held,
        metrics: CommitMetrics,
        log_metrics: LogMetrics,
    ) -> Self {
        let next_drop = Monotonic::default();
        Self {
            log,
            acknowledgers,
            feed: Some(feed),
            unfinished: None,
            trim_trouble: None,
            gap_maker,
            held,
            next_drop,
            metrics,
            log_metrics,
        }
    }

    /// What it owns.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// When [`retry`](Self::retry) is due.
    fn retry_at(&self) -> Option<Monotonic> {
        self.unfinished.as_ref().map(|unfinished| unfinished.retry_at)
    }

    /// Carries out a request. False ends the owner.
    fn handle(&mut self, request: Request, now: Monotonic) -> bool {
        match request {
            Request::Commit(mut pending, done) => {
                debug_assert!(self.unfinished.is_none(), "one commit at a time");
                let batches = std::mem::take(&mut pending.batches);
                let (batches, dropped) = self.drop_newest(batches);
                let places = self.places(std::mem::take(&mut pending.asked), &batches);
                self.log.append_noting(batches, std::mem::take(&mut pending.notes));
                let retry_at = if dropped { self.next_drop.max(now) } else { now };
                if dropped {
                    self.next_drop = retry_at + DROP_WINDOW;
                }
                self.unfinished = Some(Unfinished { pending, places, done, retry_at, delay: RETRY_MIN });
                // When it is due now, `run` tries it at once.
            }
            Request::Read(ReadRequest { from, limit_bytes, ahead }, answer) => {
                let outcome = if ahead {
                    self.log.read_ahead(from, limit_bytes)
                } else {
                    self.log.read(from, limit_bytes)
                };
                let outcome = outcome.map_err(|cause| {
                    error!(from = from.0, cause = with_causes(&cause), "cannot read the log");
                    LogUnavailable
                });
                if let Some(outcome) = outcome.as_ref().ok().filter(|_| !ahead) {
                    self.held.read(outcome.next);
                }
                // A replicator that has ended does not want the answer.
                let _ = answer.send(outcome);
            }
            Request::Trim(acknowledged) => {
                let trimmed = self.log.trim(acknowledged, now);
                if trimmed.as_ref().is_ok_and(|epochs| *epochs > 0)
                    && let Some(unfinished) = &mut self.unfinished
                {
                    // What waited for room may have it now.
                    unfinished.retry_at = now;
                }
                let trouble = trimmed.err().map(|cause| with_causes(&cause));
                if let Some(cause) = &trouble
                    && trouble != self.trim_trouble
                {
                    error!(cause, "cannot delete old epochs; trying again at each trim");
                }
                self.trim_trouble = trouble;
            }
            Request::CloseFeed => self.feed = None,
            Request::Answer(answer) => {
                // Who asked may have ended.
                let _ = answer.send(());
            }
            Request::Stop => return false,
        }
        true
    }

    /// Where the records of `asked` will be, once `batches` are appended: what these do not have was dropped.
    fn places(&self, asked: Vec<Asked>, batches: &[Batch]) -> Vec<(oneshot::Sender<Places>, Places)> {
        let place = |(stream, partition, index): (StreamName, PartitionId, usize)| {
            let mut batches = batches.iter();
            batches.find(|batch| (&batch.stream, batch.partition) == (&stream, partition))?;
            let index = i64::try_from(index).expect("a batch fits the memory");
            Some(Offset(self.log.next_offset(stream, partition).0 + index))
        };
        let places = |asked: Asked| (asked.placed, asked.records.into_iter().map(place).collect());
        asked.into_iter().map(places).collect()
    }

    /// Of what comes while the log is full, puts gap records in the place of what the policy drops. Says if there is any.
    fn drop_newest(&mut self, batches: Vec<Batch>) -> (Vec<Batch>, bool) {
        let drops = |log: &Log, batch: &Batch| log.policy(&batch.stream) == Policy::DropNewest;
        if !self.log.is_full() || !batches.iter().any(|batch| drops(&self.log, batch)) {
            return (batches, false);
        }
        while self.log.is_full() && self.make_room() {}
        if !self.log.is_full() {
            return (batches, false);
        }
        let mut gaps = Batcher::default();
        let mut kept = Vec::new();
        for batch in batches {
            if drops(&self.log, &batch) {
                let records = u64::try_from(batch.records.len()).unwrap_or(u64::MAX);
                self.log_metrics.dropped(batch.stream.as_str(), Policy::DropNewest, records);
                self.gap_maker.tell(batch, &mut gaps);
            } else {
                kept.push(batch);
            }
        }
        // One batch for each partition: what came on the stream of gaps itself goes in with them.
        let (gap_batches, others): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|batch| batch.stream.as_str() == GAPS_STREAM);
        for batch in gap_batches {
            for record in batch.records {
                gaps.push(batch.partition, record);
            }
        }
        (others.into_iter().chain(gaps.take()).collect(), true)
    }

    /// Makes durable what was appended; while the log is full and may drop something, drops it.
    fn sync(&mut self) -> Result<Committed, LogError> {
        loop {
            match self.log.sync() {
                Err(cause) if cause.is_full() && self.make_room() => {}
                result => return result,
            }
        }
    }

    /// Deletes what is kept though Kafka has it, and when there is none, what policies let go. False if nothing went.
    fn make_room(&mut self) -> bool {
        let held = &self.held;
        let made = match self.log.delete_retained() {
            Ok(false) => self.log.compact(|first, end| held.release(first, end)),
            made => made,
        };
        made.unwrap_or_else(|cause| {
            error!(%cause, "cannot make room in the log");
            false
        })
    }

    /// Tries the unfinished commit.
    fn retry(&mut self, clock: &dyn Clock) {
        let Some(mut unfinished) = self.unfinished.take() else { return };
        let started = clock.monotonic();
        let synced = self.sync();
        let ended = clock.monotonic();
        if !synced.as_ref().is_err_and(LogError::is_bound) {
            self.log_metrics.observe_sync(ended.since(started));
        }
        match synced {
            Ok(committed) => {
                if let Some(after) = self.metrics.last_error() {
                    info!(after, "commits go on");
                }
                self.metrics.committed(ended.since(unfinished.pending.oldest));
                self.finish(unfinished, committed);
            }
            Err(cause) => {
                let news = self.metrics.failed(&cause);
                // From the end: a sync that hangs must leave time for the reads that drain the log.
                if cause.is_bound() {
                    if let Some(cause) = news {
                        warn!(cause, "the log is full; nothing is acknowledged until there is room");
                    }
                    unfinished.retry_at = ended + ROOM_INTERVAL;
                } else {
                    if let Some(cause) = news {
                        error!(cause, "cannot commit; nothing is acknowledged until it can");
                    }
                    unfinished.retry_at = ended + unfinished.delay;
                    unfinished.delay = (unfinished.delay * 2).min(RETRY_MAX);
                }
                self.unfinished = Some(unfinished);
            }
        }
    }

    fn finish(&mut self, unfinished: Unfinished, committed: Committed) {
        for (placed, places) in unfinished.places {
            // Who asked may be gone.
            let _ = placed.send(places);
        }
        for (source, ticket) in &unfinished.pending.tickets {
            if let Some(acknowledger) = self.acknowledgers.get(source) {
                acknowledger.send_replace(Some(Acknowledgement::new(&committed.receipt, *ticket)));
            }
        }
        if let Some(feed) = &self.feed {
            for group in committed.groups {
                // Full: the replicator is behind and finds the group in the log.
                if feed.try_send(group).is_err() {
                    break;
                }
            }
        }
        drop(unfinished.pending);
        // The commit stage may have been cancelled at shutdown; the data is safe all the same.
        let _ = unfinished.done.send(());
    }

    /// Carries out a request, and tries the unfinished commit if that is due. False ends the owner.
    pub(crate) fn step(&mut self, request: Option<Request>, clock: &dyn Clock) -> bool {
        let now = clock.monotonic();
        if request.is_some_and(|request| !self.handle(request, now)) {
            return false;
        }
        if self.retry_at().is_some_and(|retry_at| retry_at <= now) {
            self.retry(clock);
        }
        true
    }

    /// Serves requests until told to stop or nobody is left to ask.
    fn run(mut self, requests: &mpsc::Receiver<Request>, clock: &dyn Clock) {
        loop {
            let request = match self.retry_at() {
                None => requests.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(retry_at) => requests.recv_timeout(retry_at.since(clock.monotonic())),
            };
            let goes_on = match request {
                Ok(request) => self.step(Some(request), clock),
                Err(mpsc::RecvTimeoutError::Timeout) => self.step(None, clock),
                Err(mpsc::RecvTimeoutError::Disconnected) => false,
            };
            if !goes_on {
                break;
            }
        }
        if self.unfinished.is_some() {
            error!("stopped with a commit that never became durable; its sources were not acknowledged");
        }
        debug!("log closed");
    }
}

/// Gives the owner its thread.
///
/// # Errors
/// When the system has no thread for it.
pub(crate) fn spawn(owner: Owner, clock: Arc<dyn Clock>) -> io::Result<(LogClient, JoinHandle<()>)> {
    let (requests, received) = mpsc::channel();
    let thread = std::thread::Builder::new().name("wayside-log".into()).spawn(move || {
        owner.run(&received, clock.as_ref());
    })?;
    Ok((LogClient { requests }, thread))
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
