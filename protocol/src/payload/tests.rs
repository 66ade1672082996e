//! The register of released schemas against the types: golden bytes that decode for ever, and descriptions that never change.

use super::*;
use crate::crc::crc32c;
use postcard_schema::Schema;
use postcard_schema::schema::NamedType;

/// `schema rev name description-crc` of everything that was ever released. Lines are added, never changed.
const RELEASED: &str = include_str!("../../testdata/schemas.txt");
/// `schema rev name hex` of one body of each.
const GOLDEN: &str = include_str!("../../testdata/payloads.txt");

fn describe(schema: &NamedType) -> String {
    // Debug prints names, order and types of all fields, nested ones too: any change that alters the bytes alters it.
    format!("{schema:?}")
}

#[test]
fn released_schemas_never_change() {
    let current = [
        (schema::RAW, 1, "Raw", describe(<Raw<'_> as Schema>::SCHEMA)),
        (schema::ROOM_OCCUPANCY, 1, "RoomOccupancyV1", describe(<RoomOccupancyV1 as Schema>::SCHEMA)),
        (schema::ROOM_OCCUPANCY, 2, "RoomOccupancy", describe(<RoomOccupancy as Schema>::SCHEMA)),
        (schema::VEHICLE_POSITION, 1, "VehiclePosition", describe(<VehiclePosition as Schema>::SCHEMA)),
    ];
    let current = current
        .map(|(schema, rev, name, text)| format!("{schema} {rev} {name} {:08x}", crc32c(text.as_bytes())));
    let released: Vec<&str> = RELEASED.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(current.as_slice(), released, "a released schema is never changed: add a revision and a line");
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

const ROOM_V1: RoomOccupancyV1 = RoomOccupancyV1 {
    zone: 2,
    presence: Presence::OCCUPIED,
    people: Some(3),
    motion_events: 130,
    entered_total: 1200,
    left_total: 1197,
};

const ROOM: RoomOccupancy = RoomOccupancy {
    zone: 2,
    presence: Presence::OCCUPIED,
    people: None,
    motion_events: 4,
    entered_total: u32::MAX,
    left_total: 0,
    co2_ppm: Some(849),
    temperature_centi_c: Some(-512),
    humidity_centi_percent: Some(4150),
    illuminance_lux: Some(365),
    supply_mv: Some(3021),
};

const POSITION: VehiclePosition = VehiclePosition {
    latitude_1e7_deg: 476_619_817,
    longitude_1e7_deg: -1_223_263_937,
    fix: FixQuality::RTK_FIXED,
    satellites: 14,
    speed_mm_s: Some(8_810),
    heading_centi_deg: Some(28_635),
    altitude_cm: Some(-120),
    accuracy_cm: Some(250),
    odometer_m: None,
    fix_unix_ms: Some(1_785_909_154_000),
};

const RAW: Raw<'static> = Raw { port: 1, bytes: b"$GPGGA,,,,,,0,,,,,,,,*66\r\n" };

fn encode<'de>(payload: &impl Payload<'de>) -> Vec<u8> {
    let mut body = vec![0; 256];
    let len = payload.encode(&mut body).unwrap();
    body.truncate(len);
    body
}

#[test]
fn golden_bytes_decode_for_ever() {
    let mut lines = GOLDEN.lines().filter(|line| !line.starts_with('#'));
    let mut check = |schema: u16, rev: u8, expected: Reading<'_>, written: Option<Vec<u8>>| {
        let line = lines.next().expect("a line for each release");
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!((fields[0], fields[1]), (&*schema.to_string(), &*rev.to_string()));
        let body = from_hex(fields[3]);
        assert_eq!(Reading::decode(schema, rev, &body), Ok(expected), "{line}");
        if let Some(written) = written {
            assert_eq!(written, body, "{line}");
        }
    };
    check(schema::RAW, 1, Reading::Raw(RAW), Some(encode(&RAW)));
    check(schema::ROOM_OCCUPANCY, 1, Reading::RoomOccupancy(ROOM_V1.into()), Some(encode(&ROOM_V1)));
    check(schema::ROOM_OCCUPANCY, 2, Reading::RoomOccupancy(ROOM), Some(encode(&ROOM)));
    check(schema::VEHICLE_POSITION, 1, Reading::VehiclePosition(POSITION), Some(encode(&POSITION)));
    assert_eq!(lines.next(), None);
}

#[test]
fn catalog_hash_covers_every_schema() {
    let newest = [
        (schema::RAW, Raw::REV),
        (schema::ROOM_OCCUPANCY, RoomOccupancy::REV),
        (schema::VEHICLE_POSITION, VehiclePosition::REV),
    ];
    let mut bytes = Vec::new();
    for (schema, rev) in newest {
        bytes.extend(schema.to_le_bytes());
        bytes.push(rev);
    }
    assert_eq!(CATALOG_HASH, crc32c(&bytes), "{:#010x}", crc32c(&bytes));
}

#[test]
fn newer_revision_is_read_as_far_as_it_is_known() {
    let mut body = encode(&ROOM);
    body.extend([1, 2, 3]);
    assert_eq!(RoomOccupancy::decode(3, &body), Ok(ROOM));
    assert_eq!(RoomOccupancyV1::decode(2, &encode(&ROOM)).map(|old| old.people), Ok(None));
}

#[test]
fn bytes_that_are_not_the_payload_are_errors() {
    let mut longer = encode(&ROOM);
    longer.push(0);
    assert_eq!(RoomOccupancy::decode(2, &longer), Err(PayloadError::Trailing));
    assert_eq!(RoomOccupancy::decode(2, &encode(&ROOM_V1)), Err(PayloadError::Malformed));
    assert_eq!(RoomOccupancy::decode(0, &longer), Err(PayloadError::UnknownRev(0)));
    assert_eq!(Reading::decode(999, 1, &longer), Err(PayloadError::UnknownSchema(999)));
    let north_of_north = VehiclePosition { latitude_1e7_deg: 900_000_001, ..POSITION };
    assert_eq!(
        VehiclePosition::decode(1, &encode(&north_of_north)),
        Err(PayloadError::Range("latitude_1e7_deg"))
    );
    assert_eq!(ROOM.encode(&mut [0; 5]), Err(PayloadError::BufferTooSmall));
}
