//! Hostile and very large clients of the listener: each costs itself alone. An ordinary device beside it has its PUBACKs in
//! time, the agent's memory stays within a bound, and nothing that was acknowledged is missing in Kafka.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wayside_tests::agent::Agent;
use wayside_tests::mqtt::Publisher;
use wayside_tests::raw::{
    connect, connect_all, expect, open, packet, publish_0, publish_1, publish_all, raise_descriptors, text,
};
use wayside_tests::usage::Usage;
use wayside_tests::{PATIENCE, kafka, note, ports, wait_until};

/// The longest time that the ordinary device may wait for a PUBACK: two commit windows take 40 ms, and the hostile ones, Kafka
/// and this test share two cores with the agent.
const PUBACK_MAX: Duration = Duration::from_secs(10);

/// The ordinary device publishes as many messages at least, be the rest ever so short.
const ORDINARY_MIN: usize = 20;

/// A gateway, and an ordinary device that publishes one message after the other, each when the one before is acknowledged.
struct Site {
    agent: Agent,
    port: u16,
    resident_before_kib: u64,
    device: JoinHandle<(usize, Duration)>,
    done: Arc<AtomicBool>,
}

impl Site {
    /// `settings` are further keys of the listener.
    fn new(name: &str, settings: &str) -> Self {
        let port = ports::free();
        let sections = format!(
            "\
[[source.listener]]
name = \"devices\"
listen = \"127.0.0.1:{port}\"
{settings}
[[source.listener.route]]
topic_filter = \"meter/+\"
decode = \"raw\"
stream = \"meters\"
device_topic = \"meter/{{device}}\"
[[stream]]
name = \"meters\"
partitions = 1
"
        );
        let mut agent = Agent::new(name, &kafka::shared().bootstrap_servers(), &sections);
        agent.start();
        let done = Arc::new(AtomicBool::new(false));
        let mut ordinary = Publisher::connect(port, "ordinary");
        ordinary.publish("meter/ordinary", "0");
        let until = Arc::clone(&done);
        let device = std::thread::spawn(move || {
            let (mut count, mut longest) = (1, Duration::ZERO);
            while !until.load(Ordering::Relaxed) || count < ORDINARY_MIN {
                let started = Instant::now();
                ordinary.publish("meter/ordinary", count.to_string());
                longest = longest.max(started.elapsed());
                count += 1;
            }
            (count, longest)
        });
        let resident_before_kib = Usage::of(agent.pid()).resident_kib;
        Self { agent, port, resident_before_kib, device, done }
    }

    /// A connection of MQTT 3.1.1 with a keep-alive whose CONNECT was accepted.
    fn client(&self, id: &str, keep_alive_s: u8) -> TcpStream {
        let mut stream = open(self.port);
        stream.write_all(&connect(id, keep_alive_s)).expect("the listener reads");
        expect(&mut stream, [0x20, 2, 0, 0]);
        stream
    }

    /// Waits until `metric` is at least `value`.
    #[track_caller]
    fn wait_metric(&self, metric: &str, value: f64) {
        wait_until(PATIENCE, &format!("{metric} {value}"), || {
            (self.agent.metric(metric) >= Some(value)).then_some(())
        });
    }

    /// The ordinary device was served all the time, all that it published is in Kafka once, and the agent's memory never grew
    /// by more than `growth_max_mib`. `others` is how many records more there are.
    #[track_caller]
    fn assert_unharmed(mut self, growth_max_mib: u64, others: Option<usize>) {
        self.done.store(true, Ordering::Relaxed);
        let (count, longest) = self.device.join().expect("it was served");
        let growth_kib = Usage::of(self.agent.pid()).peak_kib.saturating_sub(self.resident_before_kib);
        note(&format!(
            "{count} messages beside it, {longest:?} for a PUBACK at most; {growth_kib} KiB more memory at most"
        ));
        assert!(longest <= PUBACK_MAX, "a PUBACK took {longest:?}");
        assert!(growth_kib <= growth_max_mib * 1024, "the agent grew by {growth_kib} KiB");
        let cluster = kafka::shared();
        let topic = self.agent.topic("meters");
        cluster.reader(&topic).wait_for(count + others.unwrap_or(0), PATIENCE);
        // What others sent with it stands before it in the log.
        wait_until(PATIENCE, "Kafka has all", || {
            self.agent.metric("wayside_replicate_lag_records").filter(|records| *records == 0.0)
        });
        self.agent.stop();
        let records = cluster.read(&topic);
        let ordinary: Vec<_> = records.iter().filter(|record| record.key == "ordinary").collect();
        let seen: Vec<_> = ordinary.iter().map(|r| String::from_utf8_lossy(&r.value).into_owned()).collect();
        assert_eq!(seen, (0..count).map(|n| n.to_string()).collect::<Vec<_>>());
        if let Some(others) = others {
            assert_eq!(records.len() - count, others, "records of the others");
        }
    }
}

/// Returns when the server has closed `stream`, with how many bytes came before.
fn wait_closed(stream: &mut TcpStream) -> usize {
    let mut came = 0;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return came,
            Ok(read) => came += read,
            // Closed with our bytes unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return came,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn clients_that_send_byte_by_byte_are_let_go_and_hold_up_nobody() {
    const CLIENTS: usize = 200;
    let site = Site::new("slow-loris", "connect_timeout_ms = 2000\nmax_connections = 1000");
    let before = connect("slow", 0);
    // One after the other: those that never finish CONNECT, those that never finish a packet.
    let mut never_connected: Vec<_> = (0..CLIENTS).map(|_| (open(site.port), before.iter())).collect();
    let large = publish_0("meter/slow", &vec![b'x'; 200_000]);
    let mut connected: Vec<_> =
        (0..CLIENTS).map(|n| (site.client(&format!("slow-{n}"), 2), large.iter())).collect();
    // All but the last byte of CONNECT, and 20 000 of the other packet: far less than would be too much.
    let deadline = Instant::now() + PATIENCE;
    while site.agent.metric("wayside_source_rejected_total") < Some(2.0 * 200.0) {
        assert!(Instant::now() < deadline, "some are still there");
        for (stream, bytes) in &mut never_connected {
            if bytes.len() > 1 {
                // Let go meanwhile, it does not take it.
                let _ = stream.write(&[*bytes.next().expect("one more")]);
            }
        }
        for (stream, bytes) in &mut connected {
            let _ = stream.write(&[*bytes.next().expect("one more")]);
        }
    }
    for (stream, _) in never_connected.iter_mut().chain(&mut connected) {
        wait_closed(stream);
    }
    site.assert_unharmed(12, Some(0));
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn ten_thousand_clients_that_come_at_once_are_all_served() {
    let clients = raise_descriptors(10_000);
    let site = Site::new("storm", "max_connections = 10100");
    let started = Instant::now();
    let mut connected = connect_all(|| open(site.port), clients);
    note(&format!("{clients} clients in {:?}", started.elapsed()));
    publish_all(&mut connected, |n| publish_1(&format!("meter/c{n}"), 1, b"here"));
    site.assert_unharmed(28, Some(clients));
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn a_subscriber_that_never_reads_loses_its_own_messages_alone() {
    let site = Site::new("never-reads", "");
    let mut deaf = site.client("deaf", 0);
    assert_eq!(subscribe(&mut deaf, &["meter/busy".to_owned()]), [0]);
    let mut busy = site.client("busy", 0);
    let mut sent = 0;
    let message = publish_0("meter/busy", &[b'x'; 1000]);
    // Until the kernel's buffers and the queue are full.
    while site.agent.metric("wayside_source_dropped_total").unwrap_or(0.0) < 1000.0 {
        for _ in 0..500 {
            busy.write_all(&message).expect("the listener reads");
        }
        sent += 500;
        assert!(sent < 100_000, "{sent} messages, and none was lost to the subscriber");
    }
    site.wait_metric("wayside_source_records_total", f64::from(sent));
    site.assert_unharmed(16, Some(usize::try_from(sent).expect("small")));
    drop(deaf);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn a_client_that_floods_and_reads_no_answer_is_held_back() {
    const FLOOD: Duration = Duration::from_secs(3);
    let site = Site::new("flood", "");
    let messages = [publish_0("meter/flood", &[b'x'; 200]), publish_1("meter/flood", 1, &[b'x'; 200])];
    let flood = |message: Vec<u8>| {
        let mut stream = site.client(&format!("flood-{}", message[0]), 0);
        stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a socket takes the option");
        let many = message.repeat(200);
        std::thread::spawn(move || {
            let until = Instant::now() + FLOOD;
            let mut sent = 0;
            while Instant::now() < until {
                match stream.write(&many[sent % many.len()..]) {
                    Ok(written) => sent += written,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "held back, not refused"),
                }
            }
            sent / message.len()
        })
    };
    let flooding = messages.map(flood);
    let sent = flooding.map(|thread| thread.join().expect("it floods"));
    note(&format!("{sent:?} messages at QoS 0 and 1"));
    site.assert_unharmed(24, None);
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn a_packet_of_256_mib_is_refused_by_its_header() {
    const LARGEST: [u8; 4] = [0xff, 0xff, 0xff, 0x7f];
    let site = Site::new("large", "");
    for first in [0x32, 0x82] {
        let mut stream = site.client("header-only", 0);
        stream.write_all(&[&[first], &LARGEST[..]].concat()).expect("the listener reads");
        wait_closed(&mut stream);
    }
    let mut stream = open(site.port);
    stream.write_all(&[&[0x10], &LARGEST[..]].concat()).expect("the listener reads");
    wait_closed(&mut stream);
    let mut stream = site.client("streamed", 0);
    let header = [&[0x32], &LARGEST[..], &text("meter/large")[..], &[0, 1]].concat();
    stream.write_all(&header).expect("the listener reads");
    let block = vec![b'x'; 1 << 20];
    let written = (0..256).take_while(|_| stream.write_all(&block).is_ok()).count();
    assert!(written < 256, "it took all of it");
    site.wait_metric("wayside_source_rejected_total", 4.0);
    site.assert_unharmed(8, Some(0));
}

#[test]
#[ignore = "needs Kafka: tests/run"]
fn ten_thousand_subscriptions_of_one_client_slow_nobody_down() {
    const SUBSCRIPTIONS: usize = 10_000;
    const AT_ONCE: usize = 500;
    let site = Site::new("subscriptions", "");
    let mut greedy = site.client("greedy", 0);
    for first in (0..SUBSCRIPTIONS).step_by(AT_ONCE) {
        let filters: Vec<String> = (first..first + AT_ONCE).map(|n| format!("room/{n}")).collect();
        assert!(subscribe(&mut greedy, &filters).iter().all(|&granted| granted == 0));
    }
    // As many levels as fit a filter, with none in common: what costs most.
    let levels = "/x".repeat(500);
    let refused = (0..1000).any(|n| subscribe(&mut greedy, &[format!("{n}{levels}")]) == [0x80]);
    assert!(refused, "there is no end to subscriptions");
    site.assert_unharmed(12, Some(0));
}

/// Subscribes at QoS 0. Returns what SUBACK says of each filter.
fn subscribe(stream: &mut TcpStream, filters: &[String]) -> Vec<u8> {
    let filters_encoded = filters.iter().flat_map(|filter| [text(filter), vec![0]].concat());
    let body: Vec<u8> = [0, 1].into_iter().chain(filters_encoded).collect();
    stream.write_all(&packet(0x82, &body)).expect("the listener reads");
    let head_bytes = packet(0x90, &vec![0; 2 + filters.len()]).len() - filters.len();
    let mut suback = vec![0; head_bytes + filters.len()];
    stream.read_exact(&mut suback).expect("the listener answers");
    suback.split_off(head_bytes)
}
