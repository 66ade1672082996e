//! The listener on a socket, in front of a pipeline that acknowledges when the test says so.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    config::DEAD_LETTER_STREAM,
    source::{
        listener::{reach, run},
        testing::{FakePipeline, free_address, on_one_thread, within},
    },
};

pub(super) struct Device(TcpStream);

impl Device {
    /// A connection that has sent nothing.
    pub(super) async fn open(config: &Listener) -> Self {
        let stream = within("a connection", async {
            loop {
                if let Ok(stream) = TcpStream::connect(config.listen).await {
                    return stream;
                }
                tokio::task::yield_now().await;
            }
        });
        Self(stream.await)
    }

    /// A connection whose CONNECT was accepted.
    pub(super) async fn connect(config: &Listener, id: &str) -> Self {
        let mut device = Self::open(config).await;
        device.send(&connect_v3(id, true)).await;
        assert_eq!(device.read::<4>().await, [0x20, 2, 0, 0]);
        device
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("writes");
    }

    pub(super) async fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        within("an answer", self.0.read_exact(&mut bytes)).await.expect("reads");
        bytes
    }

    /// Nothing came: what was sent before was handled, since PINGREQ behind it is answered next.
    async fn expect_silence(&mut self) {
        self.send(&[0xc0, 0]).await;
        assert_eq!(self.read::<2>().await, [0xd0, 0]);
    }

    pub(super) async fn ended(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = within("the end", self.0.read_to_end(&mut rest)).await;
    }
}

fn start(intake_bytes: usize) -> (Listener, FakePipeline) {
    let config = Listener { listen: free_address(), ..config() };
    let running = config.clone();
    (config, FakePipeline::start(intake_bytes, |context| run(running, 64 * 1024, context)))
}

#[test]
fn puback_is_not_sent_before_the_commit_is_acknowledged() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::connect(&config, "c").await;
        device.send(&publish_v3(0x32, "room/1", 1, "a")).await;
        let (ticket, record) = pipeline.record().await;
        assert_eq!((record.device.as_str(), &record.value[..]), ("1", &b"a"[..]));
        device.expect_silence().await;
        pipeline.metric("wayside_source_unacknowledged{source=\"test\"} 1").await;
        pipeline.metric("wayside_source_clients{source=\"test\"} 1").await;
        pipeline.acknowledge(ticket);
        assert_eq!(device.read::<4>().await, [0x40, 2, 0, 1]);
        pipeline.metric("wayside_source_unacknowledged{source=\"test\"} 0").await;
        assert!(pipeline.health.state().connected);
    });
}

#[test]
fn packets_in_any_pieces_are_packets() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::connect(&config, "c").await;
        for byte in publish_v3(0x32, "room/1", 1, "a") {
            device.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
        pipeline.record().await;
        pipeline.acknowledge_all();
        assert_eq!(device.read::<4>().await, [0x40, 2, 0, 1]);
    });
}

#[test]
fn what_does_not_decode_is_a_dead_letter_and_is_acknowledged() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::connect(&config, "c").await;
        device.send(&publish_v3(0x32, "nobody/asked", 1, "a")).await;
        let (_, record) = pipeline.record().await;
        assert_eq!(record.stream.as_str(), DEAD_LETTER_STREAM);
        pipeline.acknowledge_all();
        assert_eq!(device.read::<4>().await, [0x40, 2, 0, 1]);
    });
}

#[test]
fn user_properties_become_headers_but_for_ours() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::connect(&config, "c").await;
        device.send(&[0xe0, 0]).await;
        device.ended().await;
        let mut device = Device(TcpStream::connect(config.listen).await.expect("connects"));
        let user =
            [b"\x26".to_vec(), text("unit"), text("K"), b"\x26".to_vec(), text("wayside.seq"), text("9")];
        let properties = user.concat();
        let length = vec![u8::try_from(properties.len()).expect("few")];
        let message = packet(0x30, &[text("room/1"), length, properties, b"a".to_vec()].concat());
        device.send(&[connect("d", true), message].concat()).await;
        let (_, record) = pipeline.record().await;
        let headers: Vec<_> = record.headers.iter().map(|h| (&*h.name, &h.value[..])).collect();
        assert_eq!(headers, [("unit", &b"K"[..])]);
    });
}

#[test]
fn a_full_intake_holds_the_devices_back_and_loses_nothing() {
    on_one_thread(async {
        let (config, mut pipeline) = start(2000);
        pipeline.keep_room();
        let mut device = Device::connect(&config, "c").await;
        let mut other = Device::connect(&config, "d").await;
        for id in 1..=8 {
            device.send(&publish_v3(0x32, "room/1", id, &format!("{id}{}", "x".repeat(100)))).await;
            other.send(&publish_v3(0x32, "room/2", id, &format!("{id}{}", "x".repeat(100)))).await;
            tokio::task::yield_now().await;
        }
        pipeline.record().await;
        within("a full intake", async {
            while pipeline.room_bytes() > 400 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        pipeline.free_room();
        let mut records = 1;
        while records < 16 {
            pipeline.record().await;
            records += 1;
        }
        pipeline.acknowledge_all();
        for id in 1..=8 {
            assert_eq!(device.read::<4>().await, [0x40, 2, 0, id]);
            assert_eq!(other.read::<4>().await, [0x40, 2, 0, id]);
        }
    });
}

#[test]
fn a_client_at_its_receive_maximum_hastens_the_commit() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::connect(&config, "c").await;
        let all: Vec<u8> = (1..=10).flat_map(|id| publish_v3(0x32, "room/1", id, "a")).collect();
        device.send(&all).await;
        pipeline.urge().await;
    });
}

#[test]
fn a_client_that_was_held_back_is_read_again_when_it_is_answered() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::connect(&config, "c").await;
        let mut other = Device::connect(&config, "d").await;
        let all: Vec<u8> = (1..=10).flat_map(|id| publish_v3(0x32, "room/1", id, "a")).collect();
        device.send(&all).await;
        for _ in 0..10 {
            pipeline.record().await;
        }
        device.send(&publish_v3(0x32, "room/1", 11, "late")).await;
        // Its bytes are there, and the listener has looked at what is there.
        other.expect_silence().await;
        assert_eq!(pipeline.rest(), []);
        pipeline.acknowledge_all();
        for id in 1..=10 {
            assert_eq!(device.read::<4>().await, [0x40, 2, 0, id]);
        }
        assert_eq!(pipeline.record().await.1.value, "late");
    });
}

#[test]
fn a_malformed_packet_costs_its_sender_alone() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut good = Device::connect(&config, "good").await;
        let mut bad = Device::connect(&config, "bad").await;
        bad.send(&publish_v3(0x32, "room/#", 1, "a")).await;
        bad.ended().await;
        let line = "wayside_source_rejected_total{source=\"test\",reason=\"topic_name_invalid\"} 1";
        pipeline.metric(line).await;
        pipeline.metric("wayside_source_clients{source=\"test\"} 1").await;
        good.send(&publish_v3(0x32, "room/1", 1, "a")).await;
        pipeline.record().await;
    });
}

#[test]
fn a_shutdown_waits_for_what_was_taken_and_answers_it() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::connect(&config, "c").await;
        device.send(&publish_v3(0x32, "room/1", 1, "a")).await;
        let (ticket, _) = pipeline.record().await;
        pipeline.shut_down();
        pipeline.urge().await;
        pipeline.acknowledge(ticket);
        assert_eq!(device.read::<4>().await, [0x40, 2, 0, 1]);
        pipeline.ended().await;
        device.ended().await;
    });
}

#[test]
fn what_a_policy_drops_is_told_to_the_client_that_sent_it() {
    on_one_thread(async {
        let config = Listener { listen: free_address(), tells_drops: true, ..config() };
        let running = config.clone();
        let mut pipeline = FakePipeline::start(1 << 20, |context| run(running, 64 * 1024, context));
        let mut device = Device::open(&config).await;
        device.send(&connect_with("c", 2, &[], &[])).await;
        let [_, rest_bytes] = device.read::<2>().await;
        for _ in 0..rest_bytes {
            device.read::<1>().await;
        }
        for (drops, id, answer) in [(true, 1, &[0x40, 3, 0, 1, 0x97][..]), (false, 2, &[0x40, 2, 0, 2])] {
            pipeline.drops = drops;
            device.send(&publish(0x32, "room/1", id, "a")).await;
            pipeline.record().await;
            pipeline.acknowledge_all();
            for byte in answer {
                assert_eq!(device.read::<1>().await, [*byte], "{answer:?}");
            }
        }
    });
}

/// Else an equal message that it sends again to the next life, and that this one never read, would pass for its repetition.
#[test]
fn a_shutdown_leaves_no_word_of_what_it_has_answered() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::open(&config).await;
        device.send(&connect_v3("c", false)).await;
        assert_eq!(device.read::<4>().await, [0x20, 2, 0, 0]);
        device.send(&publish_v3(0x32, "room/1", 1, "a")).await;
        pipeline.record().await;
        assert!(pipeline.remembered.keys().any(|key| key.starts_with(b"w")), "known if it is stored");
        pipeline.acknowledge_all();
        assert_eq!(device.read::<4>().await, [0x40, 2, 0, 1]);
        pipeline.shut_down();
        pipeline.ended().await;
        assert_eq!(pipeline.rest(), []);
        assert_eq!(pipeline.remembered.keys().map(|key| &key[..]).collect::<Vec<_>>(), [b"sc"]);
    });
}

/// A socket that is closed with something unread resets the connection: the answer would be lost on its way, and its message sent
/// again to the next life, which has no word of it.
#[test]
fn a_client_that_still_sends_when_the_agent_stops_gets_its_answers() {
    on_one_thread(async {
        let (config, mut pipeline) = start(1 << 20);
        let mut device = Device::connect(&config, "c").await;
        device.send(&publish_v3(0x32, "room/1", 1, "a")).await;
        let (ticket, _) = pipeline.record().await;
        pipeline.shut_down();
        pipeline.urge().await;
        // Nobody reads it any more.
        device.send(&publish_v3(0x32, "room/1", 2, &"b".repeat(50))).await;
        pipeline.acknowledge(ticket);
        let mut rest = Vec::new();
        within("the end", device.0.read_to_end(&mut rest)).await.expect("no reset");
        assert_eq!(rest, [0x40, 2, 0, 1]);
        drop(device);
        pipeline.ended().await;
    });
}

#[test]
fn an_address_that_is_taken_is_told_and_tried_again() {
    on_one_thread(async {
        let address = free_address();
        let config = Listener { listen: address, ..config() };
        assert_eq!(reach(&config).await.as_deref(), Ok("free to listen at"));
        let taken = tokio::net::TcpListener::bind(address).await.expect("binds");
        assert_eq!(reach(&config).await.as_deref(), Ok("in use, as by an agent that runs"));
        let running = config.clone();
        let pipeline = FakePipeline::start(1 << 20, |context| run(running, 64 * 1024, context));
        pipeline
            .state("an error", |state| state.error.as_deref().is_some_and(|e| e.contains("cannot listen")))
            .await;
        drop(taken);
        pipeline.state("health", |state| state.connected && state.error.is_none()).await;
        Device::connect(&config, "c").await;
    });
}

#[test]
fn a_storm_of_connections_waits_and_all_are_served() {
    on_one_thread(async {
        let limits =
            Listener { max_connections: 1000, connects_per_second: 100, max_half_open: 4, ..config() };
        let config = Listener { listen: free_address(), ..limits };
        let running = config.clone();
        let pipeline = FakePipeline::start(1 << 20, |context| run(running, 64 * 1024, context));
        Device::connect(&config, "first").await;
        let storm = (0..150).map(|n| {
            let config = config.clone();
            tokio::task::spawn_local(async move { Device::connect(&config, &format!("c{n}")).await })
        });
        let mut devices = Vec::new();
        for device in storm.collect::<Vec<_>>() {
            devices.push(device.await.expect("it is let in"));
        }
        pipeline.metric("wayside_source_connections_total{source=\"test\"} 151").await;
    });
}

#[test]
fn a_client_over_its_rate_is_held_back_counted_and_loses_nothing() {
    on_one_thread(async {
        let config = Listener { listen: free_address(), client_messages_per_second: 50, ..config() };
        let running = config.clone();
        let mut pipeline = FakePipeline::start(1 << 20, |context| run(running, 64 * 1024, context));
        let mut device = Device::connect(&config, "c").await;
        for n in 0..80 {
            device.send(&packet(0x30, &[text("room/1"), n.to_string().into_bytes()].concat())).await;
            tokio::task::yield_now().await;
        }
        for n in 0..80 {
            assert_eq!(pipeline.record().await.1.value, n.to_string());
        }
        pipeline.metric_like("wayside_source_held_back_total{source=\"test\"}").await;
    });
}
