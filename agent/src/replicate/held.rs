//! What replication has begun with, told to the log: of that it must drop nothing.

use std::sync::{Arc, Mutex, PoisonError};

use crate::log::EntrySeq;

/// Shared by the thread that replicates and the one that owns the log. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Held for a few comparisons.
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Replication has begun with entries below.
    until: EntrySeq,
    /// The log may have changed entries below that replication has not begun with: they are read from it.
    changed_until: EntrySeq,
}

impl Held {
    /// Replication goes on at the cursor: what lies before is Kafka's.
    pub fn new(cursor: EntrySeq) -> Self {
        let held = Self::default();
        held.read(cursor);
        held
    }

    /// Whether replication may keep an entry that it got when it was committed. Then it has begun with it.
    pub fn take(&self, seq: EntrySeq) -> bool {
        self.with(|state| {
            let takes = seq >= state.changed_until;
            if takes {
                state.until = state.until.max(seq.next());
            }
            takes
        })
    }

    /// Replication has read everything before `next` from the log.
    pub fn read(&self, next: EntrySeq) {
        self.with(|state| state.until = state.until.max(next));
    }

    /// Whether the log may change its entries from `first` to before `end`. From then on replication reads them.
    pub fn release(&self, first: EntrySeq, end: EntrySeq) -> bool {
        self.with(|state| {
            let is_free = state.until <= first;
            if is_free {
                state.changed_until = state.changed_until.max(end);
            }
            is_free
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_changes_nothing_that_replication_has_begun_with_and_replication_keeps_nothing_changed() {
        let held = Held::new(EntrySeq(10));
        assert!(!held.release(EntrySeq(8), EntrySeq(20)), "a part of it is Kafka's");
        assert!(held.take(EntrySeq(14)));
        assert!(!held.release(EntrySeq(12), EntrySeq(20)));
        assert!(held.release(EntrySeq(15), EntrySeq(30)));
        assert!(!held.take(EntrySeq(29)), "it is not what it was");
        assert!(held.take(EntrySeq(30)));
        assert!(
            !held.release(EntrySeq(15), EntrySeq(30)),
            "30 is in memory, and so is all before it on its way"
        );
    }
}
