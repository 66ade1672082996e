//! What became of each record.

use std::{collections::BTreeMap, num::NonZeroU16};

use serde::Deserialize;

use super::Report;
use crate::{
    config::Policy,
    record::{Offset, PartitionId, Record},
    replicate::simulated::Appended,
};

/// A record, by its device and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) device: u32,
    pub(super) number: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Delivered,
    Told,
}

/// A gap that has a place in the log.
#[derive(Debug)]
struct Range {
    partition: usize,
    device: u32,
    first: usize,
    last: usize,
    count: u64,
}

/// The fields of [`crate::gap`] that are held against what was acknowledged.
#[derive(Deserialize)]
struct Gap {
    reason: String,
    count: u64,
    device: String,
    partition: Option<usize>,
    first_offset: Option<usize>,
    last_offset: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// By partition and offset.
    records: Vec<Vec<(Reading, Fate)>>,
    /// By partition the offset that may be delivered next.
    next: Vec<usize>,
    /// Of each device the records that have no offset, since they were dropped before.
    dropped: BTreeMap<u32, u64>,
    /// The same as it was told.
    told_dropped: BTreeMap<u32, u64>,
    ranges: Vec<Range>,
    reasons: Vec<String>,
}

impl Ledger {
    pub(super) fn new(partitions: NonZeroU16) -> Self {
        let partitions = usize::from(partitions.get());
        Self {
            records: vec![Vec::new(); partitions],
            next: vec![0; partitions],
            dropped: BTreeMap::new(),
            told_dropped: BTreeMap::new(),
            ranges: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// A device has an acknowledgement: its record is at `place`, or was dropped as it came.
    pub(super) fn acknowledged(
        &mut self,
        reading: Reading,
        partition: PartitionId,
        place: Option<Offset>,
    ) -> Result<(), String> {
        let Some(offset) = place else {
            *self.dropped.entry(reading.device).or_default() += 1;
            return Ok(());
        };
        let records = &mut self.records[index(partition)];
        if usize::try_from(offset.0) != Ok(records.len()) {
            return Err(format!("{reading:?} is at {offset:?}, behind {} records", records.len()));
        }
        records.push((reading, Fate::Acknowledged));
        Ok(())
    }

    /// A consumer has read a record.
    pub(super) fn delivered(&mut self, partition: PartitionId, appended: &Appended) -> Result<(), String> {
        let partition = index(partition);
        let offset = usize::try_from(appended.offset.0).map_err(|_| "a record that is not in the log")?;
        let (reading, fate) =
            self.records[partition].get_mut(offset).ok_or("a record that was never acknowledged")?;
        if offset < self.next[partition] {
            return Err(format!("{reading:?} comes twice, or behind one that came later"));
        }
        self.next[partition] = offset + 1;
        if appended.record.device != reading.device_id() {
            return Err(format!("{reading:?} is of {}", appended.record.device));
        }
        *fate = Fate::Delivered;
        Ok(())
    }

    /// A consumer has read a gap record.
    pub(super) fn told(&mut self, record: &Record) -> Result<(), String> {
        let unexpected = || format!("unexpected gap {}", String::from_utf8_lossy(&record.value));
        let gap: Gap = serde_json::from_slice(&record.value).map_err(|_| unexpected())?;
        let number = gap.device.rsplit('-').next().and_then(|number| number.parse().ok());
        let device = number.ok_or_else(unexpected)?;
        match (gap.partition, gap.first_offset, gap.last_offset) {
            (Some(partition), Some(first), Some(last)) => {
                self.ranges.push(Range { partition, device, first, last, count: gap.count });
            }
            (None, None, None) => *self.told_dropped.entry(device).or_default() += gap.count,
            _ => return Err(unexpected()),
        }
        if !self.reasons.contains(&gap.reason) {
            self.reasons.push(gap.reason);
        }
        Ok(())
    }

    /// All has arrived: holds it against what was acknowledged.
    pub(super) fn finish(mut self, policy: Policy, report: &mut Report) -> Result<(), String> {
        let reason = policy.as_str().replace('-', "_");
        if let Some(other) = self.reasons.iter().find(|found| **found != reason) {
            return Err(format!("told as {other}, the policy is {policy:?}"));
        }
        for range in &self.ranges {
            let records =
                self.records.get_mut(range.partition).and_then(|r| r.get_mut(range.first..=range.last));
            let records = records.ok_or_else(|| format!("{range:?} is not in the log"))?;
            let mut count = 0;
            for (reading, fate) in records.iter_mut().filter(|(reading, _)| reading.device == range.device) {
                match fate {
                    Fate::Acknowledged => *fate = Fate::Told,
                    Fate::Delivered => continue,
                    Fate::Told => return Err(format!("{reading:?} is told twice")),
                }
                count += 1;
            }
            if count != range.count {
                return Err(format!("{range:?} tells of {}, and {count} are missing", range.count));
            }
            report.told += count;
        }
        if self.dropped != self.told_dropped {
            return Err("of some device more or fewer were dropped as they came than was told".into());
        }
        report.told += self.dropped.values().sum::<u64>();
        let mut records = self.records.iter().flatten();
        if let Some((reading, _)) = records.find(|(_, fate)| *fate == Fate::Acknowledged) {
            return Err(format!("{reading:?} is lost and nobody is told"));
        }
        self.check_latest(policy)?;
        if report.delivered + report.told != report.produced {
            return Err(format!("not all is accounted for: {report:?}"));
        }
        if policy == Policy::Block && report.told > 0 {
            return Err(format!("{} records were dropped", report.told));
        }
        Ok(())
    }

    /// Of each device the last record is there.
    fn check_latest(&self, policy: Policy) -> Result<(), String> {
        let mut latest: BTreeMap<u32, (Reading, Fate)> = BTreeMap::new();
        for (reading, fate) in self.records.iter().flatten() {
            latest.insert(reading.device, (*reading, *fate));
        }
        match latest.values().find(|(_, fate)| *fate == Fate::Told) {
            Some((reading, _)) if policy == Policy::LatestPerDevice => {
                Err(format!("{reading:?} is the last of its device and was dropped"))
            }
            _ => Ok(()),
        }
    }
}

fn index(partition: PartitionId) -> usize {
    usize::try_from(partition.0).expect("not negative")
}
