//! The log's thread: what is committed, told and dropped, and in which order.

use std::collections::BTreeMap;

use prometheus_client::registry::Registry;

use super::*;
use crate::{
    batch::Batch,
    env::SystemClock,
    log::{
        LogOptions,
        store::{
            StoreError,
            simulated::{Fault, SimulatedDisk},
        },
    },
    record::{ContentType, DeviceId, PartitionId, Received, Record, StreamName},
};

fn pending() -> PendingCommit {
    let stream = StreamName::new("s").unwrap();
    let record = Record {
        stream: stream.clone(),
        device: DeviceId::new("d").unwrap(),
        value: "value".into(),
        content_type: ContentType::OctetStream,
        event_time: None,
        received: Received::default(),
        device_seq: None,
        headers: Vec::new(),
    };
    let batch = Batch { stream, partition: PartitionId(0), records: vec![record] };
    PendingCommit {
        batches: vec![batch],
        notes: Vec::new(),
        asked: Vec::new(),
        tickets: BTreeMap::new(),
        oldest: Monotonic::default(),
        _permit: None,
    }
}

/// An owner on a thread, with the figures of its commits.
fn start(disk: &SimulatedDisk, options: LogOptions) -> (LogClient, JoinHandle<()>, CommitMetrics) {
    let mut registry = Registry::default();
    let log_metrics = LogMetrics::register(&mut registry);
    let metrics = CommitMetrics::register(&mut registry);
    let (log, _) = Log::open(Box::new(disk.open()), options, log_metrics.clone()).unwrap();
    // Nobody reads the feed: the replicator would find the groups in the log.
    let (feed, _) = mpsc::sync_channel(1);
    let gap_maker = GapMaker { environment: "test".into(), partitions: NonZeroU16::MIN };
    let held = Held::default();
    let owner = Owner::new(log, BTreeMap::new(), feed, gap_maker, held, metrics.clone(), log_metrics);
    let (client, thread) = spawn(owner, Arc::new(SystemClock::new())).unwrap();
    (client, thread, metrics)
}

#[test]
fn the_owner_answers_while_the_disk_is_full_and_not_while_it_hangs() {
    let disk = SimulatedDisk::new();
    let (client, thread, metrics) = start(&disk, LogOptions::default());

    disk.set_capacity_bytes(Some(0));
    let done = client.commit(pending());
    client.answer().blocking_recv().expect("a full disk is no hang");
    assert!(metrics.failing());
    disk.set_capacity_bytes(None);
    done.blocking_recv().expect("the commit is tried again");

    let hanging = disk.hang();
    let done = client.commit(pending());
    let mut answer = client.answer();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let answered =
        runtime.block_on(async { tokio::time::timeout(Duration::from_millis(100), &mut answer).await });
    assert!(answered.is_err(), "answered while the sync hung");
    drop(hanging);
    answer.blocking_recv().expect("answers again");
    done.blocking_recv().expect("durable");
    client.stop();
    thread.join().unwrap();
}

fn batch(name: &str, count: usize) -> Batch {
    let Batch { records, partition, .. } = pending().batches.remove(0);
    let stream = StreamName::new(name).unwrap();
    let record = Record { stream: stream.clone(), ..records[0].clone() };
    Batch { stream, partition, records: vec![record; count] }
}

/// An owner over a log whose epochs have one commit each, and which is full when it has something.
fn full_owner(disk: &SimulatedDisk, policy: Policy) -> Owner {
    let mut registry = Registry::default();
    let log_metrics = LogMetrics::register(&mut registry);
    let metrics = CommitMetrics::register(&mut registry);
    let policies = BTreeMap::from([(StreamName::new("s").unwrap(), policy)]);
    let options = LogOptions { policies, limit_bytes: 2_000, ..LogOptions::default() };
    let store = disk.open().with_epoch_bytes(1);
    let (mut log, _) = Log::open(Box::new(store), options, log_metrics.clone()).unwrap();
    while !log.is_full() {
        log.append(vec![batch("s", 1)]);
        log.sync().unwrap();
    }
    let gap_maker = GapMaker { environment: "test".into(), partitions: NonZeroU16::MIN };
    let (feed, _) = mpsc::sync_channel(1);
    Owner::new(log, BTreeMap::new(), feed, gap_maker, Held::default(), metrics, log_metrics)
}

fn commit(owner: &mut Owner, batches: Vec<Batch>, now: Monotonic) -> oneshot::Receiver<()> {
    let (done, completed) = oneshot::channel();
    assert!(owner.handle(Request::Commit(PendingCommit { batches, ..pending() }, done), now));
    completed
}

/// Everything in the log: (stream, value) of each record, and how many were dropped.
fn contents(owner: &mut Owner) -> (Vec<(String, String)>, u64) {
    let (mut records, mut dropped) = (Vec::new(), 0);
    let mut next = EntrySeq(0);
    while next < owner.log.end() {
        let outcome = owner.log.read(next, 1 << 20).unwrap();
        assert_eq!(outcome.lost, []);
        next = outcome.next;
        dropped += outcome.groups.iter().flat_map(|g| &g.dropped).map(|d| d.count).sum::<u64>();
        for record in outcome.groups.iter().flat_map(|g| &g.batches).flat_map(|b| &b.records) {
            let value = String::from_utf8(record.value.to_vec()).unwrap();
            records.push((record.stream.to_string(), value));
        }
    }
    (records, dropped)
}

#[test]
fn what_waits_for_room_is_tried_again_as_soon_as_a_trim_has_made_some() {
    let disk = SimulatedDisk::new();
    let clock = SystemClock::new();
    let mut owner = full_owner(&disk, Policy::Block);
    let done = commit(&mut owner, vec![batch("s", 1)], clock.monotonic());
    owner.retry(&clock);
    let now = clock.monotonic();
    assert!(owner.retry_at().is_some_and(|at| at > now), "it waits");
    owner.handle(Request::Trim(owner.log.end()), now);
    assert_eq!(owner.retry_at(), Some(now));
    owner.retry(&clock);
    done.blocking_recv().expect("durable");
}

#[test]
fn a_full_log_takes_word_of_what_comes_where_the_policy_drops_the_newest() {
    let disk = SimulatedDisk::new();
    let clock = SystemClock::new();
    let mut owner = full_owner(&disk, Policy::DropNewest);
    let before = contents(&mut owner).0.len();
    let done = commit(&mut owner, vec![batch("s", 3)], clock.monotonic());
    owner.retry(&clock);
    done.blocking_recv().expect("durable, so that the sources are answered");
    let (records, _) = contents(&mut owner);
    assert_eq!(records.len(), before + 1);
    let expected = r#"{"reason":"drop_newest","count":3,"device":"d","stream":"s"}"#;
    assert_eq!(records.last().unwrap(), &("gaps".to_owned(), expected.to_owned()));
    // The next one comes a second later: words take room too.
    let now = clock.monotonic();
    let _done = commit(&mut owner, vec![batch("s", 1)], now);
    assert!(owner.retry_at().is_some_and(|at| at > now));
}

#[test]
fn a_full_log_drops_its_oldest_where_the_policy_says_so_and_takes_what_comes() {
    let disk = SimulatedDisk::new();
    let clock = SystemClock::new();
    let mut owner = full_owner(&disk, Policy::DropOldest);
    let before = contents(&mut owner).0.len();
    owner.held = Held::default();
    let done = commit(&mut owner, vec![batch("s", 3)], clock.monotonic());
    owner.retry(&clock);
    done.blocking_recv().expect("durable");
    let (records, dropped) = contents(&mut owner);
    assert!(dropped > 0);
    assert_eq!(records.len() as u64 + dropped, before as u64 + 3);
    assert!(records.iter().all(|(stream, _)| stream == "s"));
}

#[test]
fn a_log_at_its_bound_waits_and_a_disk_that_fails_fails() {
    let disk = SimulatedDisk::new();
    let (client, thread, metrics) = start(&disk, LogOptions { reserve_bytes: 1000, ..LogOptions::default() });

    disk.set_capacity_bytes(Some(999));
    let mut done = client.commit(pending());
    client.answer().blocking_recv().expect("no hang");
    assert!(metrics.waiting() && !metrics.failing());
    assert_eq!(metrics.failures(), 0, "nothing was tried");
    assert!(metrics.last_error().is_some_and(|cause| cause.contains("log.reserve_bytes")));
    assert!(done.try_recv().is_err(), "acknowledged without room");
    disk.set_capacity_bytes(Some(1 << 20));
    done.blocking_recv().expect("there is room");
    assert!(!metrics.waiting() && metrics.last_error().is_none());

    // The first try and its repetition in a new epoch.
    disk.fail_always(Some(Fault::Io));
    let mut done = client.commit(pending());
    client.answer().blocking_recv().expect("no hang");
    assert!(metrics.failing() && !metrics.waiting());
    assert_eq!(metrics.failures(), 1);
    assert!(done.try_recv().is_err(), "acknowledged by a disk that fails");
    disk.fail_always(None);
    done.blocking_recv().expect("tried again");
    assert!(!metrics.failing() && metrics.last_error().is_none());
    client.stop();
    thread.join().unwrap();
}

#[test]
fn a_trouble_that_stays_is_told_once() {
    let mut registry = Registry::default();
    let metrics = CommitMetrics::register(&mut registry);
    let reserve = |free_bytes| LogError::Reserve { free_bytes, reserve_bytes: 9 };
    let io = |action: &str| {
        LogError::Store(StoreError::Io { action: action.into(), source: io::Error::other("EIO") })
    };
    assert!(metrics.failed(&reserve(1)).is_some());
    assert_eq!(metrics.failed(&reserve(2)), None, "still full");
    assert_eq!(metrics.failed(&io("write")).as_deref(), Some("the log's store failed: write: EIO"));
    assert_eq!(metrics.failed(&io("write")), None);
    assert!(metrics.failed(&reserve(2)).is_some());
    metrics.committed(Duration::ZERO);
    assert!(metrics.failed(&reserve(2)).is_some(), "again");
}

#[test]
fn who_asks_is_told_where_the_records_are_before_they_are_acknowledged_and_which_were_dropped() {
    let disk = SimulatedDisk::new();
    let clock = SystemClock::new();
    let mut owner = full_owner(&disk, Policy::DropNewest);
    let used = owner.log.next_offset(StreamName::new("s").unwrap(), PartitionId(0));
    let ask = |records: &[(&str, usize)]| {
        let (placed, places) = oneshot::channel();
        let places_of = records.iter().map(|(name, n)| (StreamName::new(name).unwrap(), PartitionId(0), *n));
        (Asked { placed, records: places_of.collect() }, places)
    };
    let commit_asking = |owner: &mut Owner, batches, asked| {
        let (done, completed) = oneshot::channel();
        let pending = PendingCommit { batches, asked, ..pending() };
        assert!(owner.handle(Request::Commit(pending, done), clock.monotonic()));
        owner.retry(&clock);
        completed.blocking_recv().expect("durable");
    };
    let (asked, places) = ask(&[("s", 1), ("s", 0)]);
    commit_asking(&mut owner, vec![batch("s", 2)], vec![asked]);
    assert_eq!(places.blocking_recv(), Ok(vec![None, None]), "dropped");

    owner.handle(Request::Trim(owner.log.end()), clock.monotonic());
    let (first, first_places) = ask(&[("s", 1), ("t", 0)]);
    let (second, second_places) = ask(&[("s", 2)]);
    commit_asking(&mut owner, vec![batch("s", 3), batch("t", 1)], vec![first, second]);
    let at = |offset: i64| Some(Offset(offset));
    assert_eq!(first_places.blocking_recv(), Ok(vec![at(used.0 + 1), at(0)]));
    assert_eq!(second_places.blocking_recv(), Ok(vec![at(used.0 + 2)]));
}
