//! The cursor: how far Kafka has acknowledged the log, on the disk.
//!
//! It lives in a small file of its own, `cursor` in the data directory, in two slots that are written in turn in place
//! with one `pwrite` and one `fdatasync`. The file never changes its size, its blocks or its name, so the file system's
//! journal is not touched and a write costs the flash one block; a temporary file and a rename would write the inode,
//! the directory and the journal's commit each time, several blocks for a hundred bytes every few seconds for years.
//! What a power cut tears is the slot that was being written; the other one holds the state before.
//!
//! An older cursor is never wrong: it makes the replicator send again what Kafka has already. So every damage ends in
//! duplicates at worst, and with both slots damaged the log is sent from its first entry. Nothing is lost.
//!
//! Where records go in transactions, each is written down before Kafka is asked to commit it, as an [`Intent`]. What a
//! restart then asks Kafka is one thing: whether that one was committed.
//!
//! # Format, version 2
//! Slot 0 is at offset 0, slot 1 at [`SLOT_BYTES`]. Numbers are big-endian. A slot, whose unused rest is undefined:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `WSCURSR2`; the last character is the version |
//! | 8 | 4 | CRC-32C of the bytes from 12 to the end of the body |
//! | 12 | 4 | length of the body in bytes |
//! | 16 | 8 | body: generation, ascending; the intact slot with the higher one is the cursor |
//! | 24 | 8 | sequence number of the first entry that is not fully acknowledged |
//! | 32 | 8 | sequence number behind the last entry of which anything was taken to be sent |
//! | 40 | n | offsets behind the last ones acknowledged, see below |
//! | | 8 | what this log is called in Kafka ([`LogId`]); 0 is nothing yet |
//! | | 8 | what it is called from the next transaction on; 0 is the same |
//! | | 8 | number of the last transaction that Kafka may have |
//! | | 1 | 1 if it is not known whether Kafka has it, else 0 and the end. Then, as if it had: |
//! | | 8 | sequence number of the first entry that is not fully acknowledged |
//! | | n | offsets that are others than above |
//! | | 1 | 1 if a record of it follows, else 0 and the end |
//! | | 1 | length of its topic |
//! | | n | its topic |
//! | | 4 | its partition |
//! | | 8 | its offset in Kafka |
//! | | 8 | its offset in the log; -1 if it is not from there |
//!
//! Offsets, with streams and partitions ascending:
//!
//! | size | field |
//! |---|---|
//! | 4 | number of streams, each: |
//! | 1 | length of the name |
//! | n | name |
//! | 4 | number of partitions, each: |
//! | 4 | partition |
//! | 8 | offset |
//!
//! With more partitions than a slot can hold (some 5 000) all offsets are left out, and what else is known of a
//! transaction: that costs duplicates of entries that were acknowledged in part.
//!
//! Version 1 (`WSCURSR1`, until 0.1) ends behind the first offsets. It is read, and written no more.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::Path,
};

use crc::{CRC_32_ISCSI, Crc};

use crate::{
    env::Entropy,
    log::EntrySeq,
    record::{Offset, PartitionId, StreamName},
};

/// Name of the file in the data directory.
pub const FILE_NAME: &str = "cursor";

/// Distance of the slots: far apart, so that no page or flash sector holds bytes of both.
pub const SLOT_BYTES: usize = 64 * 1024;

const MAGIC: &[u8; 8] = b"WSCURSR2";
const MAGIC_V1: &[u8; 8] = b"WSCURSR1";
const HEADER_BYTES: usize = 16;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Per (stream, partition) the offset behind the last record that is acknowledged.
pub type Acknowledged = BTreeMap<(StreamName, PartitionId), Offset>;

/// What a log is called in Kafka: a random number, another one from the first transaction after each start of the agent. What
/// Kafka holds under one that the cursor does not have is about another log, or about a copy of this one that has gone its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(pub NonZeroU64);

impl LogId {
    /// A new one.
    pub fn random(entropy: &mut dyn Entropy) -> Self {
        Self(NonZeroU64::new(entropy.next_u64()).unwrap_or(NonZeroU64::MIN))
    }
}

/// A transaction that Kafka may have committed, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// If it has: the first entry that is not fully acknowledged.
    pub next: EntrySeq,
    /// If it has: the offsets that are others than in the cursor.
    pub acknowledged: Acknowledged,
    /// A record of it; none if it has none.
    pub last: Option<LastRecord>,
}

/// Where Kafka has the last record of a transaction, if it has it: that tells what became of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRecord {
    /// Topic, with the environment.
    pub topic: String,
    /// Partition of the topic.
    pub partition: PartitionId,
    /// Its offset there.
    pub kafka_offset: i64,
    /// Its offset in the log, where it is from there.
    pub offset: Option<Offset>,
}

/// How far Kafka has acknowledged the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the write; 0 if there was none.
    pub generation: u64,
    /// The first entry that is not fully acknowledged.
    pub next: EntrySeq,
    /// Behind the last entry of which anything was taken: of those before, Kafka may have parts.
    pub begun: EntrySeq,
    /// Per (stream, partition) the offset behind the last one acknowledged.
    pub acknowledged: Acknowledged,
    /// What this log is called in Kafka; none before its first transaction.
    pub log: Option<LogId>,
    /// What it is called from the next transaction on, if that is another name.
    pub next_log: Option<LogId>,
    /// Number of the last transaction that Kafka may have committed; 0 if there was none.
    pub transaction: u64,
    /// That transaction, while it is not known whether it has.
    pub intent: Option<Intent>,
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

    /// Behind all that Kafka may have: the first entry and the offsets that a log is to go on with, whatever it has lost.
    pub fn beyond(&self) -> (EntrySeq, Acknowledged) {
        let mut beyond = (self.next, self.acknowledged.clone());
        if let Some(intent) = &self.intent {
            beyond.0 = beyond.0.max(intent.next);
            beyond.1.extend(intent.acknowledged.iter().map(|(lane, offset)| (lane.clone(), *offset)));
        }
        beyond
    }

    /// The bytes of a slot with this cursor.
    fn encode(&self) -> Vec<u8> {
        let slot = self.encode_all();
        if slot.len() <= SLOT_BYTES {
            return slot;
        }
        Self { acknowledged: Acknowledged::new(), intent: None, ..self.clone() }.encode_all()
    }

    fn encode_all(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(256);
        body.extend_from_slice(&self.generation.to_be_bytes());
        body.extend_from_slice(&self.next.0.to_be_bytes());
        body.extend_from_slice(&self.begun.0.to_be_bytes());
        push_offsets(&mut body, &self.acknowledged);
        for log in [self.log, self.next_log] {
            body.extend_from_slice(&log.map_or(0, |log| log.0.get()).to_be_bytes());
        }
        body.extend_from_slice(&self.transaction.to_be_bytes());
        body.push(u8::from(self.intent.is_some()));
        if let Some(intent) = &self.intent {
            body.extend_from_slice(&intent.next.0.to_be_bytes());
            push_offsets(&mut body, &intent.acknowledged);
            body.push(u8::from(intent.last.is_some()));
            if let Some(last) = &intent.last {
                push_name(&mut body, &last.topic);
                body.extend_from_slice(&last.partition.0.to_be_bytes());
                body.extend_from_slice(&last.kafka_offset.to_be_bytes());
                body.extend_from_slice(&last.offset.map_or(-1, |offset| offset.0).to_be_bytes());
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
        let magic: [u8; 8] = header.array()?;
        if magic != *MAGIC && magic != *MAGIC_V1 {
            return None;
        }
        let crc = u32::from_be_bytes(header.array()?);
        let checked = header.0;
        let body_bytes = usize::try_from(u32::from_be_bytes(header.array()?)).ok()?;
        let mut body = Bytes(header.take(body_bytes)?);
        if CRC.checksum(checked.get(..4 + body_bytes)?) != crc {
            return None;
        }
        let mut cursor = Self {
            generation: body.u64()?,
            next: EntrySeq(body.u64()?),
            begun: EntrySeq(body.u64()?),
            acknowledged: body.offsets()?,
            ..Self::default()
        };
        if magic == *MAGIC {
            cursor.log = body.log()?;
            cursor.next_log = body.log()?;
            cursor.transaction = body.u64()?;
            cursor.intent = if body.flag()? { Some(body.intent()?) } else { None };
        }
        body.0.is_empty().then_some(cursor)
    }
}

fn push_offsets(bytes: &mut Vec<u8>, acknowledged: &Acknowledged) {
    let mut streams: BTreeMap<&StreamName, Vec<(PartitionId, Offset)>> = BTreeMap::new();
    for ((stream, partition), offset) in acknowledged {
        streams.entry(stream).or_default().push((*partition, *offset));
    }
    push_length(bytes, streams.len());
    for (stream, partitions) in streams {
        push_name(bytes, stream.as_str());
        push_length(bytes, partitions.len());
        for (partition, offset) in partitions {
            bytes.extend_from_slice(&partition.0.to_be_bytes());
            bytes.extend_from_slice(&offset.0.to_be_bytes());
        }
    }
}

fn push_name(bytes: &mut Vec<u8>, name: &str) {
    bytes.push(u8::try_from(name.len()).expect("a stream has at most 100 bytes, a topic 249"));
    bytes.extend_from_slice(name.as_bytes());
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

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn log(&mut self) -> Option<Option<LogId>> {
        self.u64().map(|number| NonZeroU64::new(number).map(LogId))
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.array()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let [length] = self.array()?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }

    fn partition(&mut self) -> Option<PartitionId> {
        self.array().map(|bytes| PartitionId(i32::from_be_bytes(bytes)))
    }

    fn offsets(&mut self) -> Option<Acknowledged> {
        let mut acknowledged = Acknowledged::new();
        for _ in 0..u32::from_be_bytes(self.array()?) {
            let stream = StreamName::new(self.name()?).ok()?;
            for _ in 0..u32::from_be_bytes(self.array()?) {
                acknowledged.insert((stream.clone(), self.partition()?), Offset(self.i64()?));
            }
        }
        Some(acknowledged)
    }

    fn intent(&mut self) -> Option<Intent> {
        let (next, acknowledged) = (EntrySeq(self.u64()?), self.offsets()?);
        let last = if self.flag()? { Some(self.last()?) } else { None };
        Some(Intent { next, acknowledged, last })
    }

    fn last(&mut self) -> Option<LastRecord> {
        Some(LastRecord {
            topic: self.name()?.to_owned(),
            partition: self.partition()?,
            kafka_offset: self.i64()?,
            offset: Some(Offset(self.i64()?)).filter(|offset| offset.0 >= 0),
        })
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
