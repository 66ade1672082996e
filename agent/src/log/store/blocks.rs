//! Reading past blocks that the device does not give back.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::io::Errno;

/// What an unreadable part of a file is rounded to.
const BLOCK_BYTES: u64 = 4096;

/// A file, or what stands for one.
pub(super) trait ReadAt {
    /// As pread(2): 0 is the end.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, at)
    }
}

/// Fills `buffer` with what the file has from `at` on; returns how much there was. What the device does not give back is
/// zeros.
pub(super) fn fill(file: &impl ReadAt, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let here = at + filled as u64;
        match file.read_at(&mut buffer[filled..], here) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {
                let block = usize::try_from(BLOCK_BYTES - here % BLOCK_BYTES).expect("4 KiB");
                let end = (filled + block).min(buffer.len());
                buffer[filled..end].fill(0);
                filled = end;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
