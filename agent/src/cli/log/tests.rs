//! The commands on a log that the real writer has made, mostly while it has it open.

use std::{fs, path::Path, sync::mpsc};

use clap::Parser as _;
use prometheus_client::registry::Registry;

use super::{verify::Findings, *};
use crate::{
    batch::Batch,
    config::{Engine, check},
    log::{
        EntrySeq, Log, LogMetrics, LogOptions, inspect,
        store::disk::{DiskOptions, DiskStore},
    },
    record::{
        ContentType, DeviceId, Offset, PartitionId, Received, Record, RecordHeader, StreamName, UnixMicros,
        header,
    },
    replicate::{Cursor, CursorFile, cursor, simulated},
};

fn open(dir: &Path) -> Log {
    open_with(dir, Engine::Sled)
}

fn open_with(dir: &Path, engine: Engine) -> Log {
    let options = DiskOptions { engine, reserve_bytes: 0, ballast_bytes: 0, ..DiskOptions::default() };
    let store = DiskStore::open(dir, options).unwrap();
    let metrics = LogMetrics::register(&mut Registry::default());
    Log::open(Box::new(store), LogOptions::default(), metrics).unwrap().0
}

fn stream(name: &str) -> StreamName {
    StreamName::new(name).unwrap()
}

/// A record received `second` seconds after 1970, whose value is binary for every third.
fn record(stream: &StreamName, second: i64) -> Record {
    Record {
        stream: stream.clone(),
        device: DeviceId::new(&format!("d{}", second % 2)).unwrap(),
        value: if second % 3 == 0 { vec![0xff, 0, 10] } else { format!("{{\"n\":{second}}}").into() }.into(),
        content_type: ContentType::Json,
        event_time: None,
        received: Received { at: UnixMicros(second * 1_000_000), ..Received::default() },
        device_seq: None,
        headers: vec![RecordHeader { name: "wayside.origin".into(), value: vec![0x80].into() }],
    }
}

fn commit(log: &mut Log, name: &str, seconds: std::ops::Range<i64>) {
    let stream = stream(name);
    let records = seconds.map(|second| record(&stream, second)).collect();
    log.append(vec![Batch { stream, partition: PartitionId(0), records }]);
    log.sync().unwrap();
}

/// Two starts: vehicle 0..10, occupancy 10..12; then, in the log that is returned open, vehicle 12..20.
fn two_epochs(dir: &Path) -> Log {
    let mut log = open(dir);
    commit(&mut log, "vehicle", 0..10);
    commit(&mut log, "occupancy", 10..12);
    drop(log);
    let mut log = open(dir);
    commit(&mut log, "vehicle", 12..20);
    log
}

fn never() -> (mpsc::Sender<()>, Stop) {
    let (running, stopped) = mpsc::channel();
    (running, Stop(stopped))
}

#[derive(Debug, clap::Parser)]
struct TestCli {
    #[command(subcommand)]
    command: LogCommand,
}

/// What the command line `log <args>` means.
fn parse(args: &[&str], dir: &Path) -> LogCommand {
    let args = ["log"]
        .iter()
        .chain(&args[..1])
        .copied()
        .chain([dir.to_str().unwrap()])
        .chain(args[1..].iter().copied());
    TestCli::try_parse_from(args).unwrap().command
}

fn tail(args: &[&str], dir: &Path) -> Vec<String> {
    let LogCommand::Tail(tail) = parse(&[&["tail"], args].concat(), dir) else { unreachable!() };
    let (_running, stop) = never();
    let mut out = Vec::new();
    tail::write(&tail, &mut out, &stop).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

fn export(args: &[&str], dir: &Path) -> Vec<u8> {
    let LogCommand::Export(export) = parse(&[&["export"], args].concat(), dir) else { unreachable!() };
    let (_running, stop) = never();
    let mut out = Vec::new();
    let summary = export::write_records(&export, &mut out, &stop).unwrap().unwrap();
    assert_eq!(summary.losses, 0);
    out
}

/// The values of an export in the format `raw`, by the table in its documentation.
fn read_raw(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (value, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        values.push(value.to_vec());
        bytes = rest;
    }
    assert!(bytes.is_empty());
    values
}

#[test]
fn tail_shows_the_last_records_over_epochs_streams_and_devices() {
    let dir = tempfile::tempdir().unwrap();
    let _log = two_epochs(dir.path());
    let all = tail(&["-n", "100"], dir.path());
    assert_eq!(all.len(), 20);
    assert_eq!(all[1], "1970-01-01T00:00:01.000000Z  vehicle  d1  0/1  {\"n\":1}");
    assert_eq!(all[3], "1970-01-01T00:00:03.000000Z  vehicle  d1  0/3  0xff000a");
    assert_eq!(tail(&[], dir.path()), all[10..], "ten");
    for n in [0, 1, 7, 8, 9, 11, 20] {
        assert_eq!(tail(&["-n", &n.to_string()], dir.path()), all[20 - n..], "{n}");
    }
    assert_eq!(tail(&["--stream", "occupancy", "-n", "1"], dir.path()), all[11..12]);
    let d0: Vec<_> = all.iter().filter(|line| line.contains("  d0  ")).cloned().collect();
    assert_eq!(tail(&["--device", "d0", "-n", "5"], dir.path()), d0[5..]);
    assert_eq!(tail(&["--device", "nobody"], dir.path()), Vec::<String>::new());
}

#[test]
fn tail_follows_what_is_committed_into_new_epochs_until_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = two_epochs(dir.path());
    let LogCommand::Tail(tail) = parse(&["tail", "--follow", "-n", "1"], dir.path()) else { unreachable!() };
    let (running, stop) = never();
    let (lines, written) = mpsc::channel::<Vec<u8>>();
    let follower = thread::spawn(move || {
        let mut out = io::LineWriter::new(Lines(lines));
        tail::write(&tail, &mut out, &stop).unwrap();
    });
    let next = || String::from_utf8(written.recv_timeout(Duration::from_secs(60)).unwrap()).unwrap();
    assert!(next().contains("0/17"));
    commit(&mut log, "vehicle", 20..21);
    assert!(next().contains("0/18"));
    drop(log);
    commit(&mut open(dir.path()), "vehicle", 21..22);
    assert!(next().contains("0/19"), "in the next epoch");
    drop(running);
    follower.join().unwrap();
}

/// Sends each line that is written.
struct Lines(mpsc::Sender<Vec<u8>>);

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.send(line.to_vec()).map_err(io::Error::other)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_export_in_json_gives_back_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let _log = two_epochs(dir.path());
    let lines = export(&[], dir.path());
    let lines: Vec<serde_json::Value> = lines
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 20);
    assert_eq!(
        lines[12],
        serde_json::json!({
            "entry": 4, "stream": "vehicle", "partition": 0, "offset": 10, "device": "d0",
            "received": "1970-01-01T00:00:12.000000Z", "received_quality": "unknown", "boot": null,
            "since_boot_us": null, "event_time": null,
            "device_seq": null, "content_type": "application/json",
            "headers": [{ "name": "wayside.origin", "value_hex": "80" }], "value_hex": "ff000a",
        })
    );
    assert_eq!(lines[13]["value"], "{\"n\":13}");
}

#[test]
fn an_export_is_of_a_period_a_stream_and_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let _log = two_epochs(dir.path());
    let count = |args: &[&str]| read_raw(&export(&[&["--format", "raw"], args].concat(), dir.path())).len();
    assert_eq!(count(&[]), 20);
    assert_eq!(count(&["--from", "1970-01-01T00:00:05Z", "--to", "1970-01-01T00:00:15Z"]), 10);
    assert_eq!(count(&["--from", "1970-01-01T00:00:05Z", "--stream", "occupancy"]), 2);
    assert_eq!(count(&["--to", "1970-01-01T00:00:05Z", "--device", "d1"]), 2);
}

#[test]
fn a_raw_export_is_read_back_by_its_documentation() {
    let dir = tempfile::tempdir().unwrap();
    let _log = two_epochs(dir.path());
    let name = stream("vehicle");
    let values: Vec<_> = (0..10).chain(12..20).map(|second| record(&name, second).value.to_vec()).collect();
    assert_eq!(read_raw(&export(&["--format", "raw", "--stream", "vehicle"], dir.path())), values);
}

#[test]
fn an_export_to_a_file_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let _log = two_epochs(dir.path());
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("export.ndjson");
    fs::write(&path, b"an older one").unwrap();
    let LogCommand::Export(export) = parse(&["export", "--output", path.to_str().unwrap()], dir.path())
    else {
        unreachable!()
    };
    let (running, stop) = never();
    drop(running);
    assert_eq!(export::write_file(&export, &path, &stop).unwrap(), None, "interrupted");
    assert_eq!(fs::read(&path).unwrap(), b"an older one");
    let (_running, stop) = never();
    export::write_file(&export, &path, &stop).unwrap().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 20);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "nothing temporary is left");
}

#[test]
fn nobody_who_reads_any_more_is_no_failure() {
    let gone = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot write");
    assert_eq!(failed(&gone, ExitCode::FAILURE), ExitCode::SUCCESS);
    let full = anyhow::Error::from(io::Error::from(io::ErrorKind::StorageFull));
    assert_eq!(failed(&full, ExitCode::FAILURE), ExitCode::FAILURE);
}

fn write_cursor(dir: &Path, next: EntrySeq, vehicle: i64) {
    let acknowledged = [((stream("vehicle"), PartitionId(0)), Offset(vehicle))].into();
    let mut cursor = Cursor { next, acknowledged, ..Cursor::default() };
    CursorFile::open(dir).unwrap().0.write(&mut cursor).unwrap();
}

fn check_dir(dir: &Path) -> anyhow::Result<Findings> {
    let (_running, stop) = never();
    Findings::of(dir, &stop)
}

fn text(findings: &Findings) -> String {
    let mut out = Vec::new();
    verify::write(&mut out, findings).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn verify_calls_a_running_agents_directory_whole() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_epochs(dir.path());
    write_cursor(dir.path(), log.end(), 18);
    let findings = check_dir(dir.path()).unwrap();
    assert!(findings.is_whole(), "{findings:?}");
    assert!(text(&findings).ends_with("\nwhole\n"));
}

#[test]
fn verify_says_which_of_the_lost_records_kafka_has_not_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_epochs(dir.path());
    write_cursor(dir.path(), EntrySeq(1), 4);
    let first = inspect::list(dir.path()).unwrap().epochs[0];
    fs::remove_file(dir.path().join(first.to_string()).join("db")).unwrap();
    let findings = check_dir(dir.path()).unwrap();
    assert!(!findings.is_whole());
    let text = text(&findings);
    let line = "lost    vehicle/0  offsets 0..10: 4 records that replication is past, 6 that Kafka has not acknowledged";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("lost    occupancy/0  offsets 0..2: 0 records"), "{text}");
    drop(log);
}

#[test]
fn verify_finds_a_cursor_that_does_not_fit_the_log() {
    let check = |spoil: &dyn Fn(&Path, &mut Log), words: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut log = two_epochs(dir.path());
        spoil(dir.path(), &mut log);
        let findings = check_dir(dir.path()).unwrap();
        assert!(!findings.is_whole() && findings.log.is_whole(), "{findings:?}");
        let text = text(&findings);
        assert!(text.contains(words), "{text}");
    };
    check(&|dir, log| write_cursor(dir, EntrySeq(log.end().0 + 5), 18), "it has lost its end");
    check(&|dir, _| write_cursor(dir, EntrySeq(2), 100), "Kafka has vehicle/0 below offset 100");
    let trimmed_too_far = |dir: &Path, log: &mut Log| {
        log.trim(log.end(), crate::env::Monotonic::default()).unwrap();
        write_cursor(dir, EntrySeq(1), 2);
    };
    check(&trimmed_too_far, "what was between them is lost");
    let flipped = |dir: &Path, _: &mut Log| {
        write_cursor(dir, EntrySeq(2), 2);
        let path = dir.join("cursor");
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    check(&flipped, "the whole log will be sent to Kafka again");
}

#[test]
fn verify_of_a_directory_that_is_not_there_is_an_error() {
    assert!(check_dir(Path::new("/nonexistent/wayside")).is_err());
}

/// What `repair` prints, with its exit code in words.
fn repair(args: &[&str], dir: &Path) -> (String, bool) {
    let LogCommand::Repair(repair) = parse(&[&["repair"], args].concat(), dir) else { unreachable!() };
    let (_running, stop) = never();
    let mut out = Vec::new();
    let code = repair::run(&repair, &mut out, &stop).unwrap();
    (String::from_utf8(out).unwrap(), code == ExitCode::SUCCESS)
}

/// Every file in `dir` with its bytes, by path.
fn files(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    files
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_repair_touches_nothing_that_is_whole_and_nothing_while_an_agent_runs() {
    let dir = tempfile::tempdir().unwrap();
    let log = two_epochs(dir.path());
    write_cursor(dir.path(), log.end(), 18);
    let LogCommand::Repair(args) = parse(&["repair"], dir.path()) else { unreachable!() };
    let (_running, stop) = never();
    let refused = repair::run(&args, &mut Vec::new(), &stop).unwrap_err();
    assert!(refused.to_string().contains("in use by another agent"), "{refused}");
    drop(log);
    let before = files(dir.path());
    assert_eq!(repair(&["--yes"], dir.path()), ("nothing to do\n".into(), true));
    assert_eq!(files(dir.path()), before);
    let nowhere = dir.path().join("nowhere");
    let LogCommand::Repair(args) = parse(&["repair", "--yes"], &nowhere) else { unreachable!() };
    assert!(repair::run(&args, &mut Vec::new(), &stop).is_err());
    assert!(!nowhere.exists());
}

#[test]
fn a_directory_of_a_later_release_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    drop(two_epochs(dir.path()));
    fs::write(dir.path().join("gateway"), crate::log::identity::sealed("format 3\ngateway gw-1\n")).unwrap();
    let before = files(dir.path());
    let LogCommand::Repair(args) = parse(&["repair", "--yes", "--lose-damaged"], dir.path()) else {
        unreachable!()
    };
    let (_running, stop) = never();
    let refused = repair::run(&args, &mut Vec::new(), &stop).unwrap_err();
    assert!(refused.to_string().contains("has format 3"), "{refused}");
    assert_eq!(files(dir.path()), before);
}

#[test]
fn a_repair_says_what_it_would_do_and_does_it_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    drop(two_epochs(dir.path()));
    fs::remove_file(path("e-0000000000000000/db")).unwrap();
    fs::create_dir(path("del-0000000000000009")).unwrap();
    fs::write(path("notes.txt"), b"somebody else's").unwrap();
    fs::create_dir(path("lost+found")).unwrap();
    write_cursor(dir.path(), EntrySeq(1), 4);
    flip(&path("cursor"), 20);
    let before = files(dir.path());
    let (text, done) = repair(&[], dir.path());
    assert!(!done);
    let words =
        ["nothing in it can be read", "finish its deletion", "set it to the first entry", "\"notes.txt\""];
    for words in words {
        assert!(
            text.lines().any(|line| line.starts_with("would  ") && line.contains(words)),
            "{words}: {text}"
        );
    }
    assert_eq!(files(dir.path()), before, "a dry run");

    let (text, done) = repair(&["--yes"], dir.path());
    assert!(done, "{text}");
    assert!(path("bad-0000000000000000").exists() && path("lost+found").exists());
    assert!(!path("del-0000000000000009").exists() && !path("notes.txt").exists());
    let kept = PathBuf::from(text.lines().find_map(|line| line.strip_prefix("kept   ")).unwrap());
    assert_eq!(fs::read(kept.join("notes.txt")).unwrap(), b"somebody else's");
    assert_eq!(fs::read(kept.join("cursor")).unwrap(), before[&path("cursor")]);
    let (cursor, damaged) = Cursor::load_counting_damage(&path("cursor")).unwrap();
    let cursor = cursor.unwrap();
    assert_eq!((cursor.next, cursor.acknowledged.len(), damaged), (EntrySeq(0), 0, 0));
    assert_eq!(repair(&["--yes"], dir.path()), ("nothing to do\n".into(), true), "once is enough");
}

#[test]
fn a_cursor_with_one_damaged_half_keeps_what_the_other_says() {
    let dir = tempfile::tempdir().unwrap();
    drop(two_epochs(dir.path()));
    let mut cursor = Cursor::default();
    let (mut file, _) = CursorFile::open(dir.path()).unwrap();
    for next in [1, 2] {
        cursor.next = EntrySeq(next);
        file.write(&mut cursor).unwrap();
    }
    for (slot, next) in [(0, 2), (cursor::SLOT_BYTES, 2)] {
        flip(&dir.path().join("cursor"), slot + 20);
        let (text, done) = repair(&["--yes"], dir.path());
        assert!(done && text.contains("write its damaged half again"), "{text}");
        let (cursor, damaged) = Cursor::load_counting_damage(&dir.path().join("cursor")).unwrap();
        assert_eq!((cursor.unwrap().next, damaged), (EntrySeq(next), 0));
    }
}

#[test]
fn a_lost_mark_is_made_again_so_that_the_agent_does_not_put_a_whole_epoch_aside() {
    let dir = tempfile::tempdir().unwrap();
    drop(two_epochs(dir.path()));
    fs::remove_file(dir.path().join("e-0000000000000000/synced")).unwrap();
    assert!(repair(&["--yes"], dir.path()).1);
    let mut log = open(dir.path());
    assert_eq!(log.read(EntrySeq(0), 1 << 20).unwrap().groups.len(), 3);
    assert!(check_dir(dir.path()).unwrap().is_whole());
}

/// Flips a bit of an entry in sled's file, where it lies behind its key.
fn spoil_entry(epoch: &Path, seq: u64) {
    let db = epoch.join("db");
    let key = seq.to_be_bytes();
    let at = fs::read(&db).unwrap().windows(9).position(|window| window[0] == 8 && window[1..] == key);
    flip(&db, at.unwrap() + 30);
}

#[test]
fn what_can_be_read_of_a_damaged_epoch_stays_unless_it_may_be_lost() {
    for engine in [Engine::Sled, Engine::Segment] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open_with(dir.path(), engine);
        for second in 0..30 {
            commit(&mut log, "vehicle", second..second + 1);
        }
        drop(log);
        drop(two_epochs(dir.path()));
        let epoch = dir.path().join("e-0000000000000000");
        match engine {
            Engine::Sled => spoil_entry(&epoch, 12),
            Engine::Segment => flip(&epoch.join("segment"), 1500),
        }
        let records = 29;

        let before = files(dir.path());
        let (text, done) = repair(&["--yes"], dir.path());
        assert!(!done && text.contains(&format!("reads the other {records} records")), "{text}");
        assert_eq!(files(dir.path()), before);
        let (text, done) = repair(&["--yes", "--lose-damaged"], dir.path());
        assert!(done && text.contains(&format!("with {records} records")), "{text}");
        assert!(dir.path().join("bad-0000000000000000").exists());
    }
}

const CONFIG: &str = r#"
[gateway]
id = "g"
environment = "prod"
[[source.mqtt]]
name = "broker"
urls = ["mqtt://127.0.0.1:1883"]
[[source.mqtt.route]]
topic_filter = "t/+"
decode = "hfp"
stream = "vehicle"
[[stream]]
name = "vehicle"
partitions = 1
[[stream]]
name = "occupancy"
partitions = 1
[replicate]
bootstrap_servers = ["127.0.0.1:9092"]
"#;

/// Replays to a simulated cluster; returns what is printed, whether all is well, and by stream the offsets that arrived.
fn replay(args: &[&str], dir: &Path) -> anyhow::Result<(String, bool, [Vec<i64>; 2])> {
    let LogCommand::Replay(replay) = parse(&[&["replay"], args].concat(), dir) else { unreachable!() };
    let (cluster, brokers) = simulated::cluster(7);
    let (_running, stop) = never();
    let mut out = Vec::new();
    let config = check::parse(CONFIG, &[]).unwrap().config;
    let code = replay::replay_to(&replay, &config, || Ok(Box::new(cluster)), &mut out, &stop)?;
    let arrived = ["prod.vehicle", "prod.occupancy"].map(|topic| {
        let appended = brokers.partition(topic, PartitionId(0));
        assert!(appended.iter().all(|a| a.record.headers.iter().any(|h| &*h.name == header::REPLAYED)));
        appended.iter().map(|appended| appended.offset.0).collect()
    });
    Ok((String::from_utf8(out).unwrap(), code == ExitCode::SUCCESS, arrived))
}

#[test]
fn a_replay_sends_what_kafka_has_acknowledged_beside_a_running_agent_and_leaves_its_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let _log = two_epochs(dir.path());
    let nothing = replay(&["--yes"], dir.path()).unwrap();
    assert_eq!(
        (nothing.1, nothing.2),
        (true, [vec![], vec![]]),
        "without a cursor Kafka has acknowledged nothing"
    );
    // Entries: checkpoint, vehicle 0..10, occupancy; checkpoint, vehicle 10..18.
    write_cursor(dir.path(), EntrySeq(3), 10);
    let before = files(dir.path());
    let (text, done, arrived) = replay(&[], dir.path()).unwrap();
    assert!(
        !done && text.starts_with("12 records that Kafka has acknowledged would be sent again"),
        "{text}"
    );
    assert!(arrived.iter().all(Vec::is_empty));
    let (text, done, arrived) = replay(&["--yes"], dir.path()).unwrap();
    assert!(done && text.starts_with("12 records sent again, 0 "), "{text}");
    assert_eq!(arrived, [(0..10).collect(), vec![0, 1]]);
    assert_eq!(files(dir.path()), before);
}

#[test]
fn a_replay_is_of_a_period_a_stream_and_a_device() {
    let dir = tempfile::tempdir().unwrap();
    drop(two_epochs(dir.path()));
    let period = ["--from", "1970-01-01T00:00:04Z", "--to", "1970-01-01T00:00:14Z"];
    let check = |args: &[&str], expected: [Vec<i64>; 2]| {
        let (text, done, arrived) =
            replay(&[&["--yes", "--unacknowledged"], args].concat(), dir.path()).unwrap();
        assert!(done, "{text}");
        assert_eq!(arrived, expected, "{args:?}");
    };
    check(&[], [(0..18).collect(), vec![0, 1]]);
    check(&period, [(4..12).collect(), vec![0, 1]]);
    check(&["--stream", "occupancy"], [vec![], vec![0, 1]]);
    check(&["--device", "d0", "--to", "1970-01-01T00:00:06Z"], [vec![0, 2, 4], vec![]]);
}

#[test]
fn what_kafka_has_not_acknowledged_is_not_replayed_while_an_agent_runs() {
    let dir = tempfile::tempdir().unwrap();
    let _log = two_epochs(dir.path());
    let refused = replay(&["--yes", "--unacknowledged"], dir.path()).unwrap_err();
    assert!(refused.to_string().contains("in use by another agent"), "{refused}");
}
