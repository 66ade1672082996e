//! The agent's configuration in the demo.

use std::path::Path;

use anyhow::Context;

/// The gateway's environment: topics are named `demo.<stream>`.
pub(super) const ENVIRONMENT: &str = "demo";
/// Name of the source that takes what the MQTT loads publish.
pub(super) const MQTT_SOURCE: &str = "devices";

/// The source of what the MQTT loads publish.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// They connect to the agent.
    Listener { port: u16 },
    /// The agent is a client of their broker.
    Mqtt { url: String },
}

/// The text of `wayside.toml` for a gateway that keeps its log in `dir` and whose serial line is `dir/tty`.
///
/// # Errors
/// A directory whose name is not UTF-8.
pub(super) fn agent_config(
    dir: &Path,
    source: &Source,
    bootstrap: &str,
    telemetry_port: u16,
) -> anyhow::Result<String> {
    let dir = dir.to_str().context("the temporary directory's name is not UTF-8")?;
    // A path may hold quotes and backslashes; Rust's escapes are TOML's for those.
    let (log, tty) = (format!("{dir}/log"), format!("{dir}/tty"));
    let (kind, keys) = match source {
        Source::Listener { port } => ("listener", format!("listen = \"127.0.0.1:{port}\"")),
        Source::Mqtt { url } => ("mqtt", format!("urls = [\"{url}\"]\nversion = 3\nqos = 1")),
    };
    Ok(format!(
        r#"[gateway]
id = "demo-gateway"
environment = "{ENVIRONMENT}"

[[source.{kind}]]
name = "{MQTT_SOURCE}"
{keys}
  [[source.{kind}.route]]
  topic_filter = "building/+/+/occupancy"
  decode = "json"
  stream = "occupancy"
  value = "raw"
  device_pointer = "/device"
  time_pointer = "/time"
  seq_pointer = "/seq"
  [[source.{kind}.route]]
  topic_filter = "traffic/+/position"
  decode = "json"
  stream = "vehicle-positions"
  value = "raw"
  device_pointer = "/device"
  time_pointer = "/time"
  seq_pointer = "/seq"

[[source.serial]]
name = "line"
path = {tty:?}
protocol = "native"

[[stream]]
name = "occupancy"
partitions = 4

[[stream]]
name = "vehicle-positions"
partitions = 4

[log]
dir = {log:?}

[replicate]
bootstrap_servers = ["{bootstrap}"]
replication_factor = 1
min_insync_replicas = 1

[telemetry]
listen = "127.0.0.1:{telemetry_port}"
"#
    ))
}
