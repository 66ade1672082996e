//! Segments: bytes on disk, and what damage costs.

use std::{io, path::PathBuf};

use super::{
    frame::FRAME_HEADER_BYTES,
    fuzz::{self, Bytes},
    *,
};
use crate::log::store::{ENTRY_BYTES_MAX, blocks::ReadAt};

const EPOCH: EpochId = EpochId(EntrySeq(0));

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/log/v1-segment.bin")
}

/// What `testdata/log/v1-segment.bin` holds.
fn golden_entries() -> Vec<StoredEntry> {
    let entry =
        |seq: u64, bytes: &[u8]| StoredEntry { seq: EntrySeq(0x0102_0304 + seq), bytes: bytes.to_vec() };
    vec![entry(0, b"first"), entry(1, b""), entry(7, &[0xf5, 0xc1, 0xfa, 0xc0, 0xff]), entry(8, &[7; 300])]
}

/// The file of an epoch, as it is written.
fn file(epoch: EpochId, entries: &[StoredEntry]) -> Vec<u8> {
    let mut bytes = frame::file_header(epoch).to_vec();
    for entry in entries {
        frame::encode(epoch, bytes.len() as u64, entry.seq, &entry.bytes, &mut bytes);
    }
    bytes
}

fn entries(count: u64, size: usize) -> Vec<StoredEntry> {
    let fill = |seq: u64| vec![seq.to_le_bytes()[0]; size];
    (0..count).map(|seq| StoredEntry { seq: EntrySeq(seq), bytes: fill(seq) }).collect()
}

fn read_all(bytes: &[u8]) -> Vec<StoredEntry> {
    fuzz::read(bytes, EntrySeq(0), usize::MAX)
}

#[test]
fn a_segment_of_version_1_opens_and_is_still_what_is_written() {
    let epoch = EpochId(EntrySeq(0x0102_0304));
    let bytes = fs::read(golden()).unwrap();
    assert_eq!(file(epoch, &golden_entries()), bytes);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), &bytes).unwrap();
    let mut reader = SegmentReader::open(epoch, &dir.path().join(FILE)).unwrap();
    let read = reader.read(EntrySeq(0), usize::MAX);
    assert_eq!(read.ok(), Some(golden_entries()));
    // What is written is what the writer of an epoch writes.
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SegmentWriter::create(epoch, dir.path(), 1 << 20).unwrap();
    for entry in golden_entries() {
        writer.append(entry.seq, &entry.bytes).unwrap();
    }
    writer.sync().unwrap();
    assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), bytes);
}

#[test]
fn every_flipped_bit_costs_one_entry_at_most() {
    let written = entries(20, 50);
    let whole = file(EPOCH, &written);
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let read = read_all(&bytes);
        let at = (bit / 8).checked_sub(FILE_HEADER_BYTES).map(|at| at / (50 + FRAME_HEADER_BYTES));
        let expected: Vec<_> =
            written.iter().enumerate().filter(|(n, _)| Some(*n) != at).map(|(_, e)| e.clone()).collect();
        assert_eq!(read, expected, "bit {bit}");
    }
}

#[test]
fn a_torn_tail_costs_what_it_cuts() {
    let written = entries(5, 50);
    let whole = file(EPOCH, &written);
    for length in 0..whole.len() {
        let there = length.saturating_sub(FILE_HEADER_BYTES) / (50 + FRAME_HEADER_BYTES);
        assert_eq!(read_all(&whole[..length]), written[..there], "cut to {length}");
        let mut zeros = whole.clone();
        zeros[length..].fill(0);
        let read = read_all(&zeros);
        assert!(read.len() >= there && written.starts_with(&read), "zeros from {length} on");
    }
}

#[test]
fn what_is_written_behind_damage_is_found_however_large_it_is() {
    let written = entries(8, ENTRY_BYTES_MAX);
    let mut bytes = file(EPOCH, &written);
    let frame_bytes = FRAME_HEADER_BYTES + ENTRY_BYTES_MAX;
    // The headers of the frames 2 and 3, and of 5 the end.
    bytes[FILE_HEADER_BYTES + 2 * frame_bytes..][..10].fill(0xff);
    bytes[FILE_HEADER_BYTES + 3 * frame_bytes..][..10].fill(0xff);
    bytes[FILE_HEADER_BYTES + 6 * frame_bytes - 1] ^= 1;
    let seqs: Vec<u64> = read_all(&bytes).iter().map(|entry| entry.seq.0).collect();
    assert_eq!(seqs, [0, 1, 4, 6, 7]);
}

#[test]
fn a_segment_within_an_entry_is_no_part_of_the_segment_around_it() {
    // As a device may send it: a whole file, as a payload.
    let inner = file(EPOCH, &entries(50, 20));
    let mut outer = file(EPOCH, &[StoredEntry { seq: EntrySeq(0), bytes: inner }]);
    outer[FILE_HEADER_BYTES] ^= 1;
    assert_eq!(read_all(&outer), []);
}

#[test]
fn the_index_is_small_and_saves_the_way_from_the_start() {
    struct Counting<'a>(&'a [u8], std::cell::Cell<usize>);
    impl ReadAt for Counting<'_> {
        fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
            let read = Bytes(self.0).read_at(buffer, at)?;
            self.1.set(self.1.get() + read);
            Ok(read)
        }
    }
    let written = entries(20_000, 400);
    let bytes = file(EPOCH, &written);
    let (mut window, mut index) = (Window::default(), Index::default());
    let mut read = |from: u64| {
        let file = Counting(&bytes, 0.into());
        let found = frame::read(&file, &mut window, &mut index, EPOCH, EntrySeq(from), 1).unwrap();
        assert_eq!(found, written[usize::try_from(from).unwrap()..][..1]);
        file.1.get()
    };
    assert!(read(19_999) > bytes.len() / 2);
    for from in [0, 5_000, 12_345, 1, 19_998] {
        assert!(read(from) <= 3 * 128 * 1024, "from {from}");
    }
    assert!(index.len() <= bytes.len() / (64 * 1024) + 1);
}

#[test]
fn blocks_that_the_device_does_not_give_back_cost_what_is_in_them() {
    struct Failing<'a>(&'a [u8]);
    impl ReadAt for Failing<'_> {
        fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
            match at {
                8192..12288 => Err(rustix::io::Errno::IO.into()),
                // As the kernel does: what comes before the block is read.
                ..8192 => {
                    let before = usize::try_from(8192 - at).unwrap().min(buffer.len());
                    Bytes(self.0).read_at(&mut buffer[..before], at)
                }
                _ => Bytes(self.0).read_at(buffer, at),
            }
        }
    }
    let written = entries(200, 100);
    let bytes = file(EPOCH, &written);
    let (mut window, mut index) = (Window::default(), Index::default());
    let read =
        frame::read(&Failing(&bytes), &mut window, &mut index, EPOCH, EntrySeq(0), usize::MAX).unwrap();
    let untouched = |n: usize| {
        let at = FILE_HEADER_BYTES + n * (100 + FRAME_HEADER_BYTES);
        at + 100 + FRAME_HEADER_BYTES <= 8192 || at >= 12288
    };
    let expected: Vec<_> =
        written.into_iter().enumerate().filter(|(n, _)| untouched(*n)).map(|(_, e)| e).collect();
    assert_eq!(read, expected);
}

#[test]
fn a_later_version_is_damage_and_a_damaged_header_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let open = |header: &[u8]| {
        let frames = &file(EPOCH, &entries(3, 10))[FILE_HEADER_BYTES..];
        fs::write(dir.path().join(FILE), [header, frames].concat()).unwrap();
        let mut reader = SegmentReader::open(EPOCH, &dir.path().join(FILE))?;
        Ok(reader.read(EntrySeq(0), usize::MAX).ok().map(|read| read.len()))
    };
    let header = frame::file_header(EPOCH);
    let mut later = header;
    later[7] = 2;
    let crc = crate::log::CRC_32C.checksum(&later[..16]);
    later[16..].copy_from_slice(&crc.to_be_bytes());
    assert!(matches!(open(&later), Err(Failure::Broken(reason)) if reason.contains("version 2")));
    let mut damaged = header;
    damaged[7] = 2;
    assert!(matches!(open(&damaged), Ok(Some(3))));
}

#[test]
fn what_fdatasync_says_is_what_a_sync_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SegmentWriter::create(EPOCH, dir.path(), 1 << 20).unwrap();
    // It takes every write, and cannot be synced.
    writer.file = File::options().write(true).open("/dev/null").unwrap();
    writer.append(EntrySeq(0), b"x").unwrap();
    writer.write().unwrap();
    assert!(matches!(writer.sync(), Err(Failure::Broken(_))));
}

#[test]
fn an_epoch_has_its_room_while_it_is_written_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let blocks_bytes = || fs::metadata(dir.path().join(FILE)).unwrap().blocks() * 512;
    let write = || {
        let mut writer = SegmentWriter::create(EPOCH, dir.path(), 1 << 20).unwrap();
        writer.append(EntrySeq(0), &[1; 1000]).unwrap();
        writer.sync().unwrap();
        writer
    };
    let writer = write();
    if blocks_bytes() < 1 << 20 {
        eprintln!("skipped: no fallocate here");
        return;
    }
    Box::new(writer).close();
    assert!(blocks_bytes() < 64 << 10);
    fs::remove_file(dir.path().join(FILE)).unwrap();
    // Killed.
    drop(write());
    assert!(blocks_bytes() >= 1 << 20);
    give_back(dir.path());
    assert!(blocks_bytes() < 64 << 10);
    assert_eq!(read_all(&fs::read(dir.path().join(FILE)).unwrap()).len(), 1);
}

proptest::proptest! {
    #[test]
    fn whatever_the_file_became_it_reads_the_same_in_pieces(
        sizes in proptest::collection::vec(0..200_usize, 0..20),
        edits in proptest::collection::vec((proptest::num::usize::ANY, proptest::num::u8::ANY), 0..8),
        cut in proptest::num::usize::ANY,
    ) {
        let entries = sizes.iter().zip(0..).map(|(size, seq)| StoredEntry {
            seq: EntrySeq(seq),
            bytes: [0xf5, 0xc1, 0xfa, 0xc0].into_iter().cycle().take(*size).collect(),
        });
        let mut bytes = file(EPOCH, &entries.collect::<Vec<_>>());
        for (at, byte) in edits {
            let length = bytes.len();
            bytes[at % length] = byte;
        }
        bytes.truncate(bytes.len() - cut % (2 * bytes.len()) / 2);
        fuzz::segment(&bytes);
    }
}
