use proptest::prelude::*;
use wayside_protocol::{
    frame::Flags,
    payload::{FixQuality, Payload, Raw, RoomOccupancyV1, VehiclePosition, schema},
};

use super::*;

fn encode<'a>(payload: &impl Payload<'a>) -> Bytes {
    let mut out = [0; 256];
    let len = payload.encode(&mut out).unwrap();
    Bytes::copy_from_slice(&out[..len])
}

fn position(fix: FixQuality) -> VehiclePosition {
    VehiclePosition {
        latitude_1e7_deg: 476_619_800,
        longitude_1e7_deg: -1_223_263_900,
        fix,
        satellites: 17,
        speed_mm_s: Some(1500),
        heading_centi_deg: Some(28_635),
        altitude_cm: Some(7750),
        accuracy_cm: Some(120),
        odometer_m: Some(1000),
        fix_unix_ms: Some(1_786_010_400_250),
    }
}

fn record_of(schema: (u16, u8), body: &Bytes, value: Value) -> Result<Record, NativeError> {
    let identity = Identity { device: uid_device(0xab), boot: 7, seq: 9 };
    let received = Received { quality: ClockQuality::Estimated, dates_event: true, ..Received::default() };
    record(identity, schema, body, Some(UnixMicros(5)), received, value)
}

fn headers(record: &Record) -> Vec<(&str, &[u8])> {
    record.headers.iter().map(|header| (&*header.name, &header.value[..])).collect()
}

#[test]
fn position_becomes_a_reading_with_units() {
    let body = encode(&position(FixQuality::RTK_FIXED));
    let record = record_of((schema::VEHICLE_POSITION, 1), &body, Value::Json).unwrap();
    assert_eq!(record.stream.as_str(), VEHICLE_POSITIONS_STREAM);
    assert_eq!(record.device.as_str(), "00000000000000ab");
    assert_eq!((record.device_seq, record.event_time), (Some(9), Some(UnixMicros(1_786_010_400_250_000))));
    assert_eq!(headers(&record), [("wayside.boot", &b"7"[..])]);
    assert_eq!(
        record.value,
        r#"{"time":"2026-08-06T10:00:00.250000Z","fix":"rtk-fixed","lat_deg":47.66198,"lon_deg":-122.32639,"#
            .to_owned()
            + r#""stale_lat_deg":null,"stale_lon_deg":null,"altitude_m":77.5,"speed_mps":1.5,"course_deg":286.35,"#
            + r#""satellites":17,"hdop":null,"accuracy_m":1.2,"odometer_m":1000.0}"#
    );
}

#[test]
fn position_without_a_fix_is_stale_and_its_time_does_not_count() {
    let body = encode(&position(FixQuality::NONE));
    let record = record_of((schema::VEHICLE_POSITION, 1), &body, Value::Json).unwrap();
    let reading: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
    assert_eq!(record.event_time, Some(UnixMicros(5)));
    assert_eq!((&reading["fix"], &reading["lat_deg"]), (&"none".into(), &serde_json::Value::Null));
    assert_eq!(reading["stale_lat_deg"], 47.66198);
}

#[test]
fn raw_value_is_the_body_with_its_schema() {
    let room = RoomOccupancyV1 {
        zone: 1,
        presence: Presence::OCCUPIED,
        people: Some(3),
        motion_events: 2,
        entered_total: 5,
        left_total: 2,
    };
    let body = encode(&room);
    let raw = record_of((schema::ROOM_OCCUPANCY, 1), &body, Value::Raw).unwrap();
    assert_eq!((raw.stream.as_str(), raw.content_type), (OCCUPANCY_STREAM, ContentType::Postcard));
    assert_eq!(raw.value, body);
    assert_eq!(headers(&raw), [("wayside.boot", &b"7"[..]), ("wayside.schema", b"2.1")]);
    let json = record_of((schema::ROOM_OCCUPANCY, 1), &body, Value::Json).unwrap();
    let reading: serde_json::Value = serde_json::from_slice(&json.value).unwrap();
    assert_eq!((&reading["occupied"], &reading["people"]), (&true.into(), &3.into()));
    assert_eq!(reading["time"], "1970-01-01T00:00:00.000005Z");
}

#[test]
fn a_value_has_no_time_by_a_clock_that_was_not_set_and_satellites_need_none() {
    let identity = || Identity { device: uid_device(1), boot: 7, seq: 1 };
    let received = Received { dates_event: true, ..Received::default() };
    for (fix, time) in [(FixQuality::NONE, true), (FixQuality::GNSS, false)] {
        let body = encode(&position(fix));
        let schema = (schema::VEHICLE_POSITION, 1);
        let record = record(identity(), schema, &body, Some(UnixMicros(5)), received, Value::Json).unwrap();
        let reading: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
        assert_eq!((reading["time"].is_null(), record.received.dates_event), (time, time), "{reading}");
    }
}

#[test]
fn passed_on_bytes_and_unknown_schemas_go_to_the_raw_stream() {
    let body = encode(&Raw { port: 3, bytes: b"\x01\x02" });
    let record = record_of((schema::RAW, 1), &body, Value::Json).unwrap();
    assert_eq!((record.stream.as_str(), &record.value[..]), (RAW_STREAM, &b"\x01\x02"[..]));
    assert_eq!(headers(&record), [("wayside.boot", &b"7"[..]), ("wayside.port", b"3")]);
    let site = record_of((0x8001, 4), &body, Value::Json).unwrap();
    assert_eq!((site.stream.as_str(), &site.value), (RAW_STREAM, &body));
    assert_eq!(headers(&site), [("wayside.boot", &b"7"[..]), ("wayside.schema", b"32769.4")]);
}

#[test]
fn body_that_is_not_its_schema_is_an_error() {
    for (rev, body) in [(1, &b""[..]), (1, &[0xff; 40]), (0, b"")] {
        let error = record_of((schema::VEHICLE_POSITION, rev), &Bytes::copy_from_slice(body), Value::Raw);
        assert!(matches!(error, Err(NativeError::Payload { schema: 3, .. })), "{error:?}");
    }
}

fn frame(kind: Kind) -> Vec<u8> {
    let body = encode(&position(FixQuality::GNSS));
    let header = Header {
        kind,
        flags: Flags::NEEDS_ACK,
        device: 1,
        boot: 7,
        seq: 9,
        schema: schema::VEHICLE_POSITION,
        rev: 1,
    };
    let mut wire = [0; 256];
    let len = Frame { header, extension: &[1, 2, 3], body: &body }.encode(&mut wire).unwrap();
    wire[..len].to_vec()
}

#[test]
fn message_is_one_frame_with_or_without_delimiters() {
    let decoder = MessageDecoder::new(Value::Json);
    let decode =
        |payload: &[u8]| decoder.decode("fleet/bus-7", &Bytes::copy_from_slice(payload), Received::default());
    let wire = frame(Kind::Data);
    for payload in [&wire[..], &wire[1..], &wire[1..wire.len() - 1]] {
        let record = decode(payload).unwrap();
        assert_eq!((record.device.as_str(), record.device_seq), ("bus-7", Some(9)));
        assert_eq!(record.stream.as_str(), VEHICLE_POSITIONS_STREAM);
    }
    assert!(matches!(decode(b""), Err(NativeError::FrameCount(0))));
    assert!(matches!(decode(&[&wire[..], &wire].concat()), Err(NativeError::FrameCount(2))));
    assert!(matches!(decode(&wire[..20]), Err(NativeError::Frame(_))));
    assert!(matches!(decode(&frame(Kind::Ack)), Err(NativeError::Kind(Kind::Ack))));
}

proptest! {
    #[test]
    fn any_body_decodes_without_panic(schema in 0u16..6, rev in 0u8..4, body in prop::collection::vec(any::<u8>(), 0..80)) {
        let body = Bytes::from(body);
        for value in [Value::Raw, Value::Json] {
            if let Ok(record) = record_of((schema, rev), &body, value) {
                prop_assert!(record.content_type != ContentType::Json || serde_json::from_slice::<serde_json::Value>(&record.value).is_ok());
            }
        }
    }
}
