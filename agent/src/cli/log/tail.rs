//! `wayside log tail`: the last records, and those that come.

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Args;

use super::{
    Stop,
    record::{self, Selection},
};
use crate::log::{
    EntrySeq,
    inspect::{self, DirReader, Found},
};

/// Time between two looks for new records. Each copies the newest epoch, a few MB in memory.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Tail {
    /// Data directory (log.dir).
    dir: PathBuf,
    /// Goes on with the records that come, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// How many of the last records.
    #[arg(short = 'n', long, default_value_t = 10)]
    lines: u64,
    #[command(flatten)]
    selection: Selection,
    /// One JSON object a line (NDJSON), with the whole value and all headers.
    #[arg(long)]
    json: bool,
}

/// Prints to standard output. What is damaged is told on standard error and passed.
pub(super) fn print(tail: &Tail) -> anyhow::Result<ExitCode> {
    write(tail, &mut super::stdout(), &super::signals()?)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn write(tail: &Tail, out: &mut impl Write, stop: &Stop) -> anyhow::Result<()> {
    let (start, mut skip) = find_start(tail, stop)?;
    let mut reader = DirReader::new(&tail.dir, start);
    while !stop.is_set() {
        match reader.read_next().context("cannot read the log")? {
            Some(Found::Group(group)) => {
                for placed in record::records(&group).filter(|placed| tail.selection.takes(placed.record)) {
                    if skip > 0 {
                        skip -= 1;
                        continue;
                    }
                    let line = if tail.json { placed.json() } else { placed.line() };
                    writeln!(out, "{line}")?;
                }
            }
            Some(Found::Lost(lost)) => {
                eprintln!("wayside: entries {} to {}: {}", lost.first, lost.end, lost.reason)
            }
            None => {
                out.flush()?;
                if !tail.follow || stop.wait(FOLLOW_PAUSE) {
                    break;
                }
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// The epoch in which the last records begin, and how many of those that are chosen come before them. Counted, not kept:
/// memory does not depend on how many are wanted.
fn find_start(tail: &Tail, stop: &Stop) -> anyhow::Result<(EntrySeq, u64)> {
    let epochs = inspect::list(&tail.dir).context("cannot list the log")?.epochs;
    let mut start = epochs.last().map_or(EntrySeq(0), |newest| newest.0);
    let mut wanted = tail.lines;
    let mut end = None;
    for epoch in epochs.iter().rev().map(|epoch| epoch.0) {
        let found = count(tail, epoch, end, stop)?;
        start = epoch;
        if found >= wanted {
            return Ok((start, found - wanted));
        }
        wanted -= found;
        end = Some(epoch);
    }
    Ok((start, 0))
}

fn count(tail: &Tail, from: EntrySeq, end: Option<EntrySeq>, stop: &Stop) -> anyhow::Result<u64> {
    let mut reader = DirReader::new(&tail.dir, from).until(end);
    let mut count = 0;
    while let Some(found) = reader.read_next().context("cannot read the log")? {
        ensure!(!stop.is_set(), "interrupted");
        let Found::Group(group) = found else { continue };
        count += record::records(&group).filter(|placed| tail.selection.takes(placed.record)).count() as u64;
    }
    Ok(count)
}
