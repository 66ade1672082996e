//! Packets of MQTT 3.1.1 and 5 as one vocabulary, over the codecs of rumqttc.
//!
//! Only what a subscriber needs is here. A PUBLISH beyond the size limit is taken apart without its payload: MQTT 3.1.1
//! cannot tell a broker the limit, and to hang up would only make the broker send the same packet again, for ever.

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::{mqttbytes as v3, v5::mqttbytes as v5};

use crate::config::{MqttSource, MqttVersion, Qos};

/// Why a connection cannot go on. The caller closes it and connects again.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The broker sent what is no packet.
    #[error("malformed packet: {0}")]
    Malformed(String),
    /// A packet other than PUBLISH beyond the limit.
    #[error("packet of {size_bytes} B exceeds the limit of {limit_bytes} B")]
    TooLarge {
        /// Size of the packet.
        size_bytes: usize,
        /// `max_packet_bytes`.
        limit_bytes: usize,
    },
}

/// A message from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Publish {
    /// Topic, UTF-8 as checked by [`Reader::next`].
    pub(super) topic: Bytes,
    /// Payload.
    pub(super) payload: Bytes,
    /// QoS it was delivered with.
    pub(super) qos: Qos,
    /// Packet id; 0 with QoS 0.
    pub(super) packet_id: u16,
    /// The broker may have sent it before.
    pub(super) dup: bool,
    /// It was stored by the broker before the subscription.
    pub(super) retain: bool,
}

/// Why a broker does not accept a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What the broker says.
    pub(super) reason: String,
    /// It is about user and password.
    pub(super) is_login: bool,
}

/// Answer to CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnAck {
    /// `None` if accepted.
    pub(super) refusal: Option<Refusal>,
    /// The broker has the session of an earlier connection.
    pub(super) session_present: bool,
    /// Keep-alive that the broker demands, in seconds.
    pub(super) keep_alive_s: Option<u16>,
    /// Session expiry that the broker grants, where it differs, in seconds.
    pub(super) session_expiry_s: Option<u32>,
}

/// What a broker may send to a subscriber.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// Answer to CONNECT.
    ConnAck(ConnAck),
    /// A message.
    Publish(Publish),
    /// A message beyond the limit, its payload skipped.
    Oversize {
        /// The message without payload.
        publish: Publish,
        /// Size of the packet in bytes.
        size_bytes: usize,
    },
    /// QoS 2: the broker has our PUBREC and will not send the message again.
    PubRel(u16),
    /// Answer to SUBSCRIBE: for each filter the QoS granted, or why not.
    SubAck {
        /// Packet id of the SUBSCRIBE.
        packet_id: u16,
        /// In the order of the filters.
        granted: Vec<Result<Qos, String>>,
    },
    /// Answer to PINGREQ.
    PingResp,
    /// The broker hangs up (MQTT 5), and why.
    Disconnect(String),
    /// Nothing that a broker may send to a subscriber.
    Unexpected,
}

/// Splits the byte stream of a broker into packets.
#[derive(Debug)]
pub(super) struct Reader {
    version: MqttVersion,
    limit_bytes: usize,
    skip_bytes: usize,
}

impl Reader {
    /// For a new connection of `source`.
    pub(super) fn new(source: &MqttSource) -> Self {
        let limit_bytes = usize::try_from(source.max_packet_bytes).unwrap_or(usize::MAX);
        Self { version: source.version, limit_bytes, skip_bytes: 0 }
    }

    /// Takes the next packet from the front of `buffer`; `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`WireError`]: the stream cannot be understood from here on.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Packet>, WireError> {
        let skip_bytes = self.skip_bytes.min(buffer.len());
        buffer.advance(skip_bytes);
        self.skip_bytes -= skip_bytes;
        if self.skip_bytes > 0 {
            return Ok(None);
        }
        let Some(header) = FixedHeader::parse(buffer)? else { return Ok(None) };
        if header.size_bytes() > self.limit_bytes {
            return self.oversize(header, buffer);
        }
        if buffer.len() < header.size_bytes() {
            buffer.reserve(header.size_bytes() - buffer.len());
            return Ok(None);
        }
        let mut frame = buffer.split_to(header.size_bytes());
        let packet = match self.version {
            MqttVersion::V3 => from_v3(&mut frame),
            MqttVersion::V5 => from_v5(&mut frame),
        }?;
        if let Packet::Publish(publish) = &packet {
            check_topic(&publish.topic)?;
        }
        Ok(Some(packet))
    }

    fn oversize(&mut self, header: FixedHeader, buffer: &mut BytesMut) -> Result<Option<Packet>, WireError> {
        let size_bytes = header.size_bytes();
        let Some(qos) = header.publish_qos() else {
            return Err(WireError::TooLarge { size_bytes, limit_bytes: self.limit_bytes });
        };
        let id_bytes = if qos == Qos::AtMostOnce { 0 } else { 2 };
        let Some(length) = buffer.get(header.length_bytes..header.length_bytes + 2) else { return Ok(None) };
        let topic_bytes = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let head_bytes = header.length_bytes + 2 + topic_bytes + id_bytes;
        if head_bytes > size_bytes {
            return Err(WireError::Malformed("topic is longer than its packet".into()));
        }
        if buffer.len() < head_bytes {
            return Ok(None);
        }
        let mut head = buffer.split_to(head_bytes).freeze();
        head.advance(header.length_bytes + 2);
        let topic = head.split_to(topic_bytes);
        check_topic(&topic)?;
        let packet_id = if id_bytes == 0 { 0 } else { head.get_u16() };
        self.skip_bytes = size_bytes - head_bytes;
        let (dup, retain) = (header.byte1 & 8 != 0, header.byte1 & 1 != 0);
        let publish = Publish { topic, payload: Bytes::new(), qos, packet_id, dup, retain };
        Ok(Some(Packet::Oversize { publish, size_bytes }))
    }
}

#[derive(Clone, Copy)]
struct FixedHeader {
    byte1: u8,
    length_bytes: usize,
    remaining_bytes: usize,
}

impl FixedHeader {
    /// `None` if more bytes are needed.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let Some((&byte1, rest)) = bytes.split_first() else { return Ok(None) };
        let mut remaining_bytes = 0;
        for (index, byte) in rest.iter().take(4).enumerate() {
            remaining_bytes |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(Some(Self { byte1, length_bytes: index + 2, remaining_bytes }));
            }
        }
        match rest.len() {
            0..4 => Ok(None),
            _ => Err(WireError::Malformed("remaining length has more than 4 bytes".into())),
        }
    }

    fn size_bytes(self) -> usize {
        self.length_bytes + self.remaining_bytes
    }

    fn publish_qos(self) -> Option<Qos> {
        match (self.byte1 >> 4, self.byte1 >> 1 & 3) {
            (3, 0) => Some(Qos::AtMostOnce),
            (3, 1) => Some(Qos::AtLeastOnce),
            (3, 2) => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

fn check_topic(topic: &[u8]) -> Result<(), WireError> {
    if topic.is_empty() {
        // Legal with a topic alias alone, and we allow none.
        return Err(WireError::Malformed("PUBLISH without topic".into()));
    }
    match std::str::from_utf8(topic) {
        Ok(_) => Ok(()),
        Err(_) => Err(WireError::Malformed("topic is not UTF-8".into())),
    }
}

fn from_v3(frame: &mut BytesMut) -> Result<Packet, WireError> {
    let packet = v3::v4::Packet::read(frame, usize::MAX).map_err(|e| WireError::Malformed(e.to_string()))?;
    Ok(match packet {
        v3::v4::Packet::Publish(publish) => Packet::Publish(Publish {
            topic: publish.topic.into(),
            payload: publish.payload,
            qos: qos_v3(publish.qos),
            packet_id: publish.pkid,
            dup: publish.dup,
            retain: publish.retain,
        }),
        v3::v4::Packet::ConnAck(ack) => Packet::ConnAck(ConnAck {
            refusal: (ack.code != v3::v4::ConnectReturnCode::Success).then(|| Refusal {
                reason: format!("{:?}", ack.code),
                is_login: matches!(
                    ack.code,
                    v3::v4::ConnectReturnCode::BadUserNamePassword | v3::v4::ConnectReturnCode::NotAuthorized
                ),
            }),
            session_present: ack.session_present,
            ..ConnAck::default()
        }),
        v3::v4::Packet::PubRel(release) => Packet::PubRel(release.pkid),
        v3::v4::Packet::SubAck(ack) => {
            let granted = ack.return_codes.into_iter().map(|code| match code {
                v3::v4::SubscribeReasonCode::Success(qos) => Ok(qos_v3(qos)),
                v3::v4::SubscribeReasonCode::Failure => Err("Failure".to_owned()),
            });
            Packet::SubAck { packet_id: ack.pkid, granted: granted.collect() }
        }
        v3::v4::Packet::PingResp => Packet::PingResp,
        _ => Packet::Unexpected,
    })
}

fn from_v5(frame: &mut BytesMut) -> Result<Packet, WireError> {
    // DISCONNECT without reason code, which the codec does not take.
    if frame[..] == [0xe0, 0] {
        return Ok(Packet::Disconnect("NormalDisconnection".into()));
    }
    let packet = v5::v5::Packet::read(frame, None).map_err(|e| WireError::Malformed(e.to_string()))?;
    Ok(match packet {
        v5::v5::Packet::Publish(publish) => Packet::Publish(Publish {
            topic: publish.topic,
            payload: publish.payload,
            qos: qos_v5(publish.qos),
            packet_id: publish.pkid,
            dup: publish.dup,
            retain: publish.retain,
        }),
        v5::v5::Packet::ConnAck(ack) => {
            let properties = ack.properties.as_ref();
            let refused = ack.code != v5::v5::ConnectReturnCode::Success;
            let text = properties.and_then(|p| p.reason_string.as_deref());
            Packet::ConnAck(ConnAck {
                refusal: refused.then(|| Refusal {
                    reason: with_text(format!("{:?}", ack.code), text),
                    is_login: matches!(
                        ack.code,
                        v5::v5::ConnectReturnCode::BadUserNamePassword
                            | v5::v5::ConnectReturnCode::NotAuthorized
                    ),
                }),
                session_present: ack.session_present,
                keep_alive_s: properties.and_then(|p| p.server_keep_alive),
                session_expiry_s: properties.and_then(|p| p.session_expiry_interval),
            })
        }
        v5::v5::Packet::PubRel(release) => Packet::PubRel(release.pkid),
        v5::v5::Packet::SubAck(ack) => {
            let text = ack.properties.as_ref().and_then(|p| p.reason_string.as_deref());
            let granted = ack.return_codes.iter().map(|code| match code {
                v5::v5::SubscribeReasonCode::Success(qos) => Ok(qos_v5(*qos)),
                refusal => Err(with_text(format!("{refusal:?}"), text)),
            });
            Packet::SubAck { packet_id: ack.pkid, granted: granted.collect() }
        }
        v5::v5::Packet::PingResp(_) => Packet::PingResp,
        v5::v5::Packet::Disconnect(disconnect) => {
            let text = disconnect.properties.as_ref().and_then(|p| p.reason_string.as_deref());
            Packet::Disconnect(with_text(format!("{:?}", disconnect.reason_code), text))
        }
        _ => Packet::Unexpected,
    })
}

fn with_text(code: String, text: Option<&str>) -> String {
    match text {
        Some(text) => format!("{code} ({text})"),
        None => code,
    }
}

fn qos_v3(qos: v3::QoS) -> Qos {
    match qos {
        v3::QoS::AtMostOnce => Qos::AtMostOnce,
        v3::QoS::AtLeastOnce => Qos::AtLeastOnce,
        v3::QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

fn qos_v5(qos: v5::QoS) -> Qos {
    match qos {
        v5::QoS::AtMostOnce => Qos::AtMostOnce,
        v5::QoS::AtLeastOnce => Qos::AtLeastOnce,
        v5::QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

/// Writes packets to the broker at the end of a buffer that leaves in one write.
#[derive(Debug)]
pub(super) struct Writer {
    version: MqttVersion,
    buffer: BytesMut,
}

impl Writer {
    /// For a new connection.
    pub(super) fn new(version: MqttVersion) -> Self {
        Self { version, buffer: BytesMut::new() }
    }

    /// What is to be sent, the oldest first. The caller takes off what it has written.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether everything was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// CONNECT to the persistent session of `source`, or with `clean` to a new one, with user and password if there are any.
    pub(super) fn connect(&mut self, source: &MqttSource, login: Option<(&str, &str)>, clean: bool) {
        let keep_alive = u16::try_from(source.keep_alive.as_secs()).unwrap_or(u16::MAX);
        match self.version {
            MqttVersion::V3 => {
                let mut connect = v3::v4::Connect::new(source.client_id.as_str());
                connect.keep_alive = keep_alive;
                connect.clean_session = clean;
                connect.login = login.map(|(user, password)| v3::v4::Login {
                    username: user.to_owned(),
                    password: password.to_owned(),
                });
                fits(connect.write(&mut self.buffer));
            }
            MqttVersion::V5 => {
                let mut properties = v5::v5::ConnectProperties::new();
                properties.session_expiry_interval = Some(source.session_expiry_s);
                properties.receive_maximum = Some(source.receive_maximum);
                properties.max_packet_size = Some(source.max_packet_bytes);
                // No topic_alias_max: the broker then sends every topic in full.
                let connect = v5::v5::Connect {
                    keep_alive,
                    client_id: source.client_id.clone(),
                    clean_start: clean,
                    properties: Some(properties),
                };
                let login = login.map(|(user, password)| v5::v5::Login {
                    username: user.to_owned(),
                    password: password.to_owned(),
                });
                fits(connect.write(&None, &login, &mut self.buffer));
            }
        }
    }

    /// SUBSCRIBE. `packet_id` is not 0; at least one filter.
    pub(super) fn subscribe<'a>(&mut self, packet_id: u16, filters: impl Iterator<Item = &'a str>, qos: Qos) {
        match self.version {
            MqttVersion::V3 => {
                let qos = match qos {
                    Qos::AtMostOnce => v3::QoS::AtMostOnce,
                    Qos::AtLeastOnce => v3::QoS::AtLeastOnce,
                    Qos::ExactlyOnce => v3::QoS::ExactlyOnce,
                };
                let filters = filters.map(|filter| v3::v4::SubscribeFilter::new(filter.to_owned(), qos));
                let mut subscribe = v3::v4::Subscribe::new_many(filters);
                subscribe.pkid = packet_id;
                fits(subscribe.write(&mut self.buffer));
            }
            MqttVersion::V5 => {
                let qos = match qos {
                    Qos::AtMostOnce => v5::QoS::AtMostOnce,
                    Qos::AtLeastOnce => v5::QoS::AtLeastOnce,
                    Qos::ExactlyOnce => v5::QoS::ExactlyOnce,
                };
                let filters = filters.map(|filter| v5::v5::Filter {
                    // A subscription that the session already has brings no retained messages again.
                    retain_forward_rule: v5::v5::RetainForwardRule::OnNewSubscribe,
                    ..v5::v5::Filter::new(filter, qos)
                });
                let mut subscribe = v5::v5::Subscribe::new_many(filters, None);
                subscribe.pkid = packet_id;
                fits(subscribe.write(&mut self.buffer));
            }
        }
    }

    /// PUBACK: we have the QoS 1 message.
    pub(super) fn puback(&mut self, packet_id: u16) {
        match self.version {
            MqttVersion::V3 => fits(v3::v4::PubAck::new(packet_id).write(&mut self.buffer)),
            MqttVersion::V5 => fits(v5::v5::PubAck::new(packet_id, None).write(&mut self.buffer)),
        }
    }

    /// PUBREC: we have the QoS 2 message.
    pub(super) fn pubrec(&mut self, packet_id: u16) {
        match self.version {
            MqttVersion::V3 => fits(v3::v4::PubRec::new(packet_id).write(&mut self.buffer)),
            MqttVersion::V5 => fits(v5::v5::PubRec::new(packet_id, None).write(&mut self.buffer)),
        }
    }

    /// PUBCOMP: the QoS 2 packet id is free again.
    pub(super) fn pubcomp(&mut self, packet_id: u16) {
        match self.version {
            MqttVersion::V3 => fits(v3::v4::PubComp::new(packet_id).write(&mut self.buffer)),
            MqttVersion::V5 => fits(v5::v5::PubComp::new(packet_id, None).write(&mut self.buffer)),
        }
    }

    /// PINGREQ.
    pub(super) fn pingreq(&mut self) {
        self.buffer.extend_from_slice(&[0xc0, 0]);
    }

    /// DISCONNECT that leaves the session as it is.
    pub(super) fn disconnect(&mut self) {
        self.buffer.extend_from_slice(&[0xe0, 0]);
    }
}

/// The codecs fail on packet ids of 0 and packets over 256 MiB, and nothing here is either.
fn fits<E: std::fmt::Debug>(written: Result<usize, E>) {
    debug_assert!(written.is_ok(), "{written:?}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Backoff, MqttTls};

    fn reader(version: MqttVersion) -> Reader {
        Reader::new(&MqttSource {
            name: "test".into(),
            brokers: Vec::new(),
            login: None,
            tls: MqttTls::default(),
            version,
            client_id: "test".into(),
            qos: Qos::AtLeastOnce,
            keep_alive: Duration::from_secs(30),
            session_expiry_s: 0,
            receive_maximum: 10,
            max_packet_bytes: 64,
            reconnect: Backoff { min: Duration::ZERO, max: Duration::ZERO },
            routes: Vec::new(),
        })
    }

    fn packets(version: MqttVersion, chunks: &[&[u8]]) -> Vec<Packet> {
        let (mut reader, mut buffer, mut packets) = (reader(version), BytesMut::new(), Vec::new());
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            while let Ok(Some(packet)) = reader.next(&mut buffer) {
                packets.push(packet);
            }
        }
        packets
    }

    /// A QoS 1 PUBLISH of MQTT 5 to `t` with id 7.
    fn publish(payload: &[u8]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        let mut publish = v5::v5::Publish::new("t", v5::QoS::AtLeastOnce, payload.to_vec(), None);
        publish.pkid = 7;
        publish.write(&mut bytes).expect("fits");
        bytes.to_vec()
    }

    #[test]
    fn a_stream_reads_the_same_in_any_chunks_with_oversize_messages_in_it() {
        let stream = [publish(b"small"), publish(&[b'x'; 1000]), publish(b"again"), vec![0xd0, 0]].concat();
        let whole = packets(MqttVersion::V5, &[&stream]);
        assert_eq!(whole.len(), 4);
        assert!(
            matches!(&whole[1], Packet::Oversize { publish, size_bytes: 1009 } if publish.packet_id == 7)
        );
        assert_eq!(whole[3], Packet::PingResp);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(packets(MqttVersion::V5, &bytes), whole);
    }

    #[test]
    fn a_message_of_256_mib_takes_no_memory_and_hides_nothing_behind_it() {
        const PAYLOAD_BYTES: usize = 0x0fff_ffff - 6;
        let (mut reader, mut buffer) = (reader(MqttVersion::V5), BytesMut::new());
        // The largest length that MQTT can say; topic `t`, id 7, no properties.
        buffer.extend_from_slice(&[0x32, 0xff, 0xff, 0xff, 0x7f, 0, 1, b't', 0, 7, 0]);
        let packet = reader.next(&mut buffer).expect("well-formed");
        assert!(matches!(packet, Some(Packet::Oversize { size_bytes: 268_435_460, .. })), "{packet:?}");
        let read = [b'x'; 32 * 1024];
        let mut left_bytes = PAYLOAD_BYTES;
        while left_bytes > 0 {
            let size_bytes = left_bytes.min(read.len());
            buffer.extend_from_slice(&read[..size_bytes]);
            assert_eq!(reader.next(&mut buffer).expect("skipped"), None);
            assert!(buffer.capacity() <= 2 * read.len(), "{} bytes", buffer.capacity());
            left_bytes -= size_bytes;
        }
        buffer.extend_from_slice(&[0xd0, 0]);
        assert_eq!(reader.next(&mut buffer).expect("well-formed"), Some(Packet::PingResp));
    }

    #[test]
    fn a_disconnect_without_a_reason_is_one() {
        let packets = packets(MqttVersion::V5, &[&[0xe0, 0]]);
        assert_eq!(packets, [Packet::Disconnect("NormalDisconnection".into())]);
    }

    #[test]
    fn a_topic_alias_that_nobody_allowed_is_malformed() {
        let alias = [0x30, 6, 0, 0, 3, 0x23, 0, 1];
        assert!(reader(MqttVersion::V5).next(&mut BytesMut::from(&alias[..])).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn no_bytes_make_the_reader_panic(
            kind in any::<u8>(),
            body in proptest::collection::vec(prop_oneof![0..48_u8, any::<u8>()], 0..60),
        ) {
            let length = u8::try_from(body.len()).expect("short");
            let stream = [&[kind, length], &body[..]].concat();
            for version in [MqttVersion::V3, MqttVersion::V5] {
                packets(version, &[&stream]);
            }
        }
    }
}
