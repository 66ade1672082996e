//! What Kafka refuses: nothing good is dropped for it, and what is dropped is told.

use super::*;

const TOO_LARGE: DeliveryError = DeliveryError::Refused(Refusal::Contents(DropReason::TooLarge));
const TIMESTAMP: DeliveryError = DeliveryError::Refused(Refusal::Timestamp);

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

/// A batch of 6 824 records, two of them too large for their topic, once went one by one, twelve a second.
#[test]
fn a_bad_record_among_thousands_is_found_with_few_refusals() {
    let mut world = World::new(5, 8 << 20);
    world.brokers.set_batch_limit(100_000);
    let bad: BTreeSet<i64> = [4_711, 4_712, 9_000].into();
    let refused: BTreeSet<_> = bad.iter().map(|n| record("a", 0, *n).value).collect();
    world.brokers.refuse(move |a| refused.contains(&a.record.value).then_some(TOO_LARGE));
    world.commit(&[("a", 0, 10_000)], true);
    world.run_until_caught_up();
    let held: BTreeSet<i64> = offsets(&world.brokers, "a", 0).into_iter().collect();
    assert_eq!(held, (0..10_000).filter(|n| !bad.contains(n)).collect());
    assert_eq!(world.told("a", 0), bad);
    assert!(world.brokers.restarts() < 100, "{} restarts", world.brokers.restarts());
    let steps = world.now.since(Monotonic::default()).as_millis() / 5;
    assert!(steps < 6_000, "{steps} steps");
}

#[test]
fn a_topic_that_takes_no_record_at_all_costs_few_refusals_each() {
    let mut world = World::new(5, 1 << 20);
    world.brokers.set_batch_limit(100_000);
    world.brokers.refuse(|a| (a.record.stream == stream("a")).then_some(TOO_LARGE));
    world.commit(&[("a", 0, 200)], true);
    world.run_until_caught_up();
    assert_eq!(world.told("a", 0), (0..200).collect());
    assert!(world.brokers.restarts() < 220, "{} restarts", world.brokers.restarts());
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
    let base = world.offsets.entry(("a", 0)).or_default();
    let mut entry = Arc::unwrap_or_clone(group(world.log_end.0, &[("a", 0, *base, 60)]));
    *base += 60;
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
fn a_clock_in_1970_that_is_set_and_jumps_by_years_costs_no_record_and_no_order() {
    let mut world = World::new(5, 1 << 20);
    let right = world.wall;
    let year_us = 365 * 24 * HOUR_US;
    for wall in [0, right.0, right.0 + year_us, right.0 - year_us, right.0] {
        world.wall = UnixMicros(wall);
        commit_at(&mut world, UnixMicros(wall));
        world.run_until_caught_up();
        world.replicator.publish(world.clock());
    }
    world.check();
    assert_eq!(offsets(&world.brokers, "a", 0), (0..300).collect::<Vec<_>>());
}

/// librdkafka's threads sleep through the time by which it was set back: the campaign saw nothing sent any more.
#[test]
fn after_the_clock_was_set_back_there_is_a_new_producer() {
    let mut world = World::new(5, 1 << 20);
    let right = world.wall;
    commit_at(&mut world, right);
    world.run_until_caught_up();
    let restarts = world.brokers.restarts();
    world.wall = UnixMicros(right.0 + HOUR_US);
    world.step();
    world.wall = right;
    world.run_until("a new producer", |w| w.brokers.restarts() == restarts + 1);
    commit_at(&mut world, right);
    world.run_until_caught_up();
    world.check();
    assert_eq!(world.brokers.restarts(), restarts + 1);
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
    let future_ms = record("a", shared, 7).event_time.unwrap().as_millis();
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
