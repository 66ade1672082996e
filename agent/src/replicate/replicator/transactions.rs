//! Exactly once: records go to Kafka in transactions, and the cursor says beforehand what each one would make true.
//!
//! A transaction takes what has gathered while the one before was being committed, all of it in memory, and is committed as
//! soon as Kafka has its records: what is open for long holds up every `read_committed` consumer of its partitions. Before
//! it is committed, an [`Intent`] goes into the cursor's file. With it go offsets into the gateway's group, and in their
//! metadata the transaction's number. So after a crash, and after a commit whose answer never came, there is one question:
//! has Kafka committed the last one?
//!
//! * The group knows: it has that number, or one before for a partition that the last record went to.
//! * Where the group's offsets are gone (Kafka forgets them after `offsets.retention.minutes`, a week), the last record is
//!   looked for in its place as a `read_committed` consumer does: it is there, or something else is seen behind it.
//! * Where that place is deleted too, nobody can know. The records are sent again, and that is told.
//!
//! What the group says is taken only where it has this log's random number ([`LogId`]) and fits what is known here: nothing
//! that another gateway, or a copy of this one, has left there makes a record be skipped. The number is in the file from the
//! start of the agent, so that the group makes up for a disk that fails later.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use super::{Replicator, failures::RETRY, holes::Holes};
use crate::{
    config::GAPS_STREAM,
    env::{Entropy, Monotonic},
    log::EntrySeq,
    record::{Offset, PartitionId, Received, StreamName},
    replicate::{
        Cursor, TransactionSettings,
        cluster::{Cluster, GroupOffset, Presence},
        cursor::{Acknowledged, Intent, LastRecord, LogId},
        lane::{Lane, Settled},
    },
};

/// A transaction is not made smaller than this for a slow uplink.
const LIMIT_BYTES_MIN: usize = 4 * 1024;

/// Where the transactional producer stands.
#[derive(Debug)]
enum Phase {
    /// It is new, or was given up.
    New,
    /// It ends what is open, and asks for the group's offsets.
    Initializing,
    /// The last record of the transaction in doubt is to be looked for.
    Doubting,
    /// It is looked for.
    Searching,
    /// Records gather for the next transaction.
    Gathering,
    /// Records are on their way.
    Open(Open),
    /// All of them are delivered, and the intent is to become durable; then these offsets go with the commit.
    Delivered(Vec<GroupOffset>),
    /// Kafka has been asked to commit.
    Committing,
}

/// What was handed over in the open transaction.
#[derive(Debug, Default)]
struct Open {
    records: usize,
    /// Of those, how many the client has not reported.
    unreported: usize,
    /// (topic, partition) of the records.
    partitions: BTreeSet<(usize, PartitionId)>,
    /// Lane, partition, offset in Kafka and in the lane of the record reported last.
    last: Option<(usize, PartitionId, i64, Offset)>,
}

/// What a life before may have done in Kafka without its cursor knowing: its last write was lost, or the disk took none.
#[derive(Debug)]
struct LifeBefore {
    /// The name that it used last. Of older ones the cursor knows all but the last transaction.
    log: LogId,
    /// The ends of the log as this life found it: whoever has gone beyond them is another one.
    ends: Acknowledged,
}

/// The transactions of a [`Replicator`].
#[derive(Debug)]
pub(super) struct Transactions {
    settings: TransactionSettings,
    phase: Phase,
    log: LogId,
    /// What it is called from the next transaction on, if that is another name.
    next_log: Option<LogId>,
    /// Of the last one that Kafka may have committed.
    number: u64,
    /// That one, while it is not known whether it has.
    in_doubt: Option<Intent>,
    /// What the group may know and the cursor does not, until it was asked.
    before: Option<LifeBefore>,
    /// When the last one was begun.
    begun: Option<Monotonic>,
    /// When the coordinators were asked last to begin anew or to commit.
    asked: Monotonic,
    /// Records of one that is neither committed nor known to be ended may be in Kafka since.
    open_since: Option<Monotonic>,
    /// Bytes of records in the last one.
    size_bytes: usize,
    /// Most bytes of records in one.
    limit_bytes: usize,
    limit_max_bytes: usize,
    /// The next one does not wait for more.
    flushes: bool,
    /// A broker holds us back for a quota.
    throttled: bool,
}

impl Transactions {
    /// Those of a log with `ends`, and with `cursor` if that is the log's.
    pub(super) fn new(
        settings: TransactionSettings,
        cursor: Option<&Cursor>,
        ends: &Acknowledged,
        in_flight_bytes: usize,
        entropy: &mut dyn Entropy,
    ) -> Self {
        let log = cursor.and_then(|cursor| cursor.log);
        let last_log = cursor.and_then(|cursor| cursor.next_log).or(log);
        // The next one gathers while one is under way.
        let limit_bytes = in_flight_bytes / 2;
        Self {
            settings,
            phase: Phase::New,
            log: log.unwrap_or_else(|| LogId::random(entropy)),
            next_log: log.map(|_| LogId::random(entropy)),
            number: cursor.map_or(0, |cursor| cursor.transaction),
            in_doubt: cursor.and_then(|cursor| cursor.intent.clone()),
            before: last_log.map(|log| LifeBefore { log, ends: ends.clone() }),
            begun: None,
            asked: Monotonic::default(),
            open_since: None,
            size_bytes: 0,
            limit_bytes,
            limit_max_bytes: limit_bytes,
            flushes: false,
            throttled: false,
        }
    }

    /// What the cursor says of them.
    pub(super) fn say(&self, cursor: &mut Cursor) {
        cursor.log = Some(self.log);
        cursor.next_log = self.next_log;
        cursor.transaction = self.number;
        cursor.intent.clone_from(&self.in_doubt);
    }

    /// Whether the log has other names in Kafka than in the `durable` cursor. Before a commit bears one, both halves of the
    /// file do: whichever is lost, the other one is still known to be of this log.
    pub(super) fn is_renamed(&self, durable: &Cursor) -> bool {
        (durable.log, durable.next_log) != (Some(self.log), self.next_log)
    }

    /// Most bytes of records in the next one.
    #[cfg(test)]
    pub(super) fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Waits for no more records from now on.
    pub(super) fn flush(&mut self) {
        self.flushes = true;
    }

    /// Whether a broker holds us back for a quota.
    pub(super) fn throttle(&mut self, throttled: bool) {
        self.throttled = throttled;
    }

    /// A record was handed to the client, or was `dropped` since it takes it never.
    pub(super) fn handed_over(
        &mut self,
        topic: usize,
        partition: PartitionId,
        size_bytes: usize,
        dropped: bool,
    ) {
        if let Phase::Open(open) = &mut self.phase {
            open.records += 1;
            self.size_bytes += size_bytes;
            if !dropped {
                open.unreported += 1;
                open.partitions.insert((topic, partition));
            }
        }
    }

    /// Whether what was open has outlived what Kafka allows: then it was Kafka that ended it.
    pub(super) fn has_timed_out(&self, now: Monotonic) -> bool {
        self.open_since.is_some_and(|since| now.since(since) >= self.settings.timeout)
    }

    /// Whether an answer is no longer waited for: the client may have lost its way to a coordinator that has moved.
    fn waits_too_long(&self, now: Monotonic) -> bool {
        now.since(self.asked) >= self.settings.timeout * 2
    }

    /// The producer was given up, and with it what was open. Says whether anything was.
    fn given_up(&mut self) -> bool {
        let phase = mem::replace(&mut self.phase, Phase::New);
        matches!(phase, Phase::Open(_) | Phase::Delivered(_) | Phase::Committing)
    }

    /// What the last one took was too much: the next one is smaller, on the way to the greatest that is taken in time.
    fn shrink(&mut self) {
        self.limit_bytes = (self.limit_bytes.min(self.size_bytes) / 2).max(LIMIT_BYTES_MIN);
    }

    fn committed(&mut self, now: Monotonic) {
        let Some(since) = self.open_since else { return };
        let took = now.since(since);
        if took < self.settings.timeout / 8 {
            self.limit_bytes = (self.limit_bytes * 2).min(self.limit_max_bytes);
        } else if took >= self.settings.timeout / 3 {
            self.shrink();
        }
        self.phase = Phase::Gathering;
        self.in_doubt = None;
        self.open_since = None;
    }
}

impl Replicator {
    /// Goes on with transactions as far as it can without waiting. True if it did.
    pub(super) fn pump_transaction(
        &mut self,
        now: Monotonic,
        wall: Received,
        cluster: &mut dyn Cluster,
    ) -> bool {
        if self.restart_at.is_some() {
            return false;
        }
        for lane in &mut self.lanes {
            lane.sits_out = lane.sits_out.filter(|until| now < *until);
        }
        let questions = self.questions();
        let is_due = self.transaction_due().is_some_and(|due| due <= now);
        let Some(transactions) = &mut self.transactions else { return false };
        match &transactions.phase {
            Phase::New => {
                cluster.init_transactions(questions);
                transactions.phase = Phase::Initializing;
                transactions.asked = now;
                return true;
            }
            Phase::Gathering if is_due => {
                if let Err(reason) = cluster.begin_transaction() {
                    self.fail(now, reason);
                    return false;
                }
                transactions.log = transactions.next_log.take().unwrap_or(transactions.log);
                transactions.begun = Some(now);
                transactions.open_since = Some(now);
                transactions.size_bytes = 0;
                transactions.phase = Phase::Open(Open::default());
            }
            Phase::Doubting => {
                if let Some(last) = transactions.in_doubt.as_ref().and_then(|intent| intent.last.as_ref()) {
                    cluster.find(last);
                }
                transactions.phase = Phase::Searching;
                return true;
            }
            Phase::Open(open) if open.unreported > 0 && transactions.has_timed_out(now) => {
                self.fail(now, "Kafka did not take all records of a transaction in time".to_owned());
                return false;
            }
            // What became of it a new producer finds out.
            Phase::Initializing | Phase::Committing if transactions.waits_too_long(now) => {
                self.fail(now, "Kafka's coordinators do not answer".to_owned());
                return false;
            }
            // The client's queue was full.
            Phase::Open(Open { records: 0, .. }) => {}
            _ => return false,
        }
        let limit_bytes = transactions.limit_bytes;
        self.send(now, wall, cluster, limit_bytes)
    }

    /// Partitions whose offsets in the group may decide a doubt.
    fn questions(&self) -> Vec<(String, PartitionId)> {
        let asks =
            |t: &&Transactions| matches!(t.phase, Phase::New) && (t.before.is_some() || t.in_doubt.is_some());
        if self.transactions.as_ref().filter(asks).is_none() {
            return Vec::new();
        }
        let lanes = self.lanes.iter().filter(|lane| lane.in_log);
        let mut questions: BTreeSet<_> =
            lanes.map(|lane| (self.topics[lane.topic].name.clone(), lane.partition)).collect();
        let in_doubt = self.transactions.as_ref().and_then(|t| t.in_doubt.as_ref());
        questions
            .extend(in_doubt.and_then(|i| i.last.as_ref()).map(|last| (last.topic.clone(), last.partition)));
        questions.into_iter().collect()
    }

    /// When the next transaction begins, if there is anything for it.
    pub(super) fn transaction_due(&self) -> Option<Monotonic> {
        let transactions = self.transactions.as_ref().filter(|t| matches!(t.phase, Phase::Gathering))?;
        let ready: Vec<_> =
            (0..self.lanes.len()).filter(|i| self.may_send(*i)).map(|i| &self.lanes[i]).collect();
        if ready.is_empty() {
            return None;
        }
        let bytes: usize = ready.iter().map(|lane| lane.pending_bytes).sum();
        // Behind a refused record others wait, and it takes many small transactions to find.
        let at_once = transactions.flushes
            || bytes >= transactions.limit_bytes
            || ready.iter().any(|lane| lane.is_suspect());
        Some(match transactions.begun {
            Some(begun) if !at_once => begun + transactions.settings.interval,
            _ => Monotonic::default(),
        })
    }

    /// Whether a lane has to wait for gap records: those of it go in the same transaction as what comes behind them, so
    /// that the cursor covers both.
    pub(super) fn waits_for_gaps(&self, index: usize) -> bool {
        self.transactions.is_some() && !self.lanes[index].untold.is_empty() && self.has_gaps_to_send()
    }

    /// The producer was given up; what was under way is still in the lanes.
    pub(super) fn give_up_transaction(&mut self, now: Monotonic) {
        let Some(transactions) = &mut self.transactions else { return };
        let slow = transactions.has_timed_out(now);
        if transactions.given_up() {
            self.metrics.aborted_transactions.inc();
        }
        if !slow {
            return;
        }
        // A slow uplink, or a broker that throttles: so much is never taken in time.
        transactions.shrink();
        // A partition without a leader has none of its records where others have all: it would hold them up again.
        // One of a broker that throttles looks the same and is not: it gets on.
        let fared: Vec<_> = self.lanes.iter().map(Lane::fared).collect();
        let throttled = transactions.throttled;
        if !throttled && fared.contains(&(true, false)) && !fared.contains(&(true, true)) {
            for (lane, _) in self.lanes.iter_mut().zip(&fared).filter(|(_, fared)| **fared == (false, true)) {
                lane.sits_out = Some(now + RETRY.max);
            }
        }
    }

    /// A record of the open transaction was delivered.
    pub(super) fn delivered_in_transaction(&mut self, index: usize, position: u64, kafka_offset: i64) {
        let Some(Transactions { phase: Phase::Open(open), .. }) = &mut self.transactions else { return };
        let Some(sent) = self.lanes[index].at(position) else { return };
        open.unreported -= 1;
        open.last = Some((index, sent.partition, kafka_offset, sent.offset));
    }

    /// If all records of the open transaction are delivered, says in the [`cursor`](Self::cursor) what it would make true, to
    /// be made durable before [`commit`](Self::commit) is called. False where there is nothing to commit.
    pub fn prepare_commit(&mut self) -> bool {
        let Some(Transactions { phase: Phase::Open(open), .. }) = &self.transactions else { return false };
        if open.records == 0 || open.unreported > 0 || self.restart_at.is_some() {
            return false;
        }
        let (next, mut acknowledged) = self.cursor_if_committed();
        let last = open.last.map(|(index, partition, kafka_offset, offset)| {
            let lane = &self.lanes[index];
            let topic = self.topics[lane.topic].name.clone();
            LastRecord { topic, partition, kafka_offset, offset: lane.in_log.then_some(offset) }
        });
        let of_records = open.partitions.iter().map(|(topic, partition)| {
            let stream = self.topics[*topic].stream.clone();
            let offset = acknowledged.get(&(stream.clone(), *partition)).copied().unwrap_or(Offset(0));
            ((stream, *partition), offset)
        });
        let mut offsets: Acknowledged = of_records.collect();
        let known = self.cursor().acknowledged;
        acknowledged.retain(|key, offset| known.get(key) != Some(offset));
        offsets.extend(acknowledged.iter().map(|(key, offset)| (key.clone(), *offset)));
        let offsets = self.in_kafkas_words(&offsets);
        let Some(transactions) = &mut self.transactions else { return false };
        transactions.number += 1;
        let (log, transaction) = (transactions.log, transactions.number);
        let offsets = offsets.map(|(topic, partition, offset)| GroupOffset {
            topic,
            partition,
            offset,
            log,
            transaction,
        });
        transactions.phase = Phase::Delivered(offsets.collect());
        transactions.in_doubt = Some(Intent { next, acknowledged, last });
        true
    }

    /// Offsets by the names of topics, of partitions that these have.
    fn in_kafkas_words(
        &self,
        offsets: &Acknowledged,
    ) -> impl Iterator<Item = (String, PartitionId, Offset)> + use<> {
        let named = offsets.iter().filter_map(|((stream, partition), offset)| {
            let topic = self.topics.iter().find(|topic| topic.stream == *stream)?;
            let is_there = partition.0 < i32::from(topic.partitions.get());
            is_there.then(|| (topic.name.clone(), *partition, *offset))
        });
        named.collect::<Vec<_>>().into_iter()
    }

    /// Asks Kafka to commit what was prepared.
    pub fn commit(&mut self, now: Monotonic, cluster: &mut dyn Cluster) {
        let Some(transactions) = &mut self.transactions else { return };
        if let Phase::Delivered(offsets) = &mut transactions.phase {
            cluster.commit_transaction(mem::take(offsets));
            transactions.phase = Phase::Committing;
            transactions.asked = now;
        }
    }

    /// The cursor as it will be when Kafka commits what is delivered: what [`advance`](Self::advance) would do to all
    /// lanes.
    fn cursor_if_committed(&self) -> (EntrySeq, Acknowledged) {
        let mut released: BTreeMap<EntrySeq, usize> = BTreeMap::new();
        let mut behind: Vec<Offset> = self.lanes.iter().map(|lane| lane.acknowledged).collect();
        let mut told: BTreeSet<(usize, Offset)> = BTreeSet::new();
        let mut dropped: BTreeMap<usize, Offset> = BTreeMap::new();
        for (index, lane) in self.lanes.iter().enumerate() {
            for (n, (sent, settled)) in lane.settled().enumerate() {
                behind[index] = Offset(sent.offset.0 + 1);
                told.extend(lane.tells_of.get(n));
                if settled != Settled::Delivered && lane.stream.as_str() != GAPS_STREAM {
                    // Its gap holds the entry in its stead.
                    dropped.entry(index).or_insert(sent.offset);
                } else {
                    *released.entry(sent.entry).or_default() += 1;
                }
            }
        }
        for (index, missing) in &told {
            if behind[*index] == *missing {
                behind[*index] = Offset(missing.0 + 1);
            }
        }
        let acknowledged = self.lane_of.iter().filter_map(|(key, index)| {
            let untold = self.lanes[*index].untold.iter().find(|first| !told.contains(&(*index, **first)));
            let first = untold.into_iter().chain(dropped.get(index)).min();
            let offset = first.map_or(behind[*index], |first| behind[*index].min(*first));
            (offset > Offset(0)).then(|| (key.clone(), offset))
        });
        let held = |seq: &EntrySeq, unacknowledged| released.get(seq).is_none_or(|n| *n < unacknowledged);
        let first = self.entries.iter().find(|(seq, entry)| held(seq, entry.unacknowledged));
        (first.map_or(self.next, |(seq, _)| self.next.min(*seq)), acknowledged.collect())
    }

    /// Kafka has committed.
    pub(super) fn on_committed(&mut self, now: Monotonic) {
        let Some(transactions) = &mut self.transactions else { return };
        if !matches!(transactions.phase, Phase::Committing) {
            return;
        }
        transactions.committed(now);
        self.metrics.transactions.inc();
        self.metrics.health().fenced(false);
        for index in 0..self.lanes.len() {
            self.advance(index);
        }
    }

    /// What was open before is ended, and the group holds `offsets`.
    pub(super) fn on_initialized(&mut self, offsets: &[GroupOffset]) {
        let Some(transactions) = &mut self.transactions else { return };
        if !matches!(transactions.phase, Phase::Initializing) {
            return;
        }
        transactions.phase = Phase::Gathering;
        transactions.open_since = None;
        let (log, number) = (transactions.log, transactions.number);
        let before = transactions.before.take();
        let last_log = before.as_ref().map(|before| before.log);
        let ours = |group: &&GroupOffset| group.log == log || Some(group.log) == last_log;
        let newest = offsets.iter().filter(ours).max_by_key(|group| group.transaction);
        if let Some(newest) = newest.filter(|newest| newest.transaction > number) {
            let ours: Vec<_> = offsets.iter().filter(ours).collect();
            // Before this life has sent anything.
            let is_known = |before: &LifeBefore| {
                newest.log == before.log || newest.transaction == number + 1 && newest.log == log
            };
            if before.is_some_and(|before| is_known(&before) && self.adopt_group(&ours, &before.ends)) {
                tracing::warn!(
                    transaction = newest.transaction,
                    "the cursor has lost its last writes; Kafka's copy is used"
                );
                return;
            }
            tracing::error!(
                newest = newest.transaction,
                known = number,
                "Kafka has transactions of this log that the log knows nothing of: was an older copy of the data directory \
                 put in its place, or does another gateway run on a copy? Kafka's copy of the cursor is not used"
            );
            if let Some(transactions) = &mut self.transactions {
                transactions.next_log.get_or_insert_with(|| LogId::random(self.entropy.as_mut()));
            }
        }
        let Some(transactions) = &mut self.transactions else { return };
        let Some(intent) = &transactions.in_doubt else { return };
        let Some(last) = intent.last.clone() else {
            // It had no record.
            transactions.in_doubt = None;
            return;
        };
        let of_last = |group: &&GroupOffset| group.topic == last.topic && group.partition == last.partition;
        let known = offsets.iter().filter(ours).find(of_last).map(|group| group.transaction);
        match known {
            Some(transaction) if transaction == number => self.settle(Presence::Committed),
            Some(transaction) if transaction < number => self.settle(Presence::Absent),
            _ => transactions.phase = Phase::Doubting,
        }
    }

    /// It is known, or known that it cannot be, what became of the transaction in doubt.
    pub(super) fn settle(&mut self, presence: Presence) {
        let Some(transactions) = &mut self.transactions else { return };
        let Some(intent) = transactions.in_doubt.take() else { return };
        transactions.phase = Phase::Gathering;
        let transaction = transactions.number;
        match presence {
            Presence::Committed => {
                tracing::info!(transaction, "Kafka has committed the last transaction");
                self.adopt(&intent.acknowledged, intent.next);
            }
            Presence::Absent => {
                tracing::info!(transaction, "Kafka has not committed the last transaction; it is sent again");
            }
            Presence::Unknown => {
                tracing::error!(
                    transaction,
                    "nobody knows whether Kafka has committed the last transaction: its group has forgotten, and where its \
                     last record would be, records were deleted or may not be read. It is sent again, perhaps twice"
                );
                self.metrics.undecided_transactions.inc();
            }
        }
    }

    /// Takes the group's offsets for the cursor's. False, and nothing taken, if they are beyond `ends`.
    fn adopt_group(&mut self, offsets: &[&GroupOffset], ends: &Acknowledged) -> bool {
        let Some(transactions) = &self.transactions else { return false };
        let mut acknowledged = Acknowledged::new();
        let mut number = transactions.number;
        for group in offsets {
            number = number.max(group.transaction);
            let here = |key: &&(StreamName, PartitionId), index: &usize| {
                key.1 == group.partition && self.topics[self.lanes[*index].topic].name == group.topic
            };
            let Some((key, _)) = self.lane_of.iter().find(|(key, index)| here(key, index)) else {
                continue;
            };
            if group.offset > ends.get(key).copied().unwrap_or(Offset(0)) {
                return false;
            }
            acknowledged.insert(key.clone(), group.offset);
        }
        if let Some(transactions) = &mut self.transactions {
            transactions.number = number;
            transactions.in_doubt = None;
        }
        self.adopt(&acknowledged, EntrySeq(0));
        true
    }

    /// Kafka turns out to have everything before these offsets, and before `next`.
    fn adopt(&mut self, acknowledged: &Acknowledged, next: EntrySeq) {
        for (stream, partition) in acknowledged.keys() {
            self.lane_index(stream, *partition);
        }
        for (key, index) in &self.lane_of {
            let lane = &mut self.lanes[*index];
            lane.adopt(acknowledged.get(key).copied().unwrap_or(lane.cursor()));
        }
        self.holes = Holes::default();
        self.go_back(self.acknowledged().max(next));
    }

    /// Another producer has our `transactional.id`. To take it back at once would make both of them useless.
    pub(super) fn on_fenced(&mut self, now: Monotonic, reason: &str) {
        if self.restart_at.is_some_and(|at| at >= now + RETRY.max) {
            // The client says it more than once.
            return;
        }
        if self.transactions.as_ref().is_some_and(|transactions| transactions.has_timed_out(now)) {
            self.fail(now, format!("Kafka has ended a transaction that took too long: {reason}"));
            return;
        }
        let delay = RETRY.max + self.entropy.jitter(RETRY.max);
        tracing::error!(
            reason,
            delay_ms = delay.as_millis(),
            "another gateway with the same gateway.id writes to Kafka and has fenced this one; it waits, then takes over again"
        );
        self.metrics.fenced.inc();
        self.metrics.health().fenced(true);
        self.restart_at = Some(now + delay);
        self.show_error("another gateway with the same gateway.id writes to Kafka".to_owned());
    }
}
