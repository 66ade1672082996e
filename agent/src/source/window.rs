//! Messages of an MQTT session that must not be stored again when they come again: packet id and CRC-32C, of what of the
//! message is for the source to say.
//!
//! # Format in notes
//! 6 bytes for each: packet id (u16 BE), CRC-32C (u32 BE).

use std::collections::BTreeMap;

/// By packet id.
pub(super) type Window = BTreeMap<u16, u32>;

/// As it is noted.
pub(super) fn encode(messages: impl Iterator<Item = (u16, u32)>) -> Box<[u8]> {
    let item = |(id, digest): (u16, u32)| {
        let ([id_high, id_low], [a, b, c, d]) = (id.to_be_bytes(), digest.to_be_bytes());
        [id_high, id_low, a, b, c, d]
    };
    messages.map(item).collect::<Vec<_>>().as_flattened().into()
}

/// What was noted. A rest that is no whole message is passed over.
pub(super) fn decode(bytes: &[u8]) -> Window {
    let (messages, _) = bytes.as_chunks();
    messages
        .iter()
        .map(|[id_high, id_low, digest @ ..]: &[u8; 6]| {
            (u16::from_be_bytes([*id_high, *id_low]), u32::from_be_bytes(*digest))
        })
        .collect()
}
