//! `wayside log repair`: a data directory put in order, without a record that is lost by it.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;

use super::{Stop, verify::Findings};
use crate::{
    env::{Clock, SystemClock},
    log::{identity, inspect, repair::LockedDir, store::EpochId},
    replicate::{Cursor, CursorFile, cursor},
};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Repair {
    /// Data directory (log.dir).
    dir: PathBuf,
    /// Does it.
    #[arg(long)]
    yes: bool,
    /// Also puts damaged epochs aside of which records can still be read. The agent then neither sends nor keeps them;
    /// `wayside log export` before this saves them.
    #[arg(long)]
    lose_damaged: bool,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Make the mark that an epoch has lost.
    Mark(EpochId),
    /// Put an epoch aside, with as many records that can be read.
    PutAside(EpochId, u64),
    /// Write the cursor again, from its intact slot.
    RewriteCursor,
    /// Set the cursor to the first entry.
    ResetCursor,
    /// Finish the deletion of an epoch.
    FinishDeletion(String),
    /// Move away what is none of the agent's.
    Keep(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark(epoch) => write!(f, "{epoch}: make the mark of its sync again"),
            Self::PutAside(epoch, 0) => write!(f, "{epoch}: put it aside; nothing in it can be read"),
            Self::PutAside(epoch, records) => {
                write!(f, "{epoch}: put it aside, with {records} records that can be read")
            }
            Self::RewriteCursor => write!(f, "cursor: write its damaged half again from the other one"),
            Self::ResetCursor => {
                write!(f, "cursor: set it to the first entry; Kafka gets the whole log again")
            }
            Self::FinishDeletion(name) => write!(f, "{name}: finish its deletion"),
            Self::Keep(name) => write!(f, "{name:?}: move it away; it is none of the agent's"),
        }
    }
}

/// What to do, and which damaged epochs stay, with as many records that can be read.
#[derive(Debug, Default)]
struct Plan {
    steps: Vec<Step>,
    stay: Vec<(EpochId, u64)>,
}

/// Says what there is to do, and does it if told so.
pub(super) fn run(repair: &Repair, out: &mut impl Write, stop: &Stop) -> anyhow::Result<ExitCode> {
    let dir = &repair.dir;
    // Before the lock, which would make the directory.
    inspect::list(dir).context("cannot list the log")?;
    // To this release what a later one wrote looks damaged.
    identity::read(dir)?;
    // A dry run makes no file, and where there is none nobody holds it.
    let locked = (repair.yes || LockedDir::has_lock(dir)).then(|| LockedDir::lock(dir)).transpose()?;
    let findings = Findings::of(dir, stop)?;
    let Plan { steps, stay } = plan(repair, &findings)?;
    for (epoch, records) in &stay {
        writeln!(
            out,
            "stays  {epoch}: damaged; the agent passes the damage and reads the other {records} records \
             (--lose-damaged puts it aside)"
        )?;
    }
    let mut kept = None;
    for step in &steps {
        match locked.as_ref().filter(|_| repair.yes) {
            Some(locked) => {
                apply(step, dir, locked, &findings, &mut kept)
                    .with_context(|| format!("cannot do: {step}"))?;
                writeln!(out, "done   {step}")?;
            }
            None => writeln!(out, "would  {step}")?,
        }
    }
    if let Some(kept) = kept {
        writeln!(out, "kept   {}", kept.display())?;
    }
    if steps.is_empty() && stay.is_empty() {
        writeln!(out, "nothing to do")?;
    }
    out.flush()?;
    let left = !stay.is_empty() || (!repair.yes && !steps.is_empty());
    Ok(if left { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn plan(repair: &Repair, findings: &Findings) -> anyhow::Result<Plan> {
    let log = &findings.log;
    let mut plan = Plan::default();
    let damaged: BTreeSet<EpochId> = log.damage.iter().filter(|d| d.in_epoch).map(|d| d.epoch).collect();
    for epoch in damaged {
        let report = inspect::epoch(&repair.dir, epoch).context("cannot look at the log")?;
        let records = report.map_or(0, |report| report.records);
        if records == 0 || repair.lose_damaged {
            plan.steps.push(Step::PutAside(epoch, records));
        } else {
            plan.stay.push((epoch, records));
        }
    }
    let put_aside = plan.steps.clone();
    let is_put_aside =
        |epoch| put_aside.iter().any(|s| matches!(s, Step::PutAside(aside, _) if *aside == epoch));
    plan.steps
        .extend(log.unmarked.iter().filter(|epoch| !is_put_aside(**epoch)).map(|epoch| Step::Mark(*epoch)));
    match (findings.damaged_slots, &findings.cursor) {
        (0, _) => {}
        (_, Some(_)) => plan.steps.push(Step::RewriteCursor),
        (_, None) => plan.steps.push(Step::ResetCursor),
    }
    plan.steps.extend(log.dir.half_deleted.iter().cloned().map(Step::FinishDeletion));
    plan.steps.extend(log.dir.foreign.iter().cloned().map(Step::Keep));
    Ok(plan)
}

fn apply(
    step: &Step,
    dir: &Path,
    locked: &LockedDir,
    findings: &Findings,
    kept: &mut Option<PathBuf>,
) -> anyhow::Result<()> {
    match step {
        Step::Mark(epoch) => locked.mark_synced(*epoch)?,
        Step::PutAside(epoch, _) => locked.put_aside(*epoch)?,
        Step::RewriteCursor | Step::ResetCursor => {
            let copy = keep_in(locked, kept)?.join(cursor::FILE_NAME);
            fs::copy(dir.join(cursor::FILE_NAME), &copy)?;
            fs::File::open(&copy)?.sync_all()?;
            // The first entry is one that Kafka may have: it is sent again, and nothing is skipped.
            let first = Cursor { next: findings.log.first, ..Cursor::default() };
            let mut cursor = findings.cursor.clone().unwrap_or(first);
            let (mut file, _) = CursorFile::open(dir)?;
            // Both halves.
            file.write(&mut cursor)?;
            file.write(&mut cursor)?;
        }
        Step::FinishDeletion(name) => locked.finish_deletion(name)?,
        Step::Keep(name) => locked.keep(name, keep_in(locked, kept)?)?,
    }
    Ok(())
}

/// The directory of this run for what is kept, made at the first need.
fn keep_in<'a>(locked: &LockedDir, kept: &'a mut Option<PathBuf>) -> anyhow::Result<&'a Path> {
    if kept.is_none() {
        *kept = Some(locked.kept(&SystemClock::new().wall().at.0.to_string())?);
    }
    Ok(kept.as_deref().expect("was just made"))
}
