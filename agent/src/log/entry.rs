//! Entry: what the store keeps under one [`EntrySeq`], as bytes.
//!
//! # Format, version 2
//! | offset | size | type | field |
//! |-------:|-----:|------|-------|
//! | 0 | 4 | u32 BE | CRC-32C (Castagnoli) of every byte from offset 4 to the end |
//! | 4 | 1 | u8 | version: 2 |
//! | 5 | 1 | u8 | kind: 1 checkpoint, 2 group, 3 compacted group, 4 group with notes |
//! | 6 | 1 | u8 | compression of the body: 0 none, 1 LZ4 block, 2 zstd frame |
//! | 7 | 1 | u8 | flags: 1 the commit goes on in the next entry, 2 it began in an entry before |
//! | 8 | 8 | u64 BE | sequence number, equal to the entry's key |
//! | 16 | 4 | u32 BE | bytes of the body before compression, at most [`RAW_BYTES_MAX`] |
//! | 20 | 4 | u32 BE | [`Timeline::boot`] of its records; 0 where it is not known, and where there are none |
//! | 24 | 8 | i64 BE | [`Timeline::start`] of its records, in µs since 1970 |
//! | 32 | rest | bytes | body: see [`super::checkpoint`], [`super::group`], [`super::dropped`] and [`super::notes`] |
//!
//! In version 1 the body begins at 20: of its records no timeline is known.
//!
//! The timeline is there once and not with each record: where a clock was set, the commit goes on in another entry.
//! The sequence number is under the checksum, so that an entry that turns up under another key is damage. A body that
//! compression does not shrink is stored as it is, hence no entry is larger than [`ENTRY_BYTES_MAX`].

use bytes::Bytes;
use crc::{CRC_32_ISCSI, Crc, Table};

use super::store::{ENTRY_BYTES_MAX, EntrySeq};
use crate::{
    config::Compression,
    record::{BootId, Timeline, UnixMicros},
};

/// Bytes in front of the body.
pub(super) const HEADER_BYTES: usize = 32;

/// The same in version 1.
const HEADER_BYTES_1: usize = 20;

/// Largest body before compression, in bytes: stored as it is, it still fits an entry.
pub(super) const RAW_BYTES_MAX: usize = ENTRY_BYTES_MAX - HEADER_BYTES;

const VERSION: u8 = 2;

/// Where an entry says what it is of its commit.
const FLAGS: usize = 7;
const GOES_ON: u8 = 1;
const BEGAN: u8 = 2;

/// 16 KiB of tables for about 2 GB/s; one in the whole process.
pub(crate) static CRC_32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The level of STORE.md's measurements: higher ones cost CPU and gain nothing on 64 KiB.
const ZSTD_LEVEL: i32 = 1;

/// What an entry holds. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum EntryKind {
    /// A part of the state at the start of an epoch.
    Checkpoint = 1,
    /// Batches that were committed together.
    Group = 2,
    /// What compaction left of one or more groups, and word of what it dropped.
    Compacted = 3,
    /// What sources remember, and the batches that were committed with it.
    Noted = 4,
}

/// Why bytes are no entry. The reader counts them as lost and goes on behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EntryError {
    /// Shorter than a header.
    #[error("{0} bytes are shorter than an entry's header")]
    Short(usize),
    /// The bytes are not those that were written.
    #[error("checksum mismatch")]
    Checksum,
    /// Written by a later release.
    #[error("version {0} is not known")]
    Version(u8),
    /// Written by a later release, or not by this project.
    #[error("kind {0} is not known")]
    Kind(u8),
    /// Written by a later release, or not by this project.
    #[error("compression {0} is not known")]
    Compression(u8),
    /// An intact entry under another entry's key.
    #[error("it says that it is entry {0}")]
    Misplaced(EntrySeq),
    /// The body does not decompress to the length that the header states.
    #[error("its body does not decompress")]
    Decompress,
    /// The body is not what its kind says.
    #[error("its body does not decode: {0}")]
    Body(&'static str),
}

/// An encoded entry whose place is not known yet: it gets its sequence number when it is written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    bytes: Vec<u8>,
    raw_bytes: usize,
}

impl Entry {
    /// Gives the entry its place, and the checksum over all of it. May be repeated with another `seq`.
    pub(super) fn seal(&mut self, seq: EntrySeq) -> &[u8] {
        self.bytes[8..16].copy_from_slice(&seq.0.to_be_bytes());
        let crc = CRC_32C.checksum(&self.bytes[4..]);
        self.bytes[..4].copy_from_slice(&crc.to_be_bytes());
        &self.bytes
    }

    /// The next entry belongs to the same commit: without it this one does not count.
    pub(super) fn goes_on(&mut self) {
        self.bytes[FLAGS] |= GOES_ON;
    }

    /// The entry before belongs to the same commit.
    pub(super) fn began(&mut self) {
        self.bytes[FLAGS] |= BEGAN;
    }

    /// Bytes as stored.
    pub(super) fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the body before compression.
    pub(super) fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }
}

/// Encodes and decodes entries; keeps the compression contexts and buffers from one to the next.
pub(super) struct EntryCodec {
    compression: Compression,
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    scratch: Vec<u8>,
}

impl EntryCodec {
    pub(super) fn new(compression: Compression) -> Self {
        let scratch_bytes = zstd::zstd_safe::compress_bound(RAW_BYTES_MAX)
            .max(lz4_flex::block::get_maximum_output_size(RAW_BYTES_MAX));
        Self {
            compression,
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("level 1 exists"),
            decompressor: zstd::bulk::Decompressor::new().expect("no dictionary to refuse"),
            scratch: vec![0; scratch_bytes],
        }
    }

    /// Wraps a body of at most [`RAW_BYTES_MAX`] bytes, whose records have the timeline `timeline`.
    pub(super) fn encode(&mut self, kind: EntryKind, timeline: Timeline, raw: &[u8]) -> Entry {
        assert!(raw.len() <= RAW_BYTES_MAX, "a body of {} bytes does not fit an entry", raw.len());
        // A failure to compress is no reason to lose the record: the body is stored as it is.
        let compressed = match self.compression {
            Compression::None => None,
            Compression::Lz4 => lz4_flex::block::compress_into(raw, &mut self.scratch).ok(),
            Compression::Zstd => self.compressor.compress_to_buffer(raw, self.scratch.as_mut_slice()).ok(),
        };
        let (compression, body) = match compressed {
            Some(size) if size < raw.len() => (self.compression, &self.scratch[..size]),
            _ => (Compression::None, raw),
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&[VERSION, kind as u8, compression_code(compression), 0]);
        bytes.extend_from_slice(&[0; 8]);
        let raw_bytes = u32::try_from(raw.len()).expect("at most RAW_BYTES_MAX");
        bytes.extend_from_slice(&raw_bytes.to_be_bytes());
        bytes.extend_from_slice(&timeline.boot.0.to_be_bytes());
        bytes.extend_from_slice(&timeline.start.0.to_be_bytes());
        bytes.extend_from_slice(body);
        Entry { bytes, raw_bytes: raw.len() }
    }

    /// Checks an entry that was found under `seq` and returns its kind, the timeline of its records and its body.
    pub(super) fn decode(
        &mut self,
        seq: EntrySeq,
        entry: Vec<u8>,
    ) -> Result<(EntryKind, Timeline, Bytes), EntryError> {
        if entry.len() < HEADER_BYTES_1 {
            return Err(EntryError::Short(entry.len()));
        }
        if CRC_32C.checksum(&entry[4..]).to_be_bytes() != entry[..4] {
            return Err(EntryError::Checksum);
        }
        let (header_bytes, timeline) = match (entry[4], entry.get(HEADER_BYTES_1..HEADER_BYTES)) {
            (1, _) => (HEADER_BYTES_1, Timeline::default()),
            (VERSION, Some(timeline)) => {
                let (boot, start) = timeline.split_at(4);
                let boot = BootId(u32::from_be_bytes(boot.try_into().expect("4 bytes")));
                let start = UnixMicros(i64::from_be_bytes(start.try_into().expect("8 bytes")));
                (HEADER_BYTES, Timeline { boot, start })
            }
            (VERSION, None) => return Err(EntryError::Short(entry.len())),
            (other, _) => return Err(EntryError::Version(other)),
        };
        let kind = match entry[5] {
            1 => EntryKind::Checkpoint,
            2 => EntryKind::Group,
            3 => EntryKind::Compacted,
            4 => EntryKind::Noted,
            other => return Err(EntryError::Kind(other)),
        };
        let found = EntrySeq(u64::from_be_bytes(entry[8..16].try_into().expect("8 bytes")));
        if found != seq {
            return Err(EntryError::Misplaced(found));
        }
        let raw_bytes = u32::from_be_bytes(entry[16..20].try_into().expect("4 bytes")) as usize;
        if raw_bytes > ENTRY_BYTES_MAX - header_bytes {
            return Err(EntryError::Decompress);
        }
        let body = &entry[header_bytes..];
        let raw = match entry[6] {
            0 => Bytes::from(entry).slice(header_bytes..),
            1 => {
                let mut raw = vec![0; raw_bytes];
                let size =
                    lz4_flex::block::decompress_into(body, &mut raw).map_err(|_| EntryError::Decompress)?;
                raw.truncate(size);
                Bytes::from(raw)
            }
            2 => {
                let mut raw = Vec::with_capacity(raw_bytes);
                self.decompressor.decompress_to_buffer(body, &mut raw).map_err(|_| EntryError::Decompress)?;
                Bytes::from(raw)
            }
            other => return Err(EntryError::Compression(other)),
        };
        if raw.len() != raw_bytes {
            return Err(EntryError::Decompress);
        }
        Ok((kind, timeline, raw))
    }
}

/// Whether the commit of an intact entry goes on in the next one.
pub(super) fn goes_on(entry: &[u8]) -> bool {
    entry.get(FLAGS).is_some_and(|flags| flags & GOES_ON != 0)
}

/// Whether a commit begins with an intact entry.
pub(super) fn begins(entry: &[u8]) -> bool {
    entry.get(FLAGS).is_some_and(|flags| flags & BEGAN == 0)
}

fn compression_code(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Lz4 => 1,
        Compression::Zstd => 2,
    }
}
