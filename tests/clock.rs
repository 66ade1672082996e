//! A gateway without a battery: it starts in 1970, and its clock is set later.

use std::time::{SystemTime, UNIX_EPOCH};

use wayside_tests::agent::Agent;
use wayside_tests::{PATIENCE, clock, kafka, note, ports, process, wait_until};

/// What a time may be off by: the clocks are not read at one moment.
const ERROR_US: i128 = 1_000_000;

fn now_us() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("this machine's clock is set");
    since.as_micros().cast_signed()
}

fn post(port: u16, body: &str) {
    let url = format!("http://127.0.0.1:{port}/v1/streams/doors/records?device=door-1");
    let mut curl = process::command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "60", &url, "--data-binary", body]);
    curl.args(["--header", "Content-Type: application/octet-stream"]);
    let output = curl.output().expect("curl is installed: tests/run");
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "needs Kafka, curl and libfaketime: tests/run"]
fn what_came_in_1970_has_its_right_time_once_the_clock_is_set() {
    let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
    let file = directory.path().join("clock");
    let Some(variables) = clock::variables(&file) else {
        note("skipped: needs libfaketime");
        return;
    };
    let cluster = kafka::shared();
    let port = ports::free();
    let source = format!(
        "[[source.http]]\nname = \"web\"\nlisten = \"127.0.0.1:{port}\"\n[[source.http.route]]\nstream = \"doors\"\n"
    );
    let mut agent = Agent::new("clock-1970", &cluster.bootstrap_servers(), &source);
    agent.set_variables(variables);

    // Neither a time server nor Kafka can be reached.
    clock::set(&file, "-56y");
    let (there, away) = ("bootstrap_servers = [", "bootstrap_servers = [\"127.0.0.1:1\"] # ");
    agent.configure(there, away);
    agent.start();
    assert!(agent.page("/healthz").contains(r#""clock":"unknown""#), "{}", agent.page("/healthz"));
    let before_us = now_us();
    post(port, "1");
    let after_us = now_us();

    // Both can, and the agent was killed meanwhile.
    agent.kill();
    clock::set(&file, "+0");
    agent.configure(away, there);
    agent.start();
    post(port, "2");
    let mut reader = cluster.reader(&agent.topic("doors"));
    let records = reader.wait_for(2, PATIENCE).to_vec();
    let time_us = |name: &str| records[0].headers[name].parse::<i128>().expect("a number");
    let received_us = time_us("wayside.received");
    assert!(
        (before_us - ERROR_US..=after_us + ERROR_US).contains(&received_us),
        "{received_us}: {before_us} to {after_us}"
    );
    assert_eq!(records[0].timestamp_ms.map(i128::from), Some(received_us / 1000));
    assert_eq!(records[0].headers["wayside.clock"], "estimated");
    assert!(time_us("wayside.clock.corrected") < 2 * 365 * 86_400 * 1_000_000, "in 1970");
    assert_eq!(records[1].headers.get("wayside.clock.corrected"), None);
    wait_until(PATIENCE, "it is counted", || {
        (agent.metric("wayside_replicate_corrected_records_total") == Some(1.0)).then_some(())
    });
    agent.stop();
}
