//! See [`crate::fuzz`].

use std::time::Duration;

use bytes::BytesMut;

use super::wire::{Packet, Reader};
use crate::{
    config::{Backoff, MqttSource, MqttVersion, Qos},
    fuzz::pieces,
};

/// Less than a seed, so that oversize packets come up.
const PACKET_BYTES_MAX: u32 = 128;

/// Packets of a broker: the first byte says whether it speaks MQTT 5 (odd) or 3.1.1. They are the same however the bytes are
/// cut, and no larger than allowed.
pub fn mqtt(data: &[u8]) {
    let Some((&version, stream)) = data.split_first() else { return };
    let version = if version % 2 == 1 { MqttVersion::V5 } else { MqttVersion::V3 };
    let (whole, error) = packets(version, [stream].into_iter());
    assert_eq!(packets(version, pieces(stream)), (whole.clone(), error), "in pieces");
    assert!(whole.len() <= stream.len());
    for packet in whole {
        if let Packet::Publish(publish) = packet {
            let size_bytes = publish.topic.len() + publish.payload.len();
            assert!(size_bytes <= PACKET_BYTES_MAX as usize, "{size_bytes} bytes");
        }
    }
}

/// The packets up to the first error, and that.
fn packets<'a>(
    version: MqttVersion,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Packet>, Option<String>) {
    let mut reader = Reader::new(&MqttSource {
        name: "broker".into(),
        brokers: Vec::new(),
        version,
        client_id: "client".into(),
        qos: Qos::AtLeastOnce,
        keep_alive: Duration::from_secs(30),
        session_expiry_s: 0,
        receive_maximum: 10,
        max_packet_bytes: PACKET_BYTES_MAX,
        reconnect: Backoff { min: Duration::ZERO, max: Duration::ZERO },
        login: None,
        tls: crate::config::MqttTls::default(),
        routes: Vec::new(),
    });
    let (mut buffer, mut packets) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match reader.next(&mut buffer) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(error) => return (packets, Some(error.to_string())),
            }
        }
    }
    (packets, None)
}
