//! The body of the Confluent REST Proxy's produce call, version 2, and its answer.
//!
//! ```text
//! {"records": [{"key": KEY, "value": VALUE}, ..]}
//! ```
//! `json`: both are JSON; a key is a string or an integer. `binary`: both are base64. The key is the device id. Schemas are not
//! looked at. A value that is null is refused: Wayside writes no tombstones. So is a partition: the key chooses it.
//!
//! # References
//! <https://docs.confluent.io/platform/current/kafka-rest/api.html#post--topics-(string-topic_name)>

use axum::http::StatusCode;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Stored,
    refusal::{Flaw, Refusal},
};
use crate::record::DeviceId;

/// How keys and values are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Embedded {
    /// `application/vnd.kafka.json.v2+json`
    Json,
    /// `application/vnd.kafka.binary.v2+json`, also the default of the proxy.
    Binary,
}

/// One record of the call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Produced {
    /// The key, if there is one.
    pub(super) device: Option<DeviceId>,
    /// The value's own bytes.
    pub(super) value: Bytes,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    records: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    partition: Option<i32>,
}

/// The proxy's number of an error that sending again does not mend.
const NOT_RETRIABLE: u32 = 1;
const DROPPED: &str = "dropped: the gateway's log is full, and the stream's policy is drop-newest";

/// The answer: where each record went.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    offsets: Vec<Place>,
    key_schema_id: Option<u32>,
    value_schema_id: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Place {
    partition: i32,
    /// -1, as Kafka's producer says where it does not know: the record is on the gateway, Kafka gives it an offset later.
    offset: i64,
    error_code: Option<u32>,
    error: Option<&'static str>,
}

impl Answer {
    /// For what is stored.
    pub(super) fn new(stored: &Stored) -> Self {
        let places = stored.places.as_deref().unwrap_or_default();
        let offsets = stored.partitions.iter().enumerate().map(|(index, partition)| {
            let is_dropped = places.get(index).is_some_and(Option::is_none);
            Place {
                partition: partition.0,
                offset: -1,
                error_code: is_dropped.then_some(NOT_RETRIABLE),
                error: is_dropped.then_some(DROPPED),
            }
        });
        Self { offsets: offsets.collect(), key_schema_id: None, value_schema_id: None }
    }
}

/// The records in `body`, each decoded when it is asked for.
///
/// # Errors
/// The body is no call. What is wrong with a record is in its place.
pub(super) fn parse(
    embedded: Embedded,
    body: &Bytes,
) -> Result<impl Iterator<Item = Result<Produced, Flaw>>, Flaw> {
    let parsed: Body<'_> = serde_json::from_slice(body).map_err(|error| {
        let what = format!("not a produce request: {error}");
        let what = what.split(" at line ").next().unwrap_or_default().to_owned();
        Flaw {
            record: None,
            line: Some(error.line()),
            column: Some(error.column()).filter(|column| *column > 0),
            what,
        }
    })?;
    let entries = parsed.records.into_iter().enumerate();
    Ok(entries.map(move |(index, entry)| {
        entry.decode(embedded, body).map_err(|what| Flaw { record: Some(index), what, ..Flaw::default() })
    }))
}

impl Entry<'_> {
    fn decode(self, embedded: Embedded, body: &Bytes) -> Result<Produced, String> {
        if self.partition.is_some() {
            return Err("the partition is chosen by the key: leave it out".into());
        }
        let value = self.value.ok_or("there is no value")?.get();
        let key = self.key.map(|key| key.get());
        let (key, value) = match embedded {
            Embedded::Json => {
                let value = body.slice_ref(value.as_bytes());
                (
                    key.map(|key| {
                        text(key).or_else(|| integer(key)).ok_or("the key is neither a string nor an integer")
                    }),
                    value,
                )
            }
            Embedded::Binary => {
                let bytes = |quoted: &str| STANDARD.decode(text(quoted)?).ok();
                let value = bytes(value).ok_or("the value is no base64")?;
                let utf8 = |key: &str| String::from_utf8(bytes(key)?).ok();
                (key.map(|key| utf8(key).ok_or("the key is no base64 of UTF-8")), value.into())
            }
        };
        let device = key.transpose()?.map(|key| DeviceId::new(&key));
        let device = device.transpose().map_err(|error| format!("the key {error}"))?;
        Ok(Produced { device, value })
    }
}

fn text(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

fn integer(json: &str) -> Option<String> {
    let number: serde_json::Number = serde_json::from_str(json).ok()?;
    (number.is_i64() || number.is_u64()).then(|| number.to_string())
}

/// A refusal in the words of the proxy: a status, or one with two further digits.
#[derive(Debug, Serialize)]
pub(super) struct Error {
    error_code: u16,
    message: String,
}

impl Error {
    /// `refusal` for a client of the proxy.
    pub(super) fn new(refusal: &Refusal) -> Self {
        let error_code = match refusal {
            Refusal::NotFound(_) => 40_401,
            Refusal::Unauthorized => 40_101,
            Refusal::Forbidden => 40_301,
            Refusal::Malformed(_) => 422,
            other => other.status().as_u16(),
        };
        Self { error_code, message: refusal.to_string() }
    }

    /// Its HTTP status.
    pub(super) fn status(&self) -> StatusCode {
        let status = if self.error_code > 999 { self.error_code / 100 } else { self.error_code };
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}
