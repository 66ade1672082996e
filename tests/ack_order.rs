//! An acknowledgement leaves after the `fdatasync` of its record has returned: seen from outside, call by call.

use wayside_tests::PATIENCE;
use wayside_tests::agent::{self, Agent};
use wayside_tests::kafka;
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::mqtt::Publisher;
use wayside_tests::sim::{self, Load};
use wayside_tests::strace::{Trace, Verdict};

/// Runs the agent under strace while `work` is done, and judges every PUBACK that it sent.
fn watch(name: &str, work: impl FnOnce(&Agent, &Mosquitto, &kafka::Cluster)) -> Verdict {
    let cluster = kafka::shared();
    let broker = Mosquitto::start();
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let mut agent = Agent::new(name, &cluster.bootstrap_servers(), &agent::mqtt_source(&broker.url(), 5));
    agent.start_traced(&trace);
    broker.wait_subscribed("traffic/+/position");
    work(&agent, &broker, &cluster);
    let pid = agent.pid();
    agent.stop();
    Trace::read(&trace, pid).check_acknowledgements(broker.port(), &agent.log_directory())
}

#[test]
#[ignore = "needs Kafka, Mosquitto and strace: tests/run"]
fn each_single_record_is_synced_before_its_puback() {
    const READINGS: usize = 20;
    let verdict = watch("ack-single", |agent, broker, cluster| {
        let mut publisher = Publisher::connect(broker.port(), "bus-1");
        let mut reader = cluster.reader(&agent.topic("vehicle-positions"));
        for seq in 1..=READINGS {
            let reading =
                format!(r#"{{"device":"bus-1","seq":{seq},"time":"2026-01-01T00:00:{seq:02}.000000Z"}}"#);
            publisher.publish("traffic/bus-1/position", reading);
            // In Kafka, so it was committed: the next one needs a commit of its own.
            reader.wait_for(seq, PATIENCE);
        }
    });
    assert_eq!(verdict.premature, [] as [String; 0]);
    assert_eq!(verdict.acknowledged, READINGS);
    assert!(verdict.syncs >= READINGS, "{} syncs of the log's files", verdict.syncs);
}

#[test]
#[ignore = "needs Kafka, Mosquitto and strace: tests/run"]
fn no_puback_overtakes_its_sync_under_load() {
    let mut acknowledged = 0;
    let verdict = watch("ack-load", |agent, broker, cluster| {
        let url = broker.url();
        let load = ["traffic", "--mqtt", &url, "--devices", "50", "--rate", "500", "--duration", "4s"];
        let mut load = Load::start(load);
        load.finish(PATIENCE);
        let report = sim::verify(cluster, agent.environment(), &[load.ledger()], PATIENCE);
        report.assert_complete(1_500);
        acknowledged = report.count("acknowledged");
    });
    assert_eq!(verdict.premature, [] as [String; 0]);
    assert_eq!(u64::try_from(verdict.acknowledged).unwrap(), acknowledged);
}
