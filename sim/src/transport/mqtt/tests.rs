//! The fleet against a broker that is scripted packet by packet.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::Error;
use rumqttc::v5::mqttbytes::v5::Packet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::ledger::{Ledger, LedgerWriter};
use crate::load::{Model as _, Schedule};
use crate::traffic::Town;

/// A broker's end of one connection.
struct Peer {
    stream: TcpStream,
    bytes: BytesMut,
}

impl Peer {
    /// Accepts connections until one greets, and answers that it has no session and takes `window` publishes at once.
    async fn accept(listener: &TcpListener, window: u8) -> Self {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut peer = Self { stream, bytes: BytesMut::new() };
            // The fleet tries whether the broker answers at all, and hangs up.
            if let Some(Packet::Connect(..)) = peer.read().await {
                peer.stream.write_all(&[0x20, 6, 0, 0, 3, 0x21, 0, window]).await.unwrap();
                return peer;
            }
        }
    }

    async fn read(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.bytes, None) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            if self.stream.read_buf(&mut self.bytes).await.unwrap() == 0 {
                return None;
            }
        }
    }

    /// The next publish: packet identifier, repetition flag, sequence.
    async fn publish(&mut self) -> (u16, bool, u64) {
        match self.read().await {
            Some(Packet::Publish(publish)) => (publish.pkid, publish.dup, seq(&publish.payload)),
            other => panic!("{other:?} instead of a publish"),
        }
    }

    async fn acknowledge(&mut self, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.stream.write_all(&[0x40, 2, high, low]).await.unwrap();
    }
}

fn seq(payload: &Bytes) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
    value["seq"].as_u64().unwrap()
}

#[tokio::test]
async fn a_lost_connection_costs_no_reading_and_no_order() {
    const READINGS: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger");
    let ledger = LedgerWriter::create(&path).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url =
        BrokerUrl { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port(), login: None };

    let town = Town::new(1, 1, 12.0, [60.0, 24.0]);
    let devices = town.devices().to_vec();
    let tally = Tally::new(Town::STREAM, vec![devices[0].id.clone()], Some(ledger.clone()));
    let args = MqttArgs { clients: None, qos: Qos::One, mqtt_version: Version::V5, max_unacked: 50 };
    let mut fleet = Fleet::start(&url, &args, &devices, tally.clone(), 1).await.unwrap();
    let mut schedule = Schedule::new(town, 1.0, 0);
    for _ in 0..READINGS {
        assert!(fleet.try_send(&schedule.produce()));
    }

    let broker = async {
        let mut peer = Peer::accept(&listener, 20).await;
        for expected in 1..=20 {
            let (packet_id, dup, seq) = peer.publish().await;
            assert_eq!((dup, seq), (false, expected));
            if seq <= 5 {
                peer.acknowledge(packet_id).await;
            }
        }
        // By now the acknowledgements have been taken: they let five more go.
        for expected in 21..=25 {
            assert_eq!(peer.publish().await.2, expected);
        }
        drop(peer);
        let mut peer = Peer::accept(&listener, 20).await;
        for expected in 6..=READINGS {
            let (packet_id, dup, seq) = peer.publish().await;
            assert_eq!((dup, seq), (expected <= 25, expected));
            peer.acknowledge(packet_id).await;
        }
        assert!(matches!(peer.read().await, Some(Packet::Disconnect(_))));
    };
    let both = async { tokio::join!(fleet.drain(), broker) };
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("the readings never got through");

    ledger.close().unwrap();
    let summary = tally.summary(Duration::from_secs(1));
    assert_eq!(
        (summary.sent, summary.acked, summary.resent, summary.reconnects),
        (READINGS, READINGS, 20, 1)
    );
    let ledger = Ledger::read(&[path]).unwrap();
    assert_eq!(ledger.devices()[0].entries.len() as u64, READINGS);
    assert!(ledger.devices()[0].entries.iter().all(|entry| entry.acked_micros().is_some()));
}

#[tokio::test]
async fn the_generator_waits_when_too_much_is_unacknowledged() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url =
        BrokerUrl { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port(), login: None };
    let town = Town::new(1, 1, 12.0, [60.0, 24.0]);
    let devices = town.devices().to_vec();
    let tally = Tally::new(Town::STREAM, vec![devices[0].id.clone()], None);
    let args = MqttArgs { clients: Some(1), qos: Qos::One, mqtt_version: Version::V5, max_unacked: 3 };
    let mut fleet = Fleet::start(&url, &args, &devices, tally, 1).await.unwrap();
    let mut schedule = Schedule::new(town, 1.0, 0);
    for taken in 0..4 {
        assert_eq!(fleet.try_send(&schedule.produce()), taken < 3);
    }
    let broker = async {
        let mut peer = Peer::accept(&listener, 20).await;
        let (packet_id, ..) = peer.publish().await;
        peer.acknowledge(packet_id).await;
        // Keeps the connection until the fleet is done with.
        peer.read().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = broker => {}
        ready = tokio::time::timeout(Duration::from_secs(30), fleet.ready(0)) => ready.expect("nothing was acknowledged"),
    }
    assert!(fleet.try_send(&schedule.produce()));
}

#[test]
fn broker_urls_name_host_port_and_login() {
    let check = |url: &str, host: &str, port, login: Option<(&str, &str)>| {
        let login = login.map(|(user, password)| Login { user: user.into(), password: password.into() });
        assert_eq!(url.parse(), Ok(BrokerUrl { host: host.into(), port, login }), "{url}");
    };
    check("mqtt://localhost", "localhost", 1883, None);
    check("mqtt://10.0.0.7:1884/", "10.0.0.7", 1884, None);
    check("mqtt://[::1]:1884", "::1", 1884, None);
    check("mqtt://[fe80::1]", "fe80::1", 1883, None);
    check("mqtt://me:p@ss@host:1", "host", 1, Some(("me", "p@ss")));
    for wrong in ["localhost", "mqtts://host", "mqtt://", "mqtt://host:port", "mqtt://host/path"] {
        assert!(wrong.parse::<BrokerUrl>().is_err(), "{wrong}");
    }
}
