//! Transactions that only a real Kafka ends, forgets and fences.

use std::{fs::OpenOptions, os::unix::fs::FileExt};

use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};

use super::*;
use crate::{
    record::{Offset, PartitionId},
    replicate::{
        TRANSACTION_TIMEOUT,
        cluster::{ClusterEvent, Outgoing},
        cursor::{self, Cursor, Intent, LastRecord},
        properties,
        tests::stream,
    },
};

const WAIT: Duration = Duration::from_secs(30);

/// Entries of ten records each in one partition.
fn entries(range: std::ops::Range<u64>) -> Vec<Arc<BatchGroup>> {
    range.map(|n| group(n, &[("a", 1, i64::try_from(n).unwrap() * 10, 10)])).collect()
}

fn offsets(brokers: &str, environment: &str) -> Vec<i64> {
    held(brokers, &format!("{environment}.a"), 1).into_iter().map(|(offset, _)| offset).collect()
}

/// What a week without a commit does to a group without members.
fn forget_group(brokers: &str, gateway: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let group = properties::group(gateway);
    runtime.block_on(admin.delete_groups(&[&group], &AdminOptions::new())).unwrap().remove(0).unwrap();
}

/// The file as it was when the last transaction was on its way: its other half.
fn lose_last_write(dir: &Path) -> Cursor {
    let path = dir.join(cursor::FILE_NAME);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let newest = Cursor::load(&path).unwrap().unwrap();
    for slot in 0..2 {
        let kept = std::fs::read(&path).unwrap();
        file.write_all_at(&[0; cursor::SLOT_BYTES], slot * cursor::SLOT_BYTES as u64).unwrap();
        match Cursor::load(&path).unwrap() {
            Some(left) if left.generation < newest.generation => return left,
            _ => file.write_all_at(&kept, 0).unwrap(),
        }
    }
    panic!("there is one slot: {newest:?}");
}

#[test]
#[ignore = "needs WAYSIDE_TEST_KAFKA, the bootstrap servers of a Kafka with three brokers"]
fn real_kafka_tells_after_a_kill_that_the_last_transaction_was_committed_also_after_a_month() {
    let brokers = brokers();
    for is_forgotten in [false, true] {
        let environment = unique();
        let dir = tempfile::tempdir().unwrap();
        assert!(drain_with(dir.path(), real_config(&brokers), &environment, entries(0..50)).0.caught_up);
        let left = lose_last_write(dir.path());
        assert!(left.intent.is_some(), "{left:?}");
        assert_eq!(left.next, EntrySeq(0), "the log has it all, and has to be told that Kafka has too");
        if is_forgotten {
            forget_group(&brokers, &environment);
        }
        let (summary, metrics) = drain_with(dir.path(), real_config(&brokers), &environment, entries(0..60));
        assert!(summary.caught_up);
        assert_eq!(metrics.undecided_transactions.get(), 0);
        assert_eq!(
            offsets(&brokers, &environment),
            (0..600).collect::<Vec<_>>(),
            "forgotten: {is_forgotten}"
        );
    }
}

/// A producer as the gateway's own, in the middle of a transaction with one record, and where that is.
fn in_the_middle(brokers: &str, environment: &str, offset: i64) -> (BaseProducer, i64) {
    let config = properties::producer(&real_config(brokers), environment);
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(WAIT).unwrap();
    producer.begin_transaction().unwrap();
    let topic = format!("{environment}.a");
    let text = offset.to_string();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "wayside.gateway", value: Some(environment) })
        .insert(Header { key: "wayside.offset", value: Some(&text) });
    let record = BaseRecord::to(&topic).partition(1).key("k").payload("v").headers(headers);
    producer.send(record).unwrap();
    producer.flush(WAIT).unwrap();
    let all: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("isolation.level", "read_uncommitted")
        .create()
        .unwrap();
    let (_, end) = all.fetch_watermarks(&topic, 1, WAIT).unwrap();
    (producer, end - 1)
}

#[test]
#[ignore = "needs WAYSIDE_TEST_KAFKA, the bootstrap servers of a Kafka with three brokers"]
fn real_kafka_tells_after_a_kill_that_the_last_transaction_was_not_committed_also_after_a_month() {
    let brokers = brokers();
    for is_forgotten in [false, true] {
        let environment = unique();
        let dir = tempfile::tempdir().unwrap();
        assert!(drain_with(dir.path(), real_config(&brokers), &environment, entries(0..50)).0.caught_up);
        // Killed behind the delivery reports and the write of the intent, before Kafka was asked to commit.
        let (dead, kafka_offset) = in_the_middle(&brokers, &environment, 509);
        let (mut file, found) = CursorFile::open(dir.path()).unwrap();
        let mut cursor = found.unwrap();
        cursor.transaction += 1;
        cursor.intent = Some(Intent {
            next: EntrySeq(51),
            acknowledged: BTreeMap::from([((stream("a"), PartitionId(1)), Offset(510))]),
            last: Some(LastRecord {
                topic: format!("{environment}.a"),
                partition: PartitionId(1),
                kafka_offset,
                offset: Some(Offset(509)),
            }),
        });
        file.write(&mut cursor).unwrap();
        if is_forgotten {
            forget_group(&brokers, &environment);
        }
        let (summary, metrics) = drain_with(dir.path(), real_config(&brokers), &environment, entries(50..60));
        drop(dead);
        assert!(summary.caught_up);
        assert_eq!(metrics.undecided_transactions.get(), 0);
        assert_eq!(
            offsets(&brokers, &environment),
            (0..600).collect::<Vec<_>>(),
            "forgotten: {is_forgotten}"
        );
    }
}

#[test]
#[ignore = "needs WAYSIDE_TEST_KAFKA, the bootstrap servers of a Kafka with three brokers"]
fn real_kafka_fences_a_gateway_and_it_says_so() {
    let brokers = brokers();
    let environment = unique();
    let config = real_config(&brokers);
    let topic = format!("{environment}.a");
    let mut cluster = KafkaCluster::new(&config, &environment).unwrap();
    let mut events = Vec::new();
    let mut until = |cluster: &mut KafkaCluster, done: &dyn Fn(&ClusterEvent) -> bool| {
        let deadline = Instant::now() + WAIT;
        events.clear();
        while !events.iter().any(done) {
            assert!(Instant::now() < deadline, "{events:?}");
            cluster.poll(Duration::from_millis(20), &mut events);
        }
    };
    cluster.ensure_topic(&topic, NonZeroU16::new(4).unwrap());
    until(&mut cluster, &|event| matches!(event, ClusterEvent::Topic { .. }));
    cluster.init_transactions(Vec::new());
    until(&mut cluster, &|event| matches!(event, ClusterEvent::Initialized(_)));
    cluster.begin_transaction().unwrap();
    let other: BaseProducer = properties::producer(&config, &environment).create().unwrap();
    other.init_transactions(WAIT).unwrap();
    cluster.commit_transaction(Vec::new());
    let record = crate::replicate::tests::record("a", 1, 0);
    let outgoing = Outgoing {
        topic: &topic,
        partition: PartitionId(1),
        record: &record,
        offset: Some(Offset(0)),
        received: record.received,
        timestamp_ms: record.event_time.unwrap().as_millis(),
        refused_event_time: None,
        token: 0,
    };
    // An empty transaction ends without Kafka; the next one does not.
    until(&mut cluster, &|event| matches!(event, ClusterEvent::Committed));
    cluster.begin_transaction().unwrap();
    cluster.produce(&outgoing).unwrap();
    until(&mut cluster, &|event| matches!(event, ClusterEvent::Fenced(_)));
    cluster.restart().unwrap();
    cluster.init_transactions(Vec::new());
    until(&mut cluster, &|event| matches!(event, ClusterEvent::Initialized(_)));
}

/// Not more than our timeout, and what Kafka takes to look (`transaction.abort.timed.out.transaction.cleanup.interval.ms`,
/// 10 s).
#[test]
#[ignore = "needs WAYSIDE_TEST_KAFKA, the bootstrap servers of a Kafka with three brokers"]
fn real_kafka_lets_consumers_wait_for_a_dead_gateway_no_longer_than_its_transactions_may_take() {
    let brokers = brokers();
    let environment = unique();
    create_topic(&brokers, &format!("{environment}.a"), "min.insync.replicas", "2");
    let (dead, kafka_offset) = in_the_middle(&brokers, &environment, 0);
    let start = Instant::now();
    std::mem::forget(dead);
    let committed: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    loop {
        let (_, stable) = committed.fetch_watermarks(&format!("{environment}.a"), 1, WAIT).unwrap();
        if stable > kafka_offset {
            break;
        }
        assert!(start.elapsed() < TRANSACTION_TIMEOUT + Duration::from_secs(25), "still waiting");
        thread::yield_now();
    }
    eprintln!("consumers waited for {:?}", start.elapsed());
}
