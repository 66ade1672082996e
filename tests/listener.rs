//! The agent as the MQTT server that devices connect to: nothing that it acknowledged is lost, whatever they speak and whoever dies.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use wayside_tests::agent::{self, Agent};
use wayside_tests::mqtt::Publisher;
use wayside_tests::sim::{self, Load};
use wayside_tests::strace::Trace;
use wayside_tests::{PATIENCE, kafka, ports, process};

const KILLS: usize = 10;

/// `mosquitto_pub` or `mosquitto_sub` at the listener on `port`, with `arguments`.
fn mosquitto(tool: &str, port: u16, arguments: &[&str]) -> std::process::Command {
    let mut command = process::command(format!("mosquitto_{tool}"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(arguments);
    command
}

/// Publishes each of `lines`; returns when all are acknowledged.
#[track_caller]
fn publish(port: u16, version: &str, qos: &str, topic: &str, lines: &[String]) {
    let mut command = mosquitto("pub", port, &["-V", version, "-q", qos, "-t", topic, "-l"]);
    let mut publisher = command.stdin(Stdio::piped()).spawn().expect("starts mosquitto_pub");
    let mut input = publisher.stdin.take().expect("a pipe");
    for line in lines {
        writeln!(input, "{line}").expect("mosquitto_pub reads");
    }
    drop(input);
    let status = publisher.wait().expect("ends");
    assert!(status.success(), "mosquitto_pub -V {version} -q {qos}: {status}");
}

fn readings(device: &str, count: usize) -> Vec<String> {
    (1..=count)
        .map(|seq| format!(r#"{{"device":"{device}","seq":{seq},"time":"2026-01-01T00:00:00.{seq:06}Z"}}"#))
        .collect()
}

#[test]
#[ignore = "needs Kafka and mosquitto-clients: tests/run"]
fn clients_of_both_versions_and_every_qos_reach_kafka_and_each_other() {
    const READINGS: usize = 50;
    let cluster = kafka::shared();
    let port = ports::free();
    let mut agent = Agent::new("listener-clients", &cluster.bootstrap_servers(), &agent::listener(port));
    agent.start();
    let all = 7 * READINGS;
    let mut subscribers: Vec<_> = ["mqttv311", "mqttv5"]
        .map(|version| {
            let count = all.to_string();
            // What QoS 0 brings must not wait longer than the test.
            let arguments = ["-V", version, "-q", "1", "-t", "traffic/+/position", "-C", &count, "-W", "120"];
            let mut command = mosquitto("sub", port, &arguments);
            command.stdout(Stdio::piped()).spawn().expect("starts mosquitto_sub")
        })
        .into();
    wayside_tests::wait_until(PATIENCE, "both have connected", || {
        (agent.metric("wayside_source_clients") == Some(2.0)).then_some(())
    });
    // A PUBLISH that is retained is there for whoever comes later, so that the subscribers need no second sign.
    let retained =
        ["-q", "1", "-r", "-t", "traffic/bus-retained/position", "-m", &readings("bus-retained", 1)[0]];
    let status = mosquitto("pub", port, &retained).status().expect("runs");
    assert!(status.success());
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let device = format!("bus-{version}-{qos}");
            let topic = format!("traffic/{device}/position");
            publish(port, version, qos, &topic, &readings(&device, READINGS));
        }
    }
    let mut rumqttc = Publisher::connect(port, "bus-rumqttc");
    for reading in readings("bus-rumqttc", READINGS) {
        rumqttc.publish("traffic/bus-rumqttc/position", reading);
    }
    let mut reader = cluster.reader(&agent.topic("vehicle-positions"));
    reader.wait_for(all + 1, PATIENCE);
    for subscriber in &mut subscribers {
        let status = subscriber.wait().expect("ends");
        assert!(status.success(), "a subscriber did not get all: {status}");
    }
    let late = ["-t", "traffic/bus-retained/position", "-C", "1", "-W", "60", "-F", "%r"];
    let output = mosquitto("sub", port, &late).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n", "retained");
    agent.stop();
    assert_eq!(cluster.read(&agent.topic("vehicle-positions")).len(), all + 1, "none twice");
}

/// Kills the agent again and again, then lets the load come to its end.
fn kill_under(load: &mut Load, agent: &mut Agent) {
    for kill in 0..KILLS {
        // The moment is what the test varies: anywhere in some commits.
        let acknowledged = load.acknowledged();
        load.wait_acknowledged(acknowledged + 100 + kill * 7919 % 200, PATIENCE);
        agent.kill();
        agent.start();
    }
    load.interrupt();
    load.finish(PATIENCE);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn kills_under_load_lose_nothing_that_devices_had_an_acknowledgement_for_and_nothing_comes_twice() {
    let cluster = kafka::shared();
    let port = ports::free();
    let url = format!("mqtt://127.0.0.1:{port}");
    let mut agent = Agent::new("listener-crash", &cluster.bootstrap_servers(), &agent::listener(port));
    agent.start();
    let mut load = Load::start(["traffic", "--mqtt", &url, "--devices", "50", "--rate", "500"]);
    kill_under(&mut load, &mut agent);
    sim::verify(&cluster, agent.environment(), &[load.ledger()], PATIENCE).assert_complete(1_000);
    agent.stop();
    let report = sim::verify(&cluster, agent.environment(), &[load.ledger()], Duration::ZERO);
    report.assert_complete(1_000);
}

#[test]
#[ignore = "needs Kafka, mosquitto-clients and strace: tests/run"]
fn no_puback_and_no_pubrec_of_the_listener_leaves_before_its_sync() {
    const READINGS: usize = 100;
    let cluster = kafka::shared();
    let port = ports::free();
    let url = format!("mqtt://127.0.0.1:{port}");
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let mut agent = Agent::new("listener-sync", &cluster.bootstrap_servers(), &agent::listener(port));
    agent.start_traced(&trace);
    let load = ["traffic", "--mqtt", &url, "--devices", "50", "--rate", "500", "--duration", "4s"];
    let mut load = Load::start(load);
    publish(port, "mqttv5", "2", "traffic/bus-2/position", &readings("bus-2", READINGS));
    load.finish(PATIENCE);
    let acknowledged = load.acknowledged();
    let pid = agent.pid();
    agent.stop();
    let verdict = Trace::read(&trace, pid).check_acknowledgements(port, &agent.log_directory());
    assert_eq!(verdict.premature, [] as [String; 0]);
    assert_eq!(verdict.acknowledged, acknowledged + READINGS);
    assert!(acknowledged > 1_000, "{acknowledged} readings of the load");
}
