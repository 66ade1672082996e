//! `[[source.*]]` as typed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Anonymous, CertificateUser, FlowControl, Parity, Value};

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
    /// Who may connect without a password: clients on the gateway itself (`loopback`), whoever reaches the address
    /// (`anywhere`), or nobody (`nowhere`).
    pub anonymous: Anonymous,
    /// File of users and hashes of their passwords, as `mosquitto_passwd` makes it; empty is none: nobody can have a
    /// password. Read again at SIGHUP and when it has changed.
    pub password_file: String,
    /// File of what users may read and write, Mosquitto's `acl_file`; empty is none: who is let in may do everything. Read
    /// again at SIGHUP and when it has changed.
    pub acl_file: String,
    /// TLS for who connects; without it the connections are open to who can listen.
    pub tls: RawServerTls,
    /// Whether the certificate of a client says its user name, in place of a password: `none`, its common name
    /// (`common-name`), or its whole subject (`subject`), as CN=bus-17,O=City. Needs `tls.client_ca_file`.
    pub certificate_user: CertificateUser,
    /// Most connections at once; a further one is closed. There may be twice as many sessions.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_connections: u32,
    /// Longest time from the connection to a whole CONNECT, a TLS handshake included, in ms.
    #[schemars(range(min = 100, max = 600_000))]
    pub connect_timeout_ms: u64,
    /// Most connections without a whole CONNECT at once; at it the oldest is closed for the next one, once it had a second.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_half_open: u32,
    /// Connections accepted per second, those of one second at once; beyond, they wait. 0 is no limit.
    pub connects_per_second: u32,
    /// Largest packet accepted, in bytes; a client that sends a larger one is disconnected.
    #[schemars(range(min = 1_024, max = 67_108_864))]
    pub max_packet_bytes: u32,
    /// Messages that a client may have unacknowledged: MQTT's Receive Maximum. A commit starts early when it is reached.
    #[schemars(range(min = 1, max = 65_535))]
    pub receive_maximum: u16,
    /// Whether an MQTT 5 client is told by reason code 0x99 that its message does not decode. It is a dead letter in any case.
    pub reject_invalid: bool,
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
            password_file: String::new(),
            acl_file: String::new(),
            tls: RawServerTls::default(),
            certificate_user: CertificateUser::None,
            max_connections: 1000,
            connect_timeout_ms: 10_000,
            max_half_open: 500,
            connects_per_second: 500,
            max_packet_bytes: 256 * 1024,
            receive_maximum: 1024,
            reject_invalid: false,
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

/// `[source.listener.tls]`, `[source.http.tls]`: TLS 1.2 or 1.3 for who connects. Files are read again at SIGHUP and when they have
/// changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawServerTls {
    /// PEM file of our certificate, with its chain; empty is no TLS.
    pub cert_file: String,
    /// Where its private key is, PEM: `file:PATH`, `env:NAME` or `credential:NAME` (systemd).
    pub key: String,
    /// PEM file of the CAs of which every client must have a certificate; empty asks for none.
    pub client_ca_file: String,
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
    /// File of bearer tokens, one a line, behind each the streams that it is for (none: all). Read again at SIGHUP and when it
    /// has changed. Without a file and without `tls.client_ca_file` everybody may write, so that `listen` must be a loopback
    /// address then.
    pub token_file: String,
    /// TLS for who connects; without it the connections are open to who can listen.
    pub tls: RawServerTls,
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
            tls: RawServerTls::default(),
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
