//! Append and sync: batches get their offsets, become entries in memory, and entries become durable.

use std::sync::Arc;

use super::{
    BatchGroup, CommitReceipt, Committed, EPOCH_ENTRIES_MAX, EntrySeq, GAP_PARTS, Log, LogBatch, LogError,
    LogOptions, RECORD_BYTES_MAX,
    checkpoint::{Checkpoint, NextOffsets},
    entry::{Entry, EntryKind, RAW_BYTES_MAX},
    group::{self, BATCH_BYTES_MAX, DIRECTORY_BYTES_MAX, RECORDS_PER_GROUP_MAX},
    notes::{self, NOTE_BYTES_MAX, Note},
    store::{EpochId, StoreError},
};
use crate::{
    batch::Batch,
    config::GAPS_STREAM,
    record::{Offset, PartitionId, Record, StreamName, Timeline},
};

/// Largest [`super::LogOptions::group_bytes`].
pub(super) const GROUP_BYTES_MAX: usize = 64 * 1024;

// A group is closed before it grows over its bound, or holds a single record, whose headers may still take a part of
// the rest.
const _: () = assert!(GROUP_BYTES_MAX <= RAW_BYTES_MAX);
const _: () = assert!(2 * DIRECTORY_BYTES_MAX + NOTE_BYTES_MAX + 1024 <= RAW_BYTES_MAX);
const _: () = assert!(DIRECTORY_BYTES_MAX + BATCH_BYTES_MAX + RECORD_BYTES_MAX + 16 * 1024 <= RAW_BYTES_MAX);

/// A group that is encoded and waits for its place.
#[derive(Debug)]
pub(super) struct Pending {
    batches: Vec<LogBatch>,
    notes: Vec<Note>,
    entry: Entry,
    /// The next one belongs to the same commit.
    goes_on: bool,
    /// Where the last attempt put it.
    seq: EntrySeq,
}

impl Pending {
    pub(super) fn stored_bytes(&self) -> usize {
        self.entry.stored_bytes()
    }

    #[cfg(test)]
    pub(super) fn notes(&self) -> &[Note] {
        &self.notes
    }
}

/// Cuts batches into groups that fit an entry.
#[derive(Debug)]
struct Grouper {
    limit_bytes: usize,
    bytes: usize,
    /// Records and notes.
    count: usize,
    batches: Vec<LogBatch>,
    notes: Vec<Note>,
}

impl Grouper {
    fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, bytes: 2 * DIRECTORY_BYTES_MAX, count: 0, batches: Vec::new(), notes: Vec::new() }
    }

    fn is_full_for(&self, bytes: usize) -> bool {
        self.count > 0 && (self.bytes + bytes > self.limit_bytes || self.count == RECORDS_PER_GROUP_MAX)
    }

    /// A group holds records of one timeline.
    fn has_other_clock(&self, record: &Record) -> bool {
        !self.batches.is_empty() && group::timeline(&self.batches) != record.received.timeline
    }

    /// A group holds a partition once. Batches come sorted, so the scan is for callers that do not sort.
    fn holds(&self, stream: &StreamName, partition: PartitionId) -> bool {
        let key = (stream, partition);
        self.batches.last().is_some_and(|last| (&last.stream, last.partition) >= key)
            && self.batches.iter().any(|b| (&b.stream, b.partition) == key)
    }

    fn begin_batch(&mut self, stream: &StreamName, partition: PartitionId, base_offset: Offset) {
        self.bytes += BATCH_BYTES_MAX;
        self.batches.push(LogBatch { stream: stream.clone(), partition, base_offset, records: Vec::new() });
    }

    fn push(&mut self, bytes: usize, record: Record) {
        self.bytes += bytes;
        self.count += 1;
        self.batches.last_mut().expect("begin_batch comes first").records.push(record);
    }

    fn push_note(&mut self, note: Note) {
        self.bytes += note.size_bytes();
        self.count += 1;
        self.notes.push(note);
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.limit_bytes))
    }
}

impl Log {
    /// Takes batches: gives their records offsets, dense by (stream, partition), and keeps them in memory until
    /// [`Log::sync`] has made them durable. Batches without records are ignored.
    ///
    /// # Panics
    /// When a record does not fit an entry: sources let none through that is over [`RECORD_BYTES_MAX`].
    pub fn append(&mut self, batches: Vec<Batch>) {
        self.append_noting(batches, Vec::new());
    }

    /// As [`append`](Self::append), with what sources remember from then on. A start finds all of it or nothing.
    ///
    /// # Panics
    /// As [`append`](Self::append).
    pub fn append_noting(&mut self, batches: Vec<Batch>, notes: Vec<Note>) {
        let first = self.pending.len();
        let mut grouper = Grouper::new(self.options.group_bytes);
        for batch in batches {
            if batch.records.is_empty() {
                continue;
            }
            if grouper.holds(&batch.stream, batch.partition) {
                self.encode_group(grouper.take());
            }
            let key = (batch.stream, batch.partition);
            let mut next = self.offsets.next(&key);
            let mut begun = false;
            for record in batch.records {
                let bytes = group::record_bytes_max(&record);
                let head_bytes = if begun { 0 } else { BATCH_BYTES_MAX };
                if grouper.is_full_for(bytes + head_bytes) || grouper.has_other_clock(&record) {
                    self.encode_group(grouper.take());
                    begun = false;
                }
                if !begun {
                    grouper.begin_batch(&key.0, key.1, next);
                    begun = true;
                }
                grouper.push(bytes, record);
                next = Offset(next.0 + 1);
            }
            self.offsets.set(key, next);
        }
        // Last: none may be durable before a record that it came with.
        for note in notes {
            if grouper.is_full_for(note.size_bytes()) {
                self.encode_group(grouper.take());
            }
            grouper.push_note(note);
        }
        if grouper.count > 0 {
            self.encode_group(grouper.take());
        }
        let commit = &mut self.pending[first..];
        for pending in commit.iter_mut().skip(1) {
            pending.entry.began();
        }
        if let Some((_, others)) = commit.split_last_mut() {
            for pending in others {
                pending.entry.goes_on();
                pending.goes_on = true;
            }
        }
    }

    fn encode_group(&mut self, Grouper { batches, notes, .. }: Grouper) {
        self.raw.clear();
        let kind = if notes.is_empty() {
            EntryKind::Group
        } else {
            self.raw.append(&mut notes::encode(&notes));
            EntryKind::Noted
        };
        group::encode(&batches, &mut self.raw);
        let entry = self.codec.encode(kind, group::timeline(&batches), &self.raw);
        self.pending.push(Pending { batches, notes, entry, goes_on: false, seq: EntrySeq(0) });
    }

    /// Makes everything appended before durable. When the store fails, everything not durable is written again to a new
    /// epoch, once.
    ///
    /// # Errors
    /// [`LogError`] when that failed too, or the log is at a bound: nothing is lost, all of it stays in memory, and the caller
    /// tries again after a delay. A later success hands out what became durable in between.
    pub fn sync(&mut self) -> Result<Committed, LogError> {
        let mut batches = self.pending.iter().flat_map(|pending| &pending.batches);
        let gaps_alone = batches.all(|batch| batch.stream.as_str() == GAPS_STREAM);
        if !self.pending.is_empty()
            && let Some(bound) = self.bound_met(gaps_alone)
        {
            return Err(bound);
        }
        let had_epoch = self.writing;
        if let Err(error) = self.write_pending() {
            // Without one this is the last failure again, which the caller has told.
            if had_epoch {
                tracing::warn!(error = &error as &dyn std::error::Error, "commit goes on in a new epoch");
            }
            self.metrics.sync_failures.inc();
            self.writing = false;
            if let Err(error) = self.write_pending() {
                self.metrics.sync_failures.inc();
                self.writing = false;
                self.update_gauges();
                return Err(error.into());
            }
        }
        self.update_gauges();
        Ok(Committed { receipt: CommitReceipt { _private: () }, groups: std::mem::take(&mut self.committed) })
    }

    /// The bound that keeps the log from growing, if one does. Gap records alone may go over it by one part of
    /// [`GAP_PARTS`].
    pub(super) fn bound_met(&self, gaps_alone: bool) -> Option<LogError> {
        let share = |bytes: u64| if gaps_alone { bytes / GAP_PARTS } else { 0 };
        let LogOptions { limit_bytes, reserve_bytes, .. } = self.options;
        let (size_bytes, limit_bytes) =
            (self.store.size_bytes(), limit_bytes.saturating_add(share(limit_bytes)));
        if size_bytes >= limit_bytes {
            return Some(LogError::Full { size_bytes, limit_bytes });
        }
        let (free_bytes, reserve_bytes) = (self.store.free_bytes()?, reserve_bytes - share(reserve_bytes));
        (free_bytes < reserve_bytes).then_some(LogError::Reserve { free_bytes, reserve_bytes })
    }

    fn write_pending(&mut self) -> Result<(), StoreError> {
        let mut seq = self.end;
        // Of the pending groups how many are in the store.
        let mut written = 0;
        while written < self.pending.len() {
            if !self.writing || self.rolls(seq, written) {
                if written > 0 {
                    // What the old epoch got becomes durable before the new one begins, whose id says so.
                    self.store.sync()?;
                    self.complete(written, seq);
                    written = 0;
                }
                seq = self.begin_epoch()?;
            }
            let pending = &mut self.pending[written];
            pending.seq = seq;
            self.store.append(seq, pending.entry.seal(seq))?;
            self.metrics.written_bytes.inc_by(pending.entry.stored_bytes() as u64);
            seq = seq.next();
            written += 1;
        }
        if written > 0 {
            self.store.sync()?;
            self.complete(written, seq);
        }
        Ok(())
    }

    /// Whether the group at `index`, which would be entry `seq`, begins a new epoch. Not in the middle of a commit: of its first
    /// part nobody must see anything before all of it is durable. One that no epoch can hold is cut where one is full.
    fn rolls(&self, seq: EntrySeq, index: usize) -> bool {
        let room = self.epochs.last().map_or(0, |epoch| EPOCH_ENTRIES_MAX - (seq.0 - epoch.0.0));
        if index.checked_sub(1).is_some_and(|before| self.pending[before].goes_on) {
            return room == 0;
        }
        let others = self.pending[index..].iter().take_while(|pending| pending.goes_on).count() as u64;
        self.store.wants_roll() || room <= others
    }

    /// Creates the epoch that begins at the end of what is durable; returns the position behind its checkpoint.
    fn begin_epoch(&mut self) -> Result<EntrySeq, StoreError> {
        self.writing = false;
        let epoch = EpochId(self.end);
        if self.epochs.last() == Some(&epoch) {
            // Its handle died before anything in it was durable.
            self.store.delete(epoch)?;
            self.epochs.pop();
        }
        self.store.create(epoch)?;
        self.epochs.push(epoch);
        self.writing = true;
        let checkpoint =
            Checkpoint { boot: self.boot, offsets: self.offsets_before_pending(), notes: self.notes.clone() };
        let mut seq = self.end;
        for part in checkpoint.encode() {
            let mut entry = self.codec.encode(EntryKind::Checkpoint, Timeline::default(), &part);
            self.store.append(seq, entry.seal(seq))?;
            self.metrics.written_bytes.inc_by(entry.stored_bytes() as u64);
            seq = seq.next();
        }
        Ok(seq)
    }

    /// The offsets as they were before the first pending group.
    pub(super) fn offsets_before_pending(&self) -> NextOffsets {
        let mut offsets = self.offsets.clone();
        for batch in self.pending.iter().rev().flat_map(|p| &p.batches) {
            offsets.set((batch.stream.clone(), batch.partition), batch.base_offset);
        }
        offsets
    }

    /// The first `written` pending groups are durable, and `end` is behind them.
    fn complete(&mut self, written: usize, end: EntrySeq) {
        self.end = end;
        self.metrics.syncs.inc();
        for pending in self.pending.drain(..written) {
            self.metrics.payload_bytes.inc_by(pending.entry.raw_bytes() as u64);
            for note in pending.notes {
                if !self.notes.set(note) {
                    self.metrics.refused_notes.inc();
                }
            }
            self.committed.push(Arc::new(BatchGroup {
                seq: pending.seq,
                batches: pending.batches,
                dropped: Vec::new(),
            }));
        }
    }
}
