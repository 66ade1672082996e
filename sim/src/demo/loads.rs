//! The loads: this program again, with the commands that a user would give.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::process::{Child, Command};

use super::agent::kill_and_wait;

/// What a load is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadPlan {
    /// For people.
    pub(super) name: &'static str,
    /// `occupancy` or `traffic`.
    pub(super) command: &'static str,
    pub(super) devices: u32,
    /// Readings a second over all devices.
    pub(super) rate: u32,
}

/// A running load. It is killed when this is dropped.
pub(super) struct Load {
    pub(super) plan: LoadPlan,
    pub(super) ledger: PathBuf,
    child: Child,
    tail: LedgerTail,
}

impl Load {
    /// Starts it for `duration`, into `target`: the option and its value, `--mqtt URL` or `--serial LINK`.
    ///
    /// # Errors
    /// No process is to be had.
    pub(super) fn start(
        plan: LoadPlan,
        target: [&str; 2],
        dir: &Path,
        duration: Duration,
    ) -> anyhow::Result<Self> {
        let ledger = dir.join(format!("{}.ledger", plan.name.replace(' ', "-")));
        let log = File::create(ledger.with_extension("log"))?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let child = Command::new(program)
            .arg(plan.command)
            .args(target)
            .args(["--devices", &plan.devices.to_string()])
            .args(["--rate", &plan.rate.to_string()])
            .args(["--duration", &format!("{}ms", duration.as_millis())])
            .args(["--drain", "60s"])
            .arg("--ledger")
            .arg(&ledger)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the load of {}", plan.name))?;
        Ok(Self { plan, tail: LedgerTail::default(), ledger, child })
    }

    /// Sent and acknowledged so far, as its ledger says.
    pub(super) fn counts(&mut self) -> (u64, u64) {
        self.tail.update(&self.ledger);
        (self.tail.sent, self.tail.acknowledged)
    }

    /// Whether it has ended, with everything that it sent acknowledged.
    ///
    /// # Errors
    /// It ended otherwise: what it printed.
    pub(super) fn has_ended(&mut self) -> anyhow::Result<bool> {
        let Some(status) = self.child.try_wait()? else { return Ok(false) };
        let printed = std::fs::read_to_string(self.ledger.with_extension("log")).unwrap_or_default();
        ensure!(status.success(), "the load of {} failed ({status}):\n{printed}", self.plan.name);
        Ok(true)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        kill_and_wait(&mut self.child);
    }
}

/// Counts the lines of a ledger while it grows.
#[derive(Default)]
struct LedgerTail {
    file: Option<File>,
    in_line: bool,
    sent: u64,
    acknowledged: u64,
}

impl LedgerTail {
    fn update(&mut self, path: &Path) {
        if self.file.is_none() {
            self.file = File::open(path).ok();
        }
        let Some(file) = &mut self.file else { return };
        let mut buffer = [0; 64 * 1024];
        // An error is as good as no news: the verifier reads the ledger in earnest.
        while let Ok(read @ 1..) = file.read(&mut buffer) {
            for byte in &buffer[..read] {
                match (self.in_line, byte) {
                    (false, b's') => self.sent += 1,
                    (false, b'a') => self.acknowledged += 1,
                    _ => {}
                }
                self.in_line = *byte != b'\n';
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_growing_ledger_is_counted_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut tail = LedgerTail::default();
        tail.update(&path);
        let mut ledger = File::create(&path).unwrap();
        let mut check = |written: &str, counts| {
            ledger.write_all(written.as_bytes()).unwrap();
            tail.update(&path);
            assert_eq!((tail.sent, tail.acknowledged), counts);
        };
        check("#wayside-ledger 1\nsent\ts\td\ts1\t1\nse", (2, 0));
        check("nt\ts\td\ts2\t1\nacked\ts\td", (2, 1));
        check("\ts1\t2\n", (2, 1));
    }
}
