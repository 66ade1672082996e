//! The broker as librdkafka sees it.

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, Producer, ThreadedProducer},
};

use super::EmbeddedKafka;

const WAIT: Duration = Duration::from_secs(20);

type TestProducer = ThreadedProducer<rdkafka::producer::DefaultProducerContext>;

fn start(partitions: i32) -> EmbeddedKafka {
    let kafka = EmbeddedKafka::start().unwrap();
    let admin: AdminClient<DefaultClientContext> = config(&kafka).create().unwrap();
    let topic = NewTopic::new("t", partitions, TopicReplication::Fixed(3)).set("min.insync.replicas", "2");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let created = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap();
    assert_eq!(created, [Ok("t".to_owned())]);
    let again = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap();
    assert_eq!(again[0].as_ref().unwrap_err().1, RDKafkaErrorCode::TopicAlreadyExists);
    kafka
}

fn config(kafka: &EmbeddedKafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", kafka.bootstrap())
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "50");
    config
}

fn producer(kafka: &EmbeddedKafka) -> TestProducer {
    config(kafka).set("enable.idempotence", "true").set("linger.ms", "0").create().unwrap()
}

fn transactional(kafka: &EmbeddedKafka) -> TestProducer {
    let producer: TestProducer = config(kafka).set("transactional.id", "wayside.gw").create().unwrap();
    producer.init_transactions(WAIT).unwrap();
    producer
}

fn send(producer: &TestProducer, values: std::ops::Range<u32>) {
    for value in values {
        let value = value.to_string();
        producer.send(BaseRecord::to("t").partition(0).key("k").payload(&value)).unwrap();
    }
}

/// All values of the topic in order, up to the end that `isolation` sees.
fn consume(kafka: &EmbeddedKafka, isolation: &str) -> Vec<u32> {
    let consumer: BaseConsumer = config(kafka)
        .set("group.id", "g")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset("t", 0, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    let deadline = Instant::now() + WAIT;
    let mut values = Vec::new();
    while Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                values.push(str::from_utf8(message.payload().unwrap()).unwrap().parse().unwrap());
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return values,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    panic!("no end of the partition after {} records", values.len());
}

fn numbers(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn what_is_produced_is_consumed_in_order() {
    let kafka = start(1);
    let producer = producer(&kafka);
    send(&producer, 0..5_000);
    producer.flush(WAIT).unwrap();
    assert_eq!(consume(&kafka, "read_committed"), numbers(0..5_000));
    let watermarks = producer.client().fetch_watermarks("t", 0, WAIT).unwrap();
    assert_eq!(watermarks, (0, 5_000));
    assert_eq!(kafka.record_count(), 5_000);
}

#[test]
fn it_goes_away_and_comes_back_with_its_data() {
    let kafka = start(1);
    let producer = producer(&kafka);
    send(&producer, 0..1_000);
    producer.flush(WAIT).unwrap();
    send(&producer, 1_000..2_000); // Some of these are cut off in flight, and sent again.
    kafka.go_away();
    send(&producer, 2_000..3_000);
    assert!(producer.client().fetch_metadata(None, Duration::from_millis(500)).is_err());
    assert!(!kafka.is_up());
    kafka.come_back();
    producer.flush(WAIT).unwrap();
    assert_eq!(consume(&kafka, "read_committed"), numbers(0..3_000));
}

#[test]
fn a_transaction_commits_records_and_offsets_together() {
    let kafka = start(1);
    let producer = transactional(&kafka);
    let group: BaseConsumer = config(&kafka).set("group.id", "cursor").create().unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition("t", 0);
    let position = || {
        let committed = group.committed_offsets(partitions.clone(), WAIT).unwrap();
        committed.find_partition("t", 0).map(|p| (p.offset(), p.metadata().to_owned())).unwrap()
    };
    for (commit, offset) in [(true, 7), (false, 9)] {
        producer.begin_transaction().unwrap();
        send(&producer, 0..3);
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset("t", 0, Offset::Offset(offset)).unwrap();
        producer.send_offsets_to_transaction(&offsets, &group.group_metadata().unwrap(), WAIT).unwrap();
        if commit {
            producer.commit_transaction(WAIT).unwrap();
        } else {
            producer.flush(WAIT).unwrap();
            producer.abort_transaction(WAIT).unwrap();
        }
        assert_eq!(position().0, Offset::Offset(7));
    }
    assert_eq!(consume(&kafka, "read_committed"), numbers(0..3));
}

#[test]
fn open_and_aborted_transactions_are_hidden_from_read_committed() {
    let kafka = start(1);
    let producer = transactional(&kafka);
    producer.begin_transaction().unwrap();
    send(&producer, 0..10);
    producer.flush(WAIT).unwrap();
    assert_eq!(consume(&kafka, "read_committed"), numbers(0..0));
    assert_eq!(consume(&kafka, "read_uncommitted"), numbers(0..10));
    producer.abort_transaction(WAIT).unwrap();
    assert_eq!(consume(&kafka, "read_committed"), numbers(0..0));
    producer.begin_transaction().unwrap();
    send(&producer, 10..20);
    producer.commit_transaction(WAIT).unwrap();
    assert_eq!(consume(&kafka, "read_committed"), numbers(10..20));
}

#[test]
fn a_successor_aborts_what_was_left_open_and_fences_its_predecessor() {
    let kafka = start(1);
    let first = transactional(&kafka);
    first.begin_transaction().unwrap();
    send(&first, 0..10);
    first.flush(WAIT).unwrap();

    let second = transactional(&kafka);
    second.begin_transaction().unwrap();
    send(&second, 20..30);
    second.commit_transaction(WAIT).unwrap();

    let fenced = first.commit_transaction(WAIT).unwrap_err();
    assert_eq!(fenced.rdkafka_error_code(), Some(RDKafkaErrorCode::Fenced));
    assert_eq!(consume(&kafka, "read_committed"), numbers(20..30));
}

#[test]
fn an_outage_in_a_transaction_neither_loses_nor_doubles() {
    let kafka = start(1);
    let producer = transactional(&kafka);
    producer.begin_transaction().unwrap();
    send(&producer, 0..500);
    producer.flush(WAIT).unwrap();
    kafka.go_away();
    send(&producer, 500..1_000);
    assert!(producer.client().fetch_metadata(None, Duration::from_millis(300)).is_err());
    kafka.come_back();
    producer.commit_transaction(WAIT).unwrap();
    assert_eq!(consume(&kafka, "read_committed"), numbers(0..1_000));
}
