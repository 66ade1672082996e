//! Recovery: what a start finds, and where it goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    EPOCH_ENTRIES_MAX, EntrySeq, LogOptions,
    checkpoint::{Assembly, Checkpoint, NextOffsets},
    dropped::{self, Compacted},
    entry::{self, EntryCodec, EntryError, EntryKind},
    group::{self, Names},
    notes::{self, NoteTable, Remembered},
    store::{EpochId, EpochStore, StoreError},
};
use crate::record::{Offset, PartitionId, StreamName, Timeline};

/// Bytes asked of the store at a time.
const SCAN_BYTES: usize = 256 * 1024;

/// What [`super::Log::open`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Epochs present.
    pub epochs: usize,
    /// Entries of the newest epoch that were looked at; the others are not opened.
    pub entries_scanned: u64,
    /// Of these, those that did not pass their checks.
    pub damaged_entries: u64,
    /// Whether one of these was the last: the trace of a torn write, whose entry was most likely never acknowledged.
    pub torn_tail: bool,
    /// Epochs put aside because they could not be read.
    pub quarantined: Vec<EpochId>,
    /// Whether the log cannot know all that was in it: the newest epoch is gone, ends before the cursor, in its positions or
    /// its offsets, or has damage that the cursor is not past. Then [`Recovery::end`] goes on [`EPOCH_ENTRIES_MAX`] positions
    /// behind the newest epoch's id, or at the cursor if that is further, and offsets at 8192 times that, but for
    /// partitions that have records behind the damage.
    pub skipped: bool,
    /// Position of the next entry.
    pub end: EntrySeq,
    /// Starts that committed something to this log, this one included.
    pub boot: u64,
    /// Next offset of every partition that is known.
    pub next_offsets: BTreeMap<(StreamName, PartitionId), Offset>,
    /// By source what it remembers, as far as the newest epoch has it.
    pub notes: BTreeMap<Arc<str>, Remembered>,
}

/// The state that a log goes on with.
pub(super) struct Recovered {
    pub(super) report: Recovery,
    pub(super) epochs: Vec<EpochId>,
    pub(super) offsets: NextOffsets,
    pub(super) notes: NoteTable,
}

/// Looks at the newest epoch that can be read and works out where to go on.
pub(super) fn recover(
    store: &mut dyn EpochStore,
    codec: &mut EntryCodec,
    names: &mut Names,
    options: &LogOptions,
) -> Result<Recovered, StoreError> {
    let mut epochs = store.epochs()?;
    let mut report = Recovery::default();
    let mut end = EntrySeq(0);
    let mut state = Checkpoint::default();
    // Whether `state` has all that was in the log. Otherwise its offsets are those that are known all the same.
    let mut complete = true;
    while let Some(&newest) = epochs.last() {
        let reason = match scan(store, codec, names, newest) {
            Ok(mut scan) if scan.entries > 0 => {
                report.entries_scanned = scan.entries;
                report.damaged_entries = scan.damaged;
                report.torn_tail = scan.torn_tail;
                end = scan.end;
                complete = scan.is_settled(options);
                state = scan.state;
                break;
            }
            Ok(_) => "it was synced and is empty".to_owned(),
            Err(StoreError::Damaged { reason, .. }) => reason,
            Err(other) => return Err(other),
        };
        tracing::error!(%newest, reason, "the newest epoch cannot be read; put aside");
        store.quarantine(newest)?;
        report.quarantined.push(newest);
        epochs.pop();
    }
    // What is not known any more lies behind the id of a damaged epoch and before that plus the most an epoch holds.
    let quarantined =
        store.quarantined()?.last().copied().filter(|bad| epochs.last().is_none_or(|newest| bad > newest));
    if quarantined.is_some() {
        complete = false;
        state = Checkpoint::default();
    }
    let damaged = epochs.last().copied().filter(|_| !complete);
    if let Some(unknown) = quarantined.max(damaged) {
        end = end.max(EntrySeq(unknown.0.0.saturating_add(EPOCH_ENTRIES_MAX)));
        tracing::error!(epoch = %unknown, %end, "the log cannot know all that was in it; its sequence skips ahead");
    }
    // A checkpoint lists every partition that ever had a record, so only a lost end takes an offset back.
    let mut offsets_min = options.offsets_min.iter();
    let lost_offset = offsets_min.find(|(partition, min)| complete && state.offsets.next(partition) < **min);
    if end < options.next_seq_min || lost_offset.is_some() {
        let cursor = options.next_seq_min;
        tracing::error!(%end, %cursor, ?lost_offset, "the log ends before the cursor; its sequence skips ahead");
        let newest_end = epochs.last().map_or(0, |newest| newest.0.0.saturating_add(EPOCH_ENTRIES_MAX));
        end = end.max(cursor).max(EntrySeq(newest_end));
        complete = false;
        state = Checkpoint::default();
    }
    if !complete {
        if let Some(used) = options.offsets_min.values().max() {
            end = end.max(NextOffsets::end_beyond(*used));
        }
        state.offsets.raise_floor(end);
        // Each start that leaves a trace takes at least one position, so `end` is above every boot number so far.
        state.boot = end.0;
    }
    let Checkpoint { boot, offsets, notes } = state;
    report.skipped = !complete;
    report.epochs = epochs.len();
    report.end = end;
    report.boot = boot + 1;
    report.next_offsets = offsets.known().clone();
    report.notes = notes.by_source().clone();
    Ok(Recovered { report, epochs, offsets, notes })
}

/// What is missing in the newest epoch.
struct Damage {
    /// The last entry that is gone.
    last: EntrySeq,
    /// The partitions that have records behind it: of these it is known where they go on.
    sure: BTreeSet<(StreamName, PartitionId)>,
}

/// What the newest epoch says.
struct Scan {
    entries: u64,
    damaged: u64,
    torn_tail: bool,
    end: EntrySeq,
    /// As of its end, as far as what is whole says.
    state: Checkpoint,
    damage: Option<Damage>,
    /// The last entry that is missing, while it may never have been: what a power cut leaves of the last commit has holes.
    missing: Option<EntrySeq>,
    has_checkpoint: bool,
    assembly: Assembly,
}

fn scan(
    store: &mut dyn EpochStore,
    codec: &mut EntryCodec,
    names: &mut Names,
    epoch: EpochId,
) -> Result<Scan, StoreError> {
    let mut scan = Scan {
        entries: 0,
        damaged: 0,
        torn_tail: false,
        end: epoch.0,
        state: Checkpoint::default(),
        damage: None,
        missing: None,
        has_checkpoint: false,
        assembly: Assembly::default(),
    };
    // Entries of a commit whose end has not come.
    let mut held: Vec<(EntrySeq, EntryKind, Bytes)> = Vec::new();
    let mut next = epoch.0;
    loop {
        let entries = store.read(epoch, next, SCAN_BYTES)?;
        if entries.is_empty() {
            break;
        }
        for stored in entries {
            let seq = stored.seq;
            if seq.0 >= epoch.0.0 + EPOCH_ENTRIES_MAX {
                // No epoch goes so far: this is not the log's.
                scan.damaged += 1;
                scan.lost(next);
                scan.end = next;
                return Ok(scan);
            }
            scan.entries += 1;
            let (begins, goes_on) = (entry::begins(&stored.bytes), entry::goes_on(&stored.bytes));
            let decoded = codec.decode(seq, stored.bytes);
            let first = match &decoded {
                Ok((EntryKind::Compacted, _, raw)) => dropped::first(raw).unwrap_or(seq),
                _ => seq,
            };
            if first > next {
                scan.missing = Some(EntrySeq(first.0 - 1));
            }
            // No commit begins before the one before it is durable, and no epoch is here without its first one.
            if (begins || !scan.has_checkpoint)
                && decoded.is_ok()
                && let Some(missing) = scan.missing.take()
            {
                scan.lost(missing);
            }
            next = seq.next();
            let replayed = decoded.and_then(|(kind, _, raw)| {
                held.push((seq, kind, raw));
                if goes_on || scan.missing.is_some() {
                    return Ok(());
                }
                scan.end = next;
                let mut commit = std::mem::take(&mut held).into_iter();
                commit.try_for_each(|(seq, kind, raw)| scan.replay(seq, kind, &raw, names))
            });
            scan.torn_tail = replayed.is_err();
            if let Err(error) = replayed {
                tracing::error!(%seq, %error, "damaged entry");
                scan.damaged += 1;
                scan.lost(seq);
            }
        }
    }
    // What is left of a commit that never was is nobody's: the next epoch begins before it.
    if scan.damage.is_some() {
        scan.end = next;
    }
    Ok(scan)
}

impl Scan {
    /// Whether it is known how far each partition came. Of those of which it is not the state then says nothing.
    fn is_settled(&mut self, options: &LogOptions) -> bool {
        let Some(Damage { last, sure }) = &self.damage else { return true };
        let min = &options.offsets_min;
        // Kafka has all that is gone, and the cursor says how far each partition came.
        let covered = *last < options.next_seq_min && !min.is_empty() && self.has_checkpoint;
        if covered {
            for (partition, min) in min {
                let next = self.state.offsets.next(partition).max(*min);
                self.state.offsets.set(partition.clone(), next);
            }
        } else {
            let offsets = &mut self.state.offsets;
            offsets.retain(|partition, next| {
                sure.contains(partition) && min.get(partition).is_none_or(|min| next >= *min)
            });
        }
        covered
    }

    /// What is missing up to `last` was durable.
    fn lost(&mut self, last: EntrySeq) {
        self.missing = None;
        self.damage = Some(Damage { last, sure: BTreeSet::new() });
    }

    fn replay(
        &mut self,
        seq: EntrySeq,
        kind: EntryKind,
        raw: &Bytes,
        names: &mut Names,
    ) -> Result<(), EntryError> {
        match kind {
            EntryKind::Checkpoint => {
                if let Some(checkpoint) = self.assembly.push(raw)? {
                    self.state = checkpoint;
                    self.has_checkpoint = true;
                }
            }
            EntryKind::Compacted => {
                let Compacted { dropped, batches, .. } = dropped::decode(raw, Timeline::default(), names)?;
                let dropped = dropped.into_iter().map(|d| ((d.stream, d.partition), Offset(d.last.0 + 1)));
                let kept = batches.iter().map(|b| ((b.stream.clone(), b.partition), b.end_offset()));
                for (partition, end) in dropped.chain(kept) {
                    let next = self.state.offsets.next(&partition).max(end);
                    self.goes_on_at(seq, partition, next);
                }
            }
            EntryKind::Group => self.replay_group(seq, raw, names)?,
            EntryKind::Noted => {
                let (notes, group) = notes::split(raw)?;
                self.replay_group(seq, &group, names)?;
                notes.into_iter().for_each(|note| _ = self.state.notes.set(note));
            }
        }
        Ok(())
    }

    fn replay_group(&mut self, seq: EntrySeq, raw: &Bytes, names: &mut Names) -> Result<(), EntryError> {
        for range in group::decode_ranges(raw, names)? {
            let next = Offset(range.base_offset.0 + i64::from(range.record_count));
            self.goes_on_at(seq, (range.stream, range.partition), next);
        }
        Ok(())
    }

    fn goes_on_at(&mut self, seq: EntrySeq, partition: (StreamName, PartitionId), next: Offset) {
        if let Some(damage) = self.damage.as_mut().filter(|damage| seq > damage.last) {
            damage.sure.insert(partition.clone());
        }
        self.state.offsets.set(partition, next);
    }
}
