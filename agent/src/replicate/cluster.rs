//! The seam to Kafka: what the replicator needs of a cluster, and nothing that only one client library has.

use std::{num::NonZeroU16, time::Duration};

use super::cursor::{LastRecord, LogId};
use crate::record::{Offset, PartitionId, Received, Record, UnixMicros};

/// Names a record between [`Cluster::produce`] and its delivery report. Fits a C pointer on every target.
pub type Token = usize;

/// A record on its way to a partition.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Topic, with the environment.
    pub topic: &'a str,
    /// Partition of the topic.
    pub partition: PartitionId,
    /// What is sent: key, value, headers.
    pub record: &'a Record,
    /// When the gateway received it, as far as is known now; the headers `wayside.received` and `wayside.clock`. Where that
    /// is not what the record says, `wayside.clock.corrected` has what it says.
    pub received: Received,
    /// Its place in the local log, if it has one; the header `wayside.offset`.
    pub offset: Option<Offset>,
    /// Kafka's timestamp, in ms since 1970.
    pub timestamp_ms: i64,
    /// The event time, where `timestamp_ms` is another because the topic did not take it; the header
    /// `wayside.event-time`.
    pub refused_event_time: Option<UnixMicros>,
    /// Comes back in the delivery report.
    pub token: Token,
}

/// Why a record was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// The client's own queue is full: poll, then try again.
    #[error("the client's queue is full")]
    QueueFull,
    /// This record can never be delivered with the client's settings: count it as dropped.
    #[error("{0}")]
    Undeliverable(DropReason),
    /// The client says that the topic or partition is not there: ensure it and restart the client.
    #[error("no such topic or partition")]
    NoTopic,
    /// The client takes nothing: restart it.
    #[error("{0}")]
    Failed(String),
}

/// Why Kafka never takes a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum DropReason {
    /// Larger than `max.message.bytes` of the topic or `message.max.bytes` of the client.
    #[error("too large for the topic")]
    TooLarge,
    /// The broker's validation refuses it, for instance no key on a compacted topic.
    #[error("refused by the broker's validation")]
    Invalid,
}

impl DropReason {
    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
        }
    }
}

/// Why a broker refused a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A timestamp in it is too far from the brokers' clock: send the record with another.
    #[error("timestamp outside of what the topic allows")]
    Timestamp,
    /// It never takes a record that is in it.
    #[error("{0}")]
    Contents(DropReason),
}

/// Why a record that was taken was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryError {
    /// The broker refused the batch that the record was in for at least one record of it.
    Refused(Refusal),
    /// The topic or partition is not there (any more): ensure it, then send again.
    NoTopic,
    /// Anything else, among it records purged by a restart or a fatal error: send again.
    Other(String),
}

/// What is known about a topic after an attempt to ensure it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicOutcome {
    /// It has the wanted number of partitions.
    Ready,
    /// It is there with another number of partitions.
    PartitionMismatch {
        /// Partitions that it has.
        found: usize,
    },
    /// Not known or not created; try again later.
    Failed(String),
}

/// What a gateway's group holds for a partition: an offset of the local log, and by which transaction it came there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// Topic, with the environment.
    pub topic: String,
    /// Partition of the topic.
    pub partition: PartitionId,
    /// Behind the last record that Kafka has of it.
    pub offset: Offset,
    /// Of which log that is. The group's metadata holds it with the number, as `<16 hex digits> <decimal>`.
    pub log: LogId,
    /// Number of the transaction that it was committed with.
    pub transaction: u64,
}

/// Whether consumers that are `read_committed` see a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// They do, so its transaction was committed.
    Committed,
    /// They do not, so it was not.
    Absent,
    /// It cannot be known: what was there is deleted, or may not be read.
    Unknown,
}

/// What a cluster reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// All in-sync replicas have the record.
    Delivered {
        /// Which record.
        token: Token,
        /// Its offset in its Kafka partition.
        kafka_offset: i64,
    },
    /// The record is not delivered and no longer tried.
    Failed {
        /// Which record.
        token: Token,
        /// Why.
        error: DeliveryError,
    },
    /// Answer to [`Cluster::ensure_topic`].
    Topic {
        /// The topic's name.
        topic: String,
        /// What was found or done.
        outcome: TopicOutcome,
    },
    /// Answer to [`Cluster::init_transactions`]: what the gateway's group holds for the partitions asked for.
    Initialized(Vec<GroupOffset>),
    /// Answer to [`Cluster::find`].
    Found(Presence),
    /// Answer to [`Cluster::commit_transaction`]: `read_committed` consumers see its records, all or soon.
    Committed,
    /// A producer with our `transactional.id` was begun after ours, or our transaction took too long; the client is of no
    /// more use.
    Fenced(String),
    /// The client is of no more use: restart it. What became of a transaction that was being committed is not known.
    Fatal(String),
    /// Something that the client goes on trying by itself, for the operator's eyes.
    Trouble(String),
    /// A broker holds the client back for so long since it is over its quota; zero when none does any more.
    Throttled(Duration),
}

/// A Kafka cluster as an idempotent producer with `acks=all` sees it, with transactions or without.
///
/// The contract, checked for every implementation by the suite in `contract.rs`:
/// * Records of one partition are appended in the order in which they were taken, without a hole: once one of them
///   failed, none that was taken after it is delivered before a [`restart`](Self::restart).
/// * Each record taken is reported exactly once, unless a restart comes first. Without transactions there is no time limit:
///   while the cluster is away nothing is reported.
/// * No call but [`poll`](Self::poll) waits for the network. (`restart` may take some hundred ms.)
///
/// With transactions: after the start and after each restart [`init_transactions`](Self::init_transactions) comes first. Then
/// [`begin_transaction`](Self::begin_transaction), records until each is reported, [`commit_transaction`](Self::commit_transaction),
/// one after the other. A restart in between gives the transaction up.
pub trait Cluster: Send {
    /// Takes a copy of a record for its partition.
    ///
    /// # Errors
    /// See [`ProduceError`]; nothing was taken.
    fn produce(&mut self, record: &Outgoing<'_>) -> Result<(), ProduceError>;

    /// Appends what happened to `events`. With a `timeout` it may wait so long for more to happen.
    fn poll(&mut self, timeout: Duration, events: &mut Vec<ClusterEvent>);

    /// Begins to look for a topic and to create it if it is missing. Answered by [`ClusterEvent::Topic`], once,
    /// whether or not a restart comes in between.
    fn ensure_topic(&mut self, topic: &str, partitions: NonZeroU16);

    /// Gives up the producer with all that it holds and begins anew. No event of what came before is reported
    /// afterwards; a record taken before may have been delivered all the same, and a transaction committed.
    ///
    /// # Errors
    /// Why there is no new producer; nothing is taken until a later restart succeeds.
    fn restart(&mut self) -> Result<(), String>;

    /// Begins to end what this gateway has left open, so that nothing of it is decided later, and then to read what its group
    /// holds for `partitions`. Answered by [`ClusterEvent::Initialized`], `Fenced` or `Fatal`, however long the cluster is
    /// away.
    fn init_transactions(&mut self, partitions: Vec<(String, PartitionId)>);

    /// Begins a transaction; what is produced from now on is part of it.
    ///
    /// # Errors
    /// The client takes none: restart it.
    fn begin_transaction(&mut self) -> Result<(), String>;

    /// Begins to commit the transaction, all of whose records are delivered, and `offsets` with it. Answered by
    /// [`ClusterEvent::Committed`], `Fenced` or `Fatal`, however long the cluster is away.
    fn commit_transaction(&mut self, offsets: Vec<GroupOffset>);

    /// Begins to look whether a record is there, after `Initialized`. Answered by [`ClusterEvent::Found`].
    fn find(&mut self, record: &LastRecord);
}
