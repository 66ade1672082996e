//! `wayside check --connect` beside an agent that runs.

use serde_json::Value;
use wayside_tests::agent::{self, Agent};
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::process;
use wayside_tests::pty::Pty;
use wayside_tests::{PATIENCE, binary, kafka, wait_until};

/// What the check says: the exit code, and per item whether it is well and what was found.
fn check_connect(agent: &Agent) -> (i32, Vec<(bool, String)>) {
    let mut command = process::command(binary("wayside"));
    command.args(["check", "--connect", "--json", "-c"]).arg(agent.configuration());
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    let findings = findings.map(|finding| (finding["ok"].as_bool().unwrap(), finding.to_string()));
    (output.status.code().unwrap(), findings.collect())
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_check_beside_a_running_agent_finds_all_well_and_disturbs_nothing() {
    let cluster = kafka::shared();
    let broker = Mosquitto::start();
    let line = Pty::open();
    let sections =
        agent::mqtt_source(&broker.url(), 3) + &agent::serial_source("line", line.path(), "native");
    let mut agent = Agent::new("check", &cluster.bootstrap_servers(), &sections);
    agent.start();
    let connections = || agent.metric("wayside_source_connections_total").filter(|count| *count >= 2.0);
    wait_until(PATIENCE, "broker and port are connected", connections);

    let (code, findings) = check_connect(&agent);
    assert!(findings.iter().all(|(ok, _)| *ok), "{findings:#?}");
    assert_eq!(code, 0);
    let said = |text: &str| findings.iter().any(|(_, finding)| finding.contains(text));
    assert!(
        said("wayside-check-broker-check") && said("is read by the agent") && said("in use by the agent")
    );
    assert!(said("3 brokers") && said("may create it with 4 partitions and 3 replicas"), "{findings:#?}");
    assert_eq!(agent.metric("wayside_source_connections_total"), Some(2.0), "a connection was taken away");

    cluster.create_topic(&agent.topic("occupancy"), 5);
    agent.configure("replication_factor = 3", "replication_factor = 4");
    let (code, findings) = check_connect(&agent);
    assert_eq!(code, 1);
    let failed: Vec<_> = findings.iter().filter(|(ok, _)| !ok).map(|(_, finding)| finding.as_str()).collect();
    assert!(failed.iter().any(|finding| finding.contains("has 5 partitions")), "{failed:#?}");
    assert!(
        failed.iter().any(|finding| finding.contains("cannot create it") && finding.contains("3 brokers")),
        "{failed:#?}"
    );
    agent.stop();
}
