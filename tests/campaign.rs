//! A few cycles of each kind of fault that the campaign knows: `target/release/campaign` does as many as wanted.

use wayside_tests::campaign::{What, run};
use wayside_tests::note;

#[track_caller]
fn holds(what: What, cycles: u32) {
    let Some(outcome) = run(what, cycles, u64::from(std::process::id()), |_| ()) else { return };
    note(&outcome.to_json().to_string());
    outcome.report.assert_complete(1_000);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn kills_at_any_moment_lose_nothing() {
    holds(What::Kill, 10);
}

#[test]
#[ignore = "needs Kafka, and root for a disk: tests/run"]
fn power_cuts_lose_nothing() {
    holds(What::Power, 10);
}

#[test]
#[ignore = "needs Kafka, and root for a disk: tests/run"]
fn a_disk_that_is_full_again_and_again_loses_nothing() {
    holds(What::DiskFull, 4);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn nodes_of_kafka_that_die_hang_and_lose_their_disks_cost_nothing() {
    holds(What::Kafka, 5);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_broker_that_stops_again_and_again_loses_nothing() {
    holds(What::Mosquitto, 5);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn an_outage_with_a_kill_in_it_loses_nothing() {
    holds(What::Outage, 1);
}
