//! The figures of the listener, of whole processes under load, and what an outage with a kill in it costs:
//!
//! ```text
//! cargo build --release --workspace --bins --example figures && target/release/examples/figures [--json FILE]
//! ```
//!
//! Kafka's jars come from `tests/kafka/kafka fetch`. The agent is measured from before the load until Kafka has all: three nodes,
//! on the same machine, which should have nothing else to do. Latency is from a PUBLISH to its PUBACK, as the load sees it; that
//! of Mosquitto comes before anything is stored.
#![allow(clippy::disallowed_methods, reason = "it measures the machine's own time")]

use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser as _;
use serde_json::{Value, json};
use wayside_tests::agent::{self, Agent};
use wayside_tests::certificates::Certificates;
use wayside_tests::kafka::{self, Cluster};
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::raw::{connect_all, open, open_tls, publish_1, publish_all, raise_descriptors, tls};
use wayside_tests::sim::{self, Load};
use wayside_tests::telegraf::Telegraf;
use wayside_tests::usage::Usage;
use wayside_tests::{PATIENCE, ports, wait_until};

/// Measures the listener, and a broker with a client of it for comparison.
#[derive(clap::Parser)]
struct Args {
    /// Messages a second, over all clients
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
    /// How long each load lasts, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Clients of the loads
    #[arg(long, value_delimiter = ',', default_value = "20,500")]
    clients: Vec<usize>,
    /// Idle clients that come back at once
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Also measure this Telegraf behind Mosquitto, under the same loads
    #[arg(long, value_name = "BINARY")]
    telegraf: Option<PathBuf>,
    /// How long Kafka is away, with a kill of every process of the gateway in the middle, at 2 000 messages/s
    #[arg(long, default_value_t = 60)]
    outage_seconds: u64,
    /// Also write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The way of a load.
#[derive(Clone, Copy)]
enum Way<'a> {
    /// The clients connect to the agent.
    Listener,
    /// They connect to Mosquitto, of which the agent is a client.
    Broker,
    /// They connect to Mosquitto, of which Telegraf is a client.
    Telegraf(&'a Path),
}

/// What takes the messages on to Kafka.
enum Forwarder {
    Agent(Agent),
    /// With its topic.
    Telegraf(Telegraf, String),
}

impl Forwarder {
    fn pid(&self) -> u32 {
        match self {
            Self::Agent(agent) => agent.pid(),
            Self::Telegraf(telegraf, _) => telegraf.pid(),
        }
    }

    /// Waits until Kafka has `messages` of them.
    fn wait_for(&self, cluster: &Cluster, messages: u64) {
        match self {
            Self::Agent(agent) => wait_until(PATIENCE, "the agent has all, and Kafka too", || {
                #[allow(clippy::cast_precision_loss, reason = "far below 2^52 messages")]
                let all = agent.metric("wayside_source_records_total") >= Some(messages as f64);
                let health: Value = serde_json::from_str(&agent.page("/healthz")).expect("JSON");
                (all && health["replicate"]["backlog_records"] == 0).then_some(())
            }),
            Self::Telegraf(_, topic) => {
                let messages = usize::try_from(messages).expect("they fit into memory");
                cluster.reader(topic).wait_for(messages, PATIENCE);
            }
        }
    }

    fn stop(&mut self) {
        match self {
            Self::Agent(agent) => agent.stop(),
            Self::Telegraf(telegraf, _) => telegraf.stop(),
        }
    }
}

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Listener => "listener",
            Self::Broker => "mosquitto + source.mqtt",
            Self::Telegraf(_) => "mosquitto + telegraf",
        })
    }
}

fn main() {
    let args = Args::parse();
    let mut figures = Vec::new();
    println!(
        "{:<24} {:>7} {:>9} {:>7} {:>20} {:>9} {:>20}",
        "way", "clients", "messages", "rate/s", "CPU s/million", "RSS MiB", "PUBACK p50 / p99 ms"
    );
    let telegraf = args.telegraf.as_deref().map(Way::Telegraf);
    for way in [Way::Listener, Way::Broker].into_iter().chain(telegraf) {
        for &clients in &args.clients {
            figures.push(load(way, clients, &args));
        }
    }
    let port = ports::free();
    figures.push(idle("idle", &idle_listener(port, ""), || open(port), args.idle));
    let (port, certificates) = (ports::free(), Certificates::new());
    certificates.issue("listener");
    let client = tls(&certificates.path("ca.crt"));
    let section = format!(
        "[source.listener.tls]\ncert_file = \"{}\"\nkey = \"file:{}\"\n",
        certificates.path("listener.crt").display(),
        certificates.path("listener.key").display()
    );
    figures.push(idle("idle-tls", &idle_listener(port, &section), || open_tls(port, &client), args.idle));
    println!(
        "{:<24} {:>12} {:>9} {:>6} {:>10} {:>9}",
        "outage", "acknowledged", "delivered", "lost", "duplicated", "reordered"
    );
    for way in [Way::Listener, Way::Broker] {
        figures.push(outage(way, args.outage_seconds));
    }
    if let Some(path) = args.json {
        let text = serde_json::to_string_pretty(&figures).expect("JSON");
        std::fs::write(&path, text + "\n").expect("the file can be written");
    }
}

/// A gateway that runs, with where its devices connect to; `what` tells it from the others.
fn gateway(way: Way, what: &str, cluster: &Cluster) -> (String, Option<Mosquitto>, Agent) {
    let port = ports::free();
    let broker = matches!(way, Way::Broker).then(Mosquitto::start);
    let (url, sections) = match &broker {
        None => (format!("mqtt://127.0.0.1:{port}"), agent::listener(port)),
        Some(broker) => (broker.url(), agent::mqtt_source(&broker.url(), 5)),
    };
    let kind = if broker.is_some() { "broker" } else { "listener" };
    let name = format!("figures-{kind}-{what}");
    let mut agent = Agent::new(&name, &cluster.bootstrap_servers(), &sections);
    agent.start();
    if let Some(broker) = &broker {
        broker.wait_subscribed("traffic/+/position");
    }
    (url, broker, agent)
}

/// Telegraf behind a broker.
fn telegraf(binary: &Path, what: &str, cluster: &Cluster) -> (String, Option<Mosquitto>, Forwarder) {
    let (broker, topic) = (Mosquitto::start(), format!("figures-telegraf-{what}"));
    cluster.create_topic(&topic, 4);
    let telegraf = Telegraf::start(binary, &broker.url(), &cluster.bootstrap_servers(), &topic);
    broker.wait_subscribed("traffic/+/position");
    (broker.url(), Some(broker), Forwarder::Telegraf(telegraf, topic))
}

/// A load of QoS 1 until Kafka has all of it.
fn load(way: Way, clients: usize, args: &Args) -> Value {
    let cluster = kafka::shared();
    let what = format!("{clients}");
    let (url, broker, mut forwarder) = match way {
        Way::Telegraf(binary) => telegraf(binary, &what, &cluster),
        Way::Listener | Way::Broker => {
            let (url, broker, agent) = gateway(way, &what, &cluster);
            (url, broker, Forwarder::Agent(agent))
        }
    };
    let pids: Vec<u32> = broker.iter().map(Mosquitto::pid).chain([forwarder.pid()]).collect();
    let before: Vec<Usage> = pids.iter().map(|pid| Usage::of(*pid)).collect();
    let (rate, count) = (args.rate.to_string(), clients.to_string());
    let duration = format!("{}s", args.seconds);
    let arguments = ["--devices", &count, "--clients", &count, "--rate", &rate, "--duration", &duration];
    let mut load = Load::start(["traffic", "--json", "--mqtt", &url].into_iter().chain(arguments));
    let summary = load.finish(Duration::from_secs(args.seconds) + PATIENCE);
    let summary: Value = serde_json::from_str(&summary).expect("the load sums up in JSON");
    let messages = summary["acked"].as_u64().expect("a count");
    forwarder.wait_for(&cluster, messages);
    let after: Vec<Usage> = pids.iter().map(|pid| Usage::of(*pid)).collect();
    forwarder.stop();
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52 messages")]
    let per_million =
        |(before, after): (&Usage, &Usage)| (after.cpu - before.cpu).as_secs_f64() * 1e6 / messages as f64;
    let cpu: Vec<f64> = before.iter().zip(&after).map(per_million).collect();
    let peak_kib: Vec<u64> = after.iter().map(|usage| usage.peak_kib).collect();
    let seconds = summary["seconds"].as_f64().expect("a time");
    let (p50, p99) = (&summary["latency_ms_p50"], &summary["latency_ms_p99"]);
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52 messages")]
    let reached = messages as f64 / seconds;
    println!(
        "{way:<24} {clients:>7} {messages:>9} {reached:>7.0} {:>20} {:>9} {:>20}",
        joined(cpu.iter().map(|cpu| format!("{cpu:.2}"))),
        joined(peak_kib.iter().map(|kib| format!("{:.1}", mib(*kib)))),
        format!("{p50} / {p99}"),
    );
    json!({
        "way": way.to_string(), "clients": clients, "messages": messages, "messages_per_second": reached,
        // Of Mosquitto, where there is one, then of the agent or Telegraf.
        "cpu_seconds_per_million": cpu, "peak_resident_kib": peak_kib,
        "puback_ms_p50": p50, "puback_ms_p99": p99,
    })
}

/// A load while Kafka is away, with all processes of the gateway killed in the middle; then Kafka comes back.
fn outage(way: Way, seconds: u64) -> Value {
    let mut cluster = kafka::exclusive();
    let (url, mut broker, mut agent) = gateway(way, "outage", &cluster);
    cluster.kill_all();
    let duration = format!("{seconds}s");
    let arguments = ["--devices", "50", "--rate", "2000", "--duration", &duration];
    let mut load = Load::start(["traffic", "--mqtt", &url].into_iter().chain(arguments));
    std::thread::sleep(Duration::from_secs(seconds / 2));
    broker.iter_mut().for_each(Mosquitto::kill);
    agent.kill();
    broker.iter_mut().for_each(Mosquitto::start_again);
    agent.start();
    load.finish(Duration::from_secs(seconds) + PATIENCE);
    cluster.heal();
    let report = sim::verify(&cluster, agent.environment(), &[load.ledger()], PATIENCE);
    agent.stop();
    let counts = ["acknowledged", "delivered", "lost", "duplicated", "reordered"];
    let [acknowledged, delivered, lost, duplicated, reordered] = counts.map(|name| report.count(name));
    println!("{way:<24} {acknowledged:>12} {delivered:>9} {lost:>6} {duplicated:>10} {reordered:>9}");
    json!({
        "way": format!("outage, {way}"), "seconds": seconds, "acknowledged": acknowledged, "delivered": delivered,
        "lost": lost, "duplicated": duplicated, "reordered": reordered,
    })
}

/// A listener on `port` that takes as many clients as come and as fast as they come, with a further section of it.
fn idle_listener(port: u16, section: &str) -> String {
    let limits = "max_connections = 20000\nmax_half_open = 20000\nconnects_per_second = 0\n";
    let listen = format!("listen = \"127.0.0.1:{port}\"\n");
    agent::listener(port).replacen(&listen, &(listen.clone() + limits + section), 1)
}

/// Clients that say nothing, then come back at once after the agent was killed and publish once each. They connect over what
/// `open` returns.
fn idle<S: Read + Write + Send>(
    way: &str,
    sections: &str,
    open: impl Fn() -> S + Sync,
    wanted: usize,
) -> Value {
    const IDLE: Duration = Duration::from_secs(5);
    let clients = raise_descriptors(wanted);
    let cluster = kafka::shared();
    let mut agent = Agent::new(&format!("figures-{way}"), &cluster.bootstrap_servers(), sections);
    agent.start();
    let alone = Usage::of(agent.pid());
    let connected = connect_all(&open, clients);
    let before = Usage::of(agent.pid());
    std::thread::sleep(IDLE);
    let idle = Usage::of(agent.pid());
    agent.kill();
    drop(connected);
    agent.start();
    let started = Instant::now();
    let mut connected = connect_all(&open, clients);
    let served = started.elapsed();
    let reading = |n| format!(r#"{{"device":"c{n}","seq":1,"time":"2026-01-01T00:00:00Z"}}"#);
    publish_all(&mut connected, |n| publish_1(&format!("traffic/c{n}/position"), 1, reading(n).as_bytes()));
    let acknowledged = started.elapsed();
    let peak_kib = Usage::of(agent.pid()).peak_kib;
    let topic = agent.topic("vehicle-positions");
    cluster.reader(&topic).wait_for(clients, PATIENCE);
    drop(connected);
    agent.stop();
    assert_eq!(cluster.read(&topic).len(), clients, "in Kafka, each once");
    let cpu = idle.cpu - before.cpu;
    println!(
        "\n{way}, {clients} clients: {:.1} MiB of RSS ({:.1} without them), {cpu:?} of CPU in {IDLE:?}\n\
         all back at once after a kill: connected in {served:.2?}, each with a PUBACK in {acknowledged:.2?}, {:.1} MiB at most",
        mib(idle.resident_kib),
        mib(alone.resident_kib),
        mib(peak_kib)
    );
    json!({
        "way": way, "clients": clients, "resident_kib": idle.resident_kib, "resident_kib_alone": alone.resident_kib,
        "cpu_ms_per_second": cpu.as_secs_f64() * 1000.0 / IDLE.as_secs_f64(),
        "reconnected_ms": served.as_millis(), "acknowledged_ms": acknowledged.as_millis(),
        "peak_resident_kib": peak_kib,
    })
}

/// A figure of each process.
fn joined(figures: impl Iterator<Item = String>) -> String {
    figures.collect::<Vec<_>>().join(" + ")
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
