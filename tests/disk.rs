//! Disks that are full or fail: nothing is acknowledged that is not durable, nothing that was acknowledged is lost, and the
//! agent goes on by itself when the disk does.

use std::time::Instant;

use wayside_tests::agent::{self, Agent};
use wayside_tests::disk::Disk;
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::process;
use wayside_tests::service::{ServiceManager, WATCHDOG, Watch};
use wayside_tests::sim::{self, Load};
use wayside_tests::{PATIENCE, binary, kafka, note, wait_until};

/// Frames that the agent holds at least when the log takes none: its bound in bytes comes before the receive maximum.
const HELD_MIN: f64 = 500.0;

/// Looks, 20 ms and more apart, that find nothing more taken: it has stopped.
const LOOKS: u32 = 50;

/// A gateway with its log on a disk of its own, between a broker, a serial line and Kafka.
struct Site {
    agent: Agent,
    watch: Option<Watch>,
    _broker: Mosquitto,
    mqtt: Load,
    serial: Load,
    _directory: tempfile::TempDir,
}

impl Site {
    /// Everything runs and something was acknowledged on both ways in. `log` are further lines of `[log]`.
    fn start(name: &str, cluster: &kafka::Cluster, disk: &Disk, rate: u32, log: &str) -> Self {
        let broker = Mosquitto::start();
        let directory = tempfile::tempdir().unwrap();
        let line = directory.path().join("line");
        let rate = rate.to_string();
        let link = line.display().to_string();
        let drain = format!("{}s", PATIENCE.as_secs());
        let mut serial = Load::start([
            "occupancy",
            "--devices",
            "4",
            "--rate",
            "50",
            "--drain",
            &drain,
            "--serial",
            &link,
        ]);
        let sections = agent::mqtt_source(&broker.url(), 5) + &agent::serial_source("line", &line, "native");
        let sections = sections + "[commit]\ncompression = \"none\"\n";
        let mut agent = Agent::new(name, &cluster.bootstrap_servers(), &sections);
        let dir = |path: &std::path::Path| format!("dir = \"{}\"\n", path.display());
        let on_disk = dir(&disk.path().join("log")) + "epoch_bytes = 262144\n" + log;
        agent.configure(&dir(&agent.log_directory()), &on_disk);
        let manager = ServiceManager::new();
        agent.start_with(manager.environment());
        let watch = Some(manager.watch());
        broker.wait_subscribed("traffic/+/position");
        let url = broker.url();
        let mut mqtt =
            Load::start(["traffic", "--devices", "50", "--rate", &rate, "--drain", &drain, "--mqtt", &url]);
        serial.wait_acknowledged(50, PATIENCE);
        mqtt.wait_acknowledged(500, PATIENCE);
        let site = Self { agent, watch, _broker: broker, mqtt, serial, _directory: directory };
        note(&format!("works: RSS {:.1} MB", site.metric("process_resident_memory_bytes") / 1e6));
        site
    }

    fn metric(&self, name: &str) -> f64 {
        self.agent.metric(&format!("wayside_{name}")).unwrap_or_else(|| panic!("no metric {name}"))
    }

    #[track_caller]
    fn wait_metric(&self, name: &str, mut holds: impl FnMut(f64) -> bool) {
        wait_until(PATIENCE, name, || holds(self.metric(name)).then_some(()));
    }

    /// Waits until the intake has stopped: the broker may send no more. Returns how many readings the agent had
    /// acknowledged to the serial devices by then, which note an acknowledgement a little later than it was given.
    fn wait_held_back(&self) -> usize {
        let (mut last, mut looks) = (0.0, 0);
        self.wait_metric("source_unacknowledged", |frames| {
            looks = if frames == last { looks + 1 } else { 0 };
            last = frames;
            frames >= HELD_MIN && looks >= LOOKS
        });
        note(&format!(
            "held back: RSS {:.1} MB, {} frames unanswered",
            self.metric("process_resident_memory_bytes") / 1e6,
            self.metric("source_unacknowledged"),
        ));
        self.serial.acknowledged()
    }

    /// What `wayside status` says, with its exit code.
    fn status(&self) -> (Option<i32>, String) {
        let mut command = process::command(binary("wayside"));
        command.args(["status", "-c"]).arg(self.agent.configuration());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// Waits until commits go on, since `event`.
    fn wait_commit(&self, commits: f64, event: &str) {
        let started = Instant::now();
        self.wait_metric("commit_commits_total", |now| now > commits);
        note(&format!("first acknowledgement {} ms after {event}", started.elapsed().as_millis()));
    }

    /// The agent was heard to be alive all the time.
    fn end_watch(&mut self) {
        let silence = self.watch.take().expect("the agent runs").longest_silence();
        assert!(silence < WATCHDOG, "the watchdog heard nothing for {silence:?}");
    }

    /// Starts the agent that was ended.
    fn start_again(&mut self) {
        let manager = ServiceManager::new();
        self.agent.start_with(manager.environment());
        self.watch = Some(manager.watch());
    }

    /// Lets the loads end, and finds in Kafka all that was acknowledged.
    fn verify(mut self, cluster: &kafka::Cluster, at_least: u64) {
        self.mqtt.interrupt();
        self.serial.interrupt();
        self.mqtt.finish(PATIENCE);
        self.serial.finish(PATIENCE);
        let ledgers = [self.mqtt.ledger(), self.serial.ledger()];
        sim::verify(cluster, self.agent.environment(), &ledgers, PATIENCE).assert_complete(at_least);
        self.end_watch();
        self.agent.stop();
    }
}

/// Another process fills the disk to the last byte, and later makes room again.
fn filled_by_another_process(name: &str, disk: &Disk) {
    let cluster = kafka::shared();
    let mut site = Site::start(name, &cluster, disk, 500, "");
    let filler = disk.fill();
    site.wait_metric("commit_waiting", |waiting| waiting == 1.0);
    let commits = site.metric("commit_commits_total");
    let acknowledged = site.wait_held_back();
    site.wait_metric("replicate_lag_records", |lag| lag == 0.0);
    assert_eq!(site.metric("commit_commits_total"), commits, "acknowledged on a full disk");
    assert_eq!(site.serial.acknowledged(), acknowledged, "acknowledged on a full disk");
    let (code, text) = site.status();
    assert!(text.starts_with("CRITICAL: the disk is full of other files"), "{text}");
    assert_eq!(code, Some(2), "{text}");
    // A start needs no byte either.
    site.end_watch();
    site.agent.kill();
    filler.fill_up();
    site.start_again();
    site.wait_metric("commit_waiting", |waiting| waiting == 1.0);
    drop(filler);
    site.wait_commit(0.0, "the disk had room");
    site.wait_metric("commit_waiting", |waiting| waiting == 0.0);
    site.verify(&cluster, 2_000);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_tmpfs_that_another_process_fills_holds_back_what_comes_until_there_is_room() {
    let Some(disk) = Disk::tmpfs(48) else { return };
    filled_by_another_process("disk-tmpfs", &disk);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn an_ext4_that_another_process_fills_holds_back_what_comes_until_there_is_room() {
    let Some(disk) = Disk::ext4(64) else { return };
    filled_by_another_process("disk-ext4", &disk);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_disk_that_the_log_itself_fills_goes_on_when_kafka_is_back_also_after_a_kill() {
    let Some(disk) = Disk::tmpfs(20) else { return };
    let mut cluster = kafka::exclusive();
    cluster.kill_all();
    let mut site = Site::start("disk-log", &cluster, &disk, 2_500, "limit_bytes = 1073741824\n");
    site.wait_metric("commit_waiting", |waiting| waiting == 1.0);
    site.wait_held_back();
    // Enough is in the broker's queue.
    site.mqtt.interrupt();
    let (code, text) = site.status();
    assert!(
        text.starts_with("WARNING: ") && text.contains("the log is full: sources wait for Kafka"),
        "{text}"
    );
    assert!(text.contains("8912896 are to stay free (log.reserve_bytes)"), "{text}");
    assert_eq!(code, Some(1), "{text}");

    site.end_watch();
    site.agent.kill();
    site.start_again();
    site.wait_metric("commit_waiting", |waiting| waiting == 1.0);
    let commits = site.metric("commit_commits_total");
    assert_eq!(commits, 0.0, "acknowledged on a full disk");
    site.wait_held_back();
    cluster.heal();
    site.wait_commit(commits, "Kafka was back");
    site.verify(&cluster, 10_000);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_disk_that_is_read_only_for_a_while_is_told_and_tried_again() {
    let Some(disk) = Disk::tmpfs(64) else { return };
    let cluster = kafka::shared();
    let site = Site::start("disk-protected", &cluster, &disk, 500, "");
    let protection = disk.write_protect();
    // The epoch under way is open and goes on; the next one cannot be made.
    site.wait_metric("commit_failing", |failing| failing == 1.0);
    let commits = site.metric("commit_commits_total");
    site.wait_held_back();
    let (code, text) = site.status();
    assert!(text.starts_with("CRITICAL: commits fail") && text.contains("Read-only file system"), "{text}");
    assert_eq!(code, Some(2), "{text}");
    assert_eq!(site.metric("commit_commits_total"), commits, "acknowledged by a disk that cannot write");
    drop(protection);
    site.wait_commit(commits, "the disk could be written to");
    site.verify(&cluster, 2_000);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_file_system_that_gives_up_acknowledges_nothing_and_still_gives_kafka_what_it_has() {
    let Some(disk) = Disk::ext4(64) else { return };
    let mut cluster = kafka::exclusive();
    cluster.kill_all();
    let mut site = Site::start("disk-aborted", &cluster, &disk, 1_000, "");
    site.wait_metric("log_epochs", |epochs| epochs > 3.0);
    disk.abort();
    site.wait_metric("commit_failing", |failing| failing == 1.0);
    let commits = site.metric("commit_commits_total");
    let acknowledged = site.wait_held_back();
    let (code, text) = site.status();
    assert!(text.starts_with("CRITICAL: commits fail"), "{text}");
    assert_eq!(code, Some(2), "{text}");
    cluster.heal();
    site.wait_metric("replicate_lag_records", |lag| lag == 0.0);
    assert_eq!(site.metric("commit_commits_total"), commits, "acknowledged by a disk that failed");
    assert_eq!(site.serial.acknowledged(), acknowledged, "acknowledged by a disk that failed");

    // An operator repairs it.
    site.end_watch();
    site.agent.stop();
    disk.mount_again();
    site.start_again();
    // The cursor could not be written either, but Kafka's copy of it was.
    site.verify(&cluster, 2_000);
}
