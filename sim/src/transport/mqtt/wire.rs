//! The packets of a publishing client in MQTT 5 and 3.1.1, over rumqttc's codecs.

use std::io;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes as v3;
use rumqttc::v5::mqttbytes as v5;

/// Protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// MQTT 3.1.1.
    #[value(name = "3")]
    V3,
    /// MQTT 5.
    #[value(name = "5")]
    V5,
}

/// Quality of service of the publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Qos {
    /// At least once.
    #[value(name = "1")]
    One,
    /// Exactly once.
    #[value(name = "2")]
    Two,
}

/// User name and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password, may be empty.
    pub password: String,
}

/// What a broker sends to a client that only publishes.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The connection stands.
    Connected {
        /// Whether the broker still knows the session.
        session_present: bool,
        /// How many publishes it takes at once.
        receive_maximum: u16,
    },
    /// The connection is refused, with the broker's reason.
    Refused(String),
    /// PUBACK, or PUBCOMP.
    Acknowledged(u16),
    /// PUBACK, or PUBREC, with a reason of 0x80 or above.
    Rejected(u16),
    /// PUBREC.
    Received(u16),
    /// DISCONNECT of MQTT 5, with its reason.
    Disconnected(String),
    /// A ping's answer.
    Pong,
}

/// Largest packet accepted from a broker, bytes; acknowledgements are far smaller.
const MAX_INCOMING: u32 = 64 * 1024;
/// How long the broker keeps the session of a lost client, s.
const SESSION_EXPIRY_S: u32 = 3600;

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Version {
    fn write(
        self,
        v3: impl FnOnce() -> v3::v4::Packet,
        v5: impl FnOnce() -> v5::v5::Packet,
        out: &mut BytesMut,
    ) {
        // No packet of ours reaches MQTT's limit of 256 MB, the only thing that the codecs refuse.
        match self {
            Self::V3 => v3().write(out, usize::MAX).map(drop).expect("the packet is small"),
            Self::V5 => v5().write(out, None).map(drop).expect("the packet is small"),
        }
    }

    /// CONNECT with a session that outlives the connection; `clean` drops an earlier one.
    pub fn connect(
        self,
        client_id: &str,
        login: Option<&Login>,
        clean: bool,
        keep_alive_s: u16,
        out: &mut BytesMut,
    ) {
        let v3 = || {
            let mut connect = v3::v4::Connect::new(client_id);
            connect.keep_alive = keep_alive_s;
            // In 3.1.1 a clean session also ends with the connection, and there is no other way to drop an old one.
            connect.clean_session = clean;
            connect.login =
                login.map(|login| v3::v4::Login::new(login.user.as_str(), login.password.as_str()));
            v3::v4::Packet::Connect(connect)
        };
        let v5 = || {
            let mut properties = v5::v5::ConnectProperties::new();
            properties.session_expiry_interval = Some(SESSION_EXPIRY_S);
            let connect = v5::v5::Connect {
                keep_alive: keep_alive_s,
                client_id: client_id.to_owned(),
                clean_start: clean,
                properties: Some(properties),
            };
            let login = login.map(|login| v5::v5::Login::new(login.user.as_str(), login.password.as_str()));
            v5::v5::Packet::Connect(connect, None, login)
        };
        self.write(v3, v5, out);
    }

    /// PUBLISH.
    pub fn publish(
        self,
        topic: &Bytes,
        qos: Qos,
        packet_id: u16,
        dup: bool,
        payload: &Bytes,
        out: &mut BytesMut,
    ) {
        let v3 = || {
            let qos = if qos == Qos::One { v3::QoS::AtLeastOnce } else { v3::QoS::ExactlyOnce };
            let topic = String::from_utf8_lossy(topic).into_owned();
            let mut publish = v3::v4::Publish::from_bytes(topic, qos, payload.clone());
            (publish.pkid, publish.dup) = (packet_id, dup);
            v3::v4::Packet::Publish(publish)
        };
        let v5 = || {
            let qos = if qos == Qos::One { v5::QoS::AtLeastOnce } else { v5::QoS::ExactlyOnce };
            let (topic, payload) = (topic.clone(), payload.clone());
            let publish = v5::v5::Publish {
                dup,
                qos,
                retain: false,
                topic,
                pkid: packet_id,
                payload,
                properties: None,
            };
            v5::v5::Packet::Publish(publish)
        };
        self.write(v3, v5, out);
    }

    /// PUBREL.
    pub fn release(self, packet_id: u16, out: &mut BytesMut) {
        let v3 = || v3::v4::Packet::PubRel(v3::v4::PubRel::new(packet_id));
        self.write(v3, || v5::v5::Packet::PubRel(v5::v5::PubRel::new(packet_id, None)), out);
    }

    /// PINGREQ.
    pub fn ping(self, out: &mut BytesMut) {
        self.write(|| v3::v4::Packet::PingReq, || v5::v5::Packet::PingReq(v5::v5::PingReq), out);
    }

    /// DISCONNECT at the end of the run; in MQTT 5 it also drops the session.
    pub fn disconnect(self, out: &mut BytesMut) {
        let v5 = || {
            let mut disconnect = v5::v5::Disconnect::new(v5::v5::DisconnectReasonCode::NormalDisconnection);
            disconnect.properties = Some(v5::v5::DisconnectProperties {
                session_expiry_interval: Some(0),
                reason_string: None,
                user_properties: Vec::new(),
                server_reference: None,
            });
            v5::v5::Packet::Disconnect(disconnect)
        };
        self.write(|| v3::v4::Packet::Disconnect, v5, out);
    }

    /// Takes the next packet out of `bytes`, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// `InvalidData`: the connection is of no more use.
    pub fn read(self, bytes: &mut BytesMut) -> io::Result<Option<Incoming>> {
        match self {
            Self::V3 => match v3::v4::Packet::read(bytes, MAX_INCOMING as usize) {
                Ok(packet) => incoming_v3(packet).map(Some),
                Err(v3::Error::InsufficientBytes(_)) => Ok(None),
                Err(error) => Err(invalid(error)),
            },
            Self::V5 => match v5::v5::Packet::read(bytes, Some(MAX_INCOMING)) {
                Ok(packet) => incoming_v5(packet).map(Some),
                Err(v5::Error::InsufficientBytes(_)) => Ok(None),
                Err(error) => Err(invalid(error)),
            },
        }
    }
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a packet that a publishing client does not expect")
}

fn incoming_v3(packet: v3::v4::Packet) -> io::Result<Incoming> {
    use v3::v4::{ConnectReturnCode, Packet};
    Ok(match packet {
        Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {
            Incoming::Connected { session_present: ack.session_present, receive_maximum: u16::MAX }
        }
        Packet::ConnAck(ack) => Incoming::Refused(format!("{:?}", ack.code)),
        Packet::PubAck(ack) => Incoming::Acknowledged(ack.pkid),
        Packet::PubRec(ack) => Incoming::Received(ack.pkid),
        Packet::PubComp(ack) => Incoming::Acknowledged(ack.pkid),
        Packet::PingResp => Incoming::Pong,
        _ => return Err(unexpected()),
    })
}

fn incoming_v5(packet: v5::v5::Packet) -> io::Result<Incoming> {
    use v5::v5::{ConnectReturnCode, Packet, PubAckReason, PubRecReason};
    Ok(match packet {
        Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => Incoming::Connected {
            session_present: ack.session_present,
            receive_maximum: ack.properties.and_then(|properties| properties.receive_max).unwrap_or(u16::MAX),
        },
        Packet::ConnAck(ack) => Incoming::Refused(format!("{:?}", ack.code)),
        Packet::PubAck(ack) => match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Incoming::Acknowledged(ack.pkid),
            _ => Incoming::Rejected(ack.pkid),
        },
        Packet::PubRec(ack) => match ack.reason {
            PubRecReason::Success | PubRecReason::NoMatchingSubscribers => Incoming::Received(ack.pkid),
            _ => Incoming::Rejected(ack.pkid),
        },
        Packet::PubComp(ack) => Incoming::Acknowledged(ack.pkid),
        Packet::PingResp(_) => Incoming::Pong,
        Packet::Disconnect(disconnect) => Incoming::Disconnected(format!("{:?}", disconnect.reason_code)),
        _ => return Err(unexpected()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_of_both_versions_are_read_from_any_split() {
        let check = |version: Version, bytes: &[u8], expected: Incoming| {
            let mut buffer = BytesMut::new();
            for &byte in bytes {
                assert_eq!(version.read(&mut buffer).unwrap(), None);
                buffer.extend_from_slice(&[byte]);
            }
            assert_eq!(version.read(&mut buffer).unwrap(), Some(expected));
            assert!(buffer.is_empty());
        };
        // Bytes by hand from the specifications.
        check(Version::V3, &[0x40, 2, 0x12, 0x34], Incoming::Acknowledged(0x1234));
        check(Version::V5, &[0x40, 2, 0x12, 0x34], Incoming::Acknowledged(0x1234));
        check(Version::V5, &[0x40, 4, 0x12, 0x34, 0x10, 0], Incoming::Acknowledged(0x1234));
        check(Version::V5, &[0x40, 4, 0x12, 0x34, 0x97, 0], Incoming::Rejected(0x1234));
        check(Version::V5, &[0x50, 2, 0, 7], Incoming::Received(7));
        check(Version::V3, &[0x70, 2, 0, 7], Incoming::Acknowledged(7));
        let connected = Incoming::Connected { session_present: true, receive_maximum: 20 };
        check(Version::V5, &[0x20, 6, 1, 0, 3, 0x21, 0, 20], connected);
        check(Version::V3, &[0x20, 2, 0, 5], Incoming::Refused("NotAuthorized".into()));
    }

    #[test]
    fn publishes_carry_identifier_and_repetition_flag() {
        let (topic, payload) = (Bytes::from_static(b"a/b"), Bytes::from_static(b"x"));
        let bytes = |version: Version, qos, dup| {
            let mut out = BytesMut::new();
            version.publish(&topic, qos, 0x0102, dup, &payload, &mut out);
            out.to_vec()
        };
        assert_eq!(bytes(Version::V3, Qos::One, false), b"\x32\x08\0\x03a/b\x01\x02x");
        assert_eq!(bytes(Version::V5, Qos::One, true), b"\x3a\x09\0\x03a/b\x01\x02\0x");
        assert_eq!(bytes(Version::V5, Qos::Two, false), b"\x34\x09\0\x03a/b\x01\x02\0x");
    }
}
