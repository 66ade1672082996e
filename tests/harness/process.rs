//! Child processes that do not outlive the tests.
//!
//! Each is started through `setpriv --pdeathsig KILL`, so that the kernel ends it also when the test process is killed.
//! The kernel counts the death of the *thread* that started it, and a test is a thread: children are therefore started
//! by one thread that lives as long as the process.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

pub use rustix::process::Signal;

use crate::wait_until;

type Order = (Command, mpsc::Sender<io::Result<Child>>);

static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    std::thread::spawn(move || {
        for (mut command, answer) in inbox {
            // The asker may have panicked meanwhile.
            let _ = answer.send(command.spawn());
        }
    });
    orders
});

/// A command whose process the kernel kills when the test process ends.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// Starts `command` from the thread that lives as long as the process.
pub fn spawn(command: Command) -> Child {
    let (answer, outcome) = mpsc::channel();
    SPAWNER.send((command, answer)).expect("the spawner lives as long as the process");
    outcome.recv().expect("the spawner answers").expect("`setpriv` of util-linux can be started")
}

/// A server or agent under test: its process and its log. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` (see [`command`]) with both outputs appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let output =
            File::options().create(true).append(true).open(log).expect("the log's directory is writable");
        command.stderr(output.try_clone().expect("a file handle can be copied")).stdout(output);
        Self { name: name.to_owned(), child: spawn(command), log: log.to_owned() }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`; to a process that has ended this does nothing.
    pub fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_none() {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, signal).expect("our own child, not yet reaped, takes signals");
        }
    }

    /// SIGKILL; the process is gone on return.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("our own child can be waited for");
    }

    /// SIGTERM, and the status with which the process ended.
    ///
    /// # Panics
    /// When it has not ended within `deadline`.
    #[track_caller]
    pub fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(deadline)
    }

    /// The status with which the process ended by itself.
    ///
    /// # Panics
    /// When it has not ended within `deadline`.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        wait_until(deadline, &what, || self.exit_status())
    }

    /// `None` while the process runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be asked")
    }

    /// All that the process wrote to standard error so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// All that the process wrote to standard output so far.
    pub fn stdout(&self) -> String {
        let path = self.log.with_extension("stdout");
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// The last lines of the log, for the text of a failure.
    pub fn log_tail(&self) -> String {
        let log = self.stdout() + &self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        format!("--- last lines of {} ---\n{}\n---", self.name, tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}
