use proptest::prelude::*;

use super::*;
use crate::record::{BootId, ClockQuality, Timeline};

fn decoder(value: Value) -> JsonDecoder {
    JsonDecoder::new(
        StreamName::new("occupancy").unwrap(),
        &DeviceFrom::Pointer("/device".into()),
        Some("/time"),
        Some("/seq"),
        value,
    )
    .unwrap()
}

const RECEIVED: Received = Received {
    at: UnixMicros(1_000_000),
    quality: ClockQuality::Unknown,
    timeline: Timeline { boot: BootId(0), start: UnixMicros(0) },
    dates_event: false,
};

fn decode(payload: &str) -> Result<Record, JsonError> {
    decoder(Value::Raw).decode("t", &Bytes::copy_from_slice(payload.as_bytes()), RECEIVED)
}

#[test]
fn payload_gives_device_time_and_seq_and_stays_as_it_is() {
    let payload = r#" {"device":"r12","seq":7,"time":"2024-02-13T16:32:59.931Z","n":1.00} "#;
    let record = decode(payload).unwrap();
    assert_eq!(record.device.as_str(), "r12");
    assert_eq!(record.device_seq, Some(7));
    assert_eq!(record.event_time, Some(UnixMicros(1_707_841_979_931_000)));
    assert_eq!((&record.value[..], record.content_type), (payload.as_bytes(), ContentType::Json));
    assert_eq!((record.stream.as_str(), record.received), ("occupancy", RECEIVED));
}

#[test]
fn normalised_value_wraps_the_payload() {
    let check = |payload: &'static str, expected: &str| {
        let record = decoder(Value::Json).decode("t", &Bytes::from(payload), RECEIVED).unwrap();
        assert_eq!(record.value, expected);
    };
    check(
        r#" {"device":"a\"b","seq":7,"time":1707841979,"n":1.00} "#,
        &(r#"{"device":"a\"b","time":"2024-02-13T16:32:59.000000Z","seq":7,"received":"1970-01-01T00:00:01.000000Z","#
            .to_owned()
            + r#""reading":{"device":"a\"b","seq":7,"time":1707841979,"n":1.00}}"#),
    );
    check(
        r#"{"device":-5}"#,
        r#"{"device":"-5","time":null,"seq":null,"received":"1970-01-01T00:00:01.000000Z","reading":{"device":-5}}"#,
    );
}

#[test]
fn missing_or_strange_time_and_seq_are_none() {
    for payload in [
        r#"{"device":1}"#,
        r#"{"device":1,"seq":null,"time":null}"#,
        r#"{"device":1,"seq":-1,"time":"soon"}"#,
        r#"{"device":1,"seq":1.5,"time":{}}"#,
        r#"{"device":1,"seq":"7","time":-1}"#,
    ] {
        let record = decode(payload).unwrap();
        assert_eq!((record.event_time, record.device_seq), (None, None), "{payload}");
    }
}

#[test]
fn missing_or_wrong_device_is_an_error_that_says_so() {
    let check = |payload: &str, expected: &str| {
        assert_eq!(decode(payload).unwrap_err().to_string(), expected, "{payload}");
    };
    check("{}", r#"no device at "/device""#);
    check(r#"{"device":null}"#, r#"no device at "/device""#);
    check(r#"{"device":1.5}"#, r#"device at "/device" is neither a string nor an integer"#);
    check(r#"{"device":{"device":1}}"#, r#"device at "/device" is neither a string nor an integer"#);
    check(r#"{"device":""}"#, "device id is empty");
    check(&format!(r#"{{"device":"{}"}}"#, "x".repeat(256)), "device id has 256 bytes, more than 255");
    check(r#"{"device":1"#, "not JSON: EOF while parsing an object at line 1 column 11");
    check("", "not JSON: EOF while parsing a value at line 1 column 0");
    let not_utf8 = Bytes::from_static(b"{\"device\":\"\xff\"}");
    assert_eq!(
        decoder(Value::Raw).decode("t", &not_utf8, RECEIVED).unwrap_err().to_string(),
        "not UTF-8 at byte 11"
    );
}

#[test]
fn device_can_come_from_the_topic() {
    let pattern = DeviceFrom::Topic("building/{floor}/{device}/occupancy".into());
    let decoder =
        JsonDecoder::new(StreamName::new("s").unwrap(), &pattern, None, Some("/n"), Value::Raw).unwrap();
    let decode = |topic| decoder.decode(topic, &Bytes::from_static(b"{\"n\":3}"), RECEIVED);
    let record = decode("building/2/r7/occupancy").unwrap();
    assert_eq!((record.device.as_str(), record.device_seq), ("r7", Some(3)));
    assert!(matches!(decode("building/2/r7"), Err(JsonError::DeviceTopic)));
}

proptest! {
    #[test]
    fn scan_agrees_with_a_tree(text in "[\\[\\]{}\",:0-9a ]{0,40}") {
        let tree = serde_json::from_str::<serde_json::Value>(&text);
        let pointers = [Some(Pointer::new("/a/0").unwrap()), Some(Pointer::new("").unwrap())];
        let found = scan::scan(&text, &pointers);
        prop_assert_eq!(found.is_ok(), tree.is_ok());
        if let (Ok([inner, _]), Ok(tree)) = (found, tree) {
            let expected = tree.pointer("/a/0").filter(|value| !value.is_null());
            prop_assert_eq!(inner.is_some(), expected.is_some());
        }
    }
}
