//! `wayside log inspect`: what a data directory holds, as a table or as JSON.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::Progress;
use crate::{
    config::Engine,
    log::inspect::{self, EpochReport},
    record::{Offset, PartitionId, StreamName},
    replicate::{Cursor, cursor},
};

/// Prints what `dir` holds to standard output. Only reads, and takes no lock: safe while the agent runs.
///
/// # Errors
/// The directory, its cursor or a copy of an epoch cannot be read, or standard output is gone.
pub(super) fn print(dir: &Path, json: bool) -> anyhow::Result<()> {
    // The cursor first: read behind the epochs it could name entries that they did not have.
    let cursor = Cursor::load(&dir.join(cursor::FILE_NAME)).context("cannot read the cursor")?;
    let listed = inspect::list(dir).context("cannot list the log")?;
    let progress = Progress::new("epochs");
    let stop = super::signals()?;
    let mut epochs = Vec::new();
    for (index, &epoch) in listed.epochs.iter().enumerate() {
        anyhow::ensure!(!stop.is_set(), "interrupted");
        progress.at(index, listed.epochs.len());
        epochs.extend(inspect::epoch(dir, epoch).with_context(|| format!("cannot look into epoch {epoch}"))?);
    }
    drop(progress);
    let mut out = io::stdout().lock();
    if json {
        let quarantined: Vec<_> = listed.quarantined.keys().collect();
        let epochs: Vec<_> = epochs.iter().map(epoch_json).collect();
        let report = json!({
            "epochs": epochs,
            "quarantined": quarantined,
            "cursor": cursor.as_ref().map(cursor_json),
        });
        writeln!(out, "{report:#}")?;
    } else {
        for epoch in &epochs {
            write_epoch(&mut out, epoch)?;
        }
        for name in listed.quarantined.keys() {
            writeln!(out, "{name}  put aside: damaged")?;
        }
        write_cursor(&mut out, cursor.as_ref())?;
    }
    Ok(())
}

fn write_epoch(out: &mut impl Write, epoch: &EpochReport) -> io::Result<()> {
    let ratio = if epoch.raw_bytes == 0 { 1.0 } else { to_f64(epoch.stored_bytes) / to_f64(epoch.raw_bytes) };
    writeln!(
        out,
        "{}  entries {}..{}  batches {}  records {}  stored {} B of {} B ({ratio:.2})  {}",
        epoch.epoch,
        epoch.epoch.0,
        epoch.end,
        epoch.batches,
        epoch.records,
        epoch.stored_bytes,
        epoch.raw_bytes,
        epoch.engine.map_or("no file", Engine::as_str),
    )?;
    for ((stream, partition), (first, end)) in &epoch.offsets {
        writeln!(out, "    {stream}/{partition}  offsets {first}..{end}")?;
    }
    for damage in &epoch.damage {
        writeln!(out, "    damage: {damage}")?;
    }
    Ok(())
}

fn write_cursor(out: &mut impl Write, cursor: Option<&Cursor>) -> io::Result<()> {
    let Some(cursor) = cursor else {
        return writeln!(out, "cursor  none: replication starts at the first entry");
    };
    writeln!(out, "cursor  Kafka has all entries below {}", cursor.next)?;
    for ((stream, partition), offset) in &cursor.acknowledged {
        writeln!(out, "    {stream}/{partition}  acknowledged below offset {offset}")?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn to_f64(bytes: u64) -> f64 {
    bytes as f64
}

pub(super) fn partition_json(stream: &StreamName, partition: PartitionId) -> Value {
    json!({ "stream": stream.as_str(), "partition": partition.0 })
}

fn epoch_json(epoch: &EpochReport) -> Value {
    let offsets = epoch.offsets.iter().map(|((stream, partition), (first, end))| {
        let mut entry = partition_json(stream, *partition);
        entry["first_offset"] = first.0.into();
        entry["end_offset"] = end.0.into();
        entry
    });
    json!({
        "epoch": epoch.epoch.to_string(),
        "engine": epoch.engine.map(Engine::as_str),
        "first_entry": epoch.epoch.0.0,
        "end_entry": epoch.end.0,
        "entries": epoch.entries,
        "batches": epoch.batches,
        "records": epoch.records,
        "stored_bytes": epoch.stored_bytes,
        "raw_bytes": epoch.raw_bytes,
        "partitions": offsets.collect::<Vec<_>>(),
        "damage": epoch.damage,
    })
}

pub(super) fn cursor_json(cursor: &Cursor) -> Value {
    let acknowledged = cursor.acknowledged.iter().map(|((stream, partition), Offset(offset))| {
        let mut entry = partition_json(stream, *partition);
        entry["acknowledged_offset"] = (*offset).into();
        entry
    });
    json!({
        "next_entry": cursor.next.0,
        "generation": cursor.generation,
        "partitions": acknowledged.collect::<Vec<_>>(),
    })
}
