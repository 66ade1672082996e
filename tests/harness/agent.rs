//! The agent under test: the real binary with a configuration of its own, started, stopped, killed and started again on
//! the same log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{self, Process, Signal};
use crate::strace;
use crate::{PATIENCE, binary, ports, wait_until};

/// One gateway: configuration, log and, while it runs, the process.
pub struct Agent {
    name: String,
    telemetry_port: u16,
    /// Before the directory, in which its log is: the first is dropped first.
    process: Option<Process>,
    directory: TempDir,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Agent {
    /// A gateway called `name`, which is also the environment of its topics: tests with different names share nothing.
    ///
    /// `sections` is the rest of the configuration, the sources and streams.
    pub fn new(name: &str, bootstrap_servers: &str, sections: &str) -> Self {
        let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
        let telemetry_port = ports::free();
        let mut servers = String::new();
        let mut nodes = 0;
        for server in bootstrap_servers.split(',') {
            write!(servers, "\"{server}\", ").expect("a string takes all");
            nodes += 1;
        }
        let (replicas, in_sync) = if nodes < 3 { (1, 1) } else { (3, 2) };
        let configuration = format!(
            "\
[gateway]
id = \"{name}\"
environment = \"{name}\"
[log]
dir = \"{}\"
[replicate]
bootstrap_servers = [{servers}]
replication_factor = {replicas}
min_insync_replicas = {in_sync}
[telemetry]
listen = \"127.0.0.1:{telemetry_port}\"
{sections}",
            directory.path().join("log").display()
        );
        std::fs::write(directory.path().join("wayside.toml"), configuration)
            .expect("our directory is writable");
        Self { name: name.to_owned(), directory, telemetry_port, process: None, variables: Vec::new() }
    }

    /// The topic of `stream`.
    pub fn topic(&self, stream: &str) -> String {
        format!("{}.{stream}", self.name)
    }

    /// The environment of the topics.
    pub fn environment(&self) -> &str {
        &self.name
    }

    /// The configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join("wayside.toml")
    }

    /// Where the log lies.
    pub fn log_directory(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Variables of the environment, for each start.
    pub fn set_variables(&mut self, variables: impl IntoIterator<Item = (&'static str, PathBuf)>) {
        self.variables.extend(variables);
    }

    /// Starts the agent and waits until it serves its state.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_with([]);
    }

    /// As [`start`](Self::start), with variables of the environment.
    #[track_caller]
    pub fn start_with<'a>(&mut self, variables: impl IntoIterator<Item = (&'a str, String)>) {
        let mut command = process::command(program());
        command.args(["run", "-c"]).arg(self.configuration()).envs(variables);
        self.run(command);
    }

    /// Starts the agent and waits for nothing.
    #[track_caller]
    pub fn begin(&mut self) {
        let mut command = process::command(program());
        command.args(["run", "-c"]).arg(self.configuration());
        self.spawn(command);
    }

    /// As [`start`](Self::start), with its system calls written to `trace`.
    #[track_caller]
    pub fn start_traced(&mut self, trace: &Path) {
        let mut command = strace::command(trace);
        command.arg(program()).args(["run", "-c"]).arg(self.configuration());
        self.run(command);
    }

    /// Stops the agent with SIGTERM; it must end with success.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("it was started");
        let status = process.terminate(PATIENCE);
        assert!(status.success(), "the agent ended with {status} after SIGTERM\n{}", process.log_tail());
    }

    /// Writes `new` for `old` in the configuration, which the agent does not see yet.
    #[track_caller]
    pub fn configure(&self, old: &str, new: &str) {
        let path = self.configuration();
        let text = std::fs::read_to_string(&path).expect("it was written");
        assert!(text.contains(old), "no {old:?} in the configuration");
        std::fs::write(&path, text.replacen(old, new, 1)).expect("our directory is writable");
    }

    /// Sends SIGHUP.
    pub fn reload(&mut self) {
        self.process.as_mut().expect("it was started").signal(Signal::HUP);
    }

    /// Waits until the agent's log has `text`.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        let process = self.process.as_ref().expect("it was started");
        wait_until(PATIENCE, &format!("the log says {text:?}"), || {
            process.log().contains(text).then_some(())
        });
    }

    /// Stops the agent with SIGSTOP: it does nothing any more until it is killed.
    pub fn freeze(&mut self) {
        self.process.as_mut().expect("it was started").signal(Signal::STOP);
    }

    /// Kills the agent with SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it was started");
        let ended = process.exit_status();
        assert!(ended.is_none(), "the agent had ended by itself, {ended:?}\n{}", process.log_tail());
        process.kill();
    }

    /// The id of the running process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it was started").pid()
    }

    /// The sum of all samples of the metric `name`, over their labels; `None` where there is none.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let page = get(self.telemetry_port, "/metrics")?;
        let values: Vec<f64> = page
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with([' ', '{']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// What it answers to `GET path`.
    #[track_caller]
    pub fn page(&self, path: &str) -> String {
        get(self.telemetry_port, path).expect("it runs")
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.telemetry_port)
    }

    /// Status and body of what it answers to `GET path` with further lines in its head, each with its end.
    #[track_caller]
    pub fn answer(&self, path: &str, lines: &str) -> (u16, String) {
        request(self.telemetry_port, path, lines).expect("it runs")
    }

    /// Waits until `/healthz` has `words`.
    #[track_caller]
    pub fn wait_health(&self, words: &str) {
        wait_until(PATIENCE, &format!("`{words}` in /healthz"), || {
            self.page("/healthz").contains(words).then_some(())
        });
    }

    /// Everything that it has printed since it was first started.
    pub fn output(&self) -> String {
        self.process.as_ref().map_or_else(String::new, |process| process.stdout() + &process.log())
    }

    /// What `wayside` prints with `arguments`, on both outputs; `CONFIG` stands for the agent's configuration.
    pub fn command_output(&self, arguments: &[&str]) -> String {
        let config = self.directory.path().join("wayside.toml");
        let arguments = arguments.iter().map(|argument| match *argument {
            "CONFIG" => config.as_os_str(),
            other => other.as_ref(),
        });
        let output = std::process::Command::new(binary("wayside")).args(arguments).output();
        let output = output.expect("our own binary can be run");
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
    }

    /// How often each reading is in the log, by device and sequence number.
    pub fn stored(&self) -> BTreeMap<(String, u64), usize> {
        let exported = self.command_output(&["log", "export", self.log_directory().to_str().expect("UTF-8")]);
        let mut times = BTreeMap::new();
        for line in exported.lines().filter(|line| line.starts_with('{')) {
            let record: serde_json::Value = serde_json::from_str(line).expect("NDJSON");
            let device = record["device"].as_str().expect("a device").to_owned();
            *times.entry((device, record["device_seq"].as_u64().expect("a number"))).or_default() += 1;
        }
        times
    }

    #[track_caller]
    fn spawn(&mut self, mut command: std::process::Command) -> &mut Process {
        assert!(self.process.is_none(), "the agent runs already");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        // As deploy/wayside.service does.
        command.envs([("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "131072")]);
        let log = self.directory.path().join("agent.log");
        self.process.insert(Process::start(&self.name, command, &log))
    }

    #[track_caller]
    fn run(&mut self, command: std::process::Command) {
        let port = self.telemetry_port;
        let process = self.spawn(command);
        // Its state may well be "Kafka is away": that it answers is enough.
        wait_until(PATIENCE, "the agent serves /healthz", || {
            if let Some(status) = process.exit_status() {
                panic!("the agent ended, {status}");
            }
            get(port, "/healthz")
        });
    }
}

/// A `[[source.mqtt]]` that takes what `wayside-sim` publishes to `url`, and its streams.
pub fn mqtt_source(url: &str, version: u8) -> String {
    let section =
        format!("[[source.mqtt]]\nname = \"broker\"\nurls = [\"{url}\"]\nversion = {version}\nqos = 1\n");
    section + &routes("mqtt")
}

/// A `[[source.listener]]` on `port` that takes what `wayside-sim` publishes, and its streams.
pub fn listener(port: u16) -> String {
    let section = format!("[[source.listener]]\nname = \"devices\"\nlisten = \"127.0.0.1:{port}\"\n");
    section + &routes("listener")
}

/// What `wayside-sim` publishes, as routes of a source of `kind`, and its streams.
fn routes(kind: &str) -> String {
    format!(
        "\
[[source.{kind}.route]]
topic_filter = \"building/+/+/occupancy\"
decode = \"json\"
stream = \"occupancy\"
value = \"raw\"
device_pointer = \"/device\"
time_pointer = \"/time\"
seq_pointer = \"/seq\"
[[source.{kind}.route]]
topic_filter = \"traffic/+/position\"
decode = \"json\"
stream = \"vehicle-positions\"
value = \"raw\"
device_pointer = \"/device\"
time_pointer = \"/time\"
seq_pointer = \"/seq\"
[[stream]]
name = \"occupancy\"
partitions = 4
[[stream]]
name = \"vehicle-positions\"
partitions = 4
"
    )
}

/// A `[[source.serial]]` on the line at `path`.
pub fn serial_source(name: &str, path: &Path, protocol: &str) -> String {
    format!(
        "\
[[source.serial]]
name = \"{name}\"
path = \"{}\"
protocol = \"{protocol}\"
baud = 115200
",
        path.display()
    )
}

/// The agent of this workspace, or another build of it that `WAYSIDE_TEST_AGENT` names.
fn program() -> PathBuf {
    std::env::var_os("WAYSIDE_TEST_AGENT").map_or_else(|| binary("wayside"), PathBuf::from)
}

/// The body of `http://127.0.0.1:port/path`, whatever the status; `None` when nobody answers.
fn get(port: u16, path: &str) -> Option<String> {
    request(port, path, "").map(|(_, body)| body)
}

fn request(port: u16, path: &str, lines: &str) -> Option<(u16, String)> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{lines}\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
