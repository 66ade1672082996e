//! Telegraf between a broker and Kafka, for comparison.

use std::path::Path;

use tempfile::TempDir;

use crate::PATIENCE;
use crate::process::{self, Process};

/// A running Telegraf that takes vehicle positions from a broker and acknowledges each once Kafka has it.
pub struct Telegraf {
    /// Before the directory, in which its log is: the first is dropped first.
    process: Process,
    _directory: TempDir,
}

impl Telegraf {
    /// Starts `binary` from the broker at `url` to `topic`. It batches as it does by default, but waits for a batch a second,
    /// not ten.
    pub fn start(binary: &Path, url: &str, bootstrap_servers: &str, topic: &str) -> Self {
        let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
        let file = directory.path().join("telegraf.conf");
        let server = url.replacen("mqtt:", "tcp:", 1);
        let brokers = bootstrap_servers.replace(',', "\", \"");
        let configuration = format!(
            r#"
[agent]
flush_interval = "1s"
omit_hostname = true
[[inputs.mqtt_consumer]]
servers = ["{server}"]
topics = ["traffic/+/position"]
qos = 1
persistent_session = true
client_id = "telegraf"
data_format = "value"
data_type = "string"
[[outputs.kafka]]
brokers = ["{brokers}"]
topic = "{topic}"
required_acks = -1
compression_codec = 4
routing_tag = "topic"
data_format = "json"
"#
        );
        std::fs::write(&file, configuration).expect("our directory is writable");
        let mut command = process::command(binary);
        command.arg("--config").arg(&file);
        let process = Process::start("telegraf", command, &directory.path().join("telegraf.log"));
        Self { process, _directory: directory }
    }

    /// The id of the running process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops it with SIGTERM.
    pub fn stop(&mut self) {
        self.process.terminate(PATIENCE);
    }
}
