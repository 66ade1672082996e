//! The verifier on a Kafka that holds what it should, and what it should not.

use std::{path::Path, time::Duration};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

use super::*;
use crate::{
    embedded::kafka::EmbeddedKafka,
    ledger::{Id, LedgerWriter},
};

const PARTITIONS: i32 = 3;
const WAIT: Duration = Duration::from_secs(20);

fn create_topic(kafka: &EmbeddedKafka) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    let topic = NewTopic::new("test.occupancy", PARTITIONS, TopicReplication::Fixed(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap();
}

/// Sends readings as the agent does: device, sequence, milliseconds from sending to the gateway.
fn produce(kafka: &EmbeddedKafka, readings: &[(&str, u64, u64)]) {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("enable.idempotence", "true")
        .create()
        .unwrap();
    for (device, seq, late_ms) in readings {
        let (received, seq) = ((seq * 1_000_000 + late_ms * 1_000).to_string(), seq.to_string());
        let headers = OwnedHeaders::new()
            .insert(Header { key: "wayside.seq", value: Some(&seq) })
            .insert(Header { key: "wayside.received", value: Some(&received) });
        let record = BaseRecord::to("test.occupancy")
            .partition(partition_of(device.as_bytes(), PARTITIONS))
            .key(*device)
            .payload("{}")
            .headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(WAIT).unwrap();
}

/// A ledger in which these were sent, each at as many seconds as its sequence says, and acknowledged.
fn ledger(path: &Path, readings: &[(&str, u64)]) -> Ledger {
    let writer = LedgerWriter::create(path).unwrap();
    for (device, seq) in readings {
        writer.sent("occupancy", device, Id::Seq(*seq), seq * 1_000_000);
        writer.acked("occupancy", device, Id::Seq(*seq), seq * 1_000_000 + 1);
    }
    writer.close().unwrap();
    Ledger::read(&[path]).unwrap()
}

fn options(kafka: &EmbeddedKafka) -> ConsumerOptions {
    ConsumerOptions { bootstrap: kafka.bootstrap(), properties: Vec::new() }
}

#[test]
fn every_fault_in_kafka_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let kafka = EmbeddedKafka::start().unwrap();
    create_topic(&kafka);
    let sent = [("a", 1), ("b", 1), ("a", 2), ("c", 1), ("c", 2), ("b", 2)];
    let ledger = ledger(&dir.path().join("ledger"), &sent);
    // a is fine, but there is a stranger; b is twice there; c comes backwards.
    let found =
        [("a", 1, 5), ("b", 1, 5), ("a", 2, 5), ("b", 1, 5), ("c", 2, 9), ("c", 1, 5), ("stranger", 1, 5)];
    produce(&kafka, &found);
    let report = verify(&options(&kafka), "test", &ledger, Duration::ZERO).unwrap();
    let t = report.totals;
    assert_eq!((t.sent, t.acknowledged, t.delivered), (6, 6, 5));
    assert_eq!((t.lost, t.duplicated, t.reordered), (1, 1, 1));
    assert_eq!((t.unknown, t.foreign_partition, t.split_devices), (1, 0, 0));
    assert_eq!(report.late, Late { p50_ms: 5.0, p99_ms: 9.0, max_ms: 9.0 });
    assert!(!report.holds(false));
}

#[test]
fn a_topic_that_is_not_there_has_lost_everything() {
    let dir = tempfile::tempdir().unwrap();
    let kafka = EmbeddedKafka::start().unwrap();
    let ledger = ledger(&dir.path().join("ledger"), &[("a", 1), ("a", 2)]);
    let report = verify(&options(&kafka), "test", &ledger, Duration::ZERO).unwrap();
    assert_eq!((report.totals.lost, report.totals.delivered), (2, 0));
}

#[test]
fn it_waits_for_what_the_agent_still_drains() {
    let dir = tempfile::tempdir().unwrap();
    let kafka = EmbeddedKafka::start().unwrap();
    let ledger = ledger(&dir.path().join("ledger"), &[("a", 1), ("a", 2)]);
    let report = std::thread::scope(|scope| {
        let verdict = scope.spawn(|| verify(&options(&kafka), "test", &ledger, WAIT));
        create_topic(&kafka);
        produce(&kafka, &[("a", 1, 1), ("a", 2, 1)]);
        verdict.join().unwrap().unwrap()
    });
    assert_eq!((report.totals.lost, report.totals.delivered), (0, 2));
    assert!(report.holds(true));
}

#[test]
fn following_a_load_ends_when_its_ledger_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let kafka = EmbeddedKafka::start().unwrap();
    create_topic(&kafka);
    ledger(&path, &[("a", 1)]);
    let report = std::thread::scope(|scope| {
        let ledgers = [path.clone()];
        let kafka = &kafka;
        let verdict = scope.spawn(move || follow(&options(kafka), "test", &ledgers, WAIT));
        produce(kafka, &[("a", 1, 1), ("a", 2, 1)]);
        ledger(&path, &[("a", 1), ("a", 2)]);
        verdict.join().unwrap().unwrap()
    });
    assert_eq!((report.totals.lost, report.totals.delivered, report.totals.unknown), (0, 2, 0));
    // To this consumer, not to the gateway: these readings were sent in 1970.
    assert!(report.late.p50_ms > 1e12);
}
