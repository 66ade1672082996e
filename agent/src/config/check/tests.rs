//! What a configuration may be, by example.

use super::*;
use crate::config::{Broker, MqttVersion};

const GOOD: &str = r#"
    gateway.id = "gw-1"
    [[source.mqtt]]
    name = "broker"
    urls = ["mqtt://127.0.0.1:1883", "mqtt://[::1]"]
    [[source.mqtt.route]]
    topic_filter = "building/+/+/occupancy"
    decode = "json"
    stream = "occupancy"
    device_pointer = "/device"
    [replicate]
    bootstrap_servers = ["127.0.0.1:9092"]
"#;

/// Asserts that `text` has exactly the faults `expected`, each given as `key = value`.
fn check_faults(text: &str, expected: &[&str]) {
    let Err(ConfigError::Faults(faults)) = parse(text) else { panic!("no faults found in {text}") };
    let found: Vec<_> = faults.iter().map(|fault| format!("{} = {}", fault.key, fault.value)).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_small_config_takes_the_defaults() {
    let config = parse(GOOD).expect("good");
    assert_eq!(config.commit.window, Duration::from_millis(20));
    assert_eq!(config.mqtt[0].client_id, "wayside-gw-1-broker");
    assert_eq!(config.mqtt[0].version, MqttVersion::V5);
    assert_eq!(config.mqtt[0].brokers[1], Broker { host: "::1".into(), port: 1883, tls: false });
    assert_eq!(config.partitions("occupancy").get(), 4);
}

#[test]
fn an_empty_config_names_everything_that_must_be_set() {
    check_faults("", &["gateway.id = \"\"", "source = ", "replicate.bootstrap_servers = []"]);
}

#[test]
fn all_faults_are_found_in_one_pass() {
    let text = GOOD.replace("name = \"broker\"", "name = \"broker\"\nqos = 3\nversion = 4\nkeep_alive_s = 1")
        + "min_insync_replicas = 5\n[commit]\nwindow_ms = 60000\ncompression = \"gzip\"\n[telemetry]\nlisten = \"nowhere\"";
    check_faults(
        &text,
        &[
            "source.mqtt[0].qos = 3",
            "source.mqtt[0].version = 4",
            "source.mqtt[0].keep_alive_s = 1",
            "replicate.min_insync_replicas = 5",
            "commit.window_ms = 60000",
            "commit.compression = \"gzip\"",
            "telemetry.listen = \"nowhere\"",
        ],
    );
}

#[test]
fn a_route_says_what_its_decoder_needs() {
    let route = |lines: &str| {
        format!(
            "gateway.id = \"g\"\n[replicate]\nbootstrap_servers = [\"k:9092\"]\n[[source.mqtt]]\nname = \"b\"\n\
             urls = [\"mqtt://b\"]\n[[source.mqtt.route]]\n{lines}"
        )
    };
    check_faults(
        &route("topic_filter = \"a/#/b\"\ndecode = \"native\""),
        &["source.mqtt[0].route[0].topic_filter = \"a/#/b\""],
    );
    check_faults(
        &route("topic_filter = \"a\"\ndecode = \"raw\"\nstream = \"s\""),
        &["source.mqtt[0].route[0].device_topic = \"\""],
    );
    check_faults(
        &route("topic_filter = \"a\"\ndecode = \"raw\"\nstream = \"s\"\ndevice_topic = \"a/{dev}\""),
        &["source.mqtt[0].route[0].device_topic = \"a/{dev}\""],
    );
    check_faults(
        &route("topic_filter = \"a\"\ndecode = \"json\"\nstream = \"s\"\ndevice_pointer = \"device\""),
        &["source.mqtt[0].route[0].device_pointer = \"device\""],
    );
    check_faults(
        &route("topic_filter = \"a\"\ndecode = \"xml\""),
        &["source.mqtt[0].route[0].decode = \"xml\""],
    );
}

#[test]
fn two_sources_may_not_share_a_name() {
    let text = format!(
        "{GOOD}\n[[source.serial]]\nname = \"broker\"\npath = \"/dev/ttyUSB0\"\nprotocol = \"native\""
    );
    check_faults(&text, &["source.serial[0].name = \"broker\""]);
}

/// The lines that a user sees.
fn said(text: &str) -> Vec<String> {
    parse(text).expect_err("faults").to_string().lines().map(str::to_owned).collect()
}

#[test]
fn unknown_keys_wrong_types_and_wrong_values_are_found_in_one_pass() {
    let text = r#"
        gateway.id = 7
        [source]
        mqt = 1
        [source.serial]
        name = "a"
        [[stream]]
        name = "occupancy"
        partitions = 70000
        [[stream]]
        name = "occupancy"
        partitions = "4"
        [commit]
        window = 3
        compression = "gzip"
        epoch_bytes = 0x10_0000
        [replicate]
        bootstrap_servers = ["k:9092", 9093]
        linger_ms = -1
        [replicate.properties]
        "client.rack" = 1
        [telemetry]
        colour = "red"
    "#;
    assert_eq!(
        said(text),
        [
            "line 2: gateway.id = 7: must be text in quotes",
            "line 4: source.mqt = 1: unknown key; did you mean source.mqtt?",
            "line 5: source.serial = {..}: must be a list of sections: [[source.serial]]",
            "line 9: stream[0].partitions = 70000: must be 1 to 10000",
            "line 11: stream[1].name = \"occupancy\": already the name of another [[stream]]",
            "line 12: stream[1].partitions = \"4\": must be a whole number, without quotes",
            "line 14: commit.window = 3: unknown key; did you mean commit.window_ms?",
            "line 15: commit.compression = \"gzip\": must be one of \"zstd\", \"lz4\", \"none\"",
            "line 16: commit.epoch_bytes = 0x10_0000: unknown key; did you mean epoch_bytes in [log]?",
            "line 18: replicate.bootstrap_servers[1] = 9093: must be text in quotes",
            "line 19: replicate.linger_ms = -1: must be 0 to 60000",
            "line 21: replicate.properties.client.rack = 1: must be text in quotes",
            "line 23: telemetry.colour = \"red\": unknown key; known here: listen, log_format, log_level",
        ]
    );
}

#[test]
fn every_place_that_is_not_toml_is_named() {
    let said = said("[commit\nwindow_ms = 3\n[log]\ndir = /var\n").join("\n");
    assert!(said.contains("line 1, column") && said.contains("line 4, column"), "{said}");
}

#[test]
fn a_fault_without_a_line_of_its_own_has_that_of_its_section() {
    let text = GOOD.replace("urls", "client_id = \"c\" #");
    assert_eq!(
        said(&text),
        ["line 3: source.mqtt[0].urls = []: at least one broker, mqtt://host:port or mqtts://host:port"]
    );
}

#[test]
fn the_schema_knows_every_default_and_range() {
    let schema = serde_json::to_value(crate::config::raw::schema()).expect("JSON");
    let window = &schema["properties"]["commit"]["properties"]["window_ms"];
    assert_eq!((&window["default"], &window["maximum"]), (&20.into(), &10_000.into()));
    assert!(window["description"].as_str().is_some_and(|text| text.contains("in ms")), "{window}");
}

#[test]
fn the_configuration_that_is_shipped_is_good() {
    let shipped = include_str!("../../../../deploy/wayside.toml");
    let config = parse(shipped).expect("good");
    assert_eq!(config.mqtt[0].routes.len(), 2);
}

#[test]
fn what_may_be_a_secret_is_not_repeated() {
    let with = |lines: &str| said(&GOOD.replace("name = \"broker\"", &format!("name = \"broker\"\n{lines}")));
    for lines in [
        "user = \"u\"\npassword = \"hunter2\"",
        "password = 0xbeef",
        "pasword_file = \"hunter2\"",
        "tls.key = \"hunter2\"",
        "password = hunter2",
        "password = \"hunter2",
    ] {
        let said = with(lines).join("\n");
        assert!(!said.is_empty() && !said.contains("hunter2") && !said.contains("0xbeef"), "{said}");
    }
    assert_eq!(
        with("user = \"u\"\npassword = \"hunter2\""),
        [
            "line 6: source.mqtt[0].password = (not shown): must be file:PATH, env:NAME or credential:NAME; the \
          secret itself has no place here"
        ]
    );
    let said = with("urls = [\"mqtt://agent:hunter2@broker\"]#").join("\n");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_secure_broker_is_told_by_its_url() {
    let url = |url: &str, lines: &str| {
        let text = GOOD.replace("\"mqtt://127.0.0.1:1883\", \"mqtt://[::1]\"", &format!("\"{url}\""));
        text.replace("[replicate]", &format!("[source.mqtt.tls]\n{lines}\n[replicate]"))
    };
    let config = parse(&url("mqtts://b", "cert_file = \"/c\"\nkey = \"credential:k\"")).expect("good");
    assert_eq!(config.mqtt[0].brokers, [Broker { host: "b".into(), port: 8883, tls: true }]);
    assert!(config.mqtt[0].tls.client.is_some());
    check_faults(&url("mqtt://b", "ca_file = \"/c\""), &["source.mqtt[0].tls = {..}"]);
    check_faults(&url("mqtts://b", "cert_file = \"/c\""), &["source.mqtt[0].tls.key = \"\""]);
    check_faults(&url("mqtts://b", "key = \"file:/c\""), &["source.mqtt[0].tls.cert_file = \"\""]);
    check_faults(&url("mqtts://b", "server_name = \"a b\""), &["source.mqtt[0].tls.server_name = \"a b\""]);
    check_faults(&GOOD.replace("urls", "password = \"env:P\"\nurls"), &["source.mqtt[0].user = \"\""]);
}

#[test]
fn kafka_knows_who_we_are_by_password_token_or_certificate() {
    let good = |lines: &str| parse(&format!("{GOOD}{lines}")).expect("good").replicate;
    let tls =
        good("tls.enabled = true\ntls.cert_file = \"/c\"\ntls.key = \"file:/k\"").tls.expect("it is on");
    assert!(tls.client.is_some() && tls.ca_file.is_none());
    let sasl = "sasl.mechanism = \"SCRAM-SHA-512\"\nsasl.user = \"u\"\nsasl.password = \"env:P\"";
    assert!(matches!(good(sasl).sasl, Some(Sasl::Password { mechanism: SaslMechanism::ScramSha512, .. })));
    let command = "sasl.mechanism = \"OAUTHBEARER\"\nsasl.token_command = [\"/bin/token\"]";
    assert!(matches!(good(command).sasl, Some(Sasl::OauthBearer(TokenSource::Command(_)))));

    let faults = |lines: &str, expected: &[&str]| check_faults(&format!("{GOOD}{lines}"), expected);
    faults("tls.ca_file = \"/c\"", &["replicate.tls.enabled = false"]);
    faults("sasl.user = \"u\"", &["replicate.sasl.mechanism = \"\""]);
    faults("sasl.mechanism = \"GSSAPI\"", &["replicate.sasl.mechanism = \"GSSAPI\""]);
    faults("sasl.mechanism = \"PLAIN\"", &["replicate.sasl.user = \"\"", "replicate.sasl.password = \"\""]);
    faults("sasl.mechanism = \"OAUTHBEARER\"", &["replicate.sasl.token = \"\""]);
    faults(
        "sasl.mechanism = \"PLAIN\"\nsasl.user = \"u\"\nsasl.password = \"hunter2\"",
        &["replicate.sasl.password = (not shown)"],
    );
    faults("properties.\"sasl.password\" = \"hunter2\"", &["replicate.properties = {..}"]);
    faults("properties.\"sasl.password\" = 12345", &["replicate.properties.sasl.password = (not shown)"]);
}
