//! `wayside-sim verify`: holds Kafka against the ledgers and says what became of every reading.
//!
//! It reads all partitions of the topics `<environment>.<stream>` that the ledgers name, as a `read_committed` consumer,
//! from the beginning to the end. A record is recognised by its topic, its key (the device) and its header `wayside.seq`
//! (ids `s..` of the ledger), else by the FNV-1a 64 hash of its value (ids `h..`).
//!
//! # Words
//! An id that was sent n times (recordings repeat) stands for n readings.
//! - **sent**, **acknowledged**: readings with such a line in a ledger.
//! - **delivered**: readings found in Kafka. Unacknowledged ones may be: nobody promised that they are not.
//! - **lost**: acknowledged and not delivered.
//! - **duplicated**: records beyond the number of times that their id was sent.
//! - **reordered**: records that are no duplicates and come, along the partition, behind one of the same device that was
//!   sent later. A device that is found in two partitions has no order: an error of its own.
//! - **late**: from `sent` to the header `wayside.received`, so the way to the gateway and the gateway's clock; with
//!   `--follow`, from `sent` to this consumer, so the whole way.
//! - **unknown**: records that no ledger names. **foreign partition**: records outside of the partition that Kafka's Java
//!   producer would have chosen for their key.
//!
//! # Limits
//! A reading that was sent again with the same id is not told apart from a duplicate of its first sending until there are
//! more records than sendings. Duplicates that arrive after the verdict are not seen: let the agent drain before.

mod core;
mod kafka;
mod partition;
mod report;

use std::{
    io::IsTerminal,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

pub use self::{
    core::{Delivery, Verifier},
    kafka::{Arrival, ConsumerOptions, TopicReader},
    partition::partition_of,
    report::{Late, Report, StreamReport, Totals},
};
use crate::{ledger::Ledger, load::duration};

/// How long a ledger must not have grown before `--follow` asks whether it is complete.
const QUIET: Duration = Duration::from_secs(3);
/// A cluster that says nothing for so long is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Arguments of `wayside-sim verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Kafka brokers, HOST:PORT, several separated by commas.
    #[arg(long, value_name = "HOST:PORT,...")]
    bootstrap: String,
    /// A ledger that a load wrote; may be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    ledger: Vec<PathBuf>,
    /// The environment of the gateway: topics are named ENVIRONMENT.STREAM.
    #[arg(long, default_value = "test")]
    environment: String,
    /// Fail on duplicates too.
    #[arg(long)]
    exactly_once: bool,
    /// Keep reading for so long while something acknowledged is missing: the agent may still be draining.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    wait: Duration,
    /// Start beside the load and consume while it runs, so that "late" is the whole way from the load to this consumer
    /// instead of from the load to the gateway. Ends when all that the ledgers name is acknowledged and found and they
    /// have not grown for 3 s.
    #[arg(long, conflicts_with = "wait")]
    follow: bool,
    /// The longest that --follow may take.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration, requires = "follow")]
    timeout: Duration,
    /// A further setting of librdkafka, such as security.protocol=ssl; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_property)]
    property: Vec<(String, String)>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn parse_property(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs `wayside-sim verify`: success when the promise was kept, failure when it was not.
///
/// # Errors
/// A ledger that cannot be read, a cluster that does not answer: nothing is known then.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (json, exactly_once) = (args.json, args.exactly_once);
    // librdkafka's consumer blocks.
    let report = tokio::task::spawn_blocking(move || {
        let consumer = ConsumerOptions { bootstrap: args.bootstrap, properties: args.property };
        if args.follow {
            follow(&consumer, &args.environment, &args.ledger, args.timeout)
        } else {
            let ledger = Ledger::read(&args.ledger)?;
            verify(&consumer, &args.environment, &ledger, args.wait)
        }
    })
    .await
    .context("the verifier panicked")??;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(if report.holds(exactly_once) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads every topic that `ledger` names to its end, and again for `wait` while something acknowledged is missing.
/// Blocks.
///
/// # Errors
/// The cluster does not answer, or a record cannot be one of the agent's (no key).
pub fn verify(
    options: &ConsumerOptions,
    environment: &str,
    ledger: &Ledger,
    wait: Duration,
) -> anyhow::Result<Report> {
    let mut verifier = Verifier::new();
    verifier.add_ledger(ledger);
    let progress = progress_bar(verifier.missing());
    let acknowledged = verifier.missing();
    let streams: Vec<String> = verifier.stream_names().map(str::to_owned).collect();
    let mut readers = Vec::new();
    for stream in streams {
        readers.push(TopicReader::new(options, environment, &stream, Arrival::Received)?);
    }
    let deadline = Instant::now() + wait;
    loop {
        for reader in &mut readers {
            if reader.partitions().is_none()
                && let Some(partitions) = reader.open()?
            {
                verifier.set_partitions(reader.stream(), partitions);
            }
            reader.read_to_end(SILENCE_MAX, |delivery| {
                verifier.delivered(&delivery);
                progress.set_position(acknowledged - verifier.missing());
            })?;
        }
        if verifier.missing() == 0 || Instant::now() >= deadline {
            break;
        }
    }
    progress.finish_and_clear();
    Ok(verifier.report())
}

/// Consumes every topic of `environment` while the ledgers grow; see `--follow`. Blocks.
///
/// # Errors
/// As [`verify`], and a ledger that cannot be read.
pub fn follow(
    options: &ConsumerOptions,
    environment: &str,
    ledgers: &[PathBuf],
    timeout: Duration,
) -> anyhow::Result<Report> {
    let deadline = Instant::now() + timeout;
    let progress = progress_bar(0);
    let mut readers: Vec<TopicReader> = Vec::new();
    let mut deliveries: Vec<Delivery> = Vec::new();
    let (mut sizes, mut grown_at) = (Vec::new(), Instant::now());
    let mut judged = None;
    loop {
        for stream in kafka::streams_of(options, environment)? {
            if readers.iter().all(|r| r.stream() != stream) {
                let mut reader = TopicReader::new(options, environment, &stream, Arrival::Consumed)?;
                reader.open()?;
                readers.push(reader);
            }
        }
        for _ in 0..10 {
            for reader in &mut readers {
                reader.read_to_end(SILENCE_MAX, |delivery| deliveries.push(delivery))?;
            }
        }
        progress.set_position(deliveries.len() as u64);
        let sizes_now: Vec<u64> =
            ledgers.iter().map(|path| std::fs::metadata(path).map_or(0, |file| file.len())).collect();
        if sizes_now != sizes {
            (sizes, grown_at) = (sizes_now, Instant::now());
        }
        let over = Instant::now() >= deadline;
        let quiet = grown_at.elapsed() >= QUIET && judged != Some(deliveries.len());
        if over || quiet {
            judged = Some(deliveries.len());
            let verifier = judge(ledgers, &readers, &deliveries)?;
            let complete = verifier.missing() == 0 && verifier.unacknowledged() == 0;
            if over || complete {
                progress.finish_and_clear();
                return Ok(verifier.report());
            }
        }
    }
}

fn judge(ledgers: &[PathBuf], readers: &[TopicReader], deliveries: &[Delivery]) -> anyhow::Result<Verifier> {
    let mut verifier = Verifier::new();
    verifier.add_ledger(&Ledger::read(ledgers)?);
    let named: Vec<String> = verifier.stream_names().map(str::to_owned).collect();
    let is_named = |stream: &str| named.iter().any(|name| name == stream);
    for reader in readers.iter().filter(|r| is_named(r.stream())) {
        if let Some(count) = reader.partitions() {
            verifier.set_partitions(reader.stream(), count);
        }
    }
    deliveries.iter().filter(|d| is_named(&d.stream)).for_each(|d| verifier.delivered(d));
    Ok(verifier)
}

/// On standard error, and only where a person looks at it.
fn progress_bar(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = if length > 0 {
        "{bar:30} {human_pos} of {human_len} acknowledged readings found, {per_sec}"
    } else {
        "{spinner} {human_pos} records consumed, {per_sec}"
    };
    let style = ProgressStyle::with_template(template).expect("the templates are constant and right");
    ProgressBar::new(length).with_style(style)
}
