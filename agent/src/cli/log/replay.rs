//! `wayside log replay`: records that are still in the log, once more to Kafka.
//!
//! The sender is the agent's own ([`Replicator`](crate::replicate::Replicator)), with the range instead of the log and a
//! cursor of its own that is thrown away: the data directory is only read.
//!
//! What Kafka has not acknowledged is left out. An agent sends it anyway, and if a replay came first, its offsets would
//! be ahead of those that the agent has still to send: a consumer that skips what is not above the last `wayside.offset`
//! it saw would skip those for ever.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;

use super::{
    EXIT_UNKNOWN, Progress, Stop,
    record::{Period, Selection},
};
use crate::{
    config::{self, Config, Delivery, check},
    env::{SystemClock, SystemEntropy},
    log::{
        BatchGroup, EntrySeq, LogBatch, ReadOutcome,
        inspect::{DirReader, Found},
        repair::LockedDir,
    },
    record::{Offset, Record, RecordHeader, header},
    replicate::{
        self, Cluster, Cursor, CursorFile, Held, KafkaCluster, LogEnd, LogReader, LogUnavailable, Replicate,
        ReplicateMetrics, cursor,
    },
    telemetry,
};

/// Time between two looks at how far it is.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Replay {
    /// Data directory (log.dir).
    dir: PathBuf,
    /// Configuration file of the gateway that wrote it: `[gateway]`, `[replicate]` and the streams' partitions.
    #[arg(short, long, default_value = "/etc/wayside/wayside.toml")]
    config: PathBuf,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    selection: Selection,
    /// Also what Kafka has not acknowledged. Refused while an agent uses the directory, which sends it itself; one that
    /// is started on it later sends it once more.
    #[arg(long)]
    unacknowledged: bool,
    /// Sends. Kafka then has the records twice, the second time with the header wayside.replayed.
    #[arg(long)]
    yes: bool,
}

impl Replay {
    fn takes(&self, record: &Record) -> bool {
        self.period.takes(record) && self.selection.takes(record)
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// First entry with a record of it.
    first: EntrySeq,
    /// Behind the last one.
    end: EntrySeq,
    records: u64,
}

/// Says what there is to send, and sends it if told so. Exit code 0 when Kafka has all of it, 1 when not.
pub(super) fn run(replay: &Replay, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let config = match check::load(&replay.config) {
        Ok(checked) => checked.config,
        Err(fault) => return Err(anyhow::Error::new(fault).context(replay.config.display().to_string())),
    };
    if replay.yes {
        telemetry::init_logging(&config.telemetry);
    }
    let cluster = || match KafkaCluster::new(&without_transactions(&config), &config.gateway.id) {
        Ok(cluster) => Ok(Box::new(cluster) as Box<dyn Cluster>),
        Err(reason) => bail!("cannot set up the Kafka client ([replicate]): {reason}"),
    };
    replay_to(replay, &config, cluster, out, &super::signals()?)
}

/// A replay sends again on purpose; and with the agent's `transactional.id` it would fence the agent.
fn without_transactions(config: &Config) -> config::Replicate {
    config::Replicate { delivery: Delivery::AtLeastOnce, ..config.replicate.clone() }
}

pub(super) fn replay_to(
    replay: &Replay,
    config: &Config,
    cluster: impl FnOnce() -> anyhow::Result<Box<dyn Cluster>>,
    out: &mut impl Write,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let dir = &replay.dir;
    let needs_lock = replay.unacknowledged && LockedDir::has_lock(dir);
    // Held to the end: no agent may begin to send the same.
    let _locked = needs_lock.then(|| LockedDir::lock(dir)).transpose()?;
    let limit = if replay.unacknowledged {
        None
    } else {
        let cursor = Cursor::load(&dir.join(cursor::FILE_NAME)).context("cannot read the cursor")?;
        Some(cursor.map_or(EntrySeq(0), |cursor| cursor.next))
    };
    let plan = plan(replay, limit, stop)?;
    let bound = if replay.unacknowledged { "" } else { " that Kafka has acknowledged" };
    if plan.records == 0 || !replay.yes {
        writeln!(
            out,
            "{} records{bound} would be sent again{}",
            plan.records,
            if replay.yes { "" } else { " with --yes" }
        )?;
        out.flush()?;
        return Ok(if plan.records == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let Some(sent) = send(replay, config, cluster()?, plan, stop)? else {
        writeln!(out, "interrupted: not all of {} records were sent again", plan.records)?;
        out.flush()?;
        return Ok(ExitCode::from(EXIT_UNKNOWN));
    };
    let missing = plan.records.saturating_sub(sent);
    writeln!(out, "{sent} records sent again, {missing} refused by Kafka or gone from the log meanwhile")?;
    out.flush()?;
    Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Counts what is chosen below `limit`.
fn plan(replay: &Replay, limit: Option<EntrySeq>, stop: &Stop) -> anyhow::Result<Plan> {
    let mut reader = DirReader::new(&replay.dir, EntrySeq(0)).until(limit);
    let mut plan = Plan::default();
    while let Some(found) = reader.read_next().context("cannot read the log")? {
        ensure!(!stop.is_set(), "interrupted");
        let group = match found {
            Found::Group(group) => group,
            Found::Lost(lost) => {
                eprintln!("wayside: entries {} to {}: {}", lost.first, lost.end, lost.reason);
                continue;
            }
        };
        if limit.is_some_and(|limit| group.seq >= limit) {
            break;
        }
        let records = group.batches.iter().flat_map(|batch| &batch.records);
        let chosen = records.filter(|record| replay.takes(record)).count() as u64;
        if chosen > 0 {
            plan.first = if plan.records == 0 { group.seq } else { plan.first };
            plan.end = group.seq.next();
            plan.records += chosen;
        }
    }
    Ok(plan)
}

/// Sends what `plan` counted; returns how many records Kafka has, none when it was interrupted.
fn send(
    replay: &Replay,
    config: &Config,
    cluster: Box<dyn Cluster>,
    plan: Plan,
    stop: &Stop,
) -> anyhow::Result<Option<u64>> {
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (file, _) = CursorFile::open(scratch.path()).context("cannot make a temporary cursor")?;
    let metrics = ReplicateMetrics::default();
    let health = metrics.health();
    let partitions = config.clone();
    let read_records = Arc::new(AtomicU64::new(0));
    let (live, nothing_live) = sync_channel(1);
    let replicate = Replicate {
        live: nothing_live,
        reader: Box::new(Range::new(replay.clone(), plan, Arc::clone(&read_records))),
        log_end: LogEnd { first: plan.first, next: plan.end, ..LogEnd::default() },
        cluster,
        config: without_transactions(config),
        environment: config.gateway.environment.clone(),
        partitions: Arc::new(move |stream| partitions.partitions(stream)),
        held: Held::default(),
        log_drops: false,
        cursor: (file, Some(Cursor { next: plan.first, ..Cursor::default() })),
        clock: Arc::new(SystemClock::new()),
        entropy: Box::new(SystemEntropy::new()),
        metrics,
    };
    let sender = thread::Builder::new().name("replay".into()).spawn(move || replicate::run(replicate))?;
    let progress = Progress::new("entries");
    let total = plan.end.0 - plan.first.0;
    while !sender.is_finished() && !health.snapshot().caught_up && !stop.wait(LOOK_PAUSE) {
        let left = health.snapshot().lag_entries;
        let count = |entries: u64| usize::try_from(entries).unwrap_or(usize::MAX);
        progress.at(count(total.saturating_sub(left)), count(total));
    }
    drop(progress);
    drop(live); // the sender returns when all is sent, or after replicate.shutdown_flush_ms
    let Ok(summary) = sender.join() else { bail!("the sender has ended by a panic") };
    let refused: u64 = health.snapshot().dropped.values().sum();
    Ok(summary.caught_up.then(|| read_records.load(Ordering::Relaxed).saturating_sub(refused)))
}

/// The chosen records of the range, as the log of a replicator.
struct Range {
    replay: Replay,
    plan: Plan,
    reader: DirReader,
    /// Where `reader` goes on.
    next: EntrySeq,
    /// Behind the last entry whose records are in `read_records`.
    counted: EntrySeq,
    /// Chosen records read, each once; the sending thread has the other half.
    read_records: Arc<AtomicU64>,
}

impl Range {
    fn new(replay: Replay, plan: Plan, read_records: Arc<AtomicU64>) -> Self {
        let reader = DirReader::new(&replay.dir, plan.first);
        Self { reader, next: plan.first, counted: plan.first, replay, plan, read_records }
    }

    fn rewind(&mut self, from: EntrySeq) {
        self.reader = DirReader::new(&self.replay.dir, from);
        self.next = from;
    }

    /// The chosen records of a group. An offset is a record's place in its batch, so that each run of records that
    /// follow each other is a batch.
    fn choose(&self, group: BatchGroup) -> BatchGroup {
        let mut batches: Vec<LogBatch> = Vec::new();
        for batch in group.batches {
            let mut last = None;
            for (offset, mut record) in (batch.base_offset.0..).zip(batch.records) {
                if !self.replay.takes(&record) {
                    continue;
                }
                let value = Bytes::from_static(b"true");
                record.headers.push(RecordHeader { name: header::REPLAYED.into(), value });
                match batches.last_mut().filter(|_| last == Some(offset - 1)) {
                    Some(run) => run.records.push(record),
                    None => batches.push(LogBatch {
                        stream: batch.stream.clone(),
                        partition: batch.partition,
                        base_offset: Offset(offset),
                        records: vec![record],
                    }),
                }
                last = Some(offset);
            }
        }
        BatchGroup { seq: group.seq, batches, dropped: Vec::new() }
    }
}

impl LogReader for Range {
    fn read(&mut self, from: EntrySeq, limit_bytes: usize) -> Result<ReadOutcome, LogUnavailable> {
        if from != self.next {
            self.rewind(from);
        }
        let mut outcome = ReadOutcome { next: from, ..ReadOutcome::default() };
        let mut bytes = 0;
        while outcome.next < self.plan.end && (outcome.groups.is_empty() || bytes < limit_bytes) {
            match self.reader.read_next() {
                Ok(Some(Found::Group(group))) => {
                    outcome.next = group.seq.next();
                    let group = self.choose(group);
                    if group.seq >= self.counted {
                        self.counted = group.seq.next();
                        let records: usize = group.batches.iter().map(|batch| batch.records.len()).sum();
                        self.read_records.fetch_add(records as u64, Ordering::Relaxed);
                    }
                    bytes +=
                        group.batches.iter().flat_map(|b| &b.records).map(Record::size_bytes).sum::<usize>();
                    if !group.batches.is_empty() {
                        outcome.groups.push(Arc::new(group));
                    }
                }
                // Told when the range was planned. The agent tells it to Kafka as a gap, once.
                Ok(Some(Found::Lost(lost))) => outcome.next = outcome.next.max(lost.end),
                // What the plan saw has been deleted meanwhile.
                Ok(None) => outcome.next = self.plan.end,
                Err(error) => {
                    tracing::warn!(%error, "the log cannot be read");
                    self.rewind(from);
                    return Err(LogUnavailable);
                }
            }
        }
        self.next = outcome.next;
        Ok(outcome)
    }

    /// The data directory is only read.
    fn trim(&mut self, _acknowledged: EntrySeq) {}
}
