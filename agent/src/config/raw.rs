//! `wayside.toml` as typed: every key with its default, nothing checked yet. [`super::Config`] is what the rest uses.
//!
//! Unknown keys are errors. The defaults are in the `impl Default` blocks here, the ranges of numbers at their keys, and
//! nowhere else.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Deserialize, Serialize};

use super::{Anonymous, Compression, FlowControl, LogFormat, Parity, Policy, Value};

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

/// `[[source.*]]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSources {
    /// MQTT brokers to subscribe at.
    pub mqtt: Vec<RawMqttSource>,
    /// Addresses at which devices connect with MQTT.
    pub listener: Vec<RawListener>,
    /// Serial ports to read.
    pub serial: Vec<RawSerialSource>,
    /// Addresses that take HTTP requests.
    pub http: Vec<RawHttpSource>,
}

/// `[[source.mqtt]]`: a client of somebody's broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "urls", "route"]))]
pub struct RawMqttSource {
    /// Name of the source, in logs and metrics. Must be set, unique.
    pub name: String,
    /// Brokers, `mqtt://host:port` or with TLS `mqtts://host:port`, tried in turn. At least one.
    pub urls: Vec<String>,
    /// User name; empty is none.
    pub user: String,
    /// Where its password is: `file:PATH`, `env:NAME` or `credential:NAME` (systemd); empty is none.
    pub password: String,
    /// MQTT version: 5, or 3 for 3.1.1.
    #[schemars(extend("enum" = [3, 5]))]
    pub version: u8,
    /// Client id of the persistent session; empty is `wayside-<gateway.id>-<name>`. Must stay the same over restarts.
    pub client_id: String,
    /// Quality of service of the subscriptions: 0, 1 or 2.
    #[schemars(range(min = 0, max = 2))]
    pub qos: u8,
    /// Keep-alive in seconds.
    #[schemars(range(min = 5, max = 3600))]
    pub keep_alive_s: u16,
    /// How long the broker keeps the session and its queue while the agent is away, in seconds (MQTT 5).
    pub session_expiry_s: u32,
    /// Messages that the broker may have unacknowledged with us: MQTT's Receive Maximum. A commit starts early when it
    /// is reached.
    #[schemars(range(min = 1, max = 65_535))]
    pub receive_maximum: u16,
    /// Largest packet accepted, in bytes.
    #[schemars(range(min = 1_024, max = 67_108_864))]
    pub max_packet_bytes: u32,
    /// Shortest and longest delay before reconnecting, in ms; doubled at each failure, with full jitter.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub reconnect_min_ms: u64,
    /// See `reconnect_min_ms`.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub reconnect_max_ms: u64,
    /// How brokers with `mqtts://` are known, and how they know us.
    pub tls: RawMqttTls,
    /// What to subscribe to and what to make of it. At least one.
    pub route: Vec<RawRoute>,
}

impl Default for RawMqttSource {
    fn default() -> Self {
        Self {
            name: String::new(),
            urls: Vec::new(),
            user: String::new(),
            password: String::new(),
            version: 5,
            client_id: String::new(),
            qos: 1,
            keep_alive_s: 30,
            session_expiry_s: 7 * 24 * 3600,
            receive_maximum: 2048,
            max_packet_bytes: 256 * 1024,
            reconnect_min_ms: 250,
            reconnect_max_ms: 30_000,
            tls: RawMqttTls::default(),
            route: Vec::new(),
        }
    }
}

/// `[source.mqtt.tls]`: TLS 1.2 or 1.3 to brokers with `mqtts://`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawMqttTls {
    /// PEM file of the CAs that may have signed the broker's certificate; empty is the system's bundle.
    pub ca_file: String,
    /// PEM file of our certificate, with its chain; empty is none.
    pub cert_file: String,
    /// Where its private key is, PEM: `file:PATH`, `env:NAME` or `credential:NAME` (systemd).
    pub key: String,
    /// Name that the broker's certificate must have; empty is the host of the URL.
    pub server_name: String,
}

/// `[[source.listener]]`: an MQTT server of the agent's own, for devices to connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "route"]))]
pub struct RawListener {
    /// Name of the source, in logs and metrics. Must be set, unique.
    pub name: String,
    /// Address and port to listen at. `0.0.0.0:1883` is every IPv4 address of the gateway.
    pub listen: String,
    /// Who may connect without a password: clients on the gateway itself (`loopback`), or whoever reaches the address
    /// (`anywhere`).
    pub anonymous: Anonymous,
    /// Most connections at once; a further one is closed. There may be twice as many sessions.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_connections: u32,
    /// Longest time from the connection to a whole CONNECT, in ms.
    #[schemars(range(min = 100, max = 600_000))]
    pub connect_timeout_ms: u64,
    /// Largest packet accepted, in bytes; a client that sends a larger one is disconnected.
    #[schemars(range(min = 1_024, max = 67_108_864))]
    pub max_packet_bytes: u32,
    /// Messages that a client may have unacknowledged: MQTT's Receive Maximum. A commit starts early when it is reached.
    #[schemars(range(min = 1, max = 65_535))]
    pub receive_maximum: u16,
    /// Longest keep-alive, in seconds, which MQTT 5 clients that ask for more or none are told to use.
    #[schemars(range(min = 5, max = 65_535))]
    pub keep_alive_max_s: u16,
    /// Longest time that a session outlives its connection, in seconds. 0 ends every session with its connection.
    pub session_expiry_max_s: u32,
    /// Bytes per second that one client may send; beyond, it is read later. 0 is no limit.
    pub client_bytes_per_second: u32,
    /// Messages per second that one client may send; beyond, it is read later. 0 is no limit.
    pub client_messages_per_second: u32,
    /// Bytes of messages that may wait for one subscriber; beyond, it loses the oldest.
    #[schemars(range(min = 1_024, max = 67_108_864))]
    pub queue_bytes: u32,
    /// Bytes of retained messages; a further one is stored and handed on, and not retained.
    #[schemars(range(min = 0, max = 268_435_456))]
    pub retained_bytes: u32,
    /// Filters of topics that are handed to subscribers alone: their messages are acknowledged at once and not stored.
    pub local_topic_filters: Vec<String>,
    /// What to make of the topics, as in `[[source.mqtt]]`. At least one.
    pub route: Vec<RawRoute>,
}

impl Default for RawListener {
    fn default() -> Self {
        Self {
            name: String::new(),
            listen: "127.0.0.1:1883".into(),
            anonymous: Anonymous::Loopback,
            max_connections: 1000,
            connect_timeout_ms: 10_000,
            max_packet_bytes: 256 * 1024,
            receive_maximum: 1024,
            keep_alive_max_s: 1200,
            session_expiry_max_s: 24 * 3600,
            client_bytes_per_second: 0,
            client_messages_per_second: 0,
            queue_bytes: 64 * 1024,
            retained_bytes: 1024 * 1024,
            local_topic_filters: Vec::new(),
            route: Vec::new(),
        }
    }
}

/// `[[source.mqtt.route]]`, `[[source.listener.route]]`: topics and how their payloads decode; at a broker also a subscription.
/// A message takes the first route that matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["topic_filter", "decode"]))]
pub struct RawRoute {
    /// MQTT topic filter, with `+` and `#`. Must be set.
    pub topic_filter: String,
    /// What the payloads are. Must be set.
    #[schemars(required)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode: Option<Decode>,
    /// Stream of the records. Must be set, but for `native`, where each schema has its own.
    pub stream: String,
    /// What becomes Kafka's value. Without it `raw`, but `json` for `native`.
    #[schemars(required)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Where a device id is in the topic: the filter with `{device}` for one level, other names for levels that do not
    /// matter: `building/{floor}/{device}/occupancy`. For `raw`, and for `json` without `device_pointer`.
    pub device_topic: String,
    /// JSON pointer to the device id (string or integer). For `json`.
    pub device_pointer: String,
    /// JSON pointer to the event time: RFC 3339, or Unix seconds, ms or µs by size. For `json`, optional.
    pub time_pointer: String,
    /// JSON pointer to the device's sequence number. For `json`, optional.
    pub seq_pointer: String,
}

/// What the payloads of a route are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// JSON, with pointers to what matters.
    Json,
    /// HSL high-frequency positioning v2.
    Hfp,
    /// Bytes that nobody looks into.
    Raw,
    /// One native frame per message (protocol/SPEC.md).
    Native,
}

/// `[[source.serial]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "path", "protocol"]))]
pub struct RawSerialSource {
    /// Name of the source, in logs and metrics. Must be set, unique.
    pub name: String,
    /// Device file, best one under `/dev/serial/by-id`. Must be set.
    pub path: String,
    /// What is spoken on it. Must be set.
    #[schemars(required)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Bits per second.
    #[schemars(range(min = 300, max = 4_000_000))]
    pub baud: u32,
    /// Parity bit.
    pub parity: Parity,
    /// Flow control.
    pub flow_control: FlowControl,
    /// Stream of positions (`nmea`).
    pub stream: String,
    /// Stream of sentences that are no position: AIS and what the decoder does not know (`nmea`).
    pub raw_stream: String,
    /// Device id of what the port says (`nmea`); empty is the source's name.
    pub device: String,
    /// What becomes Kafka's value.
    pub value: Value,
    /// Shortest and longest delay before a port that went away is opened again, in ms.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub reopen_min_ms: u64,
    /// See `reopen_min_ms`.
    #[schemars(range(min = 1, max = 3_600_000))]
    pub reopen_max_ms: u64,
}

impl Default for RawSerialSource {
    fn default() -> Self {
        Self {
            name: String::new(),
            path: String::new(),
            protocol: None,
            baud: 115_200,
            parity: Parity::None,
            flow_control: FlowControl::None,
            stream: "vehicle-positions".into(),
            raw_stream: "nmea-raw".into(),
            device: String::new(),
            value: Value::Json,
            reopen_min_ms: 200,
            reopen_max_ms: 5_000,
        }
    }
}

/// `[[source.http]]`: takes records by POST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["name", "listen", "route"]))]
pub struct RawHttpSource {
    /// Name of the source, in logs and metrics. Must be set, unique.
    pub name: String,
    /// Address and port to listen on. Must be set.
    pub listen: String,
    /// File of bearer tokens, one a line, behind each the streams that it is for (none: all). Read at the start. Without a
    /// file everybody may write, so that `listen` must be a loopback address then.
    pub token_file: String,
    /// Connections at a time; beyond, they wait in the system's queue.
    #[schemars(range(min = 1, max = 65_535))]
    pub max_connections: u32,
    /// Largest body of a request, in bytes.
    #[schemars(range(min = 1_024, max = 1_048_576))]
    pub max_body_bytes: u64,
    /// Bytes of bodies that are on their way, over all connections; beyond, requests are answered with 503.
    #[schemars(range(min = 1_024, max = 268_435_456))]
    pub body_buffer_bytes: u64,
    /// How long a connection may be idle, the head of its next request included, in ms.
    #[schemars(range(min = 100, max = 3_600_000))]
    pub idle_timeout_ms: u64,
    /// How long the body of a request may take, in ms.
    #[schemars(range(min = 100, max = 3_600_000))]
    pub body_timeout_ms: u64,
    /// How long a request waits for its commit before it is answered with 503, in ms.
    #[schemars(range(min = 100, max = 3_600_000))]
    pub commit_timeout_ms: u64,
    /// The streams that can be written to. At least one.
    pub route: Vec<RawHttpRoute>,
}

impl Default for RawHttpSource {
    fn default() -> Self {
        Self {
            name: String::new(),
            listen: String::new(),
            token_file: String::new(),
            max_connections: 256,
            max_body_bytes: 256 * 1024,
            body_buffer_bytes: 2 * 1024 * 1024,
            idle_timeout_ms: 60_000,
            body_timeout_ms: 10_000,
            commit_timeout_ms: 30_000,
            route: Vec::new(),
        }
    }
}

/// `[[source.http.route]]`: a stream that can be written to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["stream"]))]
pub struct RawHttpRoute {
    /// Stream of the records, as in the path of the request. Must be set, once in a source.
    pub stream: String,
    /// What becomes Kafka's value of JSON; raw bytes stay as they are.
    pub value: Value,
    /// JSON pointer to the device id (string or integer), for requests that do not name the device.
    pub device_pointer: String,
    /// JSON pointer to the event time: RFC 3339, or Unix seconds, ms or µs by size. Optional.
    pub time_pointer: String,
    /// JSON pointer to the device's sequence number. Optional.
    pub seq_pointer: String,
}

impl Default for RawHttpRoute {
    fn default() -> Self {
        Self {
            stream: String::new(),
            value: Value::Raw,
            device_pointer: String::new(),
            time_pointer: String::new(),
            seq_pointer: String::new(),
        }
    }
}

/// What is spoken on a serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The link protocol of protocol/SPEC.md.
    Native,
    /// NMEA 0183 and AIS.
    Nmea,
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
    /// Kafka's `linger.ms`.
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
            linger_ms: 50,
            in_flight_bytes: 1024 * 1024,
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
