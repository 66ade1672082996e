//! What a configuration may be, by example.

use super::*;
use crate::config::{Anonymous, Broker, MqttVersion};

fn parse(text: &str) -> Result<Config, ConfigError> {
    super::parse(text, &[]).map(|checked| checked.config)
}

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
    assert_eq!(
        said(""),
        [
            "gateway.id: must be set: Name of this gateway, unique in the fleet; in every record's headers",
            "replicate.bootstrap_servers: must be set: Kafka brokers, `host:port`",
            "source: at least one [[source.mqtt]], [[source.listener]], [[source.serial]] or [[source.http]]",
        ]
    );
}

#[test]
fn a_section_says_what_must_be_set_in_it() {
    let text =
        GOOD.replace("decode = ", "value = ") + "[[source.serial]]\nname = \"rooms\"\npath = \"/dev/ttyS0\"";
    assert_eq!(
        said(&text),
        [
            "line 6: source.mqtt[0].route[0].decode: must be set: \"json\", \"hfp\", \"raw\", \"native\"",
            "line 13: source.serial[0].protocol: must be set: \"native\", \"nmea\"",
        ]
    );
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
fn a_listener_says_what_is_wrong_with_it() {
    let listener = |lines: &str| {
        format!(
            "gateway.id = \"g\"\n[replicate]\nbootstrap_servers = [\"k:9092\"]\n[[source.listener]]\nname = \"l\"\n\
             {lines}\n[[source.listener.route]]\ntopic_filter = \"a/+\"\ndecode = \"raw\"\nstream = \"s\"\n\
             device_topic = \"a/{{device}}\""
        )
    };
    let config = parse(&listener("")).expect("good");
    assert_eq!(config.listener[0].listen.to_string(), "127.0.0.1:1883");
    assert_eq!(config.listener[0].anonymous, Anonymous::Loopback);
    assert!(config.stream_names().contains("s"));
    check_faults(&listener("listen = \"1883\""), &["source.listener[0].listen = \"1883\""]);
    check_faults(
        &listener("local_topic_filters = [\"home/#/x\"]\nanonymous = \"everybody\"\nreceive_maximum = 0"),
        &[
            "source.listener[0].local_topic_filters[0] = \"home/#/x\"",
            "source.listener[0].anonymous = \"everybody\"",
            "source.listener[0].receive_maximum = 0",
        ],
    );
    check_faults(&listener("anonymous = \"nowhere\""), &["source.listener[0].password_file = \"\""]);
    check_faults(
        &listener("certificate_user = \"subject\"\npassword_file = \"p\"\ntls.cert_file = \"c\""),
        &[
            "source.listener[0].password_file = (not shown)",
            "source.listener[0].tls.key = \"\"",
            "source.listener[0].tls.client_ca_file = \"\"",
        ],
    );
    check_faults(&listener("tls.client_ca_file = \"c\""), &["source.listener[0].tls.cert_file = \"\""]);
    let tls = "tls = { cert_file = \"c\", key = \"file:k\", client_ca_file = \"a\" }\n";
    let config = parse(&listener(&format!("{tls}certificate_user = \"common-name\""))).expect("good");
    assert!(config.listener[0].tls.is_some());
    let text = listener("") + "\n[[source.listener]]\nname = \"m\"";
    check_faults(&text, &["source.listener[1].route = ", "source.listener[1].listen = \"127.0.0.1:1883\""]);
}

#[test]
fn two_sources_may_not_share_a_name() {
    let text = format!(
        "{GOOD}\n[[source.serial]]\nname = \"broker\"\npath = \"/dev/ttyUSB0\"\nprotocol = \"native\""
    );
    check_faults(&text, &["source.serial[0].name = \"broker\""]);
}

#[test]
fn an_http_source_says_what_it_needs() {
    let http = |lines: &str, route: &str| {
        format!("{GOOD}[[source.http]]\nname = \"web\"\n{lines}\n[[source.http.route]]\n{route}")
    };
    let good = http("listen = \"[::1]:8080\"", "stream = \"occupancy\"\ndevice_pointer = \"/id\"");
    let config = parse(&good).expect("good");
    assert_eq!(config.http[0].routes[0].device_pointer.as_deref(), Some("/id"));
    assert_eq!(config.http[0].environment, "prod");
    let open = "listen = \"0.0.0.0:8080\"";
    check_faults(&http(open, "stream = \"s\""), &["source.http[0].listen = \"0.0.0.0:8080\""]);
    parse(&http(&format!("{open}\ntoken_file = \"/etc/wayside/tokens\""), "stream = \"s\"")).expect("good");
    check_faults(
        &http(
            "listen = \"127.0.0.1:9464\"\nbody_buffer_bytes = 2048",
            "stream = \"a b\"\ntime_pointer = \"t\"\n[[source.http.route]]\nstream = \"s\"\n\
             [[source.http.route]]\nstream = \"s\"",
        ),
        &[
            "source.http[0].listen = \"127.0.0.1:9464\"",
            "source.http[0].body_buffer_bytes = 2048",
            "source.http[0].route[0].stream = \"a b\"",
            "source.http[0].route[0].time_pointer = \"t\"",
            "source.http[0].route[2].stream = \"s\"",
        ],
    );
    let text = "gateway.id = \"g\"\n[replicate]\nbootstrap_servers = [\"k:9092\"]\n[[source.http]]\nname = \"w\"\nlisten = \"x\"";
    assert_eq!(
        said(text),
        [
            "line 4: source.http[0].route: must be set: The streams that can be written to",
            "line 6: source.http[0].listen = \"x\": host address and port",
        ]
    );
}

#[test]
fn two_sections_that_want_the_same_port_or_session_are_both_named() {
    let port = "protocol = \"native\"\npath = \"/dev/ttyUSB0\"\n";
    let client = |name: &str| {
        let section = GOOD.replace("name = \"broker\"", &format!("name = \"{name}\"\nclient_id = \"plant\""));
        section[section.find("[[source").expect("a source")..section.find("[replicate").expect("behind it")]
            .to_owned()
    };
    let text = format!(
        "{GOOD}[[source.serial]]\nname = \"a\"\n{port}[[source.serial]]\nname = \"b\"\n{port}{}{}",
        client("c"),
        client("d"),
    );
    assert_eq!(
        said(&text),
        [
            "line 20: source.serial[1].path = \"/dev/ttyUSB0\": already read by source.serial[0]: each would get half \
             of the bytes",
            "line 32: source.mqtt[2].client_id = \"plant\": already used by source.mqtt[1] at the same broker, where \
             each would throw the other out: leave it out",
        ]
    );
}

#[test]
fn a_file_that_is_not_there_or_no_text_is_said_with_the_cause() {
    let dir = tempfile::tempdir().expect("a directory");
    let said = |path: &Path| format!("{:#}", anyhow::Error::new(load(path).expect_err("no configuration")));
    assert_eq!(
        said(&dir.path().join("missing")),
        "cannot read the file (--config names another): No such file or directory (os error 2)"
    );
    let binary = dir.path().join("binary");
    std::fs::write(&binary, b"\xff\xfe").expect("written");
    assert!(said(&binary).contains("valid UTF-8"), "{}", said(&binary));
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
            "line 15: commit.compression = \"gzip\": must be one of \"none\", \"lz4\", \"zstd\"",
            "line 16: commit.epoch_bytes = 0x10_0000: unknown key; did you mean epoch_bytes in [log]?",
            "line 18: replicate.bootstrap_servers[1] = 9093: must be text in quotes",
            "line 19: replicate.linger_ms = -1: must be 0 to 60000",
            "line 21: replicate.properties.client.rack = 1: must be text in quotes",
            "line 23: telemetry.colour = \"red\": unknown key; known here: listen, log_format, log_level, token",
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
        [
            "line 3: source.mqtt[0].urls: must be set: Brokers, `mqtt://host:port` or with TLS `mqtts://host:port`, \
             tried in turn"
        ]
    );
}

#[test]
fn the_schema_knows_every_default_range_and_choice() {
    let schema = serde_json::to_value(crate::config::raw::schema()).expect("JSON");
    let window = &schema["properties"]["commit"]["properties"]["window_ms"];
    assert_eq!((&window["default"], &window["maximum"]), (&20.into(), &10_000.into()));
    assert!(window["description"].as_str().is_some_and(|text| text.contains("in ms")), "{window}");
    let parity = &schema["properties"]["source"]["properties"]["serial"]["items"]["properties"]["parity"];
    assert_eq!(
        (&parity["default"], &parity["oneOf"][1]["const"]),
        (&"none".into(), &"even".into()),
        "{parity}"
    );
}

/// What `GOOD` becomes with `variables` set, each given as `NAME=value`.
fn with_variables(variables: &[&str]) -> Result<Config, ConfigError> {
    let variable = |text: &&str| {
        let (name, value) = text.split_once('=').expect("NAME=value");
        (format!("WAYSIDE__{name}"), value.into())
    };
    let variables: Vec<_> = variables.iter().map(variable).collect();
    super::parse(GOOD, &variables).map(|checked| checked.config)
}

#[test]
fn a_variable_sets_its_key_over_the_file() {
    let variables = [
        "GATEWAY__ID=0815",
        "COMMIT__WINDOW_MS=50",
        "REPLICATE__BOOTSTRAP_SERVERS=[\"a:1\", \"b:2\"]",
        "REPLICATE__PROPERTIES={ \"client.rack\" = \"a\" }",
        "TELEMETRY__LISTEN=",
        "LOG__DIR=/data/\"quoted\"",
    ];
    let config = with_variables(&variables).expect("good");
    assert_eq!(config.gateway.id, "0815", "text needs no quotes");
    assert_eq!(config.commit.window, Duration::from_millis(50));
    assert_eq!(config.replicate.bootstrap_servers, ["a:1", "b:2"]);
    assert_eq!(config.replicate.properties["client.rack"], "a");
    assert_eq!(config.telemetry.listen, None);
    assert_eq!(config.log.dir.to_str(), Some("/data/\"quoted\""));
}

#[test]
fn what_must_be_set_may_be_a_variable() {
    let text = GOOD.replace("gateway.id", "gateway.environment");
    assert_eq!(
        super::parse(&text, &[("WAYSIDE__GATEWAY__ID".into(), "g".into())]).expect("good").raw.gateway.id,
        "g"
    );
}

#[test]
fn a_fault_of_the_environment_names_its_variable() {
    let variables = [
        "COMIT__WINDOW_MS=50",
        "COMMIT__INTAKE_BYTES=65536",
        "COMMIT__WINDOW_MS=fast",
        "COLOUR=red",
        "LOG__EPOCH_BYTES=1",
        "REPLICATE__BOOTSTRAP_SERVERS=a:1",
        "SOURCE__MQTT__0__NAME=b",
        "STREAM=[]",
        "TELEMETRY__LOG_FORMAT=xml",
    ];
    let said = with_variables(&variables).expect_err("faults").to_string();
    let mut said: Vec<_> = said.lines().collect();
    said.sort_unstable();
    assert_eq!(
        said,
        [
            "WAYSIDE__COLOUR = red: unknown key; `wayside config schema` prints the known ones",
            "WAYSIDE__COMIT__WINDOW_MS = 50: unknown key; did you mean WAYSIDE__COMMIT__WINDOW_MS?",
            "WAYSIDE__COMMIT__INTAKE_BYTES = 65536: at least commit.batch_bytes",
            "WAYSIDE__COMMIT__WINDOW_MS = fast: must be a whole number, without quotes",
            "WAYSIDE__LOG__EPOCH_BYTES = 1: must be 262144 to 67108864",
            "WAYSIDE__REPLICATE__BOOTSTRAP_SERVERS = a:1: must be a list: [..]",
            "WAYSIDE__SOURCE__MQTT__0__NAME = b: no variable sets a key of a list of sections: write it in [[source.mqtt]]",
            "WAYSIDE__STREAM = [..]: no variable sets a key of a list of sections: write it in [[stream]]",
            "WAYSIDE__TELEMETRY__LOG_FORMAT = xml: must be one of \"logfmt\", \"json\"",
        ]
    );
}

#[test]
fn a_variable_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let value = OsString::from_vec(b"/var/\xff".to_vec());
    let faults = super::parse(GOOD, &[("WAYSIDE__LOG__DIR".into(), value)]).expect_err("fault");
    assert_eq!(faults.to_string(), "WAYSIDE__LOG__DIR = ..: is not UTF-8");
}

const SHIPPED: &str = include_str!("../../../../deploy/wayside.toml");

#[test]
fn the_configuration_that_is_shipped_is_good() {
    let config = parse(SHIPPED).expect("good");
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
fn what_may_be_a_secret_in_a_variable_is_not_repeated() {
    for variable in [
        "REPLICATE__SASL__PASSWORD=hunter2",
        "REPLICATE__SASL__PASWORD=hunter2",
        "REPLICATE__TLS__KEY=hunter2",
        "REPLICATE__SASL={ password = \"hunter2\" }",
        "REPLICATE__PROPERTIES={ \"sasl.password\" = hunter2 }",
        "REPLICATE__PROPERTIES={ \"sasl.password\" = \"hunter2\" }",
        "SOURCE__MQTT=[{ password = \"hunter2\" }]",
        "SOURCE__MQTT__0__PASSWORD=hunter2",
    ] {
        let said = with_variables(&[variable, "REPLICATE__SASL__MECHANISM=PLAIN", "REPLICATE__SASL__USER=u"]);
        let said = said.expect_err("a fault").to_string();
        let name = variable.split('=').next().expect("a name");
        assert!(said.contains(name) && !said.contains("hunter2"), "{said}");
    }
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
    faults("sasl.user = \"u\"", &["replicate.sasl.mechanism = "]);
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

#[test]
fn the_file_that_is_shipped_shows_every_key_with_its_default_and_meaning() {
    // What is switched off begins with `#` and no blank.
    let switched_on = |line: &str| match line.trim_start().strip_prefix('#') {
        Some(key) if !key.is_empty() && !key.starts_with(' ') => key.to_owned(),
        _ => line.to_owned(),
    };
    let text = SHIPPED.lines().map(switched_on).collect::<Vec<_>>().join("\n");
    let schema = serde_json::to_value(raw::schema()).expect("JSON");
    let shaped = shape(&text, &[], &schema).unwrap_or_else(|faults| panic!("{faults:?}"));
    assert_eq!(shaped.faults, []);
    let file: toml::Table = text.parse().expect("TOML");
    let file = serde_json::to_value(file).expect("JSON");
    assert_eq!(differences("", &file, &schema), Vec::<String>::new());
    for line in text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')) {
        assert!(line.contains(" # "), "no meaning: {line}");
    }
}

/// Keys of `schema` that `file` does not have, or has with another value than the default.
fn differences(key: &str, file: &serde_json::Value, schema: &serde_json::Value) -> Vec<String> {
    if let Some(keys) = schema["properties"].as_object() {
        let within =
            keys.iter().map(|(name, schema)| differences(&format!("{key}.{name}"), &file[name], schema));
        return within.flatten().collect();
    }
    if schema["items"]["type"] == "object" {
        return differences(&format!("{key}[0]"), &file[0], &schema["items"]);
    }
    let default = &schema["default"];
    // What must be set, or is off by default, shows an example.
    let by_example = default.is_null() || [r#""""#, "[]", "{}"].contains(&default.to_string().as_str());
    match file {
        serde_json::Value::Null => vec![format!("{key} is missing")],
        value if value == default || by_example => Vec::new(),
        value => vec![format!("{key} = {value}, the default is {default}")],
    }
}

#[test]
fn an_endpoint_that_others_can_reach_needs_a_token() {
    let with = |lines: &str| format!("{GOOD}[telemetry]\n{lines}");
    for good in [
        "listen = \"127.0.0.2:9464\"",
        "listen = \"[::1]:9464\"",
        "listen = \"[::ffff:127.0.0.1]:9464\"",
        "listen = \"\"",
        "listen = \"0.0.0.0:9464\"\ntoken = \"env:TOKEN\"",
    ] {
        parse(&with(good)).expect(good);
    }
    for open in ["0.0.0.0:9464", "192.168.1.7:9464", "[::]:9464", "[fe80::1]:9464"] {
        check_faults(&with(&format!("listen = \"{open}\"")), &[&format!("telemetry.listen = \"{open}\"")]);
    }
    // The token itself has no place here, and is not shown.
    check_faults(&with("listen = \"0.0.0.0:9464\"\ntoken = \"hunter2\""), &["telemetry.token = (not shown)"]);
}

#[test]
fn the_reserve_is_what_the_engine_needs_or_more() {
    let reserve = |lines: &str| parse(&format!("{GOOD}[log]\n{lines}")).expect("good").log.reserve_bytes;
    assert_eq!(reserve(""), 16 << 20);
    assert_eq!(reserve("epoch_bytes = 1048576"), 10 << 20);
    assert_eq!(reserve("reserve_bytes = 1000000000"), 1_000_000_000);
    check_faults(&format!("{GOOD}[log]\nreserve_bytes = 4096"), &["log.reserve_bytes = 4096"]);
}

#[test]
fn a_log_level_is_one_for_all_or_one_for_each_module() {
    let with = |level| format!("{GOOD}[telemetry]\nlog_level = \"{level}\"");
    for good in ["debug", "off", "info,wayside::replicate=debug,librdkafka=off"] {
        assert_eq!(parse(&with(good)).expect("good").telemetry.log_level, good);
    }
    check_faults(&with("info,wayside=loud"), &["telemetry.log_level = \"info,wayside=loud\""]);
}

#[test]
fn a_stream_that_drops_what_is_old_wants_a_log_larger_than_what_replication_holds() {
    let config = |policy: &str, limit_bytes: u64| {
        let text = format!(
            "gateway.id = \"g\"\n[log]\nlimit_bytes = {limit_bytes}\nepoch_bytes = 262144\n[replicate]\n\
             bootstrap_servers = [\"k:9092\"]\nin_flight_bytes = 524288\n[[source.serial]]\nname = \"s\"\n\
             path = \"/dev/null\"\nprotocol = \"nmea\"\n[[stream]]\nname = \"vehicle-positions\"\npolicy = \"{policy}\""
        );
        parse(&text)
    };
    let config_of = |policy, limit_bytes| config(policy, limit_bytes).expect("good");
    let stream = StreamName::new("vehicle-positions").unwrap();
    assert_eq!(config_of("drop-newest", 1 << 20).streams[&stream].policy, Policy::DropNewest);
    assert_eq!(config_of("latest-per-device", 2 << 20).streams[&stream].policy, Policy::LatestPerDevice);
    let fault = config("drop-oldest", 1 << 20).unwrap_err().to_string();
    assert!(fault.contains("log.limit_bytes = 1048576: at least 2097152"), "{fault}");
    let fault = config("newest", 1 << 20).unwrap_err().to_string();
    assert!(fault.contains("drop-newest"), "the choices are named: {fault}");
    let gaps = "\n[[stream]]\nname = \"gaps\"\npolicy = \"drop-oldest\"";
    let text = format!("gateway.id = \"g\"\n[replicate]\nbootstrap_servers = [\"k:9092\"]{gaps}");
    assert!(parse(&text).unwrap_err().to_string().contains("stream[0].policy"));
}

/// Found when fuzz target `config` was written: text over two lines was shown as two faults, and an escape sequence as it is.
#[test]
fn a_fault_is_one_line_whatever_its_key_and_value_are() {
    let error = parse("\"a\\u001b\\n\" = 1\n[log]\nlimit_bytes = \"\"\"a\nb\"\"\"").expect_err("faults");
    let text = error.to_string();
    let ConfigError::Faults(faults) = error else { panic!("{text}") };
    assert_eq!(text.lines().count(), faults.len(), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(text.contains(r#"limit_bytes = """a\nb""": must be"#), "{text}");
}
