//! From bytes to packets.

use super::{
    Connect, Disconnect, Packet, PacketError, Properties, Property, Publish, Reason, Subscribe,
    TOPIC_BYTES_MAX, Unsubscribe, Value, Will, properties,
};
use crate::config::{MqttVersion, Qos};

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const PUBREC: u8 = 5;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;
const SUBSCRIBE: u8 = 8;
const UNSUBSCRIBE: u8 = 10;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;
const AUTH: u8 = 15;

/// Takes pieces off the front of what is left of a packet.
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, size_bytes: usize) -> Result<&'a [u8], PacketError> {
        self.0.split_off(..size_bytes).ok_or(PacketError::malformed("a field reaches beyond its packet"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PacketError> {
        let (head, rest) =
            self.0.split_first_chunk().ok_or(PacketError::malformed("a field reaches beyond its packet"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, PacketError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, PacketError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, PacketError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Variable Byte Integer, section 1.5.5, in as few bytes as it takes.
    pub(super) fn varint(&mut self) -> Result<u32, PacketError> {
        match varint(self.0)? {
            Some((value, size_bytes)) => {
                self.0 = &self.0[size_bytes..];
                Ok(value)
            }
            None => Err(PacketError::malformed("a field reaches beyond its packet")),
        }
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], PacketError> {
        let size_bytes = self.u16()?;
        self.take(size_bytes.into())
    }

    /// UTF-8 Encoded String, section 1.5.4: well-formed, without U+0000.
    pub(super) fn text(&mut self) -> Result<&'a str, PacketError> {
        let bytes = self.binary()?;
        let text = str::from_utf8(bytes).map_err(|_| PacketError::malformed("text that is not UTF-8"))?;
        if bytes.contains(&0) {
            return Err(PacketError::malformed("text with U+0000"));
        }
        Ok(text)
    }

    /// A packet identifier, which is never 0 (MQTT-2.2.1-3).
    fn packet_id(&mut self) -> Result<u16, PacketError> {
        match self.u16()? {
            0 => Err(PacketError::protocol("packet identifier 0")),
            id => Ok(id),
        }
    }

    fn properties(
        &mut self,
        version: MqttVersion,
        allowed: properties::Allowed,
    ) -> Result<Properties<'a>, PacketError> {
        match version {
            MqttVersion::V3 => Ok(Properties::default()),
            MqttVersion::V5 => Properties::read(self, allowed),
        }
    }

    fn end(&self) -> Result<(), PacketError> {
        if self.0.is_empty() { Ok(()) } else { Err(PacketError::malformed("bytes behind the last field")) }
    }
}

/// The integer at the front and its size; `None` if more bytes are needed.
fn varint(bytes: &[u8]) -> Result<Option<(u32, usize)>, PacketError> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if index > 0 && *byte == 0 {
                return Err(PacketError::malformed("a length in more bytes than it takes"));
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(PacketError::malformed("a length of more than 4 bytes")) }
}

/// Size in bytes of the packet at the front of `bytes`; `None` if too little has come to say.
///
/// # Errors
/// [`PacketError`] as soon as the header shows it: no packet that a client may send, or one of more than `limit_bytes`.
pub(crate) fn frame(bytes: &[u8], limit_bytes: usize) -> Result<Option<usize>, PacketError> {
    let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
    let flags = match first >> 4 {
        PUBLISH => first & 0xf,
        PUBREL | SUBSCRIBE | UNSUBSCRIBE => 2,
        CONNECT | PUBACK | PUBREC | PUBCOMP | PINGREQ | DISCONNECT | AUTH => 0,
        _ => return Err(PacketError::protocol("a packet that no client may send")),
    };
    if first & 0xf != flags {
        return Err(PacketError::malformed("reserved flags")); // MQTT-2.1.3-1
    }
    let Some((remaining, length_bytes)) = varint(rest)? else { return Ok(None) };
    let size_bytes = 1 + length_bytes + remaining as usize;
    if size_bytes > limit_bytes {
        return Err(PacketError { reason: Reason::PacketTooLarge, what: "packet larger than allowed" });
    }
    Ok(Some(size_bytes))
}

/// Reads the packet `bytes`, whose size [`frame`] found, of a client that speaks `version`.
///
/// A CONNECT is read by the version that it names itself.
///
/// # Errors
/// [`PacketError`]: the connection has to be closed.
pub(crate) fn decode(version: MqttVersion, bytes: &[u8]) -> Result<Packet<'_>, PacketError> {
    let mut body = Cursor(bytes);
    let first = body.u8()?;
    let _remaining = body.varint()?;
    let packet = match first >> 4 {
        CONNECT => Packet::Connect(connect(&mut body)?),
        PUBLISH => Packet::Publish(publish(version, first & 0xf, &mut body)?),
        PUBACK => Packet::PubAck(ack(version, &mut body)?),
        PUBREL => Packet::PubRel(ack(version, &mut body)?),
        PUBREC | PUBCOMP => {
            return Err(PacketError::protocol("an answer to a message of QoS 2, which we never send"));
        }
        SUBSCRIBE => Packet::Subscribe(subscribe(version, &mut body)?),
        UNSUBSCRIBE => Packet::Unsubscribe(unsubscribe(version, &mut body)?),
        PINGREQ => Packet::PingReq,
        DISCONNECT => Packet::Disconnect(disconnect(version, &mut body)?),
        _ => return Err(PacketError::protocol("AUTH without an authentication method")),
    };
    body.end()?;
    Ok(packet)
}

fn connect<'a>(body: &mut Cursor<'a>) -> Result<Connect<'a>, PacketError> {
    let unsupported = |what| PacketError { reason: Reason::UnsupportedProtocolVersion, what };
    let name = body.text()?;
    let level = body.u8()?;
    let version = match (name, level) {
        ("MQTT", 4) => MqttVersion::V3,
        ("MQTT", 5) => MqttVersion::V5,
        ("MQTT" | "MQIsdp", _) => return Err(unsupported("neither MQTT 3.1.1 nor 5")),
        _ => return Err(PacketError::malformed("not MQTT")),
    };
    let flags = body.u8()?;
    let [reserved, clean, has_will, retain, has_password, has_user] =
        [0x01, 0x02, 0x04, 0x20, 0x40, 0x80].map(|bit| flags & bit != 0);
    if reserved {
        return Err(PacketError::malformed("reserved flag of CONNECT")); // MQTT-3.1.2-3
    }
    let will_qos = qos(flags >> 3)?;
    if !has_will && (will_qos != Qos::AtMostOnce || retain) {
        return Err(PacketError::malformed("QoS or retain of a will that is not there")); // MQTT-3.1.2-11, -13
    }
    if version == MqttVersion::V3 && has_password && !has_user {
        return Err(PacketError::malformed("password without user name")); // 3.1.1: MQTT-3.1.2-22
    }
    let keep_alive_s = body.u16()?;
    let properties = body.properties(version, properties::CONNECT)?;
    match (properties.get(Property::AUTH_METHOD), properties.get(Property::AUTH_DATA)) {
        (Some(_), _) => {
            let what = "enhanced authentication, of which there is none";
            return Err(PacketError { reason: Reason::BadAuthenticationMethod, what });
        }
        (None, Some(_)) => return Err(PacketError::protocol("authentication data without a method")),
        (None, None) => {}
    }
    let client_id = body.text()?;
    let will = if has_will {
        let properties = body.properties(version, properties::WILL)?;
        let topic = body.text()?;
        check_topic(topic)?;
        let payload = body.binary()?;
        let publish = Publish {
            dup: false,
            qos: will_qos,
            retain,
            topic,
            packet_id: 0,
            alias: None,
            properties,
            payload,
        };
        Some(Will { delay_s: properties.number(Property::WILL_DELAY).unwrap_or(0), publish })
    } else {
        None
    };
    let number = |id| properties.number(id);
    Ok(Connect {
        version,
        clean,
        keep_alive_s,
        session_expiry_s: number(Property::SESSION_EXPIRY).unwrap_or(0),
        receive_maximum: match properties.get(Property::RECEIVE_MAXIMUM) {
            Some(Value::Short(maximum)) => maximum,
            _ => u16::MAX,
        },
        maximum_packet_bytes: number(Property::MAXIMUM_PACKET).unwrap_or(u32::MAX),
        client_id,
        will,
        user: has_user.then(|| body.text()).transpose()?,
        password: has_password.then(|| body.binary()).transpose()?,
    })
}

fn publish<'a>(version: MqttVersion, flags: u8, body: &mut Cursor<'a>) -> Result<Publish<'a>, PacketError> {
    let qos = qos(flags >> 1)?;
    let dup = flags & 8 != 0;
    if dup && qos == Qos::AtMostOnce {
        return Err(PacketError::malformed("DUP with QoS 0")); // MQTT-3.3.1-2
    }
    let topic = body.text()?;
    let packet_id = if qos == Qos::AtMostOnce { 0 } else { body.packet_id()? };
    let properties = body.properties(version, properties::PUBLISH)?;
    let alias = match properties.get(Property::ALIAS) {
        Some(Value::Short(alias)) => Some(alias),
        _ => None,
    };
    if !topic.is_empty() || alias.is_none() {
        check_topic(topic)?;
    }
    Ok(Publish {
        dup,
        qos,
        retain: flags & 1 != 0,
        topic,
        packet_id,
        alias,
        properties,
        payload: std::mem::take(&mut body.0),
    })
}

/// PUBACK or PUBREL: a packet id, and in MQTT 5 perhaps a reason code and properties (section 3.4.2).
fn ack(version: MqttVersion, body: &mut Cursor<'_>) -> Result<u16, PacketError> {
    let id = body.packet_id()?;
    if version == MqttVersion::V5 && !body.0.is_empty() {
        let _reason = body.u8()?;
        if !body.0.is_empty() {
            body.properties(version, properties::ACK)?;
        }
    }
    Ok(id)
}

fn subscribe<'a>(version: MqttVersion, body: &mut Cursor<'a>) -> Result<Subscribe<'a>, PacketError> {
    let packet_id = body.packet_id()?;
    let properties = body.properties(version, properties::SUBSCRIBE)?;
    let filters = std::mem::take(&mut body.0);
    // The reserved bits, and with 3.1.1 all but the QoS (MQTT-3.8.3-5).
    let reserved = if version == MqttVersion::V3 { 0xfc } else { 0xc0 };
    for_each_filter(filters, |rest| {
        let options = rest.u8()?;
        qos(options)?;
        if options & reserved != 0 || options & 0x30 == 0x30 {
            return Err(PacketError::protocol("options of a subscription that are reserved"));
        }
        Ok(())
    })?;
    let has_identifier = properties.get(Property::SUBSCRIPTION_ID).is_some();
    Ok(Subscribe { packet_id, has_identifier, filters })
}

fn unsubscribe<'a>(version: MqttVersion, body: &mut Cursor<'a>) -> Result<Unsubscribe<'a>, PacketError> {
    let packet_id = body.packet_id()?;
    body.properties(version, properties::UNSUBSCRIBE)?;
    let filters = std::mem::take(&mut body.0);
    for_each_filter(filters, |_| Ok(()))?;
    Ok(Unsubscribe { packet_id, filters })
}

/// Checks each filter, and with `behind` what follows it. There must be one (MQTT-3.8.3-2, MQTT-3.10.3-2).
fn for_each_filter(
    filters: &[u8],
    behind: impl Fn(&mut Cursor<'_>) -> Result<(), PacketError>,
) -> Result<(), PacketError> {
    let mut rest = Cursor(filters);
    if rest.0.is_empty() {
        return Err(PacketError::protocol("no topic filter"));
    }
    while !rest.0.is_empty() {
        check_filter(rest.text()?)?;
        behind(&mut rest)?;
    }
    Ok(())
}

fn disconnect(version: MqttVersion, body: &mut Cursor<'_>) -> Result<Disconnect, PacketError> {
    let mut disconnect = Disconnect { with_will: false, session_expiry_s: None };
    if version == MqttVersion::V5 && !body.0.is_empty() {
        disconnect.with_will = body.u8()? != 0;
        if !body.0.is_empty() {
            let properties = body.properties(version, properties::DISCONNECT)?;
            disconnect.session_expiry_s = properties.number(Property::SESSION_EXPIRY);
        }
    }
    Ok(disconnect)
}

/// The lower two bits.
fn qos(bits: u8) -> Result<Qos, PacketError> {
    match bits & 3 {
        0 => Ok(Qos::AtMostOnce),
        1 => Ok(Qos::AtLeastOnce),
        2 => Ok(Qos::ExactlyOnce),
        _ => Err(PacketError::malformed("QoS 3")), // MQTT-3.3.1-4
    }
}

/// A topic name, section 4.7: at least one character, no wildcard.
fn check_topic(topic: &str) -> Result<(), PacketError> {
    let invalid = |what| Err(PacketError { reason: Reason::TopicNameInvalid, what });
    if topic.is_empty() {
        return Err(PacketError::protocol("PUBLISH without topic"));
    }
    if topic.bytes().any(|byte| matches!(byte, b'#' | b'+')) {
        return invalid("a topic name with a wildcard"); // MQTT-3.3.2-2
    }
    if topic.len() > TOPIC_BYTES_MAX {
        return invalid("a topic name longer than allowed");
    }
    Ok(())
}

/// A topic filter, section 4.7.1: `+` alone in its level, `#` alone in the last.
fn check_filter(filter: &str) -> Result<(), PacketError> {
    if filter.is_empty() || filter.len() > TOPIC_BYTES_MAX {
        return Err(PacketError::malformed("a topic filter that is empty or longer than allowed"));
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let alone = level.len() == 1 && (level != "#" || levels.peek().is_none());
        if level.contains(['#', '+']) && !alone {
            return Err(PacketError::malformed("a topic filter with a wildcard out of its place"));
        }
    }
    Ok(())
}
