//! Messages of an MQTT session that must not be stored again when they come again: packet id and CRC-32C, of what of the
//! message is for the source to say.
//!
//! # Format in notes
//! 6 bytes for each: packet id (u16 BE), CRC-32C (u32 BE).

use std::collections::BTreeMap;

/// By packet id.
pub(super) type Window = BTreeMap<u16, u32>;

/// As it is noted.
pub(super) fn encode(window: &Window) -> Vec<u8> {
    window.iter().flat_map(|(id, digest)| id.to_be_bytes().into_iter().chain(digest.to_be_bytes())).collect()
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
