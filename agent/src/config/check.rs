//! From [`RawConfig`] to [`Config`]: every range and relation checked, all errors at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU16,
    path::Path,
    time::Duration,
};

use super::{
    Backoff, Broker, Commit, Compression, Config, DeviceFrom, FlowControl, Gateway, Log, LogFormat,
    MqttSource, MqttVersion, Parity, Qos, Replicate, Route, RouteDecode, SerialProtocol, SerialSource,
    Stream, Telemetry, Value,
    raw::{RawConfig, RawMqttSource, RawReplicate, RawRoute, RawSerialSource},
};
use crate::{
    decode::topic::TopicPattern,
    log::RECORD_BYTES_MAX,
    record::{DeviceId, StreamName},
    replicate::check_properties,
};

/// Why a file is no configuration. Its text has one line per fault; each names key, value and limit.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or a type that is not known.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: String,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// Values that cannot be.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// One value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, as a path: `source.mqtt[0].qos`.
    pub key: String,
    /// What is there, as typed.
    pub value: String,
    /// What would be right.
    pub limit: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.value, self.limit)
    }
}

/// Reads and checks the file at `path`.
///
/// # Errors
/// [`ConfigError`]; the caller prints it and stops.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
    let raw: RawConfig = toml::from_str(&text)
        .map_err(|source| ConfigError::Syntax { path: shown, source: Box::new(source) })?;
    Config::try_from(raw)
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let mut check = Checker::default();
        let gateway = Gateway {
            id: check.name("gateway.id", &raw.gateway.id),
            environment: check.name("gateway.environment", &raw.gateway.environment),
        };
        let mut names = BTreeSet::new();
        let mqtt: Vec<_> = each(&raw.source.mqtt, "source.mqtt", |key, source| {
            check.unique(&format!("{key}.name"), &source.name, &mut names);
            check.mqtt(&key, source, &gateway.id)
        });
        let serial: Vec<_> = each(&raw.source.serial, "source.serial", |key, source| {
            check.unique(&format!("{key}.name"), &source.name, &mut names);
            check.serial(&key, source)
        });
        if raw.source.mqtt.is_empty() && raw.source.serial.is_empty() {
            check.fault("source", "", "at least one [[source.mqtt]] or [[source.serial]]");
        }
        let mut streams = BTreeMap::new();
        for (i, stream) in raw.stream.iter().enumerate() {
            let key = format!("stream[{i}]");
            let name = check.stream(&format!("{key}.name"), &stream.name);
            let partitions = check.range(&format!("{key}.partitions"), stream.partitions, 1, 10_000);
            let partitions = NonZeroU16::new(partitions).unwrap_or(NonZeroU16::MIN);
            if let Some(name) = name
                && streams.insert(name, Stream { partitions }).is_some()
            {
                check.fault(
                    &format!("{key}.name"),
                    &quoted(&stream.name),
                    "already the name of another [[stream]]",
                );
            }
        }
        let commit = Commit {
            window: Duration::from_millis(check.range("commit.window_ms", raw.commit.window_ms, 0, 10_000)),
            batch_bytes: check.bytes("commit.batch_bytes", raw.commit.batch_bytes, 4 << 10, 16 << 20),
            intake_bytes: check.bytes("commit.intake_bytes", raw.commit.intake_bytes, 64 << 10, 256 << 20),
        };
        if raw.commit.intake_bytes < raw.commit.batch_bytes {
            check.fault(
                "commit.intake_bytes",
                &raw.commit.intake_bytes.to_string(),
                "at least commit.batch_bytes",
            );
        }
        let log = Log {
            dir: check.filled("log.dir", &raw.log.dir).into(),
            epoch_bytes: check.range("log.epoch_bytes", raw.log.epoch_bytes, 256 << 10, 64 << 20),
            record_bytes_max: check.bytes(
                "log.record_bytes_max",
                raw.log.record_bytes_max.into(),
                1 << 10,
                RECORD_BYTES_MAX as u64,
            ),
            compression: check.compression("commit.compression", &raw.commit.compression),
        };
        let replicate = check.replicate(&raw.replicate);
        let telemetry = Telemetry {
            listen: (!raw.telemetry.listen.is_empty())
                .then(|| {
                    check.parse("telemetry.listen", &raw.telemetry.listen, "host address and port, or empty")
                })
                .flatten(),
            log_format: check
                .choice(
                    "telemetry.log_format",
                    &raw.telemetry.log_format,
                    &[("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)],
                )
                .unwrap_or(LogFormat::Logfmt),
            log_level: check.log_level("telemetry.log_level", &raw.telemetry.log_level),
        };
        let config = Self { gateway, mqtt, serial, streams, commit, log, replicate, telemetry };
        if check.faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(check.faults)) }
    }
}

/// Applies `check` to each of a list of sections, with its key.
fn each<R, T>(sections: &[R], key: &str, mut check: impl FnMut(String, &R) -> T) -> Vec<T> {
    sections.iter().enumerate().map(|(i, section)| check(format!("{key}[{i}]"), section)).collect()
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// Collects faults. Its checks return a value in any case, so that one pass finds all of them.
#[derive(Default)]
struct Checker {
    faults: Vec<Fault>,
}

impl Checker {
    fn fault(&mut self, key: &str, value: &str, limit: &str) {
        self.faults.push(Fault { key: key.into(), value: value.into(), limit: limit.into() });
    }

    fn range<T: PartialOrd + fmt::Display + Copy>(&mut self, key: &str, value: T, min: T, max: T) -> T {
        if value < min || value > max {
            self.fault(key, &value.to_string(), &format!("must be {min} to {max}"));
        }
        value
    }

    fn bytes(&mut self, key: &str, value: u64, min: u64, max: u64) -> usize {
        usize::try_from(self.range(key, value, min, max)).unwrap_or(usize::MAX)
    }

    fn filled(&mut self, key: &str, value: &str) -> String {
        if value.is_empty() {
            self.fault(key, "\"\"", "must be set");
        }
        value.into()
    }

    /// A name that becomes a part of a topic or client id.
    fn name(&mut self, key: &str, value: &str) -> String {
        self.stream(key, value);
        value.into()
    }

    fn unique(&mut self, key: &str, value: &str, seen: &mut BTreeSet<String>) {
        self.name(key, value);
        if !value.is_empty() && !seen.insert(value.into()) {
            self.fault(key, &quoted(value), "already the name of another source");
        }
    }

    fn stream(&mut self, key: &str, value: &str) -> Option<StreamName> {
        StreamName::new(value).map_err(|error| self.fault(key, &quoted(value), &error.to_string())).ok()
    }

    fn parse<T: std::str::FromStr>(&mut self, key: &str, value: &str, limit: &str) -> Option<T> {
        value.parse().map_err(|_| self.fault(key, &quoted(value), limit)).ok()
    }

    fn choice<T: Copy>(&mut self, key: &str, value: &str, choices: &[(&str, T)]) -> Option<T> {
        let found = choices.iter().find(|(name, _)| *name == value).map(|(_, choice)| *choice);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| quoted(name)).collect();
            self.fault(key, &quoted(value), &format!("must be one of {}", names.join(", ")));
        }
        found
    }

    fn compression(&mut self, key: &str, value: &str) -> Compression {
        let choices = [("zstd", Compression::Zstd), ("lz4", Compression::Lz4), ("none", Compression::None)];
        self.choice(key, value, &choices).unwrap_or_default()
    }

    fn log_level(&mut self, key: &str, value: &str) -> String {
        if let Err(error) = value.parse::<tracing_subscriber::EnvFilter>() {
            self.fault(key, &quoted(value), &format!("is no level or filter: {error}"));
        }
        value.into()
    }

    fn value(&mut self, key: &str, value: &str, default: Value) -> Value {
        if value.is_empty() {
            return default;
        }
        self.choice(key, value, &[("raw", Value::Raw), ("json", Value::Json)]).unwrap_or(default)
    }

    fn backoff(&mut self, min: (&str, u64), max: (&str, u64)) -> Backoff {
        self.range(min.0, min.1, 1, 3_600_000);
        self.range(max.0, max.1, 1, 3_600_000);
        if max.1 < min.1 {
            self.fault(max.0, &max.1.to_string(), &format!("at least {} = {}", min.0, min.1));
        }
        Backoff { min: Duration::from_millis(min.1), max: Duration::from_millis(max.1) }
    }

    fn mqtt(&mut self, key: &str, raw: &RawMqttSource, gateway_id: &str) -> MqttSource {
        let at = |name: &str| format!("{key}.{name}");
        if raw.urls.is_empty() {
            self.fault(&at("urls"), "[]", "at least one broker, mqtt://host:port");
        }
        if raw.route.is_empty() {
            self.fault(&at("route"), "[]", "at least one [[source.mqtt.route]]");
        }
        let client_id = match raw.client_id.as_str() {
            "" => format!("wayside-{gateway_id}-{}", raw.name),
            id => id.to_owned(),
        };
        MqttSource {
            name: raw.name.clone(),
            brokers: each(&raw.urls, &at("urls"), |key, url| self.broker(&key, url))
                .into_iter()
                .flatten()
                .collect(),
            version: match raw.version {
                5 => MqttVersion::V5,
                3 => MqttVersion::V3,
                other => {
                    self.fault(&at("version"), &other.to_string(), "must be 5, or 3 for MQTT 3.1.1");
                    MqttVersion::V5
                }
            },
            client_id,
            qos: match raw.qos {
                0 => Qos::AtMostOnce,
                1 => Qos::AtLeastOnce,
                2 => Qos::ExactlyOnce,
                other => {
                    self.fault(&at("qos"), &other.to_string(), "must be 0, 1 or 2");
                    Qos::AtLeastOnce
                }
            },
            keep_alive: Duration::from_secs(
                self.range(&at("keep_alive_s"), raw.keep_alive_s, 5, 3600).into(),
            ),
            session_expiry_s: raw.session_expiry_s,
            receive_maximum: self.range(&at("receive_maximum"), raw.receive_maximum, 1, u16::MAX),
            max_packet_bytes: self.range(&at("max_packet_bytes"), raw.max_packet_bytes, 1 << 10, 64 << 20),
            reconnect: self.backoff(
                (&at("reconnect_min_ms"), raw.reconnect_min_ms),
                (&at("reconnect_max_ms"), raw.reconnect_max_ms),
            ),
            routes: each(&raw.route, &at("route"), |key, route| self.route(&key, route))
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    fn broker(&mut self, key: &str, url: &str) -> Option<Broker> {
        let address = url.strip_prefix("mqtt://").map(|rest| rest.trim_end_matches('/'));
        // The port is behind the last colon, but an IPv6 address has colons of its own, inside brackets.
        let broker = address.and_then(|address| match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => port.parse().ok().map(|port| (host, port)),
            _ => Some((address, 1883)),
        });
        match broker {
            Some((host, port)) if !host.is_empty() => {
                Some(Broker { host: host.trim_start_matches('[').trim_end_matches(']').into(), port })
            }
            _ => {
                self.fault(key, &quoted(url), "must be mqtt://host or mqtt://host:port");
                None
            }
        }
    }

    fn route(&mut self, key: &str, raw: &RawRoute) -> Option<Route> {
        let at = |name: &str| format!("{key}.{name}");
        if !rumqttc::valid_filter(&raw.topic_filter) {
            self.fault(&at("topic_filter"), &quoted(&raw.topic_filter), "must be an MQTT topic filter");
        }
        let kinds = [("json", 0), ("hfp", 1), ("raw", 2), ("native", 3)];
        let kind = self.choice(&at("decode"), &raw.decode, &kinds)?;
        let pointers = [
            ("device_pointer", &raw.device_pointer),
            ("time_pointer", &raw.time_pointer),
            ("seq_pointer", &raw.seq_pointer),
        ];
        for (name, value) in pointers {
            if kind != 0 && !value.is_empty() {
                self.fault(&at(name), &quoted(value), "only for decode = \"json\"");
            } else if !value.is_empty() && !value.starts_with('/') {
                self.fault(&at(name), &quoted(value), "must be a JSON pointer, beginning with /");
            }
        }
        if matches!(kind, 1 | 3) && !raw.device_topic.is_empty() {
            self.fault(
                &at("device_topic"),
                &quoted(&raw.device_topic),
                "only for decode = \"raw\" and \"json\"",
            );
        }
        if kind == 3 && !raw.stream.is_empty() {
            self.fault(
                &at("stream"),
                &quoted(&raw.stream),
                "not for decode = \"native\": each schema has its own",
            );
        }
        if !raw.device_topic.is_empty() {
            self.device_topic(&at("device_topic"), &raw.device_topic);
        }
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut stream = || self.stream(&at("stream"), &raw.stream);
        let decode = match kind {
            0 => {
                let stream = stream()?;
                let device = match (filled(&raw.device_pointer), filled(&raw.device_topic)) {
                    (Some(pointer), None) => DeviceFrom::Pointer(pointer),
                    (None, Some(topic)) => DeviceFrom::Topic(topic),
                    _ => {
                        let value = quoted(&raw.device_pointer);
                        self.fault(
                            &at("device_pointer"),
                            &value,
                            "exactly one of device_pointer and device_topic must be set",
                        );
                        return None;
                    }
                };
                let (time_pointer, seq_pointer) = (filled(&raw.time_pointer), filled(&raw.seq_pointer));
                RouteDecode::Json { stream, device, time_pointer, seq_pointer }
            }
            1 => RouteDecode::Hfp { stream: stream()? },
            2 => {
                let stream = stream()?;
                let device_topic = filled(&raw.device_topic);
                if device_topic.is_none() {
                    self.fault(&at("device_topic"), "\"\"", "must be set for decode = \"raw\"");
                }
                RouteDecode::Raw { stream, device_topic: device_topic? }
            }
            _ => RouteDecode::Native,
        };
        let default = if kind == 3 { Value::Json } else { Value::Raw };
        let value = self.value(&at("value"), &raw.value, default);
        if kind == 2 && value == Value::Json {
            self.fault(&at("value"), &quoted(&raw.value), "must be \"raw\" for decode = \"raw\"");
        }
        Some(Route { topic_filter: raw.topic_filter.clone(), decode, value })
    }

    fn device_topic(&mut self, key: &str, pattern: &str) {
        if let Err(cause) = TopicPattern::new(pattern) {
            self.fault(key, &quoted(pattern), &cause.to_string());
        }
    }

    fn serial(&mut self, key: &str, raw: &RawSerialSource) -> SerialSource {
        let at = |name: &str| format!("{key}.{name}");
        let protocols = [("native", false), ("nmea", true)];
        let protocol = if self.choice(&at("protocol"), &raw.protocol, &protocols) == Some(true) {
            let device = if raw.device.is_empty() { &raw.name } else { &raw.device };
            let device =
                DeviceId::new(device).map_err(|e| self.fault(&at("device"), &quoted(device), &e.to_string()));
            let stream = self.stream(&at("stream"), &raw.stream);
            let raw_stream = self.stream(&at("raw_stream"), &raw.raw_stream);
            match (stream, raw_stream, device) {
                (Some(stream), Some(raw_stream), Ok(device)) => {
                    SerialProtocol::Nmea { stream, raw_stream, device }
                }
                _ => SerialProtocol::Native, // faults are noted, the value is not used
            }
        } else {
            SerialProtocol::Native
        };
        let parities = [("none", Parity::None), ("even", Parity::Even), ("odd", Parity::Odd)];
        let flows = [
            ("none", FlowControl::None),
            ("hardware", FlowControl::Hardware),
            ("software", FlowControl::Software),
        ];
        let flow_control =
            self.choice(&at("flow_control"), &raw.flow_control, &flows).unwrap_or(FlowControl::None);
        if protocol == SerialProtocol::Native && flow_control == FlowControl::Software {
            self.fault(
                &at("flow_control"),
                "\"software\"",
                "native frames hold XON and XOFF bytes: \"none\" or \"hardware\"",
            );
        }
        SerialSource {
            name: raw.name.clone(),
            path: self.filled(&at("path"), &raw.path).into(),
            protocol,
            baud: self.range(&at("baud"), raw.baud, 300, 4_000_000),
            parity: self.choice(&at("parity"), &raw.parity, &parities).unwrap_or(Parity::None),
            flow_control,
            value: self.value(&at("value"), &raw.value, Value::Json),
            reopen: self.backoff(
                (&at("reopen_min_ms"), raw.reopen_min_ms),
                (&at("reopen_max_ms"), raw.reopen_max_ms),
            ),
        }
    }

    fn replicate(&mut self, raw: &RawReplicate) -> Replicate {
        if raw.bootstrap_servers.is_empty() {
            self.fault("replicate.bootstrap_servers", "[]", "at least one host:port");
        }
        for (i, server) in raw.bootstrap_servers.iter().enumerate() {
            let port = server
                .rsplit_once(':')
                .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>()));
            if !matches!(port, Some(Ok(1..))) {
                self.fault(
                    &format!("replicate.bootstrap_servers[{i}]"),
                    &quoted(server),
                    "must be host:port",
                );
            }
        }
        let replication_factor = self.range("replicate.replication_factor", raw.replication_factor, 1, 100);
        let min_insync_replicas =
            self.range("replicate.min_insync_replicas", raw.min_insync_replicas, 1, 100);
        if min_insync_replicas > replication_factor {
            self.fault(
                "replicate.min_insync_replicas",
                &min_insync_replicas.to_string(),
                &format!("at most replicate.replication_factor = {replication_factor}"),
            );
        }
        if let Err(cause) = check_properties(&raw.properties) {
            self.fault("replicate.properties", "{..}", &cause.to_string());
        }
        Replicate {
            bootstrap_servers: raw.bootstrap_servers.clone(),
            replication_factor,
            min_insync_replicas,
            compression: self.compression("replicate.compression", &raw.compression),
            linger: Duration::from_millis(self.range("replicate.linger_ms", raw.linger_ms, 0, 60_000)),
            in_flight_bytes: self.bytes(
                "replicate.in_flight_bytes",
                raw.in_flight_bytes,
                128 << 10,
                256 << 20,
            ),
            cursor_interval: Duration::from_millis(self.range(
                "replicate.cursor_interval_ms",
                raw.cursor_interval_ms,
                10,
                600_000,
            )),
            shutdown_flush: Duration::from_millis(self.range(
                "replicate.shutdown_flush_ms",
                raw.shutdown_flush_ms,
                0,
                600_000,
            )),
            properties: raw.properties.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        gateway.id = "gw-1"
        [[source.mqtt]]
        name = "broker"
        urls = ["mqtt://127.0.0.1:1883", "mqtt://[::1]"]
        [[source.mqtt.route]]
        topic_filter = "building/+/+/occupancy"
        decode = "json"
        stream = "occupancy"
        device_pointer = "/device"
        [replicate]
        bootstrap_servers = ["127.0.0.1:9092"]
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::try_from(toml::from_str::<RawConfig>(text).expect("valid TOML"))
    }

    /// Asserts that `text` has exactly the faults `expected`, each given as `key = value`.
    fn check_faults(text: &str, expected: &[&str]) {
        let Err(ConfigError::Faults(faults)) = parse(text) else { panic!("no faults found in {text}") };
        let found: Vec<_> = faults.iter().map(|fault| format!("{} = {}", fault.key, fault.value)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_small_config_takes_the_defaults() {
        let config = parse(GOOD).expect("good");
        assert_eq!(config.commit.window, Duration::from_millis(20));
        assert_eq!(config.mqtt[0].client_id, "wayside-gw-1-broker");
        assert_eq!(config.mqtt[0].version, MqttVersion::V5);
        assert_eq!(config.mqtt[0].brokers[1], Broker { host: "::1".into(), port: 1883 });
        assert_eq!(config.partitions("occupancy").get(), 4);
    }

    #[test]
    fn an_empty_config_names_everything_that_must_be_set() {
        check_faults("", &["gateway.id = \"\"", "source = ", "replicate.bootstrap_servers = []"]);
    }

    #[test]
    fn all_faults_are_found_in_one_pass() {
        let text = GOOD
            .replace("name = \"broker\"", "name = \"broker\"\nqos = 3\nversion = 4\nkeep_alive_s = 1")
            + "min_insync_replicas = 5\n[commit]\nwindow_ms = 60000\ncompression = \"gzip\"\n[telemetry]\nlisten = \"nowhere\"";
        check_faults(
            &text,
            &[
                "source.mqtt[0].version = 4",
                "source.mqtt[0].qos = 3",
                "source.mqtt[0].keep_alive_s = 1",
                "commit.window_ms = 60000",
                "commit.compression = \"gzip\"",
                "replicate.min_insync_replicas = 5",
                "telemetry.listen = \"nowhere\"",
            ],
        );
    }

    #[test]
    fn a_route_says_what_its_decoder_needs() {
        let route = |lines: &str| {
            format!(
                "gateway.id = \"g\"\n[replicate]\nbootstrap_servers = [\"k:9092\"]\n[[source.mqtt]]\nname = \"b\"\n\
                 urls = [\"mqtt://b\"]\n[[source.mqtt.route]]\n{lines}"
            )
        };
        check_faults(
            &route("topic_filter = \"a/#/b\"\ndecode = \"native\""),
            &["source.mqtt[0].route[0].topic_filter = \"a/#/b\""],
        );
        check_faults(
            &route("topic_filter = \"a\"\ndecode = \"raw\"\nstream = \"s\""),
            &["source.mqtt[0].route[0].device_topic = \"\""],
        );
        check_faults(
            &route("topic_filter = \"a\"\ndecode = \"raw\"\nstream = \"s\"\ndevice_topic = \"a/{dev}\""),
            &["source.mqtt[0].route[0].device_topic = \"a/{dev}\""],
        );
        check_faults(
            &route("topic_filter = \"a\"\ndecode = \"json\"\nstream = \"s\"\ndevice_pointer = \"device\""),
            &["source.mqtt[0].route[0].device_pointer = \"device\""],
        );
        check_faults(
            &route("topic_filter = \"a\"\ndecode = \"xml\""),
            &["source.mqtt[0].route[0].decode = \"xml\""],
        );
    }

    #[test]
    fn two_sources_may_not_share_a_name() {
        let text = format!(
            "{GOOD}\n[[source.serial]]\nname = \"broker\"\npath = \"/dev/ttyUSB0\"\nprotocol = \"native\""
        );
        check_faults(&text, &["source.serial[0].name = \"broker\""]);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let error = toml::from_str::<RawConfig>("[commit]\nwindow = 3").expect_err("unknown key").to_string();
        assert!(error.contains("window") && error.contains("window_ms"), "{error}");
    }
}
