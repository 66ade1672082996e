//! What the log has lost is told to Kafka, and the cursor waits for it.

use super::*;

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
    let unknown =
        r#"{"reason":"damaged","count":null,"device":null,"stream":"a","partition":0,"first_offset":9}"#;
    // Where the partition goes on is known, though others are beyond a floor, or it is not.
    let cases: [(&[i64], String); 2] = [(&[11], damaged("a", 0, 9, 10)), (&[], unknown.to_owned())];
    for (behind, told) in cases {
        let mut world = World::new(1, 1 << 20);
        world.commit(&[("a", 0, 2)], false);
        world.commit(&[("a", 0, 3)], false);
        world.replicator.probe(true);
        world.run_until_caught_up();
        let lane = (stream("a"), PartitionId(0));
        let lost =
            |first, end| LostEntries { first: EntrySeq(first), end: EntrySeq(end), reason: String::new() };
        let checkpoint = |seq, next: &[i64], floor| KnownOffsets {
            seq: EntrySeq(seq),
            next: next.iter().map(|next| (lane.clone(), Offset(*next))).collect(),
            floor: Offset(floor),
        };
        let outcome = ReadOutcome {
            groups: Vec::new(),
            next: EntrySeq(21),
            lost: vec![lost(2, 10), lost(11, 20)],
            checkpoints: vec![checkpoint(10, &[9], 0), checkpoint(20, behind, 8192 * 20)],
        };
        let request = ReadRequest { from: EntrySeq(2), limit_bytes: 1, ahead: false };
        world.replicator.on_read(world.now, request, Some(outcome));
        world.run_until_caught_up();
        assert_eq!(world.gaps(), [damaged("a", 0, 5, 8), told]);
    }
}

#[test]
fn what_the_log_dropped_is_told_in_its_place_and_the_cursor_waits_for_it() {
    let mut world = World::new(1, 1 << 20);
    world.brokers.create_topic("test.gaps", NonZeroU16::new(4).unwrap());
    (0..4).for_each(|partition| world.brokers.set_leader("test.gaps", PartitionId(partition), false));
    for _ in 0..3 {
        world.commit(&[("a", 0, 2), ("b", 1, 1)], false);
    }
    assert!(world.compact(EntrySeq(1)));
    world.replicator.probe(true);
    world.run_until("what is there is in Kafka", |w| offsets(&w.brokers, "a", 0) == [0, 1, 3, 4, 5]);
    (0..100).for_each(|_| world.step());
    let cursor = world.replicator.cursor();
    assert_eq!((cursor.next, cursor.acknowledged[&(stream("a"), PartitionId(0))]), (EntrySeq(1), Offset(2)));
    world.save_cursor();
    world.restart_agent();
    (0..4).for_each(|partition| world.brokers.set_leader("test.gaps", PartitionId(partition), true));
    world.run_until_caught_up();
    assert_eq!(world.gaps(), [damaged("a", 0, 2, 2).replace("damaged", "drop_oldest")]);
    assert_eq!(offsets(&world.brokers, "b", 1), [0, 1, 2]);
    assert_eq!(world.replicator.cursor().next, world.log_end);
}

#[test]
fn what_replication_has_taken_is_not_dropped_by_the_log_and_what_was_dropped_is_not_taken_from_memory() {
    let mut world = World::new(1, 1 << 20);
    world.commit(&[("a", 0, 2)], true);
    world.step();
    assert!(!world.compact(EntrySeq(0)));
    world.commit(&[("a", 0, 2)], false);
    let stale = Arc::clone(&world.log[&EntrySeq(1)]);
    assert!(world.compact(EntrySeq(1)));
    world.replicator.offer(stale);
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1, 3]);
    assert_eq!(world.told("a", 0), [2].into());
}

/// A quiet partition that overtook would keep the log from dropping anything before.
#[test]
fn where_the_log_drops_what_is_stored_no_partition_overtakes() {
    let mut world = World::new(1, 64 * 1024);
    world.commit(&[("a", 0, 1), ("b", 1, 1)], true);
    world.run_until_caught_up();
    world.brokers.set_away(true);
    // More than what may be in flight, so that the log is not taken in its order any more.
    (0..40).for_each(|_| world.commit(&[("a", 0, 40)], true));
    (0..20).for_each(|_| world.step());
    world.commit(&[("b", 1, 1)], true);
    (0..20).for_each(|_| world.step());
    assert!(world.compact(EntrySeq(40)), "an entry before the one of the quiet partition");
}

/// Found by the system test of `latest-per-device`: what had been dropped behind a record made that pass for taken.
#[test]
fn a_record_that_the_log_keeps_between_dropped_ones_arrives() {
    let mut world = World::new(1, 1 << 20);
    world.commit(&[("a", 0, 9)], false);
    assert!(world.compact(EntrySeq(0)));
    world.replicator.probe(true);
    world.run_until_caught_up();
    world.check();
    assert_eq!(offsets(&world.brokers, "a", 0), [1, 4, 7]);
    assert_eq!(world.told("a", 0), [0, 2, 3, 5, 6, 8].into());
}

/// Found by the property test: it was told a second time as damaged, and the cursor went back.
#[test]
fn what_was_told_as_dropped_and_is_then_lost_is_not_told_again() {
    let mut world = World::with(1, Settings { catch_up_bytes_per_second: 1_000, ..settings(1 << 20) });
    (0..20).for_each(|_| world.commit(&[("a", 0, 10)], false));
    world.commit(&[("b", 1, 1)], false);
    (0..20).for_each(|_| world.commit(&[("a", 0, 10)], false));
    world.commit(&[("a", 0, 1)], true);
    assert!(world.compact(EntrySeq(20)));
    let lead = |world: &World, present| {
        for (topic, partition) in ["test.a", "test.gaps"].iter().flat_map(|t| (0..4).map(move |p| (t, p))) {
            world.brokers.set_leader(topic, PartitionId(partition), present);
        }
    };
    for topic in ["test.a", "test.gaps"] {
        world.brokers.create_topic(topic, NonZeroU16::new(4).unwrap());
    }
    lead(&world, false);
    world.run_until("the gap is on its way", |w| w.replicator.lanes.iter().any(|l| !l.untold.is_empty()));
    world.lose(20);
    // It is told again before the log is read again.
    world.brokers.fail_next("on request");
    lead(&world, true);
    world.run_until_caught_up();
    world.check();
    assert!(world.brokers.restarts() > 0);
    assert_eq!(world.gaps(), [damaged("b", 1, 0, 0).replace("damaged", "drop_oldest")]);
}

/// Found by the property test: Kafka had a part of what the log dropped, and the rest was not told.
#[test]
fn the_log_drops_nothing_that_replication_had_begun_with_before_a_restart() {
    let mut world = World::new(1, 1 << 20);
    world.brokers.create_topic("test.a", NonZeroU16::new(4).unwrap());
    world.brokers.set_leader("test.a", PartitionId(0), false);
    world.brokers.set_queue_limit(3);
    world.commit(&[("a", 0, 1)], true);
    world.commit(&[("b", 1, 3)], true);
    world.run_until("a part of the second entry is in Kafka", |w| {
        w.replicator.cursor().acknowledged.contains_key(&(stream("b"), PartitionId(1)))
    });
    world.save_cursor();
    world.restart_agent();
    assert!(!world.compact(EntrySeq(1)));
}
