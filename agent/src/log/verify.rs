//! Verify: reads all of a log from outside and says what is damaged, and which records that costs.
//!
//! Safe while an agent writes, as all of [`inspect`]. What the agent deletes meanwhile is left out.

use std::{collections::BTreeMap, path::Path};

use super::{
    EntrySeq, LostEntries,
    checkpoint::Checkpoint,
    inspect::{self, DirReport, EpochReader, EpochReport, InspectError, Item},
    store::EpochId,
};
use crate::record::{Offset, PartitionId, StreamName};

/// How often an epoch that changed while it was copied is read again when its copy looks damaged.
const TORN_TRIES: u32 = 3;

/// A damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where.
    pub epoch: EpochId,
    /// The entries that it costs, if it costs any.
    pub entries: Option<(EntrySeq, EntrySeq)>,
    /// What was found.
    pub reason: String,
    /// Whether the epoch itself is damaged. Otherwise it is whole as far as it goes, and what should follow is missing.
    pub in_epoch: bool,
}

/// Records that the log had and has no more, told by the offsets on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRecords {
    /// Their stream.
    pub stream: StreamName,
    /// Their partition.
    pub partition: PartitionId,
    /// Offset of the first.
    pub first: Offset,
    /// Offset behind the last.
    pub end: Offset,
    /// Whether every offset of the range was a record. Otherwise the log did not know how far it had come, and went on
    /// where it had certainly not been: the range bounds the loss from above.
    pub exact: bool,
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// What is in the directory.
    pub dir: DirReport,
    /// Entries that are whole and in place.
    pub entries: u64,
    /// Records in them.
    pub records: u64,
    /// Position of the first entry.
    pub first: EntrySeq,
    /// Position behind the last entry.
    pub end: EntrySeq,
    /// By partition the offset behind the last record.
    pub next_offsets: BTreeMap<(StreamName, PartitionId), Offset>,
    /// Records that the log dropped by policy; each is told on the stream `gaps`.
    pub dropped_records: u64,
    /// The newest epoch, when no sync of it has completed: nothing in it was acknowledged, and the next start deletes it.
    pub unsynced: Option<EpochId>,
    /// Epochs that are not the newest and have lost the mark of their sync: the next start would put them aside.
    pub unmarked: Vec<EpochId>,
    /// What is damaged, in the order of the log.
    pub damage: Vec<Damage>,
    /// What that costs.
    pub lost: Vec<LostRecords>,
    /// What can still be read of the epochs that were put aside, by the names of their directories.
    pub put_aside: BTreeMap<String, EpochReport>,
    /// Next offset of a partition that is not in `next_offsets`, once a checkpoint has told.
    offset_floor: Option<Offset>,
}

impl Verification {
    /// Whether nothing is damaged and nothing was put aside.
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty()
            && self.unmarked.is_empty()
            && self.lost.is_empty()
            && self.put_aside.is_empty()
    }

    /// Next offset of a partition, as far as anything read says.
    fn expected(&self, key: &(StreamName, PartitionId)) -> Option<Offset> {
        self.next_offsets.get(key).copied().or(self.offset_floor)
    }

    fn damage(&mut self, epoch: EpochId, entries: Option<(EntrySeq, EntrySeq)>, reason: impl Into<String>) {
        self.damage.push(Damage { epoch, entries, reason: reason.into(), in_epoch: true });
    }
}

/// Reads every epoch of `dir`. `goes_on` is told the epochs done and how many there are, and says whether to go on.
///
/// # Errors
/// [`InspectError`] when the directory cannot be listed or an epoch not be copied, and when it is not to go on. Damage is
/// no error.
pub fn verify(
    dir: &Path,
    mut goes_on: impl FnMut(usize, usize) -> bool,
) -> Result<Verification, InspectError> {
    let listed = inspect::list(dir)?;
    let total = listed.epochs.len() + listed.quarantined.len();
    let mut found = Verification::default();
    for (index, &epoch) in listed.epochs.iter().enumerate() {
        if !goes_on(index, total) {
            return Err(InspectError::Interrupted);
        }
        let limit = listed.epochs.get(index + 1).map(|following| following.0);
        let before = found.clone();
        for _ in 0..TORN_TRIES {
            found = before.clone();
            let Some(mut reader) = EpochReader::open(&dir.join(epoch.to_string()), epoch)? else {
                // The agent deletes the oldest ones: what is left begins behind.
                found = Verification { first: limit.unwrap_or(before.end), ..Verification::default() };
                break;
            };
            if index == 0 {
                found.first = epoch.0;
                // In front of the very first entry there was no record.
                found.offset_floor = (epoch.0 == EntrySeq(0)).then_some(Offset(0));
            }
            read(&mut found, &mut reader, epoch, limit);
            if !reader.torn || found.damage.len() == before.damage.len() {
                break;
            }
        }
    }
    for (name, &epoch) in &listed.quarantined {
        if !goes_on(listed.epochs.len() + found.put_aside.len(), total) {
            return Err(InspectError::Interrupted);
        }
        if let Some(report) = inspect::at(&dir.join(name), epoch)? {
            found.put_aside.insert(name.clone(), report);
        }
    }
    found.dir = listed;
    Ok(found)
}

/// Adds an epoch whose entries count up to `limit`, where the next one begins.
fn read(found: &mut Verification, reader: &mut EpochReader, epoch: EpochId, limit: Option<EntrySeq>) {
    if !reader.synced {
        if limit.is_none() {
            found.unsynced = Some(epoch);
            found.end = epoch.0;
            return;
        }
        found.unmarked.push(epoch);
    }
    let within = |seq: EntrySeq| limit.is_none_or(|limit| seq < limit);
    let mut has_checkpoint = false;
    while let Some(item) = reader.read_next() {
        match item {
            Item::Checkpoint(checkpoint) => {
                has_checkpoint = true;
                found.entries += 1;
                take_checkpoint(found, epoch, checkpoint);
            }
            Item::Group(group) if within(group.seq) => {
                found.entries += 1;
                let is_compacted = !group.dropped.is_empty();
                for dropped in group.dropped {
                    found.dropped_records += dropped.count;
                    let next = found.next_offsets.entry((dropped.stream, dropped.partition));
                    let next = next.or_insert(dropped.first);
                    *next = Offset(dropped.last.0 + 1).max(*next);
                }
                for batch in group.batches {
                    let (first, end) = (batch.base_offset, batch.end_offset());
                    found.records += batch.records.len() as u64;
                    let key = (batch.stream, batch.partition);
                    if is_compacted {
                        // What lies between was dropped.
                        let next = found.next_offsets.entry(key).or_insert(end);
                        *next = end.max(*next);
                        continue;
                    }
                    let expected = found.expected(&key).unwrap_or(first);
                    if first < expected {
                        let (stream, partition) = &key;
                        let reason =
                            format!("{stream}/{partition} has offset {first} again, behind {expected}");
                        found.damage(epoch, Some((group.seq, group.seq)), reason);
                    }
                    lose(found, &key, expected, first, true);
                    found.next_offsets.insert(key, end);
                }
            }
            Item::Lost(LostEntries { first, end, reason }) if within(first) => {
                let end = limit.map_or(end, |limit| end.min(limit));
                found.damage(epoch, Some((first, end)), reason);
            }
            // Never acknowledged, and written again in the next epoch.
            Item::Group(_) | Item::Lost(_) => {}
        }
    }
    found.end = limit.unwrap_or(reader.next);
    if let Some(end) = limit.filter(|limit| reader.next < *limit) {
        let in_epoch = reader.broken.is_some() || reader.entries_read == 0;
        let reason = reader.broken.take().unwrap_or_else(|| "it ends before the next one begins".into());
        found.damage.push(Damage { epoch, entries: Some((reader.next, end)), reason, in_epoch });
    } else if let Some(reason) = reader.broken.take() {
        found.damage(epoch, None, reason);
    } else if reader.entries_read == 0 {
        found.damage(epoch, None, "it was synced and has no entries");
    } else if !has_checkpoint {
        found.damage(epoch, None, "it has no whole checkpoint");
    }
}

/// A checkpoint has the offsets of all partitions: what the epochs before have less is missing.
fn take_checkpoint(found: &mut Verification, epoch: EpochId, Checkpoint { offsets, .. }: Checkpoint) {
    let (listed, floor) = (offsets.known(), offsets.floor());
    let before: Vec<_> = found.next_offsets.iter().map(|(key, next)| (key.clone(), *next)).collect();
    for (key, expected) in before {
        let next = offsets.next(&key);
        if next < expected {
            let (stream, partition) = &key;
            let reason =
                format!("its checkpoint takes {stream}/{partition} from offset {expected} back to {next}");
            found.damage(epoch, None, reason);
        }
        // Where the log went on at its floor, it did not know how far it had been.
        lose(found, &key, expected, next, next != floor);
    }
    if let Some(expected) = found.offset_floor {
        for (key, next) in listed {
            if !found.next_offsets.contains_key(key) {
                lose(found, key, expected, *next, *next != floor);
            }
        }
    }
    found.next_offsets = listed.clone();
    found.offset_floor = Some(floor);
}

fn lose(found: &mut Verification, key: &(StreamName, PartitionId), first: Offset, end: Offset, exact: bool) {
    if first < end {
        let (stream, partition) = key.clone();
        found.lost.push(LostRecords { stream, partition, first, end, exact });
    }
}
