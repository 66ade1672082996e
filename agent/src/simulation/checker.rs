//! What the promises say of what Kafka holds in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    config::GAPS_STREAM,
    record::{PartitionId, Record, header},
    replicate::simulated::{Appended, NOT_IN_LOG},
};

/// A device, with its boot where it has one.
type Who = (String, u32);

/// What devices and brokers know.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Numbers of what was acknowledged.
    acknowledged: BTreeMap<Who, BTreeSet<u32>>,
    /// Numbers of what a device dropped for want of room.
    dropped: BTreeMap<Who, BTreeSet<u32>>,
    /// Numbers of what went with a restart of a device.
    forgotten: BTreeMap<Who, BTreeSet<u32>>,
}

/// What a run had to do with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Readings and messages that were acknowledged.
    pub acknowledged: usize,
    /// Records that a consumer sees.
    pub delivered: usize,
    /// Readings told as lost by their device.
    pub told: usize,
    /// Records that Kafka holds more than once, and a consumer skips by their offsets.
    pub repeated: usize,
    /// Records in Kafka whose time of receipt was corrected.
    pub corrected: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, delivered, told, repeated, corrected } = self;
        write!(
            f,
            "{acknowledged} acknowledged, {delivered} delivered, {told} told, {repeated} repeated, {corrected} corrected"
        )
    }
}

impl Ledger {
    /// A device has an acknowledgement.
    pub(super) fn acknowledged_reading(&mut self, uid: u64, boot: u32, seq: u32) {
        self.acknowledged.entry((format!("{uid:016x}"), boot)).or_default().insert(seq);
    }

    /// A device has dropped a reading.
    pub(super) fn dropped(&mut self, uid: u64, boot: u32, seq: u32) {
        self.dropped.entry((format!("{uid:016x}"), boot)).or_default().insert(seq);
    }

    /// A device has restarted, and has a reading no more.
    pub(super) fn forgotten(&mut self, uid: u64, boot: u32, seq: u32) {
        self.forgotten.entry((format!("{uid:016x}"), boot)).or_default().insert(seq);
    }

    /// The broker has given a message away.
    pub(super) fn acknowledged_message(&mut self, vehicle: u32, number: u32) {
        self.acknowledged.entry((vehicle.to_string(), 0)).or_default().insert(number);
    }

    /// Holds what the partitions of Kafka have against what is known.
    ///
    /// # Errors
    /// A promise that is broken.
    pub(super) fn check(
        &self,
        partitions: BTreeMap<(String, PartitionId), Vec<Appended>>,
        may_repeat: bool,
    ) -> Result<Counts, String> {
        let mut counts = Counts::default();
        let mut delivered: BTreeMap<Who, Vec<u32>> = BTreeMap::new();
        let mut told: BTreeMap<Who, Vec<(u32, u32)>> = BTreeMap::new();
        for ((topic, partition), records) in partitions {
            let mut last = NOT_IN_LOG;
            for Appended { offset, record, .. } in records {
                if offset != NOT_IN_LOG {
                    if offset <= last {
                        counts.repeated += 1;
                        continue;
                    }
                    last = offset;
                }
                if record.stream.as_str() == GAPS_STREAM {
                    let (who, run) = gap(&record)?;
                    told.entry(who).or_default().push(run);
                } else {
                    let (who, number) = reading(&record)
                        .ok_or_else(|| format!("{topic}/{}: unknown record {record:?}", partition.0))?;
                    delivered.entry(who).or_default().push(number);
                }
            }
        }
        if counts.repeated > 0 && !may_repeat {
            return Err(format!("{} records are in Kafka twice", counts.repeated));
        }
        for (who, numbers) in &delivered {
            if let Some(pair) = numbers.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Err(format!("{who:?}: {} comes after {}", pair[1], pair[0]));
            }
            counts.delivered += numbers.len();
        }
        for (who, numbers) in &self.acknowledged {
            let there: BTreeSet<u32> = delivered.get(who).into_iter().flatten().copied().collect();
            let runs = told.get(who).map_or(&[][..], Vec::as_slice);
            let is_told = |number: u32| runs.iter().any(|(first, last)| (*first..=*last).contains(&number));
            for number in numbers {
                match (there.contains(number), is_told(*number)) {
                    (true, false) => {}
                    (true, true) => return Err(format!("{who:?}: {number} is delivered and told as lost")),
                    // A place that is acknowledged, of a reading that its device has dropped before.
                    (false, true) if self.has_dropped(who, *number) => {}
                    (false, _) => return Err(format!("{who:?}: {number} was acknowledged and is lost")),
                }
            }
            counts.acknowledged += numbers.len();
        }
        for (who, runs) in &told {
            let there: BTreeSet<u32> = delivered.get(who).into_iter().flatten().copied().collect();
            let mut end = 0;
            for (first, last) in runs {
                if *first < end {
                    return Err(format!("{who:?}: {first} is told twice"));
                }
                end = last + 1;
                for number in *first..=*last {
                    if there.contains(&number) {
                        return Err(format!("{who:?}: {number} is delivered and told as lost"));
                    }
                    let forgotten = self.forgotten.get(who).is_some_and(|numbers| numbers.contains(&number));
                    if !forgotten && !self.has_dropped(who, number) {
                        return Err(format!("{who:?}: {number} is told as lost and is not"));
                    }
                    counts.told += 1;
                }
            }
        }
        self.check_holes(&delivered, &told)?;
        Ok(counts)
    }

    fn has_dropped(&self, who: &Who, number: u32) -> bool {
        self.dropped.get(who).is_some_and(|numbers| numbers.contains(&number))
    }

    /// Between the first and the last that is known of a boot, nothing is missing that is not told.
    fn check_holes(
        &self,
        delivered: &BTreeMap<Who, Vec<u32>>,
        told: &BTreeMap<Who, Vec<(u32, u32)>>,
    ) -> Result<(), String> {
        for (who, numbers) in &self.dropped {
            let there = delivered.get(who).map_or(&[][..], Vec::as_slice);
            let runs = told.get(who).map_or(&[][..], Vec::as_slice);
            let (Some(first), Some(last)) = (there.first(), there.last()) else { continue };
            for number in numbers.range(first..last) {
                let is_told = runs.iter().any(|(first, last)| (*first..=*last).contains(number));
                if !is_told && there.binary_search(number).is_err() {
                    return Err(format!("{who:?}: {number} was dropped and nobody is told"));
                }
            }
        }
        Ok(())
    }
}

/// Whose reading it is, and its number.
fn reading(record: &Record) -> Option<(Who, u32)> {
    let number = std::str::from_utf8(&record.value).ok()?.parse().ok()?;
    let boot = match record.headers.iter().find(|found| &*found.name == header::BOOT) {
        Some(boot) => std::str::from_utf8(&boot.value).ok()?.parse().ok()?,
        None => 0,
    };
    Some(((record.device.as_str().to_owned(), boot), number))
}

/// Whose readings are missing, and the first and last number.
fn gap(record: &Record) -> Result<(Who, (u32, u32)), String> {
    let unexpected = || format!("unexpected gap {}", String::from_utf8_lossy(&record.value));
    let gap: serde_json::Value = serde_json::from_slice(&record.value).map_err(|_| unexpected())?;
    if gap["reason"] != "device_lost" {
        return Err(unexpected());
    }
    let number = |name: &str| gap[name].as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(unexpected);
    let device = gap["device"].as_str().ok_or_else(unexpected)?.to_owned();
    Ok(((device, number("boot")?), (number("first_seq")?, number("last_seq")?)))
}
