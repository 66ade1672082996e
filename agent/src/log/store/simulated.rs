//! The engine `simulated`: epochs in memory, with what is durable apart from what is only written.
//!
//! Every loss that a real disk may show can be asked for: a crash that keeps any prefix of what was not synced, calls
//! that fail, a full disk, bits that flip. Tests and the deterministic simulation use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{ENTRY_BYTES_MAX, EntrySeq, EpochId, EpochStore, StoreError, StoredEntry};

/// What a failing call says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// [`StoreError::HandleDead`].
    HandleDead,
    /// [`StoreError::NoSpace`].
    NoSpace,
    /// [`StoreError::Io`].
    Io,
}

#[derive(Debug, Default)]
struct Epoch {
    entries: Vec<StoredEntry>,
    /// How many of `entries` are durable.
    durable: usize,
    /// Whether a sync completed: only then a crash leaves the epoch itself.
    synced: bool,
    /// It will not open.
    broken: bool,
    /// Bytes of `entries`.
    size_bytes: u64,
}

impl Epoch {
    fn push(&mut self, seq: EntrySeq, bytes: &[u8]) {
        self.size_bytes += bytes.len() as u64;
        self.entries.push(StoredEntry { seq, bytes: bytes.to_vec() });
    }

    /// Entries were taken away.
    fn shrink(&mut self) {
        self.durable = self.durable.min(self.entries.len());
        self.size_bytes = self.entries.iter().map(|entry| entry.bytes.len() as u64).sum();
    }
}

#[derive(Debug, Default)]
struct Disk {
    epochs: BTreeMap<EpochId, Epoch>,
    /// The epoch that is written again.
    rewrite: Option<(EpochId, Epoch)>,
    quarantined: BTreeSet<EpochId>,
    /// Fails the call after so many more.
    fault: Option<(u32, Fault)>,
    /// Fails every call.
    standing_fault: Option<Fault>,
    /// The process dies at the call after so many more.
    dies_after: Option<u32>,
    capacity_bytes: Option<u64>,
    crashes: u64,
}

impl Disk {
    fn size_bytes(&self) -> u64 {
        let rewrite = self.rewrite.iter().map(|(_, epoch)| epoch);
        self.epochs.values().chain(rewrite).map(|epoch| epoch.size_bytes).sum()
    }

    fn check(&mut self, epoch: EpochId, action: &str) -> Result<(), StoreError> {
        match &mut self.dies_after {
            Some(0) => return Err(StoreError::HandleDead { epoch, reason: "the process is dead".into() }),
            Some(calls) => *calls -= 1,
            None => {}
        }
        let fault = match &mut self.fault {
            Some((0, _)) => self.fault.take().map(|(_, fault)| fault),
            Some((calls, _)) => {
                *calls -= 1;
                None
            }
            None => None,
        };
        match fault.or(self.standing_fault) {
            Some(Fault::HandleDead) => Err(StoreError::HandleDead { epoch, reason: "simulated".into() }),
            Some(Fault::NoSpace) => Err(StoreError::NoSpace { epoch }),
            Some(Fault::Io) => {
                Err(StoreError::Io { action: action.into(), source: io::Error::other("simulated") })
            }
            None => Ok(()),
        }
    }
}

/// The disk under [`SimulatedStore`]s: outlives them, and is where faults are asked for.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk(Arc<Mutex<Disk>>);

impl SimulatedDisk {
    /// An empty disk without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// A panic of a test under the lock leaves nothing half done here.
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the store on this disk. A store opened before must not be used any more.
    pub fn open(&self) -> SimulatedStore {
        let mut disk = self.lock();
        disk.epochs.retain(|_, epoch| epoch.synced);
        disk.rewrite = None;
        for epoch in disk.epochs.values_mut() {
            // As a real engine does: what a start finds it makes durable before anybody reads it.
            epoch.durable = epoch.entries.len();
        }
        let opened_at = disk.crashes;
        drop(disk);
        SimulatedStore { disk: self.clone(), open: None, epoch_bytes: 8 << 20, opened_at }
    }

    /// Cuts the power: of what was not synced the first `keep` entries stay, by luck.
    pub fn crash(&self, keep: usize) {
        let mut disk = self.lock();
        disk.crashes += 1;
        disk.dies_after = None;
        for epoch in disk.epochs.values_mut() {
            let kept = epoch.durable.saturating_add(keep).min(epoch.entries.len());
            epoch.entries.truncate(kept);
            epoch.shrink();
        }
    }

    /// Lets `calls` more calls of the store pass and fails the one after, once. Reads and listings are not counted.
    pub fn fail_after(&self, calls: u32, fault: Fault) {
        self.lock().fault = Some((calls, fault));
    }

    /// Fails every call of the store from now on, as a dying disk does, until told otherwise. Reads and listings do not fail.
    pub fn fail_always(&self, fault: Option<Fault>) {
        self.lock().standing_fault = fault;
    }

    /// Lets the process die in the call of the store after so many more: that and all later ones do nothing, until
    /// [`crash`](Self::crash). Reads and listings are not counted.
    pub fn die_after(&self, calls: u32) {
        self.lock().dies_after = Some(calls);
    }

    /// Whether the process has died as asked.
    pub fn is_dead(&self) -> bool {
        self.lock().dies_after == Some(0)
    }

    /// Lets every call hang, as a dying disk does, until what is returned is dropped.
    pub fn hang(&self) -> impl Drop + '_ {
        self.lock()
    }

    /// Sets the size of the disk; none is endless.
    pub fn set_capacity_bytes(&self, capacity: Option<u64>) {
        self.lock().capacity_bytes = capacity;
    }

    /// Flips one bit of an entry that is there; returns whether there is one.
    pub fn flip_bit(&self, seq: EntrySeq, bit: usize) -> bool {
        self.edit(seq, |entries, index| {
            let bytes = &mut entries[index].bytes;
            let at = bit / 8 % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
        })
    }

    /// Takes an entry away without a trace; returns whether it was there.
    pub fn remove_entry(&self, seq: EntrySeq) -> bool {
        self.edit(seq, |entries, index| {
            entries.remove(index);
        })
    }

    fn edit(&self, seq: EntrySeq, change: impl FnOnce(&mut Vec<StoredEntry>, usize)) -> bool {
        let mut disk = self.lock();
        // The newest epoch that has it: an older one may hold a leftover under the same number.
        for epoch in disk.epochs.values_mut().rev() {
            if let Some(index) = epoch.entries.iter().position(|entry| entry.seq == seq) {
                change(&mut epoch.entries, index);
                epoch.shrink();
                return true;
            }
        }
        false
    }

    /// Makes an epoch refuse to open.
    pub fn break_epoch(&self, epoch: EpochId) {
        if let Some(epoch) = self.lock().epochs.get_mut(&epoch) {
            epoch.broken = true;
        }
    }

    /// Epochs put aside so far.
    pub fn quarantined(&self) -> Vec<EpochId> {
        self.lock().quarantined.iter().copied().collect()
    }
}

/// An open store on a [`SimulatedDisk`].
#[derive(Debug)]
pub struct SimulatedStore {
    disk: SimulatedDisk,
    open: Option<EpochId>,
    epoch_bytes: u64,
    /// A store from before a crash belongs to a process that is dead.
    opened_at: u64,
}

impl SimulatedStore {
    /// Sets the size at which the store wants to roll.
    #[must_use]
    pub fn with_epoch_bytes(mut self, epoch_bytes: u64) -> Self {
        self.epoch_bytes = epoch_bytes;
        self
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        let disk = self.disk.lock();
        assert_eq!(disk.crashes, self.opened_at, "a store is used after the crash of its process");
        disk
    }

    fn write(
        &mut self,
        action: &str,
        write: impl FnOnce(&mut Disk, EpochId) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(epoch) = self.open.take() else {
            let source = io::Error::other("no epoch is open for writing");
            return Err(StoreError::Io { action: action.into(), source });
        };
        let mut disk = self.lock();
        disk.check(epoch, action)?;
        write(&mut disk, epoch)?;
        drop(disk);
        self.open = Some(epoch);
        Ok(())
    }
}

impl EpochStore for SimulatedStore {
    fn epochs(&mut self) -> Result<Vec<EpochId>, StoreError> {
        Ok(self.lock().epochs.keys().copied().collect())
    }

    fn quarantined(&mut self) -> Result<Vec<EpochId>, StoreError> {
        Ok(self.disk.quarantined())
    }

    fn create(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        self.open = None;
        let mut disk = self.lock();
        disk.check(epoch, "create")?;
        let size_bytes = disk.size_bytes();
        if disk.capacity_bytes.is_some_and(|capacity| size_bytes >= capacity) {
            return Err(StoreError::NoSpace { epoch });
        }
        if disk.epochs.get(&epoch).is_some_and(|e| e.synced) {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(StoreError::Io { action: format!("create {epoch}"), source });
        }
        disk.epochs.insert(epoch, Epoch::default());
        drop(disk);
        self.open = Some(epoch);
        Ok(())
    }

    fn append(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), StoreError> {
        assert!(entry.len() <= ENTRY_BYTES_MAX, "an entry of {} bytes", entry.len());
        self.write("append", |disk, epoch| {
            let size_bytes = disk.size_bytes() + entry.len() as u64;
            if disk.capacity_bytes.is_some_and(|capacity| size_bytes > capacity) {
                return Err(StoreError::NoSpace { epoch });
            }
            let open = disk.epochs.get_mut(&epoch).expect("the open epoch is there");
            open.push(seq, entry);
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.write("sync", |disk, epoch| {
            let open = disk.epochs.get_mut(&epoch).expect("the open epoch is there");
            open.durable = open.entries.len();
            open.synced = true;
            Ok(())
        })
    }

    fn wants_roll(&self) -> bool {
        let disk = self.lock();
        let open = self.open.and_then(|epoch| disk.epochs.get(&epoch));
        open.is_some_and(|epoch| epoch.size_bytes >= self.epoch_bytes)
    }

    fn read(
        &mut self,
        epoch: EpochId,
        from: EntrySeq,
        limit_bytes: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let mut disk = self.lock();
        let Some(found) = disk.epochs.get_mut(&epoch).filter(|found| !found.broken) else {
            return Err(StoreError::Damaged { epoch, reason: "simulated".into() });
        };
        let mut read = Vec::new();
        let mut bytes = 0;
        let first = found.entries.partition_point(|entry| entry.seq < from);
        for entry in &found.entries[first..] {
            if bytes >= limit_bytes && !read.is_empty() {
                break;
            }
            bytes += entry.bytes.len();
            read.push(entry.clone());
        }
        Ok(read)
    }

    fn begin_rewrite(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        let mut disk = self.lock();
        disk.rewrite = None;
        disk.check(epoch, "begin to rewrite")?;
        disk.rewrite = Some((epoch, Epoch::default()));
        Ok(())
    }

    fn append_rewrite(&mut self, seq: EntrySeq, entry: &[u8]) -> Result<(), StoreError> {
        let mut disk = self.lock();
        let (epoch, mut written) = disk.rewrite.take().expect("begun");
        disk.check(epoch, "rewrite")?;
        written.push(seq, entry);
        disk.rewrite = Some((epoch, written));
        if disk.capacity_bytes.is_some_and(|capacity| disk.size_bytes() > capacity) {
            disk.rewrite = None;
            return Err(StoreError::NoSpace { epoch });
        }
        Ok(())
    }

    fn finish_rewrite(&mut self, last: EpochId) -> Result<(), StoreError> {
        let mut disk = self.lock();
        let (epoch, written) = disk.rewrite.take().expect("begun");
        disk.check(epoch, "finish to rewrite")?;
        disk.epochs.retain(|id, _| *id < epoch || *id > last);
        let durable = written.entries.len();
        disk.epochs.insert(epoch, Epoch { durable, synced: true, ..written });
        Ok(())
    }

    fn delete(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        let mut disk = self.lock();
        disk.check(epoch, "delete")?;
        disk.epochs.remove(&epoch);
        drop(disk);
        self.open = self.open.filter(|open| *open != epoch);
        Ok(())
    }

    fn quarantine(&mut self, epoch: EpochId) -> Result<(), StoreError> {
        let mut disk = self.lock();
        if disk.epochs.remove(&epoch).is_some() {
            disk.quarantined.insert(epoch);
        }
        drop(disk);
        self.open = self.open.filter(|open| *open != epoch);
        Ok(())
    }

    fn epoch_size_bytes(&self, epoch: EpochId) -> u64 {
        self.lock().epochs.get(&epoch).map_or(0, |epoch| epoch.size_bytes)
    }

    fn size_bytes(&self) -> u64 {
        self.lock().size_bytes()
    }

    fn free_bytes(&self) -> Option<u64> {
        let disk = self.lock();
        Some(disk.capacity_bytes?.saturating_sub(disk.size_bytes()))
    }
}
