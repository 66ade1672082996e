//! The data directory: names, the lock, what a crash left, the ballast.
//!
//! ```text
//! <dir>/lock                 flock of the running agent
//! <dir>/gateway              whose directory it is, see [`crate::log::identity`]
//! <dir>/cursor               how far Kafka has the log, see [`crate::replicate::cursor`]
//! <dir>/ballast              space that is given back when the disk is full
//! <dir>/e-<id:016x>/         an epoch: one sled Db (conf, db, snap.*, blobs/ which stays empty), or the file `segment`
//! <dir>/e-<id:016x>/synced   empty; made by the first completed sync. The newest epoch without it acknowledged nothing
//! <dir>/del-<id:016x>/       an epoch that is being deleted
//! <dir>/new-<id:016x>/       an epoch that is being written again; of no use after a crash
//! <dir>/swap-<id:016x>-<last:016x>/  an epoch that was written again, and takes the place of all from `id` to `last`
//! <dir>/bad-<id:016x>/       an epoch that could not be read; for an operator to look at and remove
//! <dir>/repair-<time>/       what `wayside log repair` took out or changed; for an operator to look at and remove
//! ```
//! Everything else in it belongs to somebody else and is left alone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FallocateFlags, FlockOperation};

use super::{EntrySeq, EpochId};

pub(in crate::log) const MARKER: &str = "synced";
const BALLAST: &str = "ballast";
const LOCK: &str = "lock";
const NEW: &str = "new-";
const SWAP: &str = "swap-";

/// What the store has in the directory beside epochs.
pub(in crate::log) const OWN_FILES: [&str; 2] = [LOCK, BALLAST];

/// Times that a lock in use is asked for again, [`LOCK_PAUSE`] apart: an agent that was just killed holds it until the
/// kernel has taken it apart.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why a store did not open. The caller stops; the operator looks at path and rights.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent uses the directory: two writers would destroy it.
    #[error("{} is in use by another agent", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The system does not let us in.
    #[error(
        "data directory {}: no permission for user {us}: {} belongs to user {owner}, mode {mode:o}: run the agent as that \
         user, or give it all to user {us} (chown -R)", dir.display(), what.display()
    )]
    Denied {
        /// The directory.
        dir: PathBuf,
        /// What keeps us out: it, something in it, or what it would be created in.
        what: PathBuf,
        /// User that `what` belongs to.
        owner: u32,
        /// Permissions of `what`.
        mode: u32,
        /// The agent's user.
        us: u32,
    },
    /// The directory cannot be created, locked or listed.
    #[error("data directory {}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// What the system's error with `dir` means.
    pub(super) fn of(dir: &Path, source: io::Error) -> Self {
        let lock = dir.join(LOCK);
        let nearest = lock.ancestors().find_map(|path| Some((path, fs::metadata(path).ok()?)));
        match nearest {
            Some((what, metadata)) if source.kind() == io::ErrorKind::PermissionDenied => Self::Denied {
                dir: dir.into(),
                what: what.into(),
                owner: metadata.uid(),
                mode: metadata.mode() & 0o7777,
                us: rustix::process::geteuid().as_raw(),
            },
            _ => Self::Io { dir: dir.into(), source },
        }
    }
}

/// The directory, locked for as long as this lives.
#[derive(Debug)]
pub(in crate::log) struct DataDir {
    path: PathBuf,
    ballast_bytes: u64,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if it is missing, closes it to everybody else, and locks it.
    pub(in crate::log) fn open(path: &Path, ballast_bytes: u64) -> Result<Self, OpenError> {
        let failed = |source| OpenError::of(path, source);
        let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
        // What devices say about people is nobody's but the agent's.
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        for parent in missing.into_iter().filter_map(Path::parent) {
            // Without its name the directory is gone after a power cut, with all that it acknowledged.
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            complain(parent, "sync", sync_dir(parent));
        }
        if fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o077 != 0) {
            complain(path, "close to others", fs::set_permissions(path, Permissions::from_mode(0o700)));
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(failed)?;
        let mut tries = 0;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse { dir: path.into() }),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(Self { path: path.into(), ballast_bytes, _lock: lock })
    }

    /// Whether the directory has the file of the lock.
    pub(in crate::log) fn has_lock(path: &Path) -> bool {
        path.join(LOCK).exists()
    }

    /// Makes the names in it durable.
    pub(in crate::log) fn sync(&self) -> io::Result<()> {
        sync_dir(&self.path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn epoch(&self, epoch: EpochId) -> PathBuf {
        self.path.join(epoch.to_string())
    }

    /// Finishes what a crash interrupted; returns the epochs that are left, ascending. What cannot be cleaned up is
    /// told and left for the next start.
    pub(super) fn recover(&self) -> io::Result<Vec<EpochId>> {
        self.recover_rewrites()?;
        let mut epochs = Vec::new();
        let mut unmarked = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if parse(name, "del-").is_some() {
                complain(&path, "finish deleting", fs::remove_dir_all(&path));
            } else if let Some(epoch) = parse(name, "e-") {
                if path.metadata().is_ok_and(|meta| !meta.is_dir()) {
                    complain(&path, "put aside", self.quarantine(epoch));
                    continue;
                }
                // Where the disk does not say, the epoch stays: the log puts it aside if it does not read.
                match path.join(MARKER).try_exists() {
                    Ok(false) => unmarked.push(epoch),
                    marked => {
                        complain(&path, "look for the marker", marked.map(|_| ()));
                        epochs.push(epoch);
                    }
                }
            }
        }
        epochs.sort_unstable();
        unmarked.sort_unstable();
        let newest = epochs.last().max(unmarked.last()).copied();
        for epoch in unmarked {
            let path = self.epoch(epoch);
            if Some(epoch) == newest {
                complain(&path, "delete the unsynced epoch", self.delete(epoch));
            } else {
                // No epoch is begun before the one before it is synced, so this one was.
                tracing::error!(path = %path.display(), "an epoch has lost its marker; put aside");
                complain(&path, "put aside", self.quarantine(epoch));
            }
        }
        if let Some(&newest) = epochs.last() {
            // A kill leaves entries that the kernel has and the disk has not. Read, they may reach Kafka; so they are
            // made durable first.
            complain(&self.epoch(newest), "sync", sync_all(&self.epoch(newest)));
            complain(&self.path, "sync", sync_dir(&self.path));
        }
        Ok(epochs)
    }

    /// Epochs that were put aside, ascending.
    pub(super) fn quarantined(&self) -> io::Result<Vec<EpochId>> {
        let mut epochs = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            epochs.extend(entry?.file_name().to_str().and_then(|name| parse(name, "bad-")));
        }
        epochs.sort_unstable();
        epochs.dedup();
        Ok(epochs)
    }

    /// Makes the directory of a new epoch. One of the same name is the rest of an attempt that failed.
    pub(super) fn create(&self, epoch: EpochId) -> io::Result<PathBuf> {
        let path = self.epoch(epoch);
        if path.join(MARKER).try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if path.try_exists()? {
            self.delete(epoch)?;
        }
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Makes the directory for writing an epoch again.
    pub(super) fn create_rewrite(&self, epoch: EpochId) -> io::Result<PathBuf> {
        let path = self.path.join(format!("{NEW}{:016x}", epoch.0.0));
        if path.try_exists()? {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Puts what was written again, and synced, in the place of the epochs from `first` to `last`.
    pub(super) fn finish_rewrite(&self, first: EpochId, last: EpochId) -> io::Result<()> {
        let path = self.path.join(format!("{NEW}{:016x}", first.0.0));
        File::create(path.join(MARKER))?;
        sync_all(&path)?;
        let swap = self.path.join(format!("{SWAP}{:016x}-{:016x}", first.0.0, last.0.0));
        fs::rename(path, &swap)?;
        // From here on a start finishes it.
        sync_dir(&self.path)?;
        self.finish_swap(&swap, first, last)
    }

    fn finish_swap(&self, swap: &Path, first: EpochId, last: EpochId) -> io::Result<()> {
        let mut epochs = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            epochs.extend(entry?.file_name().to_str().and_then(|name| parse(name, "e-")));
        }
        epochs.retain(|epoch| (first..=last).contains(epoch));
        epochs.into_iter().try_for_each(|epoch| self.delete(epoch))?;
        fs::rename(swap, self.epoch(first))?;
        sync_dir(&self.path)
    }

    /// Finishes or removes what was being written again when the agent ended.
    fn recover_rewrites(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if parse(name, NEW).is_some() {
                complain(&path, "remove what was not finished", fs::remove_dir_all(&path));
            } else if let Some((first, last)) = name.strip_prefix(SWAP).and_then(|ids| ids.split_once('-'))
                && let (Some(first), Some(last)) = (parse(first, ""), parse(last, ""))
            {
                // Half of it would be loss: the log does not open before it is done.
                self.finish_swap(&path, first, last)?;
            }
        }
        Ok(())
    }

    /// Notes that an epoch is synced, its files already are; makes their names durable and the note with them. The note is
    /// its name alone, so that it needs no sync of its own.
    pub(in crate::log) fn mark_synced(&self, epoch: EpochId) -> io::Result<()> {
        let path = self.epoch(epoch);
        File::create(path.join(MARKER))?;
        sync_dir(&path)?;
        sync_dir(&self.path)
    }

    /// Deletes an epoch by a rename first, so that half of one is never taken for an epoch.
    pub(super) fn delete(&self, epoch: EpochId) -> io::Result<()> {
        let doomed = self.path.join(format!("del-{:016x}", epoch.0.0));
        if doomed.exists() {
            fs::remove_dir_all(&doomed)?;
        }
        match fs::rename(self.epoch(epoch), &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        fs::remove_dir_all(&doomed)
    }

    /// Puts an epoch aside under a name of its own.
    pub(in crate::log) fn quarantine(&self, epoch: EpochId) -> io::Result<()> {
        let name = format!("bad-{:016x}", epoch.0.0);
        let mut aside = self.path.join(&name);
        let mut copy = 1;
        while aside.exists() {
            copy += 1;
            aside = self.path.join(format!("{name}.{copy}"));
        }
        match fs::rename(self.epoch(epoch), aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.and_then(|()| sync_dir(&self.path)),
        }
    }

    /// Bytes that an unprivileged process may still write.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Sets the ballast aside if it is not there and `free_bytes` allow it.
    pub(super) fn take_ballast(&self, free_bytes: u64, reserve_bytes: u64) {
        let path = self.path.join(BALLAST);
        let enough = free_bytes >= reserve_bytes.saturating_add(self.ballast_bytes);
        if self.ballast_bytes == 0 || !enough || path.exists() {
            return;
        }
        let taken = File::create(&path).and_then(|file| {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.ballast_bytes)
                .map_err(io::Error::from)
        });
        if let Err(error) = taken {
            // A file system without fallocate: a file of zeros would cost flash at every full disk.
            tracing::debug!(%error, "no ballast");
            complain(&path, "remove the empty ballast", fs::remove_file(&path));
        }
    }

    /// Gives the ballast's space back; returns whether there was any.
    pub(super) fn drop_ballast(&self) -> bool {
        let dropped = fs::remove_file(self.path.join(BALLAST)).is_ok();
        if dropped {
            tracing::warn!(dir = %self.path.display(), "disk full: the ballast is given back");
        }
        dropped
    }

    /// Bytes that an epoch takes on the device.
    pub(super) fn size_bytes(&self, epoch: EpochId) -> u64 {
        let Ok(entries) = fs::read_dir(self.epoch(epoch)) else { return 0 };
        entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    }
}

/// Ids from here on are not the log's: no gateway writes 2^48 entries, and offsets could not go on behind them.
const ID_END: u64 = 1 << 48;

/// The epoch that a directory of this name holds.
pub(in crate::log) fn parse_epoch(name: &str) -> Option<EpochId> {
    parse(name, "e-")
}

/// The epoch that a directory of this name holds, put aside.
pub(in crate::log) fn parse_quarantined(name: &str) -> Option<EpochId> {
    parse(name, "bad-")
}

/// The epoch that a directory of this name held before its deletion was begun.
pub(in crate::log) fn parse_half_deleted(name: &str) -> Option<EpochId> {
    parse(name, "del-")
}

/// Whether a sync of the epoch at `path` has completed. Where the disk does not say, it has: as at a start.
pub(in crate::log) fn is_synced(path: &Path) -> bool {
    path.join(MARKER).try_exists().unwrap_or(true)
}

/// The id in a name of the given kind: `<prefix><16 hex digits>`, behind which `bad-` may have a copy's number.
fn parse(name: &str, prefix: &str) -> Option<EpochId> {
    let digits = name.strip_prefix(prefix)?;
    let digits = if prefix == "bad-" { digits.split('.').next()? } else { digits };
    let canonical = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let id = canonical.then(|| u64::from_str_radix(digits, 16).ok()).flatten()?;
    (id < ID_END).then_some(EpochId(EntrySeq(id)))
}

/// Syncs every file in `dir`, then the directory.
fn sync_all(dir: &Path) -> io::Result<()> {
    sync_files(dir)?;
    sync_dir(dir)
}

/// Syncs every file in `dir`.
pub(in crate::log) fn sync_files(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    Ok(())
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn complain(path: &Path, action: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(path = %path.display(), action, %error, "the data directory needs an operator's look");
    }
}
