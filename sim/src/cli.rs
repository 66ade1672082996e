//! The command line of `wayside-sim`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{building, demo, replay, traffic, verify};

/// Loads a Wayside gateway with believable buildings and traffic, and proves what arrived in Kafka.
#[derive(Debug, Parser)]
#[command(name = "wayside-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One variant a command; the module has the arguments and the work.
#[derive(Debug, Subcommand)]
enum Command {
    /// Rooms of a building: people come, meet, eat and leave; motion, counter and CO2 sensors report.
    Occupancy(building::Args),
    /// Vehicles on a road network with signals: positions as a GPS receiver sees them.
    Traffic(traffic::Args),
    /// Plays recordings of real devices, in real time or faster: vehicle positions over MQTT, a receiver's bytes over a
    /// serial line.
    Replay(replay::Args),
    /// Reads Kafka, holds it against the ledgers and says what was lost, duplicated, reordered and late.
    ///
    /// Exit code 0 when nothing acknowledged is lost and nothing is reordered (and, with --exactly-once, duplicated).
    Verify(verify::Args),
    /// The whole journey on this machine: rooms and vehicles send, Kafka goes away and comes back, the agent is killed and
    /// started again, and the verifier says what arrived. Needs no server and leaves nothing behind.
    ///
    /// Exit code 0 when nothing acknowledged was lost and nothing reordered.
    Demo(demo::Args),
    /// The agent itself, for the demo.
    #[command(hide = true)]
    Agent(demo::AgentArgs),
}

/// Parses `args` (with the program's name first), runs the command and returns the process's exit code: 0 for success,
/// 1 for a failed check or an error, 2 for wrong usage.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do when standard error is gone.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // The agent sets up its own log and runtime.
    let command = match cli.command {
        Command::Agent(args) => return demo::run_agent(args),
        command => command,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            // The demo's MQTT broker calls every client that was killed an error, and librdkafka every end of a
            // partition; the verifier reports what is one.
            tracing_subscriber::EnvFilter::try_from_env("WAYSIDE_SIM_LOG")
                .unwrap_or_else(|_| "warn,rumqttd=off,rdkafka=off".into()),
        )
        .init();
    run(command).unwrap_or_else(|error| {
        eprintln!("wayside-sim: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    // One thread: the load shares two cores with the system under test, and channels between threads would cost more than they win.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Occupancy(args) => Box::pin(building::run(args)).await,
            Command::Traffic(args) => Box::pin(traffic::run(args)).await,
            Command::Agent(_) => unreachable!("it runs without this runtime"),
            Command::Demo(args) => Box::pin(demo::run(args)).await,
            Command::Replay(args) => Box::pin(replay::run(args)).await,
            Command::Verify(args) => Box::pin(verify::run(args)).await,
        }
    });
    // A demo that was interrupted while it verified does not wait for the verifier.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_load_needs_one_transport() {
        let parse = |args: &str| Cli::try_parse_from(args.split(' '));
        assert!(parse("wayside-sim traffic --mqtt mqtt://host").is_ok());
        assert!(parse("wayside-sim occupancy --serial /tmp/tty --clock").is_err());
        assert!(parse("wayside-sim traffic").is_err());
        assert!(parse("wayside-sim traffic --mqtt mqtt://host --serial /tmp/tty").is_err());
    }
}
