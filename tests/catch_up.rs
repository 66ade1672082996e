//! What happens when Kafka is there again: the backlog at its pace, live records before it, and a broker that throttles.

use std::time::Instant;

use wayside_tests::agent::{self, Agent};
use wayside_tests::kafka;
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::mqtt::Publisher;
use wayside_tests::sim::{self, Load};
use wayside_tests::{PATIENCE, note, wait_until};

/// Some 2 MB of records.
fn load(broker: &Mosquitto) -> Load {
    let url = broker.url();
    Load::start(["traffic", "--mqtt", &url, "--devices", "50", "--rate", "500", "--duration", "12s"])
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_backlog_is_sent_at_its_pace_and_an_idle_partition_does_not_wait_for_it() {
    const LIMIT: u32 = 30_000;
    let mut cluster = kafka::exclusive();
    let broker = Mosquitto::start();
    let mut agent =
        Agent::new("catch-up", &cluster.bootstrap_servers(), &agent::mqtt_source(&broker.url(), 5));
    let keys = format!("[replicate]\ncatch_up_bytes_per_second = {LIMIT}\nin_flight_bytes = 131072\n");
    agent.configure("[replicate]\n", &keys);
    agent.start();
    broker.wait_subscribed("traffic/+/position");
    let mut publisher = Publisher::connect(broker.port(), "room-1");
    let mut publish = |seq: u32| {
        let reading =
            format!(r#"{{"device":"room-1","seq":{seq},"time":"2026-01-01T00:00:{seq:02}.000000Z"}}"#);
        publisher.publish("building/main/room-1/occupancy", reading);
    };
    let mut rooms = cluster.reader(&agent.topic("occupancy"));
    publish(1);
    rooms.wait_for(1, PATIENCE);

    cluster.kill_all();
    let mut load = load(&broker);
    load.finish(PATIENCE);
    cluster.heal();
    publish(2);
    let published = Instant::now();
    rooms.wait_for(2, PATIENCE);
    let backlog = agent.metric("wayside_replicate_lag_records").expect("the agent counts its backlog");
    note(&format!(
        "live record of an idle partition after {:?}, {backlog} records behind",
        published.elapsed()
    ));
    assert!(backlog > 1_000.0, "only {backlog} records of backlog are left");

    let read = || agent.metric("wayside_replicate_catch_up_bytes_total").unwrap_or_default();
    let from = wait_until(PATIENCE, "the backlog goes on", || Some(read()).filter(|bytes| *bytes > 0.0));
    let started = Instant::now();
    let to =
        wait_until(PATIENCE, "300 kB of backlog", || Some(read()).filter(|bytes| from + 300_000.0 < *bytes));
    let rate = (to - from) / started.elapsed().as_secs_f64();
    note(&format!("backlog sent at {rate:.0} bytes/s, the limit is {LIMIT}"));
    // One piece is large against a tenth of a second of this rate.
    assert!(rate < 1.2 * f64::from(LIMIT), "{rate} bytes/s");
    sim::verify(&cluster, agent.environment(), &[load.ledger()], PATIENCE).assert_complete(5_000);
    note(&format!("the last record of the backlog after {:?}", published.elapsed()));
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_broker_that_throttles_is_obeyed_and_gets_everything() {
    let cluster = kafka::shared();
    let broker = Mosquitto::start();
    let mut agent =
        Agent::new("throttle", &cluster.bootstrap_servers(), &agent::mqtt_source(&broker.url(), 5));
    // By each broker. The client's id is made of the gateway's.
    let quota = ["--alter", "--add-config", "producer_byte_rate=20000"];
    cluster.tool(
        "configs",
        &[&quota[..], &["--entity-type", "clients", "--entity-name", "wayside-throttle"]].concat(),
        "",
    );
    agent.configure("[replicate]\n", "[replicate]\ncompression = \"none\"\n");
    agent.start();
    broker.wait_subscribed("traffic/+/position");
    let mut load = load(&broker);
    let started = Instant::now();
    let throttle_seconds = wait_until(PATIENCE, "the agent says that it is throttled", || {
        agent.metric("wayside_replicate_throttle_seconds").filter(|seconds| *seconds > 0.0)
    });
    load.finish(PATIENCE);
    sim::verify(&cluster, agent.environment(), &[load.ledger()], PATIENCE).assert_complete(5_000);
    let restarts = agent.metric("wayside_replicate_producer_restarts_total");
    note(&format!(
        "throttled by {throttle_seconds} s; all there after {:?}, {restarts:?} restarts",
        started.elapsed()
    ));
    // Until transactions are small enough, Kafka may end one that it holds back itself.
    assert!(
        restarts.is_some_and(|restarts| restarts <= 2.0),
        "a throttled producer was given up: {restarts:?}"
    );
    wait_until(PATIENCE, "the agent says that it is over", || {
        agent.metric("wayside_replicate_throttle_seconds").filter(|seconds| *seconds == 0.0)
    });
    agent.stop();
}
