//! A few cycles of each kind of fault that the campaign knows: `target/release/campaign` does as many as wanted.

use wayside_tests::campaign::{What, run};
use wayside_tests::note;

#[track_caller]
fn holds(what: What, cycles: u32) {
    let Some(outcome) = run(what, cycles, std::process::id().into(), |_| ()) else { return };
    note(&outcome.to_json().to_string());
    assert!(outcome.holds(), "{}", outcome.to_json());
    assert!(outcome.report.count("acknowledged") > 1_000, "a load that does nothing proves nothing");
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
#[ignore = "needs Kafka, and root and FUSE for a disk: tests/run"]
fn a_drive_that_forgets_what_was_not_flushed_loses_nothing() {
    holds(What::VolatileCache, 8);
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
#[ignore = "needs Kafka: tests/run"]
fn a_network_that_stalls_drags_and_breaks_costs_nothing() {
    holds(What::Network, 5);
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_broker_that_stops_again_and_again_loses_nothing() {
    holds(What::Mosquitto, 5);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn a_noisy_line_that_is_unplugged_loses_nothing() {
    holds(What::Serial, 3);
}

#[test]
#[ignore = "needs Kafka and libfaketime: tests/run"]
fn a_clock_that_jumps_loses_nothing() {
    holds(What::Clock, 6);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn flipped_bits_cost_nothing_that_is_not_told() {
    holds(What::Corrupt, 5);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn an_outage_with_a_kill_in_it_loses_nothing() {
    holds(What::Outage, 1);
}
