//! What was just committed and was not taken in the order of the log yet: the newest groups, bounded in bytes.

use std::{collections::VecDeque, sync::Arc};

use crate::log::{BatchGroup, EntrySeq};

/// A group and the bytes of its records.
pub(super) type SizedGroup = (Arc<BatchGroup>, usize);

/// Groups in ascending order; some may be missing between them.
#[derive(Debug)]
pub(super) struct Recent {
    groups: VecDeque<SizedGroup>,
    size_bytes: usize,
    limit_bytes: usize,
    /// How many of the first ones [`look`](Self::look) has shown.
    seen: usize,
}

impl Recent {
    /// Holds up to `limit_bytes` of records, or one group.
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { groups: VecDeque::new(), size_bytes: 0, limit_bytes, seen: 0 }
    }

    /// Keeps a group that is newer than all here. The caller then takes [`excess`](Self::excess).
    pub(super) fn push(&mut self, group: Arc<BatchGroup>, size_bytes: usize) {
        self.size_bytes += size_bytes;
        self.groups.push_back((group, size_bytes));
    }

    /// The oldest group, while there are too many: the newest are those that may overtake a backlog.
    pub(super) fn excess(&mut self) -> Option<Arc<BatchGroup>> {
        let excess = self.size_bytes > self.limit_bytes && self.groups.len() > 1;
        excess.then(|| self.pop()).flatten().map(|(group, _)| group)
    }

    /// The first group if it is not behind `seq`.
    pub(super) fn pop_through(&mut self, seq: EntrySeq) -> Option<SizedGroup> {
        if self.first()? <= seq { self.pop() } else { None }
    }

    /// The first group that was not shown yet. It stays.
    pub(super) fn look(&mut self) -> Option<SizedGroup> {
        let shown = self.groups.get(self.seen).cloned();
        self.seen += usize::from(shown.is_some());
        shown
    }

    /// Shows all groups again.
    pub(super) fn look_again(&mut self) {
        self.seen = 0;
    }

    /// Number of the first group.
    pub(super) fn first(&self) -> Option<EntrySeq> {
        self.groups.front().map(|(group, _)| group.seq)
    }

    /// Number of the last group.
    pub(super) fn last(&self) -> Option<EntrySeq> {
        self.groups.back().map(|(group, _)| group.seq)
    }

    fn pop(&mut self) -> Option<SizedGroup> {
        let (group, size_bytes) = self.groups.pop_front()?;
        self.size_bytes -= size_bytes;
        self.seen = self.seen.saturating_sub(1);
        Some((group, size_bytes))
    }
}
