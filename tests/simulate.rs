//! `wayside-tests`: the deterministic simulation for as many seeds as wanted, and a long outage in little time.
#![allow(clippy::disallowed_methods, reason = "it measures its own speed")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;
use wayside::config::{Engine, Policy};
use wayside::log::store::EpochStore;
use wayside::log::store::disk::{DiskOptions, DiskStore};
use wayside::log::store::simulated::SimulatedDisk;
use wayside::simulation::Scenario;
use wayside::simulation::offline::{Outage, Report};

#[derive(Parser)]
#[command(about = "Tests of Wayside that run as long as wanted")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent in simulated worlds and hold the promises against what arrived. Ends with the first seed that breaks one
    Simulate {
        /// How many seeds at most
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first seed; the others follow it. Without one it is taken from the clock
        #[arg(long)]
        first: Option<u64>,
        /// Name each seed with its faults before it runs
        #[arg(long)]
        verbose: bool,
    },
    /// Take Kafka away for hours of simulated time, with a log too small for what devices send; then hold what arrives and what
    /// gap records tell against what was sent, record by record, and the disk against its bounds
    Offline(Offline),
}

#[derive(clap::Args)]
struct Offline {
    /// How long Kafka is away
    #[arg(long, default_value_t = 24.0)]
    hours: f64,
    /// What the log gives up at its limit; without one each in turn
    #[arg(long, value_enum)]
    policy: Option<NamedPolicy>,
    /// What keeps the log
    #[arg(long, value_enum, default_value_t = Store::Simulated)]
    store: Store,
    /// Where that is, unless simulated: a new directory in this one, which is removed afterwards
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Devices that send
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    devices: u32,
    /// Records a second, of all devices
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// As `log.limit_bytes`
    #[arg(long, default_value_t = 256 << 20)]
    limit_bytes: u64,
    /// As `log.epoch_bytes`
    #[arg(long, default_value_t = 4 << 20)]
    epoch_bytes: u64,
    /// Print one JSON object for each policy
    #[arg(long)]
    json: bool,
}

/// As `policy` in the configuration.
#[derive(Clone, Copy, ValueEnum)]
enum NamedPolicy {
    Block,
    DropOldest,
    DropNewest,
    LatestPerDevice,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Store {
    /// Entries in memory: their own bytes and no others
    Simulated,
    /// As `log.engine`
    Sled,
    /// As `log.engine`
    Segment,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Simulate { seeds, first, verbose } => simulate(seeds, first, verbose),
        Command::Offline(offline) => offline.run(),
    }
}

fn simulate(seeds: u64, first: Option<u64>, verbose: bool) -> ExitCode {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = first.unwrap_or(since_1970.as_secs());
    println!("up to {seeds} seeds from {first} on");
    let started = Instant::now();
    let (mut acknowledged, mut crashes) = (0, 0);
    for count in 0..seeds {
        let scenario = Scenario::of(first.wrapping_add(count));
        if verbose {
            println!("{scenario}");
        }
        match scenario.run() {
            Ok(summary) => {
                acknowledged += summary.counts.acknowledged;
                crashes += u64::from(summary.crashes);
                if verbose {
                    println!("  {summary}");
                }
            }
            Err(broken) => {
                println!("{scenario}\n  FAILED: {broken}\n  as does {}", scenario.minimised());
                println!("failed after {} seeds", count + 1);
                return ExitCode::FAILURE;
            }
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "a speed, for people")]
    let per_second = seeds as f64 / started.elapsed().as_secs_f64();
    println!("{seeds} seeds: {acknowledged} acknowledged, {crashes} crashes, {per_second:.0} seeds/s");
    ExitCode::SUCCESS
}

impl Offline {
    fn run(&self) -> ExitCode {
        let all = [Policy::Block, Policy::DropOldest, Policy::DropNewest, Policy::LatestPerDevice];
        let policies = self.policy.map_or(all.to_vec(), |policy| vec![policy.into()]);
        let mut failed = false;
        for policy in policies {
            let started = Instant::now();
            let outcome = self.store().and_then(|(store, _dir)| self.outage(policy).run(store));
            failed |= outcome.is_err();
            self.print(policy, &outcome, started.elapsed());
        }
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn outage(&self, policy: Policy) -> Outage {
        let Self { devices, rate, limit_bytes, epoch_bytes, .. } = *self;
        let length = Duration::from_secs_f64(self.hours * 3600.0);
        Outage { policy, length, devices, records_per_second: rate, limit_bytes, epoch_bytes }
    }

    /// An empty store, and what holds its directory.
    fn store(&self) -> Result<(Box<dyn EpochStore>, Option<tempfile::TempDir>), String> {
        let engine = match self.store {
            Store::Simulated => {
                return Ok((Box::new(SimulatedDisk::new().open().with_epoch_bytes(self.epoch_bytes)), None));
            }
            Store::Sled => Engine::Sled,
            Store::Segment => Engine::Segment,
        };
        let dir =
            tempfile::tempdir_in(&self.dir).map_err(|error| format!("{}: {error}", self.dir.display()))?;
        let open = |dir: &Path| {
            let options = DiskOptions { engine, ..DiskOptions::for_epoch_bytes(self.epoch_bytes) };
            DiskStore::open(dir, options).map_err(|error| error.to_string())
        };
        Ok((Box::new(open(dir.path())?), Some(dir)))
    }

    fn print(&self, policy: Policy, outcome: &Result<Report, String>, took: Duration) {
        let (name, seconds) = (policy.as_str(), took.as_secs());
        match outcome {
            _ if self.json => println!(
                "{}",
                json!({ "policy": name, "seconds": seconds, "report": outcome.as_ref().ok(), "failed": outcome.as_ref().err() })
            ),
            Ok(report) => println!("{name} ({seconds} s): {report}"),
            Err(broken) => println!("{name} ({seconds} s): FAILED: {broken}"),
        }
    }
}

impl From<NamedPolicy> for Policy {
    fn from(named: NamedPolicy) -> Self {
        match named {
            NamedPolicy::Block => Self::Block,
            NamedPolicy::DropOldest => Self::DropOldest,
            NamedPolicy::DropNewest => Self::DropNewest,
            NamedPolicy::LatestPerDevice => Self::LatestPerDevice,
        }
    }
}
