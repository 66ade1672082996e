//! The configuration, read once and checked once: what the other modules are given.

pub mod check;
pub mod raw;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU16,
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::sources::{
    Anonymous, Broker, CertificateUser, DeviceFrom, FlowControl, HttpRoute, HttpSource, Listener, Login,
    MqttSource, MqttTls, MqttVersion, Parity, Qos, Route, RouteDecode, SerialProtocol, SerialSource,
    ServerTls, Value,
};
use crate::{
    log::Retention,
    record::StreamName,
    secret::{FileRef, SecretRef},
};

/// Stream of frames that did not decode.
pub const DEAD_LETTER_STREAM: &str = "dead-letter";
/// Stream of [gap records](crate::gap).
pub const GAPS_STREAM: &str = "gaps";
/// Stream of native frames with schema RoomOccupancy.
pub const OCCUPANCY_STREAM: &str = "occupancy";
/// Stream of native frames with schema VehiclePosition.
pub const VEHICLE_POSITIONS_STREAM: &str = "vehicle-positions";
/// Stream of native frames with schema Raw, or one that this version does not know.
pub const RAW_STREAM: &str = "raw";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Who this gateway is.
    pub gateway: Gateway,
    /// MQTT brokers to subscribe at.
    pub mqtt: Vec<MqttSource>,
    /// Addresses at which devices connect.
    pub listener: Vec<Listener>,
    /// Serial ports to read.
    pub serial: Vec<SerialSource>,
    /// Addresses that take HTTP requests.
    pub http: Vec<HttpSource>,
    /// Partitions of the streams that are configured; others have [`PARTITIONS_DEFAULT`].
    pub streams: BTreeMap<StreamName, Stream>,
    /// Group commit.
    pub commit: Commit,
    /// The local log.
    pub log: Log,
    /// Replication to Kafka.
    pub replicate: Replicate,
    /// Logs, metrics, health.
    pub telemetry: Telemetry,
}

/// Partitions of a stream that has no `[[stream]]` section.
pub const PARTITIONS_DEFAULT: NonZeroU16 = NonZeroU16::new(4).expect("4 is not 0");

impl Config {
    /// Partitions of `stream`.
    pub fn partitions(&self, stream: &str) -> NonZeroU16 {
        self.streams.get(stream).map_or(PARTITIONS_DEFAULT, |s| s.partitions)
    }

    /// The streams that records of this configuration can be in.
    pub fn stream_names(&self) -> BTreeSet<&str> {
        let native = [OCCUPANCY_STREAM, VEHICLE_POSITIONS_STREAM, RAW_STREAM];
        let mut names: BTreeSet<_> = self.streams.keys().map(StreamName::as_str).collect();
        names.extend([DEAD_LETTER_STREAM, GAPS_STREAM]);
        let routes = self.mqtt.iter().flat_map(|source| &source.routes);
        for route in routes.chain(self.listener.iter().flat_map(|listener| &listener.routes)) {
            match &route.decode {
                RouteDecode::Json { stream, .. }
                | RouteDecode::Hfp { stream }
                | RouteDecode::Raw { stream, .. } => {
                    names.insert(stream.as_str());
                }
                RouteDecode::Native => names.extend(native),
            }
        }
        for source in &self.serial {
            match &source.protocol {
                SerialProtocol::Native => names.extend(native),
                SerialProtocol::Nmea { stream, raw_stream, .. } => {
                    names.extend([stream.as_str(), raw_stream.as_str()]);
                }
            }
        }
        for source in &self.http {
            names.extend(source.routes.iter().map(|route| route.stream.as_str()));
        }
        names
    }
}

/// Who this gateway is.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Unique in the fleet.
    pub id: String,
    /// First part of every topic.
    pub environment: String,
}

/// A certificate of our own, with its private key. Both PEM.
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    /// Certificate and chain.
    pub cert_file: FileRef,
    /// The private key.
    pub key: SecretRef,
}

/// Exponential delays with full jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Upper bound of the first delay.
    pub min: Duration,
    /// Upper bound of every delay.
    pub max: Duration,
}

/// A stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    /// Partitions of the stream and of its topic.
    pub partitions: NonZeroU16,
    /// What is dropped of it when the log is at its limit.
    pub policy: Policy,
}

/// What is promised of records in Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// In transactions: a `read_committed` consumer sees each record once.
    #[default]
    ExactlyOnce,
    /// Without: after a failure or crash some records come again, which consumers can tell by `wayside.offset`.
    AtLeastOnce,
}

/// What becomes of a stream's records when the log is at its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Nothing is dropped: sources wait for Kafka.
    #[default]
    Block,
    /// The oldest records that replication has not begun are dropped.
    DropOldest,
    /// What comes is dropped.
    DropNewest,
    /// Of the oldest records that replication has not begun only the last of each device stays.
    LatestPerDevice,
}

impl Policy {
    /// Whether it drops what the log holds.
    pub fn drops_stored(self) -> bool {
        matches!(self, Self::DropOldest | Self::LatestPerDevice)
    }

    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::DropOldest => "drop-oldest",
            Self::DropNewest => "drop-newest",
            Self::LatestPerDevice => "latest-per-device",
        }
    }
}

/// Group commit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Commit {
    /// Shortest time between two syncs.
    pub window: Duration,
    /// Bytes of records that start a commit early.
    pub batch_bytes: usize,
    /// Bytes of records that may wait for a commit.
    pub intake_bytes: usize,
}

/// Compression of entries in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    None,
    /// LZ4 block.
    Lz4,
    /// zstd, level 1.
    #[default]
    Zstd,
}

/// What keeps the epochs of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A sled Db for each epoch.
    #[default]
    Sled,
    /// A file for each epoch that is only appended to.
    Segment,
}

impl Engine {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Segment => "segment",
        }
    }
}

/// The local log.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Data directory.
    pub dir: PathBuf,
    /// What new epochs are written with.
    pub engine: Engine,
    /// Most bytes on the disk; `None` is half of the file system.
    pub limit_bytes: Option<u64>,
    /// Bytes that stay free on the file system.
    pub reserve_bytes: u64,
    /// What is kept though Kafka has it.
    pub retention: Retention,
    /// Bytes of an epoch at which a new one is begun.
    pub epoch_bytes: u64,
    /// Largest record in bytes, as [`crate::record::Record::size_bytes`] counts.
    pub record_bytes_max: usize,
    /// Compression of entries.
    pub compression: Compression,
}

/// Replication to Kafka.
#[derive(Clone, Debug, PartialEq)]
pub struct Replicate {
    /// `host:port`, at least one.
    pub bootstrap_servers: Vec<String>,
    /// Of topics that the agent creates.
    pub replication_factor: i32,
    /// Of topics that the agent creates.
    pub min_insync_replicas: i32,
    /// Kafka's `compression.type`.
    pub compression: Compression,
    /// What is promised of records in Kafka.
    pub delivery: Delivery,
    /// Shortest time between the beginnings of two transactions, unless one is full.
    pub transaction_interval: Duration,
    /// Kafka's `linger.ms`, where there are no transactions.
    pub linger: Duration,
    /// Bytes handed to the client and not yet acknowledged.
    pub in_flight_bytes: usize,
    /// How fast a backlog shrinks, in bytes of records per second; 0 is no limit.
    pub catch_up_bytes_per_second: u64,
    /// Longest time between two writes of the cursor while it advances.
    pub cursor_interval: Duration,
    /// How long a shutdown waits for Kafka.
    pub shutdown_flush: Duration,
    /// TLS, if it is on.
    pub tls: Option<KafkaTls>,
    /// Who we are to the brokers.
    pub sasl: Option<Sasl>,
    /// Further properties of librdkafka.
    pub properties: BTreeMap<String, String>,
}

/// How brokers are known, and how they know us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KafkaTls {
    /// PEM file of the CAs; `None` is the system's bundle.
    pub ca_file: Option<FileRef>,
    /// What we show to the brokers.
    pub client: Option<Certificate>,
}

/// Who we are to the brokers.
#[derive(Clone, Debug, PartialEq)]
pub enum Sasl {
    /// User and password.
    Password {
        /// How they are sent.
        mechanism: SaslMechanism,
        /// The user name.
        user: String,
        /// Where the password is.
        password: SecretRef,
    },
    /// A token.
    OauthBearer(TokenSource),
}

/// How user and password are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslMechanism {
    /// As they are.
    Plain,
    /// RFC 7677
    ScramSha256,
    /// As RFC 7677, with SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// As it is registered.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Where a token comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenSource {
    /// Somebody else renews it.
    Secret(SecretRef),
    /// A program, at least, and its arguments.
    Command(Vec<String>),
}

/// Logs, metrics, health.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// Address of `/metrics` and `/healthz`.
    pub listen: Option<SocketAddr>,
    /// Where the token is that a request must carry; always there if `listen` is not loopback.
    pub token: Option<SecretRef>,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Level or filter.
    pub log_level: String,
}

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// key=value.
    Logfmt,
    /// One JSON object a line.
    Json,
}
