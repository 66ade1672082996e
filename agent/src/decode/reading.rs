//! The normalised readings: what Kafka's value is where a route or port says `value = "json"`.
//!
//! Fields are always there and `null` where the device does not know. Units end the names: SI, degrees and percent.
//! Times are RFC 3339 in UTC with microseconds. Fields may be added; none is renamed or changes its unit.

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;

use crate::record::UnixMicros;

/// How a position was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fix {
    /// There is none: the receiver says that it does not know where it is.
    None,
    /// The source does not say.
    #[default]
    Unknown,
    /// Satellites alone.
    Gnss,
    /// With differential corrections.
    Differential,
    /// Carrier phase, ambiguities fixed: centimetres.
    RtkFixed,
    /// Carrier phase, ambiguities floating: decimetres.
    RtkFloat,
    /// Odometer and gyroscope since the last fix.
    DeadReckoning,
    /// Entered by a person.
    Manual,
    /// Made by a simulator.
    Simulated,
}

impl Fix {
    /// By the number of NMEA 0183 GGA, which the link protocol shares. 3 (PPS) is a kind of differential fix.
    pub fn from_gga(quality: u8) -> Self {
        match quality {
            0 => Self::None,
            1 => Self::Gnss,
            2 | 3 => Self::Differential,
            4 => Self::RtkFixed,
            5 => Self::RtkFloat,
            6 => Self::DeadReckoning,
            7 => Self::Manual,
            8 => Self::Simulated,
            _ => Self::Unknown,
        }
    }
}

/// Where a vehicle is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VehiclePosition {
    /// When the position was taken, as the device or its satellites say.
    pub time: Option<String>,
    /// How it was found.
    pub fix: Fix,
    /// WGS 84 latitude, north positive. `null` without a fix.
    pub lat_deg: Option<f64>,
    /// WGS 84 longitude, east positive. `null` without a fix.
    pub lon_deg: Option<f64>,
    /// Latitude that a device without a fix repeats from its last one.
    pub stale_lat_deg: Option<f64>,
    /// Longitude that a device without a fix repeats from its last one.
    pub stale_lon_deg: Option<f64>,
    /// Height above mean sea level.
    pub altitude_m: Option<f64>,
    /// Speed over ground.
    pub speed_mps: Option<f64>,
    /// Course over ground, clockwise from true north, 0 to 360.
    pub course_deg: Option<f64>,
    /// Satellites used.
    pub satellites: Option<u32>,
    /// Horizontal dilution of precision.
    pub hdop: Option<f64>,
    /// Estimated horizontal error, 1 sigma.
    pub accuracy_m: Option<f64>,
    /// Distance driven, from a start that the device chooses.
    pub odometer_m: Option<f64>,
}

/// Who is in a room, and how the air is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoomOccupancy {
    /// When the reading was taken, as the device says.
    pub time: Option<String>,
    /// Which of the rooms that the device watches, from 0.
    pub zone: u16,
    /// Whether somebody is there; `null` if the sensor cannot tell.
    pub occupied: Option<bool>,
    /// How many, where heads are counted.
    pub people: Option<u16>,
    /// Times that motion was seen since the previous reading.
    pub motion_events: u16,
    /// People who went in since the device started, modulo 2^32.
    pub entered_total: u32,
    /// People who went out since the device started, modulo 2^32.
    pub left_total: u32,
    /// Carbon dioxide.
    pub co2_ppm: Option<u16>,
    /// Air temperature, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Relative humidity.
    pub humidity_percent: Option<f64>,
    /// Light.
    pub illuminance_lux: Option<u32>,
    /// Supply or battery voltage.
    pub supply_v: Option<f64>,
}

/// `time` as the readings write it; `None` beyond the years that RFC 3339 has.
pub fn rfc3339(time: UnixMicros) -> Option<String> {
    let time = DateTime::from_timestamp_micros(time.0)?;
    // More than four digits would be another format.
    let years = DateTime::UNIX_EPOCH..=DateTime::from_timestamp(253_402_300_799, 999_999_999)?;
    years.contains(&time).then(|| time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// `value` with at most `decimals` digits after the point, so that binary fractions do not show as false precision.
pub(super) fn rounded(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    (value * scale).round() / scale
}

/// `reading` as the bytes of a value.
pub(super) fn to_json(reading: &impl Serialize) -> bytes::Bytes {
    serde_json::to_vec(reading).expect("structs with text keys and finite numbers are JSON").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Consumers of the topics read these bytes. A field may be added; what is here stays.
    #[test]
    fn readings_have_these_names_and_units() {
        let position = VehiclePosition {
            time: rfc3339(UnixMicros(1_785_999_000_250_000)),
            fix: Fix::RtkFixed,
            lat_deg: Some(47.66198),
            lon_deg: Some(-122.32639),
            altitude_m: Some(77.5),
            speed_mps: Some(0.5),
            course_deg: Some(286.35),
            satellites: Some(17),
            hdop: Some(0.8),
            accuracy_m: Some(0.02),
            odometer_m: Some(25747.0),
            ..Default::default()
        };
        assert_eq!(
            to_json(&position),
            r#"{"time":"2026-08-06T06:50:00.250000Z","fix":"rtk-fixed","lat_deg":47.66198,"lon_deg":-122.32639,"#
                .to_owned()
                + r#""stale_lat_deg":null,"stale_lon_deg":null,"altitude_m":77.5,"speed_mps":0.5,"course_deg":286.35,"#
                + r#""satellites":17,"hdop":0.8,"accuracy_m":0.02,"odometer_m":25747.0}"#
        );
        let room = RoomOccupancy {
            occupied: Some(true),
            people: Some(3),
            temperature_c: Some(21.37),
            ..Default::default()
        };
        assert_eq!(
            to_json(&room),
            r#"{"time":null,"zone":0,"occupied":true,"people":3,"motion_events":0,"entered_total":0,"#
                .to_owned()
                + r#""left_total":0,"co2_ppm":null,"temperature_c":21.37,"humidity_percent":null,"#
                + r#""illuminance_lux":null,"supply_v":null}"#
        );
    }

    #[test]
    fn time_beyond_four_digit_years_is_none() {
        assert_eq!(rfc3339(UnixMicros(253_402_300_799_999_999)).unwrap(), "9999-12-31T23:59:59.999999Z");
        for micros in [-1, 253_402_300_800_000_000, i64::MAX, i64::MIN] {
            assert_eq!(rfc3339(UnixMicros(micros)), None, "{micros}");
        }
    }

    #[test]
    fn gga_quality_numbers_name_the_fix() {
        let names: Vec<_> = (0..=9).map(Fix::from_gga).collect();
        assert_eq!(
            serde_json::to_string(&names).unwrap(),
            r#"["none","gnss","differential","differential","rtk-fixed","rtk-float","dead-reckoning","manual","simulated","unknown"]"#
        );
    }
}
