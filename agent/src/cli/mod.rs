//! The command line of `wayside`.

mod connect;
mod log;
mod man;
mod reread;
mod status;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use rustix::fs::Mode;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{error, info};

use crate::{
    config::{
        check::{self, Checked},
        raw,
    },
    parts::Parts,
    pipeline, telemetry,
};
use reread::Running;

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
    /// exits 0. SIGHUP rereads telemetry.log_level, and the files of passwords, rights, tokens and certificates.
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
        /// Tries the brokers, ports, addresses, disk and topics too, and says what it found; a running agent is not disturbed.
        /// Best as the agent's user. Exits 1 if something failed.
        #[arg(long)]
        connect: bool,
        /// One JSON object instead of lines.
        #[arg(long, requires = "connect")]
        json: bool,
    },
    /// What a configuration can say.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Asks the running agent over its HTTP endpoint how it is. Exits as a Nagios plugin: 0 ok, 1 warning (a source is
    /// down, a topic waits for an operator, more waits for Kafka than the limits say, or so much that the log is full and
    /// sources wait), 2 critical (the disk fails or is full of other files, so nothing is stored), 3 unknown (the agent
    /// does not answer).
    Status(status::StatusArgs),
    /// Looks into the local log: safe while the agent runs, and on a directory copied from another machine.
    Log {
        #[command(subcommand)]
        command: log::LogCommand,
    },
    /// Prints what completes wayside's commands in a shell: `wayside completions bash
    /// > /usr/share/bash-completion/completions/wayside`.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Prints the man page, all commands in it: `wayside man | man -l -`.
    Man,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Prints the JSON Schema of the configuration file: every key with its meaning, default, range and choices.
    Schema,
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
    // What devices say about people is nobody's but the agent's: files 0600, directories 0700, whichever command makes them.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let done = match cli.command {
        Command::Run { config } => load(&config).map(|checked| run(config, checked)),
        Command::Check { config, connect, json } => load(&config).map(|checked| {
            if connect {
                connect::check(&checked.config, json)
            } else {
                print(format!("{}: good\n", config.display()).as_bytes())
            }
        }),
        Command::Config { command: ConfigCommand::Schema } => {
            Ok(print(format!("{:#}\n", raw::schema().as_value()).as_bytes()))
        }
        Command::Status(args) => return status::print(&args),
        Command::Log { command } => return log::run(command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "wayside", &mut script);
            Ok(print(&script))
        }
        Command::Man => Ok(man::page().context("cannot make the page").and_then(|page| print(&page))),
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

/// Standard output may be a pipe that nobody reads any more.
fn print(text: &[u8]) -> anyhow::Result<()> {
    io::stdout().write_all(text).context("cannot write to standard output")
}

fn load(path: &Path) -> Result<Checked, ExitCode> {
    check::load(path).map_err(|fault| {
        eprintln!("wayside: {}:\n{:#}", path.display(), anyhow::Error::new(fault));
        ExitCode::from(EXIT_CONFIG)
    })
}

fn run(path: PathBuf, Checked { raw, config }: Checked) -> anyhow::Result<()> {
    let log_level = telemetry::init_logging(&config.telemetry);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the I/O runtime")?;
    runtime.block_on(async {
        let (stop, stopping) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let (reread, asked_to_reread) = watch::channel(());
        tokio::spawn(async move {
            let mut running = Running { path, raw, log_level };
            while hangup.recv().await.is_some() {
                running.reread();
                reread.send_replace(());
            }
        });
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
        pipeline::run(config, parts, stopping, asked_to_reread).await.context("the agent cannot run")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_be_ends_every_command_with_code_2() {
        let dir = tempfile::tempdir().expect("a directory");
        let (bad, missing) = (dir.path().join("bad.toml"), dir.path().join("missing.toml"));
        std::fs::write(&bad, "gateway.id = \"g\"\n[comit]\n").expect("written");
        for file in [bad, missing] {
            for command in [&["run"][..], &["check"], &["check", "--connect"]] {
                let args = ["wayside"].iter().chain(command).chain(&["--config"]).map(OsString::from);
                assert_eq!(
                    main(args.chain([file.clone().into()])),
                    ExitCode::from(2),
                    "{command:?} {file:?}"
                );
            }
        }
    }
}
