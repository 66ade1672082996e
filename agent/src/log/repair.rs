//! Repair: what may be changed in a data directory while no agent uses it. Nothing is deleted that was not half deleted
//! before; what else goes, goes to another name.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    inspect,
    store::{
        EpochId,
        dir::{DataDir, OpenError, sync_files},
    },
};

/// A data directory that no agent uses for as long as this lives.
#[derive(Debug)]
pub struct LockedDir {
    dir: DataDir,
    path: PathBuf,
}

impl LockedDir {
    /// Locks `dir`, which is there.
    ///
    /// # Errors
    /// [`OpenError::InUse`] while an agent runs on it.
    pub fn lock(dir: &Path) -> Result<Self, OpenError> {
        Ok(Self { dir: DataDir::open(dir, 0)?, path: dir.into() })
    }

    /// Whether an agent may have used `dir`: without the file of the lock there is nothing to lock.
    pub fn has_lock(dir: &Path) -> bool {
        DataDir::has_lock(dir)
    }

    /// Puts an epoch aside as `bad-*`, as the agent does with one that it cannot read.
    ///
    /// # Errors
    /// The system's.
    pub fn put_aside(&self, epoch: EpochId) -> io::Result<()> {
        self.dir.quarantine(epoch)
    }

    /// Marks an epoch as synced. Without the mark the next start would put it aside.
    ///
    /// # Errors
    /// The system's.
    pub fn mark_synced(&self, epoch: EpochId) -> io::Result<()> {
        sync_files(&self.path.join(epoch.to_string()))?;
        self.dir.mark_synced(epoch)
    }

    /// Finishes the deletion of an epoch, by the name that [`inspect::DirReport::half_deleted`] has.
    ///
    /// # Errors
    /// The system's.
    pub fn finish_deletion(&self, name: &str) -> io::Result<()> {
        fs::remove_dir_all(self.path.join(name))
    }

    /// Makes a directory of a name of its own in which [`keep`](Self::keep) keeps things.
    ///
    /// # Errors
    /// The system's.
    pub fn kept(&self, label: &str) -> io::Result<PathBuf> {
        let kept = self.path.join(format!("{}{label}", inspect::KEPT_PREFIX));
        fs::create_dir(&kept)?;
        self.dir.sync()?;
        Ok(kept)
    }

    /// Moves what has `name` in the directory to `kept`.
    ///
    /// # Errors
    /// The system's.
    pub fn keep(&self, name: &str, kept: &Path) -> io::Result<()> {
        fs::rename(self.path.join(name), kept.join(name))?;
        fs::File::open(kept)?.sync_all()?;
        self.dir.sync()
    }
}
