//! Group commit: what a window gathered becomes durable with one sync, then the sources may answer.
//!
//! [`GroupCommit`] decides when a commit starts and what is in it; [`drive`] runs it beside the sources. [`owner`] is
//! the one thread that touches the log.

pub mod metrics;
pub mod owner;

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::error;

use crate::{
    batch::{Batch, Batcher},
    config,
    env::{Clock, Monotonic},
    intake::{IntakeEvent, Places, SourceIndex, Submission, Ticket},
    log::{Note, NoteBatch},
    partition::partition_of,
    record::{PartitionId, StreamName},
};

/// What one commit makes durable.
#[derive(Debug)]
pub struct PendingCommit {
    /// The records, by (stream, partition).
    pub(crate) batches: Vec<Batch>,
    /// What sources remember once the records are durable.
    pub(crate) notes: Vec<Note>,
    /// Who wants to know where their records are.
    pub(crate) asked: Vec<Asked>,
    /// The last ticket of each source that has records here.
    pub(crate) tickets: BTreeMap<SourceIndex, Ticket>,
    /// When the oldest record here arrived.
    pub(crate) oldest: Monotonic,
    /// Counts the records against the intake's bound until they are durable.
    pub(crate) _permit: Option<OwnedSemaphorePermit>,
}

/// A submission whose source wants to know where its records are.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) placed: oneshot::Sender<Places>,
    /// Of each record the batch, and how many are before it there.
    pub(crate) records: Vec<(StreamName, PartitionId, usize)>,
}

/// When the next commit starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// At this time, if nothing hastens it.
    At(Monotonic),
    /// Not before something arrives or the commit under way ends.
    Wait,
}

/// Decides when a commit starts. Pure.
///
/// One commit is under way at a time. The next starts when the window since the start of the last one is over, and
/// earlier when a source waits for it or enough bytes have gathered.
#[derive(Debug)]
pub struct GroupCommit {
    window: Duration,
    batch_bytes: usize,
    batcher: Batcher,
    notes: NoteBatch,
    asked: Vec<Asked>,
    tickets: BTreeMap<SourceIndex, Ticket>,
    oldest: Monotonic,
    permit: Option<OwnedSemaphorePermit>,
    urged: bool,
    under_way: bool,
    window_end: Monotonic,
}

impl GroupCommit {
    /// Nothing gathered; the first record starts a commit at once.
    pub fn new(config: config::Commit) -> Self {
        Self {
            window: config.window,
            batch_bytes: config.batch_bytes,
            batcher: Batcher::default(),
            notes: NoteBatch::default(),
            asked: Vec::new(),
            tickets: BTreeMap::new(),
            oldest: Monotonic::default(),
            permit: None,
            urged: false,
            under_way: false,
            window_end: Monotonic::default(),
        }
    }

    /// Adds the records of one frame; `partitions` is the number of partitions of a stream.
    pub(crate) fn push(
        &mut self,
        now: Monotonic,
        submission: Submission,
        partitions: impl Fn(&str) -> NonZeroU16,
    ) {
        if self.tickets.is_empty() {
            self.oldest = now;
        }
        self.tickets.insert(submission.source, submission.ticket);
        match &mut self.permit {
            Some(permit) => permit.merge(submission.permit),
            none => *none = Some(submission.permit),
        }
        submission.notes.into_iter().for_each(|note| self.notes.push(note));
        let mut asked = submission.placed.map(|placed| Asked { placed, records: Vec::new() });
        for record in submission.records {
            let partition = partition_of(&record.device, partitions(record.stream.as_str()));
            let stream = asked.is_some().then(|| record.stream.clone());
            let index = self.batcher.push(partition, record);
            if let Some((asked, stream)) = asked.as_mut().zip(stream) {
                asked.records.push((stream, partition, index));
            }
        }
        self.asked.extend(asked);
    }

    /// A source waits for the commit of what it has submitted.
    pub fn urge(&mut self) {
        self.urged = !self.tickets.is_empty();
    }

    /// When to call [`start`](Self::start).
    pub fn next_start(&self, now: Monotonic) -> Start {
        if self.under_way || self.tickets.is_empty() {
            Start::Wait
        } else if self.urged || self.batcher.size_bytes() >= self.batch_bytes || now >= self.window_end {
            Start::Now
        } else {
            Start::At(self.window_end)
        }
    }

    /// Starts a commit of all that has gathered.
    pub fn start(&mut self, now: Monotonic) -> PendingCommit {
        self.under_way = true;
        self.urged = false;
        self.window_end = now + self.window;
        PendingCommit {
            batches: self.batcher.take(),
            notes: self.notes.take(),
            asked: std::mem::take(&mut self.asked),
            tickets: std::mem::take(&mut self.tickets),
            oldest: self.oldest,
            _permit: self.permit.take(),
        }
    }

    /// The commit under way has ended.
    pub fn completed(&mut self) {
        self.under_way = false;
    }

    /// Whether everything submitted is durable.
    pub fn is_idle(&self) -> bool {
        !self.under_way && self.tickets.is_empty()
    }
}

/// Longest time that a shutdown waits for the last commit: a full or failing disk must not keep the agent from ending.
/// What is not durable by then was not acknowledged either.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs [`GroupCommit`] until every source has dropped its intake and all is committed.
///
/// Returns early if the thread that owns the log has ended, which it does not do by itself, and if the last commit does
/// not succeed within [`LAST_COMMIT_TIMEOUT`].
pub(crate) async fn drive(
    config: &config::Config,
    mut events: mpsc::UnboundedReceiver<IntakeEvent>,
    owner: owner::LogClient,
    clock: Arc<dyn Clock>,
) {
    let mut commit = GroupCommit::new(config.commit);
    let mut under_way: Option<oneshot::Receiver<()>> = None;
    let mut give_up_at: Option<Monotonic> = None;
    while give_up_at.is_none() || !commit.is_idle() {
        let now = clock.monotonic();
        let start_at = match commit.next_start(now) {
            Start::Now => {
                under_way = Some(owner.commit(commit.start(now)));
                continue;
            }
            Start::At(start) => Some(start),
            Start::Wait => None,
        };
        let wake_at = start_at.into_iter().chain(give_up_at).min();
        tokio::select! {
            biased;
            ended = async { under_way.as_mut().expect("guarded").await }, if under_way.is_some() => {
                under_way = None;
                commit.completed();
                if ended.is_err() {
                    error!("the thread that owns the log has ended; nothing more can be stored");
                    return;
                }
            }
            event = events.recv(), if give_up_at.is_none() => match event {
                Some(IntakeEvent::Submission(submission)) => {
                    commit.push(clock.monotonic(), submission, |stream| config.partitions(stream));
                }
                Some(IntakeEvent::Urge) => commit.urge(),
                None => {
                    // Nobody is left to hasten it, and nothing more will come. From this moment: it may have come late.
                    give_up_at = Some(clock.monotonic() + LAST_COMMIT_TIMEOUT);
                    commit.urge();
                }
            },
            () = tokio::time::sleep(wake_at.unwrap_or_default().since(now)), if wake_at.is_some() => {}
        }
        if give_up_at.is_some_and(|at| clock.monotonic() >= at) {
            error!(
                "the last commit does not succeed; it was not acknowledged and comes again from its devices"
            );
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use bytes::Bytes;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::record::{ContentType, DeviceId, Received, Record, StreamName};

    fn ms(ms: u64) -> Monotonic {
        Monotonic::from_start(Duration::from_millis(ms))
    }

    fn commit() -> GroupCommit {
        GroupCommit::new(config::Commit {
            window: Duration::from_millis(20),
            batch_bytes: 4096,
            intake_bytes: 1 << 20,
        })
    }

    /// The bound of the intake, of which every submission holds a share.
    static ROOM: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(1000)));

    /// Submits one record of `size_bytes` by source 0 at `now`.
    fn push(commit: &mut GroupCommit, now: Monotonic, ticket: u64, size_bytes: usize) {
        let record = Record {
            stream: StreamName::new("s").unwrap(),
            device: DeviceId::new("d").unwrap(),
            value: Bytes::from(vec![0; size_bytes]),
            content_type: ContentType::OctetStream,
            event_time: None,
            received: Received::default(),
            device_seq: None,
            headers: Vec::new(),
        };
        let permit = Arc::clone(&ROOM).try_acquire_owned().unwrap();
        let submission = Submission {
            source: SourceIndex(0),
            ticket: Ticket(ticket),
            records: vec![record],
            notes: Vec::new(),
            placed: None,
            permit,
        };
        commit.push(now, submission, |_| NonZeroU16::MIN);
    }

    #[test]
    fn a_record_after_a_quiet_time_is_committed_at_once() {
        let mut commit = commit();
        assert_eq!(commit.next_start(ms(1000)), Start::Wait);
        push(&mut commit, ms(1000), 1, 10);
        assert_eq!(commit.next_start(ms(1000)), Start::Now);
    }

    #[test]
    fn a_second_commit_waits_for_the_end_of_the_window() {
        let mut commit = commit();
        push(&mut commit, ms(1000), 1, 10);
        commit.start(ms(1000));
        push(&mut commit, ms(1001), 2, 10);
        assert_eq!(commit.next_start(ms(1001)), Start::Wait, "one commit at a time");
        commit.completed();
        assert_eq!(commit.next_start(ms(1002)), Start::At(ms(1020)));
        assert_eq!(commit.next_start(ms(1020)), Start::Now);
    }

    #[test]
    fn a_waiting_source_or_a_full_batch_ends_the_window_early() {
        let mut commit = commit();
        push(&mut commit, ms(1000), 1, 10);
        commit.start(ms(1000));
        commit.completed();
        push(&mut commit, ms(1001), 2, 10);
        commit.urge();
        assert_eq!(commit.next_start(ms(1002)), Start::Now);
        commit.start(ms(1002));
        commit.completed();
        push(&mut commit, ms(1003), 3, 5000);
        assert_eq!(commit.next_start(ms(1004)), Start::Now);
    }

    #[test]
    fn an_urge_with_nothing_to_commit_does_not_hasten_the_next_commit() {
        let mut commit = commit();
        push(&mut commit, ms(1000), 1, 10);
        commit.start(ms(1000));
        commit.completed();
        commit.urge();
        push(&mut commit, ms(1001), 2, 10);
        assert_eq!(commit.next_start(ms(1002)), Start::At(ms(1020)));
    }

    #[test]
    fn a_commit_covers_the_last_ticket_of_each_source_in_it() {
        let mut commit = commit();
        push(&mut commit, ms(1), 1, 10);
        push(&mut commit, ms(2), 2, 10);
        let pending = commit.start(ms(2));
        assert_eq!(pending.tickets, BTreeMap::from([(SourceIndex(0), Ticket(2))]));
        assert_eq!((pending.oldest, pending.batches.len(), pending.batches[0].records.len()), (ms(1), 1, 2));
        push(&mut commit, ms(3), 3, 10);
        commit.completed();
        assert_eq!(commit.start(ms(22)).tickets, BTreeMap::from([(SourceIndex(0), Ticket(3))]));
    }
}
