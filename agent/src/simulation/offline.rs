//! A long outage in little time: Kafka is away for hours while devices go on, and the log is too small for what they send.
//!
//! The stages are the agent's own, stepped by a clock that only they wait for. A day of 100 records a second takes minutes.
//!
//! # What is checked
//! * Each record is delivered once, in order, or told as dropped by one gap record: of each device as many as it says, within
//!   the range that it says. With [`Policy::Block`] none is, and devices wait.
//! * After each turn: disk <= live + 2 epochs. *Live* are the bytes of epochs of which Kafka has nothing, that is which begin at
//!   or behind the durable cursor. One epoch more has the cursor in it, or is the newest, which is never deleted; another may
//!   be a copy while one is written again. An epoch is `epoch_bytes` and the commit that fills it.
//! * After each turn: the limit holds but for one commit, and for gap records, which have a part of [`GAP_PARTS`] more.

mod ledger;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, fmt, num::NonZeroU16, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{
    stages::{Plan, Stages},
    world::Outside,
};
use crate::{
    config::{self, GAPS_STREAM, Policy},
    env::{Clock, Monotonic},
    intake::{self, Intake, Places},
    log::{GAP_PARTS, LogOptions, store::EpochStore},
    record::{ContentType, DeviceId, Record, StreamName},
    replicate::simulated::{self, SimulatedBrokers},
};
use ledger::{Ledger, Reading};

/// Time of a turn of all stages, and the window of a commit: as the configuration has it by default.
const TURN: Duration = Duration::from_millis(20);

/// Kafka is there so long before the outage, and devices go on so long behind it.
const LEAD: Duration = Duration::from_secs(30);

/// Most time that all may take to arrive when Kafka is there again, beside the time that it was away.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// Of the stream.
const PARTITIONS: NonZeroU16 = NonZeroU16::new(4).expect("not 0");

/// A run needs no luck: it has the same chance each time.
const SEED: u64 = 5;

/// An outage, in all that it depends on.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// What the stream gives up at the limit.
    pub policy: Policy,
    /// How long Kafka is away.
    pub length: Duration,
    /// Devices; each sends as often as the others.
    pub devices: u32,
    /// Records of all of them in a second.
    pub records_per_second: u32,
    /// As `log.limit_bytes`.
    pub limit_bytes: u64,
    /// As `log.epoch_bytes`, of the store too.
    pub epoch_bytes: u64,
}

/// What became of the records. All that were produced are delivered or told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Records of all devices.
    pub produced: u64,
    /// Records in Kafka.
    pub delivered: u64,
    /// Records that gap records tell of.
    pub told: u64,
    /// Gap records in Kafka.
    pub gap_records: u64,
    /// Most records that waited in devices for the agent to take them.
    pub held_back_max: u64,
    /// Most bytes of the log.
    pub disk_bytes_max: u64,
    /// Most bytes of it that were not live.
    pub not_live_bytes_max: u64,
    /// Time in which all arrived when Kafka was there again, in seconds of the simulation.
    pub drained_s: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { produced, delivered, told, gap_records, held_back_max, .. } = self;
        let Self { disk_bytes_max, not_live_bytes_max, drained_s, .. } = self;
        write!(
            f,
            "{produced} produced = {delivered} delivered + {told} told by {gap_records} gap records; at most {held_back_max} held \
             back, {disk_bytes_max} bytes on the disk, {not_live_bytes_max} of them not live; all there after {drained_s} s"
        )
    }
}

impl Outage {
    /// Runs it on an empty store.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn run(&self, store: Box<dyn EpochStore>) -> Result<Report, String> {
        Run::new(self, store)?.run()
    }

    fn plan(&self) -> Plan {
        Plan {
            log: LogOptions {
                limit_bytes: self.limit_bytes,
                policies: [(stream(), self.policy)].into(),
                ..LogOptions::default()
            },
            commit: config::Commit {
                window: TURN,
                batch_bytes: self.commit_bytes() / 8,
                intake_bytes: self.commit_bytes(),
            },
            feed_groups: 16,
            // What is on its way to Kafka is never dropped: a small part of the log.
            in_flight_bytes: usize::try_from(self.limit_bytes / 256)
                .map_or(1 << 20, |bytes| bytes.clamp(16 << 10, 1 << 20)),
            transaction_interval: Some(Duration::from_millis(500)),
            partitions: Arc::new(|_| PARTITIONS),
        }
    }

    /// Most bytes of a commit.
    fn commit_bytes(&self) -> usize {
        usize::try_from(self.epoch_bytes / 2).map_or(2 << 20, |bytes| bytes.min(2 << 20))
    }

    /// The record that is the `index`-th of all.
    fn record(&self, index: u64) -> (Reading, Record) {
        let devices = u64::from(self.devices);
        let number = u32::try_from(index / devices).expect("months of records");
        let reading = Reading { device: u32::try_from(index % devices).expect("below"), number };
        // A position that does not compress to nothing.
        let chance = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (latitude, longitude) = (chance >> 44, chance >> 24 & 0xf_ffff);
        let value = format!(
            r#"{{"device":"vehicle-{:04}","seq":{number},"lat":60.{latitude:07},"lon":24.{longitude:07},"speed_mps":{},"door_open":false}}"#,
            reading.device,
            chance % 23,
        );
        let record = Record {
            stream: stream(),
            device: reading.device_id(),
            value: Bytes::from(value),
            content_type: ContentType::Json,
            event_time: None,
            received: crate::record::Received::default(),
            device_seq: None,
            headers: Vec::new(),
        };
        (reading, record)
    }
}

fn stream() -> StreamName {
    StreamName::new("vehicle-positions").expect("a name")
}

impl Reading {
    fn device_id(self) -> DeviceId {
        DeviceId::new(&format!("vehicle-{:04}", self.device)).expect("a name")
    }
}

struct Run<'a> {
    outage: &'a Outage,
    outside: Outside,
    brokers: SimulatedBrokers,
    stages: Stages,
    intake: Intake,
    /// Kafka is away from the first to the second; devices are silent from the third on.
    away: [Monotonic; 3],
    began: Monotonic,
    submitted: u64,
    /// What was submitted and has no acknowledgement.
    waiting: VecDeque<(Reading, oneshot::Receiver<Places>)>,
    ledger: Ledger,
    report: Report,
}

impl<'a> Run<'a> {
    fn new(outage: &'a Outage, store: Box<dyn EpochStore>) -> Result<Self, String> {
        let (cluster, brokers) = simulated::cluster(SEED);
        brokers.set_batch_limit(1000);
        let mut outside = Outside::new(cluster);
        let started = Stages::start(&mut outside, store, outage.plan(), ["devices"], SEED);
        let (stages, [(intake, _)]) = started.ok_or("the store does not open")?;
        let began = outside.clock.monotonic();
        let back = began + LEAD + outage.length;
        Ok(Self {
            outage,
            outside,
            brokers,
            stages,
            intake,
            away: [began + LEAD, back, back + LEAD],
            began,
            submitted: 0,
            waiting: VecDeque::new(),
            ledger: Ledger::new(PARTITIONS),
            report: Report::default(),
        })
    }

    fn run(mut self) -> Result<Report, String> {
        let [away, back, silent] = self.away;
        let give_up = silent + self.outage.length + DRAIN_MAX;
        loop {
            self.outside.clock.advance(TURN);
            let now = self.outside.clock.monotonic();
            self.brokers.set_away(away <= now && now < back);
            let held_back = self.load(now.min(silent));
            self.stages.commit(&self.outside);
            self.settle()?;
            self.stages.replicate(&mut self.outside);
            self.consume()?;
            self.check_bounds()?;
            let is_over = silent <= now && held_back == 0 && self.waiting.is_empty();
            if is_over && self.stages.is_caught_up() {
                self.report.drained_s = now.since(back).as_secs();
                break;
            }
            if give_up < now {
                return Err(format!("not all has arrived: {:?}, {held_back} held back", self.report));
            }
        }
        self.report.produced = self.submitted;
        self.ledger.finish(self.outage.policy, &mut self.report)?;
        Ok(self.report)
    }

    /// Devices send what they have by `until`, as far as there is room. Returns how many records wait in them.
    fn load(&mut self, until: Monotonic) -> u64 {
        let elapsed_us = until.as_micros() - self.began.as_micros();
        let produced = elapsed_us * u64::from(self.outage.records_per_second) / 1_000_000;
        while self.submitted < produced {
            let (reading, record) = self.outage.record(self.submitted);
            let records = vec![record];
            let Some(room) = self.intake.try_reserve(intake::size_bytes(&records)) else { break };
            let submitted = self.intake.submit_asking(room, records, Vec::new());
            let (_, places) = submitted.expect("the stages live as long as this");
            self.waiting.push_back((reading, places));
            self.submitted += 1;
        }
        let held_back = produced - self.submitted;
        self.report.held_back_max = self.report.held_back_max.max(held_back);
        held_back
    }

    /// Notes what was acknowledged.
    fn settle(&mut self) -> Result<(), String> {
        while let Some((reading, places)) = self.waiting.front_mut() {
            match places.try_recv() {
                Ok(places) => {
                    let partition = crate::partition::partition_of(&reading.device_id(), PARTITIONS);
                    self.ledger.acknowledged(*reading, partition, places[0])?;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Closed) => return Err(format!("{reading:?} has no answer")),
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// A consumer reads what is committed.
    fn consume(&mut self) -> Result<(), String> {
        let mut outcome = Ok(());
        let Self { brokers, ledger, report, .. } = self;
        brokers.consume(|partition, appended| {
            let taken = if appended.record.stream.as_str() == GAPS_STREAM {
                report.gap_records += 1;
                ledger.told(&appended.record)
            } else {
                report.delivered += 1;
                ledger.delivered(partition, &appended)
            };
            if outcome.is_ok() {
                outcome = taken;
            }
        });
        outcome
    }

    fn check_bounds(&mut self) -> Result<(), String> {
        let Outage { policy, limit_bytes, epoch_bytes, .. } = *self.outage;
        let commit_bytes = self.outage.commit_bytes() as u64;
        let (disk_bytes, not_live_bytes) = self.stages.disk_bytes();
        let gap_bytes = if policy == Policy::DropNewest { limit_bytes / GAP_PARTS } else { 0 };
        if disk_bytes > limit_bytes + gap_bytes + commit_bytes {
            return Err(format!("{disk_bytes} bytes on the disk, the limit is {limit_bytes}"));
        }
        if not_live_bytes > 2 * (epoch_bytes + commit_bytes) {
            return Err(format!("{not_live_bytes} of {disk_bytes} bytes are not live: more than two epochs"));
        }
        let report = &mut self.report;
        report.disk_bytes_max = report.disk_bytes_max.max(disk_bytes);
        report.not_live_bytes_max = report.not_live_bytes_max.max(not_live_bytes);
        Ok(())
    }
}
