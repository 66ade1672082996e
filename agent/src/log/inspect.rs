//! A look at a log from outside, also while an agent writes it: what the commands under `wayside log` read.
//!
//! Nothing in the data directory is touched, not even its lock: each epoch is copied and the copy is opened, since a store takes
//! the lock and clears up. The copy lies in memory where the system has a file system there (`/dev/shm`): a gateway's
//! flash is not worn by looking. A copy of the epoch that is being written may end in the middle of a write; its end is
//! then a little before the log's.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io, iter,
    path::{Path, PathBuf},
    time::SystemTime,
    vec,
};

use rustix::io::Errno;
use tempfile::TempDir;

use super::{
    BatchGroup, EPOCH_ENTRIES_MAX, EntrySeq, LostEntries,
    checkpoint::{Assembly, Checkpoint},
    dropped::{self, Compacted},
    entry::{EntryCodec, EntryKind},
    group::{self, Names},
    identity, notes,
    store::{EpochId, EpochStore, StoredEntry, dir, disk},
};
use crate::{
    config::{Compression, Engine},
    record::{Offset, PartitionId, StreamName},
    replicate::cursor,
};

/// Bytes asked of the store at a time.
const READ_BYTES: usize = 256 * 1024;

/// What the names of directories begin with that keep what a repair took out or changed.
pub(super) const KEPT_PREFIX: &str = "repair-";

/// What every file system of the ext family has at its root.
const LOST_AND_FOUND: &str = "lost+found";

/// A file system in memory.
const MEMORY_DIR: &str = "/dev/shm";

/// How often an epoch that changed while it was copied is copied again.
const COPY_TRIES: u32 = 4;

/// What an epoch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochReport {
    /// The epoch.
    pub epoch: EpochId,
    /// What wrote it; none where its file is missing.
    pub engine: Option<Engine>,
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
    /// Epochs put aside, by the names of their directories.
    pub quarantined: BTreeMap<String, EpochId>,
    /// Epochs whose deletion a crash interrupted, by name; the next start finishes it.
    pub half_deleted: Vec<String>,
    /// What is none of the agent's, by name. Left alone.
    pub foreign: Vec<String>,
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
    /// The caller wanted it to end.
    #[error("interrupted")]
    Interrupted,
}

impl InspectError {
    fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }
}

/// Lists what is in `dir`.
///
/// # Errors
/// [`InspectError`] when the directory cannot be read.
pub fn list(dir: &Path) -> Result<DirReport, InspectError> {
    let mut report = DirReport::default();
    for entry in fs::read_dir(dir).map_err(InspectError::at(dir))? {
        let name = entry.map_err(InspectError::at(dir))?.file_name().to_string_lossy().into_owned();
        if let Some(epoch) = dir::parse_epoch(&name) {
            report.epochs.push(epoch);
        } else if let Some(epoch) = dir::parse_quarantined(&name) {
            report.quarantined.insert(name, epoch);
        } else if dir::parse_half_deleted(&name).is_some() {
            report.half_deleted.push(name);
        } else if !is_own(&name) {
            report.foreign.push(name);
        }
    }
    report.epochs.sort_unstable();
    report.half_deleted.sort_unstable();
    report.foreign.sort_unstable();
    Ok(report)
}

fn is_own(name: &str) -> bool {
    dir::OWN_FILES.contains(&name)
        || [identity::FILE_NAME, cursor::FILE_NAME, LOST_AND_FOUND].contains(&name)
        || name.starts_with(KEPT_PREFIX)
}

/// Looks into one epoch of `dir`; none when the agent has deleted it meanwhile.
///
/// # Errors
/// [`InspectError`] when it cannot be copied. Damage is no error but part of the report.
pub fn epoch(dir: &Path, epoch: EpochId) -> Result<Option<EpochReport>, InspectError> {
    at(&dir.join(epoch.to_string()), epoch)
}

/// As [`epoch`], for one that was put aside under another name.
///
/// # Errors
/// As [`epoch`].
pub fn at(path: &Path, epoch: EpochId) -> Result<Option<EpochReport>, InspectError> {
    let Some(mut reader) = EpochReader::open(path, epoch)? else { return Ok(None) };
    let mut report = EpochReport {
        epoch,
        engine: disk::written_by(path).map(|(engine, _)| engine),
        entries: 0,
        end: epoch.0,
        batches: 0,
        records: 0,
        offsets: BTreeMap::new(),
        stored_bytes: 0,
        raw_bytes: 0,
        damage: Vec::new(),
    };
    while let Some(item) = reader.read_next() {
        match item {
            Item::Checkpoint(_) => {}
            Item::Group(group) => count(&mut report, &group),
            Item::Lost(lost) if lost.first.next() == lost.end => {
                report.damage.push(format!("entry {}: {}", lost.first, lost.reason));
            }
            Item::Lost(lost) => {
                report.damage.push(format!("entries {} to {}: {}", lost.first, lost.end, lost.reason));
            }
        }
    }
    (report.entries, report.stored_bytes, report.raw_bytes) =
        (reader.entries_read, reader.stored_bytes, reader.raw_bytes);
    report.end = reader.next;
    if let Some(reason) = reader.broken {
        report.damage.push(reason);
    } else if report.entries == 0 {
        report.damage.push("it has no entries".into());
    }
    Ok(Some(report))
}

fn count(report: &mut EpochReport, group: &BatchGroup) {
    for batch in &group.batches {
        let end = batch.end_offset();
        report.batches += 1;
        report.records += batch.records.len() as u64;
        report
            .offsets
            .entry((batch.stream.clone(), batch.partition))
            .and_modify(|(first, last)| {
                *first = (*first).min(batch.base_offset);
                *last = (*last).max(end);
            })
            .or_insert((batch.base_offset, end));
    }
}

/// What an [`EpochReader`] finds, in order.
pub(super) enum Item {
    /// The state as of the start of the epoch.
    Checkpoint(Checkpoint),
    /// An entry with records.
    Group(BatchGroup),
    /// Entries that are missing or do not pass their checks.
    Lost(LostEntries),
}

/// One epoch, read from a copy.
pub(super) struct EpochReader {
    epoch: EpochId,
    /// Whether a sync of it had completed: without, nothing in it was acknowledged.
    pub(super) synced: bool,
    /// Whether it changed while it was copied, every time.
    pub(super) torn: bool,
    /// Position behind the last entry found.
    pub(super) next: EntrySeq,
    pub(super) entries_read: u64,
    stored_bytes: u64,
    raw_bytes: u64,
    /// Why nothing more can be read, if it is not the end.
    pub(super) broken: Option<String>,
    stamp: Stamp,
    assembly: Assembly,
    codec: EntryCodec,
    names: Names,
    entries: iter::Peekable<vec::IntoIter<StoredEntry>>,
    /// None when there is nothing more to read.
    store: Option<disk::DiskStore>,
    /// Goes after the store that has it open.
    _copy: Option<TempDir>,
}

impl EpochReader {
    /// Copies and opens the epoch at `path`; none when there is none.
    pub(super) fn open(path: &Path, epoch: EpochId) -> Result<Option<Self>, InspectError> {
        let mut reader = Self {
            epoch,
            synced: true,
            torn: false,
            next: epoch.0,
            entries_read: 0,
            stored_bytes: 0,
            raw_bytes: 0,
            broken: None,
            stamp: None,
            assembly: Assembly::default(),
            codec: EntryCodec::new(Compression::None),
            names: Names::default(),
            entries: Vec::new().into_iter().peekable(),
            store: None,
            _copy: None,
        };
        for _ in 0..COPY_TRIES {
            reader.stamp = stamp(path);
            match copy(path, epoch) {
                Ok(copy) => reader._copy = Some(copy),
                Err(InspectError::Io { source, .. }) if is_gone(&source, path) => return Ok(None),
                Err(InspectError::Io { source, .. }) if is_damage(&source) => {
                    reader.broken = Some(format!("it cannot be read: {source}"));
                    return Ok(Some(reader));
                }
                Err(error) => return Err(error),
            }
            // Asked behind the copy: what the copy has too much was at least written.
            reader.synced = dir::is_synced(path);
            reader.torn = stamp(path) != reader.stamp;
            if !reader.torn {
                break;
            }
        }
        let Some(copy) = &reader._copy else { return Ok(None) };
        let options = disk::DiskOptions { ballast_bytes: 0, ..disk::DiskOptions::default() };
        match disk::DiskStore::open(copy.path(), options) {
            Ok(store) => reader.store = Some(store),
            Err(error) => reader.broken = Some(error.to_string()),
        }
        Ok(Some(reader))
    }

    /// The next finding from `self.next` on; none at the end.
    pub(super) fn read_next(&mut self) -> Option<Item> {
        loop {
            if self.entries.peek().is_none() {
                match self.store.as_mut()?.read(self.epoch, self.next, READ_BYTES) {
                    Ok(entries) => self.entries = entries.into_iter().peekable(),
                    Err(error) => self.broken = Some(error.to_string()),
                }
            }
            let Some(stored) = self.entries.peek() else {
                self.store = None;
                return None;
            };
            if stored.seq.0 >= self.epoch.0.0 + EPOCH_ENTRIES_MAX {
                self.broken = Some(format!("entry {} is none of this epoch", stored.seq));
                self.entries = Vec::new().into_iter().peekable();
                self.store = None;
                return None;
            }
            let (next, seq) = (self.next, stored.seq);
            let decoded = self.codec.decode(seq, stored.bytes.clone());
            let first = match &decoded {
                Ok((EntryKind::Compacted, _, raw)) => dropped::first(raw).unwrap_or(seq),
                _ => seq,
            };
            if first > next {
                self.next = first;
                return Some(Item::Lost(LostEntries { first: next, end: first, reason: "missing".into() }));
            }
            let stored = self.entries.next()?;
            self.next = seq.next();
            self.entries_read += 1;
            self.stored_bytes += stored.bytes.len() as u64;
            let decoded = decoded.and_then(|(kind, timeline, raw)| {
                self.raw_bytes += raw.len() as u64;
                match kind {
                    EntryKind::Checkpoint => Ok(self.assembly.push(&raw)?.map(Item::Checkpoint)),
                    EntryKind::Group => {
                        let batches = group::decode(&raw, timeline, &mut self.names)?;
                        Ok(Some(Item::Group(BatchGroup { seq, batches, dropped: Vec::new() })))
                    }
                    EntryKind::Noted => {
                        let batches = notes::decode_batches(&raw, timeline, &mut self.names)?;
                        Ok(Some(Item::Group(BatchGroup { seq, batches, dropped: Vec::new() })))
                    }
                    EntryKind::Compacted => {
                        let Compacted { dropped, batches, .. } =
                            dropped::decode(&raw, timeline, &mut self.names)?;
                        Ok(Some(Item::Group(BatchGroup { seq, batches, dropped })))
                    }
                }
            });
            match decoded {
                Ok(None) => {}
                Ok(found) => return found,
                Err(error) => {
                    let reason = error.to_string();
                    return Some(Item::Lost(LostEntries { first: seq, end: seq.next(), reason }));
                }
            }
        }
    }

    /// Goes on at `from`.
    fn seek(&mut self, from: EntrySeq) {
        self.next = self.next.max(from);
    }
}

/// Length and time of the last change of an epoch's file; none where it has none.
type Stamp = Option<(u64, Option<SystemTime>)>;

fn stamp(path: &Path) -> Stamp {
    let meta = disk::written_by(path).and_then(|(_, file)| fs::metadata(file).ok())?;
    Some((meta.len(), meta.modified().ok()))
}

/// A directory of its own with a copy of the epoch at `path`, in memory if it fits there.
fn copy(path: &Path, epoch: EpochId) -> Result<TempDir, InspectError> {
    let in_memory = Path::new(MEMORY_DIR);
    if in_memory.is_dir()
        && let Ok(copy) = copy_to(in_memory, path, epoch)
    {
        return Ok(copy);
    }
    copy_to(&std::env::temp_dir(), path, epoch)
}

fn copy_to(scratch: &Path, path: &Path, epoch: EpochId) -> Result<TempDir, InspectError> {
    let copy =
        tempfile::Builder::new().prefix("wayside-").tempdir_in(scratch).map_err(InspectError::at(scratch))?;
    let to = copy.path().join(epoch.to_string());
    copy_files(path, &to).map_err(InspectError::at(path))?;
    // An epoch that was never synced is deleted when a store opens; in the copy it is to be read.
    File::create(to.join(dir::MARKER)).map_err(InspectError::at(&to))?;
    Ok(copy)
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // A snapshot may be renamed under our hands; a reader does without.
        let is_snapshot = entry.file_name().to_str().is_some_and(|name| name.starts_with("snap."));
        if entry.file_type()?.is_file() && !is_snapshot {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error, path: &Path) -> bool {
    error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err()
}

/// Whether the system's error says something about the epoch, and not about who asks or where the copy goes.
fn is_damage(error: &io::Error) -> bool {
    [Errno::IO, Errno::NOTDIR, Errno::UCLEAN, Errno::LOOP]
        .contains(&Errno::from_io_error(error).unwrap_or(Errno::PERM))
}

/// What a [`DirReader`] finds, in order.
#[derive(Debug)]
pub enum Found {
    /// An entry with records.
    Group(BatchGroup),
    /// Entries that are missing or do not pass their checks.
    Lost(LostEntries),
}

/// Reads all epochs of a data directory one after the other, each from a copy. Holds one epoch in memory.
///
/// What the log has written is read, also what no sync has made durable yet.
pub struct DirReader {
    dir: PathBuf,
    next: EntrySeq,
    until: Option<EntrySeq>,
    open: Option<(EpochReader, Option<EntrySeq>)>,
    /// The epoch whose copy was read to its end, and how its file was then.
    exhausted: Option<(EpochId, Stamp, String)>,
}

impl std::fmt::Debug for DirReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirReader").field("dir", &self.dir).field("next", &self.next).finish_non_exhaustive()
    }
}

impl DirReader {
    /// A reader of `dir` that starts at `from`, or at the first epoch if that is behind it.
    pub fn new(dir: &Path, from: EntrySeq) -> Self {
        Self { dir: dir.into(), next: from, until: None, open: None, exhausted: None }
    }

    /// Ends it at the epoch that begins at `until`.
    #[must_use]
    pub fn until(self, until: Option<EntrySeq>) -> Self {
        Self { until, ..self }
    }

    /// What comes next; none at the end of what is there now. Asked again later, it goes on where it stopped, over any
    /// number of new epochs.
    ///
    /// # Errors
    /// [`InspectError`] when the directory cannot be listed or an epoch not be copied.
    pub fn read_next(&mut self) -> Result<Option<Found>, InspectError> {
        loop {
            if let Some(found) = self.take() {
                return Ok(Some(found));
            }
            if self.until.is_some_and(|until| self.next >= until) {
                return Ok(None);
            }
            let epochs = list(&self.dir)?.epochs;
            let index = epochs.partition_point(|epoch| epoch.0 <= self.next);
            let limit = epochs.get(index).map(|following| following.0);
            let Some(&epoch) = index.checked_sub(1).and_then(|index| epochs.get(index)) else {
                let Some(first) = limit else { return Ok(None) };
                let from = std::mem::replace(&mut self.next, first);
                if from > EntrySeq(0) {
                    let reason = "deleted or put aside before they were read".into();
                    return Ok(Some(Found::Lost(LostEntries { first: from, end: first, reason })));
                }
                continue;
            };
            let path = self.dir.join(epoch.to_string());
            if let Some((_, _, reason)) =
                self.exhausted.as_ref().filter(|(of, at, _)| *of == epoch && *at == stamp(&path))
            {
                let Some(end) = limit else { return Ok(None) };
                let reason = reason.clone();
                let first = std::mem::replace(&mut self.next, end);
                return Ok(Some(Found::Lost(LostEntries { first, end, reason })));
            }
            self.open = EpochReader::open(&path, epoch)?.map(|mut reader| {
                reader.seek(self.next);
                (reader, limit)
            });
        }
    }

    /// The next finding in the open epoch; closes it at its end.
    fn take(&mut self) -> Option<Found> {
        let (mut reader, limit) = self.open.take()?;
        // What an older epoch holds from the next one's start on was never acknowledged and was written again.
        let found = std::iter::from_fn(|| reader.read_next()).find_map(|item| match item {
            Item::Checkpoint(_) => None,
            Item::Group(group) => Some((group.seq, Found::Group(group))),
            Item::Lost(lost) => Some((lost.first, Found::Lost(lost))),
        });
        let read_to = limit.map_or(reader.next, |limit| reader.next.min(limit));
        self.next = self.next.max(read_to);
        match found {
            Some((seq, mut found)) if limit.is_none_or(|limit| seq < limit) => {
                if let (Found::Lost(lost), Some(limit)) = (&mut found, limit) {
                    lost.end = lost.end.min(limit);
                }
                self.open = Some((reader, limit));
                Some(found)
            }
            _ => {
                let broken = reader.broken.clone();
                let reason = reader.broken.unwrap_or_else(|| format!("{} ends before", reader.epoch));
                let told =
                    self.exhausted.as_ref().is_some_and(|(of, _, why)| *of == reader.epoch && *why == reason);
                self.exhausted = Some((reader.epoch, reader.stamp, reason));
                // With another epoch behind it, it is told how far the loss goes.
                let reason = broken.filter(|_| limit.is_none() && !told)?;
                Some(Found::Lost(LostEntries { first: self.next, end: self.next, reason }))
            }
        }
    }
}
