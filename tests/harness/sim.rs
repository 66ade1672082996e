//! The simulator's commands: loads that write ledgers, and the verifier that holds Kafka against them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::kafka::Cluster;
use crate::process::{self, Process, Signal};
use crate::{PATIENCE, binary, wait_until};

/// A load under way: `wayside-sim occupancy`, `traffic` or `replay`.
pub struct Load {
    directory: TempDir,
    process: Process,
}

impl Load {
    /// Starts `wayside-sim ARGUMENTS --ledger ...`.
    pub fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
        let mut command = process::command(binary("wayside-sim"));
        command.args(arguments).arg("--ledger").arg(directory.path().join("ledger"));
        let process = Process::start("wayside-sim", command, &directory.path().join("sim.log"));
        Self { directory, process }
    }

    /// The ledger, which grows while the load runs.
    pub fn ledger(&self) -> PathBuf {
        self.directory.path().join("ledger")
    }

    /// Readings that the other side has acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        let ledger = std::fs::read(self.ledger()).unwrap_or_default();
        ledger.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"acked\t")).count()
    }

    /// Waits until the other side has acknowledged `count` readings.
    #[track_caller]
    pub fn wait_acknowledged(&mut self, count: usize, deadline: Duration) {
        wait_until(deadline, &format!("{count} acknowledged readings"), || {
            let acknowledged = self.acknowledged();
            assert!(
                acknowledged >= count || self.process.exit_status().is_none(),
                "the load ended with {acknowledged} of {count} readings\n{}",
                self.process.log_tail()
            );
            (acknowledged >= count).then_some(())
        });
    }

    /// Lets a load without `--duration` come to its end: it waits for what is not acknowledged yet and sums up.
    pub fn interrupt(&mut self) {
        // Before it has made its ledger, it may not listen for signals yet.
        wait_until(PATIENCE, "the load has begun", || {
            (self.ledger().exists() || self.process.exit_status().is_some()).then_some(())
        });
        self.process.signal(Signal::INT);
    }

    /// Waits until the load has ended by itself with success, and returns what it printed.
    #[track_caller]
    pub fn finish(&mut self, deadline: Duration) -> String {
        let status = self.process.wait(deadline);
        assert!(status.success(), "wayside-sim ended with {status}\n{}", self.process.log_tail());
        self.process.stdout()
    }
}

/// What the verifier found.
#[derive(Debug)]
pub struct Report(serde_json::Value);

impl Report {
    /// A count of the verifier by its name.
    #[track_caller]
    pub fn count(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_else(|| panic!("no `{name}` in {}", self.0))
    }

    /// Everything that was acknowledged is in Kafka, once, in order per device, where Java would have put it, and nothing else.
    ///
    /// # Panics
    /// When it is not so, or when fewer than `at_least` readings were acknowledged: a load that does nothing proves nothing.
    #[track_caller]
    pub fn assert_complete(&self, at_least: u64) {
        for fault in ["lost", "duplicated", "reordered", "unknown", "foreign_partition", "split_devices"] {
            assert_eq!(self.count(fault), 0, "{fault}: {}", self.0);
        }
        assert!(self.count("acknowledged") >= at_least, "fewer than {at_least} acknowledged: {}", self.0);
    }

    /// Whether everything that is in Kafka was sent, is there once, in order per device and where Java would have put it.
    pub fn is_once_in_order(&self) -> bool {
        self.count("duplicated") == 0 && self.is_in_order()
    }

    /// The same of what may be there more than once.
    pub fn is_in_order(&self) -> bool {
        ["reordered", "unknown", "foreign_partition", "split_devices"]
            .into_iter()
            .all(|fault| self.count(fault) == 0)
    }
}

/// `wayside-sim verify` over the topics of `environment`; it waits up to `wait` for what is still missing.
#[track_caller]
pub fn verify<P: AsRef<Path>>(cluster: &Cluster, environment: &str, ledgers: &[P], wait: Duration) -> Report {
    let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
    let mut command = process::command(binary("wayside-sim"));
    command.args([
        "verify",
        "--json",
        "--bootstrap",
        &cluster.bootstrap_servers(),
        "--environment",
        environment,
    ]);
    command.args([OsString::from("--wait"), format!("{}s", wait.as_secs()).into()]);
    for ledger in ledgers {
        command.arg("--ledger").arg(ledger.as_ref());
    }
    let mut process = Process::start("wayside-sim verify", command, &directory.path().join("verify.log"));
    // Its exit code says what the report says in more words.
    let status = process.wait(wait + Duration::from_secs(60));
    let report = process.stdout();
    match serde_json::from_str(&report) {
        Ok(report) => Report(report),
        Err(error) => panic!("no report, {error}, {status}\n{}", process.log_tail()),
    }
}
