//! `[[source.*]]`, checked.

use std::{net::SocketAddr, num::NonZeroU16, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Backoff, Certificate};
use crate::{
    record::{DeviceId, StreamName},
    secret::{FileRef, SecretRef},
};

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
    pub client: Option<Certificate>,
    /// Name that the broker's certificate must have, where it is not the host's.
    pub server_name: Option<String>,
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
    /// Users and the hashes of their passwords.
    pub password_file: Option<FileRef>,
    /// What users may read and write; `None` is everything.
    pub acl_file: Option<FileRef>,
    /// What connections are encrypted with.
    pub tls: Option<ServerTls>,
    /// What the certificate of a client says about its user.
    pub certificate_user: CertificateUser,
    /// Most connections at once.
    pub max_connections: usize,
    /// Longest time from the connection to CONNECT.
    pub connect_timeout: Duration,
    /// Most connections without CONNECT; at least 1.
    pub max_half_open: usize,
    /// Connections accepted per second; 0 is no limit.
    pub connects_per_second: u32,
    /// Largest packet accepted, in bytes.
    pub max_packet_bytes: usize,
    /// Messages that a client may have unacknowledged; at least 1.
    pub receive_maximum: u16,
    /// Whether MQTT 5 clients are told that a message does not decode.
    pub reject_invalid: bool,
    /// Whether they are told that a policy has dropped a message: some stream has `drop-newest`.
    pub tells_drops: bool,
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

#[cfg(any(test, fuzzing, feature = "simulation"))]
impl Listener {
    /// One that lets its own machine in, with small bounds and without routes.
    pub(crate) fn for_test() -> Self {
        Self {
            name: "test".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            anonymous: Anonymous::Loopback,
            password_file: None,
            acl_file: None,
            tls: None,
            certificate_user: CertificateUser::None,
            max_connections: 10,
            connect_timeout: Duration::from_secs(10),
            max_half_open: 10,
            connects_per_second: 0,
            max_packet_bytes: 4096,
            receive_maximum: 10,
            reject_invalid: false,
            tells_drops: false,
            keep_alive_max_s: 60,
            session_expiry_max: Duration::from_secs(3600),
            client_bytes_per_second: 0,
            client_messages_per_second: 0,
            queue_bytes: 2000,
            retained_bytes: 2000,
            local_topic_filters: Vec::new(),
            routes: Vec::new(),
        }
    }
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
    /// Nobody.
    Nowhere,
}

/// What the certificate of a client says about its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateUser {
    /// Nothing.
    #[default]
    None,
    /// Its common name is the user name.
    CommonName,
    /// Its subject is, as RFC 2253 writes it.
    Subject,
}

/// How we are known to who connects, and how they are known to us.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerTls {
    /// What we show.
    pub certificate: Certificate,
    /// PEM file of the CAs of which every client must have a certificate; `None` asks for none.
    pub client_ca_file: Option<FileRef>,
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
    /// Bearer tokens; `None`, on loopback or with client certificates alone, lets everybody in.
    pub token_file: Option<FileRef>,
    /// What connections are encrypted with.
    pub tls: Option<ServerTls>,
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
    /// First part of every topic, [`Gateway::environment`](super::Gateway::environment).
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
