//! See [`crate::fuzz`].

use super::{CRC, Cursor, HEADER_BYTES, MAGIC, MAGIC_V1};

/// The cursor's slot: bytes as they are, and as the body of a slot of each version with the right checksum. What is a cursor is the same one
/// after it was written again.
pub fn cursor(data: &[u8]) {
    let length = u32::try_from(data.len()).expect("an input has less than 4 GiB").to_be_bytes();
    let slot_of = |magic: &[u8; 8]| {
        let mut slot = [&magic[..], &[0; 4], &length, data].concat();
        let crc = CRC.checksum(&slot[12..]);
        slot[8..12].copy_from_slice(&crc.to_be_bytes());
        debug_assert_eq!(slot.len(), HEADER_BYTES + data.len());
        slot
    };
    for slot in [data, &slot_of(MAGIC), &slot_of(MAGIC_V1)] {
        if let Some(cursor) = Cursor::decode(slot) {
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
    }
}
