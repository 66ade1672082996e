//! The one thread that touches the log. Everybody else asks it through a [`LogClient`].
//!
//! A commit that fails (full or failing disk) stays in memory and is tried again with growing delays; meanwhile nothing
//! is acknowledged, the intake's bound stops the sources, and reads and trims go on, so that space can come free.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{oneshot, watch};
use tracing::{debug, error};

use super::{PendingCommit, metrics::CommitMetrics};
use crate::{
    env::{Clock, Monotonic},
    intake::{Acknowledgement, SourceIndex},
    log::{BatchGroup, Committed, EntrySeq, Log, LogMetrics, ReadOutcome},
    replicate::{LogReader, LogUnavailable},
};

/// First delay before a failed commit is tried again; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest delay between two tries of a commit.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the owner is asked.
enum Request {
    Commit(PendingCommit, oneshot::Sender<()>),
    Read(EntrySeq, usize, mpsc::SyncSender<Result<ReadOutcome, LogUnavailable>>),
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

    /// Ends the owner after what it was asked before.
    pub(crate) fn stop(&self) {
        let _ = self.requests.send(Request::Stop);
    }
}

impl LogReader for LogClient {
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<ReadOutcome, LogUnavailable> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.requests.send(Request::Read(from, limit_bytes, answer)).map_err(|_| LogUnavailable)?;
        answered.recv().map_err(|_| LogUnavailable)?
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
    metrics: CommitMetrics,
    log_metrics: LogMetrics,
}

impl Owner {
    /// `feed` takes fresh groups for replication from memory; when it is full the replicator reads them from the log.
    pub(crate) fn new(
        log: Log,
        acknowledgers: Acknowledgers,
        feed: mpsc::SyncSender<Arc<BatchGroup>>,
        metrics: CommitMetrics,
        log_metrics: LogMetrics,
    ) -> Self {
        Self { log, acknowledgers, feed: Some(feed), unfinished: None, metrics, log_metrics }
    }

    /// When [`retry`](Self::retry) is due.
    fn retry_at(&self) -> Option<Monotonic> {
        self.unfinished.as_ref().map(|unfinished| unfinished.retry_at)
    }

    /// Carries out a request. False ends the owner.
    fn handle(&mut self, request: Request, now: Monotonic, clock: &dyn Clock) -> bool {
        match request {
            Request::Commit(mut pending, done) => {
                debug_assert!(self.unfinished.is_none(), "one commit at a time");
                self.log.append(std::mem::take(&mut pending.batches));
                self.unfinished = Some(Unfinished { pending, done, retry_at: now, delay: RETRY_MIN });
                self.retry(clock);
            }
            Request::Read(from, limit_bytes, answer) => {
                let outcome = self.log.read(from, limit_bytes).map_err(|cause| {
                    error!(from = from.0, %cause, "cannot read the log");
                    LogUnavailable
                });
                // A replicator that has ended does not want the answer.
                let _ = answer.send(outcome);
            }
            Request::Trim(acknowledged) => {
                match self.log.trim(acknowledged) {
                    Ok(0) => {}
                    // What waited for room may have it now.
                    Ok(_) => {
                        if let Some(unfinished) = &mut self.unfinished {
                            unfinished.retry_at = now;
                        }
                    }
                    Err(cause) => {
                        error!(acknowledged = acknowledged.0, %cause, "cannot delete old epochs; trying again at the next trim");
                    }
                }
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

    /// Tries the unfinished commit.
    fn retry(&mut self, clock: &dyn Clock) {
        let Some(mut unfinished) = self.unfinished.take() else { return };
        let started = clock.monotonic();
        let synced = self.log.sync();
        let ended = clock.monotonic();
        self.log_metrics.observe_sync(ended.since(started));
        match synced {
            Ok(committed) => {
                self.metrics.committed(ended.since(unfinished.pending.oldest));
                self.finish(unfinished, committed);
            }
            Err(cause) => {
                self.metrics.failed();
                error!(%cause, retry_in_ms = unfinished.delay.as_millis(), "cannot commit; nothing is acknowledged meanwhile");
                // From the end: a sync that hangs must leave time for the reads that drain the log.
                unfinished.retry_at = ended + unfinished.delay;
                unfinished.delay = (unfinished.delay * 2).min(RETRY_MAX);
                self.unfinished = Some(unfinished);
            }
        }
    }

    fn finish(&mut self, unfinished: Unfinished, committed: Committed) {
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

    /// Serves requests until told to stop or nobody is left to ask.
    fn run(mut self, requests: &mpsc::Receiver<Request>, clock: &dyn Clock) {
        loop {
            let request = match self.retry_at() {
                None => requests.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(retry_at) => requests.recv_timeout(retry_at.since(clock.monotonic())),
            };
            let now = clock.monotonic();
            match request {
                Ok(request) => {
                    if !self.handle(request, now, clock) {
                        break;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if self.retry_at().is_some_and(|retry_at| retry_at <= now) {
                self.retry(clock);
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
mod tests {
    use std::collections::BTreeMap;

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::{
        batch::Batch,
        env::SystemClock,
        log::{LogOptions, store::simulated::SimulatedDisk},
        record::{ContentType, DeviceId, PartitionId, Received, Record, StreamName},
    };

    fn pending() -> PendingCommit {
        let stream = StreamName::new("s").unwrap();
        let record = Record {
            stream: stream.clone(),
            device: DeviceId::new("d").unwrap(),
            value: "value".into(),
            content_type: ContentType::OctetStream,
            event_time: None,
            received: Received::default(),
            device_seq: None,
            headers: Vec::new(),
        };
        let batch = Batch { stream, partition: PartitionId(0), records: vec![record] };
        PendingCommit {
            batches: vec![batch],
            tickets: BTreeMap::new(),
            oldest: Monotonic::default(),
            _permit: None,
        }
    }

    #[test]
    fn the_owner_answers_while_the_disk_is_full_and_not_while_it_hangs() {
        let disk = SimulatedDisk::new();
        let mut registry = Registry::default();
        let log_metrics = LogMetrics::register(&mut registry);
        let metrics = CommitMetrics::register(&mut registry);
        let (log, _) = Log::open(Box::new(disk.open()), LogOptions::default(), log_metrics.clone()).unwrap();
        let (feed, _fresh) = mpsc::sync_channel(1);
        let owner = Owner::new(log, BTreeMap::new(), feed, metrics.clone(), log_metrics);
        let (client, thread) = spawn(owner, Arc::new(SystemClock::new())).unwrap();

        disk.set_capacity_bytes(Some(0));
        let done = client.commit(pending());
        client.answer().blocking_recv().expect("a full disk is no hang");
        assert!(metrics.failing());
        disk.set_capacity_bytes(None);
        done.blocking_recv().expect("the commit is tried again");

        let hanging = disk.hang();
        let done = client.commit(pending());
        let mut answer = client.answer();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let answered =
            runtime.block_on(async { tokio::time::timeout(Duration::from_millis(100), &mut answer).await });
        assert!(answered.is_err(), "answered while the sync hung");
        drop(hanging);
        answer.blocking_recv().expect("answers again");
        done.blocking_recv().expect("durable");
        client.stop();
        thread.join().unwrap();
    }
}
