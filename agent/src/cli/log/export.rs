//! `wayside log export`: records out of the log.
//!
//! # Format `ndjson`
//! One JSON object a line: `entry`, `stream`, `partition`, `offset`, `device`, `received` (RFC 3339), `received_quality`
//! (`unknown`, `estimated`, `synced`), `boot` and `since_boot_us` (the system's start and the monotonic time since, or null),
//! `event_time` or null, `device_seq` or null, `content_type`, `headers` (a list of `name` and value), and the value: `value` where it is UTF-8, else `value_hex`. Both give back every byte.
//!
//! # Format `raw`
//! The values alone, as Kafka gets them, one behind the other; nothing in front, nothing at the end:
//! | offset | size | type | field |
//! |-------:|-----:|------|-------|
//! | 0 | 4 | u32 BE | bytes of the value, n |
//! | 4 | n | bytes | value |

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tempfile::NamedTempFile;

use super::{
    EXIT_UNKNOWN, Progress, Stop,
    record::{self, Period, Placed, Selection},
};
use crate::log::{
    EntrySeq,
    inspect::{self, DirReader, Found},
};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Export {
    /// Data directory (log.dir).
    dir: PathBuf,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    selection: Selection,
    /// What is written for each record.
    #[arg(long, value_enum, default_value_t = Format::Ndjson)]
    format: Format,
    /// File to write. It appears, whole and on the disk, when all is in it; one of that name is replaced.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A JSON object a line, with everything that is known of the record.
    Ndjson,
    /// The value alone, behind its length in bytes as 32 bits big-endian.
    Raw,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    records: u64,
    /// Places in the log that could not be read.
    pub(super) losses: u64,
}

/// Exports, and sums up on standard error.
pub(super) fn write(export: &Export) -> anyhow::Result<ExitCode> {
    let stop = super::signals()?;
    let done = match &export.output {
        None => write_records(export, &mut super::stdout(), &stop)?,
        Some(path) => write_file(export, path, &stop)?,
    };
    let Some(Summary { records, losses }) = done else {
        eprintln!("wayside: interrupted");
        return Ok(ExitCode::from(EXIT_UNKNOWN));
    };
    eprintln!("wayside: {records} records exported, {losses} parts of the log could not be read");
    Ok(if losses == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes to a temporary file beside `path`, which then takes its place. None when it was interrupted: then there is no
/// file.
pub(super) fn write_file(export: &Export, path: &Path, stop: &Stop) -> anyhow::Result<Option<Summary>> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("cannot write {}", path.display());
    let temporary = NamedTempFile::new_in(parent).with_context(failed)?;
    let mut out = io::BufWriter::new(temporary);
    let Some(summary) = write_records(export, &mut out, stop)? else { return Ok(None) };
    let temporary = out.into_inner().map_err(io::IntoInnerError::into_error).with_context(failed)?;
    temporary.as_file().sync_all().with_context(failed)?;
    temporary.persist(path).with_context(failed)?;
    File::open(parent).and_then(|parent| parent.sync_all()).with_context(failed)?;
    Ok(Some(summary))
}

pub(super) fn write_records(
    export: &Export,
    out: &mut impl Write,
    stop: &Stop,
) -> anyhow::Result<Option<Summary>> {
    let epochs = inspect::list(&export.dir).context("cannot list the log")?.epochs;
    let progress = Progress::new("epochs");
    let mut reader = DirReader::new(&export.dir, EntrySeq(0));
    let mut summary = Summary::default();
    while let Some(found) = reader.read_next().context("cannot read the log")? {
        if stop.is_set() {
            return Ok(None);
        }
        let group = match found {
            Found::Group(group) => group,
            Found::Lost(lost) => {
                eprintln!("wayside: entries {} to {}: {}", lost.first, lost.end, lost.reason);
                summary.losses += 1;
                continue;
            }
        };
        progress.at(epochs.partition_point(|epoch| epoch.0 <= group.seq).saturating_sub(1), epochs.len());
        for placed in record::records(&group) {
            if export.selection.takes(placed.record) && export.period.takes(placed.record) {
                write_record(export.format, out, placed)?;
                summary.records += 1;
            }
        }
    }
    out.flush()?;
    Ok(Some(summary))
}

fn write_record(format: Format, out: &mut impl Write, placed: Placed<'_>) -> io::Result<()> {
    match format {
        Format::Ndjson => writeln!(out, "{}", placed.json()),
        Format::Raw => {
            let value = &placed.record.value;
            let length = u32::try_from(value.len()).map_err(io::Error::other)?;
            out.write_all(&length.to_be_bytes())?;
            out.write_all(value)
        }
    }
}
