//! Frames of the link protocol: the schema in the frame's header says which reading its body is.
//!
//! | schema | stream |
//! |---|---|
//! | RoomOccupancy | `occupancy` |
//! | VehiclePosition | `vehicle-positions` |
//! | Raw, and every schema that this version does not know | `raw` |
//!
//! `value = "json"` is the normalised reading, `value = "raw"` the postcard body with its schema and revision in
//! `wayside.schema`. The bytes of Raw are Kafka's value as they are, either way, with the input that they came from in
//! `wayside.port`.
//!
//! On a serial line the link knows each device by the uid of its HELLO. A message of a broker has no link: its DATA frame
//! names the device by a short number without meaning there, so the last level of the topic is the device id.

use bytes::Bytes;
use wayside_protocol::{
    decoder::Decoder,
    error::{DecodeError, PayloadError},
    frame::{FRAME_LEN_MAX, Frame, Header, Kind},
    payload::{self, Presence, Reading},
};

use super::reading::{self, Fix, rfc3339, rounded, to_json};
use crate::{
    config::{OCCUPANCY_STREAM, RAW_STREAM, VEHICLE_POSITIONS_STREAM, Value},
    record::{
        ClockQuality, ContentType, DeviceId, NameError, Received, Record, RecordHeader, StreamName,
        UnixMicros, header,
    },
};

/// Which reading of which device: `(device, boot, seq)` names it for ever.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The device; [`uid_device`] where the link knows its uid.
    pub device: DeviceId,
    /// Restart epoch of the device.
    pub boot: u32,
    /// Number of the frame within the boot.
    pub seq: u32,
}

/// Why a frame gives no reading. It becomes a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The body is not what its schema says.
    #[error("schema {schema} rev {rev}: {source}")]
    Payload {
        /// Schema of the frame.
        schema: u16,
        /// Revision of the frame.
        rev: u8,
        /// What is wrong with the body.
        source: PayloadError,
    },
    /// A message that is no frame.
    #[error("no frame: {0}")]
    Frame(DecodeError),
    /// A message without the end of a frame, or with more than one.
    #[error("{0} frames in one message")]
    FrameCount(usize),
    /// A frame that carries no reading.
    #[error("a frame of kind {0:?} in a message")]
    Kind(Kind),
    /// An empty or overlong device id.
    #[error("device id {0}")]
    Device(#[from] NameError),
}

/// The device id of a uid: 16 lower-case hex digits.
pub fn uid_device(uid: u64) -> DeviceId {
    DeviceId::new(&format!("{uid:016x}")).expect("16 digits")
}

/// The record of one reading. `event_time` is when it was made, as far as the link could work that out from the time of receipt.
/// A value in JSON has it if the clock was set: a value is not corrected later.
///
/// # Errors
/// [`NativeError::Payload`]: a known schema whose body does not decode. The caller makes a dead letter of the body, and
/// acknowledges the frame: the device would only send the same again.
pub fn record(
    identity: Identity,
    (schema, rev): (u16, u8),
    body: &Bytes,
    event_time: Option<UnixMicros>,
    received: Received,
    value: Value,
) -> Result<Record, NativeError> {
    let schema_header = RecordHeader { name: header::SCHEMA.into(), value: format!("{schema}.{rev}").into() };
    let boot_header = RecordHeader { name: header::BOOT.into(), value: identity.boot.to_string().into() };
    let mut record = Record {
        stream: stream(RAW_STREAM),
        device: identity.device,
        value: body.clone(),
        content_type: ContentType::OctetStream,
        event_time,
        received,
        device_seq: Some(identity.seq.into()),
        headers: vec![boot_header],
    };
    let set_time = event_time.filter(|_| received.quality != ClockQuality::Unknown);
    let json = match Reading::decode(schema, rev, body) {
        Ok(Reading::RoomOccupancy(room)) => {
            record.stream = stream(OCCUPANCY_STREAM);
            (value == Value::Json).then(|| to_json(&room_occupancy(&room, set_time)))
        }
        Ok(Reading::VehiclePosition(position)) => {
            record.stream = stream(VEHICLE_POSITIONS_STREAM);
            let fix_time = fix_time(&position);
            if fix_time.is_some() {
                // The satellites' time is better than what the link worked out.
                record.event_time = fix_time;
                record.received.dates_event = false;
            }
            (value == Value::Json).then(|| to_json(&vehicle_position(&position, fix_time.or(set_time))))
        }
        Ok(Reading::Raw(raw)) => {
            record.value = Bytes::copy_from_slice(raw.bytes);
            let value = raw.port.to_string().into();
            record.headers.push(RecordHeader { name: header::PORT.into(), value });
            return Ok(record);
        }
        // A newer kind of reading, of this crate or of the site: kept as it came.
        Ok(_) | Err(PayloadError::UnknownSchema(_)) => {
            record.headers.push(schema_header);
            return Ok(record);
        }
        Err(source) => return Err(NativeError::Payload { schema, rev, source }),
    };
    match json {
        Some(json) => {
            record.value = json;
            record.content_type = ContentType::Json;
        }
        None => {
            record.content_type = ContentType::Postcard;
            record.headers.push(schema_header);
        }
    }
    Ok(record)
}

fn stream(name: &str) -> StreamName {
    StreamName::new(name).expect("a constant that is a stream name")
}

fn room_occupancy(room: &payload::RoomOccupancy, time: Option<UnixMicros>) -> reading::RoomOccupancy {
    reading::RoomOccupancy {
        time: time.and_then(rfc3339),
        zone: room.zone,
        occupied: match room.presence {
            Presence::VACANT => Some(false),
            Presence::OCCUPIED => Some(true),
            _ => None,
        },
        people: room.people,
        motion_events: room.motion_events,
        entered_total: room.entered_total,
        left_total: room.left_total,
        co2_ppm: room.co2_ppm,
        temperature_c: room.temperature_centi_c.map(|t| f64::from(t) / 100.0),
        humidity_percent: room.humidity_centi_percent.map(|h| f64::from(h) / 100.0),
        illuminance_lux: room.illuminance_lux,
        supply_v: room.supply_mv.map(|v| f64::from(v) / 1000.0),
    }
}

fn vehicle_position(
    position: &payload::VehiclePosition,
    time: Option<UnixMicros>,
) -> reading::VehiclePosition {
    let fix = Fix::from_gga(position.fix.0);
    let place = (
        Some(rounded(f64::from(position.latitude_1e7_deg) / 1e7, 7)),
        Some(rounded(f64::from(position.longitude_1e7_deg) / 1e7, 7)),
    );
    let (now, stale) = if fix == Fix::None { ((None, None), place) } else { (place, (None, None)) };
    reading::VehiclePosition {
        time: time.and_then(rfc3339),
        fix,
        lat_deg: now.0,
        lon_deg: now.1,
        stale_lat_deg: stale.0,
        stale_lon_deg: stale.1,
        altitude_m: position.altitude_cm.map(|cm| f64::from(cm) / 100.0),
        speed_mps: position.speed_mm_s.map(|mm| f64::from(mm) / 1000.0),
        course_deg: position.heading_centi_deg.map(|centi| f64::from(centi) / 100.0),
        satellites: Some(position.satellites.into()),
        hdop: None,
        accuracy_m: position.accuracy_cm.map(|cm| f64::from(cm) / 100.0),
        odometer_m: position.odometer_m.map(f64::from),
    }
}

/// Satellite time of a position, if it has a fix: without one it is as stale as the place.
fn fix_time(position: &payload::VehiclePosition) -> Option<UnixMicros> {
    let fix_unix_ms = position.fix_unix_ms.filter(|_| Fix::from_gga(position.fix.0) != Fix::None)?;
    Some(UnixMicros(i64::try_from(fix_unix_ms).ok()?.checked_mul(1000)?))
}

/// Decodes messages of a broker that hold one frame each, with or without its delimiters.
#[derive(Clone, Debug)]
pub struct MessageDecoder {
    value: Value,
}

impl MessageDecoder {
    /// A decoder whose records have `value`.
    pub fn new(value: Value) -> Self {
        Self { value }
    }

    /// Decodes `payload`, received at `received` on `topic`, whose last level is the device id.
    ///
    /// # Errors
    /// [`NativeError`]: the message is a dead letter.
    pub fn decode(&self, topic: &str, payload: &Bytes, received: Received) -> Result<Record, NativeError> {
        let device = DeviceId::new(topic.rsplit('/').next().unwrap_or_default())?;
        let (header, body) = single_frame(payload)?;
        if header.kind != Kind::Data {
            return Err(NativeError::Kind(header.kind));
        }
        let identity = Identity { device, boot: header.boot, seq: header.seq };
        record(identity, (header.schema, header.rev), &body, None, received, self.value)
    }
}

/// The one frame that `payload` is.
fn single_frame(payload: &[u8]) -> Result<(Header, Bytes), NativeError> {
    let mut decoder = Decoder::<FRAME_LEN_MAX>::new();
    let mut frames = Vec::new();
    for mut part in [payload, &[0]] {
        while let Some(outcome) = decoder.next(&mut part) {
            let Frame { header, body, .. } = outcome.map_err(NativeError::Frame)?;
            frames.push((header, Bytes::copy_from_slice(body)));
        }
    }
    match frames.len() {
        1 => Ok(frames.remove(0)),
        count => Err(NativeError::FrameCount(count)),
    }
}

#[cfg(test)]
mod tests;
