//! The command line of `wayside`.

mod inspect;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use rustix::fs::Mode;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{error, info};

use crate::{
    config::{Config, check},
    parts::Parts,
    pipeline, telemetry,
};

/// Ingest agent for gateways: frames from serial lines and MQTT, durable before they are acknowledged, replicated to
/// Apache Kafka whatever the uplink does.
#[derive(Debug, Parser)]
#[command(name = "wayside", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent until SIGTERM or SIGINT, then commits, flushes to Kafka within replicate.shutdown_flush_ms, and
    /// exits 0.
    Run {
        /// Configuration file.
        #[arg(short, long, default_value = "/etc/wayside/wayside.toml")]
        config: PathBuf,
    },
    /// Checks a configuration file and says everything that is wrong with it. Exits 2 if something is.
    Check {
        /// Configuration file.
        #[arg(short, long, default_value = "/etc/wayside/wayside.toml")]
        config: PathBuf,
    },
    /// Looks into the local log.
    Log {
        #[command(subcommand)]
        command: LogCommand,
    },
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Shows epochs, batches, offsets and the cursor. Reads copies: safe while the agent runs.
    Inspect {
        /// Data directory (log.dir).
        dir: PathBuf,
        /// One JSON object instead of the table.
        #[arg(long)]
        json: bool,
    },
}

/// Exit code of a configuration that cannot be.
const EXIT_CONFIG: u8 = 2;

/// Runs the command line; `args` begins with the program's name. Returns the process's exit code: 0 done, 1 failed,
/// 2 wrong arguments or configuration.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(help) => {
            // Help and version go to standard output with exit code 0, errors to standard error with 2.
            let _ = help.print();
            return ExitCode::from(u8::try_from(help.exit_code()).unwrap_or(EXIT_CONFIG));
        }
    };
    let done = match cli.command {
        Command::Run { config } => load(&config).map(run),
        Command::Check { config } => load(&config).map(|_| {
            println!("{}: good", config.display());
            Ok(())
        }),
        Command::Log { command: LogCommand::Inspect { dir, json } } => Ok(inspect::print(&dir, json)),
    };
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            eprintln!("wayside: {failure:#}");
            ExitCode::FAILURE
        }
        Err(code) => code,
    }
}

fn load(path: &Path) -> Result<Config, ExitCode> {
    check::load(path).map_err(|fault| {
        eprintln!("wayside: {}:\n{:#}", path.display(), anyhow::Error::new(fault));
        ExitCode::from(EXIT_CONFIG)
    })
}

fn run(config: Config) -> anyhow::Result<()> {
    // What devices say about people is nobody's but the agent's: files 0600, directories 0700, whoever makes them.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    telemetry::init_logging(&config.telemetry);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the I/O runtime")?;
    runtime.block_on(async {
        let (stop, stopping) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        tokio::spawn(async move {
            let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
            info!(signal = name, "stopping");
            stop.send_replace(true);
            // A second signal does not wait for anything.
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () };
            error!("stopped at once by a second signal; what was not acknowledged will come again");
            std::process::exit(1);
        });
        let parts = Parts::system(&config).context("the agent cannot run")?;
        pipeline::run(config, parts, stopping).await.context("the agent cannot run")
    })
}
