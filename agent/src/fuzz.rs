//! What must hold for any bytes at all: the bodies of the fuzz targets in `tests/fuzz`, one function for each decoder.
//!
//! They are compiled for the fuzzer and for the tests, which run each over its kept corpus. Where a decoder's input is
//! guarded by a checksum, the bytes come as they are and once more with the right one: no fuzzer guesses a CRC.

use std::{num::NonZeroU32, ops::RangeInclusive};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::{
    access::{
        acl::{Access, Acl, Client},
        passwords::{self, PasswordFile},
    },
    config::{
        DeviceFrom, Route, RouteDecode, Value,
        check::{self, ConfigError},
    },
    decode::{
        json::scan::{Pointer, Scalar, scan},
        mqtt::Router,
        nmea::{NmeaDecoder, NmeaRoute},
        topic::{TopicFilter, TopicPattern},
    },
    env::Monotonic,
    log::RECORD_BYTES_MAX,
    record::{ContentType, DeviceId, Received, Record, StreamName},
};
pub use crate::{
    log::{fuzz::log, store::segment::fuzz::segment},
    replicate::cursor::fuzz::cursor,
    source::{http::fuzz::http, listener::fuzz::listener, mqtt::fuzz::mqtt},
};

/// A body: it panics where something does not hold.
pub type Target = fn(&[u8]);

/// Every target with its name, which is that of its corpus.
pub const TARGETS: [(&str, Target); 14] = [
    ("acl", acl),
    ("config", config),
    ("cursor", cursor),
    ("hfp", hfp),
    ("http", http),
    ("json", json),
    ("listener", listener),
    ("log", log),
    ("mqtt", mqtt),
    ("native", native),
    ("nmea", nmea),
    ("passwords", passwords),
    ("segment", segment),
    ("topic", topic),
];

/// Pieces of 1 to 64 bytes, cut where the bytes themselves say.
pub(crate) fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = usize::from(bytes.first()? % 64 + 1).min(bytes.len());
        bytes.split_off(..len)
    })
}

/// `data` up to its first `end`, and what is behind.
fn cut_at(data: &[u8], end: u8) -> (&[u8], &[u8]) {
    let at = data.iter().position(|byte| *byte == end).unwrap_or(data.len());
    (&data[..at], data.get(at + 1..).unwrap_or_default())
}

fn stream(name: &str) -> StreamName {
    StreamName::new(name).expect("a stream's name")
}

/// NMEA: a line gives the same records however its bytes are cut, none larger than what it was made of, and no position
/// that is nowhere.
pub fn nmea(data: &[u8]) {
    for line in [data, &sentences(data)] {
        let whole = nmea_records(Value::Raw, [line].into_iter());
        assert_eq!(nmea_records(Value::Raw, pieces(line)), whole, "in pieces");
        let bytes: usize = whole.iter().map(|record| record.value.len()).sum();
        assert!(bytes <= 2 * line.len(), "{bytes} bytes of {}", line.len());
        let readings = nmea_records(Value::Json, [line].into_iter());
        assert_eq!(readings.len(), whole.len());
        readings.iter().for_each(assert_sound);
    }
}

/// Each line of `data` as a sentence with the right checksum.
fn sentences(data: &[u8]) -> Vec<u8> {
    let lines = data.split(|byte| *byte == b'\n').map(|line| {
        let sum = line.iter().skip(1).fold(0, |sum, byte| sum ^ byte);
        [line, format!("*{sum:02X}\r\n").as_bytes()].concat()
    });
    lines.collect::<Vec<_>>().concat()
}

fn nmea_records<'a>(value: Value, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Record> {
    let device = DeviceId::new("bus").expect("a device's id");
    let route = NmeaRoute { port: "tty".into(), stream: stream("p"), raw_stream: stream("r"), device, value };
    let mut decoder = NmeaDecoder::new(route);
    let mut records: Vec<_> =
        pieces.flat_map(|piece| decoder.push(Monotonic::default(), Received::default(), piece)).collect();
    records.extend(decoder.finish());
    records
}

/// HFP: `data` is a topic, a line end and a payload. It gives one record within the limit, the reading with each name once.
pub fn hfp(data: &[u8]) {
    let decode = RouteDecode::Hfp { stream: stream("hfp") };
    let (topic, payload) = cut_at(data, b'\n');
    for value in [Value::Raw, Value::Json] {
        let record = message(decode.clone(), value, topic, payload);
        if value == Value::Json {
            assert_sound(&record);
        }
    }
}

/// JSON: `data` is three pointers (device, time, sequence number) with blanks between, a line end and a payload. The scan
/// finds what the whole document has there, and the envelope holds the payload.
pub fn json(data: &[u8]) {
    let (pointers, payload) = cut_at(data, b'\n');
    let Ok(pointers) = str::from_utf8(pointers) else { return };
    let mut pointers = pointers.split(' ');
    let pointers = [(); 3].map(|()| pointers.next().and_then(|pointer| Pointer::new(pointer).ok()));
    if let Ok(text) = str::from_utf8(payload) {
        // The scan does not look into what no pointer names, so it may take what is no document. Never the other way.
        if let Ok(document) = serde_json::from_str::<Json>(text) {
            let found = scan(text, &pointers).expect("a document");
            let expected = pointers.clone().map(|pointer| scalar(document.pointer(pointer?.as_str())?));
            assert_eq!(found, expected);
        }
    }
    let [device, time, seq] = pointers.map(|pointer| pointer.map(|pointer| pointer.as_str().to_owned()));
    let Some(device) = device else { return };
    let device = DeviceFrom::Pointer(device);
    let decode = RouteDecode::Json { stream: stream("json"), device, time_pointer: time, seq_pointer: seq };
    for value in [Value::Raw, Value::Json] {
        let record = message(decode.clone(), value, b"a/b", payload);
        if record.stream.as_str() == "json" && value == Value::Json {
            let envelope: Option<Json> = serde_json::from_slice(&record.value).ok();
            let reading: Option<Json> = serde_json::from_slice(payload).ok();
            assert_eq!(envelope.map(|envelope| envelope["reading"].clone()), reading);
        }
    }
}

fn scalar(value: &Json) -> Option<Scalar<'_>> {
    match value {
        Json::Null => None,
        Json::String(text) => Some(Scalar::Text(text.into())),
        Json::Number(number) if number.is_u64() => number.as_u64().map(Scalar::Unsigned),
        Json::Number(number) if number.is_i64() => number.as_i64().map(Scalar::Signed),
        Json::Number(number) => number.as_f64().map(Scalar::Float),
        Json::Bool(_) | Json::Array(_) | Json::Object(_) => Some(Scalar::Other),
    }
}

/// Native frames in messages of a broker: as the bytes are, and as the body of a sound frame whose schema and revision are
/// their first three.
pub fn native(data: &[u8]) {
    use wayside_protocol::frame::{Flags, Frame, Header, Kind};

    for value in [Value::Raw, Value::Json] {
        message(RouteDecode::Native, value, b"a/b", data);
    }
    let Some((&[low, high, rev], body)) = data.split_first_chunk() else { return };
    let schema = u16::from_le_bytes([low, high]);
    let header =
        Header { kind: Kind::Data, flags: Flags::NEEDS_ACK, device: 1, boot: 2, seq: 3, schema, rev };
    let mut wire = [0; 320];
    let Ok(len) = Frame { header, extension: &[0; 12], body }.encode(&mut wire) else { return };
    for value in [Value::Raw, Value::Json] {
        let record = message(RouteDecode::Native, value, b"a/b", &wire[..len]);
        assert_eq!(record.device.as_str() == "b", record.device_seq == Some(3));
        if value == Value::Json {
            assert_sound(&record);
        }
    }
}

/// Decodes one message by a route that takes all, and checks what holds for every record.
fn message(decode: RouteDecode, value: Value, topic: &[u8], payload: &[u8]) -> Record {
    let route = Route { topic_filter: "#".into(), decode, value };
    let router = Router::new("broker", &[route], RECORD_BYTES_MAX).expect("a route");
    let topic = String::from_utf8_lossy(topic);
    let record = router.decode(&topic, Bytes::copy_from_slice(payload), false, Received::default());
    assert!(record.size_bytes() <= RECORD_BYTES_MAX);
    record
}

/// What the ranges are of. It cannot be read from an object that has one of them twice.
#[derive(Deserialize)]
struct Ranged {
    lat_deg: Option<f64>,
    lon_deg: Option<f64>,
    stale_lat_deg: Option<f64>,
    stale_lon_deg: Option<f64>,
    course_deg: Option<f64>,
    speed_mps: Option<f64>,
    hdop: Option<f64>,
}

/// A normalised reading is JSON, and what it says is possible.
fn assert_sound(reading: &Record) {
    if reading.content_type != ContentType::Json {
        return;
    }
    let is =
        |value: Option<f64>, range: RangeInclusive<f64>| value.is_none_or(|value| range.contains(&value));
    let text = str::from_utf8(&reading.value).expect("JSON is UTF-8");
    let found: Ranged = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    for lat_deg in [found.lat_deg, found.stale_lat_deg] {
        assert!(is(lat_deg, -90.0..=90.0), "{text}");
    }
    for lon_deg in [found.lon_deg, found.stale_lon_deg] {
        assert!(is(lon_deg, -180.0..=180.0), "{text}");
    }
    assert!(is(found.course_deg, 0.0..=360.0), "{text}");
    for positive in [found.speed_mps, found.hdop] {
        assert!(is(positive, 0.0..=f64::MAX), "{text}");
    }
}

/// Topics: `data` is a filter, a line end and a topic. The filter matches as a walk by the letter of section 4.7 does, and a
/// pattern's device is a level of the topic.
pub fn topic(data: &[u8]) {
    let (filter, topic) = cut_at(data, b'\n');
    let (Ok(filter), Ok(topic)) = (str::from_utf8(filter), str::from_utf8(topic)) else { return };
    let matches = TopicFilter::new(filter).matches(topic);
    assert!(TopicFilter::new("#").matches(topic) != topic.starts_with('$'));
    if !filter.starts_with("$share/") {
        let levels: Vec<&str> = filter.split('/').collect();
        let hidden = topic.starts_with('$') && matches!(levels[0], "#" | "+");
        let topic: Vec<&str> = topic.split('/').collect();
        assert_eq!(matches, !hidden && fits(&levels, &topic), "{filter} on {topic:?}");
    }
    if let Ok(pattern) = TopicPattern::new(filter) {
        let device = pattern.device(topic);
        assert!(device.is_none_or(|device| topic.split('/').any(|level| level == device)));
    }
}

fn fits(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) | ([], []) => true,
        (["+", filter @ ..], [_, topic @ ..]) => fits(filter, topic),
        ([level, filter @ ..], [found, topic @ ..]) => level == found && fits(filter, topic),
        _ => false,
    }
}

/// The configuration: `data` is a file, and behind a zero byte lines of `WAYSIDE__KEY=value`. It is one, or each of its
/// faults has one line.
pub fn config(data: &[u8]) {
    let (text, variables) = cut_at(data, 0);
    let Ok(text) = str::from_utf8(text) else { return };
    let variables = String::from_utf8_lossy(variables);
    let variables: Vec<_> = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.starts_with("WAYSIDE__"))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    if let Err(error) = check::parse(text, &variables) {
        let lines = error.to_string().lines().count();
        match error {
            ConfigError::Faults(faults) => assert_eq!(lines, faults.len(), "{faults:#?}"),
            ConfigError::Syntax(errors) => assert!(!errors.is_empty()),
            ConfigError::Read(_) => panic!("nothing is read"),
        }
    }
}

/// Access control lists: `data` is a file, a zero byte, and with line ends between a user name (none if empty), a client id
/// and a topic. The decision is that of Mosquitto's loop over all lines, with the names written into the patterns.
pub fn acl(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    let (text, asked) = data.split_once('\0').unwrap_or((data, ""));
    let acl = match Acl::parse(text) {
        Ok(acl) => acl,
        Err(errors) => return assert!(!errors.is_empty()),
    };
    let mut asked = asked.splitn(3, '\n');
    let (Some(user), Some(id), Some(topic)) = (asked.next(), asked.next(), asked.next()) else { return };
    let client = Client { user: (!user.is_empty()).then_some(user), id };
    for access in [Access::Read, Access::Write] {
        assert_eq!(acl.allows(client, access, topic), allows_by_the_manual(text, client, access, topic));
    }
}

/// What mosquitto.conf(5) says of `text`, line by line.
fn allows_by_the_manual(text: &str, client: Client<'_>, access: Access, topic: &str) -> bool {
    let mut section = None;
    // By what comes first: own denials, own grants, denials of patterns, grants of patterns.
    let mut found = [false; 4];
    let is_wild = [client.user.unwrap_or_default(), client.id].concat().contains(['+', '#']);
    found[2] = is_wild;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((keyword, rest)) = line.trim_end().trim_start_matches(' ').split_once(' ') else { continue };
        let rest = rest.trim();
        if keyword == "user" {
            section = Some(rest);
            continue;
        }
        let (word, filter) = rest.split_once(' ').unwrap_or(("readwrite", rest));
        let mut filter = filter.trim_start().to_owned();
        let is_pattern = keyword == "pattern";
        if !is_pattern && section != client.user {
            continue;
        }
        let is_system = filter.starts_with('$');
        if is_pattern {
            let names = |level| match level {
                "%c" => Some(client.id),
                "%u" => client.user,
                other => Some(other),
            };
            let Some(levels) = filter.split('/').map(names).collect::<Option<Vec<_>>>() else { continue };
            filter = levels.join("/");
        }
        let levels: Vec<&str> = filter.split('/').collect();
        let matches =
            is_system == topic.starts_with('$') && fits(&levels, &topic.split('/').collect::<Vec<_>>());
        let grants = word == "readwrite" || (word == "read") == (access == Access::Read);
        found[2 * usize::from(is_pattern)] |= matches && word == "deny";
        found[2 * usize::from(is_pattern) + 1] |= matches && word != "deny" && grants;
    }
    found.iter().position(|found| *found).is_some_and(|first| first % 2 == 1)
}

/// Password files: `data` is a file, and behind a zero byte a password. Any text is a file or has its lines named; a line made
/// of its parts accepts its password and no other.
pub fn passwords(data: &[u8]) {
    let (text, password) = cut_at(data, 0);
    let Ok(text) = str::from_utf8(text) else { return };
    if let Err(errors) = PasswordFile::parse(text) {
        assert!(!errors.is_empty() && errors.is_sorted_by(|a, b| a.line < b.line));
    }
    let user = text.split([':', '\n', '\r']).next().unwrap_or_default();
    if user.is_empty() || user.starts_with('#') {
        return;
    }
    let line = passwords::line(user, NonZeroU32::MIN, b"salt", password);
    let file = PasswordFile::parse(&line).expect("as mosquitto_passwd writes it");
    assert!(file.accepts(user, password));
    assert!(!file.accepts(user, &[password, b"x"].concat()));
    assert!(!file.accepts(&format!("{user}x"), password));
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_kept_input_passes_its_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs = fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            for input in inputs {
                let path = input.unwrap().path();
                println!("{}", path.display());
                target(&fs::read(path).unwrap());
            }
        }
    }
}
