//! Retention: which epochs may go.

use std::{collections::BTreeMap, time::Duration};

use super::{EntrySeq, Log, LogError, store::EpochId};
use crate::env::Monotonic;

/// How many of the oldest epochs are wholly below `acknowledged`. Never the newest that holds anything durable, that is
/// one that begins before `end`: it has the state that the next start goes on from.
fn deletable(epochs: &[EpochId], acknowledged: EntrySeq, end: EntrySeq) -> usize {
    epochs.iter().skip(1).take_while(|next| next.0 <= acknowledged && next.0 < end).count()
}

/// What is kept for `wayside log replay` though Kafka has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Most bytes of acknowledged epochs; 0 keeps none.
    pub bytes: u64,
    /// Longest time since an epoch was found to be acknowledged, in this run of the agent.
    pub time: Option<Duration>,
}

/// Epochs that Kafka has and that are kept, by when that was seen.
pub(super) type Retained = BTreeMap<EpochId, Monotonic>;

impl Log {
    /// Deletes the epochs whose entries are all below `acknowledged`, the position behind the last entry that Kafka has
    /// acknowledged (the cursor), but for what [`Retention`] keeps. Returns how many.
    ///
    /// # Errors
    /// [`LogError`] when the store could not delete one; those before it are gone. The caller tries again later.
    pub fn trim(&mut self, acknowledged: EntrySeq, now: Monotonic) -> Result<usize, LogError> {
        let deletable = deletable(&self.epochs, acknowledged, self.end);
        for epoch in &self.epochs[..deletable] {
            self.retained.entry(*epoch).or_insert(now);
        }
        let Retention { bytes, time } = self.options.retention;
        let mut retained_bytes: u64 =
            self.retained.keys().map(|epoch| self.store.epoch_size_bytes(*epoch)).sum();
        let mut deleted = 0;
        while let Some((epoch, since)) = self.retained.first_key_value() {
            if retained_bytes <= bytes && time.is_none_or(|time| now.since(*since) <= time) {
                break;
            }
            retained_bytes = retained_bytes.saturating_sub(self.store.epoch_size_bytes(*epoch));
            self.delete_retained()?;
            deleted += 1;
        }
        Ok(deleted)
    }

    /// Deletes the oldest epoch that is kept though Kafka has it. False if there is none.
    ///
    /// # Errors
    /// [`LogError`] when the store could not.
    pub fn delete_retained(&mut self) -> Result<bool, LogError> {
        let Some(&epoch) = self.retained.keys().next() else { return Ok(false) };
        self.store.delete(epoch)?;
        self.retained.remove(&epoch);
        self.epochs.retain(|present| *present != epoch);
        self.update_gauges();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_go_when_the_next_one_starts_at_or_below_the_cursor_and_the_newest_never() {
        let epochs = [0, 10, 20].map(|id| EpochId(EntrySeq(id)));
        let check = |acknowledged, expected| {
            let count = deletable(&epochs, EntrySeq(acknowledged), EntrySeq(25));
            assert_eq!(count, expected, "acknowledged {acknowledged}");
        };
        check(0, 0);
        check(9, 0);
        check(10, 1);
        check(19, 1);
        check(20, 2);
        check(1000, 2);
        assert_eq!(deletable(&[], EntrySeq(5), EntrySeq(25)), 0);
        assert_eq!(deletable(&epochs, EntrySeq(20), EntrySeq(20)), 1, "the last one holds nothing durable");
    }
}
