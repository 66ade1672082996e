//! Retention: which epochs may go.

use super::{EntrySeq, Log, LogError, store::EpochId};

/// How many of the oldest epochs are wholly below `acknowledged`. Never the newest that holds anything durable, that is
/// one that begins before `end`: it has the state that the next start goes on from. A bound that keeps acknowledged
/// epochs for replay belongs here.
fn deletable(epochs: &[EpochId], acknowledged: EntrySeq, end: EntrySeq) -> usize {
    epochs.iter().skip(1).take_while(|next| next.0 <= acknowledged && next.0 < end).count()
}

impl Log {
    /// Deletes the epochs whose entries are all below `acknowledged`, the position behind the last entry that Kafka has
    /// acknowledged (the cursor). Returns how many.
    ///
    /// # Errors
    /// [`LogError`] when the store could not delete one; those before it are gone. The caller tries again later.
    pub fn trim(&mut self, acknowledged: EntrySeq) -> Result<usize, LogError> {
        let count = deletable(&self.epochs, acknowledged, self.end);
        for deleted in 0..count {
            if let Err(error) = self.store.delete(self.epochs[deleted]) {
                self.epochs.drain(..deleted);
                self.update_gauges();
                return Err(error.into());
            }
        }
        if count > 0 {
            self.epochs.drain(..count);
            self.update_gauges();
        }
        Ok(count)
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
