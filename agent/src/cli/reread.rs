//! SIGHUP: the configuration is read again, and what can change while the agent runs changes. What the agent shows to others,
//! secrets and certificates, needs no signal: it is read for each connection. The files by which it lets others in are read again
//! by the sources that have them ([`kept`](crate::kept)).

use std::path::PathBuf;

use serde_json::Value;
use tracing::{error, info, warn};

use crate::{
    config::{check, raw::RawConfig},
    telemetry::LogLevel,
};

/// The configuration that the agent runs with, and what can be changed of it.
pub(super) struct Running {
    /// The file.
    pub(super) path: PathBuf,
    /// What the agent started with, and what was changed since.
    pub(super) raw: RawConfig,
    /// The level of its log.
    pub(super) log_level: LogLevel,
}

impl Running {
    /// Reads the file again and says in the log what came of it. A file with a fault changes nothing.
    pub(super) fn reread(&mut self) {
        let path = self.path.display();
        let new = match check::load(&self.path) {
            Ok(checked) => checked.raw,
            Err(cause) => {
                error!(file = %path, %cause, "SIGHUP: the file is not good; going on with the configuration as it was");
                return;
            }
        };
        // What can change while the agent runs; whatever is added here is taken over into `raw`.
        let level = &new.telemetry.log_level;
        if *level != self.raw.telemetry.log_level {
            match self.log_level.set(level) {
                Ok(()) => {
                    info!(
                        from = self.raw.telemetry.log_level,
                        to = level,
                        "SIGHUP: telemetry.log_level changed"
                    );
                    self.raw.telemetry.log_level.clone_from(level);
                }
                Err(cause) => error!(%cause, "SIGHUP: telemetry.log_level cannot be changed"),
            }
        }
        let waiting = differences(&self.raw, &new);
        if waiting.is_empty() {
            info!(file = %path, "SIGHUP: the agent runs with what the file says");
        } else {
            warn!(keys = waiting.join(", "), "SIGHUP: these keys changed and need a restart");
        }
    }
}

/// The keys that are not the same in both.
fn differences(a: &RawConfig, b: &RawConfig) -> Vec<String> {
    // Only keys that are no text cannot be JSON's, and there are none.
    let json = |raw| serde_json::to_value(raw).unwrap_or_default();
    let mut keys = Vec::new();
    compare("", &json(a), &json(b), &mut keys);
    keys
}

fn compare(key: &str, a: &Value, b: &Value, keys: &mut Vec<String>) {
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        let missing = b.keys().filter(|name| !a.contains_key(*name));
        for name in a.keys().chain(missing) {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            compare(&key, a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), keys);
        }
    } else if a != b {
        keys.push(key.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::RawMqttSource;

    #[test]
    fn what_needs_a_restart_is_named_key_by_key() {
        let a = RawConfig::default();
        let mut b = a.clone();
        assert_eq!(differences(&a, &b), Vec::<String>::new());
        b.commit.window_ms += 1;
        b.replicate.properties.insert("client.rack".into(), "a".into());
        b.source.mqtt.push(RawMqttSource::default());
        assert_eq!(
            differences(&a, &b),
            ["commit.window_ms", "replicate.properties.client.rack", "source.mqtt"]
        );
    }

    #[test]
    fn a_good_file_changes_the_level_and_a_broken_one_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = |level: &str| {
            format!(
                "gateway.id = \"g\"\ntelemetry.log_level = \"{level}\"\nreplicate.bootstrap_servers = [\"k:9092\"]\n\
                 [[source.serial]]\nname = \"s\"\npath = \"/dev/null\"\nprotocol = \"native\""
            )
        };
        let write = |text: String| std::fs::write(file.path(), text).expect("written");
        write(text("info"));
        let raw = check::load(file.path()).expect("good").raw;
        let (_layer, log_level) = LogLevel::new("info");
        let mut running = Running { path: file.path().to_owned(), raw, log_level };
        assert_eq!(running.log_level.current(), "info");
        write(text("wayside=debug"));
        running.reread();
        assert_eq!(running.log_level.current(), "wayside=debug");
        write(text("=="));
        running.reread();
        assert_eq!(running.log_level.current(), "wayside=debug", "a broken file changes nothing");
        assert_eq!(running.raw.telemetry.log_level, "wayside=debug");
    }
}
