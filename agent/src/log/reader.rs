//! Read: durable groups in order, and word of what is missing between them.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{
    BatchGroup, EPOCH_ENTRIES_MAX, EntrySeq, KnownOffsets, Log, LogError, LostEntries, ReadOutcome,
    checkpoint::{Assembly, Checkpoint, NextOffsets},
    dropped::{self, Compacted},
    entry::EntryKind,
    group, notes,
    store::{StoreError, StoredEntry},
};
use crate::record::{Offset, PartitionId, StreamName};

/// Bytes that a stored byte becomes, about: so much less is asked of the store than the caller wants to have.
const EXPANSION: usize = 4;

/// What the reader knows of what it has read: offsets must go on where they stopped.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    /// Where the last read ended; a read that starts elsewhere knows nothing.
    next: EntrySeq,
    expected: BTreeMap<(StreamName, PartitionId), Offset>,
    /// Losses below were counted: a reader that goes back must not count them again.
    counted: EntrySeq,
    checkpoint: Assembly,
    /// Something was missing, and no checkpoint has told since what it was.
    unsettled: bool,
}

impl Continuity {
    fn start(&mut self, from: EntrySeq) {
        if self.next != from {
            self.expected.clear();
            self.checkpoint = Assembly::default();
        }
    }

    /// Checks a group against those before it; says what is wrong with its offsets.
    fn check(&mut self, group: &BatchGroup) -> Option<String> {
        if !group.dropped.is_empty() {
            // Offsets have holes here, in places that are not told.
            self.expected.clear();
            return None;
        }
        let mut wrong = None;
        for batch in &group.batches {
            let end = batch.end_offset();
            let key = (batch.stream.clone(), batch.partition);
            let expected = self.expected.insert(key, end);
            if let Some(expected) = expected.filter(|e| *e != batch.base_offset) {
                wrong = Some(format!(
                    "{}/{} goes on at offset {} instead of {expected}",
                    batch.stream, batch.partition, batch.base_offset
                ));
            }
        }
        wrong
    }
}

impl KnownOffsets {
    fn new(seq: EntrySeq, offsets: &NextOffsets) -> Self {
        Self { seq, next: offsets.known().clone(), floor: offsets.floor() }
    }
}

impl Log {
    /// Durable groups from `from` on, at least one if there is one, until they have `limit_bytes` before compression;
    /// one group may go over. What is missing or damaged is in [`ReadOutcome::lost`], and `next` is behind it; an epoch
    /// that cannot be opened is put aside. What is below the first epoch was trimmed and is passed without a word,
    /// unless an epoch that was put aside had it. Makes progress unless `from` is the end.
    ///
    /// Each record's value is a slice of its group's buffer, which lives as long as one of them.
    ///
    /// # Errors
    /// [`LogError`] when the store cannot read now (no descriptor, a full disk) but may later: the caller waits and
    /// asks again.
    pub fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<ReadOutcome, LogError> {
        let mut outcome = ReadOutcome { next: from, ..ReadOutcome::default() };
        let mut raw_bytes = 0;
        self.continuity.start(from);
        while outcome.next < self.end && (outcome.groups.is_empty() || raw_bytes < limit_bytes) {
            let index = self.epochs.partition_point(|epoch| epoch.0 <= outcome.next);
            let epoch_end = self.epochs.get(index).map_or(self.end, |following| following.0.min(self.end));
            let Some(&epoch) = index.checked_sub(1).and_then(|i| self.epochs.get(i)) else {
                if let Err(error) = self.pass_trimmed(&mut outcome, epoch_end) {
                    return self.unless_empty(outcome, error);
                }
                continue;
            };
            let stored_limit = (limit_bytes.saturating_sub(raw_bytes) / EXPANSION).max(1);
            match self.store.read(epoch, outcome.next, stored_limit) {
                Ok(entries) => {
                    let mut at_end = true;
                    for stored in entries.into_iter().take_while(|stored| stored.seq < epoch_end) {
                        at_end = false;
                        if !outcome.groups.is_empty() && raw_bytes >= limit_bytes {
                            break;
                        }
                        raw_bytes += self.take(&mut outcome, stored);
                    }
                    if at_end && outcome.next < epoch_end {
                        self.lose(&mut outcome, epoch_end, format!("{epoch} ends before"));
                    }
                }
                Err(StoreError::Damaged { reason, .. }) => {
                    tracing::error!(%epoch, reason, "an epoch cannot be read; put aside");
                    if let Err(error) = self.store.quarantine(epoch) {
                        return self.unless_empty(outcome, error);
                    }
                    self.writing &= index != self.epochs.len();
                    self.epochs.remove(index - 1);
                    self.metrics.quarantined.inc();
                    self.update_gauges();
                    self.lose(&mut outcome, epoch_end, reason);
                }
                Err(error) => return self.unless_empty(outcome, error),
            }
        }
        if outcome.next == self.end && std::mem::take(&mut self.continuity.unsettled) {
            let known = KnownOffsets::new(self.end, &self.offsets_before_pending());
            outcome.checkpoints.push(known);
        }
        self.continuity.next = outcome.next;
        Ok(outcome)
    }

    /// As [`read`](Self::read), for whoever looks at entries before their turn: what is missing is counted when it is read
    /// in its order, and what that knows stays as it is.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_ahead(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<ReadOutcome, LogError> {
        let ahead = Continuity { counted: EntrySeq(u64::MAX), ..Continuity::default() };
        let in_order = std::mem::replace(&mut self.continuity, ahead);
        let outcome = self.read(from, limit_bytes);
        self.continuity = in_order;
        outcome
    }

    /// Goes on at `end`, where the first epoch begins. An epoch that was put aside had at most [`EPOCH_ENTRIES_MAX`]
    /// entries, none of them in the next one.
    fn pass_trimmed(&mut self, outcome: &mut ReadOutcome, end: EntrySeq) -> Result<(), StoreError> {
        let quarantined = self.store.quarantined()?;
        for (index, bad) in quarantined.iter().enumerate() {
            let following = quarantined.get(index + 1).map_or(end, |following| following.0.min(end));
            let bad_end = EntrySeq(bad.0.0.saturating_add(EPOCH_ENTRIES_MAX)).min(following);
            let first = bad.0.max(outcome.next);
            if first < bad_end {
                outcome.next = first;
                self.lose(outcome, bad_end, format!("{bad} was put aside"));
            }
        }
        outcome.next = end;
        self.continuity.expected.clear();
        Ok(())
    }

    /// Takes one entry into the outcome; returns its bytes before compression.
    fn take(&mut self, outcome: &mut ReadOutcome, stored: StoredEntry) -> usize {
        let seq = stored.seq;
        let decoded = self.codec.decode(seq, stored.bytes).and_then(|(kind, timeline, raw)| {
            let (first, group) = match kind {
                EntryKind::Checkpoint => {
                    self.note_checkpoint(&mut outcome.checkpoints, seq, &raw);
                    (seq, None)
                }
                EntryKind::Group => {
                    let batches = group::decode(&raw, timeline, &mut self.names)?;
                    (seq, Some(BatchGroup { seq, batches, dropped: Vec::new() }))
                }
                EntryKind::Noted => {
                    let batches = notes::decode_batches(&raw, timeline, &mut self.names)?;
                    (seq, Some(BatchGroup { seq, batches, dropped: Vec::new() }))
                }
                EntryKind::Compacted => {
                    let Compacted { first, dropped, batches } =
                        dropped::decode(&raw, timeline, &mut self.names)?;
                    (first, Some(BatchGroup { seq, batches, dropped }))
                }
            };
            Ok((raw.len(), first, group))
        });
        let first = decoded.as_ref().map_or(seq, |(_, first, _)| *first);
        if first > outcome.next {
            self.lose(outcome, first, "missing in the epoch".into());
        }
        match decoded {
            Ok((raw_bytes, _, group)) => {
                outcome.next = seq.next();
                if let Some(group) = group {
                    if let Some(reason) = self.continuity.check(&group) {
                        tracing::error!(%seq, reason, "offsets do not go on where they stopped");
                        outcome.lost.push(LostEntries { first: seq, end: seq, reason });
                        self.continuity.unsettled = true;
                    }
                    outcome.groups.push(Arc::new(group));
                }
                raw_bytes
            }
            Err(error) => {
                if seq >= self.continuity.counted {
                    self.metrics.damaged_entries.inc();
                }
                self.lose(outcome, seq.next(), error.to_string());
                0
            }
        }
    }

    /// A part of a checkpoint. One whose first part was read before, or is damaged, says nothing.
    fn note_checkpoint(&mut self, checkpoints: &mut Vec<KnownOffsets>, seq: EntrySeq, raw: &Bytes) {
        match self.continuity.checkpoint.push(raw) {
            Ok(Some(Checkpoint { offsets, .. })) => {
                self.continuity.unsettled = false;
                checkpoints.push(KnownOffsets::new(seq, &offsets));
            }
            Ok(None) => {}
            Err(_) => self.continuity.checkpoint = Assembly::default(),
        }
    }

    /// Notes that everything from `outcome.next` to `end` is gone.
    fn lose(&mut self, outcome: &mut ReadOutcome, end: EntrySeq, reason: String) {
        let first = outcome.next;
        outcome.next = end;
        self.continuity.expected.clear();
        self.continuity.unsettled = true;
        let uncounted = end.0.saturating_sub(first.0.max(self.continuity.counted.0));
        if uncounted > 0 {
            tracing::error!(%first, %end, reason, "entries lost");
            self.metrics.lost_entries.inc_by(uncounted);
            self.continuity.counted = end;
        }
        outcome.lost.push(LostEntries { first, end, reason });
    }

    /// What was read before a failure is handed out; the failure shows again at the next read.
    fn unless_empty(&mut self, outcome: ReadOutcome, error: StoreError) -> Result<ReadOutcome, LogError> {
        if outcome.groups.is_empty() && outcome.lost.is_empty() {
            return Err(error.into());
        }
        self.continuity.next = outcome.next;
        Ok(outcome)
    }
}
