//! JSON of any shape: device, time and sequence are where JSON pointers (RFC 6901) say.
//!
//! The whole document is checked, but only what the pointers name is kept: one pass, no tree.
//!
//! * device: a string or an integer; anything else, or nothing, is an error.
//! * time: see [`time`]; what is no time is as good as none.
//! * seq: an unsigned integer; anything else is as good as none.

pub mod scan;
pub mod time;

use std::{borrow::Cow, fmt};

use bytes::Bytes;

use self::scan::{Pointer, PointerError, Scalar};
use super::{
    reading::rfc3339,
    topic::{TopicPattern, TopicPatternError},
};
use crate::{
    config::{DeviceFrom, Value},
    record::{ContentType, DeviceId, NameError, Received, Record, StreamName, UnixMicros},
};

/// Decodes the payloads of one route.
#[derive(Clone, Debug)]
pub struct JsonDecoder {
    stream: StreamName,
    device: Device,
    pointers: [Option<Pointer>; 3],
    value: Value,
}

#[derive(Clone, Debug)]
enum Device {
    Pointer,
    Request,
    Topic(TopicPattern),
}

const DEVICE: usize = 0;
const TIME: usize = 1;
const SEQ: usize = 2;

/// Why a route cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A JSON pointer is none.
    #[error(transparent)]
    Pointer(#[from] PointerError),
    /// A topic pattern is none.
    #[error(transparent)]
    TopicPattern(#[from] TopicPatternError),
}

/// Why a payload gives no record. The frame becomes a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not UTF-8.
    #[error("not UTF-8 at byte {}", .0.valid_up_to())]
    Utf8(#[from] std::str::Utf8Error),
    /// Not JSON.
    #[error("not JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// Nothing where the device should be.
    #[error("no device at {0:?}")]
    DeviceMissing(Box<str>),
    /// Something else where the device should be.
    #[error("device at {0:?} is neither a string nor an integer")]
    DeviceType(Box<str>),
    /// The topic has not the form of the pattern.
    #[error("no device in the topic")]
    DeviceTopic,
    /// An empty or overlong device id.
    #[error("device id {0}")]
    Device(#[from] NameError),
}

impl JsonDecoder {
    /// Prepares the pointers of a route.
    ///
    /// # Errors
    /// [`RouteError`]; in a config the caller reports it with the route.
    pub fn new(
        stream: StreamName,
        device: &DeviceFrom,
        time_pointer: Option<&str>,
        seq_pointer: Option<&str>,
        value: Value,
    ) -> Result<Self, RouteError> {
        let optional = |pointer: Option<&str>| pointer.map(Pointer::new).transpose();
        let (device, device_pointer) = match device {
            DeviceFrom::Pointer(pointer) => (Device::Pointer, Some(Pointer::new(pointer)?)),
            DeviceFrom::Request => (Device::Request, None),
            DeviceFrom::Topic(pattern) => (Device::Topic(TopicPattern::new(pattern)?), None),
        };
        let pointers = [device_pointer, optional(time_pointer)?, optional(seq_pointer)?];
        Ok(Self { stream, device, pointers, value })
    }

    /// Decodes `payload`, received at `received` on `topic`; with [`DeviceFrom::Request`] that is the device's id.
    ///
    /// # Errors
    /// [`JsonError`]: the payload is a dead letter.
    pub fn decode(&self, topic: &str, payload: &Bytes, received: Received) -> Result<Record, JsonError> {
        let text = std::str::from_utf8(payload)?;
        let found = scan::scan(text, &self.pointers)?;
        let device = match &self.device {
            Device::Pointer => self.device_in(&found[DEVICE])?,
            Device::Request => DeviceId::new(topic)?,
            Device::Topic(pattern) => DeviceId::new(pattern.device(topic).ok_or(JsonError::DeviceTopic)?)?,
        };
        let event_time = found[TIME].as_ref().and_then(time::from_scalar);
        let device_seq = match found[SEQ] {
            Some(Scalar::Unsigned(seq)) => Some(seq),
            _ => None,
        };
        let value = match self.value {
            Value::Raw => payload.clone(),
            Value::Json => enveloped(&device, event_time, device_seq, received, text).into(),
        };
        Ok(Record {
            stream: self.stream.clone(),
            device,
            value,
            content_type: ContentType::Json,
            event_time,
            received,
            device_seq,
            headers: Vec::new(),
        })
    }

    fn device_in(&self, found: &Option<Scalar<'_>>) -> Result<DeviceId, JsonError> {
        let place = || self.pointers[DEVICE].as_ref().map_or("", Pointer::as_str).into();
        let id: Cow<'_, str> = match found {
            None => return Err(JsonError::DeviceMissing(place())),
            Some(Scalar::Text(text)) => Cow::Borrowed(text),
            Some(Scalar::Unsigned(number)) => Cow::Owned(number.to_string()),
            Some(Scalar::Signed(number)) => Cow::Owned(number.to_string()),
            Some(Scalar::Float(_) | Scalar::Other) => return Err(JsonError::DeviceType(place())),
        };
        Ok(DeviceId::new(&id)?)
    }
}

/// The normalised form: `{"device","time","seq","received","reading"}`, the payload itself being `reading`.
///
/// The payload is known to be JSON, so it goes in as it is, with its own order of fields and digits of numbers.
fn enveloped(
    device: &DeviceId,
    event_time: Option<UnixMicros>,
    device_seq: Option<u64>,
    received: Received,
    payload: &str,
) -> String {
    fn quoted(text: Option<&str>) -> String {
        serde_json::to_string(&text).expect("text is JSON")
    }
    struct OrNull(Option<u64>);
    impl fmt::Display for OrNull {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {
                Some(number) => number.fmt(f),
                None => f.write_str("null"),
            }
        }
    }
    format!(
        r#"{{"device":{},"time":{},"seq":{},"received":{},"reading":{}}}"#,
        quoted(Some(device.as_str())),
        quoted(event_time.and_then(rfc3339).as_deref()),
        OrNull(device_seq),
        quoted(rfc3339(received.at).as_deref()),
        payload.trim(),
    )
}

#[cfg(test)]
mod tests;
