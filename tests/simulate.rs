//! `wayside-tests simulate`: the deterministic simulation for as many seeds as wanted.
#![allow(clippy::disallowed_methods, reason = "it measures its own speed")]

use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use wayside::simulation::Scenario;

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
}

fn main() -> ExitCode {
    let Command::Simulate { seeds, first, verbose } = Arguments::parse().command;
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
