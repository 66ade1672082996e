//! The file of an epoch, read without sled.
//!
//! sled 0.34.7 costs more than damage does. Of an epoch of 600 entries in which one bit was flipped it left none in three cases of
//! four, since it did not open; in the others it took the place for the end of the log and cut off what came behind, up to 170
//! entries that had been synced, without a word. A scan of the same files finds 599. And it needs no memory for an
//! epoch, no deadline, and no write: sled writes when it opens.
//!
//! # Format
//! As sled 0.34.7 writes it. The file is segments of 512 KiB; one begins with a header of 20 bytes, behind which lie messages:
//!
//! | size | type | field |
//! |-----:|------|-------|
//! | 4 | u32 LE | complement of the CRC-32 (ISO-HDLC) of the body and, behind it, the header from the kind on |
//! | 1 | u8 | kind; 10 is a change of a page |
//! | 1 to 9 | varint | bytes of the body |
//! | 1 to 9 | varint | the segment's number, from 0 |
//! | 1 to 9 | varint | page |
//! | rest | bytes | the body |
//!
//! An insertion is a change of a page whose body is 00, the key and the value, each with its length as a varint in front: 0 to
//! 240 as it is; 241 to 248 and a byte; 249 and two bytes; from 250 on so many less 247 bytes, LE. Pages that hold entries are
//! never written in any other way, see [`super::epoch`].

use std::{collections::BTreeMap, fs::File, ops::Range, path::Path};

use crc::{CRC_32_ISO_HDLC, Crc, Table};

use super::guard::SEGMENT_BYTES;
use crate::log::store::{EntrySeq, StoredEntry, blocks, disk::ReadEpoch, failure::Failure};

static CRC_32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);

/// Bytes of a segment's header.
const SEGMENT_HEADER_BYTES: usize = 20;

/// Every kind of message; below is what was never written.
const KINDS: Range<u8> = 1..12;

/// A change of a page.
const LINK: u8 = 10;

/// What the body of an insertion of one of our keys begins with.
const INSERTION: [u8; 2] = [0, 8];

/// What a power cut leaves or takes as a whole.
const SECTOR_BYTES: usize = 512;

/// Fewer zeros than this are no trace of a sector that is missing.
const TRACE_BYTES: usize = 16;

/// An epoch that is being read.
#[derive(Debug)]
pub(in crate::log::store) struct SledReader {
    file: File,
    /// Where the entries are, and how long. At most 4096 in a file of the log.
    index: BTreeMap<EntrySeq, (u64, usize)>,
}

impl SledReader {
    /// Opens the file of an epoch and finds its entries.
    pub(in crate::log::store) fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(Failure::of_io)?;
        if !file.metadata().map_err(Failure::of_io)?.is_file() {
            return Err(Failure::Broken(format!("{} is no file", super::FILE)));
        }
        let mut index = BTreeMap::new();
        let mut segment = vec![0; SEGMENT_BYTES];
        for number in 0.. {
            let at = number * SEGMENT_BYTES as u64;
            let filled = blocks::fill(&file, &mut segment, at).map_err(Failure::of_io)?;
            for Insertion { seq, entry, is_sound } in insertions(number, &segment[..filled]) {
                // Of what is damaged the number may be too.
                let follows = |index: &BTreeMap<EntrySeq, _>| {
                    index.last_key_value().is_some_and(|(last, _)| last.next() == seq)
                };
                if is_sound || follows(&index) {
                    index.insert(seq, (at + entry.start as u64, entry.len()));
                }
            }
            if filled < SEGMENT_BYTES {
                break;
            }
        }
        Ok(Self { file, index })
    }
}

impl ReadEpoch for SledReader {
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<Vec<StoredEntry>, Failure> {
        let mut read = Vec::new();
        let mut bytes = 0;
        for (&seq, &(at, entry_bytes)) in self.index.range(from..) {
            if bytes >= limit_bytes && !read.is_empty() {
                break;
            }
            let mut entry = vec![0; entry_bytes];
            blocks::fill(&self.file, &mut entry, at).map_err(Failure::of_io)?;
            bytes += entry_bytes;
            read.push(StoredEntry { seq, bytes: entry });
        }
        Ok(read)
    }
}

struct Insertion {
    seq: EntrySeq,
    /// Where the entry is.
    entry: Range<usize>,
    /// Whether it is as it was written.
    is_sound: bool,
}

/// The insertions in a segment. What is damaged is passed, unless it was whole once: then the log tells.
fn insertions(number: u64, segment: &[u8]) -> impl Iterator<Item = Insertion> {
    let mut at = SEGMENT_HEADER_BYTES;
    std::iter::from_fn(move || {
        while let Some(rest) = segment.get(at..).filter(|rest| !rest.is_empty()) {
            let found =
                message(number, rest).and_then(|message| {
                    let (begin, end) = (at + message.body.start, at + message.body.end);
                    let is_sound = message.is_sound;
                    let inserted = insertion(message.kind, &segment[begin..end]).map(|(seq, value)| {
                        Insertion { seq, entry: begin + value.start..begin + value.end, is_sound }
                    });
                    let counts = is_sound || (inserted.is_some() && !is_torn(segment, begin..end));
                    counts.then_some((end, inserted))
                });
            let (end, inserted) = found.unwrap_or((at + 1, None));
            at = end;
            if inserted.is_some() {
                return inserted;
            }
        }
        None
    })
}

/// Whether a part of what was written there has not reached the device: of a sector there are only zeros.
fn is_torn(segment: &[u8], range: Range<usize>) -> bool {
    let mut begin = range.start;
    while begin < range.end {
        let end = (begin + 1).next_multiple_of(SECTOR_BYTES).min(range.end);
        if end - begin >= TRACE_BYTES && segment[begin..end].iter().all(|byte| *byte == 0) {
            return true;
        }
        begin = end;
    }
    false
}

struct Message {
    kind: u8,
    /// Where its body is.
    body: Range<usize>,
    /// Whether it is as it was written.
    is_sound: bool,
}

/// What looks like a message at the front of `bytes`.
fn message(segment: u64, bytes: &[u8]) -> Option<Message> {
    let (crc, mut fields) = bytes.split_first_chunk::<4>()?;
    let kind = *fields.split_off_first()?;
    if !KINDS.contains(&kind) {
        return None;
    }
    let body_bytes = usize::try_from(varint(&mut fields)?).ok()?;
    if varint(&mut fields)? != segment {
        return None;
    }
    let _page = varint(&mut fields)?;
    let body = fields.get(..body_bytes)?;
    let begin = bytes.len() - fields.len();
    let mut digest = CRC_32.digest();
    digest.update(body);
    digest.update(&bytes[crc.len()..begin]);
    let is_sound = !digest.finalize() == u32::from_le_bytes(*crc);
    Some(Message { kind, body: begin..begin + body_bytes, is_sound })
}

/// The entry that a message puts into a tree, and where in its body it is.
fn insertion(kind: u8, body: &[u8]) -> Option<(EntrySeq, Range<usize>)> {
    let fields = body.strip_prefix(&INSERTION).filter(|_| kind == LINK)?;
    let (key, mut fields) = fields.split_first_chunk::<8>()?;
    let value_bytes = varint(&mut fields)?;
    let holds = fields.len() as u64 == value_bytes;
    holds.then(|| (EntrySeq(u64::from_be_bytes(*key)), body.len() - fields.len()..body.len()))
}

/// Takes a number off the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.split_off_first()?;
    let rest_bytes = match first {
        0..=240 => 0,
        241..=248 => 1,
        249 => 2,
        250..=255 => usize::from(first) - 247,
    };
    let rest = bytes.split_off(..rest_bytes)?;
    Some(match *rest {
        [] => u64::from(first),
        [low] => 240 + 256 * (u64::from(first) - 241) + u64::from(low),
        [high, low] => 2288 + 256 * u64::from(high) + u64::from(low),
        _ => {
            let mut number = [0; 8];
            number[..rest_bytes].copy_from_slice(rest);
            u64::from_le_bytes(number)
        }
    })
}
