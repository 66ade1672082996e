//! The agent is killed again and again while it works.

use std::ffi::OsStr;
use std::time::Duration;

use wayside_tests::agent::{self, Agent};
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::sim::{self, Load};
use wayside_tests::{PATIENCE, kafka};

const KILLS: usize = 20;

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn twenty_kills_under_load_lose_nothing_that_was_acknowledged() {
    let cluster = kafka::shared();
    let broker = Mosquitto::start();
    let directory = tempfile::tempdir().unwrap();
    let line = directory.path().join("line");
    let url = broker.url();
    let mut serial = Load::start(
        ["occupancy", "--devices", "4", "--rate", "100", "--serial"]
            .iter()
            .map(OsStr::new)
            .chain([line.as_os_str()]),
    );
    let sections = agent::mqtt_source(&url, 5) + &agent::serial_source("line", &line, "native");
    let mut agent = Agent::new("crash", &cluster.bootstrap_servers(), &sections);
    agent.start();
    broker.wait_subscribed("traffic/+/position");
    let mut mqtt = Load::start(["traffic", "--mqtt", &url, "--devices", "50", "--rate", "500"]);

    let mut reader = cluster.reader(&agent.topic("vehicle-positions"));
    for kill in 0..KILLS {
        // Every second life is killed while it still recovers; the others have delivered something first.
        if kill % 2 == 0 {
            let delivered = reader.records().len();
            reader.wait_for(delivered + 1, PATIENCE);
        }
        // The moment is what the test varies: anywhere in some commits, up to 400 ms of load.
        let published = mqtt.acknowledged();
        mqtt.wait_acknowledged(published + kill * 7919 % 200, PATIENCE);
        agent.kill();
        agent.start();
    }
    mqtt.interrupt();
    serial.interrupt();
    mqtt.finish(PATIENCE);
    serial.finish(PATIENCE);

    let ledgers = [mqtt.ledger(), serial.ledger()];
    sim::verify(&cluster, agent.environment(), &ledgers, PATIENCE).assert_complete(2_000);
    agent.stop();
    sim::verify(&cluster, agent.environment(), &ledgers, Duration::ZERO).assert_complete(2_000);
}
