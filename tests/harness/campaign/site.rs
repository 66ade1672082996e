//! What a fault is done to.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::RwLockReadGuard;
use std::time::Duration;

use tempfile::TempDir;

use super::What;
use crate::agent::{self, Agent};
use crate::disk::Disk;
use crate::gaps::{self, Told};
use crate::kafka::{self, Cluster, Exclusive};
use crate::link::Link;
use crate::mosquitto::Mosquitto;
use crate::sim::{self, Load, Report};
use crate::{PATIENCE, clock, note, ports, wait_until};

/// How long a load waits for its last answers.
const DRAIN: &str = "180s";

/// Kafka, alone where its nodes are what fails.
pub(super) enum Kafka {
    Shared(RwLockReadGuard<'static, Cluster>),
    Exclusive(Exclusive),
}

impl Deref for Kafka {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        match self {
            Self::Shared(cluster) => cluster,
            Self::Exclusive(cluster) => cluster,
        }
    }
}

/// A gateway under load, between its devices and Kafka.
pub(super) struct Site {
    pub(super) agent: Agent,
    pub(super) broker: Option<Mosquitto>,
    pub(super) disk: Option<Disk>,
    pub(super) kafka: Kafka,
    /// The gateway's clock, for libfaketime.
    pub(super) clock: PathBuf,
    mqtt: Load,
    /// One after another; the last one runs.
    serial: Vec<Load>,
    line: String,
    /// Between agent and Kafka.
    uplinks: Vec<Link>,
    /// Between devices and agent.
    field: Option<Link>,
    _directory: TempDir,
}

impl Site {
    /// Everything runs, and something was acknowledged on each way in: vehicles over MQTT, rooms over a serial line.
    pub(super) fn start(what: What) -> Option<Self> {
        let disk = match what {
            What::Power => Some(Disk::ext4(64)?),
            What::VolatileCache => Some(Disk::volatile(64)?),
            What::DiskFull => Some(Disk::ext4(48)?),
            _ => None,
        };
        let kafka = match what {
            What::Kafka | What::Outage => Kafka::Exclusive(kafka::exclusive()),
            _ => Kafka::Shared(kafka::shared()),
        };
        let broker = (what == What::Mosquitto).then(Mosquitto::start);
        let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
        let line = directory.path().join("line").display().to_string();
        let mut serial = rooms(what, &line, 1);
        let port = ports::free();
        let field = (what == What::Network).then(|| Link::new(ports::free(), port));
        let near = field.as_ref().map_or(port, Link::port);
        let (url, sections) = match &broker {
            Some(broker) => (broker.url(), agent::mqtt_source(&broker.url(), 5)),
            None => (format!("mqtt://127.0.0.1:{near}"), agent::listener(port)),
        };
        let uplinks = if what == What::Network { kafka.uplinks() } else { Vec::new() };
        let servers = match &uplinks[..] {
            [] => kafka.bootstrap_servers(),
            links => {
                links.iter().map(|link| format!("127.0.0.1:{}", link.port())).collect::<Vec<_>>().join(",")
            }
        };
        let sections = sections + &agent::serial_source("line", line.as_ref(), "native");
        let mut agent = Agent::new(&format!("campaign-{}", what.name()), &servers, &sections);
        // Small epochs, so that the log rolls and trims all the time.
        agent.configure("[log]\n", "[log]\nepoch_bytes = 262144\n");
        if let Some(disk) = &disk {
            let dir = |path: &std::path::Path| format!("dir = \"{}\"", path.display());
            agent.configure(&dir(&agent.log_directory()), &dir(&disk.path().join("log")));
        }
        let clock = directory.path().join("clock");
        if what == What::Clock {
            let Some(variables) = clock::variables(&clock) else {
                note("skipped: needs libfaketime");
                return None;
            };
            agent.set_variables(variables);
        }
        agent.start();
        if let Some(broker) = &broker {
            broker.wait_subscribed("traffic/+/position");
        }
        let mqtt = ["traffic", "--devices", "40", "--rate", "400", "--drain", DRAIN, "--mqtt", &url];
        let mut mqtt = Load::start(mqtt);
        for load in [&mut mqtt, &mut serial] {
            load.wait_acknowledged(40, PATIENCE);
        }
        Some(Self {
            agent,
            broker,
            disk,
            kafka,
            clock,
            mqtt,
            serial: vec![serial],
            line,
            uplinks,
            field,
            _directory: directory,
        })
    }

    /// The cluster, to harm it.
    pub(super) fn cluster(&mut self) -> &mut Cluster {
        match &mut self.kafka {
            Kafka::Exclusive(cluster) => cluster,
            Kafka::Shared(_) => panic!("a shared cluster is not to be harmed"),
        }
    }

    /// The links between agent and Kafka, if `uplink`, and between devices and agent, if `field`.
    pub(super) fn links(&self, uplink: bool, field: bool) -> Vec<&Link> {
        let uplinks = self.uplinks.iter().filter(|_| uplink);
        uplinks.chain(self.field.as_ref().filter(|_| field)).collect()
    }

    /// What the agent counts as `name`; 0 where it has not counted yet.
    pub(super) fn metric(&self, name: &str) -> f64 {
        self.agent.metric(&format!("wayside_{name}")).unwrap_or_default()
    }

    /// Waits until more was committed since the agent's last start than `commits`.
    #[track_caller]
    pub(super) fn wait_commit(&self, commits: f64) {
        wait_until(PATIENCE, "another commit", || {
            (self.metric("commit_commits_total") > commits).then_some(())
        });
    }

    /// Pulls the plug of the serial line, and puts it in again with other devices behind it.
    pub(super) fn replug(&mut self) {
        let last = self.serial.last_mut().expect("there is one at least");
        last.interrupt();
        last.finish(PATIENCE);
        self.serial.push(rooms(What::Serial, &self.line, self.serial.len() + 1));
    }

    /// Lets the loads end, waits until Kafka has all of them, and holds it against their ledgers.
    pub(super) fn verify(mut self) -> (Report, Told) {
        let last = self.serial.last_mut().expect("there is one at least");
        for load in [&mut self.mqtt, last] {
            load.interrupt();
            load.finish(PATIENCE);
        }
        // A record whose time no broker takes waits for the gateway's clock to be right.
        clock::set(&self.clock, "+0");
        let ledgers: Vec<_> = self.serial.iter().chain([&self.mqtt]).map(Load::ledger).collect();
        wait_until(PATIENCE, "Kafka has all", || (self.metric("replicate_lag_records") == 0.0).then_some(()));
        self.agent.stop();
        let report = sim::verify(&self.kafka, self.agent.environment(), &ledgers, Duration::ZERO);
        (report, gaps::told(&self.kafka, &self.agent, "damaged"))
    }
}

/// A serial line at `link` with rooms behind it, others for each `seed`.
fn rooms(what: What, link: &str, seed: usize) -> Load {
    let seed = seed.to_string();
    let calm =
        ["occupancy", "--devices", "4", "--rate", "40", "--seed", &seed, "--drain", DRAIN, "--serial", link];
    let noise: &[&str] = if what == What::Serial { &["--noise", "0.0003", "--slips", "0.0003"] } else { &[] };
    Load::start(calm.iter().chain(noise))
}
