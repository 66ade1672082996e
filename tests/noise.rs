//! A serial line that damages what it carries.

use std::ffi::OsStr;
use std::time::Duration;

use wayside_tests::PATIENCE;
use wayside_tests::agent::{self, Agent};
use wayside_tests::kafka;
use wayside_tests::sim::{self, Load};

#[test]
#[ignore = "needs Kafka: tests/run"]
fn flipped_dropped_and_inserted_bytes_on_a_line_cost_resends_and_nothing_else() {
    let cluster = kafka::shared();
    let directory = tempfile::tempdir().unwrap();
    let line = directory.path().join("line");
    // A frame of 60 bytes arrives as it was sent in about 5 of 6 cases; the rest is the link protocol's to repair.
    let arguments = [
        "occupancy",
        "--devices",
        "4",
        "--rate",
        "200",
        "--duration",
        "10s",
        "--json",
        "--noise",
        "0.0003",
        "--slips",
        "0.0003",
        "--serial",
    ];
    let mut load = Load::start(arguments.iter().map(OsStr::new).chain([line.as_os_str()]));
    let mut agent =
        Agent::new("noise", &cluster.bootstrap_servers(), &agent::serial_source("line", &line, "native"));
    agent.start();
    let summary: serde_json::Value = serde_json::from_str(&load.finish(PATIENCE)).unwrap();
    assert!(summary["resent"].as_u64().unwrap() > 0, "the line was not noisy: {summary}");
    sim::verify(&cluster, agent.environment(), &[load.ledger()], PATIENCE).assert_complete(800);
    agent.stop();
    sim::verify(&cluster, agent.environment(), &[load.ledger()], Duration::ZERO).assert_complete(800);
}
