//! Schema 2: who is in a room, and how the air is.
//!
//! Revision 1 is what a battery-powered motion sensor or a door counter knows, in 6 to 16 bytes. Revision 2 adds the air, for room
//! units that measure it. Small devices may go on sending revision 1.

use super::{Payload, check, exactly, prefix, schema};
use crate::error::PayloadError;
use serde::{Deserialize, Serialize};

/// Whether somebody is there: a closed set that may grow. Unknown numbers are to be kept as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(postcard_schema::Schema))]
pub struct Presence(pub u8);

impl Presence {
    /// The sensor cannot tell, or is warming up.
    pub const UNKNOWN: Self = Self(0);
    /// Nobody for at least the sensor's hold time.
    pub const VACANT: Self = Self(1);
    /// Somebody, moving or not.
    pub const OCCUPIED: Self = Self(2);
}

/// Revision 1 of [`RoomOccupancy`]: its first six fields, with the same meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(postcard_schema::Schema))]
pub struct RoomOccupancyV1 {
    /// See [`RoomOccupancy::zone`].
    pub zone: u16,
    /// See [`RoomOccupancy::presence`].
    pub presence: Presence,
    /// See [`RoomOccupancy::people`].
    pub people: Option<u16>,
    /// See [`RoomOccupancy::motion_events`].
    pub motion_events: u16,
    /// See [`RoomOccupancy::entered_total`].
    pub entered_total: u32,
    /// See [`RoomOccupancy::left_total`].
    pub left_total: u32,
}

/// One look at a room. When it was taken is in the frame (`device_time_us`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(postcard_schema::Schema))]
pub struct RoomOccupancy {
    /// Which of the rooms that the device watches, from 0.
    pub zone: u16,
    /// Whether somebody is there.
    pub presence: Presence,
    /// How many, if the sensor counts heads. A door counter leaves it out: the gateway has the two totals.
    pub people: Option<u16>,
    /// Times that motion was seen since the previous reading.
    pub motion_events: u16,
    /// People who went in since the device started. Wraps around at 2^32.
    pub entered_total: u32,
    /// People who went out since the device started. Wraps around at 2^32.
    pub left_total: u32,
    /// Carbon dioxide, in ppm. From revision 2.
    pub co2_ppm: Option<u16>,
    /// Air temperature in 0.01 degrees Celsius, from -5000 to 12500. From revision 2.
    pub temperature_centi_c: Option<i16>,
    /// Relative humidity in 0.01 %, from 0 to 10000. From revision 2.
    pub humidity_centi_percent: Option<u16>,
    /// Light, in lux. From revision 2.
    pub illuminance_lux: Option<u32>,
    /// Supply or battery voltage, in mV. From revision 2.
    pub supply_mv: Option<u16>,
}

impl RoomOccupancy {
    fn checked(self) -> Result<Self, PayloadError> {
        check(self.temperature_centi_c.is_none_or(|t| (-5000..=12500).contains(&t)), "temperature_centi_c")?;
        check(self.humidity_centi_percent.is_none_or(|h| h <= 10000), "humidity_centi_percent")?;
        Ok(self)
    }
}

impl From<RoomOccupancyV1> for RoomOccupancy {
    /// A revision 1 device has no sensors for the air: all of them are absent, not zero.
    fn from(old: RoomOccupancyV1) -> Self {
        let RoomOccupancyV1 { zone, presence, people, motion_events, entered_total, left_total } = old;
        Self {
            zone,
            presence,
            people,
            motion_events,
            entered_total,
            left_total,
            co2_ppm: None,
            temperature_centi_c: None,
            humidity_centi_percent: None,
            illuminance_lux: None,
            supply_mv: None,
        }
    }
}

impl<'de> Payload<'de> for RoomOccupancyV1 {
    const SCHEMA: u16 = schema::ROOM_OCCUPANCY;
    const REV: u8 = 1;

    fn decode(rev: u8, body: &'de [u8]) -> Result<Self, PayloadError> {
        match rev {
            0 => Err(PayloadError::UnknownRev(rev)),
            1 => exactly(body),
            _ => prefix(body),
        }
    }
}

impl<'de> Payload<'de> for RoomOccupancy {
    const SCHEMA: u16 = schema::ROOM_OCCUPANCY;
    const REV: u8 = 2;

    fn decode(rev: u8, body: &'de [u8]) -> Result<Self, PayloadError> {
        match rev {
            0 => Err(PayloadError::UnknownRev(rev)),
            1 => exactly::<RoomOccupancyV1>(body).map(Self::from),
            2 => exactly::<Self>(body)?.checked(),
            _ => prefix::<Self>(body)?.checked(),
        }
    }
}
