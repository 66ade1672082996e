//! Tests of the decisions: every order of commits, reads, failures and restarts keeps the promises.

mod catch_up;
mod exactly_once;
mod holes;
mod property;
mod refusals;
mod times;

use std::{collections::BTreeSet, num::NonZeroU16};

use super::*;
use crate::{
    config::Policy,
    log::{Dropped, KnownOffsets, LogBatch, LostEntries},
    partition::partition_of,
    record::{ClockQuality, Timeline, UnixMicros},
    replicate::{
        Held,
        cluster::{Cluster as _, DeliveryError, DropReason, Refusal},
        simulated::{self, SimulatedBrokers, SimulatedCluster},
        tests::{group, record, stream},
    },
};

struct Counting(u64);

impl Entropy for Counting {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0
    }
}

/// A log, a replicator and a cluster; the driver's loop is in `step`.
struct World {
    log: BTreeMap<EntrySeq, Arc<BatchGroup>>,
    /// Entries that the disk has lost.
    missing: BTreeSet<EntrySeq>,
    /// The log has nothing below.
    first: EntrySeq,
    log_end: EntrySeq,
    offsets: BTreeMap<(&'static str, i32), i64>,
    replicator: Replicator,
    metrics: ReplicateMetrics,
    cluster: SimulatedCluster,
    brokers: SimulatedBrokers,
    durable: Option<Cursor>,
    disk_takes_writes: bool,
    /// How often the agent was restarted.
    lives: u64,
    /// In the other half of the file.
    before: Option<Cursor>,
    settings: Settings,
    now: Monotonic,
    wall: UnixMicros,
    quality: ClockQuality,
    timeline: Timeline,
    dropped: BTreeSet<(String, PartitionId, Offset)>,
    /// Those of them that the log has dropped by its policies.
    let_go: BTreeSet<(String, PartitionId, Offset)>,
}

impl World {
    /// With a log that may drop what replication has not begun with.
    fn new(seed: u64, in_flight_bytes: usize) -> Self {
        Self::with(seed, settings(in_flight_bytes))
    }

    /// With partitions that overtake each other.
    fn overtaking(seed: u64, in_flight_bytes: usize, catch_up_bytes_per_second: u64) -> Self {
        Self::with(
            seed,
            Settings { log_drops: false, catch_up_bytes_per_second, ..settings(in_flight_bytes) },
        )
    }

    fn with(seed: u64, settings: Settings) -> Self {
        let (cluster, brokers) = simulated::cluster(seed);
        let metrics = ReplicateMetrics::default();
        Self {
            log: BTreeMap::new(),
            missing: BTreeSet::new(),
            first: EntrySeq(0),
            log_end: EntrySeq(0),
            offsets: BTreeMap::new(),
            replicator: replicator(settings.clone(), None, &LogEnd::default(), metrics.clone(), 0),
            metrics,
            cluster,
            brokers,
            durable: None,
            disk_takes_writes: true,
            lives: 0,
            before: None,
            settings,
            now: Monotonic::default(),
            wall: record("a", 0, 0).received.at,
            quality: ClockQuality::Unknown,
            timeline: Timeline::default(),
            dropped: BTreeSet::new(),
            let_go: BTreeSet::new(),
        }
    }

    /// Commits an entry with some records in each of the lanes named.
    fn commit(&mut self, lanes: &[(&'static str, i32, i64)], live: bool) {
        let mut batches = Vec::new();
        for &(name, partition, count) in lanes {
            let base = self.offsets.entry((name, partition)).or_default();
            batches.push((name, partition, *base, count));
            *base += count;
        }
        let group = group(self.log_end.0, &batches);
        self.log.insert(self.log_end, Arc::clone(&group));
        self.log_end = self.log_end.next();
        if live {
            self.replicator.offer(group);
        }
    }

    fn clock(&self) -> Received {
        let Self { wall, quality, timeline, .. } = *self;
        Received { at: wall, quality, timeline, dates_event: false }
    }

    fn step(&mut self) {
        let before = self.replicator.cursor();
        let mut events = Vec::new();
        self.cluster.poll(Duration::ZERO, &mut events);
        for event in events {
            self.replicator.on_event(self.now, event);
        }
        if self.replicator.restart_due(self.now) {
            let result = self.cluster.restart();
            self.replicator.restarted(self.now, result);
        }
        if let Some(request) = self.replicator.fill(self.now) {
            let outcome = self.read(request.from, request.limit_bytes);
            if !request.ahead {
                self.replicator.settings.held.read(outcome.next);
            }
            self.replicator.on_read(self.now, request, Some(outcome));
        }
        if self.replicator.outruns(&self.durable.clone().unwrap_or_default()) {
            self.save_cursor();
        }
        self.replicator.pump(self.now, self.clock(), &mut self.cluster);
        if self.replicator.prepare_commit() {
            self.write_cursor();
            self.replicator.commit(self.now, &mut self.cluster);
        }
        let after = self.replicator.cursor();
        assert!(before.next <= after.next, "cursor went back from {before:?} to {after:?}");
        for (lane, offset) in &before.acknowledged {
            assert!(after.acknowledged.get(lane) >= Some(offset), "cursor of {lane:?} went back");
        }
    }

    fn read(&self, from: EntrySeq, limit_bytes: usize) -> ReadOutcome {
        let mut outcome = ReadOutcome { next: from.max(self.first), ..ReadOutcome::default() };
        let mut bytes = 0;
        for (seq, group) in self.log.range(from..) {
            if bytes >= limit_bytes {
                return outcome;
            }
            self.lost_before(*seq, &mut outcome);
            bytes += size_bytes(group);
            outcome.groups.push(Arc::clone(group));
            outcome.next = seq.next();
        }
        self.lost_before(self.log_end, &mut outcome);
        let next = self.offsets();
        outcome.checkpoints.push(KnownOffsets { seq: self.log_end, next, floor: Offset(0) });
        outcome
    }

    fn offsets(&self) -> BTreeMap<(StreamName, PartitionId), Offset> {
        let offsets = self.offsets.iter();
        offsets.map(|((name, p), next)| ((stream(name), PartitionId(*p)), Offset(*next))).collect()
    }

    fn lost_before(&self, end: EntrySeq, outcome: &mut ReadOutcome) {
        for &first in self.missing.range(outcome.next..end) {
            outcome.lost.push(LostEntries { first, end: first.next(), reason: "missing".into() });
            outcome.next = first.next();
        }
    }

    /// The disk loses an entry.
    fn lose(&mut self, seq: u64) {
        let group = self.log.remove(&EntrySeq(seq)).expect("the entry is there");
        self.missing.insert(EntrySeq(seq));
        for batch in &group.batches {
            for offset in (batch.base_offset.0..).take(batch.records.len()) {
                self.dropped.insert((format!("test.{}", batch.stream), batch.partition, Offset(offset)));
            }
        }
    }

    /// The log drops most of an entry's first batch, if replication has not begun with it.
    fn compact(&mut self, seq: EntrySeq) -> bool {
        if !self.replicator.settings.held.release(seq, seq.next()) {
            return false;
        }
        let mut group = Arc::unwrap_or_clone(self.log.remove(&seq).expect("the entry is there"));
        if !group.batches.is_empty() {
            let LogBatch { stream, partition, base_offset: first, records } = group.batches.remove(0);
            let mut last = first;
            let mut count = 0;
            for (record, offset) in records.into_iter().zip(first.0..) {
                let offset = Offset(offset);
                if (offset.0 - first.0) % 3 == 1 {
                    let (stream, records) = (stream.clone(), vec![record]);
                    group.batches.push(LogBatch { stream, partition, base_offset: offset, records });
                } else {
                    self.dropped.insert((format!("test.{stream}"), partition, offset));
                    self.let_go.insert((format!("test.{stream}"), partition, offset));
                    (last, count) = (offset, count + 1);
                }
            }
            let policy = Policy::DropOldest;
            group.dropped.push(Dropped { stream, partition, device: None, policy, first, last, count });
        }
        self.log.insert(seq, Arc::new(group));
        true
    }

    /// Offsets of a partition that Kafka was told are missing.
    fn told(&self, name: &str, partition: i32) -> BTreeSet<i64> {
        let gaps =
            self.gaps().into_iter().map(|gap| serde_json::from_str::<serde_json::Value>(&gap).unwrap());
        let here = gaps.filter(|gap| gap["stream"] == name && gap["partition"] == partition);
        here.flat_map(|gap| {
            let last = gap["last_offset"].as_i64().expect("the end is known");
            let offsets = gap["first_offset"].as_i64().unwrap()..=last;
            let missing: Vec<i64> = if gap["reason"] != "drop_oldest" {
                offsets.collect()
            } else {
                // Others' records may lie between.
                let place = |offset| (format!("test.{name}"), PartitionId(partition), Offset(offset));
                offsets.filter(|offset| self.dropped.contains(&place(*offset))).collect()
            };
            assert!(gap["count"].as_u64().is_some_and(|count| count <= missing.len() as u64), "{gap}");
            missing
        })
        .collect()
    }

    /// What Kafka was told, sorted.
    fn gaps(&self) -> Vec<String> {
        let topics = self.brokers.partitions().into_iter().filter(|((topic, _), _)| topic == "test.gaps");
        let values = topics.flat_map(|(_, records)| records).map(|appended| appended.record.value.to_vec());
        let mut gaps: Vec<_> = values.map(|value| String::from_utf8(value).unwrap()).collect();
        gaps.sort_by_key(|gap| gap.split_once("stream").map(|(_, stream)| stream.to_owned()));
        gaps
    }

    fn save_cursor(&mut self) {
        self.write_cursor();
        if !self.disk_takes_writes {
            return;
        }
        let cursor = self.replicator.cursor();
        self.log = self.log.split_off(&cursor.next);
        self.first = self.first.max(cursor.next);
    }

    fn write_cursor(&mut self) {
        if !self.disk_takes_writes {
            return;
        }
        self.before = self.durable.replace(self.replicator.cursor());
    }

    fn restart_agent(&mut self) {
        self.cluster.restart().unwrap();
        let log_end = LogEnd { first: self.first, next: self.log_end, offsets: self.offsets() };
        let cursor = self.durable.as_ref();
        self.settings.held = Held::new(cursor.map_or(EntrySeq(0), |cursor| cursor.begun));
        self.lives += 1;
        self.replicator =
            replicator(self.settings.clone(), cursor, &log_end, self.metrics.clone(), self.lives);
    }

    fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.step();
            self.now = self.now + Duration::from_millis(5);
        }
        panic!("not reached: {what}; {:?}", self.replicator);
    }

    fn run_until_caught_up(&mut self) {
        self.run_until("caught up", |w| w.replicator.is_caught_up());
    }

    /// First occurrences in order and without a hole (but for drops); nothing below the cursor missing.
    fn check(&self) {
        let held = self.brokers.partitions();
        for ((topic, partition), records) in &held {
            let mut expected = 0;
            for appended in records {
                while self.dropped.contains(&(topic.clone(), *partition, Offset(expected))) {
                    expected += 1;
                }
                assert!(
                    appended.offset.0 <= expected,
                    "{topic}/{partition}: {} before {expected}",
                    appended.offset
                );
                expected = expected.max(appended.offset.0 + 1);
            }
        }
        let cursor = self.replicator.cursor();
        for ((name, partition), offset) in &cursor.acknowledged {
            let topic = format!("test.{name}");
            let held: BTreeSet<Offset> =
                held.get(&(topic.clone(), *partition)).into_iter().flatten().map(|a| a.offset).collect();
            for missing in (0..offset.0).map(Offset).filter(|o| !held.contains(o)) {
                assert!(
                    self.dropped.contains(&(topic.clone(), *partition, missing)),
                    "{topic} {missing} is missing"
                );
            }
        }
        for group in self.log.range(..cursor.next).map(|(_, group)| group) {
            for LogBatch { stream, partition, base_offset, records } in &group.batches {
                let end = base_offset.0 + i64::try_from(records.len()).unwrap();
                let acknowledged = cursor.acknowledged[&(stream.clone(), *partition)];
                assert!(acknowledged.0 >= end, "trim would pass {stream}/{partition} {end}");
            }
        }
        // One group and one read may be more than the bound.
        assert!(self.replicator.in_flight_bytes() <= 2 * self.settings.in_flight_bytes + 16 * 1024);
    }
}

fn settings(in_flight_bytes: usize) -> Settings {
    Settings {
        environment: "test".into(),
        partitions: Arc::new(|_| NonZeroU16::new(4).unwrap()),
        in_flight_bytes,
        held: Held::default(),
        log_drops: true,
        catch_up_bytes_per_second: 0,
        transactions: None,
    }
}

fn replicator(
    settings: Settings,
    cursor: Option<&Cursor>,
    log_end: &LogEnd,
    metrics: ReplicateMetrics,
    life: u64,
) -> Replicator {
    // Each life draws other numbers.
    let entropy = Box::new(Counting(1 + life * 1_000_000_007));
    Replicator::new(settings, cursor, log_end, entropy, metrics)
}

fn offsets(brokers: &SimulatedBrokers, name: &str, partition: i32) -> Vec<i64> {
    let records = brokers.partition(&format!("test.{name}"), PartitionId(partition));
    records.iter().map(|a| a.offset.0).collect()
}

#[test]
fn a_live_entry_is_sent_from_memory() {
    let mut world = World::new(1, 1 << 20);
    world.commit(&[("a", 0, 3), ("b", 2, 1)], true);
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1, 2]);
    assert_eq!(offsets(&world.brokers, "b", 2), [0]);
    assert_eq!((world.metrics.groups_from_memory.get(), world.metrics.groups_from_log.get()), (1, 0));
}

#[test]
fn a_gap_in_the_live_feed_is_read_from_the_log_and_what_follows_comes_from_memory() {
    let mut world = World::new(1, 1 << 20);
    for live in [true, false, false, true] {
        world.commit(&[("a", 0, 2)], live);
    }
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1, 2, 3, 4, 5, 6, 7]);
    // The read takes what follows the gap along, if there is room; nothing is taken twice.
    assert_eq!(world.metrics.groups_from_memory.get() + world.metrics.groups_from_log.get(), 4);
}

#[test]
fn a_gap_at_the_end_of_the_live_feed_is_found_by_asking_the_log_once() {
    let mut world = World::new(1, 1 << 20);
    world.commit(&[("a", 0, 2)], true);
    world.commit(&[("a", 0, 2)], false);
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1]);
    world.replicator.probe(false);
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1, 2, 3]);
    world.replicator.probe(false);
    assert_eq!(world.replicator.fill(world.now), None, "nothing was offered since");
}

#[test]
fn records_of_a_partly_acknowledged_entry_are_not_sent_again_after_a_restart() {
    let mut world = World::new(1, 1 << 20);
    world.brokers.create_topic("test.a", NonZeroU16::new(4).unwrap());
    world.brokers.set_leader("test.a", PartitionId(1), false);
    world.commit(&[("a", 0, 3), ("a", 1, 2)], true);
    world.run_until("partition 0 is there", |w| offsets(&w.brokers, "a", 0).len() == 3);
    world.step();
    world.save_cursor();
    assert_eq!(world.durable.as_ref().unwrap().next, EntrySeq(0));
    world.restart_agent();
    world.brokers.set_leader("test.a", PartitionId(1), true);
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1, 2]);
    assert_eq!(offsets(&world.brokers, "a", 1), [0, 1]);
}

#[test]
fn a_cursor_behind_the_logs_end_is_not_used() {
    let mut world = World::new(1, 1 << 20);
    world.durable = Some(Cursor {
        generation: 3,
        next: EntrySeq(100),
        begun: EntrySeq(100),
        acknowledged: BTreeMap::from([((stream("a"), PartitionId(0)), Offset(500))]),
        ..Cursor::default()
    });
    world.commit(&[("a", 0, 2)], false);
    world.restart_agent();
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1]);
}

#[test]
fn after_a_failure_nothing_overtakes_its_repetition() {
    let mut world = World::new(3, 1 << 20);
    for _ in 0..10 {
        world.commit(&[("a", 0, 5), ("a", 1, 5)], true);
    }
    world.step();
    world.brokers.fail_next("broker says no");
    world.run_until_caught_up();
    world.check();
    assert_eq!(world.brokers.restarts(), 1);
    assert_eq!(world.metrics.health().snapshot().last_error, None, "an acknowledgement clears the error");
}

#[test]
fn a_topic_that_refuses_everything_does_not_restart_the_producer_all_the_time() {
    let mut world = World::new(1, 1 << 20);
    world.brokers.refuse(|a| {
        let is_b = a.record.stream == stream("b");
        is_b.then(|| DeliveryError::Other("not authorized".into()))
    });
    for n in 0..100_000 {
        if n % 100 == 0 {
            world.commit(&[("a", 0, 1), ("b", 0, 1)], true);
        }
        world.step();
        world.now = world.now + Duration::from_millis(5);
    }
    assert!(!offsets(&world.brokers, "a", 0).is_empty());
    assert!(world.brokers.restarts() < 40, "{} restarts in 500 s", world.brokers.restarts());
}

#[test]
fn a_topic_with_other_partitions_makes_its_stream_wait_and_says_what_to_do() {
    let mut world = World::new(1, 1 << 20);
    world.brokers.create_topic("test.a", NonZeroU16::new(12).unwrap());
    world.commit(&[("a", 0, 1), ("b", 0, 1)], true);
    world.run_until("the other stream goes on", |w| offsets(&w.brokers, "b", 0) == [0]);
    world.step();
    let health = world.metrics.health().snapshot();
    assert!(health.needs_operator());
    assert!(health.waiting_topics["test.a"].contains("partitions = 12"), "{health:?}");
    assert_eq!(world.metrics.waiting_topics.get(), 1);
    assert_eq!(offsets(&world.brokers, "a", 0), [0; 0]);
    // The operator made it right.
    world.brokers.create_topic("test.a", NonZeroU16::new(4).unwrap());
    world.run_until_caught_up();
    assert!(!world.metrics.health().snapshot().needs_operator());
    assert_eq!(world.metrics.waiting_topics.get(), 0);
}

#[test]
fn records_of_partitions_that_the_topic_has_not_go_where_their_device_belongs() {
    let mut world = World::new(1, 1 << 20);
    // The config said more than 7 when this was committed, and says 4 now.
    world.commit(&[("a", 7, 3)], true);
    world.run_until_caught_up();
    let PartitionId(partition) = partition_of(&record("a", 7, 0).device, NonZeroU16::new(4).unwrap());
    assert_eq!(offsets(&world.brokers, "a", partition), [0, 1, 2]);
}

#[test]
fn entries_that_the_log_lost_are_counted_and_passed() {
    let mut world = World::new(1, 1 << 20);
    let lost = LostEntries { first: EntrySeq(0), end: EntrySeq(3), reason: "checksum".into() };
    let mut outcome = ReadOutcome {
        groups: vec![group(3, &[("a", 0, 6, 2)])],
        next: EntrySeq(4),
        lost: vec![lost],
        checkpoints: Vec::new(),
    };
    world.replicator.offer(group(4, &[("a", 0, 8, 1)]));
    let request = world.replicator.fill(world.now).expect("it reads");
    assert_eq!(request.from, EntrySeq(0));
    world.replicator.on_read(world.now, request, Some(std::mem::take(&mut outcome)));
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), [6, 7, 8]);
    assert_eq!(world.metrics.lost_entries.get(), 3);
}

#[test]
fn while_kafka_is_away_the_memory_is_bounded_and_the_lag_is_known() {
    let mut world = World::new(1, 16 * 1024);
    world.brokers.set_away(true);
    for _ in 0..1_000 {
        world.commit(&[("a", 0, 5)], true);
        world.step();
        world.check();
    }
    assert_eq!(world.replicator.lag_records(), 5_000);
    world.brokers.set_away(false);
    world.run_until_caught_up();
    world.check();
    assert_eq!(world.replicator.lag_records(), 0);
    assert_eq!(offsets(&world.brokers, "a", 0), (0..5_000).collect::<Vec<_>>());
}

#[test]
fn a_log_that_does_not_answer_is_asked_again_later() {
    let mut world = World::new(1, 1 << 20);
    world.commit(&[("a", 0, 1)], false);
    world.restart_agent();
    let request = world.replicator.fill(world.now).expect("it reads");
    world.replicator.on_read(world.now, request, None);
    assert_eq!(world.replicator.fill(world.now), None);
    assert_eq!(world.replicator.deadline(), Some(world.now + READ_RETRY));
    world.run_until_caught_up();
}
