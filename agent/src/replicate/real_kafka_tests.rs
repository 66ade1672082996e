//! The whole stage against a real Kafka, where one is given: `WAYSIDE_TEST_KAFKA=host:port,... cargo test real_kafka -- --ignored`.
//! What librdkafka's mock cannot show: topics created, refusals by a broker's validation, the cost of a record.
#![allow(clippy::disallowed_methods, reason = "real time, real brokers")]

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    ClientConfig, Message, Offset as KafkaOffset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
};

use super::{
    Cluster, CursorFile, Held, KafkaCluster, LogEnd, LogReader, LogUnavailable, Replicate, ReplicateMetrics,
    Summary, run,
    tests::{config, group},
};
use crate::{
    config,
    env::{SystemClock, SystemEntropy},
    log::{BatchGroup, EntrySeq, ReadOutcome},
    record::UnixMicros,
};

struct Backlog(BTreeMap<EntrySeq, Arc<BatchGroup>>);

impl LogReader for Backlog {
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<ReadOutcome, LogUnavailable> {
        let mut outcome = ReadOutcome { next: from, ..ReadOutcome::default() };
        let mut bytes = 0;
        for (seq, group) in self.0.range(from..) {
            if bytes >= limit_bytes {
                break;
            }
            bytes += group.batches.iter().flat_map(|b| &b.records).map(|r| r.size_bytes()).sum::<usize>();
            outcome.groups.push(Arc::clone(group));
            outcome.next = seq.next();
        }
        Ok(outcome)
    }

    fn trim(&mut self, acknowledged: EntrySeq) {
        self.0 = self.0.split_off(&acknowledged);
    }
}

/// The brokers. Ignored tests run only where they are asked for: nothing to ask then is a failure.
fn brokers() -> String {
    std::env::var("WAYSIDE_TEST_KAFKA")
        .expect("WAYSIDE_TEST_KAFKA names the bootstrap servers of a Kafka with three brokers")
}

/// An environment of the caller's own. Clocks are no help: two threads may read the same microsecond, and then one
/// test's topic had the limits that another one had set.
fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn real_config(brokers: &str) -> config::Replicate {
    config::Replicate {
        bootstrap_servers: brokers.split(',').map(str::to_owned).collect(),
        replication_factor: 3,
        min_insync_replicas: 2,
        compression: config::Compression::Zstd,
        linger: Duration::from_millis(50),
        in_flight_bytes: 4 << 20,
        cursor_interval: Duration::from_secs(1),
        shutdown_flush: Duration::from_secs(120),
        delivery: config::Delivery::ExactlyOnce,
        transaction_interval: Duration::from_millis(500),
        tls: None,
        sasl: None,
        ..config()
    }
}

fn drain(
    config: config::Replicate,
    environment: &str,
    groups: Vec<Arc<BatchGroup>>,
) -> (Summary, ReplicateMetrics) {
    drain_with(tempfile::tempdir().unwrap().path(), config, environment, groups)
}

/// With the cursor in `dir`, as the gateway `environment`.
fn drain_with(
    dir: &Path,
    config: config::Replicate,
    environment: &str,
    groups: Vec<Arc<BatchGroup>>,
) -> (Summary, ReplicateMetrics) {
    // What the stage said is shown when the test fails. The tests of a process share it.
    let _ = tracing_subscriber::fmt().with_test_writer().with_ansi(false).try_init();
    let metrics = ReplicateMetrics::default();
    let (live, receiver) = sync_channel(1);
    drop(live);
    let log: BTreeMap<_, _> = groups.into_iter().map(|g| (g.seq, g)).collect();
    let next = log.last_key_value().map_or(EntrySeq(0), |(seq, _)| seq.next());
    let cluster: Box<dyn Cluster> = Box::new(KafkaCluster::new(&config, environment).unwrap());
    let replicate = Replicate {
        live: receiver,
        reader: Box::new(Backlog(log)),
        log_end: LogEnd { next, ..LogEnd::default() },
        cluster,
        config,
        environment: environment.to_owned(),
        partitions: Arc::new(|_| NonZeroU16::new(4).unwrap()),
        held: Held::default(),
        log_drops: false,
        cursor: CursorFile::open(dir).unwrap(),
        clock: Arc::new(SystemClock::new()),
        entropy: Box::new(SystemEntropy::new()),
        metrics: metrics.clone(),
    };
    (thread::spawn(move || run(replicate)).join().unwrap(), metrics)
}

/// (local offset, Kafka's timestamp in ms) of a partition, until all that is committed of it was read.
fn held(brokers: &str, topic: &str, partition: i32) -> Vec<(i64, i64)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, partition, KafkaOffset::Beginning).unwrap();
    consumer.assign(&from).unwrap();
    let mut held = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline, "{} consumed, and no end", held.len());
        let message = match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => message,
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(_)) | None => continue,
        };
        let headers = message.headers().unwrap();
        let offset = headers.iter().find(|h| h.key == "wayside.offset").unwrap().value.unwrap();
        let offset = std::str::from_utf8(offset).unwrap().parse().unwrap();
        held.push((offset, message.timestamp().to_millis().unwrap()));
    }
    held
}

fn create_topic(brokers: &str, topic: &str, key: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let topic = NewTopic::new(topic, 4, TopicReplication::Fixed(3)).set(key, value);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap().remove(0).unwrap();
}

mod transactions;

#[test]
#[ignore = "needs WAYSIDE_TEST_KAFKA, the bootstrap servers of a Kafka with three brokers"]
fn real_kafka_gets_a_backlog_in_order_into_topics_that_were_missing() {
    let brokers = brokers();
    let environment = unique();
    let (entries, each) = (500, 200);
    // Of now: Kafka's retention goes by these times, and the fixtures' are years ago.
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let groups = (0..entries).map(|n| {
        let base = i64::try_from(n).unwrap() * each;
        let mut entry = Arc::unwrap_or_clone(group(n, &[("a", 0, base, each), ("b", 3, base, each)]));
        entry
            .batches
            .iter_mut()
            .flat_map(|b| &mut b.records)
            .for_each(|r| r.event_time = Some(UnixMicros(now)));
        Arc::new(entry)
    });
    let groups = groups.collect();
    let cpu = cpu_time();
    let start = Instant::now();
    let (summary, metrics) = drain(real_config(&brokers), &environment, groups);
    let records = entries * 2 * u64::try_from(each).unwrap();
    eprintln!(
        "{records} records in {:?}, CPU of the process {:?} per record, restarts {}",
        start.elapsed(),
        (cpu_time() - cpu) / u32::try_from(records).unwrap(),
        metrics.producer_restarts.get(),
    );
    assert!(summary.caught_up, "{summary:?}");
    for (stream, partition) in [("a", 0), ("b", 3)] {
        let held = held(&brokers, &format!("{environment}.{stream}"), partition);
        let expected = 0..i64::try_from(entries).unwrap() * each;
        assert!(held.into_iter().map(|(offset, _)| offset).eq(expected), "not each once and in order");
    }
}

/// Of all threads, in steps of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    let ticks: u64 = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[test]
#[ignore = "needs WAYSIDE_TEST_KAFKA, the bootstrap servers of a Kafka with three brokers"]
fn real_kafka_refuses_a_record_for_its_size_and_gets_all_others() {
    let brokers = brokers();
    let environment = unique();
    let topic = format!("{environment}.a");
    create_topic(&brokers, &topic, "max.message.bytes", "2000");
    let mut entry = Arc::unwrap_or_clone(group(0, &[("a", 1, 0, 5_000)]));
    // Zeros would compress to less than the limit.
    let mut noise = SystemEntropy::new();
    let bytes: Vec<u8> =
        (0..500).flat_map(|_| crate::env::Entropy::next_u64(&mut noise).to_be_bytes()).collect();
    entry.batches[0].records[3_217].value = bytes.into();
    let (summary, _) = drain(real_config(&brokers), &environment, vec![Arc::new(entry)]);
    assert!(summary.caught_up);
    let offsets: Vec<i64> = held(&brokers, &topic, 1).into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(offsets, (0..5_000).filter(|o| *o != 3_217).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs WAYSIDE_TEST_KAFKA, the bootstrap servers of a Kafka with three brokers"]
fn real_kafka_refuses_an_event_time_and_gets_the_record_with_its_receive_time() {
    let brokers = brokers();
    let environment = unique();
    let topic = format!("{environment}.a");
    create_topic(&brokers, &topic, "message.timestamp.after.max.ms", "60000");
    let mut entry = Arc::unwrap_or_clone(group(0, &[("a", 1, 0, 10)]));
    let far_ahead = UnixMicros(4_000_000_000_000_000);
    entry.batches[0].records[3].event_time = Some(far_ahead);
    let received = entry.batches[0].records[3].received.at.as_millis();
    let (summary, metrics) = drain(real_config(&brokers), &environment, vec![Arc::new(entry)]);
    assert!(summary.caught_up);
    let held = held(&brokers, &topic, 1);
    assert_eq!(held.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    assert_eq!(held[3].1, received);
    assert_eq!(metrics.restamped_records.get(), 1);
}
