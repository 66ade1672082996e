//! The demo, which is the first thing that a user sees.

use wayside_tests::process::{self, Process};
use wayside_tests::{PATIENCE, binary};

#[track_caller]
fn plays(intake: &str) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = process::command(binary("wayside-sim"));
    command.args(["demo", "--json", "--duration", "10s", "--intake", intake]);
    let mut demo = Process::start("wayside-sim demo", command, &directory.path().join("demo.log"));
    let status = demo.wait(PATIENCE);
    assert!(status.success(), "{status}\n{}", demo.log_tail());
    let verdict: serde_json::Value = serde_json::from_str(&demo.stdout()).unwrap();
    assert_eq!((verdict["lost"].as_u64(), verdict["kills"].as_u64()), (Some(0), Some(1)), "{verdict}");
    assert!(verdict["acknowledged"].as_u64() > Some(1000), "{verdict}");
}

#[test]
#[ignore = "runs for 15 s: tests/run"]
fn the_demo_loses_nothing_with_devices_that_connect_to_the_agent() {
    plays("listener");
}

#[test]
#[ignore = "runs for 15 s: tests/run"]
fn the_demo_loses_nothing_with_a_broker_in_between() {
    plays("broker");
}
