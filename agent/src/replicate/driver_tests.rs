//! The whole stage on its thread, over a simulated cluster and a log in memory.
#![allow(clippy::disallowed_methods, reason = "the thread under test runs in real time; so do the deadlines")]

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    path::PathBuf,
    sync::{
        Mutex,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use super::*;
use crate::{
    env::{SystemClock, SystemEntropy},
    log::ReadOutcome,
    record::PartitionId,
    replicate::{
        KafkaCluster, LogUnavailable, cursor,
        simulated::{self, SimulatedBrokers},
        tests::{config, group},
    },
    source::testing::free_address,
};

#[derive(Clone, Default)]
struct MemoryLog(Arc<Mutex<MemoryLogState>>);

#[derive(Default)]
struct MemoryLogState {
    groups: BTreeMap<EntrySeq, Arc<BatchGroup>>,
    reads: usize,
    /// Each trim with the cursor that was in the file at that moment.
    trims: Vec<(EntrySeq, Option<Cursor>)>,
    dir: PathBuf,
}

impl LogReader for MemoryLog {
    fn read(&mut self, from: EntrySeq, _limit_bytes: usize) -> Result<ReadOutcome, LogUnavailable> {
        let mut state = self.0.lock().unwrap();
        state.reads += 1;
        let groups: Vec<_> = state.groups.range(from..).take(3).map(|(_, g)| Arc::clone(g)).collect();
        let next = groups.last().map_or(from, |g| g.seq.next());
        Ok(ReadOutcome { groups, next, ..ReadOutcome::default() })
    }

    fn trim(&mut self, acknowledged: EntrySeq) {
        let mut state = self.0.lock().unwrap();
        let durable = Cursor::load(&state.dir.join(cursor::FILE_NAME)).unwrap();
        state.trims.push((acknowledged, durable));
        state.groups = state.groups.split_off(&acknowledged);
    }
}

struct Stage {
    log: MemoryLog,
    live: SyncSender<Arc<BatchGroup>>,
    thread: JoinHandle<Summary>,
    metrics: ReplicateMetrics,
}

fn start(
    dir: &std::path::Path,
    log: &MemoryLog,
    cluster: Box<dyn Cluster>,
    config: config::Replicate,
) -> Stage {
    start_with(dir, log, cluster, config, false)
}

fn start_with(
    dir: &std::path::Path,
    log: &MemoryLog,
    cluster: Box<dyn Cluster>,
    config: config::Replicate,
    log_drops: bool,
) -> Stage {
    let (live, receiver) = sync_channel(4);
    let metrics = ReplicateMetrics::default();
    log.0.lock().unwrap().dir = dir.to_owned();
    let next = log.0.lock().unwrap().groups.last_key_value().map_or(EntrySeq(0), |(seq, _)| seq.next());
    let replicate = Replicate {
        live: receiver,
        reader: Box::new(log.clone()),
        log_end: LogEnd { next, ..LogEnd::default() },
        cluster,
        config,
        environment: "test".into(),
        partitions: Arc::new(|_| NonZeroU16::new(4).unwrap()),
        held: Held::default(),
        log_drops,
        cursor: CursorFile::open(dir).unwrap(),
        clock: Arc::new(SystemClock::new()),
        entropy: Box::new(SystemEntropy::new()),
        metrics: metrics.clone(),
    };
    Stage { log: log.clone(), live, thread: thread::spawn(move || run(replicate)), metrics }
}

impl Stage {
    /// As the commit stage does: into the log, then to the replicator if there is room.
    fn commit(&self, group: &Arc<BatchGroup>) {
        self.log.0.lock().unwrap().groups.insert(group.seq, Arc::clone(group));
        let _ = self.live.try_send(Arc::clone(group));
    }

    fn stop(self) -> Summary {
        drop(self.live);
        self.thread.join().unwrap()
    }
}

fn offsets(brokers: &SimulatedBrokers) -> Vec<i64> {
    brokers.partition("test.a", PartitionId(0)).iter().map(|a| a.offset.0).collect()
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::yield_now();
    }
}

#[test]
fn what_is_committed_arrives_and_is_trimmed_once_the_cursor_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, brokers) = simulated::cluster(1);
    let stage = start(dir.path(), &MemoryLog::default(), Box::new(cluster), config());
    for n in 0..50 {
        stage.commit(&group(n, &[("a", 0, i64::try_from(n).unwrap() * 2, 2)]));
    }
    wait_for("trim of everything", || stage.log.0.lock().unwrap().groups.is_empty());
    let log = stage.log.clone();
    let summary = stage.stop();
    assert_eq!(offsets(&brokers), (0..100).collect::<Vec<_>>());
    assert_eq!(
        summary,
        Summary { acknowledged: EntrySeq(50), caught_up: true, lag_records: 0, cursor_is_durable: true }
    );
    for (trimmed, durable) in &log.0.lock().unwrap().trims {
        let durable = durable.as_ref().map_or(EntrySeq(0), |c| c.next);
        assert!(*trimmed <= durable, "trimmed to {trimmed}, cursor is at {durable}");
    }
}

#[test]
fn a_damaged_cursor_is_counted_and_costs_repetitions_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(cursor::FILE_NAME), vec![0xa5; 2 * cursor::SLOT_BYTES]).unwrap();
    let (cluster, brokers) = simulated::cluster(5);
    let log = MemoryLog::default();
    for n in 0..20 {
        log.0.lock().unwrap().groups.insert(EntrySeq(n), group(n, &[("a", 0, i64::try_from(n).unwrap(), 1)]));
    }
    let stage = start(dir.path(), &log, Box::new(cluster), config());
    let metrics = stage.metrics.clone();
    assert!(stage.stop().caught_up);
    assert_eq!(offsets(&brokers), (0..20).collect::<Vec<_>>());
    assert_eq!(metrics.damaged_cursor_slots.get(), 2);
    assert_eq!(Cursor::load(&dir.path().join(cursor::FILE_NAME)).unwrap().unwrap().next, EntrySeq(20));
}

#[test]
fn in_transactions_it_arrives_once_is_trimmed_and_leaves_no_doubt_when_idle() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, brokers) = simulated::cluster(6);
    let config = config::Replicate { delivery: config::Delivery::ExactlyOnce, ..config() };
    let stage = start(dir.path(), &MemoryLog::default(), Box::new(cluster), config.clone());
    for n in 0..50 {
        stage.commit(&group(n, &[("a", 0, i64::try_from(n).unwrap() * 2, 2)]));
    }
    let path = dir.path().join(cursor::FILE_NAME);
    wait_for("trim of everything", || stage.log.0.lock().unwrap().groups.is_empty());
    let known = || Cursor::load(&path).unwrap().unwrap();
    wait_for("the end of all doubts", || known().intent.is_none() && known().next == EntrySeq(50));
    assert_eq!(known().transaction, stage.metrics.transactions.get());
    let log = stage.log.clone();
    assert!(stage.stop().caught_up);
    assert_eq!(offsets(&brokers), (0..100).collect::<Vec<_>>());

    let (cluster, brokers) = simulated::cluster(7);
    log.0.lock().unwrap().groups.insert(EntrySeq(50), group(50, &[("a", 0, 100, 1)]));
    assert!(start(dir.path(), &log, Box::new(cluster), config).stop().caught_up);
    assert_eq!(offsets(&brokers), [100]);
}

#[test]
fn in_transactions_too_an_offline_start_takes_what_comes_and_ends_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.delivery = config::Delivery::ExactlyOnce;
    config.bootstrap_servers = vec![free_address().to_string()];
    config.shutdown_flush = Duration::from_millis(50);
    let cluster = KafkaCluster::new(&config, "gw-1").unwrap();
    let stage = start(dir.path(), &MemoryLog::default(), Box::new(cluster), config);
    stage.commit(&group(0, &[("a", 0, 0, 1)]));
    let said = || stage.metrics.health().snapshot().last_error.unwrap_or_default();
    wait_for("the refusal", || said().contains("Connection refused"));
    wait_for("the lag", || stage.metrics.lag_records.get() == 1);
    assert_eq!(stage.stop().acknowledged, EntrySeq(0));
}

#[test]
fn a_backlog_is_drained_at_shutdown_and_a_restart_sends_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, brokers) = simulated::cluster(2);
    let log = MemoryLog::default();
    for n in 0..20 {
        log.0.lock().unwrap().groups.insert(EntrySeq(n), group(n, &[("a", 0, i64::try_from(n).unwrap(), 1)]));
    }
    assert!(start(dir.path(), &log, Box::new(cluster), config()).stop().caught_up);
    assert_eq!(offsets(&brokers), (0..20).collect::<Vec<_>>());

    let (cluster, brokers) = simulated::cluster(3);
    log.0.lock().unwrap().groups.insert(EntrySeq(20), group(20, &[("a", 0, 20, 1)]));
    assert!(start(dir.path(), &log, Box::new(cluster), config()).stop().caught_up);
    assert_eq!(offsets(&brokers), [20]);
}

#[test]
fn with_kafka_away_a_shutdown_ends_in_time_and_keeps_the_rest_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, brokers) = simulated::cluster(4);
    brokers.set_away(true);
    let mut config = config();
    config.shutdown_flush = Duration::from_millis(50);
    let stage = start(dir.path(), &MemoryLog::default(), Box::new(cluster), config.clone());
    for n in 0..10 {
        stage.commit(&group(n, &[("a", 0, i64::try_from(n).unwrap(), 1)]));
    }
    wait_for("records in flight", || stage.metrics.lag_records.get() > 0);
    let log = stage.log.clone();
    let summary = stage.stop();
    assert!(!summary.caught_up);
    assert_eq!((summary.acknowledged, log.0.lock().unwrap().groups.len()), (EntrySeq(0), 10));

    let (cluster, brokers) = simulated::cluster(5);
    config.shutdown_flush = Duration::from_secs(20);
    assert!(start(dir.path(), &log, Box::new(cluster), config).stop().caught_up);
    assert_eq!(offsets(&brokers), (0..10).collect::<Vec<_>>());
}

#[test]
fn brokers_that_are_not_there_are_named_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let address = free_address().to_string();
    let mut config = config();
    config.bootstrap_servers = vec![address.clone()];
    config.shutdown_flush = Duration::from_millis(50);
    let cluster = KafkaCluster::new(&config, "gw-1").unwrap();
    let stage = start(dir.path(), &MemoryLog::default(), Box::new(cluster), config);
    stage.commit(&group(0, &[("a", 0, 0, 1)]));
    let said = || stage.metrics.health().snapshot().last_error.unwrap_or_default();
    wait_for("the refusal", || said().contains(&address) && said().contains("Connection refused"));
    assert!(stage.metrics.errors.get() > 0);
    let log = stage.log.clone();
    assert_eq!(stage.stop().acknowledged, EntrySeq(0));
    assert_eq!(log.0.lock().unwrap().groups.len(), 1, "it stays in the log");
}

#[test]
fn an_idle_stage_waits_for_the_next_commit_and_does_not_read_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, brokers) = simulated::cluster(7);
    let stage = start(dir.path(), &MemoryLog::default(), Box::new(cluster), config());
    stage.commit(&group(0, &[("a", 0, 0, 1)]));
    wait_for("delivery", || offsets(&brokers) == [0]);
    wait_for("trim", || stage.log.0.lock().unwrap().groups.is_empty());
    // One probe after the offer, then peace over many cursor intervals.
    wait_for("the probe", || stage.log.0.lock().unwrap().reads == 1);
    let idle_until = Instant::now() + 10 * config().cursor_interval;
    wait_for("ten intervals", || Instant::now() > idle_until);
    assert_eq!(stage.log.0.lock().unwrap().reads, 1);
    assert!(stage.stop().caught_up);
}

/// Else a crash would let the log drop what Kafka has, and tell it as missing.
#[test]
fn where_the_log_drops_kafka_gets_nothing_before_the_cursor_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, brokers) = simulated::cluster(8);
    // Nothing is acknowledged: the cursor has no other reason to be written.
    brokers.hold_reports(true);
    let config = config::Replicate { shutdown_flush: Duration::ZERO, ..config() };
    let stage = start_with(dir.path(), &MemoryLog::default(), Box::new(cluster), config, true);
    let mut writes = 0;
    for n in 0..100_u64 {
        stage.commit(&group(n, &[("a", 0, i64::try_from(n).unwrap(), 1)]));
        wait_for("arrival", || offsets(&brokers).len() as u64 > n);
        let cursor = Cursor::load(&dir.path().join(cursor::FILE_NAME)).unwrap().expect("it was written");
        assert!(cursor.begun > EntrySeq(n), "{cursor:?}");
        writes = cursor.generation;
    }
    assert!(writes < 10, "{writes} writes for 100 entries");
    stage.stop();
}
