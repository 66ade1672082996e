//! What requests mean: who may, which stream, and which records are in the body. Pure.

use std::{borrow::Cow, collections::BTreeMap, num::NonZeroU16};

use axum::http::{HeaderMap, header};
use bytes::Bytes;

use super::{
    keys::Key,
    produce,
    refusal::{Flaw, Refusal},
};
use crate::{
    access::tokens::{TokenFile, TokenRefused},
    config::{DeviceFrom, HttpSource},
    decode::json::{JsonDecoder, JsonError, RouteError},
    kept::Kept,
    record::{self, ContentType, DeviceId, Received, Record, RecordHeader, StreamName},
};

/// Longest `Idempotency-Key`, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// Kinds of bodies at `/v1/streams/{stream}/records`.
const RECORDS_TYPES: &str = "application/json, application/x-ndjson or application/octet-stream";
/// Kinds of bodies at `/topics/{topic}`.
const PRODUCE_TYPES: &str = "application/vnd.kafka.json.v2+json or application/vnd.kafka.binary.v2+json";

/// The streams of a source and who may write to them.
#[derive(Debug)]
pub(super) struct Api {
    streams: BTreeMap<StreamName, Decoders>,
    /// What a topic's name has in front of its stream's.
    topic_prefix: String,
    /// `None` lets everybody in.
    tokens: Option<Kept<TokenFile>>,
    record_bytes_max: usize,
    /// Bytes of the records of one request: a body of two-byte lines takes a hundred times its size.
    request_bytes_max: usize,
}

/// The JSON decoders of a stream.
#[derive(Debug)]
struct Decoders {
    partitions: NonZeroU16,
    /// Where the request names the device.
    named: JsonDecoder,
    /// Where the document does; `None` where no pointer says where.
    pointed: Option<JsonDecoder>,
}

/// A request whose body may come.
#[derive(Debug)]
pub(super) struct Admitted {
    stream: StreamName,
    format: Format,
    idempotency_key: Option<Bytes>,
    /// A record that is wrong does not keep the others out.
    each: bool,
}

/// What a body has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// At least one, in the order of the body.
    pub(super) records: Vec<Record>,
    /// What is wrong with the others, where the request asked for that.
    pub(super) flaws: Vec<Flaw>,
}

impl Admitted {
    /// The request's `Idempotency-Key`, if it has one.
    pub(super) fn key(&self) -> Option<Key> {
        self.idempotency_key.as_ref().map(|key| Key::new(&self.stream, key))
    }
}

/// What a body is.
#[derive(Debug)]
enum Format {
    /// One JSON document, of this device or of the one that it names.
    Json(Option<DeviceId>),
    /// One in each line.
    Lines(Option<DeviceId>),
    /// Bytes of this device.
    Raw(DeviceId),
    /// The produce call of the REST proxy.
    Produce(produce::Embedded),
}

impl Api {
    /// Prepares the routes of `config`. Records larger than `record_bytes_max`, by [`Record::size_bytes`], are refused, and
    /// requests whose records have more than `request_bytes_max` together.
    ///
    /// # Errors
    /// [`RouteError`] of the first route that cannot be used; the config was checked for it.
    pub(super) fn new(
        config: &HttpSource,
        tokens: Option<Kept<TokenFile>>,
        record_bytes_max: usize,
        request_bytes_max: usize,
    ) -> Result<Self, RouteError> {
        let streams = config.routes.iter().map(|route| {
            let decoder = |device: &DeviceFrom| {
                let (time, seq) = (route.time_pointer.as_deref(), route.seq_pointer.as_deref());
                JsonDecoder::new(route.stream.clone(), device, time, seq, route.value)
            };
            let pointer = route.device_pointer.clone().map(DeviceFrom::Pointer);
            let decoders = Decoders {
                partitions: route.partitions,
                named: decoder(&DeviceFrom::Request)?,
                pointed: pointer.as_ref().map(decoder).transpose()?,
            };
            Ok((route.stream.clone(), decoders))
        });
        Ok(Self {
            streams: streams.collect::<Result<_, RouteError>>()?,
            topic_prefix: format!("{}.", config.environment),
            tokens,
            record_bytes_max,
            request_bytes_max,
        })
    }

    /// `POST /v1/streams/{stream}/records`, by its head.
    ///
    /// # Errors
    /// [`Refusal`]: the body need not be read.
    pub(super) fn records(
        &self,
        stream: &str,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Admitted, Refusal> {
        let stream = self.admitted(stream, headers)?.ok_or_else(|| not_found("stream", stream))?;
        let device = device_in(query)?;
        let each = match parameter(query, "results").as_deref() {
            None | Some("all") => false,
            Some("each") => true,
            Some(_) => return Err(Refusal::Results),
        };
        let format = match media_type(headers).as_deref() {
            Some("application/json") => Format::Json(device),
            Some("application/x-ndjson" | "application/jsonl") => Format::Lines(device),
            Some("application/octet-stream") => Format::Raw(device.ok_or(Refusal::DeviceMissing)?),
            _ => return Err(Refusal::MediaType(RECORDS_TYPES)),
        };
        Ok(Admitted { stream, format, idempotency_key: idempotency_key(headers)?, each })
    }

    /// `POST /topics/{topic}`, by its head.
    ///
    /// # Errors
    /// [`Refusal`]: the body need not be read.
    pub(super) fn topic(&self, topic: &str, headers: &HeaderMap) -> Result<Admitted, Refusal> {
        let stream = topic.strip_prefix(&self.topic_prefix).unwrap_or_default();
        let stream = self.admitted(stream, headers)?.ok_or_else(|| not_found("topic", topic))?;
        let embedded = match media_type(headers).as_deref() {
            Some("application/vnd.kafka.json.v2+json") => produce::Embedded::Json,
            Some("application/vnd.kafka.binary.v2+json" | "application/vnd.kafka.v2+json") => {
                produce::Embedded::Binary
            }
            _ => return Err(Refusal::MediaType(PRODUCE_TYPES)),
        };
        let format = Format::Produce(embedded);
        Ok(Admitted { stream, format, idempotency_key: idempotency_key(headers)?, each: false })
    }

    /// The stream called `name`, if there is one, for whom its token opens it. Who has none is not told which there are.
    fn admitted(&self, name: &str, headers: &HeaderMap) -> Result<Option<StreamName>, Refusal> {
        if let Some(tokens) = &self.tokens {
            let token = bearer_token(headers).ok_or(Refusal::Unauthorized)?;
            tokens.get().check(token, name).map_err(|refused| match refused {
                TokenRefused::Unknown => Refusal::Unauthorized,
                TokenRefused::OtherStreams => Refusal::Forbidden,
            })?;
        }
        Ok(self.streams.get_key_value(name).map(|(stream, _)| stream.clone()))
    }

    /// Partitions of the request's stream.
    pub(super) fn partitions(&self, admitted: &Admitted) -> NonZeroU16 {
        self.decoders(admitted).partitions
    }

    fn decoders(&self, admitted: &Admitted) -> &Decoders {
        self.streams.get(&admitted.stream).expect("admitted by its name")
    }

    /// The records of `body`: all of them or none, unless the request asks for each by itself.
    ///
    /// # Errors
    /// [`Refusal`] of the first that is none.
    pub(super) fn decode(
        &self,
        admitted: &Admitted,
        body: &Bytes,
        received: Received,
    ) -> Result<Decoded, Refusal> {
        let decoded = Decoded { records: Vec::new(), flaws: Vec::new() };
        let mut batch = Batch { api: self, admitted, decoded, size_bytes: 0 };
        match &admitted.format {
            Format::Raw(device) => {
                batch.push(Ok(raw_record(&admitted.stream, device.clone(), body.clone(), received)))?;
            }
            Format::Json(device) => {
                let record = self.json(admitted, device.as_ref(), body, received);
                batch.push(record.map_err(|error| flaw(&error, None)))?;
            }
            Format::Lines(device) => {
                for (line, text) in (1..).zip(body.split(|byte| *byte == b'\n')) {
                    let text = body.slice_ref(text.trim_ascii());
                    if !text.is_empty() {
                        let record = self.json(admitted, device.as_ref(), &text, received);
                        batch.push(record.map_err(|error| flaw(&error, Some(line))))?;
                    }
                }
            }
            Format::Produce(embedded) => {
                for (index, produced) in produce::parse(*embedded, body)?.enumerate() {
                    let produced = produced?;
                    let record = match embedded {
                        produce::Embedded::Json => {
                            self.json(admitted, produced.device.as_ref(), &produced.value, received)
                        }
                        produce::Embedded::Binary => produced
                            .device
                            .ok_or(JsonError::DeviceMissing("key".into()))
                            .map(|device| raw_record(&admitted.stream, device, produced.value, received)),
                    };
                    let flaw = |error: JsonError| Flaw {
                        record: Some(index),
                        what: error.to_string(),
                        ..Flaw::default()
                    };
                    batch.push(record.map_err(flaw))?;
                }
            }
        }
        let decoded = batch.decoded;
        if decoded.records.is_empty() {
            let none = || Flaw { what: "there is no record".into(), ..Flaw::default() };
            return Err(decoded.flaws.into_iter().next().unwrap_or_else(none).into());
        }
        Ok(decoded)
    }

    /// The record of a document: of `device`, or else of the device that the document names.
    fn json(
        &self,
        admitted: &Admitted,
        device: Option<&DeviceId>,
        document: &Bytes,
        received: Received,
    ) -> Result<Record, JsonError> {
        let decoders = self.decoders(admitted);
        match (device, &decoders.pointed) {
            (Some(device), _) => decoders.named.decode(device.as_str(), document, received),
            (None, Some(pointed)) => pointed.decode("", document, received),
            (None, None) => Err(JsonError::DeviceMissing("?device= or key".into())),
        }
    }
}

/// The records of a request, as far as they are decoded.
struct Batch<'a> {
    api: &'a Api,
    admitted: &'a Admitted,
    decoded: Decoded,
    size_bytes: usize,
}

impl Batch<'_> {
    /// Takes the next record of the body, or what is wrong with it.
    fn push(&mut self, record: Result<Record, Flaw>) -> Result<(), Refusal> {
        let index = self.decoded.records.len() + self.decoded.flaws.len();
        let taken = record.map_err(Refusal::from).and_then(|record| self.take(index, record));
        match taken {
            Err(Refusal::Malformed(flaw) | Refusal::RecordTooLarge(flaw)) if self.admitted.each => {
                self.decoded.flaws.push(Flaw { record: Some(index), ..flaw });
                Ok(())
            }
            taken => taken,
        }
    }

    fn take(&mut self, index: usize, mut record: Record) -> Result<(), Refusal> {
        if let Some(key) = &self.admitted.idempotency_key {
            let value = [key, format!(".{index}").as_bytes()].concat().into();
            record.headers.push(RecordHeader { name: record::header::IDEMPOTENCY_KEY.into(), value });
        }
        if record.size_bytes() > self.api.record_bytes_max {
            let what = format!("the record is larger than {} bytes", self.api.record_bytes_max);
            return Err(Refusal::RecordTooLarge(Flaw { record: Some(index), what, ..Flaw::default() }));
        }
        self.size_bytes += record.size_bytes();
        if self.size_bytes > self.api.request_bytes_max {
            return Err(Refusal::TooMany(self.api.request_bytes_max));
        }
        self.decoded.records.push(record);
        Ok(())
    }
}

fn raw_record(stream: &StreamName, device: DeviceId, value: Bytes, received: Received) -> Record {
    Record {
        stream: stream.clone(),
        device,
        value,
        content_type: ContentType::OctetStream,
        event_time: None,
        received,
        device_seq: None,
        headers: Vec::new(),
    }
}

/// `error`, in the body's line `line`, or in a body that is one document.
fn flaw(error: &JsonError, line: Option<usize>) -> Flaw {
    let record = None;
    match error {
        JsonError::Syntax(syntax) if syntax.line() > 0 => {
            // The error ends in its place, which is that in the document.
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default().to_owned();
            let line = line.unwrap_or(1) + syntax.line() - 1;
            Flaw {
                record,
                line: Some(line),
                column: Some(syntax.column()).filter(|column| *column > 0),
                what,
            }
        }
        other => Flaw { record, line, column: None, what: other.to_string() },
    }
}

fn not_found(what: &str, name: &str) -> Refusal {
    Refusal::NotFound(format!("{what} {name:?}"))
}

/// The token of `Authorization: Bearer ...`; the word in any case (RFC 9110 section 11.1).
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// The media type of the body, without its parameters, in small letters.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_ascii_lowercase())
}

fn device_in(query: Option<&str>) -> Result<Option<DeviceId>, Refusal> {
    parameter(query, "device").map(|device| DeviceId::new(&device)).transpose().map_err(Refusal::Device)
}

fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, str>> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<Bytes>, Refusal> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.as_bytes();
    let fits = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    if fits { Ok(Some(Bytes::copy_from_slice(key))) } else { Err(Refusal::IdempotencyKey) }
}
