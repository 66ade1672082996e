//! Servers go away and come back; what was acknowledged arrives.

use std::time::Duration;

use wayside_tests::agent::{self, Agent};
use wayside_tests::kafka;
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::sim::{self, Load, Report};
use wayside_tests::{PATIENCE, note, wait_until};

/// 12 seconds of load, 6 000 readings.
fn load(broker: &Mosquitto) -> Load {
    let url = broker.url();
    Load::start(["traffic", "--mqtt", &url, "--devices", "50", "--rate", "500", "--duration", "12s"])
}

fn started(name: &str, cluster: &kafka::Cluster, broker: &Mosquitto) -> Agent {
    let mut agent = Agent::new(name, &cluster.bootstrap_servers(), &agent::mqtt_source(&broker.url(), 5));
    agent.start();
    broker.wait_subscribed("traffic/+/position");
    agent
}

/// Waits for everything, then lets the agent end, so that nothing can come behind the verdict.
fn verify(cluster: &kafka::Cluster, mut agent: Agent, load: &Load) -> Report {
    sim::verify(cluster, agent.environment(), &[load.ledger()], PATIENCE).assert_complete(5_000);
    agent.stop();
    let report = sim::verify(cluster, agent.environment(), &[load.ledger()], Duration::ZERO);
    report.assert_complete(5_000);
    report
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn an_outage_of_kafka_with_two_restarts_of_the_agent_loses_nothing() {
    let mut cluster = kafka::exclusive();
    let broker = Mosquitto::start();
    cluster.kill_all();
    let mut agent = started("delivery-outage", &cluster, &broker);
    let mut load = load(&broker);
    for acknowledged in [2_000, 4_000] {
        load.wait_acknowledged(acknowledged, PATIENCE);
        agent.stop();
        agent.start();
    }
    load.finish(PATIENCE);
    cluster.heal();
    verify(&cluster, agent, &load).assert_complete(5_000);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_log_at_its_limit_holds_back_what_comes_and_loses_nothing() {
    let mut cluster = kafka::exclusive();
    let broker = Mosquitto::start();
    cluster.kill_all();
    let sections = agent::mqtt_source(&broker.url(), 5) + "[commit]\ncompression = \"none\"\n";
    let mut agent = Agent::new("delivery-limit", &cluster.bootstrap_servers(), &sections);
    agent.configure("[log]\n", "[log]\nlimit_bytes = 1048576\nepoch_bytes = 262144\n");
    agent.start();
    broker.wait_subscribed("traffic/+/position");
    let mut load = load(&broker);
    load.finish(PATIENCE);
    wait_until(PATIENCE, "the log is full", || {
        (agent.metric("wayside_commit_waiting") == Some(1.0)).then_some(())
    });
    let size_bytes = agent.metric("wayside_log_size_bytes").expect("a log has a size");
    assert!(size_bytes < 1.5 * 1_048_576.0, "{size_bytes} bytes");
    cluster.heal();
    verify(&cluster, agent, &load).assert_complete(5_000);
}

/// `harm` comes to a leader of the topic in the middle of the load.
fn leader_comes_to_harm(name: &str, harm: impl FnOnce(&mut kafka::Cluster, usize)) {
    let mut cluster = kafka::exclusive();
    let broker = Mosquitto::start();
    let agent = started(name, &cluster, &broker);
    let mut load = load(&broker);
    let topic = agent.topic("vehicle-positions");
    cluster.reader(&topic).wait_for(1_000, PATIENCE);
    let leader = cluster.leader(&topic, 0);
    harm(&mut cluster, leader);
    load.finish(PATIENCE);
    verify(&cluster, agent, &load).assert_complete(5_000);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_killed_broker_of_three_loses_nothing() {
    leader_comes_to_harm("delivery-broker", kafka::Cluster::kill);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_broker_of_kafka_that_hangs_loses_nothing() {
    leader_comes_to_harm("delivery-hang", kafka::Cluster::pause);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_restart_of_mosquitto_loses_nothing() {
    let cluster = kafka::shared();
    let mut broker = Mosquitto::start();
    let agent = started("delivery-mosquitto", &cluster, &broker);
    let mut load = load(&broker);
    load.wait_acknowledged(2_000, PATIENCE);
    broker.stop();
    broker.start_again();
    load.finish(PATIENCE);
    // What Mosquitto had no answer for when it went away it sends again.
    let duplicated = verify(&cluster, agent, &load).count("duplicated");
    note(&format!("{duplicated} more than once"));
}
