//! The campaign: one kind of fault again and again under load, then Kafka is held against what was acknowledged.
//!
//! Everything is real: agent, Kafka, Mosquitto, lines and disks. The seed decides moments and choices, not what the machine does
//! with them: a run cannot be repeated exactly.

mod faults;
mod site;

use rand::{SeedableRng as _, rngs::SmallRng};
use serde_json::{Value, json};

use crate::gaps::Told;
use crate::sim::Report;
use site::Site;

/// The kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// SIGKILL to the agent at any moment of its life, its start included
    Kill,
    /// The power of its disk is cut: ext4 loses all that was not synced; needs root
    Power,
    /// The power of its disk is cut in the middle of what is written, and of what was not flushed each write, or sector, stays or
    /// vanishes; every fourth time while the agent starts; needs root and FUSE
    VolatileCache,
    /// Another process fills the disk, and in half of the cycles the agent is killed meanwhile; needs root
    DiskFull,
    /// Nodes of Kafka are killed, one, two or all, or one is paused, or loses the disk with its records
    Kafka,
    /// The network between agent and Kafka, between devices and agent, or both, stalls in one direction or in both, or is slow;
    /// connections to Kafka break too
    Network,
    /// The broker in front of `source.mqtt` is stopped, in half of the cycles with the agent killed meanwhile
    Mosquitto,
    /// Rooms over a line that flips, drops and inserts bytes, and is unplugged
    Serial,
    /// The gateway's clock jumps by minutes, years and to 1970, in half of the cycles over a kill; needs libfaketime
    Clock,
    /// Bits flip in the files of an agent that was killed; what is lost by it must be told
    Corrupt,
    /// Kafka is away for a minute, and the agent is killed in the middle
    Outage,
}

impl What {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Power => "power",
            Self::VolatileCache => "volatile-cache",
            Self::DiskFull => "disk-full",
            Self::Kafka => "kafka",
            Self::Network => "network",
            Self::Mosquitto => "mosquitto",
            Self::Serial => "serial",
            Self::Clock => "clock",
            Self::Corrupt => "corrupt",
            Self::Outage => "outage",
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    what: What,
    cycles: u32,
    seed: u64,
    /// What the verifier found.
    pub report: Report,
    /// What gap records tell as missing.
    pub told: Told,
}

impl Outcome {
    /// Whether everything that was acknowledged is in Kafka, once and in order. Flipped bits may take some: then it is told as
    /// missing, to the record where the agent can know how many there were. They may also take what a source remembers: what a
    /// device repeats then is there twice.
    pub fn holds(&self) -> bool {
        let Self { report, told, .. } = self;
        let lost = report.count("lost");
        if self.what == What::Corrupt {
            let is_told = lost == told.records || (lost > told.records && told.uncounted > 0);
            return is_told && report.is_in_order();
        }
        lost == 0 && *told == Told::default() && report.is_once_in_order()
    }

    /// The verifier's totals and what was done, as one object.
    pub fn to_json(&self) -> Value {
        let mut object = json!({ "what": self.what.name(), "cycles": self.cycles, "seed": self.seed, "told": self.told.records, "told_uncounted": self.told.uncounted });
        for name in [
            "acknowledged",
            "delivered",
            "lost",
            "duplicated",
            "reordered",
            "unknown",
            "foreign_partition",
            "split_devices",
        ] {
            object[name] = self.report.count(name).into();
        }
        object
    }
}

/// Does `what` for so many cycles; `done` hears after each how many there were. `None`, with a note, where the machine lacks
/// what it takes.
///
/// # Panics
/// When something hangs: each step has [`PATIENCE`](crate::PATIENCE).
pub fn run(what: What, cycles: u32, seed: u64, mut done: impl FnMut(u32)) -> Option<Outcome> {
    let mut chance = SmallRng::seed_from_u64(seed);
    let mut site = Site::start(what)?;
    for cycle in 1..=cycles {
        faults::inject(what, &mut site, &mut chance);
        done(cycle);
    }
    let (report, told) = site.verify();
    Some(Outcome { what, cycles, seed, report, told })
}
