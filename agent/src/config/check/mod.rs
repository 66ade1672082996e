//! From a file and the environment to [`Config`]: every key, type, range and relation checked, all errors at once.

mod shape;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt::{self, Write as _},
    num::NonZeroU16,
    path::Path,
    time::Duration,
};

use super::{
    Backoff, Commit, Config, GAPS_STREAM, Gateway, Log, Policy, Replicate, Stream, Telemetry,
    raw::{self, RawConfig, RawReplicate},
};
use crate::{log::Retention, record::StreamName, replicate::check_properties};
use serde::Deserialize as _;
use shape::{PREFIX, Shaped, shape};

/// Why a file is no configuration. Its text has one line per fault; each names key, value and limit.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the file (--config names another)")]
    Read(#[from] std::io::Error),
    /// The file is not TOML.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Syntax(Vec<toml::de::Error>),
    /// Keys and values that cannot be, in the order of the file; those of the environment behind.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// One value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it stands, or where it would.
    pub place: Option<Place>,
    /// The key, as a path: `source.mqtt[0].qos`.
    pub key: String,
    /// What is there, as typed; empty if nothing is.
    pub value: String,
    /// What would be right.
    pub limit: String,
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Line of the file, from 1.
    Line(usize),
    /// Variable of the environment.
    Variable(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Some(Place::Line(line)) => format!("line {line}: {}", self.key),
            Some(Place::Variable(name)) => name.clone(),
            None => self.key.clone(),
        };
        let value = if self.value.is_empty() { String::new() } else { format!(" = {}", self.value) };
        // Keys and values are anybody's text: a line end in one must not look like a fault of its own, nor a control
        // character reach the terminal.
        for c in format!("{place}{value}: {}", self.limit).chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

/// A configuration as it was typed, and what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// With every default filled in.
    pub raw: RawConfig,
    /// What the agent runs with.
    pub config: Config,
}

/// Reads and checks the file at `path`, with what the environment sets over it: `WAYSIDE__COMMIT__WINDOW_MS=50` is
/// `commit.window_ms = 50`.
///
/// # Errors
/// [`ConfigError`]; the caller prints it and stops.
pub fn load(path: &Path) -> Result<Checked, ConfigError> {
    let mut variables: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    variables.sort();
    parse(&std::fs::read_to_string(path)?, &variables)
}

/// Checks the text of a file, and `variables` with their values over it.
///
/// # Errors
/// [`ConfigError`], but not [`ConfigError::Read`].
pub fn parse(text: &str, variables: &[(String, OsString)]) -> Result<Checked, ConfigError> {
    let schema = raw::schema();
    let Shaped { table, mut faults, places } =
        shape(text, variables, schema.as_value()).map_err(ConfigError::Syntax)?;
    let raw = RawConfig::deserialize(toml::Deserializer::from(table))
        .map_err(|error| ConfigError::Syntax(vec![error]))?;
    let (config, more) = check(&raw);
    // What was taken out for a fault of its own may be missed by its neighbours: that is no second fault.
    let taken_out: Vec<String> = faults.iter().map(|fault| fault.key.clone()).collect();
    faults.extend(more.into_iter().filter(|fault| !taken_out.iter().any(|key| related(key, &fault.key))));
    for fault in &mut faults {
        fault.place = fault.place.take().or_else(|| place_of(&fault.key, &places));
    }
    faults.sort_by_key(|fault| (fault.place.is_none(), fault.place.clone()));
    if faults.is_empty() { Ok(Checked { raw, config }) } else { Err(ConfigError::Faults(faults)) }
}

/// Whether one of two keys is within the other, or the same.
fn related(a: &str, b: &str) -> bool {
    let (outer, inner) = if a.len() < b.len() { (a, b) } else { (b, a) };
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Where `key` stands, or what it belongs to.
fn place_of(key: &str, places: &BTreeMap<String, Place>) -> Option<Place> {
    let mut key = key;
    loop {
        if let Some(place) = places.get(key) {
            return Some(place.clone());
        }
        key = &key[..key.rfind(['.', '['])?];
    }
}

/// What `raw` means, and what in it cannot be. The configuration is of no use if there are faults.
fn check(raw: &RawConfig) -> (Config, Vec<Fault>) {
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
    let listener: Vec<_> = each(&raw.source.listener, "source.listener", |key, source| {
        check.unique(&format!("{key}.name"), &source.name, &mut names);
        check.listener(&key, source)
    });
    let serial: Vec<_> = each(&raw.source.serial, "source.serial", |key, source| {
        check.unique(&format!("{key}.name"), &source.name, &mut names);
        check.serial(&key, source)
    });
    check.sources_apart(&mqtt, &listener, &serial);
    if raw.source.mqtt.is_empty() && raw.source.listener.is_empty() && raw.source.serial.is_empty() {
        check.fault("source", "", "at least one [[source.mqtt]], [[source.listener]] or [[source.serial]]");
    }
    let mut streams = BTreeMap::new();
    for (i, stream) in raw.stream.iter().enumerate() {
        let key = format!("stream[{i}]");
        let name = check.stream(&format!("{key}.name"), &stream.name);
        let partitions = stream.partitions;
        let partitions = NonZeroU16::new(partitions).unwrap_or(NonZeroU16::MIN);
        let policy = stream.policy;
        if stream.name == GAPS_STREAM && policy != Policy::Block {
            check.fault(
                &format!("{key}.policy"),
                "",
                "gap records are what tells of drops: they are not dropped",
            );
        }
        if let Some(name) = name
            && streams.insert(name, Stream { partitions, policy }).is_some()
        {
            check.fault(
                &format!("{key}.name"),
                &quoted(&stream.name),
                "already the name of another [[stream]]",
            );
        }
    }
    let commit = Commit {
        window: Duration::from_millis(raw.commit.window_ms),
        batch_bytes: size(raw.commit.batch_bytes),
        intake_bytes: size(raw.commit.intake_bytes),
    };
    if raw.commit.intake_bytes < raw.commit.batch_bytes {
        check.fault(
            "commit.intake_bytes",
            &raw.commit.intake_bytes.to_string(),
            "at least commit.batch_bytes",
        );
    }
    let drops_old = streams.values().any(|stream: &Stream| stream.policy.drops_stored());
    let spared_bytes = if drops_old { raw.replicate.in_flight_bytes.saturating_mul(2) } else { 0 };
    let least_bytes = raw.log.epoch_bytes.saturating_mul(4).saturating_add(spared_bytes);
    if raw.log.limit_bytes != 0 && raw.log.limit_bytes < least_bytes {
        check.fault(
            "log.limit_bytes",
            &raw.log.limit_bytes.to_string(),
            &if drops_old {
                format!(
                    "at least {least_bytes}: 4 times log.epoch_bytes and, since a stream drops what is old, 2 times \
                     replicate.in_flight_bytes; or 0"
                )
            } else {
                format!("at least 4 times log.epoch_bytes = {}, or 0", raw.log.epoch_bytes)
            },
        );
    }
    let log = Log {
        dir: check.filled("log.dir", &raw.log.dir).into(),
        limit_bytes: Some(raw.log.limit_bytes).filter(|limit| *limit != 0),
        retention: Retention {
            bytes: raw.log.retain_bytes,
            time: Some(Duration::from_millis(raw.log.retain_ms)).filter(|time| !time.is_zero()),
        },
        epoch_bytes: raw.log.epoch_bytes,
        record_bytes_max: size(raw.log.record_bytes_max.into()),
        compression: raw.commit.compression,
    };
    let replicate = check.replicate(&raw.replicate);
    let telemetry = Telemetry {
        listen: (!raw.telemetry.listen.is_empty())
            .then(|| {
                check.parse("telemetry.listen", &raw.telemetry.listen, "host address and port, or empty")
            })
            .flatten(),
        log_format: raw.telemetry.log_format,
        log_level: check.log_level("telemetry.log_level", &raw.telemetry.log_level),
    };
    let config = Config {
        gateway,
        mqtt,
        listener: listener.into_iter().flatten().collect(),
        serial,
        streams,
        commit,
        log,
        replicate,
        telemetry,
    };
    (config, check.faults)
}

/// Applies `check` to each of a list of sections, with its key.
fn each<R, T>(sections: &[R], key: &str, mut check: impl FnMut(String, &R) -> T) -> Vec<T> {
    sections.iter().enumerate().map(|(i, section)| check(format!("{key}[{i}]"), section)).collect()
}

/// A size that the schema bounds.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
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
        self.faults.push(Fault { place: None, key: key.into(), value: value.into(), limit: limit.into() });
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

    fn log_level(&mut self, key: &str, value: &str) -> String {
        if let Err(error) = value.parse::<tracing_subscriber::filter::Targets>() {
            self.fault(key, &quoted(value), &format!("is no level or filter: {error}"));
        }
        value.into()
    }

    fn backoff(&mut self, min: (&str, u64), max: (&str, u64)) -> Backoff {
        if max.1 < min.1 {
            self.fault(max.0, &max.1.to_string(), &format!("at least {} = {}", min.0, min.1));
        }
        Backoff { min: Duration::from_millis(min.1), max: Duration::from_millis(max.1) }
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
        let replication_factor = raw.replication_factor;
        let min_insync_replicas = raw.min_insync_replicas;
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
            compression: raw.compression,
            linger: Duration::from_millis(raw.linger_ms),
            in_flight_bytes: size(raw.in_flight_bytes),
            catch_up_bytes_per_second: raw.catch_up_bytes_per_second,
            cursor_interval: Duration::from_millis(raw.cursor_interval_ms),
            shutdown_flush: Duration::from_millis(raw.shutdown_flush_ms),
            properties: raw.properties.clone(),
        }
    }
}
