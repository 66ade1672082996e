//! What a DATA frame carries: postcard of one struct per (schema, rev).
//!
//! postcard has no field names and no lengths, so it cannot skip what it does not know. These rules make that safe:
//!
//! - The schema number in the header names the struct. There is no enum around it: an unknown variant would make the whole body
//!   unreadable, and a variant inserted in the middle would silently turn one reading into another.
//! - A released (schema, rev) never changes. The next revision has all its fields in the same order, and then more.
//! - Each revision has its own struct and is decoded as that struct, then upgraded by a function that says what the new fields
//!   are for old bytes.
//! - A revision newer than the newest known one is read as that one, and the rest of the bytes is left alone.
//! - A closed set is a newtype over `u8` with named constants, so that a newer value is a number and not an error.
//! - Units are in the field names; all numbers are integers.
//!
//! `testdata/schemas.txt` is the register of what was released. Bytes of every entry lie beside it and are decoded for ever.

mod occupancy;
mod raw;
#[cfg(test)]
mod tests;
mod vehicle;

use crate::error::PayloadError;
use serde::{Deserialize, Serialize};

pub use occupancy::{Presence, RoomOccupancy, RoomOccupancyV1};
pub use raw::Raw;
pub use vehicle::{FixQuality, VehiclePosition};

/// Schema numbers. Never changed, never reused; a site's own schemas begin at [`schema::PRIVATE_FIRST`].
pub mod schema {
    /// Bytes of a protocol that the gateway decodes, or nobody does: [`super::Raw`].
    pub const RAW: u16 = 1;
    /// [`super::RoomOccupancy`].
    pub const ROOM_OCCUPANCY: u16 = 2;
    /// [`super::VehiclePosition`].
    pub const VEHICLE_POSITION: u16 = 3;
    /// First number that this crate will never give to a schema of its own.
    pub const PRIVATE_FIRST: u16 = 0x8000;
}

/// CRC-32C over (schema as u16 little-endian, newest rev as u8) of every schema above, in order of number.
///
/// HELLO carries the device's. Another one than the gateway's is no reason to refuse the device: what the gateway cannot decode
/// it stores as it came.
pub const CATALOG_HASH: u32 = 0x5b76_5211;

/// A payload type: which (schema, rev) it is when it is sent, and how its revisions are read.
pub trait Payload<'de>: Serialize + Deserialize<'de> {
    /// The schema number in the header.
    const SCHEMA: u16;
    /// The revision that this type is written as.
    const REV: u8;

    /// Reads a body of revision `rev`, older ones through their upgrade, newer ones as far as they are known.
    ///
    /// # Errors
    /// [`PayloadError`]: keep the raw bytes and report it.
    fn decode(rev: u8, body: &'de [u8]) -> Result<Self, PayloadError>;

    /// Writes the body to the start of `out` and returns its length.
    ///
    /// # Errors
    /// [`PayloadError::BufferTooSmall`].
    fn encode(&self, out: &mut [u8]) -> Result<usize, PayloadError> {
        postcard::to_slice(self, out).map(|body| body.len()).map_err(|_| PayloadError::BufferTooSmall)
    }
}

/// Any payload of this crate, decoded. It exists in memory only, never on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reading<'a> {
    /// Schema 1.
    Raw(Raw<'a>),
    /// Schema 2.
    RoomOccupancy(RoomOccupancy),
    /// Schema 3.
    VehiclePosition(VehiclePosition),
}

impl<'a> Reading<'a> {
    /// Reads the body of a DATA frame by the schema and revision in its header.
    ///
    /// # Errors
    /// [`PayloadError`]: keep the raw bytes and report it.
    pub fn decode(schema: u16, rev: u8, body: &'a [u8]) -> Result<Self, PayloadError> {
        match schema {
            schema::RAW => Raw::decode(rev, body).map(Self::Raw),
            schema::ROOM_OCCUPANCY => RoomOccupancy::decode(rev, body).map(Self::RoomOccupancy),
            schema::VEHICLE_POSITION => VehiclePosition::decode(rev, body).map(Self::VehiclePosition),
            _ => Err(PayloadError::UnknownSchema(schema)),
        }
    }
}

/// Reads all of `body` as a `T`.
fn exactly<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, PayloadError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(PayloadError::Trailing),
        Err(_) => Err(PayloadError::Malformed),
    }
}

/// Reads the front of `body` as a `T`: the rest was appended by a revision that is newer than this code.
fn prefix<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, PayloadError> {
    postcard::take_from_bytes(body).map(|(value, _)| value).map_err(|_| PayloadError::Malformed)
}

/// `Ok` if `holds`, else a range error that names `field`.
fn check(holds: bool, field: &'static str) -> Result<(), PayloadError> {
    if holds { Ok(()) } else { Err(PayloadError::Range(field)) }
}
