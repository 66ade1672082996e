//! The real agent as a child process: this program again, with the hidden command `agent`.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

/// How long the agent may take to end by itself.
const STOP_MAX: Duration = Duration::from_secs(20);
/// How long the kernel may take to end it.
const KILL_MAX: Duration = Duration::from_secs(5);
/// How long it may take to answer on the loopback.
const HEALTH_TIMEOUT: Duration = Duration::from_millis(500);
/// What is shown of its log when it died.
const LOG_TAIL_BYTES: u64 = 4096;

/// Arguments of the hidden command `agent`: those of the agent's own command line.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs the agent in this process.
pub fn run_agent(args: AgentArgs) -> ExitCode {
    // It must not outlive a demo that was killed. Where that cannot be had it only lives on.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    wayside::cli::main(std::iter::once(OsString::from("wayside")).chain(args.args))
}

/// What the demo wants to know of `/healthz`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Health {
    sources: Vec<SourceHealth>,
    replicate: ReplicateHealth,
}

#[derive(Clone, Debug, Deserialize)]
struct SourceHealth {
    name: String,
    connected: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct ReplicateHealth {
    backlog_records: u64,
}

impl Health {
    /// Whether the source of this name can get frames.
    pub(super) fn is_connected(&self, source: &str) -> bool {
        self.sources.iter().any(|s| s.name == source && s.connected)
    }

    /// Records that Kafka does not have yet.
    pub(super) fn backlog(&self) -> u64 {
        self.replicate.backlog_records
    }
}

/// The agent, running or not. It is killed when this is dropped.
pub(super) struct Agent {
    config: PathBuf,
    log: PathBuf,
    telemetry_port: u16,
    child: Option<Child>,
}

impl Agent {
    /// Not started so far; its log will be `log`.
    pub(super) fn new(config: PathBuf, log: PathBuf, telemetry_port: u16) -> Self {
        Self { config, log, telemetry_port, child: None }
    }

    /// Starts it; the log goes on.
    ///
    /// # Errors
    /// No process is to be had.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let child = Command::new(program)
            .args(["agent", "--", "run", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo, which then ends the agent in its own way.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the agent")?;
        self.child = Some(child);
        Ok(())
    }

    /// Its process id while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Ends it as a power cut would: SIGKILL.
    ///
    /// # Errors
    /// It is gone already.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.check()?;
        if let Some(mut child) = self.child.take() {
            child.kill().await.context("cannot kill the agent")?;
        }
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// It is gone already, does not end in 20 s or ends with an error.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        self.check()?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        let status = timeout(STOP_MAX, child.wait()).await;
        let status = status.with_context(|| format!("the agent does not end\n{}", self.log_tail()))??;
        if status.success() { Ok(()) } else { Err(self.died(status)) }
    }

    /// Checks that it runs, where it should.
    ///
    /// # Errors
    /// It died; the end of its log.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            self.child = None;
            return Err(self.died(status));
        }
        Ok(())
    }

    fn died(&self, status: ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("the agent died ({status}); the end of its log:\n{}", self.log_tail())
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// What it says of itself; `None` while it does not answer.
    pub(super) async fn health(&self) -> Option<Health> {
        self.pid()?;
        timeout(HEALTH_TIMEOUT, get_health(self.telemetry_port)).await.ok()?.ok()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            kill_and_wait(child);
        }
    }
}

/// Kills a child and waits until it is gone, so that it writes no file into a directory that is about to go. Blocks for the
/// moment that this takes.
pub(super) fn kill_and_wait(child: &mut Child) {
    // It may be gone already.
    let _ = child.start_kill();
    let deadline = Instant::now() + KILL_MAX;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let size = fs::metadata(path)?.len();
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(size.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One request in HTTP 1.0, whose answer ends with the connection: a client library would be larger than the demo.
async fn get_health(port: u16) -> anyhow::Result<Health> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer).await?;
    let Some(end_of_head) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
        bail!("no HTTP answer");
    };
    Ok(serde_json::from_slice(&answer[end_of_head + 4..])?)
}
