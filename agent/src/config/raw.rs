//! `wayside.toml` as typed: every key with its default, nothing checked yet. [`super::Config`] is what the rest uses.
//!
//! Unknown keys are errors. The defaults are in the `impl Default` blocks here, the ranges of numbers at their keys, and
//! nowhere else.

mod sources;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Deserialize, Serialize};

pub use self::sources::{
    Decode, Protocol, RawHttpRoute, RawHttpSource, RawListener, RawMqttSource, RawMqttTls, RawRoute,
    RawSerialSource, RawServerTls, RawSources,
};
use super::{Compression, Delivery, Engine, LogFormat, Policy};

/// JSON Schema of the file, with every default, range, choice and meaning.
pub fn schema() -> schemars::Schema {
    let inline = |settings: &mut SchemaSettings| settings.inline_subschemas = true;
    SchemaSettings::draft2020_12().with(inline).into_generator().into_root_schema_for::<RawConfig>()
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["gateway", "replicate"]))]
pub struct RawConfig {
    /// Who this gateway is.
    pub gateway: RawGateway,
    /// Where frames come from.
    pub source: RawSources,
    /// Streams that need other settings than the defaults.
    pub stream: Vec<RawStream>,
    /// Group commit.
    pub commit: RawCommit,
    /// The local log.
    pub log: RawLog,
    /// Replication to Kafka.
    pub replicate: RawReplicate,
    /// Logs, metrics, health.
    pub telemetry: RawTelemetry,
}

/// `[gateway]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["id"]))]
pub struct RawGateway {
    /// Name of this gateway, unique in the fleet; in every record's headers. Must be set.
    pub id: String,
    /// First part of every topic: `<environment>.<stream>`.
    pub environment: String,
}

impl Default for RawGateway {
    fn default() -> Self {
        Self { id: String::new(), environment: "prod".into() }
    }
}

/// `[[stream]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name"]))]
pub struct RawStream {
    /// Name of the stream. Must be set, unique.
    pub name: String,
    /// Partitions; must equal the topic's.
    #[schemars(range(min = 1, max = 10_000))]
    pub partitions: u16,
    /// What becomes of records when the log is at its limit.
    pub policy: Policy,
}

impl Default for RawStream {
    fn default() -> Self {
        Self { name: String::new(), partitions: 4, policy: Policy::Block }
    }
}

/// `[commit]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCommit {
    /// Shortest time between two syncs, in ms, unless a source waits. Longer is kinder to flash, later to acknowledge.
    #[schemars(range(min = 0, max = 10_000))]
    pub window_ms: u64,
    /// Bytes of records that start a commit before the window is over.
    #[schemars(range(min = 4_096, max = 16_777_216))]
    pub batch_bytes: u64,
    /// Bytes of records that may wait for a commit; beyond, sources wait.
    #[schemars(range(min = 65_536, max = 268_435_456))]
    pub intake_bytes: u64,
    /// Compression of what is written to the log.
    pub compression: Compression,
}

impl Default for RawCommit {
    fn default() -> Self {
        Self {
            window_ms: 20,
            batch_bytes: 256 * 1024,
            intake_bytes: 2 * 1024 * 1024,
            compression: Compression::Zstd,
        }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// Data directory, of this agent alone.
    pub dir: String,
    /// What keeps the epochs of the log. It may be changed at any restart: what is there is read by what wrote it.
    pub engine: Engine,
    /// Most bytes that the log takes on the disk: at it sources wait until Kafka has acknowledged an epoch, but for what
    /// the policies of streams let go. At least four times `epoch_bytes`, and where a stream is to drop what is old twice
    /// `replicate.in_flight_bytes` more, since that is spared; 0 is half of the file system.
    pub limit_bytes: u64,
    /// Bytes that stay free on the file system, for others on it and to read what is in the log: with fewer sources wait. At
    /// least twice `epoch_bytes` and 8 MiB; 0 is just that.
    pub reserve_bytes: u64,
    /// Bytes of epochs that are kept for `wayside log replay` though Kafka has them, as long as nothing else needs the room.
    pub retain_bytes: u64,
    /// Longest time that they are kept, in ms; 0 is without end.
    pub retain_ms: u64,
    /// Bytes of an epoch at which a new one is begun.
    #[schemars(range(min = 262_144, max = 67_108_864))]
    pub epoch_bytes: u64,
    /// Largest record in bytes, headers included; a larger one becomes a dead letter with its first bytes.
    #[schemars(range(min = 1_024, max = crate::log::RECORD_BYTES_MAX))]
    pub record_bytes_max: u32,
}

impl Default for RawLog {
    fn default() -> Self {
        Self {
            dir: "/var/lib/wayside".into(),
            engine: Engine::default(),
            limit_bytes: 0,
            reserve_bytes: 0,
            retain_bytes: 0,
            retain_ms: 0,
            epoch_bytes: 4 * 1024 * 1024,
            record_bytes_max: 64 * 1024,
        }
    }
}

/// `[replicate]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["bootstrap_servers"]))]
pub struct RawReplicate {
    /// Kafka brokers, `host:port`. At least one.
    pub bootstrap_servers: Vec<String>,
    /// Replication factor of topics that the agent creates.
    #[schemars(range(min = 1, max = 100))]
    pub replication_factor: i32,
    /// `min.insync.replicas` of topics that the agent creates.
    #[schemars(range(min = 1, max = 100))]
    pub min_insync_replicas: i32,
    /// Kafka's `compression.type`.
    pub compression: Compression,
    /// What is promised of records in Kafka. `exactly-once` needs consumers that are `read_committed`.
    pub delivery: Delivery,
    /// Exactly once: shortest time between the beginnings of two transactions, in ms, unless there is half of
    /// `in_flight_bytes` to send. Each one costs the flash a block of 4 KiB; records wait so long at most.
    #[schemars(range(min = 0, max = 10_000))]
    pub transaction_interval_ms: u64,
    /// At least once: Kafka's `linger.ms`.
    #[schemars(range(min = 0, max = 60_000))]
    pub linger_ms: u64,
    /// Bytes of records handed to the Kafka client and not yet acknowledged by Kafka.
    #[schemars(range(min = 131_072, max = 268_435_456))]
    pub in_flight_bytes: u64,
    /// How fast a backlog shrinks, in bytes of records per second before compression, on top of what comes in meanwhile. 0
    /// is no limit.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub catch_up_bytes_per_second: u64,
    /// Longest time between two writes of the cursor while it advances, in ms.
    #[schemars(range(min = 10, max = 600_000))]
    pub cursor_interval_ms: u64,
    /// How long a shutdown waits for Kafka to acknowledge what is still in the log, in ms.
    #[schemars(range(min = 0, max = 600_000))]
    pub shutdown_flush_ms: u64,
    /// TLS.
    pub tls: RawKafkaTls,
    /// Who we are to the brokers.
    pub sasl: RawSasl,
    /// Further properties of librdkafka, for what has no key of its own.
    pub properties: std::collections::BTreeMap<String, String>,
}

impl Default for RawReplicate {
    fn default() -> Self {
        Self {
            bootstrap_servers: Vec::new(),
            replication_factor: 3,
            min_insync_replicas: 2,
            compression: Compression::Zstd,
            delivery: Delivery::ExactlyOnce,
            transaction_interval_ms: 500,
            linger_ms: 50,
            in_flight_bytes: 2 * 1024 * 1024,
            catch_up_bytes_per_second: 0,
            cursor_interval_ms: 5_000,
            shutdown_flush_ms: 10_000,
            tls: RawKafkaTls::default(),
            sasl: RawSasl::default(),
            properties: std::collections::BTreeMap::new(),
        }
    }
}

/// `[replicate.tls]`: TLS 1.2 or 1.3 to all brokers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawKafkaTls {
    /// Whether connections are encrypted and the brokers' certificates checked.
    pub enabled: bool,
    /// PEM file of the CAs that may have signed the brokers' certificates; empty is the system's bundle.
    pub ca_file: String,
    /// PEM file of our certificate, with its chain; empty is none.
    pub cert_file: String,
    /// Where its private key is, PEM: `file:PATH`, `env:NAME` or `credential:NAME` (systemd).
    pub key: String,
}

/// `[replicate.sasl]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["mechanism"]))]
pub struct RawSasl {
    /// How we prove who we are. Must be set; without the section there is no SASL.
    #[schemars(required)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<Mechanism>,
    /// User name, but for `OAUTHBEARER`.
    pub user: String,
    /// Where its password is: `file:PATH`, `env:NAME` or `credential:NAME` (systemd).
    pub password: String,
    /// Where the token is, for `OAUTHBEARER`: as `password`.
    pub token: String,
    /// Or the program that prints it, with its arguments; it is run without a shell and has 10 s.
    pub token_command: Vec<String>,
}

/// A mechanism of SASL, by its registered name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mechanism {
    /// User and password as they are.
    #[serde(rename = "PLAIN")]
    Plain,
    /// User and a proof of the password (RFC 7677).
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The same with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A token.
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

/// `[telemetry]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTelemetry {
    /// Address of `/metrics` and `/healthz`; empty switches them off. One that is not loopback needs `token`.
    pub listen: String,
    /// Where the token is that a request must carry (`Authorization: Bearer`): `file:PATH`, `env:NAME` or
    /// `credential:NAME` (systemd); empty is none.
    pub token: String,
    /// Format of the agent's own log.
    pub log_format: LogFormat,
    /// Level, or a filter like `info,wayside::replicate=debug`.
    pub log_level: String,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9464".into(),
            token: String::new(),
            log_format: LogFormat::Logfmt,
            log_level: "info".into(),
        }
    }
}
