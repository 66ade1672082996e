//! `wayside log verify`: whether all that a data directory should hold is there and whole.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    Progress, Stop,
    inspect::{cursor_json, partition_json},
};
use crate::{
    log::verify::{self, LostRecords, Verification},
    record::Offset,
    replicate::{Cursor, cursor},
};

/// A data directory, checked: the log, the cursor, and what the one says about the other.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) log: Verification,
    pub(super) cursor: Option<Cursor>,
    /// Slots of the cursor's file that hold no cursor.
    pub(super) damaged_slots: usize,
    /// What is wrong with the cursor, in words.
    pub(super) cursor_damage: Vec<String>,
}

impl Findings {
    /// Checks `dir`. Only reads, and takes no lock.
    pub(super) fn of(dir: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let load =
            || Cursor::load_counting_damage(&dir.join(cursor::FILE_NAME)).context("cannot read the cursor");
        // Before the epochs, or it could name entries that they did not have; and behind them, or what it is past
        // could be trimmed. A slot that is just being written looks damaged once.
        let (cursor, damaged_before) = load()?;
        let progress = Progress::new("epochs");
        let goes_on = |done, total| {
            progress.at(done, total);
            !stop.is_set()
        };
        let log = verify::verify(dir, goes_on).context("cannot look at the log")?;
        let (cursor_after, damaged_after) = load()?;
        let mut findings =
            Self { log, cursor, damaged_slots: damaged_before.min(damaged_after), cursor_damage: Vec::new() };
        findings.check_cursor(cursor_after.as_ref());
        Ok(findings)
    }

    fn check_cursor(&mut self, after: Option<&Cursor>) {
        let log = &self.log;
        let mut damage = Vec::new();
        match (self.damaged_slots, &self.cursor) {
            (0, _) => {}
            (slots, Some(cursor)) => damage.push(format!(
                "{slots} of 2 slots is damaged; the other one holds generation {}, at most a few seconds older: some \
                 records will be sent to Kafka again",
                cursor.generation
            )),
            (_, None) => damage.push("damaged: the whole log will be sent to Kafka again; nothing is lost".into()),
        }
        if let Some(cursor) = &self.cursor {
            if cursor.next > log.end {
                damage.push(format!(
                    "Kafka has the entries below {}, but the log ends at {}: it has lost its end. The next start goes on \
                     at the cursor or behind it",
                    cursor.next, log.end
                ));
            }
            for (key, acknowledged) in &cursor.acknowledged {
                let next = log.next_offsets.get(key).copied();
                if next.is_some_and(|next| next < *acknowledged) && cursor.next <= log.end {
                    let (stream, partition) = key;
                    damage.push(format!(
                        "Kafka has {stream}/{partition} below offset {acknowledged}, the log does not"
                    ));
                }
            }
        }
        if let Some(cursor) = after.filter(|cursor| cursor.next < log.first) {
            damage.push(format!(
                "Kafka has the entries below {}, but the log begins at {}: what was between them is lost",
                cursor.next, log.first
            ));
        }
        self.cursor_damage = damage;
    }

    pub(super) fn is_whole(&self) -> bool {
        self.log.is_whole() && self.cursor_damage.is_empty()
    }

    /// How many of the offsets of a loss are behind the cursor, and how many are not.
    fn replicated(&self, lost: &LostRecords) -> (i64, i64) {
        let key = (lost.stream.clone(), lost.partition);
        let acknowledged = self.cursor.as_ref().and_then(|cursor| cursor.acknowledged.get(&key));
        let boundary = acknowledged.copied().unwrap_or(Offset(0)).clamp(lost.first, lost.end);
        (boundary.0 - lost.first.0, lost.end.0 - boundary.0)
    }
}

/// Prints what is in `dir` and what is wrong with it to standard output. Exit code 0 whole, 1 damaged.
pub(super) fn print(dir: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let findings = Findings::of(dir, &super::signals()?)?;
    let mut out = super::stdout();
    if json {
        writeln!(out, "{:#}", findings_json(&findings))?;
    } else {
        write(&mut out, &findings)?;
    }
    out.flush()?;
    Ok(if findings.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn write(out: &mut impl Write, findings: &Findings) -> io::Result<()> {
    let log = &findings.log;
    writeln!(
        out,
        "{} epochs  entries {}..{}  {} records",
        log.dir.epochs.len(),
        log.first,
        log.end,
        log.records
    )?;
    match &findings.cursor {
        Some(cursor) => writeln!(out, "cursor  Kafka has all entries below {}", cursor.next)?,
        None => writeln!(out, "cursor  none: replication starts at the first entry")?,
    }
    for damage in &log.damage {
        match damage.entries {
            Some((first, end)) if first < end => {
                writeln!(out, "damage  {}  entries {first}..{end}: {}", damage.epoch, damage.reason)?;
            }
            _ => writeln!(out, "damage  {}  {}", damage.epoch, damage.reason)?,
        }
    }
    for epoch in &log.unmarked {
        writeln!(
            out,
            "damage  {epoch}  it has lost the mark of its sync: the next start would put it aside"
        )?;
    }
    for damage in &findings.cursor_damage {
        writeln!(out, "damage  cursor  {damage}")?;
    }
    for (name, report) in &log.put_aside {
        writeln!(out, "aside   {name}  {} records in it can still be read", report.records)?;
    }
    for lost in &log.lost {
        let LostRecords { stream, partition, first, end, exact } = lost;
        let (behind, ahead) = findings.replicated(lost);
        let bound = if *exact { "" } else { "at most " };
        writeln!(
            out,
            "lost    {stream}/{partition}  offsets {first}..{end}: {bound}{behind} records that replication is past, \
             {bound}{ahead} that Kafka has not acknowledged"
        )?;
    }
    if log.dropped_records > 0 {
        let records = log.dropped_records;
        writeln!(
            out,
            "note    {records} records were dropped by their streams' policies at the log's limit"
        )?;
    }
    if let Some(epoch) = log.unsynced {
        writeln!(out, "note    {epoch}  no sync of it has completed: nothing in it was acknowledged")?;
    }
    for name in &log.dir.half_deleted {
        writeln!(out, "note    {name}  its deletion was interrupted; the next start finishes it")?;
    }
    for name in &log.dir.foreign {
        writeln!(out, "note    {name:?}  is none of the agent's; left alone")?;
    }
    writeln!(out, "{}", if findings.is_whole() { "whole" } else { "damaged" })
}

fn findings_json(findings: &Findings) -> Value {
    let log = &findings.log;
    let damage = log.damage.iter().map(|damage| {
        json!({
            "epoch": damage.epoch.to_string(),
            "first_entry": damage.entries.map(|(first, _)| first.0),
            "end_entry": damage.entries.map(|(_, end)| end.0),
            "reason": damage.reason,
        })
    });
    let lost = log.lost.iter().map(|lost| {
        let (behind_cursor, unacknowledged) = findings.replicated(lost);
        let mut entry = partition_json(&lost.stream, lost.partition);
        entry["first_offset"] = lost.first.0.into();
        entry["end_offset"] = lost.end.0.into();
        entry["exact"] = lost.exact.into();
        entry["behind_cursor"] = behind_cursor.into();
        entry["unacknowledged"] = unacknowledged.into();
        entry
    });
    let put_aside = log
        .put_aside
        .iter()
        .map(|(name, report)| json!({ "name": name, "readable_records": report.records }));
    json!({
        "whole": findings.is_whole(),
        "epochs": log.dir.epochs.len(),
        "first_entry": log.first.0,
        "end_entry": log.end.0,
        "records": log.records,
        "dropped_records": log.dropped_records,
        "damage": damage.collect::<Vec<_>>(),
        "lost": lost.collect::<Vec<_>>(),
        "put_aside": put_aside.collect::<Vec<_>>(),
        "unmarked_epochs": log.unmarked.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "unsynced_epoch": log.unsynced.map(|epoch| epoch.to_string()),
        "half_deleted": log.dir.half_deleted,
        "foreign": log.dir.foreign,
        "cursor": findings.cursor.as_ref().map(cursor_json),
        "cursor_damage": findings.cursor_damage,
    })
}
