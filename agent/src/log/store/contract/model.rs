//! Each engine against a small model: random operations, starts and power cuts among them.
//!
//! The promise: an epoch that was synced is there until it is deleted, put aside or replaced, and reads what was
//! synced, in order; of what was appended behind, any prefix may be there after a start.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Operation {
    /// Begins a new epoch, behind a sync.
    Roll,
    /// Appends entries of this many bytes.
    Append(Vec<usize>),
    Sync,
    /// Reads an epoch from a share of its entries on, in percent, so many bytes at a time.
    Read(usize, usize, usize),
    /// Writes epochs again as one, and keeps every n-th entry; or gives up.
    Rewrite(usize, usize, Option<usize>),
    Delete(usize),
    Quarantine(usize),
    /// Kill and start.
    Reopen,
    /// Power cut and start: of what was not synced so much stays, in entries or in bytes.
    Crash(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let sizes = prop::collection::vec(prop_oneof![0..300_usize, Just(40_000), Just(ENTRY_BYTES_MAX)], 1..12);
    prop_oneof![
        3 => Just(Operation::Roll),
        8 => sizes.prop_map(Operation::Append),
        5 => Just(Operation::Sync),
        6 => (0..9_usize, 0..110_usize, 1..200_000_usize).prop_map(|(e, p, l)| Operation::Read(e, p, l)),
        1 => (0..9_usize, 1..4_usize, prop::option::of(1..5_usize))
            .prop_map(|(first, count, keep)| Operation::Rewrite(first, count, keep)),
        1 => (0..9_usize).prop_map(Operation::Delete),
        1 => (0..9_usize).prop_map(Operation::Quarantine),
        2 => Just(Operation::Reopen),
        2 => (0..300_000_usize).prop_map(Operation::Crash),
    ]
}

#[derive(Debug, Default)]
struct Epoch {
    entries: Vec<StoredEntry>,
    durable: usize,
    synced: bool,
}

/// An engine's disk.
trait Medium {
    fn open(&self) -> Box<dyn EpochStore>;
    /// What is there now survives a power cut.
    fn note_durable(&self);
    /// Cuts the power; the store is closed.
    fn crash(&self, keep: usize);
}

impl Medium for SimulatedDisk {
    fn open(&self) -> Box<dyn EpochStore> {
        Box::new(SimulatedDisk::open(self))
    }

    fn note_durable(&self) {}

    fn crash(&self, keep: usize) {
        SimulatedDisk::crash(self, keep % 5);
    }
}

/// A data directory, with a copy of how it was when something became durable last.
struct Directory {
    engine: Engine,
    live: tempfile::TempDir,
    durable: tempfile::TempDir,
}

impl Directory {
    fn new(engine: Engine) -> Self {
        let dir = || tempfile::tempdir().unwrap();
        Self { engine, live: dir(), durable: dir() }
    }
}

/// The files in `dir`, which is two deep, by their paths in it.
fn files(dir: &Path) -> BTreeSet<std::path::PathBuf> {
    let list = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let (dirs, files): (Vec<_>, Vec<_>) = list(dir).into_iter().partition(|path| path.is_dir());
    let below = dirs.iter().flat_map(|dir| list(dir)).filter(|path| path.is_file());
    below.chain(files).map(|path| path.strip_prefix(dir).unwrap().to_owned()).collect()
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(to).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    for file in files(from) {
        fs::create_dir_all(to.join(&file).parent().unwrap()).unwrap();
        fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

impl Medium for Directory {
    fn open(&self) -> Box<dyn EpochStore> {
        Box::new(DiskStore::open(self.live.path(), options_of(self.engine)).unwrap())
    }

    fn note_durable(&self) {
        copy(self.live.path(), self.durable.path());
    }

    fn crash(&self, keep: usize) {
        // A torn tail: of what lies behind the durable end the first bytes are there, then zeros.
        let torn: Vec<_> = files(self.durable.path())
            .into_iter()
            .filter(|file| file.ends_with("segment"))
            .filter_map(|file| Some((fs::read(self.live.path().join(&file)).ok()?, file)))
            .collect();
        copy(self.durable.path(), self.live.path());
        for (mut bytes, file) in torn {
            let file = self.live.path().join(file);
            let from = usize::try_from(fs::metadata(&file).unwrap().len()).unwrap().saturating_add(keep);
            if let Some(lost) = bytes.get_mut(from..) {
                lost.fill(0);
            }
            fs::write(file, bytes).unwrap();
        }
    }
}

struct Run<'a> {
    medium: &'a dyn Medium,
    store: Box<dyn EpochStore>,
    epochs: BTreeMap<EpochId, Epoch>,
    /// The last of `epochs`, if it is open.
    open: Option<EpochId>,
    next: u64,
}

impl Run<'_> {
    /// An epoch by its number.
    fn pick(&self, index: usize) -> Option<EpochId> {
        self.epochs.keys().nth(index % self.epochs.len().max(1)).copied()
    }

    fn sync(&mut self) {
        let Some(open) = self.open else { return };
        let epoch = self.epochs.get_mut(&open).unwrap();
        if !epoch.entries.is_empty() {
            self.store.sync().unwrap();
            epoch.durable = epoch.entries.len();
            epoch.synced = true;
            self.medium.note_durable();
        }
    }

    fn close(&mut self, epoch: EpochId) {
        self.open = self.open.filter(|open| *open != epoch);
        self.epochs.remove(&epoch);
        self.medium.note_durable();
    }

    fn step(&mut self, operation: &Operation) {
        match operation {
            Operation::Roll => {
                self.sync();
                let unsynced = self.open.filter(|open| !self.epochs[open].synced);
                if unsynced.is_none() {
                    self.store.create(id(self.next)).unwrap();
                    self.epochs.insert(id(self.next), Epoch::default());
                    self.open = Some(id(self.next));
                }
            }
            Operation::Append(sizes) => {
                let Some(open) = self.open else { return };
                for &size in sizes {
                    let stored = StoredEntry { seq: EntrySeq(self.next), bytes: entry(self.next, size) };
                    self.store.append(stored.seq, &stored.bytes).unwrap();
                    self.epochs.get_mut(&open).unwrap().entries.push(stored);
                    self.next += 1;
                }
            }
            Operation::Sync => self.sync(),
            Operation::Read(index, percent, limit_bytes) => {
                let Some(epoch) = self.pick(*index) else { return };
                let entries = &self.epochs[&epoch].entries;
                let from = entries.get(entries.len() * percent / 100).map_or(self.next, |entry| entry.seq.0);
                let expected: Vec<_> = entries.iter().filter(|entry| entry.seq.0 >= from).cloned().collect();
                assert_eq!(read_in_steps(self.store.as_mut(), epoch, from, *limit_bytes), expected);
            }
            Operation::Rewrite(first, count, keep) => self.rewrite(*first, *count, *keep),
            Operation::Delete(index) => {
                let Some(epoch) = self.pick(*index) else { return };
                self.store.delete(epoch).unwrap();
                self.close(epoch);
            }
            Operation::Quarantine(index) => {
                let Some(epoch) = self.pick(*index) else { return };
                self.store.quarantine(epoch).unwrap();
                self.close(epoch);
            }
            Operation::Reopen => self.start(|_| {}),
            Operation::Crash(keep) => self.start(|medium| medium.crash(*keep)),
        }
        let epochs: Vec<_> = self.epochs.keys().copied().collect();
        assert_eq!(self.store.epochs().unwrap(), epochs);
    }

    fn rewrite(&mut self, first: usize, count: usize, keep: Option<usize>) {
        let closed: Vec<EpochId> =
            self.epochs.keys().copied().filter(|epoch| Some(*epoch) != self.open).collect();
        let Some(range) = closed.get(first..(first + count).min(closed.len())).filter(|r| !r.is_empty())
        else {
            return;
        };
        self.store.begin_rewrite(range[0]).unwrap();
        let entries = range.iter().flat_map(|epoch| self.epochs[epoch].entries.clone());
        let kept: Vec<_> = entries.step_by(keep.unwrap_or(1)).collect();
        for entry in &kept {
            self.store.append_rewrite(entry.seq, &entry.bytes).unwrap();
        }
        if keep.is_some() {
            self.store.finish_rewrite(range[range.len() - 1]).unwrap();
            range.iter().for_each(|epoch| _ = self.epochs.remove(epoch));
            let durable = kept.len();
            self.epochs.insert(range[0], Epoch { entries: kept, durable, synced: true });
            self.medium.note_durable();
        }
    }

    fn start(&mut self, between: impl FnOnce(&dyn Medium)) {
        self.store = Box::new(SimulatedDisk::new().open());
        between(self.medium);
        self.store = self.medium.open();
        self.open = None;
        self.epochs.retain(|_, epoch| epoch.synced);
        for (id, epoch) in &mut self.epochs {
            let found = read_in_steps(self.store.as_mut(), *id, id.0.0, 50_000);
            assert!(found.len() >= epoch.durable, "{id} has lost what was synced");
            assert!(epoch.entries.starts_with(&found), "{id} has what was never appended");
            epoch.durable = found.len();
            epoch.entries = found;
        }
        self.medium.note_durable();
    }
}

fn read_in_steps(
    store: &mut dyn EpochStore,
    epoch: EpochId,
    from: u64,
    limit_bytes: usize,
) -> Vec<StoredEntry> {
    let mut all: Vec<StoredEntry> = Vec::new();
    loop {
        let next = all.last().map_or(EntrySeq(from), |last| last.seq.next());
        let read = store.read(epoch, next, limit_bytes).unwrap();
        if read.is_empty() {
            return all;
        }
        let but_last: usize = read[..read.len() - 1].iter().map(|entry| entry.bytes.len()).sum();
        assert!(but_last < limit_bytes.max(1), "the limit is exceeded once");
        all.extend(read);
    }
}

fn run(medium: &dyn Medium, operations: &[Operation]) {
    let store = medium.open();
    medium.note_durable();
    let mut run = Run { medium, store, epochs: BTreeMap::new(), open: None, next: 7 };
    operations.iter().for_each(|operation| run.step(operation));
    run.step(&Operation::Crash(0));
}

fn operations(count: usize) -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(operation(), 1..count)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn the_simulated_engine_does_what_the_model_does(operations in operations(80)) {
        run(&SimulatedDisk::new(), &operations);
    }

    #[test]
    fn segments_do_what_the_model_does(operations in operations(60)) {
        run(&Directory::new(Engine::Segment), &operations);
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn sled_does_what_the_model_does(operations in operations(40)) {
        run(&Directory::new(Engine::Sled), &operations);
    }
}
