//! In transactions: every crash and every answer that never comes leaves each record once.

use std::num::NonZeroU64;

use super::*;
use crate::replicate::{
    TransactionSettings,
    cluster::{ClusterEvent, GroupOffset},
    cursor::LogId,
    metrics::StreamLabel,
};

pub(super) const TRANSACTIONS: TransactionSettings =
    TransactionSettings { interval: Duration::from_millis(200), timeout: Duration::from_secs(15) };

fn world(seed: u64) -> World {
    World::with(seed, Settings { transactions: Some(TRANSACTIONS), ..settings(1 << 20) })
}

impl World {
    /// What `read_committed` consumers see ascends, so nothing is there twice.
    pub(super) fn check_once(&self) {
        for ((topic, partition), records) in self.brokers.partitions() {
            let offsets = records.iter().map(|appended| appended.offset.0).filter(|offset| *offset >= 0);
            let offsets: Vec<_> = offsets.collect();
            assert!(offsets.is_sorted_by(|a, b| a < b), "{topic}/{partition}: {offsets:?}");
        }
    }

    /// Until a transaction is in Kafka's hands, whose answer nobody hears.
    fn commit_unheard(&mut self) {
        let before = self.durable.as_ref().map_or(0, |cursor| cursor.transaction);
        self.run_until("it is asked to commit", |w| {
            w.durable.as_ref().is_some_and(|c| c.transaction > before && c.intent.is_some())
        });
    }

    fn is_in_doubt(&self) -> bool {
        self.replicator.cursor().intent.is_some()
    }
}

/// A world in which ten records are in Kafka and three more in a transaction that was to be committed when the agent was
/// killed. `committed`: Kafka did.
fn killed_while_committing(committed: bool) -> World {
    let mut world = world(1);
    world.commit(&[("a", 0, 10)], true);
    world.run_until_caught_up();
    world.commit(&[("a", 0, 3)], true);
    world.commit_unheard();
    if committed {
        let mut unheard = Vec::new();
        world.cluster.poll(Duration::ZERO, &mut unheard);
        assert!(unheard.contains(&ClusterEvent::Committed), "{unheard:?}");
    } else {
        world.brokers.fence();
    }
    world
}

fn offsets_of_all(world: &mut World) -> Vec<i64> {
    world.restart_agent();
    world.run_until("the doubt is settled", |w| !w.is_in_doubt());
    world.run_until_caught_up();
    world.check();
    offsets(&world.brokers, "a", 0)
}

#[test]
fn a_transaction_takes_what_gathers_in_its_interval_and_is_committed_at_once() {
    let mut world = world(1);
    for _ in 0..100 {
        world.commit(&[("a", 0, 1), ("b", 2, 1)], true);
        world.step();
        world.now = world.now + Duration::from_millis(20);
    }
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), (0..100).collect::<Vec<_>>());
    let transactions = world.metrics.transactions.get();
    assert!((9..=12).contains(&transactions), "{transactions} transactions in 2 s");
    assert_eq!(world.metrics.acknowledged_records.get_or_create(&label("a")).get(), 100);
}

fn label(stream: &str) -> StreamLabel {
    StreamLabel { stream: stream.into() }
}

#[test]
fn a_transaction_that_is_full_and_one_at_shutdown_do_not_wait() {
    let mut world = World::with(1, Settings { transactions: Some(TRANSACTIONS), ..settings(16 * 1024) });
    for _ in 0..200 {
        world.commit(&[("a", 0, 5)], true);
    }
    let start = world.now;
    world.replicator.drain();
    world.run_until_caught_up();
    let transactions = world.metrics.transactions.get();
    assert!(transactions > 10, "{transactions}");
    let pace = world.now.since(start) / u32::try_from(transactions).unwrap();
    assert!(pace < TRANSACTIONS.interval / 2, "{pace:?} each");
}

#[test]
fn nothing_is_acknowledged_before_the_commit_is() {
    let mut world = world(1);
    world.commit(&[("a", 0, 10)], true);
    world.commit_unheard();
    assert_eq!(world.replicator.acknowledged(), EntrySeq(0));
    assert_eq!(world.replicator.lag_records(), 10);
    world.step();
    assert_eq!(world.replicator.acknowledged(), EntrySeq(1));
    assert_eq!(world.replicator.lag_records(), 0);
}

#[test]
fn the_intent_says_what_the_cursor_says_when_it_is_committed() {
    let mut world = world(1);
    world.brokers.create_topic("test.a", NonZeroU16::new(4).unwrap());
    world.brokers.set_leader("test.a", PartitionId(1), false);
    world.commit(&[("a", 0, 3), ("b", 0, 1)], true);
    world.commit(&[("a", 0, 2), ("b", 3, 7)], true);
    world.commit_unheard();
    let intent = world.durable.clone().unwrap();
    let (next, acknowledged) = intent.beyond();
    world.run_until("it is committed", |w| !w.is_in_doubt());
    let cursor = world.replicator.cursor();
    assert_eq!((next, &acknowledged), (cursor.next, &cursor.acknowledged));
    let last = intent.intent.unwrap().last.unwrap();
    assert!(last.topic == "test.a" || last.topic == "test.b", "{last:?}");
}

#[test]
fn the_group_tells_whether_the_last_transaction_was_committed() {
    for committed in [true, false] {
        let mut world = killed_while_committing(committed);
        let aborted = world.metrics.aborted_transactions.get();
        assert_eq!(offsets_of_all(&mut world), (0..13).collect::<Vec<_>>(), "committed: {committed}");
        assert_eq!((aborted, world.metrics.undecided_transactions.get()), (0, 0));
    }
}

#[test]
fn after_a_month_the_last_record_tells_it() {
    for committed in [true, false] {
        let mut world = killed_while_committing(committed);
        world.brokers.forget_group();
        assert_eq!(offsets_of_all(&mut world), (0..13).collect::<Vec<_>>(), "committed: {committed}");
        assert_eq!(world.metrics.undecided_transactions.get(), 0);
    }
}

#[test]
fn what_nobody_can_know_is_sent_again_and_counted() {
    for committed in [true, false] {
        let mut world = killed_while_committing(committed);
        world.brokers.forget_group();
        world.brokers.lose_records(true);
        let held: BTreeSet<i64> = offsets_of_all(&mut world).into_iter().collect();
        assert_eq!(held, (0..13).collect());
        assert_eq!(world.metrics.undecided_transactions.get(), 1);
    }
}

#[test]
fn the_group_makes_up_for_a_cursor_whose_last_write_is_lost() {
    let mut world = killed_while_committing(true);
    world.durable = world.before.take();
    assert_eq!(world.durable.as_ref().map(|cursor| cursor.transaction), Some(1));
    assert_eq!(offsets_of_all(&mut world), (0..13).collect::<Vec<_>>());
}

/// The whole time that Kafka was there, no write of the cursor succeeded but the first.
#[test]
fn the_group_makes_up_for_a_disk_that_failed_all_the_while() {
    for lives in 0..3 {
        let mut world = world(1);
        for _ in 0..lives {
            world.commit(&[("a", 0, 5)], true);
            world.run_until_caught_up();
            world.save_cursor();
            world.restart_agent();
        }
        world.step();
        world.disk_takes_writes = false;
        for _ in 0..4 {
            world.commit(&[("a", 0, 10), ("b", 1, 3)], true);
            world.run_until_caught_up();
        }
        world.commit(&[("a", 0, 10)], true);
        world.disk_takes_writes = true;
        let all = 0..i64::from(lives) * 5 + 50;
        assert_eq!(offsets_of_all(&mut world), all.collect::<Vec<_>>(), "after {lives} lives");
    }
}

#[test]
fn a_copy_that_has_gone_its_own_way_does_not_take_the_originals_cursor_for_its_own() {
    let mut world = world(1);
    world.commit(&[("a", 0, 10)], true);
    world.run_until_caught_up();
    world.save_cursor();
    let copy = world.durable.clone();
    // The original goes on, further than the copy has ever been.
    world.commit(&[("a", 0, 1)], true);
    world.run_until_caught_up();
    world.commit(&[("a", 0, 20)], true);
    world.run_until_caught_up();
    // The copy has gathered as much without Kafka, and was started twice.
    world.durable = copy;
    world.brokers.set_away(true);
    world.restart_agent();
    world.step();
    world.brokers.set_away(false);
    world.restart_agent();
    world.run_until_caught_up();
    let both: Vec<_> = (0..31).chain(10..31).collect();
    assert_eq!(offsets(&world.brokers, "a", 0), both, "none of its own is skipped");
}

#[test]
fn what_another_log_or_a_copy_left_in_the_group_makes_no_record_be_skipped() {
    let foreign: [fn(&mut GroupOffset); 3] = [
        |group| (group.log, group.offset) = (LogId(NonZeroU64::MAX), Offset(500)),
        |group| (group.transaction, group.offset) = (900, Offset(500)),
        |group| (group.transaction, group.offset) = (group.transaction + 1, Offset(500)),
    ];
    for change in foreign {
        let mut world = world(1);
        world.commit(&[("a", 0, 10)], true);
        world.run_until_caught_up();
        world.save_cursor();
        world.commit(&[("a", 0, 10)], false);
        world.brokers.change_group(change);
        assert_eq!(offsets_of_all(&mut world), (0..20).collect::<Vec<_>>());
    }
}

#[test]
fn a_copy_of_the_data_directory_is_not_taken_for_the_original() {
    let mut world = killed_while_committing(false);
    // Both have the same file. The copy begins first.
    let name = world.durable.as_ref().and_then(|cursor| cursor.log);
    world.brokers.forget_group();
    offsets_of_all(&mut world);
    let renamed = world.durable.as_ref().and_then(|cursor| cursor.log);
    assert_ne!(name, renamed, "what it commits does not bear the name that the original asks for");
}

#[test]
fn a_gateway_that_is_fenced_says_so_and_does_not_fight_back_at_once() {
    let mut world = world(1);
    world.commit(&[("a", 0, 10)], true);
    world.run_until_caught_up();
    world.brokers.fence();
    world.commit(&[("a", 0, 10)], true);
    world.run_until("it notices", |w| w.metrics.fenced.get() == 1);
    let noticed = world.now;
    let health = world.metrics.health().snapshot();
    assert!(health.fenced && health.needs_operator());
    assert!(health.last_error.unwrap().contains("same gateway.id"));
    let restarts = world.brokers.restarts();
    world.run_until("it tries again", |w| w.brokers.restarts() > restarts);
    assert!(world.now.since(noticed) >= Duration::from_secs(30));
    world.run_until_caught_up();
    assert!(!world.metrics.health().snapshot().fenced);
    assert_eq!(offsets(&world.brokers, "a", 0), (0..20).collect::<Vec<_>>());
}

#[test]
fn a_transaction_that_kafka_ended_for_its_age_is_no_other_gateway() {
    let mut world = world(1);
    world.commit(&[("a", 0, 10)], true);
    world.run_until_caught_up();
    world.commit(&[("a", 0, 10)], true);
    world.commit_unheard();
    world.brokers.fence();
    world.now = world.now + TRANSACTIONS.timeout;
    assert_eq!(world.metrics.aborted_transactions.get(), 0);
    world.run_until("it is given up", |w| w.metrics.aborted_transactions.get() == 1);
    world.run_until_caught_up();
    assert_eq!(world.metrics.fenced.get(), 0);
    assert_eq!(offsets(&world.brokers, "a", 0), (0..20).collect::<Vec<_>>());
}

#[test]
fn what_a_slow_uplink_does_not_bring_over_in_time_is_tried_in_smaller_transactions() {
    let mut world = world(1);
    let limit_bytes = |w: &World| w.replicator.transactions.as_ref().unwrap().limit_bytes();
    let full = limit_bytes(&world);
    world.commit(&[("a", 0, 1_000)], true);
    world.brokers.create_topic("test.a", NonZeroU16::new(4).unwrap());
    world.brokers.set_leader("test.a", PartitionId(0), false);
    let mut limits = vec![full];
    for aborted in 1..=2 {
        world.run_until("it is given up", |w| w.metrics.aborted_transactions.get() == aborted);
        limits.push(limit_bytes(&world));
    }
    assert!(limits.is_sorted_by(|before, after| *after <= before / 2), "{limits:?}");
    world.brokers.set_leader("test.a", PartitionId(0), true);
    world.run_until_caught_up();
    world.commit(&[("a", 0, 10)], true);
    world.run_until_caught_up();
    // Each one that is quick makes up for one that was not.
    assert_eq!(limit_bytes(&world), full);
}

#[test]
fn a_transaction_that_took_long_makes_the_next_one_smaller_before_kafka_ends_it() {
    let mut world = world(1);
    let limit_bytes = |w: &World| w.replicator.transactions.as_ref().unwrap().limit_bytes();
    world.commit(&[("a", 0, 1)], true);
    world.run_until_caught_up();
    let before = limit_bytes(&world);
    world.brokers.hold_reports(true);
    world.commit(&[("a", 0, 1_000)], true);
    let begun = world.now;
    world.run_until("half its time is over", |w| w.now.since(begun) >= TRANSACTIONS.timeout / 2);
    world.brokers.hold_reports(false);
    world.run_until("it is committed", |w| w.metrics.transactions.get() == 2);
    assert!(limit_bytes(&world) <= before / 2, "{} of {before}", limit_bytes(&world));
    world.run_until_caught_up();
    assert_eq!(world.metrics.aborted_transactions.get(), 0);
}

#[test]
fn a_commit_that_is_never_answered_is_asked_for_by_a_new_producer() {
    let mut world = world(1);
    world.commit(&[("a", 0, 10)], true);
    world.commit_unheard();
    world.brokers.hold_reports(true);
    world.run_until("it is given up", |w| w.metrics.aborted_transactions.get() == 1);
    world.brokers.hold_reports(false);
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 0), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_refused_record_aborts_its_transaction_and_is_told_with_what_comes_behind_it() {
    for seed in 0..50 {
        let mut world = world(seed);
        let refused = record("a", 0, 7).value;
        let too_large = DeliveryError::Refused(Refusal::Contents(DropReason::TooLarge));
        world.brokers.refuse(move |a| (a.record.value == refused).then(|| too_large.clone()));
        world.commit(&[("a", 0, 20), ("b", 1, 20)], true);
        world.dropped.insert(("test.a".into(), PartitionId(0), Offset(7)));
        let expected: Vec<i64> = (0..20).filter(|offset| *offset != 7).collect();
        while !world.replicator.is_caught_up() {
            world.step();
            world.now = world.now + Duration::from_millis(5);
            world.check_once();
            // A crash here would send nothing again: what is behind the gap is there with it.
            let told = world.told("a", 0).contains(&7);
            let seen = offsets(&world.brokers, "a", 0);
            assert!(told || seen.iter().all(|offset| *offset < 7), "seed {seed}: {seen:?}");
        }
        assert_eq!(offsets(&world.brokers, "a", 0), expected);
        assert!(world.metrics.aborted_transactions.get() > 0);
    }
}

#[test]
fn a_partition_without_a_leader_holds_up_the_others_for_one_transaction_and_then_sits_out() {
    let mut world = world(1);
    world.brokers.create_topic("test.a", NonZeroU16::new(4).unwrap());
    world.brokers.set_leader("test.a", PartitionId(1), false);
    world.commit(&[("a", 0, 3), ("a", 1, 3)], true);
    world.run_until("it is given up", |w| w.metrics.aborted_transactions.get() == 1);
    assert!(world.now.since(Monotonic::default()) >= TRANSACTIONS.timeout);
    let start = world.now;
    world.commit(&[("a", 2, 3)], true);
    world.run_until("the others are there", |w| offsets(&w.brokers, "a", 2).len() == 3);
    assert!(world.now.since(start) < Duration::from_secs(2), "{:?}", world.now.since(start));
    assert_eq!(offsets(&world.brokers, "a", 0), [0, 1, 2]);
    world.brokers.set_leader("test.a", PartitionId(1), true);
    world.run_until_caught_up();
    assert_eq!(offsets(&world.brokers, "a", 1), [0, 1, 2]);
    world.check_once();
}

/// Entries that were lost while the agent was down were taken for told when their transaction turned out to be committed.
#[test]
fn what_the_disk_loses_behind_a_transaction_in_doubt_is_told() {
    let mut world = killed_while_committing(true);
    world.commit(&[("a", 0, 2)], false);
    world.lose(1);
    world.lose(2);
    world.brokers.forget_group();
    assert_eq!(offsets_of_all(&mut world), (0..13).collect::<Vec<_>>());
    world.run_until("it is told", |w| w.told("a", 0) == [13, 14].into());
}
