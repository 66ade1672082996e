//! What the system tests rely on in the servers themselves.

use wayside_tests::PATIENCE;
use wayside_tests::kafka;
use wayside_tests::mosquitto::Mosquitto;

/// Writes keyed lines with Kafka's own producer, patient enough for a cluster that is choosing new leaders.
fn produce(cluster: &kafka::Cluster, topic: &str, lines: std::ops::Range<u32>) {
    let lines: String = lines.map(|n| format!("device-{}:{n}\n", n % 7)).collect();
    let arguments = "--reader-property parse.key=true --reader-property key.separator=: \
        --request-timeout-ms 5000 --message-send-max-retries 1000 --topic";
    cluster.tool("console-producer", &arguments.split(' ').chain([topic]).collect::<Vec<_>>(), &lines);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn kafka_keeps_what_it_acknowledged_when_nodes_are_killed() {
    let mut cluster = kafka::exclusive();
    cluster.create_topic("servers-kill", 3);
    produce(&cluster, "servers-kill", 0..50);
    let mut reader = cluster.reader("servers-kill");
    assert_eq!(reader.wait_for(50, PATIENCE).len(), 50);

    let leader = cluster.leader("servers-kill", 0);
    cluster.kill(leader);
    produce(&cluster, "servers-kill", 50..100);
    assert_eq!(reader.wait_for(100, PATIENCE).len(), 100);

    cluster.kill_all();
    cluster.heal();
    assert_eq!(cluster.read("servers-kill").len(), 100);
    assert_eq!(cluster.read("servers-no-such-topic"), []);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn a_paused_kafka_node_comes_back() {
    let mut cluster = kafka::exclusive();
    cluster.create_topic("servers-pause", 1);
    let leader = cluster.leader("servers-pause", 0);
    cluster.pause(leader);
    produce(&cluster, "servers-pause", 0..10);
    cluster.heal();
    assert_eq!(cluster.read("servers-pause").len(), 10);
}

/// Each disk in turn is lost: a cluster that passed for whole before the first was made up for would have no copy left.
#[test]
#[ignore = "needs Kafka: tests/run"]
fn a_healed_cluster_has_all_on_every_disk() {
    let mut cluster = kafka::exclusive();
    cluster.create_topic("servers-wipe", 1);
    produce(&cluster, "servers-wipe", 0..10);
    for node in kafka::NODES {
        cluster.wipe(node);
        cluster.heal();
    }
    assert_eq!(cluster.read("servers-wipe").len(), 10);
}

#[test]
#[ignore = "needs Mosquitto: tests/run"]
fn mosquitto_comes_back_on_its_port() {
    let mut broker = Mosquitto::start();
    let url = broker.url();
    broker.stop();
    assert!(std::net::TcpStream::connect(("127.0.0.1", broker.port())).is_err());
    broker.start_again();
    assert_eq!(broker.url(), url);
}
