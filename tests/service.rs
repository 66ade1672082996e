//! The agent under a service manager.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use wayside_tests::PATIENCE;
use wayside_tests::agent::{self, Agent};

const WATCHDOG: Duration = Duration::from_secs(4);

/// The end of `NOTIFY_SOCKET` that systemd has.
struct ServiceManager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl ServiceManager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, directory }
    }

    fn environment(&self) -> [(&'static str, String); 2] {
        let path = self.directory.path().join("notify").display().to_string();
        [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())]
    }

    /// Reads until what is heard begins with `beginning`.
    fn wait_for(&self, beginning: &str) {
        loop {
            let mut bytes = [0; 4096];
            let length =
                self.socket.recv(&mut bytes).unwrap_or_else(|e| panic!("not heard: {beginning}: {e}"));
            if bytes[..length].starts_with(beginning.as_bytes()) {
                return;
            }
        }
    }
}

/// A gateway whose port and Kafka are away, which is no reason not to run.
fn lonely_agent(name: &str) -> Agent {
    Agent::new(name, "127.0.0.1:9", &agent::serial_source("line", Path::new("/nowhere/tty"), "native"))
}

#[test]
fn the_service_manager_hears_that_the_agent_is_ready_alive_and_stopping() {
    let manager = ServiceManager::new();
    let mut agent = lonely_agent("service");
    agent.start_with(manager.environment());
    manager.wait_for("READY=1");
    manager.wait_for("STATUS=backlog 0 records, 0 of 1 sources connected");
    for _ in 0..2 {
        manager.wait_for("WATCHDOG=1");
    }
    agent.stop();
    manager.wait_for("STOPPING=1");
}

#[test]
fn sighup_rereads_the_log_level_and_a_broken_file_changes_nothing() {
    let mut agent = lonely_agent("sighup");
    agent.start();
    agent.configure("[telemetry]\n", "[telemetry]\nlog_level = \"info,wayside::cli=debug\"\n");
    agent.reload();
    agent.wait_for_log("telemetry.log_level changed");
    agent.configure("replication_factor = 3", "replication_factor = 5");
    agent.reload();
    agent.wait_for_log("keys=replicate.replication_factor");
    agent.configure("replication_factor = 5", "replication_factor = 500");
    agent.reload();
    agent.wait_for_log("replicate.replication_factor = 500: must be 1 to 100");
    agent.stop();
}
