//! Any order of commits, outages, failures, losses and restarts.

use proptest::prelude::*;

use super::{exactly_once::TRANSACTIONS, *};

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
    Compact(prop::sample::Index),
    Fence,
    RestartAgent(Harm),
}

/// What else goes wrong while the agent is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    None,
    /// The half of the cursor's file that was written last is lost.
    LosesSlot,
    /// It is off for so long that Kafka has forgotten the offsets of its group.
    ForgetsGroup,
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
        2 => any::<prop::sample::Index>().prop_map(Op::Compact),
        1 => Just(Op::Fence),
        3 => prop::sample::select(vec![Harm::None, Harm::LosesSlot, Harm::ForgetsGroup])
            .prop_map(Op::RestartAgent),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// And in transactions nothing comes twice.
    #[test]
    fn nothing_is_lost_or_reordered_and_nothing_unacknowledged_is_trimmed(
        seed: u64,
        exactly_once: bool,
        log_drops: bool,
        catch_up_bytes_per_second in prop::sample::select(vec![0, 10_000]),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut world = World::with(
            seed,
            Settings {
                log_drops,
                catch_up_bytes_per_second,
                transactions: exactly_once.then_some(TRANSACTIONS),
                ..settings(8 * 1024)
            },
        );
        let mut cursor_was_lost = false;
        // Kafka makes up for a lost half of the cursor when it has had two transactions since it forgot.
        let mut group_is_whole_from = 0;
        // And does so when it is asked, which shows in the next one.
        let mut made_up_for_from = 0;
        for op in ops {
            match op {
                Op::LoseEntry(index) if !world.log.is_empty() => {
                    let seqs: Vec<_> = world.log.keys().copied().collect();
                    world.lose(index.get(&seqs).0);
                }
                Op::Compact(index) if log_drops && !world.log.is_empty() => {
                    let seqs: Vec<_> = world.log.keys().copied().collect();
                    world.compact(*index.get(&seqs));
                }
                Op::LoseEntry(_) | Op::Compact(_) => {}
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
                Op::Fence => world.brokers.fence(),
                Op::RestartAgent(harm) => {
                    let transactions = world.metrics.transactions.get();
                    match harm {
                        Harm::LosesSlot if exactly_once && transactions >= group_is_whole_from => {
                            cursor_was_lost |= world.before.is_none();
                            world.durable = world.before.clone();
                            made_up_for_from = transactions + 1;
                        }
                        Harm::ForgetsGroup if transactions >= made_up_for_from => {
                            world.brokers.forget_group();
                            group_is_whole_from = transactions + 2;
                        }
                        Harm::None | Harm::LosesSlot | Harm::ForgetsGroup => {}
                    }
                    world.restart_agent();
                }
            }
            world.check();
            if exactly_once && !cursor_was_lost {
                world.check_once();
            }
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
        if exactly_once && !cursor_was_lost {
            world.check_once();
        }
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
        for ((topic, partition), records) in world.brokers.partitions() {
            let both = records.iter().find(|record| {
                world.let_go.contains(&(topic.clone(), partition, record.offset))
            });
            // Without a cursor nobody knows what Kafka has.
            prop_assert!(cursor_was_lost || both.is_none(), "{both:?} arrived and was told as dropped");
        }
        prop_assert_eq!(world.replicator.in_flight_bytes(), 0);
        prop_assert_eq!(world.replicator.lag_records(), 0);
    }
}
