//! Tests of the decisions: every order of commits, reads, failures and restarts keeps the promises.

use std::{collections::BTreeSet, num::NonZeroU16};

use proptest::prelude::*;

use super::*;
use crate::{
    log::{KnownOffsets, LogBatch, LostEntries},
    replicate::{
        cluster::{DeliveryError, DropReason, Refusal},
        simulated::{self, SimulatedBrokers, SimulatedCluster},
        tests::{group, record, stream},
    },
};

const TOO_LARGE: DeliveryError = DeliveryError::Refused(Refusal::Contents(DropReason::TooLarge));
const TIMESTAMP: DeliveryError = DeliveryError::Refused(Refusal::Timestamp);

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
    in_flight_bytes: usize,
    now: Monotonic,
    wall: UnixMicros,
    dropped: BTreeSet<(String, PartitionId, Offset)>,
}

impl World {
    fn new(seed: u64, in_flight_bytes: usize) -> Self {
        let (cluster, brokers) = simulated::cluster(seed);
        let metrics = ReplicateMetrics::default();
        Self {
            log: BTreeMap::new(),
            missing: BTreeSet::new(),
            first: EntrySeq(0),
            log_end: EntrySeq(0),
            offsets: BTreeMap::new(),
            replicator: replicator(in_flight_bytes, None, &LogEnd::default(), metrics.clone()),
            metrics,
            cluster,
            brokers,
            durable: None,
            in_flight_bytes,
            now: Monotonic::default(),
            wall: record("a", 0, 0).received.at,
            dropped: BTreeSet::new(),
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
            self.replicator.on_read(self.now, Some(outcome));
        }
        self.replicator.pump(self.now, self.wall, &mut self.cluster);
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

    /// Offsets of a partition that Kafka was told are missing.
    fn told(&self, name: &str, partition: i32) -> BTreeSet<i64> {
        let gaps =
            self.gaps().into_iter().map(|gap| serde_json::from_str::<serde_json::Value>(&gap).unwrap());
        let here = gaps.filter(|gap| gap["stream"] == name && gap["partition"] == partition);
        here.flat_map(|gap| {
            let last = gap["last_offset"].as_i64().expect("the end is known");
            assert_eq!(gap["count"], last + 1 - gap["first_offset"].as_i64().unwrap());
            gap["first_offset"].as_i64().unwrap()..=last
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
        let cursor = self.replicator.cursor();
        self.log = self.log.split_off(&cursor.next);
        self.first = self.first.max(cursor.next);
        self.durable = Some(cursor);
    }

    fn restart_agent(&mut self) {
        self.cluster.restart().unwrap();
        let log_end = LogEnd { first: self.first, next: self.log_end, offsets: self.offsets() };
        let cursor = self.durable.as_ref();
        self.replicator = replicator(self.in_flight_bytes, cursor, &log_end, self.metrics.clone());
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
        assert!(self.replicator.in_flight_bytes() <= 2 * self.in_flight_bytes + 16 * 1024);
    }
}

fn replicator(
    in_flight_bytes: usize,
    cursor: Option<&Cursor>,
    log_end: &LogEnd,
    metrics: ReplicateMetrics,
) -> Replicator {
    let settings = Settings {
        environment: "test".into(),
        partitions: Arc::new(|_| NonZeroU16::new(4).unwrap()),
        in_flight_bytes,
    };
    Replicator::new(settings, cursor, log_end, Box::new(Counting(1)), metrics)
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
        acknowledged: BTreeMap::from([((stream("a"), PartitionId(0)), Offset(500))]),
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
fn a_record_that_is_too_large_is_dropped_alone() {
    let mut world = World::new(5, 1 << 20);
    let refused = record("a", 0, 7).value;
    world.brokers.refuse(move |a| (a.record.value == refused).then_some(TOO_LARGE));
    world.commit(&[("a", 0, 20)], true);
    world.dropped.insert(("test.a".into(), PartitionId(0), Offset(7)));
    world.run_until_caught_up();
    world.check();
    let held: BTreeSet<i64> = offsets(&world.brokers, "a", 0).into_iter().collect();
    assert_eq!(held, (0..20).filter(|o| *o != 7).collect());
    assert_eq!(world.replicator.cursor().acknowledged[&(stream("a"), PartitionId(0))], Offset(20));
    assert_eq!(
        world.gaps(),
        [
            r#"{"reason":"too_large","count":1,"device":"device-0","stream":"a","partition":0,"first_offset":7,"last_offset":7}"#
        ]
    );
}

fn damaged(stream: &str, partition: i32, first: i64, last: i64) -> String {
    let count = last - first + 1;
    format!(
        r#"{{"reason":"damaged","count":{count},"device":null,"stream":"{stream}","partition":{partition},"first_offset":{first},"last_offset":{last}}}"#
    )
}

#[test]
fn what_the_log_has_lost_is_told_by_partition_with_its_count() {
    let mut world = World::new(1, 1 << 20);
    for lanes in [vec![("a", 0, 2)], vec![("a", 0, 2), ("b", 1, 1)], vec![("a", 0, 2)], vec![("b", 1, 1)]] {
        world.commit(&lanes, false);
    }
    world.commit(&[("a", 0, 1)], false);
    world.lose(1);
    world.lose(2);
    world.replicator.probe(true);
    world.run_until_caught_up();
    assert_eq!(world.gaps(), [damaged("a", 0, 2, 5), damaged("b", 1, 0, 0)]);
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1, 6]);
    assert_eq!(world.replicator.cursor().next, world.log_end);
}

#[test]
fn the_cursor_does_not_pass_a_hole_before_kafka_was_told_of_it() {
    let mut world = World::new(1, 1 << 20);
    world.brokers.create_topic("test.gaps", NonZeroU16::new(4).unwrap());
    (0..4).for_each(|partition| world.brokers.set_leader("test.gaps", PartitionId(partition), false));
    for _ in 0..4 {
        world.commit(&[("a", 0, 2)], false);
    }
    world.lose(1);
    world.replicator.probe(true);
    world.run_until("what is there is in Kafka", |w| offsets(&w.brokers, "a", 0) == [0, 1, 4, 5, 6, 7]);
    for _ in 0..100 {
        world.step();
    }
    let cursor = world.replicator.cursor();
    assert_eq!(cursor.next, EntrySeq(1));
    assert_eq!(cursor.acknowledged[&(stream("a"), PartitionId(0))], Offset(2));
    world.save_cursor();
    world.restart_agent();
    (0..4).for_each(|partition| world.brokers.set_leader("test.gaps", PartitionId(partition), true));
    world.run_until_caught_up();
    assert_eq!(world.gaps(), [damaged("a", 0, 2, 3)]);
    assert_eq!(world.replicator.cursor().next, world.log_end);
}

#[test]
fn a_failure_of_the_producer_does_not_lose_a_gap() {
    let mut world = World::new(1, 1 << 20);
    for _ in 0..4 {
        world.commit(&[("a", 0, 2)], false);
    }
    world.lose(1);
    world.replicator.probe(true);
    world.step();
    world.brokers.fail_next("broker says no");
    world.run_until_caught_up();
    assert!(world.brokers.restarts() > 0);
    assert!(world.gaps().contains(&damaged("a", 0, 2, 3)), "{:?}", world.gaps());
}

#[test]
fn a_loss_at_the_end_of_the_log_is_told_though_nothing_follows() {
    let mut world = World::new(1, 1 << 20);
    world.commit(&[("a", 0, 2)], false);
    world.commit(&[("a", 0, 3)], false);
    world.lose(1);
    world.restart_agent();
    world.run_until_caught_up();
    // Without a cursor nobody knows where a partition begins, but it was read from its first record on.
    assert_eq!(world.gaps(), [damaged("a", 0, 2, 4)]);
}

/// Found by the property test: the partition was not in the cursor, so that the next loss anywhere told its hole again.
#[test]
fn a_hole_that_was_told_is_not_told_again_with_the_next_one() {
    let mut world = World::new(1, 1 << 20);
    world.commit(&[("a", 2, 1)], false);
    world.commit(&[("b", 0, 1)], true);
    world.lose(0);
    world.run_until_caught_up();
    world.step();
    world.save_cursor();
    world.restart_agent();
    world.commit(&[("a", 0, 1)], false);
    world.lose(2);
    world.replicator.probe(true);
    world.run_until_caught_up();
    assert_eq!(world.gaps(), [damaged("a", 0, 0, 0), damaged("a", 2, 0, 0)]);
}

#[test]
fn a_checkpoint_tells_what_an_epoch_had_and_a_skip_that_nobody_can_know() {
    let mut world = World::new(1, 1 << 20);
    world.commit(&[("a", 0, 2)], false);
    world.commit(&[("a", 0, 3)], false);
    world.replicator.probe(true);
    world.run_until_caught_up();
    let lane = (stream("a"), PartitionId(0));
    let lost = |first, end| LostEntries { first: EntrySeq(first), end: EntrySeq(end), reason: String::new() };
    let checkpoint = |seq, next: &[i64], floor| KnownOffsets {
        seq: EntrySeq(seq),
        next: next.iter().map(|next| (lane.clone(), Offset(*next))).collect(),
        floor: Offset(floor),
    };
    let outcome = ReadOutcome {
        groups: Vec::new(),
        next: EntrySeq(21),
        lost: vec![lost(2, 10), lost(11, 20)],
        checkpoints: vec![checkpoint(10, &[9], 0), checkpoint(20, &[], 8192 * 20)],
    };
    world.replicator.on_read(world.now, Some(outcome));
    world.run_until_caught_up();
    let unknown =
        r#"{"reason":"damaged","count":null,"device":null,"stream":"a","partition":0,"first_offset":9}"#;
    assert_eq!(world.gaps(), [damaged("a", 0, 5, 8), unknown.to_owned()]);
}

#[test]
fn a_record_whose_event_time_is_refused_is_sent_with_its_receive_time() {
    let mut world = World::new(5, 1 << 20);
    let received = record("a", 0, 0).received.at.as_millis();
    world.brokers.refuse(move |a| (a.offset == Offset(4) && a.timestamp_ms != received).then_some(TIMESTAMP));
    world.commit(&[("a", 0, 9)], true);
    world.run_until_caught_up();
    world.check();
    let held = world.brokers.partition("test.a", PartitionId(0));
    let restamped: BTreeSet<i64> =
        held.iter().filter(|a| a.timestamp_ms == received).map(|a| a.offset.0).collect();
    assert_eq!(restamped, BTreeSet::from([4]));
    assert_eq!(world.metrics.restamped_records.get(), 1);
}

#[test]
fn a_device_with_a_wrong_clock_costs_a_few_refusals_and_not_one_per_record() {
    let mut world = World::new(5, 1 << 20);
    // A day ahead, with jitter; the topic takes an hour.
    let mut entry = Arc::unwrap_or_clone(group(0, &[("a", 0, 0, 200)]));
    let received = entry.batches[0].records[0].received.at;
    for (n, record) in (0..).zip(&mut entry.batches[0].records) {
        let ahead = if n % 2 == 0 { 86_400_000_000 - n * 1_000_000 } else { 0 };
        record.event_time = Some(UnixMicros(received.0 + ahead));
    }
    world.brokers.refuse(move |a| (a.timestamp_ms > received.as_millis() + 3_600_000).then_some(TIMESTAMP));
    world.log.insert(EntrySeq(0), Arc::new(entry.clone()));
    world.replicator.offer(Arc::new(entry));
    world.run_until_caught_up();
    let held = world.brokers.partition("test.a", PartitionId(0));
    assert_eq!(held.last().map(|a| a.offset), Some(Offset(199)));
    assert!(world.brokers.restarts() <= 3, "{} restarts", world.brokers.restarts());
}

/// Commits one entry of 60 records in the lane whose event and receive times are those that `wall` had.
fn commit_at(world: &mut World, wall: UnixMicros) {
    let mut entry = Arc::unwrap_or_clone(group(world.log_end.0, &[("a", 0, 0, 60)]));
    for (n, record) in (0..).zip(&mut entry.batches[0].records) {
        record.received.at = UnixMicros(wall.0 + n * 1_000);
        record.event_time = Some(UnixMicros(wall.0 + n * 1_000 - 500));
    }
    world.log.insert(world.log_end, Arc::new(entry.clone()));
    world.log_end = world.log_end.next();
    world.replicator.offer(Arc::new(entry));
}

const HOUR_US: i64 = 3_600_000_000;

#[test]
fn records_from_before_the_gateways_clock_was_set_back_are_sent_with_the_present_time() {
    let mut world = World::new(5, 1 << 20);
    let limit = world.wall.as_millis() + 3_600_000;
    world.brokers.refuse(move |a| (a.timestamp_ms > limit).then_some(TIMESTAMP));
    let ahead = UnixMicros(world.wall.0 + 3 * HOUR_US);
    commit_at(&mut world, ahead);
    world.run_until_caught_up();
    world.check();
    let held = world.brokers.partition("test.a", PartitionId(0));
    assert_eq!(held.last().map(|a| a.offset), Some(Offset(59)));
    assert!(held.iter().all(|a| a.timestamp_ms == world.wall.as_millis()));
    assert!(world.metrics.restamped_records.get() >= 60);
    assert!(world.brokers.restarts() <= 4, "{} restarts", world.brokers.restarts());
}

#[test]
fn while_the_gateways_clock_is_too_far_ahead_records_wait_and_none_is_dropped() {
    let mut world = World::new(5, 1 << 20);
    let right = world.wall;
    let limit = right.as_millis() + 3_600_000;
    world.brokers.refuse(move |a| (a.timestamp_ms > limit).then_some(TIMESTAMP));
    world.wall = UnixMicros(right.0 + 3 * HOUR_US);
    let ahead = world.wall;
    commit_at(&mut world, ahead);
    for _ in 0..100_000 {
        world.step();
        world.now = world.now + Duration::from_millis(5);
    }
    assert_eq!(world.replicator.lag_records(), 60);
    assert!(world.brokers.restarts() < 150, "{} restarts in 500 s", world.brokers.restarts());
    let error = world.metrics.health().snapshot().last_error.unwrap();
    assert!(error.contains("clock") || error.contains("timestamp"), "{error}");
    // Somebody sets the clock.
    world.wall = right;
    world.run_until_caught_up();
    world.check();
    assert_eq!(offsets(&world.brokers, "a", 0).last(), Some(&59));
}

#[test]
fn a_good_record_is_never_dropped_for_a_bad_one_of_its_batch() {
    // Of another lane in the same Kafka partition, or right behind one that was refused for its timestamp.
    let PartitionId(shared) = partition_of(&record("a", 7, 0).device, NonZeroU16::new(4).unwrap());
    let large: BTreeSet<_> =
        [record("a", 7, 3), record("a", shared, 5), record("a", shared, 8)].map(|r| r.value).into();
    let future = record("a", shared, 7).value;
    let future_ms = record("a", shared, 7).timestamp().as_millis();
    for seed in 0..100 {
        let mut world = World::new(seed, 1 << 20);
        let (large, future) = (large.clone(), future.clone());
        world.brokers.refuse(move |a| {
            let is_future = a.record.value == future && a.timestamp_ms == future_ms;
            let large = large.contains(&a.record.value).then_some(TOO_LARGE);
            is_future.then_some(TIMESTAMP).or(large)
        });
        world.commit(&[("a", shared, 20), ("a", 7, 20)], true);
        world.run_until_caught_up();
        let held = world.brokers.partition("test.a", PartitionId(shared));
        let held: BTreeSet<_> = held.into_iter().map(|a| a.record.value).collect();
        let good = |p, bad: &'static [i64]| {
            (0..20).filter(|o| !bad.contains(o)).map(move |o| record("a", p, o).value)
        };
        let expected: BTreeSet<_> = good(shared, &[5, 8]).chain(good(7, &[3])).collect();
        assert_eq!(held, expected, "seed {seed}");
    }
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
    assert_eq!(offsets(&world.brokers, "a", 0), [0; 0]);
    // The operator made it right.
    world.brokers.create_topic("test.a", NonZeroU16::new(4).unwrap());
    world.run_until_caught_up();
    assert!(!world.metrics.health().snapshot().needs_operator());
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
    assert_eq!(world.replicator.fill(world.now).map(|r| r.from), Some(EntrySeq(0)));
    world.replicator.on_read(world.now, Some(std::mem::take(&mut outcome)));
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
    assert!(world.replicator.fill(world.now).is_some());
    world.replicator.on_read(world.now, None);
    assert_eq!(world.replicator.fill(world.now), None);
    assert_eq!(world.replicator.deadline(), Some(world.now + READ_RETRY));
    world.run_until_caught_up();
}

#[derive(Clone, Debug)]
enum Op {
    Commit { lanes: Vec<(&'static str, i32, i64)>, live: bool },
    Step(u8),
    Away(bool),
    Leader { partition: i32, present: bool },
    HoldReports(bool),
    FailNext,
    QueueLimit(usize),
    DeleteTopic,
    SaveCursor,
    LoseCursor,
    LoseEntry(prop::sample::Index),
    RestartAgent,
}

fn op() -> impl Strategy<Value = Op> {
    let lane = (prop::sample::select(vec!["a", "b"]), 0..3i32, 1..6i64);
    let lanes = prop::collection::vec(lane, 1..4).prop_map(|mut lanes| {
        lanes.sort_by_key(|l| (l.0, l.1));
        lanes.dedup_by_key(|l| (l.0, l.1));
        lanes
    });
    prop_oneof![
        8 => (lanes, prop::bool::weighted(0.7)).prop_map(|(lanes, live)| Op::Commit { lanes, live }),
        8 => (1..20u8).prop_map(Op::Step),
        1 => any::<bool>().prop_map(Op::Away),
        2 => (0..3i32, any::<bool>()).prop_map(|(partition, present)| Op::Leader { partition, present }),
        1 => any::<bool>().prop_map(Op::HoldReports),
        1 => Just(Op::FailNext),
        1 => prop::sample::select(vec![1, 3, 1_000]).prop_map(Op::QueueLimit),
        1 => Just(Op::DeleteTopic),
        2 => Just(Op::SaveCursor),
        1 => Just(Op::LoseCursor),
        1 => any::<prop::sample::Index>().prop_map(Op::LoseEntry),
        1 => Just(Op::RestartAgent),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn nothing_is_lost_or_reordered_and_nothing_unacknowledged_is_trimmed(
        seed: u64,
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut world = World::new(seed, 8 * 1024);
        let mut cursor_was_lost = false;
        for op in ops {
            match op {
                Op::LoseEntry(index) if !world.log.is_empty() => {
                    let seqs: Vec<_> = world.log.keys().copied().collect();
                    world.lose(index.get(&seqs).0);
                }
                Op::LoseEntry(_) => {}
                Op::Commit { lanes, live } => world.commit(&lanes, live),
                Op::Step(count) => for _ in 0..count {
                    world.step();
                    world.now = world.now + Duration::from_millis(100);
                },
                Op::Away(away) => world.brokers.set_away(away),
                Op::Leader { partition, present } => world.brokers.set_leader("test.a", PartitionId(partition), present),
                Op::HoldReports(hold) => world.brokers.hold_reports(hold),
                Op::FailNext => world.brokers.fail_next("on request"),
                Op::QueueLimit(records) => world.brokers.set_queue_limit(records),
                Op::DeleteTopic => world.brokers.delete_topic("test.b"),
                Op::SaveCursor => world.save_cursor(),
                Op::LoseCursor => {
                    world.durable = None;
                    cursor_was_lost = true;
                }
                Op::RestartAgent => world.restart_agent(),
            }
            world.check();
        }
        world.brokers.set_away(false);
        world.brokers.hold_reports(false);
        for partition in 0..3 {
            world.brokers.set_leader("test.a", PartitionId(partition), true);
        }
        // Nothing may have told the replicator of the last commits.
        world.replicator.probe(true);
        world.run_until_caught_up();
        world.step();
        world.check();
        prop_assert_eq!(world.replicator.cursor().next, world.log_end);
        for ((name, partition), end) in world.offsets.clone() {
            let mut known: BTreeSet<i64> = offsets(&world.brokers, name, partition).into_iter().collect();
            // Without a cursor nobody knows where a partition began whose first entries are missing.
            if cursor_was_lost {
                let lost = (0..end).filter(|offset| {
                    world.dropped.contains(&(format!("test.{name}"), PartitionId(partition), Offset(*offset)))
                });
                known.extend(lost);
            } else {
                known.extend(world.told(name, partition));
            }
            prop_assert_eq!(known, (0..end).collect::<BTreeSet<i64>>());
        }
        prop_assert_eq!(world.replicator.in_flight_bytes(), 0);
        prop_assert_eq!(world.replicator.lag_records(), 0);
    }
}
