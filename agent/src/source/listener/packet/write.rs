//! From packets to bytes: what a server sends.

use bytes::{BufMut, BytesMut};

use super::{Property, Reason, varint_size};
use crate::config::{MqttVersion, Qos};

/// CONNACK, section 3.2. What is `None` is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnAck<'a> {
    /// The client's earlier session goes on.
    pub(crate) session_present: bool,
    /// Seconds that the session outlives the connection, where that is not what was asked for.
    pub(crate) session_expiry_s: Option<u32>,
    /// Messages with QoS above 0 that the client may have unacknowledged.
    pub(crate) receive_maximum: u16,
    /// Largest packet taken, in bytes.
    pub(crate) maximum_packet_bytes: u32,
    /// Identifier given to a client that has none.
    pub(crate) assigned_client_id: Option<&'a str>,
    /// Topic aliases taken.
    pub(crate) alias_maximum: u16,
    /// Keep-alive that the client has to use instead of its own, in seconds.
    pub(crate) server_keep_alive_s: Option<u16>,
}

/// Appends a CONNACK: with `Ok` acceptance, with `Err` refusal. MQTT 3.1.1 has no word for some refusals: nothing then.
pub(crate) fn connack(out: &mut BytesMut, version: MqttVersion, outcome: Result<&ConnAck<'_>, Reason>) {
    let (session_present, reason) = match outcome {
        Ok(ack) => (ack.session_present, Reason::Success),
        Err(reason) => (false, reason),
    };
    if version == MqttVersion::V3 {
        if let Some(code) = reason.v3_connack() {
            out.put_slice(&[0x20, 2, session_present.into(), code]);
        }
        return;
    }
    let mut properties = BytesMut::new();
    if let Ok(ack) = outcome {
        if let Some(expiry_s) = ack.session_expiry_s {
            properties.put_u8(Property::SESSION_EXPIRY);
            properties.put_u32(expiry_s);
        }
        properties.put_u8(Property::RECEIVE_MAXIMUM);
        properties.put_u16(ack.receive_maximum);
        properties.put_u8(Property::MAXIMUM_PACKET);
        properties.put_u32(ack.maximum_packet_bytes);
        if let Some(id) = ack.assigned_client_id {
            properties.put_u8(Property::ASSIGNED_CLIENT_ID);
            put_text(&mut properties, id);
        }
        properties.put_u8(Property::ALIAS_MAXIMUM);
        properties.put_u16(ack.alias_maximum);
        properties.put_slice(&[Property::SUBSCRIPTION_ID_AVAILABLE, 0, Property::SHARED_AVAILABLE, 0]);
        if let Some(keep_alive_s) = ack.server_keep_alive_s {
            properties.put_u8(Property::SERVER_KEEP_ALIVE);
            properties.put_u16(keep_alive_s);
        }
    }
    out.put_u8(0x20);
    put_varint(out, 2 + varint_size(properties.len()) + properties.len());
    out.put_slice(&[session_present.into(), reason.code()]);
    put_varint(out, properties.len());
    out.put_slice(&properties);
}

/// Appends a PUBACK, section 3.4. The reason is for MQTT 5; 3.1.1 has no way to say it.
pub(crate) fn puback(out: &mut BytesMut, version: MqttVersion, packet_id: u16, reason: Reason) {
    put_ack(out, 0x40, version, packet_id, reason);
}

/// Appends a PUBREC, section 3.5; as [`puback`].
pub(crate) fn pubrec(out: &mut BytesMut, version: MqttVersion, packet_id: u16, reason: Reason) {
    put_ack(out, 0x50, version, packet_id, reason);
}

/// Appends a PUBCOMP, section 3.7; as [`puback`].
pub(crate) fn pubcomp(out: &mut BytesMut, version: MqttVersion, packet_id: u16, reason: Reason) {
    put_ack(out, 0x70, version, packet_id, reason);
}

fn put_ack(out: &mut BytesMut, first: u8, version: MqttVersion, packet_id: u16, reason: Reason) {
    let [high, low] = packet_id.to_be_bytes();
    if version == MqttVersion::V3 || reason == Reason::Success {
        out.put_slice(&[first, 2, high, low]);
    } else {
        out.put_slice(&[first, 3, high, low, reason.code()]);
    }
}

/// Appends a SUBACK, section 3.9, with a reason for each filter.
pub(crate) fn suback(out: &mut BytesMut, version: MqttVersion, packet_id: u16, reasons: &[Reason]) {
    // 3.1.1 has one code for all that fails (its section 3.9.3).
    let code = |reason: &Reason| match (version, reason.code()) {
        (MqttVersion::V3, 0x80..) => 0x80,
        (_, code) => code,
    };
    put_list(out, 0x90, version, packet_id, reasons.iter().map(code));
}

/// Appends an UNSUBACK, section 3.11; MQTT 3.1.1 has no reasons in it.
pub(crate) fn unsuback(out: &mut BytesMut, version: MqttVersion, packet_id: u16, reasons: &[Reason]) {
    let reasons = if version == MqttVersion::V3 { &[] } else { reasons };
    put_list(out, 0xb0, version, packet_id, reasons.iter().map(|reason| reason.code()));
}

fn put_list(
    out: &mut BytesMut,
    first: u8,
    version: MqttVersion,
    packet_id: u16,
    codes: impl ExactSizeIterator<Item = u8>,
) {
    let properties: &[u8] = if version == MqttVersion::V3 { &[] } else { &[0] };
    out.put_u8(first);
    put_varint(out, 2 + properties.len() + codes.len());
    out.put_u16(packet_id);
    out.put_slice(properties);
    out.extend(codes);
}

/// Appends a PINGRESP, section 3.13.
pub(crate) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// Appends a DISCONNECT, section 3.14, which a server may send in MQTT 5 alone.
pub(crate) fn disconnect(out: &mut BytesMut, version: MqttVersion, reason: Reason) {
    if version == MqttVersion::V5 {
        out.put_slice(&[0xe0, 1, reason.code()]);
    }
}

/// A message to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing<'a> {
    /// Sent before on another connection.
    pub(crate) dup: bool,
    /// Quality of service.
    pub(crate) qos: Qos,
    /// See [`SubscribeOptions::retain_as_published`](super::SubscribeOptions::retain_as_published).
    pub(crate) retain: bool,
    /// Topic.
    pub(crate) topic: &'a str,
    /// At least 1, unused with QoS 0.
    pub(crate) packet_id: u16,
    /// Seconds that are left of the message's life.
    pub(crate) expiry_s: Option<u32>,
    /// Encoded properties that are handed on as they came.
    pub(crate) properties: &'a [u8],
    /// Payload.
    pub(crate) payload: &'a [u8],
}

impl Outgoing<'_> {
    fn properties_bytes(&self, version: MqttVersion) -> usize {
        match version {
            MqttVersion::V3 => 0,
            MqttVersion::V5 => self.properties.len() + if self.expiry_s.is_some() { 5 } else { 0 },
        }
    }

    fn remaining_bytes(&self, version: MqttVersion) -> usize {
        let id_bytes = if self.qos == Qos::AtMostOnce { 0 } else { 2 };
        let properties_bytes = self.properties_bytes(version);
        let length_bytes = if version == MqttVersion::V5 { varint_size(properties_bytes) } else { 0 };
        2 + self.topic.len() + id_bytes + length_bytes + properties_bytes + self.payload.len()
    }

    /// Size of the packet in bytes.
    pub(crate) fn size_bytes(&self, version: MqttVersion) -> usize {
        let remaining_bytes = self.remaining_bytes(version);
        1 + varint_size(remaining_bytes) + remaining_bytes
    }
}

/// Appends a PUBLISH, section 3.3.
pub(crate) fn publish(out: &mut BytesMut, version: MqttVersion, message: &Outgoing<'_>) {
    out.reserve(message.size_bytes(version));
    let qos = match message.qos {
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 1,
        Qos::ExactlyOnce => 2,
    };
    out.put_u8(0x30 | u8::from(message.dup) << 3 | qos << 1 | u8::from(message.retain));
    put_varint(out, message.remaining_bytes(version));
    put_text(out, message.topic);
    if message.qos != Qos::AtMostOnce {
        out.put_u16(message.packet_id);
    }
    if version == MqttVersion::V5 {
        put_varint(out, message.properties_bytes(version));
        if let Some(expiry_s) = message.expiry_s {
            out.put_u8(Property::MESSAGE_EXPIRY);
            out.put_u32(expiry_s);
        }
        out.put_slice(message.properties);
    }
    out.put_slice(message.payload);
}

/// `text` came in a packet or is a few bytes: its length fits.
fn put_text(out: &mut BytesMut, text: &str) {
    let length = u16::try_from(text.len()).expect("a text of a packet has 65 535 bytes at most");
    out.put_u16(length);
    out.put_slice(text.as_bytes());
}

/// `value` is below 2^28: no packet is larger.
fn put_varint(out: &mut BytesMut, value: usize) {
    let mut rest = value;
    loop {
        let [low, ..] = (rest & 0x7f).to_le_bytes();
        rest >>= 7;
        out.put_u8(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            return;
        }
    }
}
