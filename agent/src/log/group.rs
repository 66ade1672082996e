//! Group: the batches that one commit window gathered, as the body of an entry.
//!
//! # Format, versions 1 and 2 (of the entry)
//! postcard throughout: an integer is a varint (LEB128; signed ones zigzag first), a string or byte string has its
//! length as a varint in front, an option is `00` or `01` and the value, a list has its count in front.
//!
//! First the directory, a list with one element for each batch, in order:
//! | field | type | meaning |
//! |-------|------|---------|
//! | stream | string | name of the stream |
//! | partition | i32 | its partition |
//! | base_offset | i64 | offset of the batch's first record |
//! | record_count | u32 | records of the batch, at least 1 |
//! | received_at | i64 | receive time of its first record, in µs since 1970; the records count from it |
//!
//! Then the records of all batches in the same order, one behind the other, nothing behind the last:
//! | field | type | meaning |
//! |-------|------|---------|
//! | device | string | id of the device |
//! | value | bytes | Kafka's value |
//! | content_type | u8 | number of [`ContentType`] |
//! | received_delta | i64 | receive time less the batch's `received_at`, in µs (wrapping) |
//! | received_quality | u8 | number of [`ClockQuality`]; 4 more where the event time was counted back from the receive time |
//! | event_delta | option of i64 | event time less receive time, in µs (wrapping) |
//! | device_seq | option of u64 | the device's own sequence number |
//! | headers | list of (string, bytes) | further headers |
//!
//! The directory stands in front so that recovery learns the offsets without a look at the records.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{LogBatch, entry::EntryError};
use crate::record::{
    ClockQuality, ContentType, DeviceId, Offset, PartitionId, Received, Record, RecordHeader,
    STREAM_NAME_BYTES_MAX, StreamName, Timeline, UnixMicros,
};

/// Most records in one group. With it an offset is always below `RECORDS_PER_GROUP_MAX` times the log's end, which is
/// where offsets go on when nothing else is known about them.
pub(super) const RECORDS_PER_GROUP_MAX: usize = 8192;

/// The count in front of the directory.
pub(super) const DIRECTORY_BYTES_MAX: usize = 5;

/// Most bytes of a directory element: the longest name and varints of 1, 5, 10, 5 and 10 bytes.
pub(super) const BATCH_BYTES_MAX: usize = STREAM_NAME_BYTES_MAX + 31;

/// Most bytes of a record beside its device, value and headers, rounded up from the longest varints.
const RECORD_FIXED_BYTES_MAX: usize = 48;

/// Most bytes of a header beside its name and value: two lengths.
const HEADER_FIXED_BYTES_MAX: usize = 8;

/// Added to the number of a quality where [`Received::dates_event`].
const DATES_EVENT: u8 = 4;

#[derive(Serialize, Deserialize)]
struct BatchHead<'a> {
    stream: &'a str,
    partition: i32,
    base_offset: i64,
    record_count: u32,
    received_at: i64,
}

#[derive(Serialize, Deserialize)]
struct RecordBody<'a> {
    device: &'a str,
    #[serde(with = "serde_bytes")]
    value: &'a [u8],
    content_type: u8,
    received_delta: i64,
    received_quality: u8,
    event_delta: Option<i64>,
    device_seq: Option<u64>,
    #[serde(borrow)]
    headers: Vec<HeaderBody<'a>>,
}

#[derive(Serialize, Deserialize)]
struct HeaderBody<'a>(&'a str, #[serde(with = "serde_bytes")] &'a [u8]);

/// A batch as the directory tells of it.
pub(super) struct BatchRange {
    pub(super) stream: StreamName,
    pub(super) partition: PartitionId,
    pub(super) base_offset: Offset,
    pub(super) record_count: u32,
}

/// Names seen so far, so that a batch read back shares its stream's name.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeSet<StreamName>);

impl Names {
    pub(super) fn get(&mut self, name: &str) -> Result<StreamName, EntryError> {
        if let Some(known) = self.0.get(name) {
            return Ok(known.clone());
        }
        let name = StreamName::new(name).map_err(|_| EntryError::Body("the stream's name"))?;
        self.0.insert(name.clone());
        Ok(name)
    }
}

/// Most bytes that `record` takes in a group.
pub(super) fn record_bytes_max(record: &Record) -> usize {
    let headers: usize =
        record.headers.iter().map(|h| h.name.len() + h.value.len() + HEADER_FIXED_BYTES_MAX).sum();
    RECORD_FIXED_BYTES_MAX + record.device.as_bytes().len() + record.value.len() + headers
}

/// Most bytes that `batches` take as a group.
pub(super) fn bytes_max(batches: &[LogBatch]) -> usize {
    let records: usize = batches.iter().flat_map(|batch| &batch.records).map(record_bytes_max).sum();
    DIRECTORY_BYTES_MAX + batches.len() * BATCH_BYTES_MAX + records
}

/// Encodes `batches` behind what is in `raw`.
pub(super) fn encode(batches: &[LogBatch], raw: &mut Vec<u8>) {
    let count = u32::try_from(batches.len()).expect("at most a batch for each record");
    put(raw, &count);
    for batch in batches {
        put(
            raw,
            &BatchHead {
                stream: batch.stream.as_str(),
                partition: batch.partition.0,
                base_offset: batch.base_offset.0,
                record_count: u32::try_from(batch.records.len()).expect("at most RECORDS_PER_GROUP_MAX"),
                received_at: received_base(batch),
            },
        );
    }
    for batch in batches {
        let base = received_base(batch);
        for record in &batch.records {
            let received_at = record.received.at.0;
            put(
                raw,
                &RecordBody {
                    device: record.device.as_str(),
                    value: &record.value,
                    content_type: record.content_type as u8,
                    received_delta: received_at.wrapping_sub(base),
                    received_quality: record.received.quality as u8
                        | if record.received.dates_event { DATES_EVENT } else { 0 },
                    event_delta: record.event_time.map(|at| at.0.wrapping_sub(received_at)),
                    device_seq: record.device_seq,
                    headers: record.headers.iter().map(|h| HeaderBody(&h.name, &h.value)).collect(),
                },
            );
        }
    }
}

/// The timeline of all records in `batches`.
pub(super) fn timeline(batches: &[LogBatch]) -> Timeline {
    let first = batches.first().and_then(|batch| batch.records.first());
    first.map(|record| record.received.timeline).unwrap_or_default()
}

fn received_base(batch: &LogBatch) -> i64 {
    batch.records.first().map_or(0, |r| r.received.at.0)
}

fn put<T: Serialize>(raw: &mut Vec<u8>, value: &T) {
    postcard::to_io(value, raw).expect("memory is the only limit");
}

/// Reads the directory alone.
pub(super) fn decode_ranges(raw: &Bytes, names: &mut Names) -> Result<Vec<BatchRange>, EntryError> {
    let (heads, _) = take_directory(raw)?;
    heads
        .iter()
        .map(|head| {
            Ok(BatchRange {
                stream: names.get(head.stream)?,
                partition: PartitionId(head.partition),
                base_offset: Offset(head.base_offset),
                record_count: head.record_count,
            })
        })
        .collect()
}

/// Reads the whole group, whose records have the timeline `timeline`. Their values are slices of `raw`.
pub(super) fn decode(
    raw: &Bytes,
    timeline: Timeline,
    names: &mut Names,
) -> Result<Vec<LogBatch>, EntryError> {
    let (heads, mut rest) = take_directory(raw)?;
    let mut batches = Vec::with_capacity(heads.len());
    for head in heads {
        let stream = names.get(head.stream)?;
        // A record has more than 4 bytes: no count can ask for more memory than its bytes justify.
        let mut records = Vec::with_capacity((head.record_count as usize).min(rest.len() / 4));
        for _ in 0..head.record_count {
            let (body, behind) =
                postcard::take_from_bytes::<RecordBody>(rest).map_err(|_| EntryError::Body("a record"))?;
            rest = behind;
            records.push(record(&stream, raw, timeline, head.received_at, body)?);
        }
        batches.push(LogBatch {
            stream,
            partition: PartitionId(head.partition),
            base_offset: Offset(head.base_offset),
            records,
        });
    }
    if rest.is_empty() { Ok(batches) } else { Err(EntryError::Body("bytes behind the last record")) }
}

fn take_directory(raw: &[u8]) -> Result<(Vec<BatchHead<'_>>, &[u8]), EntryError> {
    let (heads, rest) =
        postcard::take_from_bytes::<Vec<BatchHead>>(raw).map_err(|_| EntryError::Body("the directory"))?;
    let sound = heads.iter().all(|h| {
        h.record_count > 0
            && h.record_count as usize <= RECORDS_PER_GROUP_MAX
            && h.base_offset >= 0
            && h.base_offset.checked_add(i64::from(h.record_count)).is_some()
    });
    if sound { Ok((heads, rest)) } else { Err(EntryError::Body("a count or offset out of range")) }
}

fn record(
    stream: &StreamName,
    raw: &Bytes,
    timeline: Timeline,
    base: i64,
    body: RecordBody<'_>,
) -> Result<Record, EntryError> {
    let received_at = base.wrapping_add(body.received_delta);
    let received = Received {
        at: UnixMicros(received_at),
        quality: quality(body.received_quality & !DATES_EVENT)?,
        timeline,
        dates_event: body.received_quality & DATES_EVENT != 0,
    };
    Ok(Record {
        stream: stream.clone(),
        device: DeviceId::new(body.device).map_err(|_| EntryError::Body("a device's id"))?,
        value: raw.slice_ref(body.value),
        content_type: content_type(body.content_type)?,
        event_time: body.event_delta.map(|delta| UnixMicros(received_at.wrapping_add(delta))),
        received,
        device_seq: body.device_seq,
        headers: body
            .headers
            .into_iter()
            .map(|HeaderBody(name, value)| RecordHeader { name: name.into(), value: raw.slice_ref(value) })
            .collect(),
    })
}

fn content_type(code: u8) -> Result<ContentType, EntryError> {
    [ContentType::OctetStream, ContentType::Json, ContentType::Nmea, ContentType::Postcard]
        .into_iter()
        .find(|c| *c as u8 == code)
        .ok_or(EntryError::Body("a content type"))
}

fn quality(code: u8) -> Result<ClockQuality, EntryError> {
    [ClockQuality::Unknown, ClockQuality::Estimated, ClockQuality::Synced]
        .into_iter()
        .find(|q| *q as u8 == code)
        .ok_or(EntryError::Body("a clock quality"))
}
