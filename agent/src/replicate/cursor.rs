//! The cursor: how far Kafka has acknowledged the log, on the disk.
//!
//! It lives in a small file of its own, `cursor` in the data directory, in two slots that are written in turn in place
//! with one `pwrite` and one `fdatasync`. The file never changes its size, its blocks or its name, so the file system's
//! journal is not touched and a write costs the flash one block; a temporary file and a rename would write the inode,
//! the directory and the journal's commit each time, several blocks for a hundred bytes every few seconds for years.
//! What a power cut tears is the slot that was being written; the other one holds the state before.
//!
//! An older cursor is never wrong: it makes the replicator send again what Kafka has already. So every damage ends in
//! duplicates, and with both slots damaged the log is sent from its first entry. Nothing is lost.
//!
//! # Format, version 1
//! Slot 0 is at offset 0, slot 1 at [`SLOT_BYTES`]. Numbers are big-endian. A slot, whose unused rest is undefined:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `WSCURSR1`; the last character is the version |
//! | 8 | 4 | CRC-32C of the bytes from 12 to the end of the body |
//! | 12 | 4 | length of the body in bytes |
//! | 16 | 8 | body: generation, ascending; the intact slot with the higher one is the cursor |
//! | 24 | 8 | sequence number of the first entry that is not fully acknowledged |
//! | 32 | 4 | number of streams, each: |
//! | | 1 | length of the name |
//! | | n | name |
//! | | 4 | number of partitions, each: |
//! | | 4 | partition |
//! | | 8 | offset behind the last one acknowledged |
//!
//! Streams and partitions ascend. With more partitions than a slot can hold (some 5 000) their offsets are left out,
//! which costs duplicates of entries that were acknowledged in part.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use crc::{CRC_32_ISCSI, Crc};

use crate::{
    log::EntrySeq,
    record::{Offset, PartitionId, StreamName},
};

/// Name of the file in the data directory.
pub const FILE_NAME: &str = "cursor";

/// Distance of the slots: far apart, so that no page or flash sector holds bytes of both.
pub const SLOT_BYTES: usize = 64 * 1024;

const MAGIC: &[u8; 8] = b"WSCURSR1";
const HEADER_BYTES: usize = 16;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// How far Kafka has acknowledged the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the write; 0 if there was none.
    pub generation: u64,
    /// The first entry that is not fully acknowledged.
    pub next: EntrySeq,
    /// Per (stream, partition) the offset behind the last one acknowledged.
    pub acknowledged: BTreeMap<(StreamName, PartitionId), Offset>,
}

impl Cursor {
    /// Reads the cursor at `path`, the file [`FILE_NAME`] of a data directory. `None` if there is no file or nothing
    /// intact in it: replication starts at the log's first entry.
    ///
    /// # Errors
    /// The system's, other than that the file does not exist.
    pub fn load(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::load_counting_damage(path)?.0)
    }

    /// As [`load`](Self::load), and how many of the two slots hold something that is no cursor.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_counting_damage(path: &Path) -> io::Result<(Option<Self>, usize)> {
        match File::open(path) {
            Ok(file) => load_slots(&file).map(|slots| (slots.cursor, slots.damaged)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((None, 0)),
            Err(e) => Err(e),
        }
    }

    /// The bytes of a slot with this cursor.
    fn encode(&self) -> Vec<u8> {
        let mut slot = self.encode_with(&self.acknowledged);
        if slot.len() > SLOT_BYTES {
            slot = self.encode_with(&BTreeMap::new());
        }
        slot
    }

    fn encode_with(&self, acknowledged: &BTreeMap<(StreamName, PartitionId), Offset>) -> Vec<u8> {
        let mut streams: BTreeMap<&StreamName, Vec<(PartitionId, Offset)>> = BTreeMap::new();
        for ((stream, partition), offset) in acknowledged {
            streams.entry(stream).or_default().push((*partition, *offset));
        }
        let mut body = Vec::with_capacity(256);
        body.extend_from_slice(&self.generation.to_be_bytes());
        body.extend_from_slice(&self.next.0.to_be_bytes());
        push_length(&mut body, streams.len());
        for (stream, partitions) in streams {
            let name = stream.as_str().as_bytes();
            body.push(u8::try_from(name.len()).expect("a stream name has at most 100 bytes"));
            body.extend_from_slice(name);
            push_length(&mut body, partitions.len());
            for (partition, offset) in partitions {
                body.extend_from_slice(&partition.0.to_be_bytes());
                body.extend_from_slice(&offset.0.to_be_bytes());
            }
        }
        let mut slot = Vec::with_capacity(HEADER_BYTES + body.len());
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&[0; 4]);
        push_length(&mut slot, body.len());
        slot.extend_from_slice(&body);
        let crc = CRC.checksum(&slot[12..]);
        slot[8..12].copy_from_slice(&crc.to_be_bytes());
        slot
    }

    /// The cursor in a slot; `None` if it is not intact.
    fn decode(slot: &[u8]) -> Option<Self> {
        let mut header = Bytes(slot);
        if header.take(8)? != MAGIC {
            return None;
        }
        let crc = u32::from_be_bytes(header.array()?);
        let checked = header.0;
        let body_bytes = usize::try_from(u32::from_be_bytes(header.array()?)).ok()?;
        let mut body = Bytes(header.take(body_bytes)?);
        if CRC.checksum(checked.get(..4 + body_bytes)?) != crc {
            return None;
        }
        let generation = u64::from_be_bytes(body.array()?);
        let next = EntrySeq(u64::from_be_bytes(body.array()?));
        let mut acknowledged = BTreeMap::new();
        for _ in 0..u32::from_be_bytes(body.array()?) {
            let [name_bytes] = body.array()?;
            let name = std::str::from_utf8(body.take(name_bytes.into())?).ok()?;
            let stream = StreamName::new(name).ok()?;
            for _ in 0..u32::from_be_bytes(body.array()?) {
                let partition = PartitionId(i32::from_be_bytes(body.array()?));
                let offset = Offset(i64::from_be_bytes(body.array()?));
                acknowledged.insert((stream.clone(), partition), offset);
            }
        }
        body.0.is_empty().then_some(Self { generation, next, acknowledged })
    }
}

fn push_length(bytes: &mut Vec<u8>, length: usize) {
    // A slot has 64 KiB; what does not fit 32 bits is left out by `encode` anyway.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

/// The rest of a byte string that is being read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}

struct Slots {
    cursor: Option<Cursor>,
    /// Where the next write goes: not over the cursor that would be loaded.
    write_to: usize,
    /// Slots that hold something which is not a cursor.
    damaged: usize,
}

fn load_slots(file: &File) -> io::Result<Slots> {
    let mut slots = Slots { cursor: None, write_to: 0, damaged: 0 };
    for index in 0..2 {
        let bytes = read_slot(file, index)?;
        match Cursor::decode(&bytes) {
            Some(found) if slots.cursor.as_ref().is_none_or(|best| best.generation < found.generation) => {
                slots.cursor = Some(found);
                slots.write_to = 1 - index;
            }
            Some(_) => {}
            None if bytes.iter().all(|b| *b == 0) => {}
            None => slots.damaged += 1,
        }
    }
    Ok(slots)
}

fn read_slot(file: &File, index: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; SLOT_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], slot_offset(index) + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
}

fn slot_offset(index: usize) -> u64 {
    (index * SLOT_BYTES) as u64
}

/// The file, open for writing; one per data directory.
#[derive(Debug)]
pub struct CursorFile {
    file: File,
    write_to: usize,
    generation: u64,
    damaged_slots: u64,
}

impl CursorFile {
    /// Opens or creates the file in `dir` and loads the cursor. A damaged slot is logged and overwritten later.
    ///
    /// # Errors
    /// The system's; the caller cannot replicate without it, since it would never trim the log for good.
    pub fn open(dir: &Path) -> io::Result<(Self, Option<Cursor>)> {
        let path = dir.join(FILE_NAME);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        // Reserves both slots now: a later write must not need space on a full disk. Where the file system cannot
        // reserve, the first writes allocate.
        let reserved = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, slot_offset(2));
        if let Err(error) = reserved {
            tracing::debug!(%error, "space for the cursor is not reserved");
        }
        File::open(dir)?.sync_all()?;
        let slots = load_slots(&file)?;
        if slots.damaged > 0 {
            let generation = slots.cursor.as_ref().map(|c| c.generation);
            tracing::warn!(
                path = %path.display(), damaged = slots.damaged, generation,
                "cursor was damaged; some records will be sent to Kafka again"
            );
        }
        let generation = slots.cursor.as_ref().map_or(0, |c| c.generation);
        let damaged_slots = slots.damaged as u64;
        Ok((Self { file, write_to: slots.write_to, generation, damaged_slots }, slots.cursor))
    }

    /// How many of the two slots held something that is no cursor when the file was opened.
    pub fn damaged_slots(&self) -> u64 {
        self.damaged_slots
    }

    /// Makes `cursor` durable under the next generation.
    ///
    /// # Errors
    /// The system's: the cursor loaded after a restart is this one or the one before; try again later.
    pub fn write(&mut self, cursor: &mut Cursor) -> io::Result<()> {
        cursor.generation = self.generation + 1;
        self.file.write_all_at(&cursor.encode(), slot_offset(self.write_to))?;
        self.file.sync_data()?;
        self.generation = cursor.generation;
        self.write_to = 1 - self.write_to;
        Ok(())
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
#[path = "cursor_tests.rs"]
mod tests;
