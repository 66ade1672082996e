//! Replicate: batches in order per partition from the log to Kafka, and the cursor that says how far.
//!
//! What was just committed is sent from memory; behind that, the log is read. A record leaves the log only when Kafka
//! has acknowledged it with all in-sync replicas, however long that takes, over restarts of the agent and of Kafka.
//!
//! * [`Replicator`] decides (no thread, no socket, no file), [`run`] drives it on a thread of its own.
//! * [`Cluster`] is the seam to Kafka: [`KafkaCluster`] over librdkafka, [`simulated`] for tests.
//! * [`LogReader`] is the seam to the log.
//! * [`cursor`] is the file with the state that survives a restart.
//!
//! # What is promised
//! No acknowledged record is lost, and those of a partition come in the order of the local offsets.
//!
//! With `delivery = "exactly-once"` a `read_committed` consumer sees each record once. Records go in transactions under the
//! id `wayside.<gateway.id>`, and what each covers is in the cursor's file before Kafka is asked to commit it. What became of
//! the last one Kafka is asked after a crash, also after one that came years ago: see `replicator/transactions.rs`.
//!
//! With `at-least-once` the first occurrence of each record comes in order, so a consumer that skips what is not above the
//! last `wayside.offset` it saw of a gateway and partition sees each record once.
//!
//! In both the producer is idempotent, and after *any* failed delivery it gives up all that it still holds, and everything
//! from the cursor on is sent again.
//!
//! # What is dropped
//! Only a record that Kafka can never take: sent alone it was refused for its size or its contents. It would hold up all
//! others for ever. It is counted by reason, logged, and told by a [gap record](crate::gap), as are the holes that the
//! reader finds in the log.
//!
//! None is dropped for its timestamp. Where the topic refuses the event time (Kafka 4 takes an hour ahead of the brokers'
//! clock unless the topic says otherwise), the record is sent with its receive time; where that is refused too, with the
//! time of sending; and if that is refused, this gateway's clock is wrong, and the record waits until it is not.
//! `wayside.event-time` and `wayside.received` say what was.
//!
//! # Catching up
//! What is not sent from memory as it is committed is backlog, and read back from the log in its order. After an outage
//! it waits a random while, a tenth of the outage and half a minute at most, so that a fleet does not come back at one
//! moment; then it shrinks by `catch_up_bytes_per_second`, on top of what comes in meanwhile (the module `pace`).
//!
//! Order within a partition is a promise, so a live record waits for the backlog of its partition. It does not wait for
//! that of others: a partition that has nothing more in the entries that are still to be read goes before them. Its records
//! come from memory, and where they found no room there, or the feed was full, they are read from the log ahead of their
//! turn. Its offsets have no holes, so that is known without reading, and the cursor has an offset per partition, so what
//! overtook is not sent again. What came while Kafka was away for ten seconds or more is backlog.
//!
//! A broker that throttles for a quota reads no more from the connection for that time (KIP-219; librdkafka does not
//! hold back by itself). What is in flight waits, bounded; live records wait with it. Without transactions there is no limit in
//! time; what does not get through in the time of a transaction ([`TRANSACTION_TIMEOUT`]) goes in smaller ones.
//!
//! # Known weaknesses
//! The log is read in its one order. While a partition has no leader, or a topic is not as the config says, its records
//! stay in flight; once they fill most of `in_flight_bytes`, no backlog of others is read either. Their live records go on.
//! The data is safe in the log.
//!
//! There is one transaction at a time. A partition that has lost its leader holds up all others until the transaction times
//! out; then it sits out for half a minute, and so on. Its records stay in flight meanwhile, as above.
//!
//! A gap that tells of a hole in the log may come twice, shortened by a record, after a crash between its transaction and that
//! of what is behind the hole.
//!
//! A quota far below what is in flight makes brokers throttle for longer than librdkafka waits for an answer
//! (`socket.timeout.ms`, a minute): it then connects anew and sends again. Nothing is lost or doubled, but the quota is
//! exceeded. A smaller `in_flight_bytes` helps, and a `catch_up_bytes_per_second` below the quota.
//!
//! There is one producer. A topic that refuses everything (no right to write, or the gateway's clock is too far ahead)
//! has it restarted again and again, up to 30 s apart; the other topics get on only in between.
//!
//! Kafka's retention by time goes by the record's timestamp, which is the event time. What a device with a clock far in
//! the past sends may be deleted soon after it arrived; `message.timestamp.type=LogAppendTime` on the topic avoids it.

mod access;
pub mod cluster;
mod coordinator;
pub mod cursor;
mod driver;
mod held;
mod kafka;
mod lane;
mod metrics;
mod pace;
mod properties;
mod reach;
mod recent;
mod replicator;
pub mod simulated;
mod stamp;
mod token;
mod topic;
mod topics;
mod wall;

use std::{collections::BTreeMap, fmt, num::NonZeroU16, sync::Arc, time::Duration};

pub use cluster::Cluster;
pub use cursor::{Cursor, CursorFile};
pub use driver::{Replicate, Summary, run};
pub use held::Held;
pub use kafka::KafkaCluster;
pub use metrics::{HealthSnapshot, ReplicateHealth, ReplicateMetrics};
pub use properties::{PROTECTED_PROPERTIES, check_properties};
pub use reach::{Finding, reach};
pub use replicator::Replicator;

use crate::{
    log::{EntrySeq, ReadOutcome},
    record::{Offset, PartitionId, StreamName},
};

/// Partitions of a stream, by its name.
pub type PartitionsOf = Arc<dyn Fn(&str) -> NonZeroU16 + Send + Sync>;

/// What the replicator is told once.
#[derive(Clone)]
pub struct Settings {
    /// First part of every topic.
    pub environment: String,
    /// Partitions that a stream's topic must have.
    pub partitions: PartitionsOf,
    /// Bytes of records that may be in memory on their way to Kafka.
    pub in_flight_bytes: usize,
    /// What the log leaves alone, since replication has begun with it.
    pub held: Held,
    /// Whether the log drops what is stored. Then no partition overtakes another, since what overtook would keep the log
    /// from dropping all that lies before, and the cursor says beforehand what replication is about to begin with.
    pub log_drops: bool,
    /// How fast a backlog shrinks, in bytes of records per second; 0 is no limit.
    pub catch_up_bytes_per_second: u64,
    /// Exactly once; without, at least once.
    pub transactions: Option<TransactionSettings>,
}

/// How records are put into transactions.
#[derive(Clone, Copy, Debug)]
pub struct TransactionSettings {
    /// Shortest time between the beginnings of two, unless there is enough for a full one.
    pub interval: Duration,
    /// Kafka ends one that is open for so long.
    pub timeout: Duration,
}

/// Kafka's `transaction.timeout.ms`: so long at most `read_committed` consumers wait for a gateway that died while it had a
/// transaction open. What a slow uplink does not bring over in that time is tried in smaller transactions.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

/// What the log holds when replication starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// Sequence number of the first entry; 0 if nothing was ever deleted.
    pub first: EntrySeq,
    /// Sequence number of the next entry that the log will append.
    pub next: EntrySeq,
    /// Per (stream, partition) the offset of the next record that the log will append, as far as known.
    pub offsets: BTreeMap<(StreamName, PartitionId), Offset>,
}

/// Entries to be read from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The first one.
    pub from: EntrySeq,
    /// About how many bytes of records.
    pub limit_bytes: usize,
    /// Before their turn: see [`LogReader::read_ahead`].
    pub ahead: bool,
}

/// The log cannot answer now: it is shutting down or busy with damage. The replicator asks again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log does not answer")]
pub struct LogUnavailable;

/// The replicator's way to the log, from its own thread.
pub trait LogReader: Send {
    /// Durable entries from `from` on, until they exceed `limit_bytes` of records; at least one if there is one. Blocks.
    ///
    /// Entries below the log's first one were trimmed after Kafka had them: they are not `lost`, `next` just passes
    /// them. So a cursor that is older than the last trim, or none at all, does no harm.
    ///
    /// # Errors
    /// [`LogUnavailable`]; try again later.
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<ReadOutcome, LogUnavailable>;

    /// As [`read`](Self::read), before the turn of these entries: replication has not begun with all of them, and what
    /// is missing is not told yet. A log that only has what is read in its order does not answer.
    ///
    /// # Errors
    /// [`LogUnavailable`]; the entries are read in their turn.
    fn read_ahead(&mut self, _from: EntrySeq, _limit_bytes: usize) -> Result<ReadOutcome, LogUnavailable> {
        Err(LogUnavailable)
    }

    /// Kafka has everything below `acknowledged`, and the cursor says so durably: the log may delete it.
    fn trim(&mut self, acknowledged: EntrySeq);
}

impl fmt::Debug for Replicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicator")
            .field("cursor", &self.cursor())
            .field("in_flight_records", &self.in_flight_records())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod contract;
#[cfg(test)]
mod real_kafka_tests;
#[cfg(test)]
pub(crate) mod tests;
