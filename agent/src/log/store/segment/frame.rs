//! The bytes of a segment: what is written, and how what is found is told from damage.

use std::io;

use crate::log::{
    CRC_32C,
    store::{
        ENTRY_BYTES_MAX, EntrySeq, EpochId, StoredEntry,
        blocks::{self, ReadAt},
    },
};

const MAGIC: [u8; 4] = *b"wseg";
const VERSION: u32 = 1;

/// Bytes of the file's header.
pub(super) const FILE_HEADER_BYTES: usize = 20;

/// What a frame begins with. Neither its first byte nor any pair of its bytes is UTF-8, so that text never looks like it.
const MARK: [u8; 4] = [0xf5, 0xc1, 0xfa, 0xc0];

/// Bytes of a frame's header.
pub(super) const FRAME_HEADER_BYTES: usize = 24;

/// Bytes of the file that are in memory while it is read.
const WINDOW_BYTES: usize = 128 * 1024;

// A frame is looked at in one piece.
const _: () = assert!(ENTRY_BYTES_MAX + FRAME_HEADER_BYTES <= WINDOW_BYTES);

/// Of what lies so close together the index knows the first alone.
const INDEX_STRIDE_BYTES: u64 = 64 * 1024;

/// The header of the file of an epoch.
pub(super) fn file_header(epoch: EpochId) -> [u8; FILE_HEADER_BYTES] {
    let mut header = [0; FILE_HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&VERSION.to_be_bytes());
    header[8..16].copy_from_slice(&epoch.0.0.to_be_bytes());
    let crc = CRC_32C.checksum(&header[..16]);
    header[16..].copy_from_slice(&crc.to_be_bytes());
    header
}

/// Says why the file of `epoch` cannot be read, by its first bytes. One whose header is damaged can: each frame says
/// where it belongs.
pub(super) fn check_file_header(header: &[u8], epoch: EpochId) -> Result<(), String> {
    let header: Option<&[u8; FILE_HEADER_BYTES]> = header.first_chunk();
    let Some(header) = header.filter(|header| CRC_32C.checksum(&header[..16]).to_be_bytes() == header[16..])
    else {
        return Ok(());
    };
    let version = u32_at(header, 4);
    if header[..4] == MAGIC && version != VERSION {
        return Err(format!("version {version} is not known"));
    }
    let found = EpochId(EntrySeq(u64_at(header, 8)));
    if found != epoch { Err(format!("it says that it is {found}")) } else { Ok(()) }
}

/// A frame's header, in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    at: u64,
    entry_bytes: usize,
    seq: EntrySeq,
    entry_crc: u32,
}

impl Frame {
    fn end(&self) -> u64 {
        self.at + (FRAME_HEADER_BYTES + self.entry_bytes) as u64
    }

    fn encode(&self, epoch: EpochId) -> [u8; FRAME_HEADER_BYTES] {
        let mut header = [0; FRAME_HEADER_BYTES];
        header[..4].copy_from_slice(&MARK);
        let entry_bytes = u32::try_from(self.entry_bytes).expect("at most ENTRY_BYTES_MAX");
        header[4..8].copy_from_slice(&entry_bytes.to_be_bytes());
        header[8..16].copy_from_slice(&self.seq.0.to_be_bytes());
        header[16..20].copy_from_slice(&self.entry_crc.to_be_bytes());
        let crc = header_crc(epoch, self.at, &header[..20]);
        header[20..].copy_from_slice(&crc.to_be_bytes());
        header
    }

    /// None if there is no frame of `epoch` at `at`.
    fn decode(epoch: EpochId, at: u64, bytes: &[u8]) -> Option<Self> {
        let header: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk()?;
        let frame = Self {
            at,
            entry_bytes: u32_at(header, 4) as usize,
            seq: EntrySeq(u64_at(header, 8)),
            entry_crc: u32_at(header, 16),
        };
        let holds = header[..4] == MARK
            && frame.entry_bytes <= ENTRY_BYTES_MAX
            && header_crc(epoch, at, &header[..20]) == u32_at(header, 20);
        holds.then_some(frame)
    }
}

/// The epoch and the place are under the checksum: a frame that lies elsewhere, in a payload or left from another file,
/// is none.
fn header_crc(epoch: EpochId, at: u64, header: &[u8]) -> u32 {
    let mut digest = CRC_32C.digest();
    digest.update(&epoch.0.0.to_be_bytes());
    digest.update(&at.to_be_bytes());
    digest.update(header);
    digest.finalize()
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Adds the frame of an entry to `buffer`, which will be at `at` in the file of `epoch`.
pub(super) fn encode(epoch: EpochId, at: u64, seq: EntrySeq, entry: &[u8], buffer: &mut Vec<u8>) {
    let frame = Frame { at, entry_bytes: entry.len(), seq, entry_crc: CRC_32C.checksum(entry) };
    buffer.extend_from_slice(&frame.encode(epoch));
    buffer.extend_from_slice(entry);
}

/// Where some of the frames are, as far as the file was written or read. 16 bytes for each 64 KiB of it.
#[derive(Debug, Default)]
pub(super) struct Index(Vec<(EntrySeq, u64)>);

impl Index {
    /// Notes that the entry `seq` is at `at`, if nothing known is near.
    pub(super) fn note(&mut self, seq: EntrySeq, at: u64) {
        if self.0.last().is_none_or(|last| seq > last.0 && at >= last.1 + INDEX_STRIDE_BYTES) {
            self.0.push((seq, at));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A place from which on all entries from `seq` on are found.
    fn before(&self, seq: EntrySeq) -> u64 {
        let behind = self.0.partition_point(|(noted, _)| *noted <= seq);
        behind.checked_sub(1).map_or(FILE_HEADER_BYTES as u64, |index| self.0[index].1)
    }
}

/// The part of a file that is in memory. The file only grows.
#[derive(Debug, Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    at: u64,
}

impl Window {
    /// What is in memory from `at` on: `least` bytes or more, fewer where the file ends.
    fn peek(&mut self, file: &impl ReadAt, at: u64, least: usize) -> io::Result<&[u8]> {
        let offset = |window: &Self| usize::try_from(at.checked_sub(window.at)?).ok();
        let found = offset(self).filter(|offset| self.bytes.len() >= offset.saturating_add(least));
        let offset = match found {
            Some(offset) => offset,
            None => {
                self.load(file, at)?;
                0
            }
        };
        Ok(&self.bytes[offset..])
    }

    fn load(&mut self, file: &impl ReadAt, at: u64) -> io::Result<()> {
        self.at = at;
        self.bytes.resize(WINDOW_BYTES, 0);
        // Zeros, as which a block comes that cannot be read, are no frame.
        let filled = blocks::fill(file, &mut self.bytes, at);
        self.bytes.truncate(*filled.as_ref().unwrap_or(&0));
        filled.map(|_| ())
    }

    /// The first frame at or behind `at`; damage before it is passed. None at the end of the file.
    fn next_frame(&mut self, file: &impl ReadAt, epoch: EpochId, mut at: u64) -> io::Result<Option<Frame>> {
        loop {
            let bytes = self.peek(file, at, FRAME_HEADER_BYTES)?;
            if bytes.len() < FRAME_HEADER_BYTES {
                return Ok(None);
            }
            if let Some(frame) = Frame::decode(epoch, at, bytes) {
                return Ok(Some(frame));
            }
            let behind = &bytes[1..];
            let mark = behind.windows(MARK.len()).position(|window| window == MARK);
            at += 1 + mark.unwrap_or(behind.len() + 1 - MARK.len()) as u64;
        }
    }

    /// The entry of a frame; none if it is damaged, or the file ends within it.
    fn entry(&mut self, file: &impl ReadAt, frame: &Frame) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.peek(file, frame.at + FRAME_HEADER_BYTES as u64, frame.entry_bytes)?;
        let entry = bytes.get(..frame.entry_bytes);
        Ok(entry.filter(|entry| CRC_32C.checksum(entry) == frame.entry_crc).map(<[u8]>::to_vec))
    }
}

/// Entries of the file of `epoch` from `from` on, as [`EpochStore::read`](crate::log::store::EpochStore::read) has
/// them. What is damaged is left out.
pub(super) fn read(
    file: &impl ReadAt,
    window: &mut Window,
    index: &mut Index,
    epoch: EpochId,
    from: EntrySeq,
    limit_bytes: usize,
) -> io::Result<Vec<StoredEntry>> {
    let mut at = index.before(from);
    let mut read: Vec<StoredEntry> = Vec::new();
    let mut bytes = 0;
    while bytes < limit_bytes || read.is_empty() {
        let Some(frame) = window.next_frame(file, epoch, at)? else { break };
        at = frame.end();
        index.note(frame.seq, frame.at);
        let is_next = frame.seq >= from && read.last().is_none_or(|last| frame.seq > last.seq);
        if is_next && let Some(entry) = window.entry(file, &frame)? {
            bytes += entry.len();
            read.push(StoredEntry { seq: frame.seq, bytes: entry });
        }
    }
    Ok(read)
}
