//! The contract of [`Cluster`], run against every implementation.

use std::{
    collections::BTreeSet,
    num::{NonZeroU16, NonZeroU64},
    time::Duration,
};

use super::{
    cluster::{Cluster, ClusterEvent, GroupOffset, Outgoing, Token, TopicOutcome},
    cursor::LogId,
    tests::record,
};
use crate::record::{Offset, PartitionId};

/// What the suite needs to do to the brokers behind a cluster.
pub(crate) trait Brokers {
    fn create_topic(&self, topic: &str, partitions: NonZeroU16);
    fn set_away(&self, away: bool);
    /// Values in a partition, in order, once there are at least `count`.
    fn values(&self, topic: &str, partition: PartitionId, count: usize) -> Vec<Vec<u8>>;
}

const TOPIC: &str = "test.contract";

/// Polls that nothing may be reported in, and that something must be reported in.
const QUIET: Duration = Duration::from_millis(300);
const PATIENCE: u32 = 1_000;

/// Runs all of it; each check has a topic of its own within one cluster.
pub(crate) fn check(cluster: &mut dyn Cluster, brokers: &dyn Brokers) {
    topics_are_answered(cluster, brokers);
    records_of_a_partition_keep_their_order_and_are_reported_once(cluster, brokers);
    nothing_is_reported_while_the_brokers_are_away_and_all_afterwards(cluster, brokers);
    a_restart_forgets_what_was_under_way(cluster, brokers);
}

fn topics_are_answered(cluster: &mut dyn Cluster, brokers: &dyn Brokers) {
    brokers.create_topic(TOPIC, partitions(3));
    let mut answer = |count| {
        cluster.ensure_topic(TOPIC, partitions(count));
        poll_until(cluster, |events| !events.is_empty()).remove(0)
    };
    let expected = |outcome| ClusterEvent::Topic { topic: TOPIC.into(), outcome };
    assert_eq!(answer(3), expected(TopicOutcome::Ready));
    assert_eq!(answer(5), expected(TopicOutcome::PartitionMismatch { found: 3 }));
}

fn records_of_a_partition_keep_their_order_and_are_reported_once(
    cluster: &mut dyn Cluster,
    brokers: &dyn Brokers,
) {
    for n in 0..300 {
        send(cluster, i32::try_from(n % 3).unwrap(), n);
    }
    let events = poll_until(cluster, |events| events.len() >= 300);
    assert_eq!(delivered(&events), (0..300).collect());
    assert_eq!(events.len(), 300, "each is reported once");
    for partition in 0..3 {
        let expected: Vec<Vec<u8>> =
            (0..300).filter(|n| n % 3 == partition).map(|n| value(partition, n)).collect();
        let partition = PartitionId(i32::try_from(partition).unwrap());
        assert_eq!(brokers.values(TOPIC, partition, expected.len()), expected);
    }
}

fn nothing_is_reported_while_the_brokers_are_away_and_all_afterwards(
    cluster: &mut dyn Cluster,
    brokers: &dyn Brokers,
) {
    brokers.set_away(true);
    for n in 1_000..1_050 {
        send(cluster, 0, n);
    }
    let mut events = Vec::new();
    cluster.poll(QUIET, &mut events);
    assert!(delivered(&events).is_empty(), "{events:?}");
    brokers.set_away(false);
    let events = poll_until(cluster, |events| delivered(events).len() >= 50);
    assert_eq!(delivered(&events), (1_000..1_050).collect());
    let expected: Vec<Vec<u8>> = (1_000..1_050).map(|n| value(0, n)).collect();
    assert_eq!(brokers.values(TOPIC, PartitionId(0), 150)[100..], expected);
}

fn a_restart_forgets_what_was_under_way(cluster: &mut dyn Cluster, brokers: &dyn Brokers) {
    brokers.set_away(true);
    for n in 2_000..2_010 {
        send(cluster, 1, n);
    }
    cluster.restart().unwrap();
    brokers.set_away(false);
    send(cluster, 1, 3_000);
    let events = poll_until(cluster, |events| !delivered(events).is_empty());
    assert_eq!(delivered(&events), BTreeSet::from([3_000]));
}

/// The same of a cluster with transactions.
pub(crate) fn check_transactions(cluster: &mut dyn Cluster, brokers: &dyn Brokers) {
    brokers.create_topic(TOPIC, partitions(3));
    cluster.init_transactions(Vec::new());
    let events = poll_until(cluster, |events| !events.is_empty());
    assert_eq!(events, [ClusterEvent::Initialized(Vec::new())]);
    for n in 0..3 {
        transact(cluster, n * 100);
    }
    brokers.set_away(true);
    cluster.restart().unwrap();
    cluster.init_transactions(Vec::new());
    let mut events = Vec::new();
    cluster.poll(QUIET, &mut events);
    events.retain(|event| !matches!(event, ClusterEvent::Trouble(_)));
    assert_eq!(events, [], "it waits for the brokers");
    brokers.set_away(false);
    poll_until(cluster, |events| events.contains(&ClusterEvent::Initialized(Vec::new())));
    transact(cluster, 300);
    let expected: Vec<Vec<u8>> =
        [0, 100, 200, 300].into_iter().flat_map(|n| n..n + 10).map(|n| value(0, n)).collect();
    assert_eq!(brokers.values(TOPIC, PartitionId(0), expected.len()), expected);
}

/// Sends ten records in a transaction.
fn transact(cluster: &mut dyn Cluster, first: usize) {
    cluster.begin_transaction().unwrap();
    (first..first + 10).for_each(|n| send(cluster, 0, n));
    let events = poll_until(cluster, |events| events.len() >= 10);
    assert_eq!(delivered(&events), (first..first + 10).collect());
    let log = LogId(NonZeroU64::MIN);
    cluster.commit_transaction(vec![GroupOffset {
        topic: TOPIC.into(),
        partition: PartitionId(0),
        offset: Offset(i64::try_from(first).unwrap()),
        log,
        transaction: 1,
    }]);
    poll_until(cluster, |events| events == [ClusterEvent::Committed]);
}

fn partitions(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap()
}

fn value(partition: usize, n: usize) -> Vec<u8> {
    record("contract", i32::try_from(partition).unwrap(), i64::try_from(n).unwrap()).value.to_vec()
}

fn send(cluster: &mut dyn Cluster, partition: i32, n: Token) {
    let offset = i64::try_from(n).unwrap();
    let record = record("contract", partition, offset);
    let outgoing = Outgoing {
        topic: TOPIC,
        partition: PartitionId(partition),
        record: &record,
        offset: Some(Offset(offset)),
        received: record.received,
        timestamp_ms: record.event_time.unwrap().as_millis(),
        refused_event_time: None,
        token: n,
    };
    cluster.produce(&outgoing).unwrap();
}

fn delivered(events: &[ClusterEvent]) -> BTreeSet<Token> {
    let token = |event: &ClusterEvent| match event {
        ClusterEvent::Delivered { token, .. } => Some(*token),
        ClusterEvent::Topic { .. } | ClusterEvent::Trouble(_) | ClusterEvent::Throttled(_) => None,
        _ => panic!("{event:?}"),
    };
    events.iter().filter_map(token).collect()
}

fn poll_until(cluster: &mut dyn Cluster, done: impl Fn(&[ClusterEvent]) -> bool) -> Vec<ClusterEvent> {
    let mut events = Vec::new();
    for _ in 0..PATIENCE {
        cluster.poll(Duration::from_millis(20), &mut events);
        events.retain(|e| !matches!(e, ClusterEvent::Trouble(_)));
        if done(&events) {
            return events;
        }
    }
    panic!("not reported: {events:?}");
}

mod simulated_cluster {
    use super::{super::simulated, *};

    impl Brokers for simulated::SimulatedBrokers {
        fn create_topic(&self, topic: &str, partitions: NonZeroU16) {
            self.create_topic(topic, partitions);
        }

        fn set_away(&self, away: bool) {
            self.set_away(away);
        }

        fn values(&self, topic: &str, partition: PartitionId, _count: usize) -> Vec<Vec<u8>> {
            self.partition(topic, partition).iter().map(|a| a.record.value.to_vec()).collect()
        }
    }

    #[test]
    fn simulated_cluster_keeps_the_contract() {
        for seed in 0..20 {
            let (mut cluster, brokers) = simulated::cluster(seed);
            check(&mut cluster, &brokers);
            let (mut cluster, brokers) = simulated::cluster(seed);
            check_transactions(&mut cluster, &brokers);
        }
    }
}
