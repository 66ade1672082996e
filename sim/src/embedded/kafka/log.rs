//! One partition: record batches as they came, and what a consumer may see of them.
//!
//! A batch is kept as the producer sent it; only its base offset is written over. Fields of its header that matter here
//! (record batch format 2 of Kafka's protocol guide, big-endian):
//!
//! | offset | size | field |
//! |-------:|-----:|-------|
//! | 0 | 8 | base offset |
//! | 8 | 4 | length of what follows |
//! | 16 | 1 | magic, 2 |
//! | 21 | 2 | attributes; bit 4 transactional, bit 5 control. The checksum covers from here on |
//! | 23 | 4 | last offset delta |
//! | 35 | 8 | greatest timestamp, ms |
//! | 43 | 8 | producer id, -1 without |
//! | 51 | 2 | producer epoch |
//! | 53 | 4 | base sequence |
//! | 57 | 4 | number of records |

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    indexmap::IndexMap,
    records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType},
};

const HEADER_SIZE: usize = 61;
const LENGTH_SIZE: usize = 12;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
/// As many batches as a producer may have in flight: so far back a repetition is recognised.
const REMEMBERED_BATCHES: usize = 5;

/// What the header of a batch says.
#[derive(Clone, Copy, Debug)]
struct Header {
    last_offset_delta: i32,
    timestamp_max: i64,
    producer_id: i64,
    epoch: i16,
    base_sequence: i32,
    record_count: u32,
    transactional: bool,
    control: bool,
}

impl Header {
    /// Of the first batch in `bytes`, and that batch's size.
    fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let header: &[u8; HEADER_SIZE] = bytes.first_chunk()?;
        let i16_at = |at: usize| i16::from_be_bytes([header[at], header[at + 1]]);
        let i32_at = |at: usize| i32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let i64_at = |at: usize| i64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let size = LENGTH_SIZE + usize::try_from(i32_at(8)).ok()?;
        let last_offset_delta = i32_at(23);
        if header[16] != 2 || size < HEADER_SIZE || size > bytes.len() || last_offset_delta < 0 {
            return None;
        }
        let header = Self {
            last_offset_delta,
            timestamp_max: i64_at(35),
            producer_id: i64_at(43),
            epoch: i16_at(51),
            base_sequence: i32_at(53),
            record_count: i32_at(57).try_into().ok()?,
            transactional: i16_at(21) & TRANSACTIONAL != 0,
            control: i16_at(21) & CONTROL != 0,
        };
        Some((header, size))
    }
}

#[derive(Debug)]
struct Batch {
    base_offset: i64,
    last_offset: i64,
    timestamp_max: i64,
    bytes: Bytes,
}

/// The recent batches of one producer in this partition.
#[derive(Debug)]
struct Producer {
    epoch: i16,
    /// Base sequence, last sequence, base offset.
    recent: VecDeque<(i32, i32, i64)>,
}

/// A transaction that was aborted: its records up to the marker are not for `read_committed`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aborted {
    pub(super) producer_id: i64,
    pub(super) first_offset: i64,
    marker_offset: i64,
}

/// What a fetch finds.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub(super) records: Bytes,
    pub(super) aborted: Vec<Aborted>,
}

/// A partition in memory. It starts at offset 0 and keeps everything.
#[derive(Debug, Default)]
pub(super) struct PartitionLog {
    batches: Vec<Batch>,
    end: i64,
    /// Records but for markers.
    record_count: u64,
    producers: BTreeMap<i64, Producer>,
    /// First offset of each producer's open transaction.
    open: BTreeMap<i64, i64>,
    aborted: Vec<Aborted>,
}

impl PartitionLog {
    /// The offset that the next record gets.
    pub(super) fn high_watermark(&self) -> i64 {
        self.end
    }

    /// How many records it holds, whether committed or not; markers are none.
    pub(super) fn record_count(&self) -> u64 {
        self.record_count
    }

    /// Where `read_committed` ends: the first record of an open transaction.
    pub(super) fn last_stable_offset(&self) -> i64 {
        self.open.values().copied().min().unwrap_or(self.end)
    }

    /// Appends the batches in `records` and returns the first one's base offset. A batch that is there already is not
    /// appended again. `epoch_of` gives the current epoch of a producer id.
    ///
    /// # Errors
    /// What the producer is to be told: a producer of an earlier epoch, a gap in its sequence, a damaged batch.
    pub(super) fn append(
        &mut self,
        mut records: Bytes,
        epoch_of: impl Fn(i64) -> Option<i16>,
    ) -> Result<i64, ResponseError> {
        let mut first = None;
        while !records.is_empty() {
            let (header, size) = Header::parse(&records).ok_or(ResponseError::CorruptMessage)?;
            let batch = records.split_to(size);
            let base_offset = match self.repetition(&header, epoch_of(header.producer_id))? {
                Some(base_offset) => base_offset,
                None => self.push(&header, &batch),
            };
            first.get_or_insert(base_offset);
        }
        first.ok_or(ResponseError::CorruptMessage)
    }

    /// The base offset of the same batch where it is there already.
    fn repetition(
        &mut self,
        header: &Header,
        current_epoch: Option<i16>,
    ) -> Result<Option<i64>, ResponseError> {
        if header.producer_id < 0 {
            return Ok(None);
        }
        if current_epoch.is_some_and(|current| header.epoch < current) {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        let Some(producer) = self.producers.get(&header.producer_id) else { return Ok(None) };
        if producer.epoch != header.epoch {
            // A new epoch starts anew.
            return if header.base_sequence == 0 {
                Ok(None)
            } else {
                Err(ResponseError::OutOfOrderSequenceNumber)
            };
        }
        let last_sequence = sequence_after(header.base_sequence, header.last_offset_delta);
        let same = producer.recent.iter().find(|r| (r.0, r.1) == (header.base_sequence, last_sequence));
        if let Some((.., base_offset)) = same {
            return Ok(Some(*base_offset));
        }
        match producer.recent.back() {
            Some((_, last, _)) if sequence_after(*last, 1) != header.base_sequence => {
                Err(ResponseError::OutOfOrderSequenceNumber)
            }
            _ => Ok(None),
        }
    }

    fn push(&mut self, header: &Header, batch: &[u8]) -> i64 {
        let base_offset = self.end;
        let mut bytes = BytesMut::from(batch);
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        self.end += i64::from(header.last_offset_delta) + 1;
        if !header.control {
            self.record_count += u64::from(header.record_count);
        }
        self.batches.push(Batch {
            base_offset,
            last_offset: self.end - 1,
            timestamp_max: header.timestamp_max,
            bytes: bytes.freeze(),
        });
        if header.producer_id >= 0 && header.base_sequence >= 0 {
            let producer = self
                .producers
                .entry(header.producer_id)
                .and_modify(|producer| {
                    if producer.epoch != header.epoch {
                        producer.epoch = header.epoch;
                        producer.recent.clear();
                    }
                })
                .or_insert(Producer { epoch: header.epoch, recent: VecDeque::new() });
            if producer.recent.len() == REMEMBERED_BATCHES {
                producer.recent.pop_front();
            }
            let last = sequence_after(header.base_sequence, header.last_offset_delta);
            producer.recent.push_back((header.base_sequence, last, base_offset));
            if header.transactional {
                self.open.entry(header.producer_id).or_insert(base_offset);
            }
        }
        base_offset
    }

    /// Ends the producer's transaction in this partition with a marker.
    pub(super) fn end_transaction(&mut self, producer_id: i64, epoch: i16, commit: bool, now_ms: i64) {
        let marker = marker(producer_id, epoch, commit, now_ms);
        let (header, _) = Header::parse(&marker).expect("the encoder writes whole batches");
        let marker_offset = self.push(&header, &marker);
        if let Some(first_offset) = self.open.remove(&producer_id)
            && !commit
        {
            self.aborted.push(Aborted { producer_id, first_offset, marker_offset });
        }
    }

    /// Batches from the one that holds `offset` on: at least one where there is any, else as many as fit `size_max`;
    /// for `read_committed` up to the last stable offset.
    ///
    /// # Errors
    /// An offset that never was.
    pub(super) fn fetch(
        &self,
        offset: i64,
        size_max: usize,
        read_committed: bool,
    ) -> Result<Fetched, ResponseError> {
        if offset < 0 || offset > self.end {
            return Err(ResponseError::OffsetOutOfRange);
        }
        let end = if read_committed { self.last_stable_offset() } else { self.end };
        let start = self.batches.partition_point(|batch| batch.last_offset < offset);
        let mut records = BytesMut::new();
        let mut last_offset = offset;
        for batch in self.batches[start..].iter().take_while(|batch| batch.base_offset < end) {
            if !records.is_empty() && records.len() + batch.bytes.len() > size_max {
                break;
            }
            records.extend_from_slice(&batch.bytes);
            last_offset = batch.last_offset;
        }
        let concerns = |a: &&Aborted| a.marker_offset >= offset && a.first_offset <= last_offset;
        let aborted = self.aborted.iter().filter(|_| read_committed).filter(concerns).copied().collect();
        Ok(Fetched { records: records.freeze(), aborted })
    }

    /// Base offset and timestamp of the first batch with a record at or after `timestamp_ms`.
    pub(super) fn offset_at(&self, timestamp_ms: i64) -> Option<(i64, i64)> {
        let batch = self.batches.iter().find(|batch| batch.timestamp_max >= timestamp_ms)?;
        Some((batch.base_offset, batch.timestamp_max))
    }
}

/// Sequences wrap from 2^31 - 1 to 0.
fn sequence_after(sequence: i32, delta: i32) -> i32 {
    sequence.wrapping_add(delta) & i32::MAX
}

/// The control batch that ends a transaction.
fn marker(producer_id: i64, epoch: i16, commit: bool, now_ms: i64) -> Bytes {
    let version = [0, 0];
    let record = Record {
        transactional: true,
        control: true,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id,
        producer_epoch: epoch,
        timestamp_type: TimestampType::Creation,
        offset: 0,
        sequence: -1,
        timestamp: now_ms,
        // Key: version, type. Value: version, coordinator epoch.
        key: Some([version, [0, u8::from(commit)]].concat().into()),
        value: Some([&version[..], &[0; 4]].concat().into()),
        headers: IndexMap::new(),
    };
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut bytes, [&record], &options).expect("one small record can be encoded");
    bytes.freeze()
}
