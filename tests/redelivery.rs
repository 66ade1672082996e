//! Devices and brokers send again what they have no answer for; the log has it once. Kafka is away all the time, so that the log
//! still has all that came.

use std::ffi::OsStr;

use wayside_tests::agent::{self, Agent};
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::sim::Load;
use wayside_tests::{PATIENCE, note, ports, wait_until};

const KILLS: usize = 20;

/// An agent with the sources of `sections` and without Kafka.
fn started(name: &str, sections: &str) -> Agent {
    let mut agent = Agent::new(name, &format!("127.0.0.1:{}", ports::free()), sections);
    agent.start();
    agent
}

/// Kills the agent again and again under `load`, lets the load come to its end, and looks into the log.
#[track_caller]
fn assert_stored_once(mut agent: Agent, mut load: Load) {
    // `source.mqtt` counts them; the other sources do not.
    let mut redelivered = None;
    for kill in 0..KILLS {
        // The moment is what the test varies: anywhere in some commits.
        let acknowledged = load.acknowledged();
        load.wait_acknowledged(acknowledged + 100 + kill * 7919 % 200, PATIENCE);
        let again = "wayside_source_dropped_total{source=\"again\",reason=\"redelivered\"}";
        redelivered =
            agent.metric(again).map_or(redelivered, |count| Some(redelivered.unwrap_or(0.0) + count));
        agent.kill();
        agent.start();
    }
    load.interrupt();
    load.finish(PATIENCE);
    let acknowledged = load.acknowledged();
    // A broker may have more than it has handed on.
    let stored = wait_until(PATIENCE, "all that was acknowledged is stored", || {
        let stored = agent.stored();
        (stored.len() >= acknowledged).then_some(stored)
    });
    agent.kill();
    let twice = stored.values().filter(|times| **times > 1).count();
    let seen_again =
        redelivered.map(|count: f64| format!("; {count} messages were seen again")).unwrap_or_default();
    note(&format!("{} stored, {twice} of them twice{seen_again}", stored.len()));
    assert_eq!(twice, 0);
}

#[test]
#[ignore = "tests/run"]
fn a_message_that_is_sent_again_after_a_kill_is_stored_once() {
    let port = ports::free();
    let url = format!("mqtt://127.0.0.1:{port}");
    let agent = started("again-listener", &named(agent::listener(port)));
    let load = Load::start(["traffic", "--mqtt", &url, "--devices", "50", "--rate", "1000"]);
    assert_stored_once(agent, load);
}

#[test]
#[ignore = "needs Mosquitto: tests/run"]
fn a_message_that_a_broker_sends_again_after_a_kill_is_stored_once() {
    for qos in ["1", "2"] {
        let broker = Mosquitto::start();
        let url = broker.url();
        let section = agent::mqtt_source(&url, 5).replace("qos = 1", &format!("qos = {qos}"));
        let agent = started("again-broker", &named(section));
        broker.wait_subscribed("traffic/+/position");
        let load =
            Load::start(["traffic", "--mqtt", &url, "--devices", "50", "--rate", "1000", "--qos", qos]);
        assert_stored_once(agent, load);
    }
}

/// Mosquitto does not read the answers of its last moment.
#[test]
#[ignore = "needs Mosquitto: tests/run"]
fn a_message_that_a_broker_sends_again_after_its_own_restart_is_stored_once() {
    let mut broker = Mosquitto::start();
    let url = broker.url();
    let agent = started("again-restart", &named(agent::mqtt_source(&url, 5)));
    broker.wait_subscribed("traffic/+/position");
    let mut load = Load::start(["traffic", "--mqtt", &url, "--devices", "50", "--rate", "1000"]);
    for _ in 0..5 {
        let acknowledged = load.acknowledged();
        load.wait_acknowledged(acknowledged + 500, PATIENCE);
        broker.stop();
        broker.start_again();
    }
    assert_stored_once(agent, load);
}

#[test]
#[ignore = "tests/run"]
fn a_reading_that_a_device_sends_again_after_a_kill_is_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let line = directory.path().join("line");
    let arguments = ["occupancy", "--devices", "4", "--rate", "400", "--serial"];
    let load = Load::start(arguments.iter().map(OsStr::new).chain([line.as_os_str()]));
    assert_stored_once(started("again-line", &agent::serial_source("again", &line, "native")), load);
}

/// The section with the name that the metrics are asked for.
fn named(section: String) -> String {
    section.replace("\"devices\"", "\"again\"").replace("\"broker\"", "\"again\"")
}
