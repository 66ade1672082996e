//! Properties of MQTT 5, section 2.2.2: which there are, of which type, and in which packets.

use super::{PacketError, read::Cursor};

/// Value of a property, by the types of section 1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// Byte.
    Byte(u8),
    /// Two Byte Integer.
    Short(u16),
    /// Four Byte Integer.
    Long(u32),
    /// Variable Byte Integer.
    Varint(u32),
    /// UTF-8 Encoded String.
    Text(&'a str),
    /// Binary Data.
    Binary(&'a [u8]),
    /// UTF-8 String Pair.
    Pair(&'a str, &'a str),
}

/// One property with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Property<'a> {
    /// Identifier, one of the constants.
    pub(crate) id: u8,
    /// Value.
    pub(crate) value: Value<'a>,
    /// Identifier and value as they came.
    pub(crate) raw: &'a [u8],
}

#[allow(missing_docs, reason = "the names are the specification's")]
impl Property<'_> {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0b;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTH_METHOD: u8 = 0x15;
    pub(crate) const AUTH_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE: u8 = 0x19;
    pub(crate) const REASON_STRING: u8 = 0x1f;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const ALIAS: u8 = 0x23;
    pub(crate) const USER: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET: u8 = 0x27;
    pub(crate) const SUBSCRIPTION_ID_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_AVAILABLE: u8 = 0x2a;
}

/// Which properties may stand in a section of a packet (section 2.2.2.2).
pub(super) type Allowed = &'static [u8];

pub(super) const CONNECT: Allowed = &[
    Property::SESSION_EXPIRY,
    Property::RECEIVE_MAXIMUM,
    Property::MAXIMUM_PACKET,
    Property::ALIAS_MAXIMUM,
    Property::REQUEST_RESPONSE,
    Property::REQUEST_PROBLEM,
    Property::USER,
    Property::AUTH_METHOD,
    Property::AUTH_DATA,
];
pub(super) const WILL: Allowed = &[
    Property::WILL_DELAY,
    Property::PAYLOAD_FORMAT,
    Property::MESSAGE_EXPIRY,
    Property::CONTENT_TYPE,
    Property::RESPONSE_TOPIC,
    Property::CORRELATION_DATA,
    Property::USER,
];
/// Without a subscription identifier, which only a server sends (MQTT-3.3.4-6).
pub(super) const PUBLISH: Allowed = &[
    Property::PAYLOAD_FORMAT,
    Property::MESSAGE_EXPIRY,
    Property::ALIAS,
    Property::RESPONSE_TOPIC,
    Property::CORRELATION_DATA,
    Property::USER,
    Property::CONTENT_TYPE,
];
pub(super) const SUBSCRIBE: Allowed = &[Property::SUBSCRIPTION_ID, Property::USER];
pub(super) const UNSUBSCRIBE: Allowed = &[Property::USER];
pub(super) const ACK: Allowed = &[Property::REASON_STRING, Property::USER];
pub(super) const DISCONNECT: Allowed = &[Property::SESSION_EXPIRY, Property::REASON_STRING, Property::USER];

/// The properties of a packet, checked when it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// Takes a length and as many bytes of properties, each `allowed`, with a value that it may have, and once at most unless it
    /// is a user property (section 2.2.2.2).
    pub(super) fn read(cursor: &mut Cursor<'a>, allowed: Allowed) -> Result<Self, PacketError> {
        let size_bytes = cursor.varint()?;
        let section = cursor.take(size_bytes as usize)?;
        let mut rest = Cursor(section);
        let mut seen = 0_u64;
        while !rest.0.is_empty() {
            let property = read(&mut rest)?;
            if !allowed.contains(&property.id) {
                return Err(PacketError::protocol("a property that does not belong to this packet"));
            }
            // Every identifier that is known is below 64.
            let bit = 1_u64 << property.id;
            if property.id != Property::USER && seen & bit != 0 {
                return Err(PacketError::protocol("a property twice"));
            }
            seen |= bit;
            check(&property)?;
        }
        Ok(Self(section))
    }

    /// The value of the property `id`.
    pub(crate) fn get(&self, id: u8) -> Option<Value<'a>> {
        self.iter().find(|property| property.id == id).map(|property| property.value)
    }

    /// An integer property that fits into 32 bits.
    pub(crate) fn number(&self, id: u8) -> Option<u32> {
        match self.get(id)? {
            Value::Byte(value) => Some(value.into()),
            Value::Short(value) => Some(value.into()),
            Value::Long(value) | Value::Varint(value) => Some(value),
            Value::Text(_) | Value::Binary(_) | Value::Pair(..) => None,
        }
    }

    /// All, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut rest = Cursor(self.0);
        std::iter::from_fn(move || read(&mut rest).ok())
    }
}

fn read<'a>(cursor: &mut Cursor<'a>) -> Result<Property<'a>, PacketError> {
    let start = cursor.0;
    // A Variable Byte Integer by the letter (section 2.2.2.2), but all identifiers have one byte.
    let id = cursor.u8()?;
    let value = match id {
        Property::PAYLOAD_FORMAT | Property::REQUEST_PROBLEM | Property::REQUEST_RESPONSE => {
            Value::Byte(cursor.u8()?)
        }
        Property::RECEIVE_MAXIMUM | Property::ALIAS_MAXIMUM | Property::ALIAS => Value::Short(cursor.u16()?),
        Property::MESSAGE_EXPIRY
        | Property::SESSION_EXPIRY
        | Property::WILL_DELAY
        | Property::MAXIMUM_PACKET => Value::Long(cursor.u32()?),
        Property::SUBSCRIPTION_ID => Value::Varint(cursor.varint()?),
        Property::CONTENT_TYPE
        | Property::RESPONSE_TOPIC
        | Property::AUTH_METHOD
        | Property::REASON_STRING => Value::Text(cursor.text()?),
        Property::CORRELATION_DATA | Property::AUTH_DATA => Value::Binary(cursor.binary()?),
        Property::USER => Value::Pair(cursor.text()?, cursor.text()?),
        _ => return Err(PacketError::malformed("an unknown property, or one that only a server sends")),
    };
    Ok(Property { id, value, raw: &start[..start.len() - cursor.0.len()] })
}

/// Ranges, sections 3.1.2.11 and 3.3.2.3.
fn check(property: &Property<'_>) -> Result<(), PacketError> {
    let sound = match (property.id, property.value) {
        (_, Value::Byte(value)) => value <= 1,
        (Property::RECEIVE_MAXIMUM, Value::Short(value)) => value != 0,
        (Property::MAXIMUM_PACKET, Value::Long(value)) => value != 0,
        (Property::SUBSCRIPTION_ID, Value::Varint(value)) => value != 0,
        (Property::ALIAS, Value::Short(0)) => {
            return Err(PacketError { reason: super::Reason::TopicAliasInvalid, what: "topic alias 0" });
        }
        (Property::RESPONSE_TOPIC, Value::Text(topic)) => !topic.is_empty() && !topic.contains(['#', '+']),
        _ => true,
    };
    if sound { Ok(()) } else { Err(PacketError::protocol("a property with a value that it must not have")) }
}

/// Bytes of `value` as a Variable Byte Integer (section 1.5.5).
pub(crate) const fn varint_size(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
