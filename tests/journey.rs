//! A record's whole way: from a device's publish or frame to a consumer of Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use wayside_tests::agent::{self, Agent};
use wayside_tests::kafka::{self, Cluster, Record};
use wayside_tests::mosquitto::Mosquitto;
use wayside_tests::pty::Pty;
use wayside_tests::sim::{self, Load};
use wayside_tests::{PATIENCE, chk, corpus};

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn readings_published_by_mqtt_reach_kafka_once_and_in_order() {
    for version in [3, 5] {
        let cluster = kafka::shared();
        let broker = Mosquitto::start();
        let source = agent::mqtt_source(&broker.url(), version);
        let mut agent = Agent::new(&format!("journey-mqtt{version}"), &cluster.bootstrap_servers(), &source);
        agent.start();
        broker.wait_subscribed("building/+/+/occupancy");
        broker.wait_subscribed("traffic/+/position");

        let url = broker.url();
        let common = ["--mqtt", &url, "--rate", "500", "--duration", "4s"];
        let mut occupancy = Load::start(["occupancy", "--devices", "40"].iter().chain(&common));
        let mut traffic = Load::start(["traffic", "--devices", "30"].iter().chain(&common));
        occupancy.finish(PATIENCE);
        traffic.finish(PATIENCE);

        let ledgers = [occupancy.ledger(), traffic.ledger()];
        sim::verify(&cluster, agent.environment(), &ledgers, PATIENCE).assert_complete(3_000);
        agent.stop();
        sim::verify(&cluster, agent.environment(), &ledgers, Duration::ZERO).assert_complete(3_000);
    }
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn readings_of_native_devices_on_a_serial_line_reach_kafka_once_and_in_order() {
    let cluster = kafka::shared();
    let directory = tempfile::tempdir().unwrap();
    let line = directory.path().join("line");
    let mut load = Load::start(
        ["occupancy", "--devices", "4", "--rate", "100", "--duration", "5s", "--serial"]
            .iter()
            .map(std::ffi::OsStr::new)
            .chain([line.as_os_str()]),
    );
    let mut agent = Agent::new(
        "journey-serial",
        &cluster.bootstrap_servers(),
        &agent::serial_source("line", &line, "native"),
    );
    agent.start();
    load.finish(PATIENCE);
    sim::verify(&cluster, agent.environment(), &[load.ledger()], PATIENCE).assert_complete(400);
    agent.stop();
    sim::verify(&cluster, agent.environment(), &[load.ledger()], Duration::ZERO).assert_complete(400);
}

/// The line of a recording: `<receive time> <topic> {"<event>":{...}}`, where the topic may hold spaces.
fn hfp_line(line: &str) -> (&str, &str) {
    let (head, payload) = line.split_at(line.find(" {\"").expect("a recorded message has a payload"));
    let (_, topic) = head.split_once(' ').expect("a recorded message has a topic");
    (topic, &payload[1..])
}

#[test]
#[ignore = "needs Kafka and Mosquitto: tests/run"]
fn recorded_buses_reach_kafka_byte_for_byte_and_in_order() {
    let Some(recordings) = corpus("hfp") else { return };
    let mut dumps: Vec<_> = std::fs::read_dir(recordings)
        .unwrap()
        .map(|entry| entry.unwrap().path().join("hfp.dump"))
        .filter(|path| path.exists())
        .collect();
    dumps.sort();
    assert_eq!(dumps.len(), 7);

    let cluster = kafka::shared();
    let broker = Mosquitto::start();
    let sections = format!(
        "\
[[source.mqtt]]
name = \"broker\"
urls = [\"{}\"]
[[source.mqtt.route]]
topic_filter = \"/hfp/v2/#\"
decode = \"hfp\"
stream = \"hfp\"
value = \"raw\"
[[stream]]
name = \"hfp\"
partitions = 4
",
        broker.url()
    );
    let mut agent = Agent::new("journey-hfp", &cluster.bootstrap_servers(), &sections);
    agent.start();
    broker.wait_subscribed("/hfp/v2/#");

    let mut sent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for dump in &dumps {
        for line in std::fs::read_to_string(dump).unwrap().lines() {
            let (topic, payload) = hfp_line(line);
            // "", hfp, v2, journey type, temporal type, event, mode, operator, vehicle
            let levels: Vec<&str> = topic.split('/').collect();
            sent.entry(format!("{}/{}", levels[7], levels[8])).or_default().push(payload.to_owned());
        }
    }
    let url = broker.url();
    let arguments =
        ["replay", "--mqtt", &url, "--speed", "max", "--stream", "hfp", "--hfp"].map(std::ffi::OsStr::new);
    let mut replay = Load::start(arguments.into_iter().chain(dumps.iter().map(|dump| dump.as_os_str())));
    replay.finish(PATIENCE);

    let topic = agent.topic("hfp");
    cluster.reader(&topic).wait_for(2115, PATIENCE);
    agent.stop();
    sim::verify(&cluster, agent.environment(), &[replay.ledger()], Duration::ZERO).assert_complete(2115);
    let records = cluster.read(&topic);
    assert_eq!(records.len(), 2115);
    assert_eq!(cluster.read(&agent.topic("dead-letter")), []);

    let mut arrived: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in &records {
        let payload = String::from_utf8(record.value.clone()).unwrap();
        arrived.entry(record.key.clone()).or_default().push(payload);
    }
    assert_eq!(arrived.len(), 5);
    // `assert!`, because nobody wants to read two thousand payloads.
    assert!(arrived == sent, "a vehicle's messages are not the recording's, in its order");
    assert_partitions_are_javas(&cluster, &topic, &records, 4);
}

/// Has Kafka's own producer write the same keys to a topic with as many partitions, and Kafka's own consumer read both.
fn assert_partitions_are_javas(cluster: &Cluster, topic: &str, records: &[Record], partitions: i32) {
    let twin = format!("{topic}-by-java");
    cluster.create_topic(&twin, partitions);
    let keys: BTreeSet<&str> = records.iter().map(|record| record.key.as_str()).collect();
    let lines: String = keys.iter().map(|key| format!("{key}|value\n")).collect();
    let arguments = "--reader-property parse.key=true --reader-property key.separator=| --topic";
    cluster.tool(
        "console-producer",
        &arguments.split(' ').chain([twin.as_str()]).collect::<Vec<_>>(),
        &lines,
    );

    let by_wayside = console(cluster, topic, records.len());
    let by_java = console(cluster, &twin, keys.len());
    assert_eq!(by_wayside.len(), records.len());
    let placed = |lines: &[(i32, String, String)]| -> BTreeMap<String, BTreeSet<i32>> {
        let mut placed: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for (partition, key, _) in lines {
            placed.entry(key.clone()).or_default().insert(*partition);
        }
        placed
    };
    assert_eq!(placed(&by_wayside), placed(&by_java));
    let mut values: Vec<&[u8]> = by_wayside.iter().map(|(_, _, value)| value.as_bytes()).collect();
    let mut expected: Vec<&[u8]> = records.iter().map(|record| record.value.as_slice()).collect();
    values.sort_unstable();
    expected.sort_unstable();
    assert!(values == expected, "the console consumer reads other values");
}

/// The partition, key and value of the first `count` committed records, by Kafka's console consumer.
fn console(cluster: &Cluster, topic: &str, count: usize) -> Vec<(i32, String, String)> {
    let count = count.to_string();
    let arguments = "--from-beginning --isolation-level read_committed --formatter-property print.partition=true \
        --formatter-property print.key=true --timeout-ms 30000 --topic";
    let arguments: Vec<&str> = arguments.split(' ').chain([topic, "--max-messages", &count]).collect();
    let printed = cluster.tool("console-consumer", &arguments, "");
    let line = |line: &str| {
        let fields: Vec<&str> = line.splitn(3, '\t').collect();
        let partition =
            fields[0].strip_prefix("Partition:").expect("the partition comes first").parse().unwrap();
        (partition, fields[1].to_owned(), fields[2].to_owned())
    };
    printed.lines().map(line).collect()
}

/// A receiver's log and what gpsd makes of it.
struct Receiver {
    name: &'static str,
    /// Moments with a position.
    epochs: usize,
    /// Of these, moments with a GGA sentence, which alone has the altitude.
    altitudes: usize,
    /// AIS sentences.
    ais: usize,
}

const RECEIVERS: [Receiver; 3] = [
    // NMEA between binary frames: who splits at line ends finds 10 of the 130 GGA.
    Receiver { name: "quectel-l76k-dual", epochs: 130, altitudes: 130, ais: 0 },
    Receiver { name: "ais-nmea", epochs: 164, altitudes: 164, ais: 183 },
    Receiver { name: "nmea-rtk", epochs: 122, altitudes: 122, ais: 0 },
];

#[test]
#[ignore = "needs Kafka: tests/run"]
fn recorded_receivers_on_serial_lines_give_the_positions_that_gpsd_finds() {
    let Some(recordings) = corpus("nmea") else { return };
    let cluster = kafka::shared();
    let lines = RECEIVERS.map(|receiver| (receiver.name, Pty::open()));
    let sections: String =
        lines.iter().map(|(name, line)| agent::serial_source(name, line.path(), "nmea")).collect();
    let mut agent = Agent::new("journey-nmea", &cluster.bootstrap_servers(), &sections);
    agent.start();
    std::thread::scope(|scope| {
        for (name, line) in &lines {
            let log = std::fs::read(recordings.join(format!("{name}.log"))).unwrap();
            scope.spawn(move || line.write_at(&log, 115_200));
        }
    });
    let epochs = RECEIVERS.iter().map(|receiver| receiver.epochs).sum();
    cluster.reader(&agent.topic("vehicle-positions")).wait_for(epochs, PATIENCE);
    agent.stop();

    let positions = cluster.read(&agent.topic("vehicle-positions"));
    let raw = cluster.read(&agent.topic("nmea-raw"));
    for receiver in RECEIVERS {
        let of_receiver = |records: &[Record]| -> Vec<Record> {
            records.iter().filter(|record| record.key == receiver.name).cloned().collect()
        };
        compare_with_gpsd(&receiver, &recordings, &of_receiver(&positions));
        let ais: Vec<Vec<u8>> = of_receiver(&raw)
            .into_iter()
            .map(|record| record.value.trim_ascii().to_vec())
            .filter(|sentence| sentence.starts_with(b"!AIVDM"))
            .collect();
        let log = std::fs::read(recordings.join(format!("{}.log", receiver.name))).unwrap();
        let recorded: Vec<&[u8]> = log
            .split(|&byte| byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|sentence| sentence.starts_with(b"!AIVDM"))
            .collect();
        assert_eq!(ais.len(), receiver.ais, "{}", receiver.name);
        assert!(
            ais == recorded,
            "{}: the AIS sentences are not the recording's, in its order",
            receiver.name
        );
    }
}

fn compare_with_gpsd(receiver: &Receiver, recordings: &Path, records: &[Record]) {
    let name = receiver.name;
    let by_gpsd = chk::read(&recordings.join(format!("{name}.log.chk")));
    assert_eq!(records.len(), receiver.epochs, "{name}");
    let altitudes = records.iter().filter(|record| !record.json()["altitude_m"].is_null()).count();
    assert_eq!(altitudes, receiver.altitudes, "{name}");
    let mut compared = BTreeSet::new();
    for record in records {
        let reading = record.json();
        let time = reading["time"].as_str().unwrap_or_else(|| panic!("{name}: no time in {reading}"));
        let millis = chk::unix_millis(time);
        // gpsd gives some moments no time of their own.
        let Some(fixes) = by_gpsd.get(&millis) else { continue };
        compared.insert(millis);
        let (lat, lon) = (reading["lat_deg"].as_f64().unwrap(), reading["lon_deg"].as_f64().unwrap());
        let near = |fix: &&chk::Fix| (fix.lat_deg - lat).abs() <= 1e-6 && (fix.lon_deg - lon).abs() <= 1e-6;
        let speed = reading["speed_mps"].as_f64();
        let as_fast = |fix: &chk::Fix| match (fix.speed_mps, speed) {
            (Some(by_gpsd), Some(speed)) => (by_gpsd - speed).abs() <= 0.01,
            (by_gpsd, _) => by_gpsd.is_none(),
        };
        assert!(
            fixes.iter().filter(near).any(as_fast),
            "{name} at {time}: {reading}, but gpsd says {fixes:?}"
        );
    }
    let missing: Vec<_> = by_gpsd.keys().filter(|time| !compared.contains(time)).collect();
    assert!(missing.is_empty(), "{name}: gpsd has positions at {missing:?}");
}
