//! High-frequency positioning of Helsinki's public transport (HFP v2): topic and JSON.
//!
//! The topic is `/hfp/v2/<journey type>/<temporal type>/<event>/<mode>/<operator>/<vehicle>/...`; what follows differs by
//! event and is not needed. The payload is an object with the event's name in capitals as the key of its body.
//!
//! The published schema is wrong about live traffic, so every field may be absent or null, and identifiers may be text or
//! number. Device: `<operator>/<vehicle>` of the topic, because the payload's operator may be another one (who runs the
//! journey, not who owns the vehicle) and is often null. Event time: `tst`, else `tsi`.

use std::{fmt, sync::LazyLock};

use bytes::Bytes;
use serde::{
    Deserialize, Serialize,
    de::{Deserializer, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value as Json};

use super::{
    json::time,
    reading::{Fix, VehiclePosition, rfc3339, to_json},
};
use crate::{
    config::Value,
    record::{ContentType, DeviceId, NameError, Received, Record, StreamName, UnixMicros},
};

/// Decodes the messages of one route.
#[derive(Clone, Debug)]
pub struct HfpDecoder {
    stream: StreamName,
    value: Value,
}

/// Why a message gives no record. It becomes a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum HfpError {
    /// The topic is not of HFP v2 with operator and vehicle.
    #[error("no HFP v2 topic with operator and vehicle")]
    Topic,
    /// An empty or overlong device id.
    #[error("device id {0}")]
    Device(#[from] NameError),
    /// Not UTF-8.
    #[error("not UTF-8 at byte {}", .0.valid_up_to())]
    Utf8(#[from] std::str::Utf8Error),
    /// Not JSON, or a field of another type.
    #[error("no HFP payload: {0}")]
    Payload(#[from] serde_json::Error),
}

/// What the topic says.
struct Topic<'a> {
    journey_type: &'a str,
    event: &'a str,
    mode: &'a str,
    operator: &'a str,
    vehicle: &'a str,
}

impl<'a> Topic<'a> {
    /// Whatever stands before `hfp/v2` was put there by a bridge between brokers.
    fn parse(topic: &'a str) -> Option<Self> {
        let at = topic.find("hfp/v2/")?;
        let mut levels = topic[at..].split('/').skip(2);
        let journey_type = levels.next()?;
        let _temporal_type = levels.next()?;
        let (event, mode) = (levels.next()?, levels.next()?);
        let (operator, vehicle) = (levels.next()?, levels.next()?);
        let known = !operator.is_empty() && !vehicle.is_empty();
        known.then_some(Self { journey_type, event, mode, operator, vehicle })
    }
}

/// The body under the event's key. Units are those of HFP.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    tst: Option<Json>,
    tsi: Option<Json>,
    lat: Option<f64>,
    long: Option<f64>,
    spd: Option<f64>,
    hdg: Option<f64>,
    acc: Option<f64>,
    odo: Option<f64>,
    dl: Option<f64>,
    drst: Option<f64>,
    occu: Option<f64>,
    loc: Option<String>,
    oday: Option<Json>,
    start: Option<Json>,
    desi: Option<Json>,
    dir: Option<Json>,
    route: Option<Json>,
    line: Option<Json>,
    jrn: Option<Json>,
    stop: Option<Json>,
    oper: Option<Json>,
    /// Fields of single events, such as `ttarr`, `tlp-requestid`, `vehiclecounts`.
    #[serde(flatten)]
    other: Map<String, Json>,
}

/// The payload: `{"VP": {...}}`, whatever the event is.
struct Payload(Body);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Events;
        impl<'de> Visitor<'de> for Events {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one event")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Payload, A::Error> {
                let mut body = None;
                while let Some(key) = map.next_key::<String>()? {
                    if body.is_none() && !key.is_empty() && key.bytes().all(|b| b.is_ascii_uppercase()) {
                        body = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                body.map(Payload).ok_or_else(|| serde::de::Error::custom("no event in capitals"))
            }
        }
        deserializer.deserialize_map(Events)
    }
}

/// The normalised form: a [`VehiclePosition`] and, with units in their names, the fields of HFP.
///
/// Fields that only some events have keep HFP's own names. One that is called as a field here is left out: a reading has
/// each name once.
#[derive(Debug, Default, Serialize)]
struct HfpReading<'a> {
    #[serde(flatten)]
    position: VehiclePosition,
    /// `vp`, `dep`, `doo`, ... as in the topic.
    event: &'a str,
    /// `journey`, `deadrun` or `signoff`.
    journey_type: &'a str,
    /// `bus`, `tram`, ...
    mode: &'a str,
    /// Owner of the vehicle.
    operator: &'a str,
    /// Number of the vehicle, of its operator.
    vehicle: &'a str,
    /// Who runs the journey.
    journey_operator: Option<Json>,
    /// `GPS`, `ODO`, `MAN`, `DR` or `N/A`.
    location_source: Option<String>,
    acceleration_mps2: Option<f64>,
    /// Ahead of the timetable; negative is late.
    schedule_lead_s: Option<f64>,
    doors_open: Option<bool>,
    occupancy_percent: Option<f64>,
    operating_day: Option<Json>,
    start_time: Option<Json>,
    designation: Option<Json>,
    direction: Option<Json>,
    route: Option<Json>,
    line: Option<Json>,
    journey: Option<Json>,
    stop: Option<Json>,
    #[serde(flatten)]
    other: Map<String, Json>,
}

/// The names of the fields of [`HfpReading`], with no value.
static OWN_FIELDS: LazyLock<Json> = LazyLock::new(|| {
    serde_json::to_value(HfpReading::default()).expect("a struct with text keys and no number is JSON")
});

impl HfpDecoder {
    /// A decoder into `stream`.
    pub fn new(stream: StreamName, value: Value) -> Self {
        Self { stream, value }
    }

    /// Decodes `payload`, received at `received` on `topic`.
    ///
    /// # Errors
    /// [`HfpError`]: the message is a dead letter.
    pub fn decode(&self, topic: &str, payload: &Bytes, received: Received) -> Result<Record, HfpError> {
        let topic = Topic::parse(topic).ok_or(HfpError::Topic)?;
        let device = DeviceId::new(&format!("{}/{}", topic.operator, topic.vehicle))?;
        let Payload(body) = serde_json::from_str(std::str::from_utf8(payload)?)?;
        let event_time = event_time(&body);
        let value = match self.value {
            Value::Raw => payload.clone(),
            Value::Json => to_json(&reading(&topic, body, event_time)),
        };
        Ok(Record {
            stream: self.stream.clone(),
            device,
            value,
            content_type: ContentType::Json,
            event_time,
            received,
            device_seq: None,
            headers: Vec::new(),
        })
    }
}

fn event_time(body: &Body) -> Option<UnixMicros> {
    [&body.tst, &body.tsi].into_iter().flatten().find_map(|field| match field {
        Json::String(text) => time::from_text(text),
        Json::Number(number) => time::from_number(number),
        _ => None,
    })
}

fn reading<'a>(topic: &Topic<'a>, mut body: Body, event_time: Option<UnixMicros>) -> HfpReading<'a> {
    body.other.retain(|name, _| OWN_FIELDS.get(name).is_none());
    let place = body
        .lat
        .zip(body.long)
        .filter(|(lat, long)| (-90.0..=90.0).contains(lat) && (-180.0..=180.0).contains(long));
    let fix = match (place, body.loc.as_deref()) {
        (None, _) => Fix::None,
        (_, Some("GPS")) => Fix::Gnss,
        (_, Some("ODO" | "DR")) => Fix::DeadReckoning,
        (_, Some("MAN")) => Fix::Manual,
        _ => Fix::Unknown,
    };
    HfpReading {
        position: VehiclePosition {
            time: event_time.and_then(rfc3339),
            fix,
            lat_deg: place.map(|(lat, _)| lat),
            lon_deg: place.map(|(_, long)| long),
            // -1.00 is how some vehicles say that they do not know.
            speed_mps: body.spd.filter(|&speed| speed >= 0.0),
            course_deg: body.hdg.filter(|&heading| (0.0..=360.0).contains(&heading)),
            odometer_m: body.odo,
            ..Default::default()
        },
        event: topic.event,
        journey_type: topic.journey_type,
        mode: topic.mode,
        operator: topic.operator,
        vehicle: topic.vehicle,
        journey_operator: body.oper,
        location_source: body.loc,
        acceleration_mps2: body.acc,
        schedule_lead_s: body.dl,
        doors_open: body.drst.map(|state| state != 0.0),
        occupancy_percent: body.occu,
        operating_day: body.oday,
        start_time: body.start,
        designation: body.desi,
        direction: body.dir,
        route: body.route,
        line: body.line,
        journey: body.jrn,
        stop: body.stop,
        other: body.other,
    }
}

#[cfg(test)]
mod tests;
