//! A cluster in memory that obeys the contract of [`Cluster`] and misbehaves within it, as a seed and its owner say.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU16,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    cluster::{
        Cluster, ClusterEvent, DeliveryError, GroupOffset, Outgoing, Presence, ProduceError, Token,
        TopicOutcome,
    },
    cursor::LastRecord,
};
use crate::record::{Offset, PartitionId, Received, Record};

/// In place of the offset of a record that the local log does not hold.
pub const NOT_IN_LOG: Offset = Offset(-1);

/// A record as a partition of the simulated cluster holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its offset in the local log, or [`NOT_IN_LOG`].
    pub offset: Offset,
    /// Kafka's timestamp in ms.
    pub timestamp_ms: i64,
    /// What the headers say of its receipt.
    pub received: Received,
    /// The record.
    pub record: Record,
}

type Place = (String, PartitionId);

#[derive(Debug)]
struct Taken {
    token: Token,
    appended: Appended,
}

/// A record in its partition, and the transaction that it is of.
#[derive(Debug)]
struct Stored {
    appended: Appended,
    transaction: Option<u64>,
}

/// A partition, less what was consumed.
#[derive(Debug, Default)]
struct Held {
    /// Offset of the first in `records`.
    first: usize,
    records: VecDeque<Stored>,
}

/// What was asked of the cluster and is not answered.
#[derive(Debug)]
enum Asked {
    Init(Vec<Place>),
    Commit(Vec<GroupOffset>),
    Find(Place, i64),
}

/// Decides whether a record is refused, and how.
type Refuses = Box<dyn Fn(&Appended) -> Option<DeliveryError> + Send>;

struct State {
    rng: SmallRng,
    away: bool,
    holds_reports: bool,
    fails_next: Option<String>,
    fatal: bool,
    leaderless: BTreeSet<Place>,
    refuses: Refuses,
    queue_limit: usize,
    batch_limit: usize,
    topics: BTreeMap<String, NonZeroU16>,
    wanted: VecDeque<(String, NonZeroU16)>,
    queues: BTreeMap<Place, VecDeque<Taken>>,
    partitions: BTreeMap<Place, Held>,
    reports: VecDeque<ClusterEvent>,
    restarts: u64,
    /// Number of the open transaction.
    open: Option<u64>,
    transactions: u64,
    aborted: BTreeSet<u64>,
    asked: Option<Asked>,
    group: BTreeMap<Place, GroupOffset>,
    is_fenced: bool,
    loses_records: bool,
}

/// The producer's end.
pub struct SimulatedCluster {
    state: Arc<Mutex<State>>,
}

/// The owner's end: makes weather, looks at what arrived.
#[derive(Clone)]
pub struct SimulatedBrokers {
    /// Shared with the producer's end; held for one call.
    state: Arc<Mutex<State>>,
}

/// A cluster without topics that is there and takes everything. How much it does in one poll is a function of `seed`.
pub fn cluster(seed: u64) -> (SimulatedCluster, SimulatedBrokers) {
    let state = Arc::new(Mutex::new(State {
        rng: SmallRng::seed_from_u64(seed),
        away: false,
        holds_reports: false,
        fails_next: None,
        fatal: false,
        leaderless: BTreeSet::new(),
        refuses: Box::new(|_| None),
        queue_limit: usize::MAX,
        batch_limit: 8,
        topics: BTreeMap::new(),
        wanted: VecDeque::new(),
        queues: BTreeMap::new(),
        partitions: BTreeMap::new(),
        reports: VecDeque::new(),
        restarts: 0,
        open: None,
        transactions: 0,
        aborted: BTreeSet::new(),
        asked: None,
        group: BTreeMap::new(),
        is_fenced: false,
        loses_records: false,
    }));
    (SimulatedCluster { state: Arc::clone(&state) }, SimulatedBrokers { state })
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimulatedBrokers {
    /// While away, nothing is appended or answered.
    pub fn set_away(&self, away: bool) {
        lock(&self.state).away = away;
    }

    /// While reports are held, records are appended but the producer does not hear of it. A restart loses them.
    pub fn hold_reports(&self, hold: bool) {
        lock(&self.state).holds_reports = hold;
    }

    /// Takes a partition its leader, or gives it one. Without a leader nothing is appended.
    pub fn set_leader(&self, topic: &str, partition: PartitionId, present: bool) {
        let place = (topic.to_owned(), partition);
        let mut state = lock(&self.state);
        if present {
            state.leaderless.remove(&place);
        } else {
            state.leaderless.insert(place);
        }
    }

    /// The next batch that would be appended fails instead, and the producer is of no more use until restarted.
    pub fn fail_next(&self, reason: &str) {
        lock(&self.state).fails_next = Some(reason.to_owned());
    }

    /// Batches with a record that `refuses` names fail as it says.
    pub fn refuse(&self, refuses: impl Fn(&Appended) -> Option<DeliveryError> + Send + 'static) {
        lock(&self.state).refuses = Box::new(refuses);
    }

    /// Most records that the producer takes before it says that its queue is full.
    pub fn set_queue_limit(&self, records: usize) {
        lock(&self.state).queue_limit = records;
    }

    /// Most records of a batch; each has between one and so many.
    pub fn set_batch_limit(&self, records: usize) {
        lock(&self.state).batch_limit = records;
    }

    /// Makes a topic, with other partitions than before if it was there.
    pub fn create_topic(&self, topic: &str, partitions: NonZeroU16) {
        lock(&self.state).topics.insert(topic.to_owned(), partitions);
    }

    /// Removes a topic; what is under way to it fails.
    pub fn delete_topic(&self, topic: &str) {
        lock(&self.state).topics.remove(topic);
    }

    /// Partitions of a topic, if it is there.
    pub fn topic(&self, topic: &str) -> Option<NonZeroU16> {
        lock(&self.state).topics.get(topic).copied()
    }

    /// What a `read_committed` consumer sees of a partition, in order.
    pub fn partition(&self, topic: &str, partition: PartitionId) -> Vec<Appended> {
        self.partitions().remove(&(topic.to_owned(), partition)).unwrap_or_default()
    }

    /// The same of all partitions.
    pub fn partitions(&self) -> BTreeMap<(String, PartitionId), Vec<Appended>> {
        let state = lock(&self.state);
        let committed = |stored: &&Stored| stored.transaction.is_none_or(|number| state.is_committed(number));
        let seen = |held: &Held| held.records.iter().filter(committed).map(|s| s.appended.clone()).collect();
        state.partitions.iter().map(|(place, held)| (place.clone(), seen(held))).collect()
    }

    /// Where all records are or will be that the producer was ever given and has not lost.
    pub fn handed(&self) -> BTreeSet<(String, PartitionId, Offset)> {
        let state = lock(&self.state);
        let place =
            |(topic, partition): &Place, appended: &Appended| (topic.clone(), *partition, appended.offset);
        let stored = state
            .partitions
            .iter()
            .flat_map(|(at, held)| held.records.iter().map(|s| place(at, &s.appended)));
        let queued = state.queues.iter().flat_map(|(at, taken)| taken.iter().map(|t| place(at, &t.appended)));
        stored.chain(queued).collect()
    }

    /// A `read_committed` consumer of everything reads on, in the order of each partition; the cluster keeps nothing of it.
    pub fn consume(&self, mut seen: impl FnMut(PartitionId, Appended)) {
        let mut state = lock(&self.state);
        let mut partitions = std::mem::take(&mut state.partitions);
        for ((_, partition), held) in &mut partitions {
            let ended = |next: &mut Stored| next.transaction.is_none() || next.transaction != state.open;
            while let Some(stored) = held.records.pop_front_if(ended) {
                held.first += 1;
                if stored.transaction.is_none_or(|number| state.is_committed(number)) {
                    seen(*partition, stored.appended);
                }
            }
        }
        state.partitions = partitions;
    }

    /// The group's offsets expire.
    pub fn forget_group(&self) {
        lock(&self.state).group.clear();
    }

    /// What the group holds is changed.
    pub fn change_group(&self, change: impl Fn(&mut GroupOffset)) {
        lock(&self.state).group.values_mut().for_each(change);
    }

    /// Another producer with the same `transactional.id` begins: the open transaction is aborted.
    pub fn fence(&self) {
        let mut state = lock(&self.state);
        state.end(false);
        state.is_fenced = true;
    }

    /// While lost, no record is found in its place any more.
    pub fn lose_records(&self, lose: bool) {
        lock(&self.state).loses_records = lose;
    }

    /// How often the producer was restarted.
    pub fn restarts(&self) -> u64 {
        lock(&self.state).restarts
    }
}

impl State {
    /// Appends some records of one partition as one batch, or lets it fail.
    fn append(&mut self, place: &Place) {
        let limit = self.rng.random_range(1..=self.batch_limit);
        let Some(queue) = self.queues.get_mut(place) else { return };
        let batch: Vec<Taken> = queue.drain(..limit.min(queue.len())).collect();
        if batch.is_empty() {
            return;
        }
        let exists = self.topics.get(&place.0).is_some_and(|count| place.1.0 < i32::from(count.get()));
        let error = if self.is_fenced {
            self.reports.push_back(ClusterEvent::Fenced("fenced".into()));
            Some(DeliveryError::Other("fenced".into()))
        } else if !exists {
            Some(DeliveryError::NoTopic)
        } else if let Some(reason) = self.fails_next.take() {
            Some(DeliveryError::Other(reason))
        } else {
            batch.iter().find_map(|t| (self.refuses)(&t.appended))
        };
        match error {
            None => {
                let partition = self.partitions.entry(place.clone()).or_default();
                for Taken { token, appended } in batch {
                    let kafka_offset =
                        i64::try_from(partition.first + partition.records.len()).unwrap_or(i64::MAX);
                    partition.records.push_back(Stored { appended, transaction: self.open });
                    self.reports.push_back(ClusterEvent::Delivered { token, kafka_offset });
                }
            }
            Some(error) => {
                self.fatal = true;
                let purged = std::mem::take(&mut self.queues).into_values().flatten();
                let failed = batch.into_iter().map(|t| (t, error.clone()));
                let purged = purged.map(|t| (t, DeliveryError::Other("purged".into())));
                let failed = failed.chain(purged);
                self.reports.extend(failed.map(|(t, error)| ClusterEvent::Failed { token: t.token, error }));
            }
        }
    }

    fn is_committed(&self, transaction: u64) -> bool {
        self.open != Some(transaction) && !self.aborted.contains(&transaction)
    }

    /// Ends the open transaction, if there is one.
    fn end(&mut self, commit: bool) {
        if let Some(open) = self.open.take()
            && !commit
        {
            self.aborted.insert(open);
        }
    }

    /// Commits the open transaction with `offsets`.
    fn commit(&mut self, offsets: Vec<GroupOffset>) {
        self.end(true);
        self.group.extend(offsets.into_iter().map(|o| ((o.topic.clone(), o.partition), o)));
    }

    fn answer_asked(&mut self) {
        let answer = match self.asked.take() {
            None => return,
            Some(Asked::Init(places)) => {
                self.end(false);
                let held = places.iter().filter_map(|place| self.group.get(place).cloned());
                ClusterEvent::Initialized(held.collect())
            }
            Some(Asked::Commit(_)) if self.is_fenced => {
                self.fatal = true;
                ClusterEvent::Fenced("fenced".into())
            }
            Some(Asked::Commit(offsets)) => {
                self.commit(offsets);
                ClusterEvent::Committed
            }
            Some(Asked::Find(..)) if self.loses_records => ClusterEvent::Found(Presence::Unknown),
            Some(Asked::Find(place, kafka_offset)) => {
                let index = usize::try_from(kafka_offset).unwrap_or(usize::MAX);
                let held = self.partitions.get(&place);
                let found = held.and_then(|held| held.records.get(index.checked_sub(held.first)?));
                let number = found.and_then(|stored| stored.transaction);
                let there = number.is_some_and(|number| self.is_committed(number));
                ClusterEvent::Found(if there { Presence::Committed } else { Presence::Absent })
            }
        };
        self.reports.push_back(answer);
    }

    fn answer_topics(&mut self, events: &mut Vec<ClusterEvent>) {
        while let Some((topic, partitions)) = self.wanted.pop_front() {
            let found = *self.topics.entry(topic.clone()).or_insert(partitions);
            let outcome = if found == partitions {
                TopicOutcome::Ready
            } else {
                TopicOutcome::PartitionMismatch { found: found.get().into() }
            };
            events.push(ClusterEvent::Topic { topic, outcome });
        }
    }
}

impl Cluster for SimulatedCluster {
    fn produce(&mut self, out: &Outgoing<'_>) -> Result<(), ProduceError> {
        let mut state = lock(&self.state);
        if state.fatal {
            return Err(ProduceError::Failed("fatal".into()));
        }
        if state.queues.values().map(VecDeque::len).sum::<usize>() >= state.queue_limit {
            return Err(ProduceError::QueueFull);
        }
        let appended = Appended {
            offset: out.offset.unwrap_or(NOT_IN_LOG),
            timestamp_ms: out.timestamp_ms,
            received: out.received,
            record: out.record.clone(),
        };
        let queue = state.queues.entry((out.topic.to_owned(), out.partition)).or_default();
        queue.push_back(Taken { token: out.token, appended });
        Ok(())
    }

    fn poll(&mut self, _timeout: Duration, events: &mut Vec<ClusterEvent>) {
        let mut state = lock(&self.state);
        if state.away {
            return;
        }
        state.answer_topics(events);
        let mut places: Vec<Place> =
            state.queues.keys().filter(|place| !state.leaderless.contains(*place)).cloned().collect();
        while !places.is_empty() && !state.fatal {
            let index = state.rng.random_range(0..places.len());
            state.append(&places.swap_remove(index));
        }
        state.answer_asked();
        if !state.holds_reports {
            events.extend(state.reports.drain(..));
        }
    }

    fn ensure_topic(&mut self, topic: &str, partitions: NonZeroU16) {
        lock(&self.state).wanted.push_back((topic.to_owned(), partitions));
    }

    fn restart(&mut self) -> Result<(), String> {
        let mut state = lock(&self.state);
        state.queues.clear();
        state.reports.clear();
        state.fatal = false;
        state.restarts += 1;
        let was_fenced = std::mem::take(&mut state.is_fenced);
        // Kafka may have got it, and will do it or not.
        if let Some(Asked::Commit(offsets)) = state.asked.take()
            && !was_fenced
            && state.rng.random()
        {
            state.commit(offsets);
        }
        Ok(())
    }

    fn init_transactions(&mut self, partitions: Vec<(String, PartitionId)>) {
        lock(&self.state).asked = Some(Asked::Init(partitions));
    }

    fn begin_transaction(&mut self) -> Result<(), String> {
        let mut state = lock(&self.state);
        if state.fatal {
            return Err("fatal".into());
        }
        state.transactions += 1;
        state.open = Some(state.transactions);
        Ok(())
    }

    fn commit_transaction(&mut self, offsets: Vec<GroupOffset>) {
        lock(&self.state).asked = Some(Asked::Commit(offsets));
    }

    fn find(&mut self, record: &LastRecord) {
        let place = (record.topic.clone(), record.partition);
        lock(&self.state).asked = Some(Asked::Find(place, record.kafka_offset));
    }
}
