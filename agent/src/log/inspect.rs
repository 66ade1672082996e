//! A look at a log from outside, also while an agent writes it: `wayside log inspect`.
//!
//! Nothing in the data directory is touched, not even its lock: each epoch is copied to a temporary directory and the
//! copy is opened, since sled writes when it opens. A copy of the epoch that is being written may end in the middle of
//! a write; its end is then a little before the log's.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    EPOCH_ENTRIES_MAX, EntrySeq,
    entry::{EntryCodec, EntryKind},
    group::{self, Names},
    store::{EpochId, EpochStore, StoreError, sled},
};
use crate::{
    config::Compression,
    record::{Offset, PartitionId, StreamName},
};

/// Bytes asked of the store at a time.
const READ_BYTES: usize = 256 * 1024;

/// What an epoch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochReport {
    /// The epoch.
    pub epoch: EpochId,
    /// Entries found, checkpoint included.
    pub entries: u64,
    /// Position behind the last entry.
    pub end: EntrySeq,
    /// Batches in them.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// By partition the first offset and the one behind the last.
    pub offsets: BTreeMap<(StreamName, PartitionId), (Offset, Offset)>,
    /// Bytes of the entries as stored.
    pub stored_bytes: u64,
    /// Bytes of their bodies before compression.
    pub raw_bytes: u64,
    /// What is wrong with it, in words: entries that do not pass their checks, holes, an epoch that does not open.
    pub damage: Vec<String>,
}

/// What a data directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirReport {
    /// Epochs present, ascending.
    pub epochs: Vec<EpochId>,
    /// Epochs put aside.
    pub quarantined: Vec<EpochId>,
}

/// Why a data directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be listed, or an epoch not be copied.
    #[error("{}", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Lists the epochs in `dir`.
///
/// # Errors
/// [`InspectError`] when the directory cannot be read.
pub fn list(dir: &Path) -> Result<DirReport, InspectError> {
    let failed = |source| InspectError::Io { path: dir.into(), source };
    let mut report = DirReport::default();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        report.epochs.extend(sled::parse_epoch(name));
        report.quarantined.extend(sled::parse_quarantined(name));
    }
    report.epochs.sort_unstable();
    report.quarantined.sort_unstable();
    Ok(report)
}

/// Looks into one epoch of `dir`; none when the agent has deleted it meanwhile.
///
/// # Errors
/// [`InspectError`] when it cannot be copied. Damage is no error but part of the report.
pub fn epoch(dir: &Path, epoch: EpochId) -> Result<Option<EpochReport>, InspectError> {
    let copy =
        tempfile::tempdir().map_err(|source| InspectError::Io { path: std::env::temp_dir(), source })?;
    let from = dir.join(epoch.to_string());
    match copy_epoch(&from, &copy.path().join(epoch.to_string())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => return Ok(None),
        copied => copied.map_err(|source| InspectError::Io { path: from, source })?,
    }
    let mut report = EpochReport {
        epoch,
        entries: 0,
        end: epoch.0,
        batches: 0,
        records: 0,
        offsets: BTreeMap::new(),
        stored_bytes: 0,
        raw_bytes: 0,
        damage: Vec::new(),
    };
    let options = sled::SledOptions { ballast_bytes: 0, ..sled::SledOptions::default() };
    match sled::SledStore::open(copy.path(), options) {
        Ok(mut store) => {
            if let Err(error) = look(&mut store, &mut report) {
                report.damage.push(error.to_string());
            }
        }
        Err(error) => report.damage.push(error.to_string()),
    }
    Ok(Some(report))
}

fn copy_epoch(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // A snapshot may be renamed under our hands; sled does without.
        let is_snapshot = entry.file_name().to_str().is_some_and(|name| name.starts_with("snap."));
        if entry.file_type()?.is_file() && !is_snapshot {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn look(store: &mut dyn EpochStore, report: &mut EpochReport) -> Result<(), StoreError> {
    let mut codec = EntryCodec::new(Compression::None);
    let mut names = Names::default();
    loop {
        let entries = store.read(report.epoch, report.end, READ_BYTES)?;
        if entries.is_empty() {
            if report.entries == 0 {
                report.damage.push("it has no entries".into());
            }
            return Ok(());
        }
        for stored in entries {
            if stored.seq.0 >= report.epoch.0.0 + EPOCH_ENTRIES_MAX {
                report.damage.push(format!("entry {} is none of this epoch", stored.seq));
                return Ok(());
            }
            if stored.seq != report.end {
                report.damage.push(format!("entries {} to {} are missing", report.end, stored.seq));
            }
            report.end = stored.seq.next();
            report.entries += 1;
            report.stored_bytes += stored.bytes.len() as u64;
            let ranges = codec.decode(stored.seq, stored.bytes).and_then(|(kind, raw)| {
                report.raw_bytes += raw.len() as u64;
                match kind {
                    EntryKind::Checkpoint => Ok(Vec::new()),
                    EntryKind::Group => group::decode_ranges(&raw, &mut names),
                }
            });
            match ranges {
                Ok(ranges) => ranges.into_iter().for_each(|range| count(report, range)),
                Err(error) => report.damage.push(format!("entry {}: {error}", stored.seq)),
            }
        }
    }
}

fn count(report: &mut EpochReport, range: group::BatchRange) {
    let end = Offset(range.base_offset.0 + i64::from(range.record_count));
    report.batches += 1;
    report.records += u64::from(range.record_count);
    report
        .offsets
        .entry((range.stream, range.partition))
        .and_modify(|(first, last)| {
            *first = (*first).min(range.base_offset);
            *last = (*last).max(end);
        })
        .or_insert((range.base_offset, end));
}
