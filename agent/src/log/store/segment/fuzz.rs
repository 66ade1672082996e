//! See [`crate::fuzz`].

use std::io;

use super::frame::{self, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, Index, Window};
use crate::log::{
    CRC_32C,
    store::{EntrySeq, EpochId, StoredEntry, blocks::ReadAt},
};

const EPOCH: EpochId = EpochId(EntrySeq(0));

/// What stands for a file in tests.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl ReadAt for Bytes<'_> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// The file of a segment: bytes as they are, and with the right checksums where frames could be. Entries ascend; reading them
/// one by one gives what reading them at once does, and so does reading them after they were written again. A file that is cut
/// has the first of them.
pub fn segment(data: &[u8]) {
    let _ = frame::check_file_header(data, EPOCH);
    check(data);
    check(&with_checksums(data));
}

fn check(data: &[u8]) {
    let whole = read(data, EntrySeq(0), usize::MAX);
    assert!(whole.is_sorted_by(|a, b| a.seq < b.seq));
    let (mut window, mut index) = (Window::default(), Index::default());
    let mut next = Some(EntrySeq(0));
    for entry in &whole {
        let from = next.expect("there is one more");
        let one = frame::read(&Bytes(data), &mut window, &mut index, EPOCH, from, 0).expect("memory");
        assert_eq!(one, std::slice::from_ref(entry));
        assert_eq!(read(data, entry.seq, 0), one, "without what was read before");
        next = entry.seq.0.checked_add(1).map(EntrySeq);
    }
    let mut again = frame::file_header(EPOCH).to_vec();
    for entry in &whole {
        frame::encode(EPOCH, again.len() as u64, entry.seq, &entry.bytes, &mut again);
    }
    assert_eq!(read(&again, EntrySeq(0), usize::MAX), whole);
    assert!(whole.starts_with(&read(&data[..data.len() / 2], EntrySeq(0), usize::MAX)));
}

pub(super) fn read(data: &[u8], from: EntrySeq, limit_bytes: usize) -> Vec<StoredEntry> {
    let (mut window, mut index) = (Window::default(), Index::default());
    frame::read(&Bytes(data), &mut window, &mut index, EPOCH, from, limit_bytes).expect("memory")
}

/// No fuzzer guesses a CRC.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    let mut at = FILE_HEADER_BYTES;
    while let Some(header) = data.get(at..at + FRAME_HEADER_BYTES) {
        let length = usize::from(u16::from_be_bytes([header[6], header[7]]));
        let seq = EntrySeq(u64::from_be_bytes(header[8..16].try_into().expect("8 bytes")));
        let entry = at + FRAME_HEADER_BYTES..at + FRAME_HEADER_BYTES + length;
        let Some(entry) = data.get(entry).map(<[u8]>::to_vec) else { break };
        let mut whole = Vec::new();
        frame::encode(EPOCH, at as u64, seq, &entry, &mut whole);
        // One in four stays damaged, by what its entry says.
        if CRC_32C.checksum(&entry) % 4 != 0 {
            data[at..at + whole.len()].copy_from_slice(&whole);
        }
        at += whole.len();
    }
    data
}
