//! What is known of the devices on a port, over restarts too: how far each has come in its last boot.
//!
//! # Rules
//! * A device's place is noted with the readings that brought it there, so that it is durable if and only if they are. The link
//!   passes readings on in order and once: the place is the whole window.
//! * Up to [`DEVICES_MAX`] are known. One more takes the place of the one whose last reading is the longest ago, among those of
//!   which nothing is on its way to the disk; that one is then met as for the first time.
//!
//! # Format of the notes
//! Key: `d`, uid (u64 BE). Value, in postcard: boot (u32), number of its last stored reading (u32), count that ascends with the
//! submissions of the port (u64).

use std::collections::{BTreeMap, BTreeSet};

use crate::log::{Change, Remembered};

/// Devices known. A line has four at a time.
pub(super) const DEVICES_MAX: usize = 256;

const DEVICE: u8 = b'd';

/// Boot, number of the last stored reading, count.
type DeviceNote = (u32, u32, u64);

/// How far the last boot of a device has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// The boot.
    pub(super) boot: u32,
    /// Number of the last reading that the link has passed on.
    pub(super) delivered: u32,
    /// Number of the last one that is durable.
    pub(super) committed: Option<u32>,
    /// The submission that had it.
    heard: u64,
}

/// The devices of a port.
#[derive(Debug, Default)]
pub(super) struct Devices {
    progress: BTreeMap<u64, Progress>,
    /// Those whose place has changed since it was noted.
    changed: BTreeSet<u64>,
    submissions: u64,
}

impl Devices {
    /// Goes on with what a life before has noted. What is not understood is passed over.
    pub(super) fn restore(remembered: &Remembered) -> Self {
        let mut devices = Self::default();
        for (key, value) in remembered {
            let Some((&DEVICE, uid)) = key.split_first() else { continue };
            let Ok(uid) = uid.try_into().map(u64::from_be_bytes) else { continue };
            let Ok((boot, stored, heard)) = postcard::from_bytes::<DeviceNote>(value) else { continue };
            let progress = Progress { boot, delivered: stored, committed: Some(stored), heard };
            devices.progress.insert(uid, progress);
            devices.submissions = devices.submissions.max(heard);
        }
        devices
    }

    /// How far `uid` has come.
    pub(super) fn get(&self, uid: u64) -> Option<&Progress> {
        self.progress.get(&uid)
    }

    /// The link has passed on the readings of `(uid, boot)` up to `through`.
    pub(super) fn delivered(&mut self, uid: u64, boot: u32, through: u32) {
        let heard = self.submissions + 1;
        let before = self.progress.get(&uid).filter(|before| before.boot == boot);
        let committed = before.and_then(|before| before.committed);
        self.progress.insert(uid, Progress { boot, delivered: through, committed, heard });
        self.changed.insert(uid);
        if self.progress.len() > DEVICES_MAX {
            let durable = self.progress.iter().filter(|(_, p)| p.committed == Some(p.delivered));
            if let Some(uid) = durable.min_by_key(|(_, p)| p.heard).map(|(uid, _)| *uid) {
                self.progress.remove(&uid);
                self.changed.insert(uid);
            }
        }
    }

    /// The readings of `(uid, boot)` up to `through` are durable.
    pub(super) fn committed(&mut self, uid: u64, boot: u32, through: u32) {
        if let Some(progress) = self.progress.get_mut(&uid).filter(|progress| progress.boot == boot) {
            progress.committed = Some(through);
        }
    }

    /// What is to be noted with all that was delivered since the last call.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        self.submissions += 1;
        let changed = std::mem::take(&mut self.changed).into_iter();
        let changes = changed.map(|uid| {
            let note = self.progress.get(&uid).map(|progress| {
                let note: DeviceNote = (progress.boot, progress.delivered, progress.heard);
                postcard::to_stdvec(&note).expect("memory is the only limit").into()
            });
            ([&[DEVICE], uid.to_be_bytes().as_slice()].concat().into(), note)
        });
        changes.collect()
    }
}
