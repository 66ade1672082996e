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

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::try_from(toml::from_str::<RawConfig>(text).expect("valid TOML"))
}

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
    assert_eq!(config.mqtt[0].brokers[1], Broker { host: "::1".into(), port: 1883 });
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
            "source.mqtt[0].version = 4",
            "source.mqtt[0].qos = 3",
            "source.mqtt[0].keep_alive_s = 1",
            "commit.window_ms = 60000",
            "commit.compression = \"gzip\"",
            "replicate.min_insync_replicas = 5",
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

#[test]
fn an_unknown_key_is_refused_with_its_place() {
    let error = toml::from_str::<RawConfig>("[commit]\nwindow = 3").expect_err("unknown key").to_string();
    assert!(error.contains("window") && error.contains("window_ms"), "{error}");
}

#[test]
fn the_configuration_that_is_shipped_is_good() {
    let shipped = include_str!("../../../../deploy/wayside.toml");
    let config = parse(shipped).expect("good");
    assert_eq!(config.mqtt[0].routes.len(), 2);
}
