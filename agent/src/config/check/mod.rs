//! From a file and the environment to [`Config`]: every key, type, range and relation checked, all errors at once.

mod shape;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt::{self, Write as _},
    net::SocketAddr,
    num::NonZeroU16,
    path::Path,
    time::Duration,
};

use super::{
    Backoff, Certificate, Commit, Config, GAPS_STREAM, Gateway, KafkaTls, Log, Policy, Replicate, Sasl,
    SaslMechanism, Stream, Telemetry, TokenSource,
    raw::{self, Mechanism, RawConfig, RawKafkaTls, RawReplicate, RawSasl, RawTelemetry},
};
use crate::{
    log::{Retention, store::disk::reserve_bytes_min},
    record::StreamName,
    replicate::check_properties,
    secret::{self, FileRef, SecretRef},
};
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
    Syntax(Vec<SyntaxError>),
    /// Keys and values that cannot be, in the order of the file; those of the environment behind.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// One place that is not TOML. Without the line itself, which may hold what should not have been typed there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line and column, from 1.
    pub place: Option<(usize, usize)>,
    /// What is wrong there.
    pub cause: String,
}

impl SyntaxError {
    fn new(error: &toml::de::Error, text: &str) -> Self {
        let place = error.span().and_then(|span| text.get(..span.start)).map(|before| {
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        });
        Self { place, cause: error.message().to_owned() }
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.place {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.cause)
    }
}

/// One value that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it stands, or where it would.
    pub place: Option<Place>,
    /// The key, as a path: `source.mqtt[0].qos`.
    pub key: String,
    /// What is there, as typed; empty if nothing is. Not so where it may be a secret that does not belong there.
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

/// Parts of names of keys whose values are not to be repeated, whoever knows the key.
const SECRETIVE: &[&str] = &["pas", "pwd", "secret", "token", "key", "pem", "credential", "oauth"];

impl Fault {
    fn new(place: Option<Place>, key: &str, value: &str, limit: &str) -> Self {
        let name = key.strip_prefix("replicate.properties.").or(key.rsplit('.').next()).unwrap_or(key);
        let name = name.to_lowercase();
        let hides = !["", "\"\""].contains(&value) && SECRETIVE.iter().any(|part| name.contains(part));
        let value = if hides { "(not shown)" } else { value };
        Self { place, key: key.into(), value: value.into(), limit: limit.into() }
    }
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
    let not_toml = |errors: Vec<toml::de::Error>| {
        ConfigError::Syntax(errors.iter().map(|error| SyntaxError::new(error, text)).collect())
    };
    let schema = raw::schema();
    let Shaped { table, mut faults, places } = shape(text, variables, schema.as_value()).map_err(not_toml)?;
    let raw =
        RawConfig::deserialize(toml::Deserializer::from(table)).map_err(|error| not_toml(vec![error]))?;
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
    let tells_drops = raw.stream.iter().any(|stream| stream.policy == Policy::DropNewest);
    let listener: Vec<_> = each(&raw.source.listener, "source.listener", |key, source| {
        check.unique(&format!("{key}.name"), &source.name, &mut names);
        check.listener(&key, source, tells_drops)
    });
    let serial: Vec<_> = each(&raw.source.serial, "source.serial", |key, source| {
        check.unique(&format!("{key}.name"), &source.name, &mut names);
        check.serial(&key, source)
    });
    check.sources_apart(&mqtt, &listener, &serial);
    let raw_sources = &raw.source;
    if raw_sources.mqtt.is_empty()
        && raw_sources.listener.is_empty()
        && raw_sources.serial.is_empty()
        && raw_sources.http.is_empty()
    {
        let limit = "at least one [[source.mqtt]], [[source.listener]], [[source.serial]] or [[source.http]]";
        check.fault("source", "", limit);
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
    let reserve_bytes_min = reserve_bytes_min(raw.log.epoch_bytes);
    if raw.log.reserve_bytes != 0 && raw.log.reserve_bytes < reserve_bytes_min {
        check.fault(
            "log.reserve_bytes",
            &raw.log.reserve_bytes.to_string(),
            &format!("at least {reserve_bytes_min}, twice log.epoch_bytes and 8 MiB, or 0"),
        );
    }
    let log = Log {
        dir: check.filled("log.dir", &raw.log.dir).into(),
        engine: raw.log.engine,
        limit_bytes: Some(raw.log.limit_bytes).filter(|limit| *limit != 0),
        retention: Retention {
            bytes: raw.log.retain_bytes,
            time: Some(Duration::from_millis(raw.log.retain_ms)).filter(|time| !time.is_zero()),
        },
        reserve_bytes: raw.log.reserve_bytes.max(reserve_bytes_min),
        epoch_bytes: raw.log.epoch_bytes,
        record_bytes_max: size(raw.log.record_bytes_max.into()),
        compression: raw.commit.compression,
    };
    let replicate = check.replicate(&raw.replicate);
    let telemetry = check.telemetry(&raw.telemetry);
    let mut listening: BTreeMap<_, _> =
        telemetry.listen.iter().map(|listen| (*listen, "telemetry.listen".to_owned())).collect();
    let http = each(&raw.source.http, "source.http", |key, source| {
        check.unique(&format!("{key}.name"), &source.name, &mut names);
        let checked = check.http(&key, source, &gateway.environment, &streams)?;
        if let Some(first) = listening.insert(checked.listen, format!("{key}.listen")) {
            check.fault(
                &format!("{key}.listen"),
                &quoted(&source.listen),
                &format!("already that of {first}"),
            );
        }
        Some(checked)
    });
    let http = http.into_iter().flatten().collect();
    let config = Config {
        gateway,
        mqtt,
        listener: listener.into_iter().flatten().collect(),
        serial,
        http,
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

/// The file that `key` names; empty is none.
fn file(key: &str, path: &str) -> Option<FileRef> {
    (!path.is_empty()).then(|| FileRef { key: key.into(), path: path.into() })
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
        self.faults.push(Fault::new(None, key, value, limit));
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

    /// Where a secret is; empty is none.
    fn secret(&mut self, key: &str, value: &str) -> Option<SecretRef> {
        let secret = SecretRef::parse(key, value);
        if secret.is_none() && !value.is_empty() {
            self.fault(key, "(not shown)", secret::FORMS);
        }
        secret
    }

    /// Our certificate; `section` has the keys `cert_file` and `key`.
    fn certificate(&mut self, section: &str, cert_file: &str, key: &str) -> Option<Certificate> {
        let key_at = format!("{section}.key");
        let cert_file = file(&format!("{section}.cert_file"), cert_file);
        let has_key = !key.is_empty();
        match (cert_file, self.secret(&key_at, key)) {
            (Some(cert_file), Some(key)) => Some(Certificate { cert_file, key }),
            (Some(_), None) if !has_key => {
                self.fault(&key_at, "\"\"", "must be set with cert_file");
                None
            }
            (None, Some(_)) => {
                self.fault(&format!("{section}.cert_file"), "\"\"", "must be set with key");
                None
            }
            _ => None,
        }
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
            delivery: raw.delivery,
            transaction_interval: Duration::from_millis(raw.transaction_interval_ms),
            linger: Duration::from_millis(raw.linger_ms),
            in_flight_bytes: size(raw.in_flight_bytes),
            catch_up_bytes_per_second: raw.catch_up_bytes_per_second,
            cursor_interval: Duration::from_millis(raw.cursor_interval_ms),
            shutdown_flush: Duration::from_millis(raw.shutdown_flush_ms),
            tls: self.kafka_tls(&raw.tls),
            sasl: self.sasl(&raw.sasl),
            properties: raw.properties.clone(),
        }
    }

    fn telemetry(&mut self, raw: &RawTelemetry) -> Telemetry {
        let key = "telemetry.listen";
        let listen: Option<SocketAddr> = (!raw.listen.is_empty())
            .then(|| self.parse(key, &raw.listen, "host address and port, or empty"))
            .flatten();
        let is_open = listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback());
        if is_open && raw.token.is_empty() {
            let limit =
                "others can reach it: telemetry.token must be set, or an address of loopback: 127.0.0.1:9464";
            self.fault(key, &quoted(&raw.listen), limit);
        }
        Telemetry {
            listen,
            token: self.secret("telemetry.token", &raw.token),
            log_format: raw.log_format,
            log_level: self.log_level("telemetry.log_level", &raw.log_level),
        }
    }

    fn kafka_tls(&mut self, raw: &RawKafkaTls) -> Option<KafkaTls> {
        let section = "replicate.tls";
        if !raw.enabled && *raw != RawKafkaTls::default() {
            self.fault(
                "replicate.tls.enabled",
                "false",
                "must be true for the other keys of [replicate.tls]",
            );
        }
        let ca_file = file(&format!("{section}.ca_file"), &raw.ca_file);
        let client = self.certificate(section, &raw.cert_file, &raw.key);
        raw.enabled.then_some(KafkaTls { ca_file, client })
    }

    fn sasl(&mut self, raw: &RawSasl) -> Option<Sasl> {
        // Without it there is no such section; the schema sees to that.
        let mechanism = match raw.mechanism? {
            Mechanism::Plain => SaslMechanism::Plain,
            Mechanism::ScramSha256 => SaslMechanism::ScramSha256,
            Mechanism::ScramSha512 => SaslMechanism::ScramSha512,
            Mechanism::OauthBearer => return self.sasl_token(raw).map(Sasl::OauthBearer),
        };
        self.sasl_password(raw, mechanism)
    }

    fn sasl_password(&mut self, raw: &RawSasl, mechanism: SaslMechanism) -> Option<Sasl> {
        if !raw.token.is_empty() || !raw.token_command.is_empty() {
            self.fault("replicate.sasl.token", "\"\"", "token and token_command are for OAUTHBEARER");
        }
        let user = self.filled("replicate.sasl.user", &raw.user);
        let key = "replicate.sasl.password";
        if raw.password.is_empty() {
            self.fault(key, "\"\"", secret::FORMS);
        }
        let password = self.secret(key, &raw.password)?;
        Some(Sasl::Password { mechanism, user, password })
    }

    fn sasl_token(&mut self, raw: &RawSasl) -> Option<TokenSource> {
        if !raw.user.is_empty() || !raw.password.is_empty() {
            self.fault(
                "replicate.sasl.user",
                &quoted(&raw.user),
                "user and password are not for OAUTHBEARER",
            );
        }
        let token = self.secret("replicate.sasl.token", &raw.token);
        let has_program = raw.token_command.first().is_some_and(|program| !program.is_empty());
        match (raw.token.is_empty(), has_program) {
            (false, false) => token.map(TokenSource::Secret),
            (true, true) => Some(TokenSource::Command(raw.token_command.clone())),
            _ => {
                let limit = "either token or token_command must be set for OAUTHBEARER";
                self.fault("replicate.sasl.token", "\"\"", limit);
                None
            }
        }
    }
}
