//! Compaction: at its limit the log drops what its streams' policies let go, in place, and tells what.
//!
//! An epoch is written again under its own id without what is dropped. Entries keep their positions and records their
//! offsets; an entry of which nothing stays is told by the next one that does ([`super::dropped`]). Replication reads
//! that in its place, so that a gap is told where the records would have been, and the cursor waits for it.
//!
//! Only epochs go that replication has not begun: what it holds may reach Kafka, and must not be told as missing too.

use std::collections::BTreeMap;

use super::{
    EPOCH_ENTRIES_MAX, EntrySeq, Log, LogBatch, LogError,
    dropped::{self, Compacted, Dropped, DroppedTable},
    entry::{EntryKind, RAW_BYTES_MAX},
    group, notes,
    store::{EpochId, StoreError},
};
use crate::{
    config::Policy,
    record::{DeviceId, Offset, PartitionId, StreamName},
};

/// Bytes asked of the store at a time.
const SCAN_BYTES: usize = 256 * 1024;

/// Bytes of what was dropped at which an entry tells of it, though it could wait for a later one.
const TABLE_BYTES: usize = 16 * 1024;

/// An epoch is written again only if at least one part of so many goes: flash wears.
const WORTH_PARTS: usize = 4;

/// What the log remembers of its compactions.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    /// Epochs that begin below were looked at.
    done: EntrySeq,
    /// The epoch written last: the next one may be joined to it.
    last: Option<EpochId>,
}

/// Epochs that are written again as one.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: EpochId,
    last: EpochId,
    /// Behind the last entry.
    end: EntrySeq,
}

/// An entry as it is found.
struct Found {
    seq: EntrySeq,
    stored: Vec<u8>,
    /// None of a checkpoint.
    group: Option<(Vec<LogBatch>, Vec<Dropped>)>,
}

/// Each device's last record, by stream.
type Latest = BTreeMap<(StreamName, DeviceId), (PartitionId, Offset)>;

impl Log {
    /// Drops what the policies let go of the oldest epoch that has something to drop. `release` is asked whether
    /// replication leaves alone what lies from the first position to before the second, and will read it from the log.
    /// Returns whether anything was dropped; if not, nothing can be now.
    ///
    /// # Errors
    /// [`LogError`] when the store fails: nothing has changed then.
    pub fn compact(&mut self, mut release: impl FnMut(EntrySeq, EntrySeq) -> bool) -> Result<bool, LogError> {
        let drops = |policy: &Policy| policy.drops_stored();
        if !self.options.policies.values().any(drops) {
            return Ok(false);
        }
        loop {
            let index = self.epochs.partition_point(|epoch| epoch.0 < self.compaction.done);
            // Never the newest: it is being written.
            let (Some(&last), Some(following)) = (self.epochs.get(index), self.epochs.get(index + 1)) else {
                return Ok(false);
            };
            let end = following.0.min(self.end);
            let before = index.checked_sub(1).map(|before| self.epochs[before]);
            let joined = before.filter(|before| {
                self.compaction.last == Some(*before) && end.0 - before.0.0 <= EPOCH_ENTRIES_MAX
            });
            let range = match joined {
                Some(first) if release(first.0, end) => Range { first, last, end },
                _ if release(last.0, end) => Range { first: last, last, end },
                _ => {
                    // Replication has begun with it and will go through it.
                    self.compaction = Compaction { done: end, last: None };
                    continue;
                }
            };
            let dropped = self.compact_range(range)?;
            self.compaction.done = end;
            self.compaction.last = dropped.then_some(range.first);
            if dropped {
                return Ok(true);
            }
        }
    }

    /// False if it is not worth it, or damage shows, which is left for the reader to find.
    fn compact_range(&mut self, range: Range) -> Result<bool, LogError> {
        let Some(latest) = self.look_at(range)? else { return Ok(false) };
        let before_bytes = self.store.size_bytes();
        self.store.begin_rewrite(range.first)?;
        let Some(dropped) = self.rewrite(range, &latest)? else { return Ok(false) };
        self.store.finish_rewrite(range.last)?;
        self.epochs.retain(|epoch| *epoch <= range.first || *epoch > range.last);
        self.update_gauges();
        for (stream, records) in &dropped {
            self.metrics.dropped(stream.as_str(), self.policy(stream), *records);
        }
        tracing::warn!(
            first = range.first.0.0,
            end = range.end.0,
            ?dropped,
            before_bytes,
            after_bytes = self.store.size_bytes(),
            "the log is at its limit and drops what policies let go"
        );
        Ok(true)
    }

    /// Each device's last record in streams that keep it. `None` where too little would go, or something is damaged.
    fn look_at(&mut self, range: Range) -> Result<Option<Latest>, LogError> {
        let mut latest = Latest::new();
        let (mut records, mut goes) = (0, 0);
        let mut next = range.first.0;
        while next < range.end {
            let Some(found) = self.scan(range, &mut next)? else { return Ok(None) };
            for (batches, _) in found.into_iter().filter_map(|found| found.group) {
                for batch in &batches {
                    records += batch.records.len();
                    match self.policy(&batch.stream) {
                        Policy::DropOldest => goes += batch.records.len(),
                        Policy::LatestPerDevice => {
                            for (record, offset) in batch.records.iter().zip(batch.base_offset.0..) {
                                let device = (batch.stream.clone(), record.device.clone());
                                let place = (batch.partition, Offset(offset));
                                goes += usize::from(latest.insert(device, place).is_some());
                            }
                        }
                        Policy::Block | Policy::DropNewest => {}
                    }
                }
            }
        }
        Ok((goes > 0 && goes * WORTH_PARTS >= records).then_some(latest))
    }

    /// Writes what stays; returns how many records of each stream did not. `None` where something is damaged.
    fn rewrite(
        &mut self,
        range: Range,
        latest: &Latest,
    ) -> Result<Option<BTreeMap<StreamName, u64>>, LogError> {
        let mut dropped_records = BTreeMap::new();
        let mut told = DroppedTable::default();
        // Behind what the entries written stand for.
        let mut written = range.first.0;
        let mut next = range.first.0;
        while next < range.end {
            let Some(found) = self.scan(range, &mut next)? else { return Ok(None) };
            for Found { seq, stored, group } in found {
                // The first epoch's checkpoint is that of all. Those of the others say nothing that entries do not.
                if group.is_none() && written == seq {
                    self.store.append_rewrite(seq, &stored)?;
                    written = seq.next();
                    continue;
                }
                let (batches, before) = group.unwrap_or_default();
                let fixed_bytes =
                    group::bytes_max(&batches) + before.iter().map(Dropped::bytes_max).sum::<usize>();
                if !told.is_empty() && told.bytes_max() + fixed_bytes > RAW_BYTES_MAX {
                    // The entry in front has gone: its place is free.
                    let place = EntrySeq(seq.0 - 1);
                    self.write_compacted(written, place, &told.take(), &[])?;
                    written = seq;
                }
                before.into_iter().for_each(|dropped| told.add(dropped));
                let (kept, dropped) = self.sift(&batches, latest, told.bytes_max());
                for dropped in dropped {
                    *dropped_records.entry(dropped.stream.clone()).or_default() += dropped.count;
                    told.add(dropped);
                }
                if kept.is_empty() && told.bytes_max() < TABLE_BYTES && seq.next() < range.end {
                    continue;
                }
                self.write_compacted(written, seq, &told.take(), &kept)?;
                written = seq.next();
            }
        }
        Ok(Some(dropped_records))
    }

    /// Writes the entry at `seq`, which stands for all from `first` on.
    fn write_compacted(
        &mut self,
        first: EntrySeq,
        seq: EntrySeq,
        dropped: &[Dropped],
        kept: &[LogBatch],
    ) -> Result<(), StoreError> {
        dropped::encode(first, dropped, kept, &mut self.raw);
        let mut entry = self.codec.encode(EntryKind::Compacted, group::timeline(kept), &self.raw);
        self.store.append_rewrite(seq, entry.seal(seq))
    }

    /// What stays of a group, and what does not. What stays, with word of what does not, fits an entry that has
    /// `used_bytes` already.
    fn sift(
        &self,
        batches: &[LogBatch],
        latest: &Latest,
        used_bytes: usize,
    ) -> (Vec<LogBatch>, Vec<Dropped>) {
        let mut kept: Vec<LogBatch> = Vec::new();
        let mut table = DroppedTable::default();
        for batch in batches {
            let policy = self.policy(&batch.stream);
            let mut follows = false;
            for (record, offset) in batch.records.iter().zip(batch.base_offset.0..) {
                let offset = Offset(offset);
                let stays = match policy {
                    Policy::Block | Policy::DropNewest => true,
                    Policy::DropOldest => false,
                    Policy::LatestPerDevice => {
                        let device = (batch.stream.clone(), record.device.clone());
                        latest.get(&device) == Some(&(batch.partition, offset))
                    }
                };
                match kept.last_mut().filter(|_| follows) {
                    Some(last) if stays => last.records.push(record.clone()),
                    _ if stays => kept.push(LogBatch {
                        stream: batch.stream.clone(),
                        partition: batch.partition,
                        base_offset: offset,
                        records: vec![record.clone()],
                    }),
                    _ => table.add(Dropped {
                        stream: batch.stream.clone(),
                        partition: batch.partition,
                        device: Some(record.device.clone()),
                        policy,
                        first: offset,
                        last: offset,
                        count: 1,
                    }),
                }
                follows = stays;
            }
        }
        let room = RAW_BYTES_MAX.saturating_sub(used_bytes + group::bytes_max(&kept));
        if table.bytes_max() > room {
            table.forget_devices();
        }
        if table.bytes_max() > room {
            return (batches.to_vec(), Vec::new());
        }
        (kept, table.take())
    }

    /// The next entries of a range from `next` on, which is moved behind them. `None` where something is missing or
    /// damaged.
    fn scan(&mut self, range: Range, next: &mut EntrySeq) -> Result<Option<Vec<Found>>, LogError> {
        let index = self.epochs.partition_point(|epoch| epoch.0 <= *next);
        let epoch = self.epochs[index - 1];
        let epoch_end = self.epochs.get(index).map_or(range.end, |following| following.0.min(range.end));
        let entries = match self.store.read(epoch, *next, SCAN_BYTES) {
            Ok(entries) => entries,
            Err(StoreError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut found = Vec::new();
        for stored in entries.into_iter().take_while(|stored| stored.seq < epoch_end) {
            let seq = stored.seq;
            let Ok((kind, timeline, raw)) = self.codec.decode(seq, stored.bytes.clone()) else {
                return Ok(None);
            };
            let read = match kind {
                EntryKind::Checkpoint => Ok((seq, None)),
                EntryKind::Group => group::decode(&raw, timeline, &mut self.names)
                    .map(|batches| (seq, Some((batches, Vec::new())))),
                // No note is lost: all are in the checkpoint of a newer epoch.
                EntryKind::Noted => {
                    let batches = notes::decode_batches(&raw, timeline, &mut self.names);
                    batches.map(|batches| (seq, Some((batches, Vec::new()))))
                }
                EntryKind::Compacted => dropped::decode(&raw, timeline, &mut self.names)
                    .map(|Compacted { first, dropped, batches }| (first, Some((batches, dropped)))),
            };
            let Ok((first, group)) = read else { return Ok(None) };
            if first > *next {
                return Ok(None);
            }
            *next = seq.next();
            found.push(Found { seq, stored: stored.bytes, group });
        }
        Ok((!found.is_empty()).then_some(found))
    }
}
