//! Messages of a broker: the first route whose filter matches says what the payload is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::{
    Origin, dead_letter,
    hfp::{HfpDecoder, HfpError},
    json::{JsonDecoder, JsonError},
    native::{self, NativeError},
    source_device,
    topic::{TopicFilter, TopicPattern},
};
use crate::{
    config::{Route, RouteDecode},
    record::{ContentType, DeviceId, NameError, Received, Record, RecordHeader, StreamName, header},
};

pub use super::json::RouteError;

/// What the header of a retained message adds to any record; kept free in every one.
const RETAINED_SIZE_BYTES: usize = header::RETAINED.len() + 4;

/// The routes of one broker, prepared once.
#[derive(Clone, Debug)]
pub struct Router {
    routes: Vec<(TopicFilter, Decoder)>,
    /// Key of dead letters whose device is not known.
    source: DeviceId,
    record_bytes_max: usize,
}

#[derive(Clone, Debug)]
enum Decoder {
    Json(JsonDecoder),
    Hfp(HfpDecoder),
    Raw { stream: StreamName, device: TopicPattern },
    Native(native::MessageDecoder),
}

/// Why a message gives no record of a stream.
#[derive(Debug, thiserror::Error)]
enum MessageError {
    #[error("no route matches")]
    NoRoute,
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error(transparent)]
    Hfp(#[from] HfpError),
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error("the topic has a NUL character")]
    TopicNul,
    #[error("no device in the topic")]
    DeviceTopic,
    #[error("device id {0}")]
    Device(#[from] NameError),
    #[error("the decoder panicked")]
    Panic,
    #[error("record larger than {0} bytes")]
    TooLarge(usize),
}

impl Router {
    /// Prepares `routes` of the source called `source`. Records larger than `record_bytes_max`, by [`Record::size_bytes`],
    /// are dead letters.
    ///
    /// # Errors
    /// [`RouteError`] of the first route that cannot be used; in a config the caller reports it.
    pub fn new(source: &str, routes: &[Route], record_bytes_max: usize) -> Result<Self, RouteError> {
        let routes = routes
            .iter()
            .map(|route| Ok((TopicFilter::new(&route.topic_filter), Decoder::new(route)?)))
            .collect::<Result<_, RouteError>>()?;
        Ok(Self { routes, source: source_device(source), record_bytes_max })
    }

    /// Decodes one message. It always gives a record: of the route's stream, or a dead letter.
    ///
    /// A message that the broker delivered as `retained` is marked with the header `wayside.retained`.
    pub fn decode(&self, topic: &str, payload: Bytes, retained: bool, received: Received) -> Record {
        // Decoders do not panic; if one does nevertheless, its message alone is hit. They keep no state to be torn.
        let decoded = catch_unwind(AssertUnwindSafe(|| self.decoded(topic, &payload, received)))
            .unwrap_or(Err(MessageError::Panic));
        let mut record = match decoded {
            Ok(record) if record.size_bytes() + RETAINED_SIZE_BYTES <= self.record_bytes_max => record,
            Ok(record) => {
                let reason = MessageError::TooLarge(self.record_bytes_max);
                self.dead_letter(&record.device, topic, &reason, &payload, received)
            }
            Err(reason) => self.dead_letter(&self.source, topic, &reason, &payload, received),
        };
        if retained {
            let value = Bytes::from_static(b"true");
            record.headers.push(RecordHeader { name: header::RETAINED.into(), value });
        }
        record
    }

    fn decoded(&self, topic: &str, payload: &Bytes, received: Received) -> Result<Record, MessageError> {
        // MQTT forbids it. To hang up for it would bring the same message again, for ever.
        if topic.contains('\0') {
            return Err(MessageError::TopicNul);
        }
        let (_, decoder) =
            self.routes.iter().find(|(filter, _)| filter.matches(topic)).ok_or(MessageError::NoRoute)?;
        match decoder {
            Decoder::Json(json) => Ok(json.decode(topic, payload, received)?),
            Decoder::Hfp(hfp) => Ok(hfp.decode(topic, payload, received)?),
            Decoder::Native(native) => Ok(native.decode(topic, payload, received)?),
            Decoder::Raw { stream, device } => Ok(Record {
                stream: stream.clone(),
                device: DeviceId::new(device.device(topic).ok_or(MessageError::DeviceTopic)?)?,
                value: payload.clone(),
                content_type: ContentType::OctetStream,
                event_time: None,
                received,
                device_seq: None,
                headers: Vec::new(),
            }),
        }
    }

    fn dead_letter(
        &self,
        device: &DeviceId,
        topic: &str,
        reason: &MessageError,
        payload: &Bytes,
        received: Received,
    ) -> Record {
        let origin = Origin { device, transport: "mqtt", place: topic };
        dead_letter(
            origin,
            reason,
            payload,
            received,
            self.record_bytes_max.saturating_sub(RETAINED_SIZE_BYTES),
        )
    }
}

impl Decoder {
    fn new(route: &Route) -> Result<Self, RouteError> {
        Ok(match &route.decode {
            RouteDecode::Json { stream, device, time_pointer, seq_pointer } => Self::Json(JsonDecoder::new(
                stream.clone(),
                device,
                time_pointer.as_deref(),
                seq_pointer.as_deref(),
                route.value,
            )?),
            RouteDecode::Hfp { stream } => Self::Hfp(HfpDecoder::new(stream.clone(), route.value)),
            RouteDecode::Raw { stream, device_topic } => {
                Self::Raw { stream: stream.clone(), device: TopicPattern::new(device_topic)? }
            }
            RouteDecode::Native => Self::Native(native::MessageDecoder::new(route.value)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{DEAD_LETTER_STREAM, DeviceFrom, Value};

    fn route(topic_filter: &str, decode: RouteDecode) -> Route {
        Route { topic_filter: topic_filter.into(), decode, value: Value::Raw }
    }

    fn stream(name: &str) -> StreamName {
        StreamName::new(name).unwrap()
    }

    fn router(record_bytes_max: usize) -> Router {
        let json = RouteDecode::Json {
            stream: stream("json"),
            device: DeviceFrom::Pointer("/device".into()),
            time_pointer: None,
            seq_pointer: Some("/seq".into()),
        };
        let raw =
            RouteDecode::Raw { stream: stream("raw"), device_topic: "building/{floor}/{device}/door".into() };
        let routes = [
            route("building/+/+/occupancy", json),
            route("building/#", raw),
            route("/hfp/v2/#", RouteDecode::Hfp { stream: stream("hfp") }),
            route("native/+", RouteDecode::Native),
        ];
        Router::new("broker", &routes, record_bytes_max).unwrap()
    }

    fn decode(topic: &str, payload: &'static [u8]) -> Record {
        router(2000).decode(topic, Bytes::from_static(payload), false, Received::default())
    }

    fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
        let found = record.headers.iter().find(|header| &*header.name == name)?;
        std::str::from_utf8(&found.value).ok()
    }

    #[test]
    fn message_takes_the_first_route_that_matches() {
        let json = decode("building/1/r2/occupancy", br#"{"device":"a","seq":4}"#);
        assert_eq!((json.stream.as_str(), json.device.as_str(), json.device_seq), ("json", "a", Some(4)));
        let raw = decode("building/1/r2/door", b"OPEN");
        assert_eq!((raw.stream.as_str(), raw.device.as_str(), &raw.value[..]), ("raw", "r2", &b"OPEN"[..]));
        assert_eq!(raw.content_type, ContentType::OctetStream);
    }

    #[test]
    fn what_does_not_decode_is_a_dead_letter_with_reason_origin_and_bytes() {
        let check = |topic: &str, payload: &'static [u8], reason: &str| {
            let record = decode(topic, payload);
            assert_eq!((record.stream.as_str(), record.device.as_str()), (DEAD_LETTER_STREAM, "broker"));
            assert_eq!(record.value, payload);
            assert_eq!(header(&record, header::ERROR), Some(reason));
            assert_eq!(header(&record, header::ORIGIN), Some(&*format!("mqtt:{topic}")));
        };
        check("elsewhere", b"x", "no route matches");
        check("building/1/r2/occupancy", b"{}", r#"no device at "/device""#);
        check("building/1/r2/other", b"x", "no device in the topic");
        check("building/1//door", b"x", "device id is empty");
        check("building/1/r\0/door", b"x", "the topic has a NUL character");
        check("native/x", b"\x05ab", "no frame: delimiter inside a COBS block");
    }

    #[test]
    fn oversized_record_is_a_dead_letter_of_its_device_with_the_first_bytes() {
        let payload = Bytes::from(vec![b'x'; 4000]);
        let record = router(2000).decode("building/1/r2/door", payload, true, Received::default());
        assert_eq!((record.stream.as_str(), record.device.as_str()), (DEAD_LETTER_STREAM, "r2"));
        assert!(record.size_bytes() <= 2000, "{}", record.size_bytes());
        assert!(!record.value.is_empty());
        let reason = "cut, of 4000 bytes: record larger than 2000 bytes";
        assert_eq!(header(&record, header::ERROR), Some(reason));
    }

    #[test]
    fn json_that_is_deep_long_or_not_quite_json_is_one_bounded_record() {
        let router = router(64 * 1024);
        let check = |payload: Vec<u8>, stream: &str, device: &str, reason: Option<&str>| {
            let record = router.decode("building/1/r2/occupancy", payload.into(), false, Received::default());
            assert_eq!((record.stream.as_str(), record.device.as_str()), (stream, device));
            assert_eq!(header(&record, header::ERROR), reason);
            assert!(record.size_bytes() <= 64 * 1024);
        };
        let dead = DEAD_LETTER_STREAM;
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        check(format!(r#"{{"x":{deep},"device":"a"}}"#).into(), "json", "a", None);
        let type_error = r#"device at "/device" is neither a string nor an integer"#;
        check(format!(r#"{{"device":{deep}}}"#).into(), dead, "broker", Some(type_error));
        let long = format!(r#"{{"device":"a","x":"{}"}}"#, "x".repeat(64 << 20));
        let too_large = format!("cut, of {} bytes: record larger than 65536 bytes", long.len());
        check(long.into(), dead, "a", Some(&too_large));
        let no_json = "not JSON: expected value at line 1 column 19";
        check(br#"{"device":"a","n":NaN}"#.to_vec(), dead, "broker", Some(no_json));
        check(br#"{"device":"a","device":"b"}"#.to_vec(), "json", "b", None);
        check(b"{\"device\":\"\xff\"}".to_vec(), dead, "broker", Some("not UTF-8 at byte 11"));
    }

    #[test]
    fn retained_message_is_marked() {
        for topic in ["building/1/r2/door", "elsewhere"] {
            let record = router(2000).decode(topic, Bytes::from_static(b"x"), true, Received::default());
            assert_eq!(header(&record, header::RETAINED), Some("true"), "{topic}");
            assert_eq!(header(&decode(topic, b"x"), header::RETAINED), None, "{topic}");
        }
    }

    #[test]
    fn route_that_cannot_be_used_is_an_error() {
        let raw = RouteDecode::Raw { stream: stream("raw"), device_topic: "a/b".into() };
        assert!(Router::new("broker", &[route("a/b", raw)], 2000).is_err());
    }

    proptest! {
        #[test]
        fn any_message_becomes_a_bounded_record(
            topic in prop_oneof![
                Just("building/1/r2/occupancy".to_owned()),
                Just("native/x".to_owned()),
                Just("/hfp/v2/journey/ongoing/vp/bus/0018/01029".to_owned()),
                "[a-z/$#+]{0,40}",
            ],
            payload in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..3000),
                "[{}\\[\\]\":,a-zA-Z0-9. ]{0,100}".prop_map(String::into_bytes),
            ],
            retained in any::<bool>(),
        ) {
            let record = router(2000).decode(&topic, Bytes::from(payload), retained, Received::default());
            prop_assert!(record.size_bytes() <= 2000);
        }
    }
}
