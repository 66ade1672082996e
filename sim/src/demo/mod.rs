//! `wayside-sim demo`: the whole journey on this machine, with an outage and a crash in the middle, and the verdict.
//!
//! No server is needed: an embedded Kafka runs in this process, the agent and the loads are this program again as child
//! processes, serial devices speak through a pseudo-terminal. Devices with MQTT connect to the agent itself, or with `--intake
//! broker` to an embedded broker, of which the agent is a client. Everything is on free ports of the loopback and in a
//! temporary directory, and gone at the end.
//!
//! | at | what happens |
//! |---:|--------------|
//! | 0 | rooms, vehicles and serial devices begin to send |
//! | 30 % | Kafka goes away |
//! | 45 % | the agent is killed with SIGKILL |
//! | 50 % | the agent is started again |
//! | 65 % | Kafka comes back, with what it had |
//! | 80 % | the loads end; the agent drains |
//!
//! Then the verifier reads Kafka and holds it against what the loads noted. It is told nothing by the agent.

mod agent;
mod config;
mod loads;
mod screen;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

pub use self::agent::{AgentArgs, run_agent};
use self::{
    agent::Agent,
    loads::{Load, LoadPlan},
    screen::{Screen, Snapshot},
};
use crate::{
    embedded::{kafka::EmbeddedKafka, mqtt::EmbeddedMqtt},
    ledger::Ledger,
    load,
    verify::{self, ConsumerOptions, Report},
};

/// The shortest demo: below, the agent has not come back before the loads end.
const DURATION_MIN: Duration = Duration::from_secs(10);
/// How long the agent may take until it listens, or is connected to the MQTT broker: what is published there before reaches nobody.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// How long draining may take, and then the verifier's search for what is missing.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// How often the screen is drawn.
const TICK: Duration = Duration::from_millis(250);

const ROOMS: LoadPlan = LoadPlan { name: "rooms (MQTT)", command: "occupancy", devices: 60, rate: 120 };
const VEHICLES: LoadPlan = LoadPlan { name: "vehicles (MQTT)", command: "traffic", devices: 40, rate: 200 };
const SERIAL: LoadPlan = LoadPlan { name: "rooms (serial)", command: "occupancy", devices: 3, rate: 30 };

/// Arguments of `wayside-sim demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How long it takes, without draining and verifying; at least 10s.
    #[arg(long, default_value = "30s", value_parser = parse_demo_duration)]
    duration: Duration,
    /// What devices with MQTT connect to.
    #[arg(long, value_enum, default_value_t = Intake::Listener)]
    intake: Intake,
    /// Print the verdict as one JSON object; everything else goes to standard error.
    #[arg(long)]
    json: bool,
}

/// What stands between devices with MQTT and the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Intake {
    /// Nothing: they connect to the agent.
    Listener,
    /// A broker that acknowledges what it holds in memory.
    Broker,
}

fn parse_demo_duration(text: &str) -> Result<Duration, String> {
    match load::duration(text)? {
        short if short < DURATION_MIN => Err("is shorter than 10s".into()),
        duration => Ok(duration),
    }
}

/// The verdict, with what the agent was put through.
#[derive(Debug, Serialize)]
struct Verdict {
    #[serde(flatten)]
    report: Report,
    duration_ms: u128,
    outage_ms: u128,
    kills: u32,
}

/// Runs `wayside-sim demo`: success when nothing acknowledged was lost and nothing reordered.
///
/// # Errors
/// Something could not be started, the agent died by itself, or Ctrl-C. All child processes and files are gone then too.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // Whichever ends it, dropping the demo's future ends the children and removes the files.
    let verdict = tokio::select! {
        biased;
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
        verdict = play(&args, Screen::new(args.json)) => verdict?,
    };
    if args.json {
        println!("{}", serde_json::to_string(&verdict)?);
    } else {
        println!("\n{}", verdict.report);
        println!("{}", sentence(&verdict));
    }
    let t = &verdict.report.totals;
    let holds = verdict.report.holds(true) && t.acknowledged > 0;
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn sentence(verdict: &Verdict) -> String {
    let t = &verdict.report.totals;
    format!(
        "Kafka was away for {:.1} s and the agent was killed {}: of {} acknowledged readings {} lost, {} twice, {} out \
         of order.",
        Duration::from_millis(u64::try_from(verdict.outage_ms).unwrap_or(u64::MAX)).as_secs_f64(),
        if verdict.kills == 1 { "once".to_owned() } else { format!("{} times", verdict.kills) },
        t.acknowledged,
        t.lost,
        t.duplicated,
        t.reordered
    )
}

async fn play(args: &Args, screen: Screen) -> anyhow::Result<Verdict> {
    let duration = args.duration;
    let mut stage = Stage::set(args, screen)?;
    stage.start_loads(duration * 80 / 100).await?;
    // The brokers' and the agent's start do not count.
    let start = Instant::now();
    stage.start = start;
    let part = |percent: u32| start + duration * percent / 100;

    stage.until(part(30), "Rooms and vehicles send; the agent stores and forwards.").await?;
    let outage = Instant::now();
    stage.kafka.go_away();
    stage.until(part(45), "Kafka is away: the agent stores.").await?;
    stage.agent.kill().await?;
    let killed = match args.intake {
        Intake::Listener => "The agent was killed: devices keep what has no acknowledgement.",
        Intake::Broker => "The agent was killed: devices wait, or their broker does.",
    };
    stage.until(part(50), killed).await?;
    stage.agent.start()?;
    stage.until(part(65), "The agent is back with what it had stored; Kafka is still away.").await?;
    stage.kafka.come_back();
    let outage_ms = outage.elapsed().as_millis();
    stage.until(part(80), "Kafka is back: the agent catches up while more comes.").await?;
    stage.drain().await?;
    let report = stage.verify().await?;
    stage.agent.stop().await?;
    Ok(Verdict { report, duration_ms: start.elapsed().as_millis(), outage_ms, kills: 1 })
}

/// Everything that runs.
struct Stage {
    screen: Screen,
    start: Instant,
    duration: Duration,
    kafka: EmbeddedKafka,
    /// Where devices with MQTT connect.
    mqtt_url: String,
    // In this order children end before the directory goes.
    loads: Vec<Load>,
    agent: Agent,
    serial_link: PathBuf,
    dir: tempfile::TempDir,
}

impl Stage {
    /// Kafka, the broker if there is one, the agent's config; nothing sends so far.
    fn set(args: &Args, screen: Screen) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("wayside-demo-").tempdir()?;
        let kafka = EmbeddedKafka::start().context("cannot start the embedded Kafka")?;
        let [mqtt_port, telemetry_port] = free_ports()?;
        let (mqtt_url, source) = match args.intake {
            Intake::Listener => {
                (format!("mqtt://127.0.0.1:{mqtt_port}"), config::Source::Listener { port: mqtt_port })
            }
            Intake::Broker => {
                let broker = EmbeddedMqtt::start()?;
                (broker.url_v5(), config::Source::Mqtt { url: broker.url_v4() })
            }
        };
        let serial_link = dir.path().join("tty");
        let config = dir.path().join("wayside.toml");
        let text = config::agent_config(dir.path(), &source, &kafka.bootstrap(), telemetry_port)?;
        std::fs::write(&config, text)?;
        let agent = Agent::new(config, dir.path().join("agent.log"), telemetry_port);
        let (start, duration) = (Instant::now(), args.duration);
        Ok(Self { screen, start, duration, kafka, mqtt_url, loads: Vec::new(), agent, serial_link, dir })
    }

    /// Starts the agent and, once it takes what is published, the loads.
    async fn start_loads(&mut self, duration: Duration) -> anyhow::Result<()> {
        self.agent.start()?;
        let deadline = Instant::now() + CONNECT_MAX;
        while !self.agent.health().await.is_some_and(|health| health.is_connected(config::MQTT_SOURCE)) {
            self.agent.check()?;
            ensure!(
                Instant::now() < deadline,
                "the agent does not take MQTT messages; the end of its log:\n{}",
                self.agent.log_tail()
            );
            self.show("The agent starts.").await;
        }
        let dir = self.dir.path();
        let link = self.serial_link.to_str().context("the temporary directory's name is not UTF-8")?;
        let mqtt = self.mqtt_url.as_str();
        for (plan, target) in
            [(ROOMS, ["--mqtt", mqtt]), (VEHICLES, ["--mqtt", mqtt]), (SERIAL, ["--serial", link])]
        {
            self.loads.push(Load::start(plan, target, dir, duration)?);
        }
        Ok(())
    }

    /// Goes on until `moment`.
    ///
    /// # Errors
    /// A child process died that should run.
    async fn until(&mut self, moment: Instant, phase: &'static str) -> anyhow::Result<()> {
        while Instant::now() < moment {
            self.agent.check()?;
            for load in &mut self.loads {
                load.has_ended()?;
            }
            self.show(phase).await;
        }
        Ok(())
    }

    /// Waits for the loads' last acknowledgements, then for the agent's backlog.
    async fn drain(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DRAIN_MAX;
        let mut running = true;
        while running {
            ensure!(Instant::now() < deadline, "the loads do not end");
            self.agent.check()?;
            self.show("The loads end; what is under way is acknowledged.").await;
            running = false;
            for load in &mut self.loads {
                running |= !load.has_ended()?;
            }
        }
        // Not longer than allowed, for the verdict says it better than an error.
        while Instant::now() < deadline && self.agent.health().await.is_none_or(|health| health.backlog() > 0)
        {
            self.agent.check()?;
            self.show("The agent drains.").await;
        }
        Ok(())
    }

    async fn verify(&mut self) -> anyhow::Result<Report> {
        self.show("The verifier reads Kafka.").await;
        let ledgers: Vec<PathBuf> = self.loads.iter().map(|load| load.ledger.clone()).collect();
        let options = ConsumerOptions { bootstrap: self.kafka.bootstrap(), properties: Vec::new() };
        let verified = tokio::task::spawn_blocking(move || {
            verify::verify(&options, config::ENVIRONMENT, &Ledger::read(&ledgers)?, DRAIN_MAX)
        });
        verified.await.context("the verifier panicked")?
    }

    /// Draws the screen, and waits until it is time to draw it again.
    async fn show(&mut self, phase: &'static str) {
        let snapshot = Snapshot {
            elapsed: self.start.elapsed(),
            duration: self.duration,
            phase,
            kafka_up: self.kafka.is_up(),
            agent_pid: self.agent.pid(),
            loads: self
                .loads
                .iter_mut()
                .map(|load| {
                    let (sent, acknowledged) = load.counts();
                    (load.plan.name, sent, acknowledged)
                })
                .collect(),
            backlog: self.agent.health().await.map(|health| health.backlog()),
            in_kafka: self.kafka.record_count(),
        };
        self.screen.show(snapshot);
        tokio::time::sleep(TICK).await;
    }
}

/// Two ports that were free just now: the agent binds them itself, and again after it was killed.
///
/// They lie below those that Linux gives to outgoing connections: a device that tries to reach the agent while it is away might
/// be given its port.
fn free_ports() -> anyhow::Result<[u16; 2]> {
    const COUNT: u16 = 20_000;
    let first = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or_default();
    let ports = (0..COUNT).map(|step| 10_000 + (first + step) % COUNT);
    let mut free = ports.filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().zip(free.next()).map(Into::into).context("no free port")
}
