//! What requests mean.

use axum::http::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::record::{ContentType, Received, UnixMicros, header};

const JSON: (&str, &str) = ("content-type", "application/json");
const PRODUCE_BINARY: (&str, &str) = ("content-type", "application/vnd.kafka.binary.v2+json");
const RAW: (&str, &str) = ("content-type", "application/octet-stream");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson; charset=utf-8");

fn api(tokens: Option<&str>) -> Api {
    let tokens = tokens.map(|text| TokenFile::parse(text).expect("tokens").into());
    Api::new(&config(free_address()), tokens, RECORD_BYTES_MAX, INTAKE_BYTES).expect("good routes")
}

/// The records, or the refusal, of a request to `path` with `headers`.
fn decoded(api: &Api, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Vec<Record>, Refusal> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name: axum::http::HeaderName = name.parse().expect("a name");
        map.insert(name, value.parse().expect("a value"));
    }
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let admitted = match path.strip_prefix("/topics/") {
        Some(topic) => api.topic(topic, &map)?,
        None => {
            let stream = path.strip_prefix("/v1/streams/").and_then(|path| path.strip_suffix("/records"));
            api.records(stream.expect("a path of the API"), query, &map)?
        }
    };
    let decoded = api.decode(&admitted, &Bytes::copy_from_slice(body.as_bytes()), Received::default())?;
    assert_eq!(decoded.flaws, []);
    Ok(decoded.records)
}

fn refused(api: &Api, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let refusal = decoded(api, path, headers, body).expect_err("refused");
    assert!(server::DESCRIPTION.contains(&format!("\"{}\": {{", refusal.status().as_u16())));
    (refusal.status().as_u16(), refusal.to_string())
}

#[test]
fn a_document_is_a_record_with_device_time_sequence_and_its_own_bytes() {
    let api = api(None);
    let records = decoded(&api, "/v1/streams/rooms/records", &[JSON], OBJECT).expect("good");
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!((record.stream.as_str(), record.device.as_str()), ("rooms", "r1"));
    assert_eq!(record.value, OBJECT);
    assert_eq!(record.event_time, Some(UnixMicros(1_700_000_000_000_000)));
    assert_eq!((record.device_seq, record.content_type), (Some(7), ContentType::Json));
    // A device in the request goes before that in the document.
    let records = decoded(&api, "/v1/streams/rooms/records?device=b%2F1", &[JSON], OBJECT).expect("good");
    assert_eq!(records[0].device.as_str(), "b/1");
    let records =
        decoded(&api, "/v1/streams/doors/records?x=1&device=d+1", &[LINES], "1\r\n\n2").expect("good");
    let values: Vec<_> = records.iter().map(|record| (record.device.as_str(), &record.value[..])).collect();
    assert_eq!(values, [("d 1", &b"1"[..]), ("d 1", &b"2"[..])]);
}

#[test]
fn raw_bytes_are_one_record_as_they_are() {
    let records = decoded(&api(None), "/v1/streams/doors/records?device=d", &[RAW], "\0{\n").expect("good");
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!((&record.value[..], record.content_type), (&b"\0{\n"[..], ContentType::OctetStream));
}

#[test]
fn a_wrong_body_is_refused_with_the_place() {
    let api = api(None);
    let check = |path: &str, headers: &[(&str, &str)], body: &str, status: u16, said: &str| {
        assert_eq!(refused(&api, path, headers, body), (status, said.to_owned()), "{path} {body:?}");
    };
    let rooms = "/v1/streams/rooms/records";
    check(rooms, &[JSON], "{\"device\":\"a\",\n \"x\":}", 400, "line 2, column 6: not JSON: expected value");
    check(
        rooms,
        &[LINES],
        &format!("{OBJECT}\n\n{{\"device\":}}"),
        400,
        "line 3, column 11: not JSON: expected value",
    );
    check(rooms, &[LINES], "{\"device\":1}\n{}", 400, "line 2: no device at \"/device\"");
    check(rooms, &[JSON], "", 400, "line 1: not JSON: EOF while parsing a value");
    check(rooms, &[LINES], "\n \n", 400, "there is no record");
    let doors = "/v1/streams/doors/records";
    check(doors, &[JSON], "{}", 400, "no device at \"?device= or key\"");
    check(doors, &[RAW], "x", 400, "raw bytes need ?device=");
    let too_many = "the records take more than 65536 bytes in the gateway: send fewer at once";
    check(&format!("{doors}?device=d"), &[LINES], &"1\n".repeat(4000), 413, too_many);
    check(&format!("{doors}?device="), &[RAW], "x", 400, "?device= is empty");
    check(
        rooms,
        &[("content-type", "text/plain")],
        "{}",
        415,
        "the Content-Type must be application/json, application/x-ndjson or application/octet-stream",
    );
    check(
        rooms,
        &[],
        "{}",
        415,
        "the Content-Type must be application/json, application/x-ndjson or application/octet-stream",
    );
    check("/v1/streams/halls/records", &[JSON], "{}", 404, "there is no stream \"halls\"");
    let long = "x".repeat(RECORD_BYTES_MAX);
    check(
        &format!("{doors}?device=d"),
        &[LINES],
        &format!("1\n\"{long}\""),
        413,
        "record 1: the record is larger than 4096 bytes",
    );
    check(
        rooms,
        &[JSON, ("idempotency-key", "a b")],
        OBJECT,
        400,
        "Idempotency-Key must be 1 to 255 visible ASCII characters",
    );
}

#[test]
fn a_token_opens_its_streams_and_no_others() {
    let api = api(Some("0123456789abcdef\nfedcba9876543210 doors\n"));
    let with = |path: &str, authorization: &str| {
        let headers = [JSON, ("authorization", authorization)];
        let headers = if authorization.is_empty() { &headers[..1] } else { &headers[..] };
        match decoded(&api, path, headers, OBJECT) {
            Ok(_) => 200,
            Err(refusal) => refusal.status().as_u16(),
        }
    };
    let rooms = "/v1/streams/rooms/records";
    assert_eq!(with(rooms, "Bearer 0123456789abcdef"), 200);
    assert_eq!(with(rooms, "bearer  0123456789abcdef"), 200);
    assert_eq!(with(rooms, "Bearer fedcba9876543210"), 403);
    assert_eq!(with("/v1/streams/doors/records?device=d", "Bearer fedcba9876543210"), 200);
    for wrong in
        ["", "Bearer", "Bearer ", "Bearer 0123456789abcde", "Basic 0123456789abcdef", "0123456789abcdef"]
    {
        assert_eq!(with(rooms, wrong), 401, "{wrong:?}");
    }
    // Which streams there are is not told to everybody.
    assert_eq!(with("/v1/streams/halls/records", ""), 401);
    assert_eq!(with("/v1/streams/halls/records", "Bearer 0123456789abcdef"), 404);
    assert_eq!(with("/topics/prod.rooms", "Bearer fedcba9876543210"), 403);
}

#[test]
fn a_repeated_request_brings_the_same_keys_for_consumers() {
    let headers = [LINES, ("idempotency-key", "7b1f")];
    let body = format!("{OBJECT}\n{OBJECT}");
    let records = decoded(&api(None), "/v1/streams/rooms/records", &headers, &body).expect("good");
    let keys = records.iter().map(|record| {
        let [key] = &record.headers[..] else { panic!("{record:?}") };
        (&*key.name, &key.value[..])
    });
    let name = header::IDEMPOTENCY_KEY;
    assert_eq!(keys.collect::<Vec<_>>(), [(name, &b"7b1f.0"[..]), (name, &b"7b1f.1"[..])]);
}

#[test]
fn the_produce_call_of_the_rest_proxy_is_understood() {
    let api = api(None);
    let devices = |records: &[Record]| {
        let pairs = records.iter().map(|record| {
            (record.device.as_str().to_owned(), String::from_utf8_lossy(&record.value).into_owned())
        });
        pairs.collect::<Vec<_>>()
    };
    let body = r#"{"key_schema":null,"records":[{"key":"k","value":{"a": 1.50}},{"key":7,"value":[]},{"value":{"device":"in"}}]}"#;
    let records = decoded(&api, "/topics/prod.rooms", &[PRODUCE_JSON], body).expect("good");
    let expected = [("k", r#"{"a": 1.50}"#), ("7", "[]"), ("in", r#"{"device":"in"}"#)]
        .map(|(k, v)| (k.into(), v.into()));
    assert_eq!(devices(&records), expected);
    let body = r#"{"records":[{"key":"ZGV2","value":"AAECAw=="}]}"#;
    let records = decoded(&api, "/topics/prod.doors", &[PRODUCE_BINARY], body).expect("good");
    assert_eq!((records[0].device.as_str(), &records[0].value[..]), ("dev", &[0, 1, 2, 3][..]));
    let check = |path: &str, kind, body: &str, said: &str| {
        let (_, found) = refused(&api, path, &[kind], body);
        assert_eq!(found, said, "{body}");
    };
    let rooms = "/topics/prod.rooms";
    check(
        rooms,
        PRODUCE_JSON,
        "{\"records\":[\n{]}",
        "line 2, column 2: not a produce request: key must be a string",
    );
    check(rooms, PRODUCE_JSON, r#"{"records":[]}"#, "there is no record");
    check(rooms, PRODUCE_JSON, r#"{"records":[{"key":"a","value":null}]}"#, "record 0: there is no value");
    check(
        rooms,
        PRODUCE_JSON,
        r#"{"records":[{"key":"a","value":1},{"key":[],"value":1}]}"#,
        "record 1: the key is neither a string nor an integer",
    );
    check(
        rooms,
        PRODUCE_JSON,
        r#"{"records":[{"key":"a","value":1,"partition":2}]}"#,
        "record 0: the partition is chosen by the key: leave it out",
    );
    check(
        rooms,
        PRODUCE_BINARY,
        r#"{"records":[{"key":"ZGV2","value":"AAECAw"}]}"#,
        "record 0: the value is no base64",
    );
    check(rooms, PRODUCE_BINARY, r#"{"records":[{"value":"AAE="}]}"#, "record 0: no device at \"key\"");
    check("/topics/rooms", PRODUCE_JSON, body, "there is no topic \"rooms\"");
    check(
        rooms,
        JSON,
        body,
        "the Content-Type must be application/vnd.kafka.json.v2+json or application/vnd.kafka.binary.v2+json",
    );
}

proptest! {
    #[test]
    fn any_body_is_refused_or_becomes_bounded_records(
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            r#"(\{"device":("[a-z]{0,2}"|[0-9]{1,3}|null)(,"time":[0-9]{1,12})?\}?[ \r\n]{0,2}){0,5}"#.prop_map(String::into_bytes),
            r#"\{"records":\[(\{"key":("[a-z=]{0,4}"|[0-9]|null),"value":("[A-Za-z0-9+/=]{0,8}"|[0-9]|\{\})\},?){0,3}\]\}"#
                .prop_map(String::into_bytes),
        ],
    ) {
        fuzz::http(&body);
    }
}
