//! The engine `segment`: one file for each epoch, which is only appended to.
//!
//! It does no more than a log asks for, and is the measure of what sled costs (`benches/stores.rs`). Entries are
//! gathered in memory and written with one `pwrite` for each sync; `fdatasync` makes them durable. After an error the
//! file is never synced again: Linux forgets what it could not write, and a second `fdatasync` would succeed without it.
//!
//! # Format, version 1
//! Integers are big-endian, checksums CRC-32C (Castagnoli). The file begins with a header:
//!
//! | offset | size | type | field |
//! |-------:|-----:|------|-------|
//! | 0 | 4 | bytes | `wseg` |
//! | 4 | 4 | u32 | version: 1 |
//! | 8 | 8 | u64 | id of the epoch |
//! | 16 | 4 | u32 | checksum of the bytes from 0 to 16 |
//!
//! Behind it, without a gap, a frame for each entry, sequence numbers ascending:
//!
//! | offset | size | type | field |
//! |-------:|-----:|------|-------|
//! | 0 | 4 | bytes | mark: F5 C1 FA C0 |
//! | 4 | 4 | u32 | bytes of the entry, at most [`ENTRY_BYTES_MAX`] |
//! | 8 | 8 | u64 | sequence number |
//! | 16 | 4 | u32 | checksum of the entry |
//! | 20 | 4 | u32 | checksum of the epoch's id (u64), the frame's offset in the file (u64) and the frame's bytes from 0 to 20 |
//! | 24 | rest | bytes | the entry, see [`crate::log`] |
//!
//! With a checksum of its own the header is good for the way to the next frame though the entry is damaged; where the
//! header is damaged too, the next mark with a right checksum is the next frame. So damage costs the entries that it
//! hits. A tail that a power cut has torn is what is behind the last whole frame: it needs no repair, since a start
//! goes on in a new epoch.
//!
//! While it is written the file has room for an epoch behind its end (`fallocate`, `FALLOC_FL_KEEP_SIZE`), which is given
//! back when it is closed: an epoch that has begun seldom meets a full disk, and lies in one piece. A sync still costs
//! the file system a note of the file's length; to spare it that, every byte would have to be written twice.

mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io,
    num::NonZeroU64,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use rustix::fs::{Advice, FallocateFlags};

#[cfg(doc)]
use super::{ENTRY_BYTES_MAX, EpochStore};
use super::{
    EntrySeq, EpochId, StoredEntry,
    disk::{ReadEpoch, WriteEpoch},
    failure::Failure,
};
use frame::{FILE_HEADER_BYTES, Index, Window};

/// The file that holds the entries.
pub(super) const FILE: &str = "segment";

/// Bytes that wait for a sync in memory; more are written before it.
const BUFFER_BYTES: usize = 256 * 1024;

/// A page of memory, or a part of one.
const PAGE_BYTES: u64 = 4096;

/// The epoch that is being written.
#[derive(Debug)]
pub(super) struct SegmentWriter {
    epoch: EpochId,
    epoch_bytes: u64,
    file: File,
    /// Where `buffer` goes.
    written_bytes: u64,
    buffer: Vec<u8>,
    index: Index,
    window: Window,
}

impl SegmentWriter {
    /// Makes the file of a new epoch in the directory `path`.
    pub(super) fn create(epoch: EpochId, path: &Path, epoch_bytes: u64) -> Result<Self, Failure> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path.join(FILE))
            .map_err(Failure::of_io)?;
        // Not everywhere there is such a call, and not always the room: then the writes will tell.
        let _ = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, epoch_bytes);
        Ok(Self {
            epoch,
            epoch_bytes,
            file,
            written_bytes: 0,
            buffer: frame::file_header(epoch).to_vec(),
            index: Index::default(),
            window: Window::default(),
        })
    }

    fn end(&self) -> u64 {
        self.written_bytes + self.buffer.len() as u64
    }

    /// Gives the kernel what is in the buffer.
    fn write(&mut self) -> Result<(), Failure> {
        self.file.write_all_at(&self.buffer, self.written_bytes).map_err(Failure::of_io)?;
        self.written_bytes = self.end();
        self.buffer.clear();
        Ok(())
    }

    /// Has the device begin with what was written from `from` on, so that the sync does not wait for all of it. Linux does
    /// so when it is told that nobody needs the pages; only whole ones, or their last part would be written twice.
    fn begin_write_out(&self, from: u64) {
        let pages = (self.written_bytes / PAGE_BYTES * PAGE_BYTES).saturating_sub(from);
        if let Some(pages) = NonZeroU64::new(pages) {
            let _ = rustix::fs::fadvise(&self.file, from, Some(pages), Advice::DontNeed);
        }
    }
}

impl WriteEpoch for SegmentWriter {
    fn append(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), Failure> {
        let at = self.end();
        frame::encode(self.epoch, at, seq, entry, &mut self.buffer);
        self.index.note(seq, at);
        if self.buffer.len() >= BUFFER_BYTES {
            let from = self.written_bytes;
            self.write()?;
            self.begin_write_out(from);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Failure> {
        self.write()?;
        self.file.sync_data().map_err(Failure::of_io)
    }

    fn sync_others(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn wants_roll(&self) -> bool {
        self.end() >= self.epoch_bytes
    }

    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<Vec<StoredEntry>, Failure> {
        self.write()?;
        frame::read(&self.file, &mut self.window, &mut self.index, self.epoch, from, limit_bytes)
            .map_err(Failure::of_io)
    }

    fn size_bytes(&self) -> u64 {
        self.end()
    }

    fn close(self: Box<Self>) {
        // What the file does not fill of its room.
        let _ = self.file.set_len(self.written_bytes);
    }
}

/// An epoch that is being read.
#[derive(Debug)]
pub(super) struct SegmentReader {
    epoch: EpochId,
    file: File,
    index: Index,
    window: Window,
}

impl SegmentReader {
    /// Opens the file of an epoch.
    pub(super) fn open(epoch: EpochId, path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(Failure::of_io)?;
        if !file.metadata().map_err(Failure::of_io)?.is_file() {
            return Err(Failure::Broken(format!("{FILE} is no file")));
        }
        let mut header = [0; FILE_HEADER_BYTES];
        if file.read_exact_at(&mut header, 0).is_ok() {
            frame::check_file_header(&header, epoch).map_err(Failure::Broken)?;
        }
        Ok(Self { epoch, file, index: Index::default(), window: Window::default() })
    }
}

impl ReadEpoch for SegmentReader {
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<Vec<StoredEntry>, Failure> {
        frame::read(&self.file, &mut self.window, &mut self.index, self.epoch, from, limit_bytes)
            .map_err(Failure::of_io)
    }
}

/// Gives back the room of an epoch, in the directory `path`, that was being written when the agent ended. On a disk that
/// takes no writes it stays.
pub(super) fn give_back(path: &Path) {
    let file = path.join(FILE);
    let shrink = || -> io::Result<()> {
        let metadata = fs::symlink_metadata(&file)?;
        if metadata.is_file() && metadata.blocks() * 512 >= metadata.len() + metadata.blksize() {
            File::options().write(true).open(&file)?.set_len(metadata.len())?;
        }
        Ok(())
    };
    if let Err(error) = shrink().or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }) {
        tracing::debug!(path = %file.display(), %error, "its room is not given back");
    }
}
