//! Recovery: what a start finds, and where it goes on.

use std::{collections::BTreeMap, io, sync::Arc};

use bytes::Bytes;

use super::{
    EPOCH_ENTRIES_MAX, EntrySeq, LogOptions,
    checkpoint::{Assembly, Checkpoint, NextOffsets},
    dropped::{self, Compacted},
    entry::{self, EntryCodec, EntryError, EntryKind},
    group::{self, Names},
    notes::{self, NoteTable, Remembered},
    store::{EpochId, EpochStore, SLOW_OPENS_MAX, StoreError},
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
    /// Whether the log cannot know all that was in it: the newest epoch is damaged or gone, or ends before the cursor,
    /// in its positions or its offsets. Then [`Recovery::end`] goes on [`EPOCH_ENTRIES_MAX`] positions behind the
    /// newest epoch's id, or at the cursor if that is further, and every offset at 8192 times that.
    pub skipped: bool,
    /// Position of the next entry.
    pub end: EntrySeq,
    /// Starts that committed something to this log, this one included.
    pub boot: u64,
    /// Next offset of every partition that is known.
    pub next_offsets: BTreeMap<(StreamName, PartitionId), Offset>,
    /// By source what it remembers; nothing where the newest epoch is damaged.
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
    let mut state = Some(Checkpoint::default());
    while let Some(&newest) = epochs.last() {
        let reason = match scan_patiently(store, codec, names, newest) {
            Ok(scan) if scan.entries > 0 => {
                report.entries_scanned = scan.entries;
                report.damaged_entries = scan.damaged;
                report.torn_tail = scan.torn_tail;
                end = scan.end;
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
    let damaged = epochs.last().copied().filter(|_| state.is_none());
    if let Some(unknown) = quarantined.max(damaged) {
        end = end.max(EntrySeq(unknown.0.0.saturating_add(EPOCH_ENTRIES_MAX)));
        state = None;
        tracing::error!(epoch = %unknown, %end, "the log cannot know all that was in it; its sequence skips ahead");
    }
    // A checkpoint lists every partition that ever had a record, so only a lost end takes an offset back.
    let lost_offset = state.as_ref().and_then(|state| {
        options.offsets_min.iter().find(|(partition, min)| state.offsets.next(partition) < **min)
    });
    if end < options.next_seq_min || lost_offset.is_some() {
        let cursor = options.next_seq_min;
        tracing::error!(%end, %cursor, ?lost_offset, "the log ends before the cursor; its sequence skips ahead");
        let newest_end = epochs.last().map_or(0, |newest| newest.0.0.saturating_add(EPOCH_ENTRIES_MAX));
        end = end.max(cursor).max(EntrySeq(newest_end));
        state = None;
    }
    if let Some(used) = options.offsets_min.values().max().filter(|_| state.is_none()) {
        end = end.max(NextOffsets::end_beyond(*used));
    }
    report.skipped = state.is_none();
    // Each start that leaves a trace takes at least one position, so `end` is above every boot number so far.
    let Checkpoint { boot, offsets, notes } = state.unwrap_or_else(|| Checkpoint {
        boot: end.0,
        offsets: NextOffsets::beyond(end),
        notes: NoteTable::default(),
    });
    report.epochs = epochs.len();
    report.end = end;
    report.boot = boot + 1;
    report.next_offsets = offsets.known().clone();
    report.notes = notes.by_source().clone();
    Ok(Recovered { report, epochs, offsets, notes })
}

/// As [`scan`], again when the epoch does not open in time: the last time the store calls it damaged. A process that
/// gave up at the first would meet the same epoch at its next start.
fn scan_patiently(
    store: &mut dyn EpochStore,
    codec: &mut EntryCodec,
    names: &mut Names,
    epoch: EpochId,
) -> Result<Scan, StoreError> {
    for _ in 1..SLOW_OPENS_MAX {
        match scan(store, codec, names, epoch) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::TimedOut => {
                tracing::warn!(%epoch, "the newest epoch does not open in time; once more");
            }
            result => return result,
        }
    }
    scan(store, codec, names, epoch)
}

struct Scan {
    entries: u64,
    damaged: u64,
    torn_tail: bool,
    end: EntrySeq,
    /// The state at the end of the epoch; none when a part of it is damaged or missing.
    state: Option<Checkpoint>,
}

fn scan(
    store: &mut dyn EpochStore,
    codec: &mut EntryCodec,
    names: &mut Names,
    epoch: EpochId,
) -> Result<Scan, StoreError> {
    let mut scan = Scan { entries: 0, damaged: 0, torn_tail: false, end: epoch.0, state: None };
    let mut assembly = Assembly::default();
    let mut whole = true;
    // Entries of a commit whose end has not come.
    let mut held: Vec<(EntryKind, Bytes)> = Vec::new();
    let mut next = epoch.0;
    loop {
        let entries = store.read(epoch, next, SCAN_BYTES)?;
        if entries.is_empty() {
            break;
        }
        for stored in entries {
            if stored.seq.0 >= epoch.0.0 + EPOCH_ENTRIES_MAX {
                // No epoch goes so far: this is not the log's.
                scan.damaged += 1;
                scan.end = next;
                scan.state = None;
                return Ok(scan);
            }
            whole &= stored.seq == next;
            scan.entries += 1;
            next = stored.seq.next();
            let goes_on = entry::goes_on(&stored.bytes);
            let replayed = codec.decode(stored.seq, stored.bytes).and_then(|(kind, _, raw)| {
                held.push((kind, raw));
                if goes_on {
                    return Ok(());
                }
                let commit = std::mem::take(&mut held);
                scan.end = next;
                commit
                    .into_iter()
                    .try_for_each(|(kind, raw)| replay(kind, &raw, names, &mut assembly, &mut scan.state))
            });
            scan.torn_tail = replayed.is_err();
            if let Err(error) = replayed {
                tracing::error!(seq = %stored.seq, %error, "damaged entry");
                scan.damaged += 1;
                whole = false;
            }
        }
    }
    // What is left of a commit that never was is nobody's: the next epoch begins before it.
    if !whole {
        scan.end = next;
        scan.state = None;
    }
    Ok(scan)
}

fn replay(
    kind: EntryKind,
    raw: &Bytes,
    names: &mut Names,
    assembly: &mut Assembly,
    state: &mut Option<Checkpoint>,
) -> Result<(), EntryError> {
    match kind {
        EntryKind::Checkpoint => {
            if let Some(checkpoint) = assembly.push(raw)? {
                *state = Some(checkpoint);
            }
        }
        EntryKind::Compacted => {
            let Compacted { dropped, batches, .. } = dropped::decode(raw, Timeline::default(), names)?;
            let Some(state) = state else { return Ok(()) };
            let dropped = dropped.into_iter().map(|d| ((d.stream, d.partition), Offset(d.last.0 + 1)));
            let kept = batches.iter().map(|b| ((b.stream.clone(), b.partition), b.end_offset()));
            for (partition, end) in dropped.chain(kept) {
                let next = state.offsets.next(&partition).max(end);
                state.offsets.set(partition, next);
            }
        }
        EntryKind::Group => replay_group(raw, names, state)?,
        EntryKind::Noted => {
            let (notes, group) = notes::split(raw)?;
            replay_group(&group, names, state)?;
            if let Some(state) = state {
                notes.into_iter().for_each(|note| _ = state.notes.set(note));
            }
        }
    }
    Ok(())
}

fn replay_group(raw: &Bytes, names: &mut Names, state: &mut Option<Checkpoint>) -> Result<(), EntryError> {
    let ranges = group::decode_ranges(raw, names)?;
    // Without a checkpoint, which is damage of its own, the offsets are not known anyway.
    let Some(state) = state else { return Ok(()) };
    for range in ranges {
        let next = Offset(range.base_offset.0 + i64::from(range.record_count));
        state.offsets.set((range.stream, range.partition), next);
    }
    Ok(())
}
