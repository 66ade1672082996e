//! Schema 3: where a vehicle is.

use super::{Payload, check, exactly, prefix, schema};
use crate::error::PayloadError;
use serde::{Deserialize, Serialize};

/// How the position was found: a closed set that may grow. The numbers are those of NMEA 0183 GGA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(postcard_schema::Schema))]
pub struct FixQuality(pub u8);

impl FixQuality {
    /// No fix: the position is the last known one.
    pub const NONE: Self = Self(0);
    /// Satellites alone.
    pub const GNSS: Self = Self(1);
    /// With differential corrections.
    pub const DIFFERENTIAL: Self = Self(2);
    /// Carrier phase, ambiguities fixed: centimetres.
    pub const RTK_FIXED: Self = Self(4);
    /// Carrier phase, ambiguities floating: decimetres.
    pub const RTK_FLOAT: Self = Self(5);
    /// Odometer and gyroscope since the last fix.
    pub const DEAD_RECKONING: Self = Self(6);
}

/// One position on WGS 84. When it was taken is in the frame (`device_time_us`) and, if the receiver has one, in `fix_unix_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(postcard_schema::Schema))]
pub struct VehiclePosition {
    /// Latitude in 1e-7 degrees, north positive, from -900000000 to 900000000: 1 is about 11 mm.
    pub latitude_1e7_deg: i32,
    /// Longitude in 1e-7 degrees, east positive, from -1800000000 to 1800000000.
    pub longitude_1e7_deg: i32,
    /// How the position was found. With [`FixQuality::NONE`] it is stale.
    pub fix: FixQuality,
    /// Satellites used.
    pub satellites: u8,
    /// Speed over ground, in mm/s.
    pub speed_mm_s: Option<u32>,
    /// Course over ground in 0.01 degrees, clockwise from true north, from 0 to 35999. Left out below walking pace, where it is noise.
    pub heading_centi_deg: Option<u16>,
    /// Height above mean sea level, in cm.
    pub altitude_cm: Option<i32>,
    /// Estimated horizontal error (1 sigma), in cm.
    pub accuracy_cm: Option<u16>,
    /// Distance driven since the device was fitted, in m.
    pub odometer_m: Option<u32>,
    /// Time of the fix by the satellites, in ms since 1970-01-01 UTC.
    pub fix_unix_ms: Option<u64>,
}

impl VehiclePosition {
    fn checked(self) -> Result<Self, PayloadError> {
        check(self.latitude_1e7_deg.unsigned_abs() <= 900_000_000, "latitude_1e7_deg")?;
        check(self.longitude_1e7_deg.unsigned_abs() <= 1_800_000_000, "longitude_1e7_deg")?;
        check(self.heading_centi_deg.is_none_or(|heading| heading < 36000), "heading_centi_deg")?;
        Ok(self)
    }
}

impl<'de> Payload<'de> for VehiclePosition {
    const SCHEMA: u16 = schema::VEHICLE_POSITION;
    const REV: u8 = 1;

    fn decode(rev: u8, body: &'de [u8]) -> Result<Self, PayloadError> {
        match rev {
            0 => Err(PayloadError::UnknownRev(rev)),
            1 => exactly::<Self>(body)?.checked(),
            _ => prefix::<Self>(body)?.checked(),
        }
    }
}
