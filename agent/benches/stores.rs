//! What the engines of the log cost, beside `pwrite` and `fdatasync` of the same bytes:
//!
//! ```text
//! cargo bench -p wayside --bench stores -- [--dir DIR] [--backlog-mib 2048] [--json FILE]
//! ```
//!
//! Each run is a process of its own, so that memory and written bytes are its alone; engines take turns, and of ratios
//! within a round the medians count. Entries do not compress. The machine should have nothing else to do: a disk whose
//! syncs take ten times longer for a while makes the MB/s useless, and the ratios less so.
//!
//! `pwrite` and `fdatasync` write one file, as if a log had neither names nor an end; an engine has to make an epoch
//! durable before it begins the next. So it loses most where nothing else waits for the disk: at `50 ms`, which is
//! faster than the agent ever goes (`commit.batch_bytes` is a sync for each 256 KiB), and in small epochs.
#![allow(clippy::disallowed_methods, reason = "it measures the machine's own time")]
#![allow(clippy::cast_precision_loss, reason = "bytes of a disk, far below 2^52")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use prometheus_client::registry::Registry;
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use serde::{Deserialize, Serialize};
use wayside::{
    batch::Batch,
    config::{Compression, Engine},
    env::Monotonic,
    log::{
        EntrySeq, Log, LogMetrics, LogOptions,
        store::{
            EpochId, EpochStore,
            disk::{DiskOptions, DiskStore},
        },
    },
    record::{ContentType, DeviceId, PartitionId, Received, Record, StreamName},
};

/// An entry: what a commit of some hundred records compresses to.
const ENTRY_BYTES: usize = 16 * 1024;

/// Entries are taken from this many bytes in turn.
const POOL_BYTES: usize = 4 << 20;

/// Records of the backlog.
const RECORD_BYTES: usize = 1024;

/// Records of the backlog in one commit.
const COMMIT_RECORDS: u64 = 1024;

/// Bytes of a read of the backlog, as the replicator asks for them.
const READ_BYTES: usize = 256 * 1024;

/// Measures the engines of the log.
#[derive(Parser)]
struct Args {
    /// Where the data directories are made; on the disk that is to be measured
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Runs of each kind of appending, of which the median counts; 0 measures none
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of the backlog; 0 measures none
    #[arg(long, default_value_t = 2048)]
    backlog_mib: u64,
    /// Sizes of epochs for the appending
    #[arg(long, value_delimiter = ',', default_value = "4,16")]
    epoch_mib: Vec<u64>,
    /// Also write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// What `cargo bench` says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// One run, in this process
    #[arg(long, hide = true)]
    run: Option<String>,
}

/// What is run, in a process of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Run {
    dir: PathBuf,
    /// None is `pwrite` and `fdatasync`.
    engine: Option<Engine>,
    epoch_bytes: u64,
    what: What,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum What {
    Append { cadence: Cadence, bytes: u64 },
    Fill { bytes: u64 },
    Open,
    Drain,
}

/// When what was appended is synced.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Cadence {
    Bytes(u64),
    Time(Duration),
}

/// What a run has measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Figures {
    seconds: f64,
    /// Payload that was written or read.
    payload_bytes: u64,
    /// Bytes that the process has given to the device, by /proc/self/io.
    written_bytes: u64,
    /// The most memory that it had while it ran, less what it had before.
    rss_bytes: u64,
    /// The same when it was through.
    rss_end_bytes: u64,
}

impl Figures {
    fn mb_per_second(&self) -> f64 {
        self.payload_bytes as f64 / 1e6 / self.seconds
    }

    fn written_per_byte(&self) -> f64 {
        self.written_bytes as f64 / self.payload_bytes as f64
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(run) = &args.run {
        let figures = run_here(&serde_json::from_str(run)?)?;
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    fs::create_dir_all(&args.dir)?;
    let mut all = Vec::new();
    if args.rounds > 0 {
        append(&args, &mut all)?;
    }
    if args.backlog_mib > 0 {
        backlog(&args, &mut all)?;
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&all)? + "\n")?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn append(args: &Args, all: &mut Vec<(Run, Figures)>) -> anyhow::Result<()> {
    let cadences = [
        ("every entry", Cadence::Bytes(1), 32 << 20),
        ("256 KiB", Cadence::Bytes(256 << 10), 256 << 20),
        ("50 ms", Cadence::Time(Duration::from_millis(50)), 512 << 20),
    ];
    println!("Append, entries of {} KiB:\n", ENTRY_BYTES >> 10);
    println!(
        "| synced | epoch MiB | engine | MB/s | of pwrite + fdatasync | bytes written per byte | RSS MiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (synced, cadence, bytes) in cadences {
        for &epoch_mib in &args.epoch_mib {
            let mut runs: BTreeMap<usize, Vec<Figures>> = BTreeMap::new();
            let engines = [None, Some(Engine::Sled), Some(Engine::Segment)];
            for _ in 0..args.rounds {
                for (index, engine) in engines.into_iter().enumerate() {
                    let dir = tempfile::tempdir_in(&args.dir)?;
                    let what = What::Append { cadence, bytes };
                    let run = Run { dir: dir.path().into(), engine, epoch_bytes: epoch_mib << 20, what };
                    let figures = run_apart(&run)?;
                    runs.entry(index).or_default().push(figures);
                    all.push((run, figures));
                }
            }
            for (index, figures) in &runs {
                // Each run beside the raw one of its round: the machine's speed changes.
                let ratios =
                    figures.iter().zip(&runs[&0]).map(|(of, raw)| of.mb_per_second() / raw.mb_per_second());
                println!(
                    "| {synced} | {epoch_mib} | {} | {:.0} | {:.2} | {:.2} | {:.1} |",
                    engines[*index].map_or("none", Engine::as_str),
                    median(figures.iter().map(Figures::mb_per_second).collect()),
                    median(ratios.collect()),
                    median(figures.iter().map(Figures::written_per_byte).collect()),
                    median(figures.iter().map(|figures| mib(figures.rss_bytes)).collect()),
                );
            }
        }
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn backlog(args: &Args, all: &mut Vec<(Run, Figures)>) -> anyhow::Result<()> {
    let bytes = args.backlog_mib << 20;
    println!(
        "\nA backlog of {} MiB, in epochs of 4 MiB, through the log without compression:\n",
        args.backlog_mib
    );
    println!("| engine | | MB/s | RSS MiB, most | RSS MiB, end | seconds |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for engine in [Engine::Sled, Engine::Segment] {
        let dir = tempfile::tempdir_in(&args.dir)?;
        for what in [What::Fill { bytes }, What::Open, What::Drain] {
            let run = Run { dir: dir.path().into(), engine: Some(engine), epoch_bytes: 4 << 20, what };
            let figures = run_apart(&run)?;
            let (name, rate) = match what {
                What::Open => ("open".to_owned(), "-".to_owned()),
                other => {
                    let name = format!("{other:?}").to_lowercase();
                    let name = name.split(' ').next().unwrap_or_default().to_owned();
                    (name, format!("{:.0}", figures.mb_per_second()))
                }
            };
            println!(
                "| {} | {name} | {rate} | {:.1} | {:.1} | {:.3} |",
                engine.as_str(),
                mib(figures.rss_bytes),
                mib(figures.rss_end_bytes),
                figures.seconds,
            );
            all.push((run, figures));
        }
    }
    Ok(())
}

/// Runs it in a process of its own.
fn run_apart(run: &Run) -> anyhow::Result<Figures> {
    let output =
        Command::new(std::env::current_exe()?).arg("--run").arg(serde_json::to_string(run)?).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{run:?}: {said}");
    serde_json::from_slice(&output.stdout).context("its figures")
}

fn run_here(run: &Run) -> anyhow::Result<Figures> {
    let pool = pool();
    let (written_before, rss_before) = (written_bytes()?, status_bytes("VmRSS:")?);
    let started = Instant::now();
    let payload_bytes = match run.what {
        What::Append { cadence, bytes } => append_entries(run, &pool, cadence, bytes)?,
        What::Fill { bytes } => fill(run, &pool, bytes)?,
        What::Open => open(run).map(|_| 0)?,
        What::Drain => drain(run)?,
    };
    Ok(Figures {
        seconds: started.elapsed().as_secs_f64(),
        payload_bytes,
        written_bytes: written_bytes()? - written_before,
        rss_bytes: status_bytes("VmHWM:")?.saturating_sub(rss_before),
        rss_end_bytes: status_bytes("VmRSS:")?.saturating_sub(rss_before),
    })
}

/// Bytes that do not compress.
fn pool() -> Vec<u8> {
    let mut pool = vec![0; POOL_BYTES];
    SmallRng::seed_from_u64(1).fill_bytes(&mut pool);
    pool
}

/// What of the process the kernel has given to the block layer.
fn written_bytes() -> anyhow::Result<u64> {
    let io = fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("write_bytes")?;
    Ok(line.parse()?)
}

fn status_bytes(name: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a field of status")?;
    let kib: u64 = line.split_whitespace().next().context("a number")?.parse()?;
    Ok(kib << 10)
}

/// Where appended bytes go.
enum Sink {
    Raw { file: File, at: u64 },
    Store { store: Box<dyn EpochStore>, next: EntrySeq },
}

impl Sink {
    fn append(&mut self, entry: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Raw { file, at } => {
                file.write_all_at(entry, *at)?;
                *at += entry.len() as u64;
            }
            Self::Store { store, next } => {
                if next.0 == 0 || store.wants_roll() {
                    if next.0 > 0 {
                        store.sync()?;
                    }
                    store.create(EpochId(*next))?;
                }
                store.append(*next, entry)?;
                *next = next.next();
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Raw { file, .. } => Ok(file.sync_data()?),
            Self::Store { store, .. } => Ok(store.sync()?),
        }
    }
}

fn append_entries(run: &Run, pool: &[u8], cadence: Cadence, bytes: u64) -> anyhow::Result<u64> {
    let mut sink = match run.engine {
        None => Sink::Raw { file: File::create_new(run.dir.join("raw"))?, at: 0 },
        Some(_) => Sink::Store { store: Box::new(store(run)?), next: EntrySeq(0) },
    };
    let (mut appended, mut synced, mut last_sync) = (0, 0, Instant::now());
    for entry in pool.chunks_exact(ENTRY_BYTES).cycle() {
        sink.append(entry)?;
        appended += entry.len() as u64;
        let is_due = match cadence {
            Cadence::Bytes(bytes) => appended - synced >= bytes,
            Cadence::Time(time) => last_sync.elapsed() >= time,
        };
        if is_due || appended >= bytes {
            sink.sync()?;
            (synced, last_sync) = (appended, Instant::now());
        }
        if appended >= bytes {
            break;
        }
    }
    Ok(appended)
}

fn store(run: &Run) -> anyhow::Result<DiskStore> {
    let options = DiskOptions {
        engine: run.engine.context("an engine")?,
        ballast_bytes: 0,
        ..DiskOptions::for_epoch_bytes(run.epoch_bytes)
    };
    Ok(DiskStore::open(&run.dir.join("log"), options)?)
}

fn open(run: &Run) -> anyhow::Result<Log> {
    let options = LogOptions { compression: Compression::None, ..LogOptions::default() };
    let metrics = LogMetrics::register(&mut Registry::default());
    Ok(Log::open(Box::new(store(run)?), options, metrics)?.0)
}

fn fill(run: &Run, pool: &[u8], bytes: u64) -> anyhow::Result<u64> {
    let mut log = open(run)?;
    let stream = StreamName::new("backlog").map_err(io::Error::other)?;
    let device = DeviceId::new("device").map_err(io::Error::other)?;
    let mut values = pool.chunks_exact(RECORD_BYTES).cycle();
    let mut filled = 0;
    while filled < bytes {
        let record = |value: &[u8]| Record {
            stream: stream.clone(),
            device: device.clone(),
            value: value.to_vec().into(),
            content_type: ContentType::OctetStream,
            event_time: None,
            received: Received::default(),
            device_seq: None,
            headers: Vec::new(),
        };
        let records: Vec<Record> =
            values.by_ref().take(usize::try_from(COMMIT_RECORDS)?).map(record).collect();
        log.append(vec![Batch { stream: stream.clone(), partition: PartitionId(0), records }]);
        log.sync()?;
        filled += COMMIT_RECORDS * RECORD_BYTES as u64;
    }
    Ok(filled)
}

/// As the replicator: reads on, and lets go what is through.
fn drain(run: &Run) -> anyhow::Result<u64> {
    let mut log = open(run)?;
    let (mut next, mut drained) = (EntrySeq(0), 0);
    while next < log.end() {
        let outcome = log.read(next, READ_BYTES)?;
        ensure!(outcome.lost.is_empty(), "{:?}", outcome.lost);
        let records = outcome.groups.iter().flat_map(|group| &group.batches).flat_map(|batch| &batch.records);
        drained += records.map(|record| record.value.len() as u64).sum::<u64>();
        next = outcome.next;
        log.trim(next, Monotonic::default())?;
    }
    ensure!(size_of_dir(&run.dir.join("log"))? <= 3 * run.epoch_bytes, "what was drained is gone");
    Ok(drained)
}

fn size_of_dir(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes +=
            if entry.file_type()?.is_dir() { size_of_dir(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
