//! Servers that want to know who they speak to: what the agent says when they refuse it, and what it never says.

use std::os::unix::fs::PermissionsExt as _;

use wayside_tests::agent::{self, Agent};
use wayside_tests::certificates::Certificates;
use wayside_tests::kafka::SecureKafka;
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::mqtt::Publisher;
use wayside_tests::{PATIENCE, ports, wait_until};

const MQTT_PASSWORD: &str = "mqtt-horse-battery";
const KAFKA_PASSWORD: &str = "kafka-staple-correct";
const WRONG_PASSWORD: &str = "kafka-is-not-this";

/// `{"alg":"none"}` and `{"sub":"agent","exp":4102444800}`, which the broker takes on trust.
const TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZ2VudCIsImV4cCI6NDEwMjQ0NDgwMH0.";

/// A reading of a room, as `agent::mqtt_source` decodes it.
const READING: &str = r#"{"device":"room-1","time":"2026-01-01T00:00:00Z","seq":1,"count":3}"#;

/// Starts a broker whose listener for the agent has TLS and knows `agent` by a password.
fn secure_mosquitto(certificates: &Certificates) -> (Mosquitto, u16) {
    certificates.issue("mosquitto");
    let (port, passwords) = (ports::free(), certificates.path("passwd"));
    let mut tool = std::process::Command::new("mosquitto_passwd");
    tool.args(["-b", "-c"]).arg(&passwords).args(["agent", MQTT_PASSWORD]);
    assert!(tool.output().unwrap().status.success());
    let (passwords, directory) = (passwords.display(), certificates.directory().display());
    let broker = Mosquitto::start_with(&format!(
        "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n\
         certfile {directory}/mosquitto.crt\nkeyfile {directory}/mosquitto.key\n"
    ));
    (broker, port)
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn a_gateway_that_is_refused_says_why_recovers_without_a_restart_and_never_shows_a_secret() {
    let certificates = Certificates::new();
    let kafka = SecureKafka::start(&certificates, "plain", KAFKA_PASSWORD);
    kafka.set_password("SCRAM-SHA-512", "agent", KAFKA_PASSWORD);
    let (broker, mqtts_port) = secure_mosquitto(&certificates);
    certificates.write("mqtt.password", MQTT_PASSWORD);
    let directory = certificates.directory().display();
    let tls = format!("[source.mqtt.tls]\nca_file = \"{directory}/ca.crt\"\n[[source.mqtt.route]]");
    let login = format!("user = \"agent\"\npassword = \"file:{directory}/mqtt.password\"\nversion = 5");
    let source = agent::mqtt_source(&format!("mqtts://127.0.0.1:{mqtts_port}"), 5)
        .replacen("[[source.mqtt.route]]", &tls, 1)
        .replacen("version = 5", &login, 1);
    let sections = format!(
        "log_level = \"debug\"\n{source}
[replicate.tls]
enabled = true
ca_file = \"{directory}/ca.crt\"
[replicate.sasl]
mechanism = \"SCRAM-SHA-512\"
user = \"agent\"
password = \"file:{directory}/kafka.password\"
[replicate.properties]
debug = \"security,conf,broker\"
"
    );
    let mut agent = Agent::new("secure", &kafka.sasl_ssl(), &sections);
    agent.start();
    agent.wait_health("replicate.sasl.password: ");
    let found = agent.command_output(&["check", "--connect", "-c", "CONFIG"]);
    assert!(
        found.contains(&format!("failed  Kafka {}: replicate.sasl.password: ", kafka.sasl_ssl())),
        "{found}"
    );

    certificates.write("kafka.password", WRONG_PASSWORD);
    broker.wait_subscribed("building/+/+/occupancy");
    let mut device = Publisher::connect(broker.port(), "device");
    device.publish("building/1/room-1/occupancy", READING);
    agent.wait_health("the broker does not let us in");

    certificates.write("kafka.password", KAFKA_PASSWORD);
    agent.wait_health("no permission");
    for (kind, prefix) in
        [("--topic", "secure."), ("--transactional-id", "wayside.secure"), ("--group", "wayside.secure")]
    {
        kafka.allow("agent", kind, prefix);
    }
    let mut reader = kafka.reader("secure.occupancy");
    assert_eq!(reader.wait_for(1, PATIENCE)[0].value, READING.as_bytes());

    let key = std::fs::read_to_string(certificates.path("kafka.key")).unwrap();
    let key_line = key.lines().nth(1).unwrap();
    let printed = agent.output();
    assert!(printed.contains("does not let us in"), "{printed}");
    for text in [
        printed,
        agent.page("/metrics"),
        agent.page("/healthz"),
        agent.command_output(&["--help"]),
        agent.command_output(&["run", "--help"]),
        agent.command_output(&["check", "-c", "CONFIG"]),
        agent.command_output(&["check", "--connect", "-c", "CONFIG"]),
    ] {
        for secret in [MQTT_PASSWORD, KAFKA_PASSWORD, WRONG_PASSWORD, key_line] {
            assert!(!text.contains(secret), "shows `{secret}`:\n{text}");
        }
    }
    agent.stop();
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn every_way_to_prove_who_we_are_is_taken_by_kafka() {
    let certificates = Certificates::new();
    let kafka = SecureKafka::start(&certificates, "agent", KAFKA_PASSWORD);
    kafka.set_password("SCRAM-SHA-256", "agent", KAFKA_PASSWORD);
    for (kind, prefix) in
        [("--topic", "proof-"), ("--transactional-id", "wayside.proof-"), ("--group", "wayside.proof-")]
    {
        kafka.allow("agent", kind, prefix);
    }
    certificates.issue("agent");
    certificates.write("password", KAFKA_PASSWORD);
    certificates.write("token", TOKEN);
    let directory = certificates.directory().display();
    let password = |mechanism: &str| {
        format!(
            "[replicate.sasl]\nmechanism = \"{mechanism}\"\nuser = \"agent\"\npassword = \"file:{directory}/password\""
        )
    };
    let token = |line: &str| format!("[replicate.sasl]\nmechanism = \"OAUTHBEARER\"\n{line}");
    for (name, server, proof) in [
        ("plain", kafka.sasl_ssl(), password("PLAIN")),
        ("scram-256", kafka.sasl_ssl(), password("SCRAM-SHA-256")),
        ("token", kafka.sasl_ssl(), token(&format!("token = \"file:{directory}/token\""))),
        ("command", kafka.sasl_ssl(), token(&format!("token_command = [\"cat\", \"{directory}/token\"]"))),
        (
            "certificate",
            kafka.ssl(),
            format!("cert_file = \"{directory}/agent.crt\"\nkey = \"file:{directory}/agent.key\""),
        ),
    ] {
        let broker = Mosquitto::start();
        let sections = format!(
            "{}[replicate.tls]\nenabled = true\nca_file = \"{directory}/ca.crt\"\n{proof}\n",
            agent::mqtt_source(&broker.url(), 5)
        );
        let mut agent = Agent::new(&format!("proof-{name}"), &server, &sections);
        agent.start();
        broker.wait_subscribed("building/+/+/occupancy");
        Publisher::connect(broker.port(), "device").publish("building/1/room-1/occupancy", READING);
        let mut reader = kafka.reader(&agent.topic("occupancy"));
        assert_eq!(reader.wait_for(1, PATIENCE)[0].value, READING.as_bytes(), "{name}");
        let found = agent.command_output(&["check", "--connect", "-c", "CONFIG"]);
        assert!(found.contains(&format!("ok      Kafka {server}: 1 brokers")), "{name}: {found}");
        assert!(!agent.output().contains(TOKEN) && !found.contains(TOKEN));
        agent.stop();
    }
}

#[test]
#[ignore = "needs Mosquitto: tests/run"]
fn nobody_else_can_read_the_data_directory() {
    let broker = Mosquitto::start();
    // No Kafka: what is published stays in the log.
    let mut agent = Agent::new("closed", "127.0.0.1:1", &agent::mqtt_source(&broker.url(), 5));
    std::fs::create_dir(agent.log_directory()).unwrap();
    std::fs::set_permissions(agent.log_directory(), std::fs::Permissions::from_mode(0o755)).unwrap();
    agent.start();
    broker.wait_subscribed("building/+/+/occupancy");
    Publisher::connect(broker.port(), "device").publish("building/1/room-1/occupancy", READING);
    wait_until(PATIENCE, "a commit", || {
        agent.metric("wayside_replicate_lag_records").filter(|lag| *lag == 1.0)
    });
    agent.stop();
    let mut paths = vec![agent.log_directory()];
    let mut files = 0;
    while let Some(path) = paths.pop() {
        let metadata = path.metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        assert_eq!(mode, if metadata.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        if metadata.is_dir() {
            paths.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            files += 1;
        }
    }
    assert!(files > 2, "the lock, an epoch and the cursor");
}
