//! The outage in small, on each store.

use super::*;
use crate::log::store::simulated::SimulatedDisk;

const POLICIES: [Policy; 4] =
    [Policy::Block, Policy::DropOldest, Policy::DropNewest, Policy::LatestPerDevice];

fn outage(policy: Policy) -> Outage {
    Outage {
        policy,
        length: Duration::from_secs(600),
        devices: 10,
        records_per_second: 100,
        limit_bytes: 1 << 20,
        epoch_bytes: 64 << 10,
    }
}

fn run(policy: Policy) -> Report {
    let outage = outage(policy);
    let store = SimulatedDisk::new().open().with_epoch_bytes(outage.epoch_bytes);
    outage.run(Box::new(store)).unwrap()
}

#[test]
fn an_outage_that_the_log_is_too_small_for_loses_what_gap_records_tell_and_no_more() {
    for policy in &POLICIES[1..] {
        let report = run(*policy);
        assert!(report.told > 10_000 && report.delivered > 1_000, "{policy:?}: {report:?}");
    }
}

#[test]
fn where_nothing_may_be_dropped_devices_wait_for_kafka_and_all_arrives() {
    let report = run(Policy::Block);
    assert!(report.held_back_max > 10_000, "{report:?}");
    assert_eq!((report.delivered, report.gap_records), (report.produced, 0));
}
