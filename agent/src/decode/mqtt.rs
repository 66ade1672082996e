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
