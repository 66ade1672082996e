//! What a backlog costs: memory while it is written and drained, and the latency of live records while it is.
//!
//! ```text
//! cargo build --release --workspace --bins --example backlog
//! target/release/examples/backlog drain [--mib 10240] [--json]
//! target/release/examples/backlog live [--records 1000000] [--json]
//! ```
//!
//! Kafka's jars come from `tests/kafka/kafka fetch`. Three nodes, the agent and the load share the machine. `drain` takes as much disk
//! as its backlog, where temporary files are, and Kafka keeps little of it.
#![allow(clippy::disallowed_methods, reason = "it measures the machine's own time")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser as _;
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::json;
use wayside_tests::agent::{self, Agent};
use wayside_tests::sim::Load;
use wayside_tests::usage::Usage;
use wayside_tests::{PATIENCE, kafka, ports, wait_until};

/// Measures what a backlog costs.
#[derive(clap::Parser)]
enum Args {
    /// Write a backlog while Kafka is away, let it drain, and print the agent's memory meanwhile
    Drain {
        /// Size of the backlog, in MiB
        #[arg(long, default_value_t = 10 * 1024)]
        mib: u64,
        /// Resident memory of the agent that must not be exceeded, in MiB
        #[arg(long, default_value_t = 64.0)]
        bound_mib: f64,
        /// As `log.engine`
        #[arg(long, default_value = "sled")]
        engine: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a backlog drain while live records come, and print their latency
    Live {
        /// Records of the backlog
        #[arg(long, default_value_t = 1_000_000)]
        records: u32,
        /// Live records a second: half of them of partitions without a backlog
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// As `replicate.catch_up_bytes_per_second`
        #[arg(long, default_value_t = 0)]
        catch_up_bytes_per_second: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let met = match Args::parse() {
        Args::Drain { mib, bound_mib, engine, json } => drain(mib, bound_mib, &engine, json),
        Args::Live { records, rate, catch_up_bytes_per_second, json } => {
            live(records, rate, catch_up_bytes_per_second, json)
        }
    };
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Bytes of each record of `drain`: near the largest that the log takes.
const RECORD_BYTES: usize = 60_000;

/// Clients of `drain`, each with one request under way.
const WRITERS: u64 = 16;

/// Longest time that a phase of `drain` may take.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn drain(mib: u64, bound_mib: f64, engine: &str, as_json: bool) -> bool {
    let mut cluster = kafka::exclusive();
    let port = ports::free();
    let http = format!(
        "[[source.http]]\nname = \"web\"\nlisten = \"127.0.0.1:{port}\"\n[[source.http.route]]\nstream = \"blobs\"\n\
         [[stream]]\nname = \"blobs\"\npartitions = 1\n"
    );
    let mut agent = Agent::new("backlog-drain", &cluster.bootstrap_servers(), &http);
    agent.configure("[log]\n", &format!("[log]\nengine = \"{engine}\"\n"));
    let topic = agent.topic("blobs");
    let small = ["retention.bytes=67108864", "segment.bytes=33554432", "file.delete.delay.ms=1000"];
    let small = small.map(|setting| ["--config", setting]).concat();
    let create = ["--create", "--topic", &topic, "--partitions", "1", "--replication-factor", "1"];
    cluster.tool("topics", &[&create[..], &small].concat(), "");
    cluster.kill_all();
    agent.start();

    let began = Instant::now();
    let mut samples = Vec::new();
    let mut peak_mib = 0.0_f64;
    let mut sample = |phase: &str| {
        let usage = Usage::of(agent.pid());
        let backlog_bytes = agent.metric("wayside_log_size_bytes").unwrap_or_default();
        let (seconds, resident_mib) = (began.elapsed().as_secs(), usage.resident_kib as f64 / 1024.0);
        peak_mib = usage.peak_kib as f64 / 1024.0;
        if !as_json {
            println!(
                "{phase:<6} {seconds:>6} s {:>10.1} MiB {resident_mib:>8.1} MiB RSS",
                backlog_bytes / 1048576.0
            );
        }
        samples.push(json!({
            "phase": phase, "seconds": seconds, "backlog_bytes": backlog_bytes, "resident_mib": resident_mib,
        }));
        std::thread::sleep(Duration::from_secs(2));
    };
    let left = AtomicU64::new((mib << 20) / RECORD_BYTES as u64);
    let written_s = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|id| {
                scope.spawn({
                    let left = &left;
                    move || write(port, id, left)
                })
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            assert!(began.elapsed() < DRAIN_MAX, "the backlog is not written");
            sample("write");
        }
        began.elapsed().as_secs_f64()
    });
    cluster.heal();
    let back = Instant::now();
    while agent.metric("wayside_replicate_lag_records") != Some(0.0) {
        assert!(back.elapsed() < DRAIN_MAX, "the backlog is not drained");
        sample("drain");
    }
    let drained_s = back.elapsed().as_secs_f64();
    sample("empty");
    agent.stop();
    let met = peak_mib <= bound_mib;
    if as_json {
        let figures = json!({
            "engine": engine, "mib": mib, "written_seconds": written_s, "drained_seconds": drained_s,
            "peak_resident_mib": peak_mib, "bound_mib": bound_mib, "samples": samples,
        });
        println!("{figures:#}");
    } else {
        println!(
            "{engine}, {mib} MiB: written in {written_s:.0} s, drained in {drained_s:.0} s, {peak_mib:.1} MiB RSS at most, bound \
             {bound_mib:.0}"
        );
    }
    met
}

/// Posts records that do not compress until none is left.
fn write(port: u16, id: u64, left: &AtomicU64) {
    let mut rng = SmallRng::seed_from_u64(id);
    let mut connection =
        BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the agent listens"));
    let mut body = vec![0; RECORD_BYTES];
    let head = format!(
        "POST /v1/streams/blobs/records?device=writer-{id} HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {RECORD_BYTES}\r\n\r\n"
    );
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        rng.fill_bytes(&mut body);
        // No room at the moment is answered with 503.
        while !post(&mut connection, &head, &body) {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Whether the record was stored.
fn post(connection: &mut BufReader<TcpStream>, head: &str, body: &[u8]) -> bool {
    let stream = connection.get_mut();
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("the agent reads");
    let (mut status, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).expect("the agent answers");
        if status.is_empty() {
            status.clone_from(&line);
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut answer = vec![0; length];
    connection.read_exact(&mut answer).expect("the agent answers");
    let stored = status.contains(" 200 ");
    assert!(stored || status.contains(" 503 "), "{status}{}", String::from_utf8_lossy(&answer));
    stored
}

/// Records a second of the load that makes the backlog.
const BACKLOG_RATE: u32 = 8000;

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn live(records: u32, rate: u32, catch_up_bytes_per_second: u64, as_json: bool) -> bool {
    let mut cluster = kafka::exclusive();
    let port = ports::free();
    let url = format!("mqtt://127.0.0.1:{port}");
    let mut agent = Agent::new("backlog-live", &cluster.bootstrap_servers(), &agent::listener(port));
    let pace = format!("[replicate]\ncatch_up_bytes_per_second = {catch_up_bytes_per_second}\n");
    agent.configure("[replicate]\n", &pace);
    agent.start();
    let load = |what: &str, rate: u32, duration: String| {
        let (rate, arguments) = (rate.to_string(), ["--devices", "200", "--clients", "20", "--json"]);
        Load::start(
            [&[what, "--mqtt", &url, "--rate", &rate, "--duration", &duration], &arguments[..]].concat(),
        )
    };
    // Topics are there before the outage, as those of a gateway that runs.
    for what in ["traffic", "occupancy"] {
        load(what, 200, "2s".into()).finish(PATIENCE);
    }
    let (backlogged, idle) = (agent.topic("vehicle-positions"), agent.topic("occupancy"));
    let lag = || agent.metric("wayside_replicate_lag_records");
    wait_until(PATIENCE, "Kafka has all", || lag().filter(|lag| *lag == 0.0));
    cluster.kill_all();
    let seconds = records.div_ceil(BACKLOG_RATE);
    load("traffic", BACKLOG_RATE, format!("{seconds}s"))
        .finish(Duration::from_secs(seconds.into()) * 4 + PATIENCE);
    let servers = cluster.bootstrap_servers();
    cluster.heal();
    let began = Instant::now();
    let backlog_records = lag().unwrap_or_default();
    // What comes before is of the outage: then no partition is without a backlog.
    wait_until(PATIENCE, "Kafka answers the agent again", || lag().filter(|lag| *lag < backlog_records));

    let (is_over, share) = (AtomicBool::new(false), rate / 2);
    let (mut of_idle, mut of_backlogged) = std::thread::scope(|scope| {
        let follow = |topic: &str| {
            scope.spawn({
                let (servers, topic, is_over) = (servers.clone(), topic.to_owned(), &is_over);
                move || latencies(&servers, &topic, is_over)
            })
        };
        let (of_idle, of_backlogged) = (follow(&idle), follow(&backlogged));
        let mut live = ["traffic", "occupancy"].map(|what| load(what, share, "3600s".into()));
        wait_until(DRAIN_MAX, "the backlog is sent", || {
            let lag = lag()?;
            // Some seconds' worth is under way at any time.
            (lag < 3.0 * f64::from(rate)).then_some(())
        });
        is_over.store(true, Ordering::Relaxed);
        live.iter_mut().for_each(Load::interrupt);
        let figures = (of_idle.join().expect("a consumer"), of_backlogged.join().expect("a consumer"));
        live.iter_mut().for_each(|load| _ = load.finish(PATIENCE));
        figures
    });
    let drained_s = began.elapsed().as_secs_f64();
    let peak_mib = Usage::of(agent.pid()).peak_kib as f64 / 1024.0;
    agent.stop();
    let [idle, backlogged] = [&mut of_idle, &mut of_backlogged].map(|latencies| {
        latencies.sort_unstable();
        let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
        json!({ "records": latencies.len(), "p50_ms": at(50), "p99_ms": at(99), "max_ms": latencies.last() })
    });
    let met = idle["p99_ms"].as_i64().is_some_and(|p99| p99 < 2000);
    let figures = json!({
        "backlog_records": backlog_records, "rate": rate, "catch_up_bytes_per_second": catch_up_bytes_per_second,
        "drained_seconds": drained_s, "without_backlog": idle, "with_backlog": backlogged, "peak_resident_mib": peak_mib,
    });
    if as_json {
        println!("{figures:#}");
    } else {
        println!(
            "{backlog_records} records of backlog sent in {drained_s:.0} s, while {rate} came a second, {peak_mib:.1} MiB RSS \
             at most\n\
             live, of partitions without backlog: {}\nlive, of partitions with it:         {}",
            figures["without_backlog"], figures["with_backlog"]
        );
    }
    met
}

/// From the time that a device says to the time that a `read_committed` consumer has its record, in ms, of records that were made
/// since this was called. Each record must be the next of its partition: none is missing, none comes twice.
fn latencies(servers: &str, topic: &str, is_over: &AtomicBool) -> Vec<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "wayside-backlog")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()
        .expect("a consumer can be made");
    let mut partitions = TopicPartitionList::new();
    for partition in 0..4 {
        partitions
            .add_partition_offset(topic, partition, Offset::Beginning)
            .expect("the beginning is an offset");
    }
    consumer.assign(&partitions).expect("these partitions exist");
    let now_ms = || {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        i64::try_from(since_1970.as_millis()).expect("for long")
    };
    let began_ms = now_ms();
    let (mut latencies, mut next) = (Vec::new(), BTreeMap::new());
    while !is_over.load(Ordering::Relaxed) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let mut headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let offset = headers.find(|header| header.key == "wayside.offset").and_then(|header| header.value);
        let offset: u64 =
            std::str::from_utf8(offset.expect("a header")).expect("text").parse().expect("a number");
        let expected = next.insert(message.partition(), offset + 1).unwrap_or_default();
        assert_eq!(offset, expected, "partition {} of {topic}", message.partition());
        if let Some(made_ms) = message.timestamp().to_millis().filter(|made_ms| *made_ms >= began_ms) {
            latencies.push(now_ms() - made_ms);
        }
    }
    latencies
}
