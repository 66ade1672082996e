//! The configuration, read once and checked once: what the other modules are given.

pub mod check;
pub mod raw;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU16,
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    log::Retention,
    record::{DeviceId, StreamName},
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

/// An MQTT broker to subscribe at.
#[derive(Clone, Debug, PartialEq)]
pub struct MqttSource {
    /// Name in logs and metrics.
    pub name: String,
    /// Brokers, tried in turn; at least one.
    pub brokers: Vec<Broker>,
    /// Who we are to the brokers.
    pub login: Option<Login>,
    /// For the brokers with TLS.
    pub tls: MqttTls,
    /// Version of the protocol.
    pub version: MqttVersion,
    /// Client id of the persistent session.
    pub client_id: String,
    /// QoS of the subscriptions.
    pub qos: Qos,
    /// Keep-alive.
    pub keep_alive: Duration,
    /// How long the broker keeps the session, in seconds (MQTT 5).
    pub session_expiry_s: u32,
    /// Messages that may be unacknowledged; at least 1.
    pub receive_maximum: u16,
    /// Largest packet accepted, in bytes.
    pub max_packet_bytes: u32,
    /// Delays between connects.
    pub reconnect: Backoff,
    /// At least one; a message takes the first that matches.
    pub routes: Vec<Route>,
}

/// Address of an MQTT broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Broker {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether the connection is encrypted and the broker's certificate checked.
    pub tls: bool,
}

/// User name and password.
#[derive(Clone, Debug, PartialEq)]
pub struct Login {
    /// The user name.
    pub user: String,
    /// Where the password is.
    pub password: Option<SecretRef>,
}

/// How a broker is known, and how it knows us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MqttTls {
    /// PEM file of the CAs; `None` is the system's bundle.
    pub ca_file: Option<FileRef>,
    /// What we show to the broker.
    pub client: Option<ClientCertificate>,
    /// Name that the broker's certificate must have, where it is not the host's.
    pub server_name: Option<String>,
}

/// A certificate of our own, with its private key. Both PEM.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientCertificate {
    /// Certificate and chain.
    pub cert_file: FileRef,
    /// The private key.
    pub key: SecretRef,
}

/// Version of MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MqttVersion {
    /// 3.1.1
    V3,
    /// 5.0
    V5,
}

/// MQTT's quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// 0
    AtMostOnce,
    /// 1
    AtLeastOnce,
    /// 2
    ExactlyOnce,
}

/// An MQTT server of our own.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Name in logs and metrics.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who may connect without a password.
    pub anonymous: Anonymous,
    /// Most connections at once.
    pub max_connections: usize,
    /// Longest time from the connection to CONNECT.
    pub connect_timeout: Duration,
    /// Largest packet accepted, in bytes.
    pub max_packet_bytes: usize,
    /// Messages that a client may have unacknowledged; at least 1.
    pub receive_maximum: u16,
    /// Longest keep-alive of an MQTT 5 client, in seconds; at least 1.
    pub keep_alive_max_s: u16,
    /// Longest time that a session outlives its connection.
    pub session_expiry_max: Duration,
    /// Bytes that a client may send per second; 0 is no limit.
    pub client_bytes_per_second: u32,
    /// Messages that a client may send per second; 0 is no limit.
    pub client_messages_per_second: u32,
    /// Bytes of messages that may wait for one subscriber.
    pub queue_bytes: usize,
    /// Bytes of retained messages.
    pub retained_bytes: usize,
    /// Topic filters, checked, of what is handed to subscribers and not stored.
    pub local_topic_filters: Vec<String>,
    /// At least one; a message takes the first that matches.
    pub routes: Vec<Route>,
}

/// Who may connect without a password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Clients on the gateway itself.
    #[default]
    Loopback,
    /// Whoever reaches the address.
    Anywhere,
}

/// Exponential delays with full jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// Upper bound of the first delay.
    pub min: Duration,
    /// Upper bound of every delay.
    pub max: Duration,
}

/// A subscription and how its payloads decode.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// MQTT topic filter, checked.
    pub topic_filter: String,
    /// What the payload is.
    pub decode: RouteDecode,
    /// What becomes Kafka's value.
    pub value: Value,
}

/// How the payloads of a route decode.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteDecode {
    /// JSON, with pointers to what matters.
    Json {
        /// Stream of the records.
        stream: StreamName,
        /// Where the device id is.
        device: DeviceFrom,
        /// JSON pointer to the event time.
        time_pointer: Option<String>,
        /// JSON pointer to the sequence number.
        seq_pointer: Option<String>,
    },
    /// HSL high-frequency positioning v2; the device is operator/vehicle of the topic.
    Hfp {
        /// Stream of the records.
        stream: StreamName,
    },
    /// Bytes that nobody looks into.
    Raw {
        /// Stream of the records.
        stream: StreamName,
        /// Which topic level is the device id, checked against the filter.
        device_topic: String,
    },
    /// One native frame per message; the schema chooses the stream.
    Native,
}

/// Where a JSON route finds the device id.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceFrom {
    /// JSON pointer into the payload.
    Pointer(String),
    /// Pattern over the topic, `{device}` marks the level.
    Topic(String),
    /// The request says it beside the payload. Of [`HttpSource`] alone.
    Request,
}

/// What becomes Kafka's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// The bytes as they came: payload, sentence or frame.
    Raw,
    /// The normalised reading.
    Json,
}

/// A serial port to read.
#[derive(Clone, Debug, PartialEq)]
pub struct SerialSource {
    /// Name in logs and metrics.
    pub name: String,
    /// Device file.
    pub path: PathBuf,
    /// What is spoken on it.
    pub protocol: SerialProtocol,
    /// Bits per second.
    pub baud: u32,
    /// Parity bit.
    pub parity: Parity,
    /// Flow control.
    pub flow_control: FlowControl,
    /// What becomes Kafka's value.
    pub value: Value,
    /// Delays between attempts to open the port.
    pub reopen: Backoff,
}

/// What is spoken on a serial port.
#[derive(Clone, Debug, PartialEq)]
pub enum SerialProtocol {
    /// The link protocol of `protocol/SPEC.md`.
    Native,
    /// NMEA 0183 and AIS.
    Nmea {
        /// Stream of positions.
        stream: StreamName,
        /// Stream of the sentences that are no position.
        raw_stream: StreamName,
        /// Device id of what the port says.
        device: DeviceId,
    },
}

/// An address that takes HTTP requests.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpSource {
    /// Name in logs and metrics.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Bearer tokens; `None`, on loopback alone, lets everybody in.
    pub token_file: Option<PathBuf>,
    /// Connections at a time; at least 1.
    pub max_connections: usize,
    /// Largest body in bytes.
    pub max_body_bytes: usize,
    /// Bytes of bodies that are on their way; at least `max_body_bytes`.
    pub body_buffer_bytes: usize,
    /// How long a connection may be without the whole head of a request.
    pub idle_timeout: Duration,
    /// How long a body may take.
    pub body_timeout: Duration,
    /// How long a request waits for its commit.
    pub commit_timeout: Duration,
    /// First part of every topic, [`Gateway::environment`].
    pub environment: String,
    /// The streams that can be written to; at least one.
    pub routes: Vec<HttpRoute>,
}

/// A stream that can be written to over HTTP, and what its records are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// Stream of the records.
    pub stream: StreamName,
    /// Its partitions.
    pub partitions: NonZeroU16,
    /// JSON pointer to the device id, for requests that do not name it.
    pub device_pointer: Option<String>,
    /// JSON pointer to the event time.
    pub time_pointer: Option<String>,
    /// JSON pointer to the sequence number.
    pub seq_pointer: Option<String>,
    /// What becomes Kafka's value of JSON.
    pub value: Value,
}

/// Parity bit of a serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Parity {
    /// No parity bit.
    None,
    /// Even parity.
    Even,
    /// Odd parity.
    Odd,
}

/// Flow control of a serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FlowControl {
    /// None.
    None,
    /// RTS/CTS.
    Hardware,
    /// XON/XOFF.
    Software,
}

/// A stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    /// Partitions of the stream and of its topic.
    pub partitions: NonZeroU16,
    /// What is dropped of it when the log is at its limit.
    pub policy: Policy,
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

/// The local log.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Data directory.
    pub dir: PathBuf,
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
    /// Kafka's `linger.ms`.
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
    pub client: Option<ClientCertificate>,
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
