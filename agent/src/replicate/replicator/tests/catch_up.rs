//! The catch-up after an outage: its pace, and who need not wait for it.

use super::*;

const STEP: Duration = Duration::from_millis(5);

impl World {
    /// Kafka is away for so long, while one entry with 5 records of `a/0` is committed in each second.
    fn outage(&mut self, seconds: u64) {
        self.brokers.set_away(true);
        for _ in 0..seconds {
            self.commit(&[("a", 0, 5)], true);
            self.step();
            self.now = self.now + Duration::from_secs(1);
        }
        self.brokers.set_away(false);
    }

    /// The present backlog of a partition in bytes of records.
    fn backlog_bytes(&self, name: &str, partition: i32) -> u64 {
        let end = self.offsets()[&(stream(name), PartitionId(partition))].0;
        let sent = self.replicator.lane_of[&(stream(name), PartitionId(partition))];
        let taken = self.replicator.lanes[sent].taken.unwrap_or_default().0;
        u64::try_from(end - taken).unwrap() * record_bytes()
    }

    /// Steps until `done`; returns how long that took.
    #[track_caller]
    fn time_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            self.step();
            self.now = self.now + STEP;
            assert!(self.now.since(start) < Duration::from_secs(20_000), "not reached: {what}");
        }
        self.now.since(start)
    }
}

fn record_bytes() -> u64 {
    record("a", 0, 10_000).size_bytes() as u64
}

#[test]
fn a_partition_without_backlog_does_not_wait_for_that_of_another() {
    for limit in [0, 20_000] {
        let mut world = World::overtaking(1, 64 * 1024, limit);
        world.commit(&[("a", 0, 1), ("b", 1, 1)], true);
        world.run_until_caught_up();
        world.outage(3_600);
        world.commit(&[("a", 0, 1), ("b", 1, 1)], true);
        let idle = world.time_until("the idle partition", |w| offsets(&w.brokers, "b", 1).len() == 2);
        let busy = world.time_until("the busy partition", |w| w.replicator.is_caught_up());
        println!(
            "{limit} B/s: live record of an idle partition after {idle:?}, of the busy one after {busy:?}"
        );
        assert!(idle < Duration::from_millis(100), "{idle:?}");
        assert!(busy > 10 * idle, "{busy:?}");
        world.check();
        assert_eq!(offsets(&world.brokers, "b", 1), [0, 1], "what overtook is not sent again");
        let end = world.offsets[&("a", 0)];
        assert_eq!(offsets(&world.brokers, "a", 0), (0..end).collect::<Vec<_>>());
    }
}

#[test]
fn a_partition_is_live_again_as_soon_as_the_last_record_of_its_backlog_was_read() {
    let mut world = World::overtaking(1, 64 * 1024, 10_000);
    world.brokers.set_away(true);
    world.commit(&[("a", 0, 1), ("b", 1, 1)], false);
    world.outage(3_600);
    world.time_until("the old record", |w| offsets(&w.brokers, "b", 1) == [0]);
    world.commit(&[("b", 1, 1)], true);
    world.time_until("the live record", |w| offsets(&w.brokers, "b", 1) == [0, 1]);
    assert!(world.replicator.lag_records() > 10_000, "{} left", world.replicator.lag_records());
}

#[test]
fn the_backlog_shrinks_at_its_rate_whatever_comes_in_meanwhile() {
    for (limit, live_records) in [(20_000, 0), (20_000, 2), (2_000, 10)] {
        let mut world = World::overtaking(1, 256 * 1024, limit);
        world.outage(3_600);
        world.time_until("the delay after the outage", |w| w.metrics.groups_from_log.get() > 0);
        let run = |world: &mut World, seconds: u64| {
            for _ in 0..seconds * 10 {
                if live_records > 0 {
                    world.commit(&[("a", 0, live_records)], true);
                }
                for _ in 0..20 {
                    world.step();
                    world.now = world.now + STEP;
                }
            }
        };
        // What was in memory is sent, and the live rate is measured.
        run(&mut world, 20);
        let before = world.backlog_bytes("a", 0);
        run(&mut world, 50);
        let shrunk = before - world.backlog_bytes("a", 0);
        let expected = 50 * limit;
        assert!(
            shrunk.abs_diff(expected) < expected / 10,
            "shrunk by {shrunk} instead of {expected} bytes with {live_records} live records in 100 ms"
        );
        world.check();
    }
}

#[test]
fn after_an_outage_the_backlog_waits_a_while_and_live_records_do_not() {
    let mut world = World::overtaking(1, 64 * 1024, 0);
    world.commit(&[("b", 1, 1)], true);
    world.run_until_caught_up();
    world.outage(3_600);
    world.commit(&[("b", 1, 1)], true);
    let live = world.time_until("the live record", |w| offsets(&w.brokers, "b", 1) == [0, 1]);
    assert_eq!(world.metrics.groups_from_log.get(), 0);
    let due = world.replicator.deadline().expect("it says when it goes on");
    let backlog = world.time_until("the backlog", |w| w.metrics.groups_from_log.get() > 0);
    assert!(world.now >= due);
    assert!(live < Duration::from_millis(100), "{live:?}");
    assert!(Duration::from_secs(1) < backlog && backlog < Duration::from_secs(30), "{backlog:?}");
    world.run_until_caught_up();
    world.check();
}

#[test]
fn after_a_hiccup_the_backlog_goes_on_at_once() {
    let mut world = World::overtaking(1, 4 * 1024, 0);
    world.outage(9);
    for _ in 0..200 {
        world.commit(&[("a", 0, 5)], false);
    }
    let end = world.offsets[&("a", 0)];
    let caught_up = world.time_until("all", |w| {
        w.replicator.probe(true);
        offsets(&w.brokers, "a", 0).len() == usize::try_from(end).unwrap()
    });
    assert!(caught_up < Duration::from_secs(5), "{caught_up:?}");
}

#[test]
fn a_partition_without_a_leader_holds_up_no_live_record_of_others() {
    let mut world = World::overtaking(1, 16 * 1024, 0);
    world.brokers.create_topic("test.a", NonZeroU16::new(4).unwrap());
    world.brokers.set_leader("test.a", PartitionId(0), false);
    for n in 1..=1_000 {
        world.commit(&[("a", 0, 5), ("b", 1, 1)], true);
        world.time_until("the record of the other", |w| offsets(&w.brokers, "b", 1).len() == n);
        world.check();
    }
    assert_eq!(offsets(&world.brokers, "a", 0), [0; 0]);
    world.brokers.set_leader("test.a", PartitionId(0), true);
    world.run_until_caught_up();
    world.check();
    assert_eq!(offsets(&world.brokers, "a", 0), (0..5_000).collect::<Vec<_>>());
    assert_eq!(offsets(&world.brokers, "b", 1), (0..1_000).collect::<Vec<_>>());
}

#[test]
fn what_overtook_overtakes_again_after_a_restart_of_the_producer() {
    let mut world = World::overtaking(1, 64 * 1024, 100);
    world.commit(&[("b", 1, 1)], true);
    world.run_until_caught_up();
    world.outage(3_600);
    world.brokers.set_leader("test.b", PartitionId(1), false);
    world.commit(&[("b", 1, 1)], true);
    world.step();
    world.brokers.fail_next("broker says no");
    world.time_until("the restart", |w| w.brokers.restarts() == 1);
    world.brokers.set_leader("test.b", PartitionId(1), true);
    let live = world.time_until("the live record", |w| offsets(&w.brokers, "b", 1).contains(&1));
    assert!(live < Duration::from_secs(1), "{live:?}");
    world.check();
}

#[test]
fn partitions_that_overtook_and_are_stuck_do_not_hold_up_the_backlog() {
    let mut world = World::overtaking(1, 8 * 1024, 0);
    let stuck: Vec<_> = (0..4).flat_map(|partition| [("b", partition, 6), ("c", partition, 6)]).collect();
    for (name, partition, _) in &stuck {
        world.brokers.set_leader(&format!("test.{name}"), PartitionId(*partition), false);
    }
    world.outage(600);
    world.time_until("what was in flight", |w| w.replicator.in_flight_bytes() == 0);
    // All together they fill what may be in flight.
    for _ in 0..20 {
        world.commit(&stuck, true);
        world.step();
    }
    assert!(world.replicator.in_flight_bytes() >= world.settings.in_flight_bytes);
    world.time_until("the backlog", |w| offsets(&w.brokers, "a", 0).len() == 3_000);
    world.check();
}

/// A world that has a backlog of `a/0` for long, in which nothing else has one.
fn catching_up(in_flight_bytes: usize) -> World {
    let mut world = World::overtaking(1, in_flight_bytes, 100);
    world.commit(&[("a", 0, 1), ("b", 1, 1), ("c", 2, 1)], true);
    world.run_until_caught_up();
    world.outage(3_600);
    world.time_until("what was in flight", |w| w.replicator.in_flight_bytes() == 0);
    world
}

impl World {
    /// All records of a partition are in Kafka.
    fn has_all(&self, name: &'static str, partition: i32) -> bool {
        let end = self.offsets[&(name, partition)];
        usize::try_from(end).is_ok_and(|end| offsets(&self.brokers, name, partition).len() == end)
    }

    #[track_caller]
    fn is_still_catching_up(&self) {
        let lag_records = self.replicator.lag_records();
        assert!(lag_records > 10_000, "only {lag_records} left");
        self.check();
    }
}

#[test]
fn a_partition_without_a_backlog_stays_live_while_the_feed_overflows() {
    let mut world = catching_up(64 * 1024);
    for burst in 1..=50 {
        // More than the replicator keeps in memory, and it hears of the last alone.
        for _ in 0..burst {
            world.commit(&[("a", 0, 1), ("b", 1, 4)], false);
        }
        world.commit(&[("a", 0, 1), ("b", 1, 1)], true);
        let live = world.time_until("the live records", |w| w.has_all("b", 1));
        assert!(live < Duration::from_millis(500), "{live:?}");
    }
    world.is_still_catching_up();
}

#[test]
fn a_partition_without_a_backlog_is_live_again_as_soon_as_kafka_is() {
    let mut world = catching_up(16 * 1024);
    for _ in 0..10 {
        world.brokers.set_away(true);
        for _ in 0..1_000 {
            world.commit(&[("a", 0, 1), ("b", 1, 1)], true);
            world.step();
            world.now = world.now + STEP;
        }
        assert!(!world.has_all("b", 1));
        world.brokers.set_away(false);
        let live = world.time_until("the live records", |w| w.has_all("b", 1));
        assert!(live < Duration::from_secs(2), "{live:?}");
    }
    world.is_still_catching_up();
}

#[test]
fn the_last_live_record_is_sent_though_nothing_comes_behind_it() {
    let mut world = catching_up(64 * 1024);
    world.commit(&[("b", 1, 1)], true);
    world.commit(&[("b", 1, 1)], false);
    world.replicator.probe(false);
    let live = world.time_until("the live record", |w| w.has_all("b", 1));
    assert!(live < Duration::from_millis(100), "{live:?}");
    world.is_still_catching_up();
}

#[test]
fn what_was_sent_before_its_turn_is_so_again_after_a_restart_of_the_producer() {
    let mut world = catching_up(64 * 1024);
    world.brokers.set_leader("test.b", PartitionId(1), false);
    world.commit(&[("b", 1, 5)], true);
    world.step();
    // It is no longer in memory.
    for _ in 0..1_000 {
        world.commit(&[("a", 0, 1)], true);
        world.step();
    }
    world.brokers.set_leader("test.b", PartitionId(1), true);
    world.brokers.fail_next("broker says no");
    world.commit(&[("b", 1, 1)], true);
    let live = world.time_until("the live records", |w| w.has_all("b", 1));
    assert!(live < Duration::from_secs(1), "{live:?}");
    world.is_still_catching_up();
}

#[test]
fn a_live_partition_without_a_leader_is_not_waited_for_by_what_others_have_missed() {
    let mut world = catching_up(16 * 1024);
    world.brokers.set_leader("test.b", PartitionId(1), false);
    // Of `b` there is more than it may have on its way.
    for _ in 0..50 {
        world.commit(&[("b", 1, 4), ("c", 2, 1)], false);
    }
    world.commit(&[("c", 2, 1)], true);
    let live = world.time_until("the live records", |w| w.has_all("c", 2));
    assert!(live < Duration::from_secs(6), "{live:?}");
    for _ in 0..50 {
        world.commit(&[("b", 1, 4), ("c", 2, 1)], false);
        world.commit(&[("c", 2, 1)], true);
        let live = world.time_until("the live records", |w| w.has_all("c", 2));
        assert!(live < Duration::from_millis(500), "{live:?}");
    }
    world.is_still_catching_up();
}
