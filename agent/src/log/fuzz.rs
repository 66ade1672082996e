//! See [`crate::fuzz`].

use bytes::Bytes;

use super::{
    EntrySeq,
    checkpoint::Assembly,
    dropped,
    entry::{CRC_32C, EntryCodec, EntryKind, HEADER_BYTES},
    group::{self, Names},
    notes,
};
use crate::{config::Compression, record::Timeline};

/// The log's entries: bytes as they are, and with the right checksum. Groups and checkpoints that decode are the same after
/// they were encoded again.
pub fn log(data: &[u8]) {
    entry(data.to_vec());
    if data.len() >= HEADER_BYTES {
        let crc = CRC_32C.checksum(&data[4..]);
        entry([&crc.to_be_bytes(), &data[4..]].concat());
    }
}

fn entry(bytes: Vec<u8>) {
    let seq = bytes.get(8..16).and_then(|seq| seq.try_into().ok()).map_or(0, u64::from_be_bytes);
    let mut codec = EntryCodec::new(Compression::Lz4);
    match codec.decode(EntrySeq(seq), bytes) {
        Ok((EntryKind::Group, timeline, body)) => group(&body, timeline, &mut codec),
        Ok((EntryKind::Checkpoint, _, body)) => checkpoint(&body),
        Ok((EntryKind::Compacted, timeline, body)) => compacted(&body, timeline),
        Ok((EntryKind::Noted, timeline, body)) => noted(&body, timeline, &mut codec),
        Err(_) => {}
    }
}

fn group(body: &Bytes, timeline: Timeline, codec: &mut EntryCodec) {
    let mut names = Names::default();
    let ranges = group::decode_ranges(body, &mut names);
    let Ok(batches) = group::decode(body, timeline, &mut names) else { return };
    let ranges = ranges.expect("what decodes has a directory");
    assert!(ranges.iter().map(|r| r.record_count as usize).eq(batches.iter().map(|b| b.records.len())));
    let mut raw = Vec::new();
    group::encode(&batches, &mut raw);
    let mut entry = codec.encode(EntryKind::Group, timeline, &raw);
    let (kind, found, again) =
        codec.decode(EntrySeq(1), entry.seal(EntrySeq(1)).to_vec()).expect("as encoded");
    assert_eq!((kind, found), (EntryKind::Group, timeline));
    assert_eq!(group::decode(&again, found, &mut names), Ok(batches));
}

fn noted(body: &Bytes, timeline: Timeline, codec: &mut EntryCodec) {
    let Ok((notes, rest)) = notes::split(body) else { return };
    assert_eq!(notes::decode(&notes::encode(&notes)), Ok((notes, &[][..])));
    group(&rest, timeline, codec);
}

fn compacted(body: &Bytes, timeline: Timeline) {
    let mut names = Names::default();
    let Ok(found) = dropped::decode(body, timeline, &mut names) else { return };
    let mut raw = Vec::new();
    dropped::encode(found.first, &found.dropped, &found.batches, &mut raw);
    assert_eq!(dropped::decode(&raw.into(), timeline, &mut names), Ok(found));
}

fn checkpoint(body: &Bytes) {
    let Ok(Some(checkpoint)) = Assembly::default().push(body) else { return };
    let mut assembly = Assembly::default();
    let parts = checkpoint.encode().into_iter().map(Bytes::from);
    let again = parts.map(|part| assembly.push(&part)).last();
    assert_eq!(again, Some(Ok(Some(checkpoint))));
}
