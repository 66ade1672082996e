//! Tries to break the promise: faults again and again under load, with the real servers, then everything that was acknowledged
//! must be in Kafka, once and in order.
//!
//! ```text
//! cargo build --release --workspace --bins && target/release/campaign kill --cycles 1000 [--json]
//! ```
//!
//! Kafka's jars come from `tests/kafka/kafka fetch`. What a fault needs is in `--help`; Linux as root has it all.

use std::process::ExitCode;

use clap::Parser as _;
use indicatif::{ProgressBar, ProgressStyle};
use wayside_tests::campaign::{What, run};

/// Faults under load, again and again; then Kafka is held against all that was acknowledged.
#[derive(clap::Parser)]
struct Args {
    /// The kind of fault
    what: What,
    /// How many times
    #[arg(long, default_value_t = 20)]
    cycles: u32,
    /// For moments and choices; what the machine does with them is its own
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Args { what, cycles, seed, json } = Args::parse();
    eprintln!("{} cycles of {}, seed {seed}", cycles, what.name());
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} (left {eta})");
    let bar = ProgressBar::new(cycles.into()).with_style(style.expect("a template that is right"));
    let outcome = run(what, cycles, seed, |cycle| bar.set_position(cycle.into()));
    bar.finish_and_clear();
    // It was said what is missing.
    let Some(outcome) = outcome else { return ExitCode::from(2) };
    let totals = outcome.to_json();
    if json {
        println!("{totals}");
    } else {
        for (name, value) in totals.as_object().into_iter().flatten() {
            println!("{name:>18} {value}");
        }
    }
    if outcome.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
