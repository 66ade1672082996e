//! What a fault is done to.

use std::ops::Deref;
use std::sync::RwLockReadGuard;

use tempfile::TempDir;

use super::What;
use crate::agent::{self, Agent};
use crate::disk::Disk;
use crate::kafka::{self, Cluster, Exclusive};
use crate::mosquitto::Mosquitto;
use crate::sim::{self, Load, Report};
use crate::{PATIENCE, ports, wait_until};

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
    loads: Vec<Load>,
    _directory: TempDir,
}

impl Site {
    /// Everything runs, and something was acknowledged on each way in: vehicles over MQTT, rooms over a serial line.
    pub(super) fn start(what: What) -> Option<Self> {
        let disk = match what {
            What::Power => Some(Disk::ext4(64)?),
            What::DiskFull => Some(Disk::ext4(48)?),
            _ => None,
        };
        let kafka = match what {
            What::Kafka | What::Outage => Kafka::Exclusive(kafka::exclusive()),
            _ => Kafka::Shared(kafka::shared()),
        };
        let broker = (what == What::Mosquitto).then(Mosquitto::start);
        let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
        let line = directory.path().join("line");
        let link = line.display().to_string();
        let drain = format!("{}s", PATIENCE.as_secs());
        let serial = ["occupancy", "--devices", "4", "--rate", "40", "--drain", &drain, "--serial", &link];
        let mut serial = Load::start(serial);
        let port = ports::free();
        let (url, sections) = match &broker {
            Some(broker) => (broker.url(), agent::mqtt_source(&broker.url(), 5)),
            None => (format!("mqtt://127.0.0.1:{port}"), agent::listener(port)),
        };
        let sections = sections + &agent::serial_source("line", &line, "native");
        let mut agent =
            Agent::new(&format!("campaign-{}", what.name()), &kafka.bootstrap_servers(), &sections);
        // Small epochs, so that the log rolls and trims all the time.
        agent.configure("[log]\n", "[log]\nepoch_bytes = 262144\n");
        if let Some(disk) = &disk {
            let dir = |path: &std::path::Path| format!("dir = \"{}\"", path.display());
            agent.configure(&dir(&agent.log_directory()), &dir(&disk.path().join("log")));
        }
        agent.start();
        if let Some(broker) = &broker {
            broker.wait_subscribed("traffic/+/position");
        }
        let mqtt = ["traffic", "--devices", "40", "--rate", "400", "--drain", &drain, "--mqtt", &url];
        let mut mqtt = Load::start(mqtt);
        for load in [&mut mqtt, &mut serial] {
            load.wait_acknowledged(40, PATIENCE);
        }
        Some(Self { agent, broker, disk, kafka, loads: vec![mqtt, serial], _directory: directory })
    }

    /// The cluster, to harm it.
    pub(super) fn cluster(&mut self) -> &mut Cluster {
        match &mut self.kafka {
            Kafka::Exclusive(cluster) => cluster,
            Kafka::Shared(_) => panic!("a shared cluster is not to be harmed"),
        }
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

    /// Lets the loads end, waits until Kafka has all of them, and holds it against their ledgers.
    pub(super) fn verify(mut self) -> Report {
        self.loads.iter_mut().for_each(Load::interrupt);
        for load in &mut self.loads {
            load.finish(PATIENCE);
        }
        let ledgers: Vec<_> = self.loads.iter().map(Load::ledger).collect();
        sim::verify(&self.kafka, self.agent.environment(), &ledgers, PATIENCE);
        // What was under way comes with the stop.
        self.agent.stop();
        sim::verify(&self.kafka, self.agent.environment(), &ledgers, std::time::Duration::ZERO)
    }
}
