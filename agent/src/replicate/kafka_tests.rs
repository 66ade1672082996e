//! The real client against librdkafka's own mock of a cluster. A real Kafka is in the system tests.

use std::{collections::BTreeMap, num::NonZeroU16, time::Duration};

use rdkafka::{
    Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    mocking::MockCluster,
    producer::DefaultProducerContext,
};

use super::*;
use crate::{
    record::{
        ClockQuality, ContentType, Offset, PartitionId, Received, RecordHeader, UnixMicros,
        header as header_names,
    },
    replicate::{
        contract::{self, Brokers},
        tests::{config, record},
    },
};

struct Mock(MockCluster<'static, DefaultProducerContext>);

impl Mock {
    fn new() -> Self {
        Self(MockCluster::new(3).unwrap())
    }

    fn config(&self) -> Replicate {
        let mut config = config();
        config.bootstrap_servers = vec![self.0.bootstrap_servers()];
        // The mock drops connections at once when it goes away; do not wait long to come back.
        config.properties = BTreeMap::from([("reconnect.backoff.max.ms".into(), "200".into())]);
        config
    }

    fn cluster(&self) -> KafkaCluster {
        KafkaCluster::new(&self.config(), "gw-1").unwrap()
    }

    fn consumer(&self, topic: &str, partition: PartitionId) -> BaseConsumer {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.0.bootstrap_servers())
            .set("group.id", "test")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(topic, partition.0, KafkaOffset::Beginning).unwrap();
        consumer.assign(&from).unwrap();
        consumer
    }
}

/// The next record, if it comes in a time in which it must.
fn next(consumer: &BaseConsumer) -> rdkafka::message::OwnedMessage {
    for _ in 0..100 {
        // On an error the client goes on by itself.
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
            return message.detach();
        }
    }
    panic!("nothing to consume");
}

impl Brokers for Mock {
    fn create_topic(&self, topic: &str, partitions: NonZeroU16) {
        self.0.create_topic(topic, partitions.get().into(), 1).unwrap();
    }

    fn set_away(&self, away: bool) {
        if away { self.0.broker_down(-1) } else { self.0.broker_up(-1) }.unwrap();
    }

    fn values(&self, topic: &str, partition: PartitionId, count: usize) -> Vec<Vec<u8>> {
        let consumer = self.consumer(topic, partition);
        (0..count).map(|_| next(&consumer).payload().unwrap_or_default().to_vec()).collect()
    }
}

#[test]
fn kafka_cluster_keeps_the_contract() {
    let mock = Mock::new();
    contract::check(&mut mock.cluster(), &mock);
    let mock = Mock::new();
    let config = Replicate { delivery: Delivery::ExactlyOnce, ..mock.config() };
    contract::check_transactions(&mut KafkaCluster::new(&config, "gw-1").unwrap(), &mock);
}

fn deliver(cluster: &mut KafkaCluster, outgoing: &Outgoing<'_>) {
    cluster.produce(outgoing).unwrap();
    let mut events = Vec::new();
    for _ in 0..100 {
        cluster.poll(Duration::from_millis(50), &mut events);
        let is_it =
            |e: &ClusterEvent| matches!(e, ClusterEvent::Delivered { token, .. } if *token == outgoing.token);
        if events.iter().any(is_it) {
            return;
        }
    }
    panic!("not delivered: {events:?}");
}

#[test]
fn a_record_has_its_key_value_timestamp_and_headers() {
    let mock = Mock::new();
    mock.create_topic("test.a", NonZeroU16::new(4).unwrap());
    let mut record = record("a", 2, 41);
    record.content_type = ContentType::Postcard;
    let boot = RecordHeader { name: header_names::BOOT.into(), value: bytes::Bytes::from_static(b"3") };
    record.headers.push(boot);
    let outgoing = Outgoing {
        topic: "test.a",
        partition: PartitionId(2),
        record: &record,
        offset: Some(Offset(41)),
        received: record.received,
        timestamp_ms: record.event_time.unwrap().as_millis(),
        refused_event_time: None,
        token: 7,
    };
    let mut cluster = mock.cluster();
    deliver(&mut cluster, &outgoing);
    let restamped =
        Outgoing { refused_event_time: Some(UnixMicros(-5)), timestamp_ms: -1, token: 8, ..outgoing };
    deliver(&mut cluster, &restamped);
    let quality = ClockQuality::Estimated;
    let received = Received { at: UnixMicros(1_800_000_000_000_000), quality, ..record.received };
    deliver(&mut cluster, &Outgoing { received, token: 9, ..outgoing });

    let consumer = mock.consumer("test.a", PartitionId(2));
    let message = next(&consumer);
    assert_eq!(message.key(), Some(b"device-2".as_slice()));
    assert_eq!(message.payload(), Some(b"a/2/41".as_slice()));
    assert_eq!(message.timestamp().to_millis(), Some(1_700_000_000_041));
    assert_eq!(
        headers(&message),
        [
            ("wayside.gateway", "gw-1"),
            ("wayside.offset", "41"),
            ("wayside.received", "1700000001000000"),
            ("content-type", "application/x-postcard"),
            ("wayside.seq", "42"),
            ("wayside.boot", "3"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
    let message = next(&consumer);
    assert_eq!(message.timestamp().to_millis(), Some(1), "Kafka has no time before 1970");
    assert!(headers(&message).contains(&("wayside.event-time".into(), "-5".into())));
    let found = headers(&next(&consumer));
    for (key, value) in [
        ("wayside.received", "1800000000000000"),
        ("wayside.clock", "estimated"),
        ("wayside.clock.corrected", "1700000001000000"),
    ] {
        assert!(found.contains(&(key.into(), value.into())), "{found:?}");
    }
}

fn headers(message: &rdkafka::message::OwnedMessage) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let headers = message.headers().unwrap();
    headers.iter().map(|h| (h.key.to_owned(), text(h.value.unwrap()))).collect()
}

#[test]
fn a_record_beyond_message_max_bytes_is_undeliverable() {
    let mock = Mock::new();
    mock.create_topic("test.a", NonZeroU16::new(1).unwrap());
    let mut config = mock.config();
    config.properties.insert("message.max.bytes".into(), "1000".into());
    let mut cluster = KafkaCluster::new(&config, "gw-1").unwrap();
    let mut record = record("a", 0, 0);
    record.value = vec![b'x'; 2_000].into();
    let outgoing = Outgoing {
        topic: "test.a",
        partition: PartitionId(0),
        record: &record,
        offset: Some(Offset(0)),
        received: record.received,
        timestamp_ms: 1,
        refused_event_time: None,
        token: 0,
    };
    assert_eq!(cluster.produce(&outgoing), Err(ProduceError::Undeliverable(DropReason::TooLarge)));
}

#[test]
fn a_wrong_configuration_is_said_at_once() {
    let mut config = config();
    config.properties.insert("ssl.endpoint.identification.algorithm".into(), "carrier-pigeon".into());
    let error = KafkaCluster::new(&config, "gw-1").err().unwrap();
    assert!(error.contains("carrier-pigeon") || error.contains("ssl.endpoint"), "{error}");
}

#[test]
fn the_longest_throttle_of_any_broker_is_told_and_once_that_it_is_over() {
    let statistics = |first: i64, second: i64| {
        let broker =
            |max: i64| format!(r#"{{ "nodeid": 1, "throttle": {{ "min": 0, "max": {max}, "avg": 7 }} }}"#);
        let (first, second) = (broker(first), broker(second));
        format!(
            r#"{{ "type": "producer", "brokers": {{ "a:1/1": {first}, "b:2/2": {second}, "c": {{}} }} }}"#
        )
    };
    let reports = Reports::default();
    for (first, second) in [(0, 0), (250, 1_500), (10, 0), (0, 0), (0, 0)] {
        reports.stats_raw(statistics(first, second).as_bytes());
    }
    reports.stats_raw(b"no statistics");
    let told = [1_500, 10, 0].map(|ms| ClusterEvent::Throttled(Duration::from_millis(ms)));
    assert_eq!(*reports.lock(), told);
}
