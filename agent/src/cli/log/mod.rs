//! `wayside log`: the log in a data directory, read from copies. Safe while the agent runs, and on a directory that was
//! copied from another machine.

mod export;
mod inspect;
mod record;
mod repair;
mod replay;
mod tail;
#[cfg(test)]
mod tests;
mod verify;

use std::{io, path::PathBuf, process::ExitCode, sync::mpsc, thread, time::Duration};

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

/// Time after which a command that still runs shows how far it is.
const PROGRESS_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Shows epochs, batches, offsets and the cursor.
    Inspect {
        /// Data directory (log.dir).
        dir: PathBuf,
        /// One JSON object instead of the table.
        #[arg(long)]
        json: bool,
    },
    /// Checks every epoch, entry, offset, checkpoint and the cursor, and says what is damaged and which records that
    /// costs. Exits 0 when all is whole, 1 when something is damaged or was put aside, 2 when it cannot be looked at.
    Verify {
        /// Data directory (log.dir).
        dir: PathBuf,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Shows the last records, a line each: receive time, stream, device, partition/offset, value. Values are shortened,
    /// and shown in hexadecimal where they are no text.
    Tail(tail::Tail),
    /// Writes records to standard output or a file, in the order of the log. Exits 1 when a part of the log could not
    /// be read; the rest is written all the same.
    Export(export::Export),
    /// Sends records that are still in the log to Kafka once more, with the header `wayside.replayed`. Without --yes it
    /// only says how many. Safe while the agent runs: the cursor stays as it is, and what Kafka has not acknowledged is
    /// left to the agent. Exits 0 when Kafka has all of it, 1 when not, 2 when interrupted.
    Replay(replay::Replay),
    /// Puts a damaged data directory in order while no agent uses it. Without --yes it only says what it would do. Exits
    /// 0 when nothing is left to do, 1 when something is, 2 when it cannot be done.
    ///
    /// Epochs of which nothing can be read go to bad-*; marks that epochs have lost are made again; a damaged cursor is
    /// written again from its other half, or set to the first entry, so that records may be sent twice and none is
    /// skipped; what is none of the agent's is moved to repair-*, with a copy of a changed cursor.
    Repair(repair::Repair),
}

/// Exit code of a command that could not look at the log.
const EXIT_UNKNOWN: u8 = 2;

/// Runs a command; returns the process's exit code.
pub(super) fn run(command: LogCommand) -> ExitCode {
    let done = match command {
        LogCommand::Inspect { dir, json } => inspect::print(&dir, json).map(|()| ExitCode::SUCCESS),
        LogCommand::Verify { dir, json } => {
            verify::print(&dir, json).or_else(|failure| Ok(failed(&failure, ExitCode::from(EXIT_UNKNOWN))))
        }
        LogCommand::Tail(tail) => tail::print(&tail),
        LogCommand::Export(export) => export::write(&export),
        LogCommand::Replay(replay) => replay::run(&replay, &mut stdout()),
        LogCommand::Repair(repair) => signals()
            .and_then(|stop| repair::run(&repair, &mut stdout(), &stop))
            .or_else(|failure| Ok(failed(&failure, ExitCode::from(EXIT_UNKNOWN)))),
    };
    done.unwrap_or_else(|failure| failed(&failure, ExitCode::FAILURE))
}

/// Says what failed. That nobody reads any more (`| head`) is no failure.
fn failed(failure: &anyhow::Error, code: ExitCode) -> ExitCode {
    let is_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    if failure.chain().any(|cause| cause.downcast_ref().is_some_and(is_pipe)) {
        return ExitCode::SUCCESS;
    }
    eprintln!("wayside: {failure:#}");
    code
}

/// A bar on standard error, if that is a terminal, for what takes longer than two seconds.
struct Progress(ProgressBar);

impl Progress {
    fn new(unit: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if let Ok(style) =
            ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {unit}, {{eta}} left"))
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn at(&self, done: usize, total: usize) {
        if self.0.is_hidden() && self.0.elapsed() >= PROGRESS_AFTER {
            self.0.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.0.set_length(total.try_into().unwrap_or(u64::MAX));
        self.0.set_position(done.try_into().unwrap_or(u64::MAX));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Says when SIGINT or SIGTERM came. What is under way then ends by itself, so that copies and half a file are removed.
struct Stop(mpsc::Receiver<()>);

impl Stop {
    fn on_signal() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let (running, stopped) = mpsc::channel();
        thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
                drop(running);
                // A second signal does not wait for anything.
                tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
                std::process::exit(EXIT_UNKNOWN.into());
            });
        })?;
        Ok(Self(stopped))
    }

    fn is_set(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits so long for it; returns whether it came.
    fn wait(&self, timeout: Duration) -> bool {
        !matches!(self.0.recv_timeout(timeout), Err(mpsc::RecvTimeoutError::Timeout))
    }
}

/// Standard output, written in blocks.
fn stdout() -> io::BufWriter<io::StdoutLock<'static>> {
    io::BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

fn signals() -> anyhow::Result<Stop> {
    Stop::on_signal().context("cannot listen for signals")
}
