//! A real Mosquitto.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::process::{self, Process};
use crate::{PATIENCE, ports, wait_until};

/// A broker on a port of its own, which it keeps over restarts.
pub struct Mosquitto {
    port: u16,
    /// Before the directory, in which its log is: the first is dropped first.
    process: Process,
    directory: TempDir,
}

impl Mosquitto {
    /// Starts a broker that queues without bound for sessions that are away, and keeps them over a restart.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// As [`start`](Self::start), with further lines of configuration: those of another listener.
    pub fn start_with(lines: &str) -> Self {
        let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
        let port = ports::free();
        // `user root`: started by root it would else give up the right to read its own configuration here.
        let configuration = format!(
            "\
per_listener_settings true
listener {port} 127.0.0.1
allow_anonymous true
user root
max_queued_messages 0
max_inflight_messages 0
persistence true
persistence_location {}/
log_dest stderr
log_type error
log_type warning
log_type notice
log_type subscribe
{lines}
",
            directory.path().display()
        );
        std::fs::write(directory.path().join("mosquitto.conf"), configuration)
            .expect("our directory is writable");
        let process = run(&directory);
        let broker = Self { port, directory, process };
        broker.wait_ready();
        broker
    }

    /// The broker's address, as in the agent's `urls`.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The id of the running process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops the broker with SIGTERM, on which it saves its sessions.
    pub fn stop(&mut self) {
        self.process.terminate(PATIENCE);
    }

    /// Kills the broker with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the broker again after [`stop`](Self::stop) or [`kill`](Self::kill).
    pub fn start_again(&mut self) {
        self.process = run(&self.directory);
        self.wait_ready();
    }

    /// Waits until some client has subscribed to `topic_filter`.
    #[track_caller]
    pub fn wait_subscribed(&self, topic_filter: &str) {
        let what = format!("a subscription to {topic_filter}");
        let line_end = format!(" {topic_filter}");
        wait_until(PATIENCE, &what, || {
            self.process.log().lines().any(|line| line.ends_with(&line_end)).then_some(())
        });
    }

    fn wait_ready(&self) {
        wait_until(PATIENCE, "Mosquitto listens", || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).ok().map(drop)
        });
    }
}

fn run(directory: &TempDir) -> Process {
    let mut command = process::command(program());
    command.arg("-c").arg(directory.path().join("mosquitto.conf"));
    Process::start("mosquitto", command, &directory.path().join("mosquitto.log"))
}

/// Debian installs the broker where only root's search path looks.
fn program() -> PathBuf {
    let debian = PathBuf::from("/usr/sbin/mosquitto");
    if debian.exists() { debian } else { PathBuf::from("mosquitto") }
}
