//! Checkpoint: the small state that must outlive the epochs it was made in. Every epoch starts with one, so that any
//! epoch can be deleted and the newest alone is enough to go on.
//!
//! # Format, versions 1 and 2 (of the entry)
//! A checkpoint is cut into parts of at most [`PART_BYTES_MAX`]; each is the body of one entry, and they are the first
//! entries of the epoch:
//! | offset | size | type | field |
//! |-------:|-----:|------|-------|
//! | 0 | 2 | u16 BE | part, from 0 |
//! | 2 | 2 | u16 BE | parts in all |
//! | 4 | rest | bytes | the part |
//!
//! The parts joined are postcard (see [`super::group`] for its types):
//! | field | type | meaning |
//! |-------|------|---------|
//! | boot | u64 | starts that committed something, this one included |
//! | offset_floor | i64 | next offset of every partition that is not listed |
//! | streams | list of (string, list of (i32, i64)) | by stream and partition the next offset |
//! | sections | list of (u16, bytes) | tagged additions; a reader skips tags that it does not know. 1: [`super::notes`], if there are any |

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    entry::{EntryError, RAW_BYTES_MAX},
    group::RECORDS_PER_GROUP_MAX,
    notes::NoteTable,
    store::EntrySeq,
};
use crate::record::{Offset, PartitionId, StreamName};

/// Bytes of a part: with its header it fits an entry even when it does not compress.
const PART_BYTES_MAX: usize = 64 * 1024;
const _: () = assert!(PART_BYTES_MAX + 4 <= RAW_BYTES_MAX);

/// Section with what sources remember.
const NOTES_TAG: u16 = 1;

/// Next offset of every partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NextOffsets {
    floor: Offset,
    known: BTreeMap<(StreamName, PartitionId), Offset>,
}

impl NextOffsets {
    /// Has the partitions that are not known go on behind all that was used before `end`: no entry gives one more than
    /// [`RECORDS_PER_GROUP_MAX`] offsets.
    pub(super) fn raise_floor(&mut self, end: EntrySeq) {
        let factor = u64::try_from(RECORDS_PER_GROUP_MAX).expect("fits");
        self.floor = Offset(i64::try_from(end.0.saturating_mul(factor)).unwrap_or(i64::MAX));
    }

    /// Forgets the partitions that do not hold.
    pub(super) fn retain(&mut self, holds: impl Fn(&(StreamName, PartitionId), Offset) -> bool) {
        self.known.retain(|partition, next| holds(partition, *next));
    }

    /// The least end for which [`raise_floor`](Self::raise_floor) gives out no offset below `offset`.
    pub(super) fn end_beyond(offset: Offset) -> EntrySeq {
        let factor = u64::try_from(RECORDS_PER_GROUP_MAX).expect("fits");
        EntrySeq(u64::try_from(offset.0).unwrap_or(0).div_ceil(factor))
    }

    /// Next offset of a partition.
    pub(super) fn next(&self, key: &(StreamName, PartitionId)) -> Offset {
        self.known.get(key).copied().unwrap_or(self.floor)
    }

    /// Where partitions go on that are not known.
    pub(super) fn floor(&self) -> Offset {
        self.floor
    }

    /// Sets the next offset of a partition.
    pub(super) fn set(&mut self, key: (StreamName, PartitionId), next: Offset) {
        self.known.insert(key, next);
    }

    /// The partitions that have records, with their next offsets.
    pub(super) fn known(&self) -> &BTreeMap<(StreamName, PartitionId), Offset> {
        &self.known
    }
}

/// The state itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Starts that committed something, the one that wrote it included.
    pub(super) boot: u64,
    /// As of the start of the epoch.
    pub(super) offsets: NextOffsets,
    /// What sources remember, as of the start of the epoch.
    pub(super) notes: NoteTable,
}

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    boot: u64,
    offset_floor: i64,
    #[serde(borrow)]
    streams: Vec<(&'a str, Vec<(i32, i64)>)>,
    #[serde(borrow)]
    sections: Vec<(u16, &'a [u8])>,
}

impl Checkpoint {
    /// The bodies of its entries, at least one.
    pub(super) fn encode(&self) -> Vec<Vec<u8>> {
        let mut streams: Vec<(&str, Vec<(i32, i64)>)> = Vec::new();
        for ((stream, partition), next) in &self.offsets.known {
            let offset = (partition.0, next.0);
            match streams.last_mut() {
                Some((last, offsets)) if *last == stream.as_str() => offsets.push(offset),
                _ => streams.push((stream.as_str(), vec![offset])),
            }
        }
        let notes = self.notes.encode();
        let sections =
            if self.notes == NoteTable::default() { Vec::new() } else { vec![(NOTES_TAG, &*notes)] };
        let body = Body { boot: self.boot, offset_floor: self.offsets.floor.0, streams, sections };
        let bytes = postcard::to_stdvec(&body).expect("memory is the only limit");
        let chunks: Vec<&[u8]> = bytes.chunks(PART_BYTES_MAX).collect();
        let parts = u16::try_from(chunks.len()).expect("a checkpoint has less than 4 GiB");
        (0..parts)
            .zip(chunks)
            .map(|(part, chunk)| [&part.to_be_bytes(), &parts.to_be_bytes(), chunk].concat())
            .collect()
    }

    fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        const BAD: EntryError = EntryError::Body("the checkpoint");
        let body: Body<'_> = postcard::from_bytes(bytes).map_err(|_| BAD)?;
        let mut offsets = NextOffsets { floor: Offset(body.offset_floor), known: BTreeMap::new() };
        for (stream, partitions) in body.streams {
            let stream = StreamName::new(stream).map_err(|_| BAD)?;
            for (partition, next) in partitions {
                offsets.set((stream.clone(), PartitionId(partition)), Offset(next));
            }
        }
        let mut sections = body.sections.iter();
        let notes = sections.find(|(tag, _)| *tag == NOTES_TAG).map(|(_, bytes)| NoteTable::decode(bytes));
        Ok(Self { boot: body.boot, offsets, notes: notes.transpose()?.unwrap_or_default() })
    }
}

/// Joins the parts of a checkpoint as they are read.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    parts: u16,
    bytes: Vec<u8>,
}

impl Assembly {
    /// Adds the next part; the last one gives the checkpoint.
    pub(super) fn push(&mut self, body: &Bytes) -> Result<Option<Checkpoint>, EntryError> {
        const BAD: EntryError = EntryError::Body("a part of the checkpoint");
        let Some((&[part_high, part_low, parts_high, parts_low], chunk)) = body.split_first_chunk() else {
            return Err(BAD);
        };
        if u16::from_be_bytes([part_high, part_low]) != self.parts {
            return Err(BAD);
        }
        self.bytes.extend_from_slice(chunk);
        self.parts += 1;
        if self.parts < u16::from_be_bytes([parts_high, parts_low]) {
            return Ok(None);
        }
        Checkpoint::decode(&std::mem::take(self).bytes).map(Some)
    }
}
