//! The deterministic simulation: what decides in the agent, on one thread, in a world that a seed makes.
//!
//! # What is real and what is simulated
//! * Real: the gateway's end of the serial link, the session at a broker, the listener's connections and sessions, what each of them
//!   remembers, decoders, the intake, group commit, the owner of the log, the log, the replicator; and the devices' end of the link.
//! * Simulated behind traits: clock, entropy, disk ([`SimulatedDisk`](crate::log::store::simulated::SimulatedDisk)), Kafka
//!   ([`SimulatedBrokers`](crate::replicate::simulated::SimulatedBrokers)).
//! * Stepped instead of threaded: `stages` stands for the pipeline's threads and tasks; `simulated.rs` beside the sources for
//!   their sockets.
//!
//! # Weather
//! [`Faults`] says how often what happens. A crash comes behind any stage's turn or in any call of the store; it is a kill
//! or a power cut, of which a part of what was not synced may survive. In the end the weather clears, and everything must
//! arrive within a bounded time.
//!
//! # What is checked
//! `checker`: nothing acknowledged is lost; each device's readings come in order and once; what a device dropped is told, and
//! nothing is both told and delivered. `clock`: a time of receipt is right, or says that it may not be; what was received before the
//! clock was set and sent later is corrected. Kafka may hold a record twice after a crash or a new producer alone, and not at all if the
//! run is to be exactly once.

mod agent;
mod broker;
mod checker;
mod clients;
mod clock;
mod line;
pub mod offline;
mod stages;
#[cfg(test)]
mod tests;
mod world;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

pub use checker::Counts;
use world::World;

/// How often what happens, in so many of a thousand turns; what hits frames, of a thousand frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The agent crashes behind a stage.
    pub crash: u16,
    /// It crashes in a call of the store.
    pub store_call: u16,
    /// A call of the store fails.
    pub disk: u16,
    /// The disk gets another size.
    pub disk_full: u16,
    /// Kafka is away or back, holds reports or lets go of them, fails, has a leader or none, fences the agent, forgets its group.
    pub kafka: u16,
    /// The wall clock jumps.
    pub clock: u16,
    /// The gateway loses its power and starts in 1970, as it did the first time; a time server answers some turns later.
    pub boot: u16,
    /// The connection to the broker breaks, or that of a client of the listener.
    pub connection: u16,
    /// The broker loses the session.
    pub session: u16,
    /// A device restarts.
    pub restart_of_device: u16,
    /// A frame on the line is damaged.
    pub noise: u16,
    /// A call of the store takes seconds.
    pub slow_disk: u16,
}

impl Faults {
    /// What `seed` says: each fault is left out in every second run, so that others are seen alone.
    fn of(rng: &mut SmallRng) -> Self {
        let mut up_to = |max: u16| if rng.random_bool(0.5) { rng.random_range(1..=max) } else { 0 };
        Self {
            crash: up_to(20),
            store_call: up_to(40),
            disk: up_to(60),
            disk_full: up_to(60),
            kafka: up_to(150),
            clock: up_to(20),
            boot: 0,
            connection: up_to(40),
            session: up_to(5),
            restart_of_device: up_to(10),
            noise: up_to(100),
            slow_disk: 0,
        }
    }

    /// Each of them.
    fn each(&mut self) -> [&mut u16; 12] {
        let Self { crash, store_call, disk, disk_full, kafka, clock, boot, connection, session, .. } = self;
        let Self { restart_of_device, noise, slow_disk, .. } = self;
        [
            crash,
            store_call,
            disk,
            disk_full,
            kafka,
            clock,
            boot,
            connection,
            session,
            restart_of_device,
            noise,
            slow_disk,
        ]
    }
}

/// A run, in all that it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Where all chance comes from.
    pub seed: u64,
    /// Turns before the weather clears.
    pub steps: u32,
    /// The weather.
    pub faults: Faults,
    /// Records go to Kafka in transactions.
    pub transactions: bool,
    /// Kafka must hold nothing twice, whatever happened.
    pub exactly_once: bool,
}

impl Scenario {
    /// The scenario of `seed`.
    pub fn of(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (steps, mut faults) = (rng.random_range(50..400), Faults::of(&mut rng));
        let transactions = rng.random_bool(0.75);
        // Last: a seed makes of the rest what it did before there was this.
        faults.boot = if rng.random_bool(0.5) { rng.random_range(1..=10) } else { 0 };
        faults.slow_disk = if rng.random_bool(0.5) { rng.random_range(1..=20) } else { 0 };
        Self { seed, steps, faults, transactions, exactly_once: transactions }
    }

    /// Runs it.
    ///
    /// # Errors
    /// The promise that was broken, or the panic.
    pub fn run(&self) -> Result<Summary, String> {
        let world = || World::new(self).run(self.steps, self.exactly_once);
        catch_unwind(AssertUnwindSafe(world)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("panic: {}", text.unwrap_or("without a text")))
        })
    }

    /// A smaller one that fails too, of one that fails: fewer kinds of faults, fewer turns.
    #[must_use]
    pub fn minimised(self) -> Self {
        let mut smallest = self;
        let mut try_one = |candidate: Self| {
            let fails = candidate.run().is_err();
            if fails {
                smallest = candidate;
            }
            fails
        };
        let mut candidate = self;
        for index in 0..candidate.faults.each().len() {
            let before = candidate;
            *candidate.faults.each()[index] = 0;
            if candidate != before && !try_one(candidate) {
                candidate = before;
            }
        }
        // The fewest turns that fail: failures do not come and go with the number of turns in order, so that this is a search
        // from below in steps of a sixteenth.
        let stride = (candidate.steps / 16).max(1);
        let fewer = (0..candidate.steps).step_by(stride as usize);
        for steps in fewer {
            if try_one(Self { steps, ..candidate }) {
                break;
            }
        }
        smallest
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, steps, faults, transactions, exactly_once } = self;
        write!(f, "seed {seed}: {steps} turns, {faults:?}")?;
        if *transactions {
            f.write_str(", transactions")?;
        }
        if *exactly_once { f.write_str(", exactly once") } else { Ok(()) }
    }
}

/// What a run that kept all promises was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Crashes of the agent.
    pub crashes: u32,
    /// Producers that were started.
    pub restarts: u64,
    /// Time that passed in the world, in us.
    pub now_us: u64,
    /// Records.
    pub counts: Counts,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { crashes, restarts, now_us, counts } = self;
        write!(f, "{crashes} crashes, {restarts} producers, {now_us} us: {counts}")
    }
}
