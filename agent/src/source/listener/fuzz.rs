//! See [`crate::fuzz`].

use std::time::Duration;

use super::{
    access::Configured,
    broker::{self, Broker, Incoming, Store},
    packet::{Packet, PacketError, decode, frame},
};
use crate::{
    config::{Anonymous, Listener, MqttVersion},
    env::{Entropy, Monotonic},
    fuzz::pieces,
    intake::Ticket,
};

/// Less than a seed, so that packets beyond the limit come up.
const PACKET_BYTES_MAX: usize = 256;

/// Packets of a client: the first byte says whether it speaks MQTT 5 (odd) or 3.1.1. A part of a packet is none, and every
/// slice and list of one can be walked. The same bytes as those of one connection beside that of a subscriber: what is taken,
/// answered and handed on does not depend on how they are cut, and nothing stays behind.
pub fn listener(data: &[u8]) {
    let Some((&version, stream)) = data.split_first() else { return };
    walk(if version % 2 == 1 { MqttVersion::V5 } else { MqttVersion::V3 }, stream);
    assert_eq!(served(pieces(stream)), served([stream].into_iter()), "in pieces");
}

/// What was taken, with its topic, what was answered, and what the subscriber got.
type Served = (Vec<(String, Vec<u8>)>, Vec<u8>, Vec<u8>);

fn served<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Served {
    let config = Listener {
        anonymous: Anonymous::Anywhere,
        max_connections: 4,
        max_half_open: 4,
        max_packet_bytes: PACKET_BYTES_MAX,
        receive_maximum: 4,
        reject_invalid: true,
        session_expiry_max: Duration::from_secs(60),
        queue_bytes: 100_000,
        retained_bytes: 1000,
        ..Listener::for_test()
    };
    let now = Monotonic::default();
    let mut broker = Broker::new(config, Box::new(Configured::from(Anonymous::Anywhere)), Box::new(Zero));
    let mut taken = Taken(Vec::new());
    let [subscriber, device] =
        [(); 2].map(|()| broker.open(now, [127, 0, 0, 1].into(), &mut taken).expect("a place"));
    let connect = b"\x10\x10\0\x04MQTT\x04\x02\0\0\0\x04\xf0\x9f\x93\xbb\x82\x06\0\x01\0\x01#\0";
    broker.received(now, subscriber, connect, &mut taken);
    for piece in pieces {
        broker.received(now, device, piece, &mut taken);
    }
    let [handed_on, answered] =
        [subscriber, device].map(|key| broker.output(now, key).map(|out| out.to_vec()).unwrap_or_default());
    broker.remove(now, device, &mut taken);
    broker.remove(now, subscriber, &mut taken);
    broker.expire(now + Duration::from_secs(60), &mut taken);
    assert!(broker.is_idle() && broker.unacknowledged() == 0 && broker.clients() == 0);
    (taken.0, answered, handed_on)
}

struct Taken(Vec<(String, Vec<u8>)>);

impl Store for Taken {
    fn store(&mut self, message: Incoming<'_>) -> Option<broker::Taken> {
        self.0.push((message.topic.to_owned(), message.payload.to_vec()));
        Some(broker::Taken { place: (Ticket(1), self.0.len()), is_invalid: message.payload.is_empty() })
    }

    fn last_ticket(&self) -> Ticket {
        Ticket(1)
    }
}

struct Zero;

impl Entropy for Zero {
    fn next_u64(&mut self) -> u64 {
        0
    }
}

/// Reads packets off the front of `stream` up to the first error, and returns how many there were.
pub(super) fn walk(version: MqttVersion, stream: &[u8]) -> usize {
    let (mut rest, mut packets) = (stream, 0);
    while let Ok(Some(size_bytes)) = frame(rest, PACKET_BYTES_MAX) {
        for end in 0..size_bytes.min(rest.len()) {
            let sooner = frame(&rest[..end], PACKET_BYTES_MAX);
            assert!(
                matches!(sooner, Ok(None)) || sooner == Ok(Some(size_bytes)),
                "{sooner:?} of {end} bytes"
            );
        }
        let Some(packet) = rest.split_off(..size_bytes) else { break };
        if visit(version, packet).is_err() {
            break;
        }
        packets += 1;
    }
    packets
}

fn visit(version: MqttVersion, bytes: &[u8]) -> Result<(), PacketError> {
    match decode(version, bytes)? {
        Packet::Publish(publish) => {
            assert!(!publish.topic.is_empty() || publish.alias.is_some());
            assert!(!publish.topic.contains(['#', '+', '\0']));
            let properties_bytes: usize = publish.properties.iter().map(|property| property.raw.len()).sum();
            assert!(publish.topic.len() + properties_bytes + publish.payload.len() < bytes.len());
        }
        Packet::Subscribe(subscribe) => assert!(subscribe.filters().count() > 0),
        Packet::Unsubscribe(unsubscribe) => assert!(unsubscribe.filters().all(|filter| !filter.is_empty())),
        Packet::Connect(connect) => assert!(connect.receive_maximum > 0),
        Packet::PubAck(id) | Packet::PubRel(id) => assert!(id > 0),
        Packet::PingReq | Packet::Disconnect(_) => {}
    }
    Ok(())
}
