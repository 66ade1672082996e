//! Schema 1: bytes as they came from something that is wired to the device.

use super::{Payload, exactly, prefix, schema};
use crate::error::PayloadError;
use serde::{Deserialize, Serialize};

/// Bytes that the device passes on without reading them: a sentence of a GNSS receiver, a Modbus answer, a radar's report.
///
/// What they mean is configured at the gateway, per device and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(postcard_schema::Schema))]
pub struct Raw<'a> {
    /// Which of the device's own inputs they came from.
    pub port: u8,
    /// The bytes; as many as a frame takes.
    #[serde(borrow)]
    pub bytes: &'a [u8],
}

impl<'de> Payload<'de> for Raw<'de> {
    const SCHEMA: u16 = schema::RAW;
    const REV: u8 = 1;

    fn decode(rev: u8, body: &'de [u8]) -> Result<Self, PayloadError> {
        match rev {
            0 => Err(PayloadError::UnknownRev(rev)),
            1 => exactly(body),
            _ => prefix(body),
        }
    }
}
