//! The codec against the specification, clause by clause, and against rumqttc's, an independent one.

use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc::{mqttbytes as v3, v5::mqttbytes as v5};

use super::*;
use MqttVersion::{V3, V5};

/// A packet with first byte `first` and `body`.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first, u8::try_from(body.len()).expect("a short packet")], body].concat()
}

fn read(version: MqttVersion, bytes: &[u8]) -> Result<Packet<'_>, PacketError> {
    let size_bytes = frame(bytes, 1 << 20)?.expect("a whole packet");
    decode(version, &bytes[..size_bytes])
}

/// The body of a CONNECT with client identifier `c` and no properties.
fn connect_body(version: MqttVersion, flags: u8, behind: &[u8]) -> Vec<u8> {
    let (level, properties): (u8, &[u8]) = if version == V5 { (5, &[0]) } else { (4, &[]) };
    [&[0, 4][..], b"MQTT", &[level, flags, 0, 10], properties, &[0, 1, b'c'], behind].concat()
}

#[test]
fn what_a_client_must_not_send_is_refused_with_its_reason() {
    use Reason::*;
    let connect = |version, flags, behind: &[u8]| packet(0x10, &connect_body(version, flags, behind));
    let publish = |first, body: &[u8]| packet(first, body);
    let property = |first, bytes: &[u8]| packet(first, &[&[0, 1, b't'], bytes].concat());
    #[rustfmt::skip]
    let cases: Vec<(&str, MqttVersion, Vec<u8>, Reason)> = vec![
        ("packet type 0", V3, vec![0x00, 0], ProtocolError),
        ("CONNACK", V5, vec![0x20, 0], ProtocolError),
        ("SUBACK", V5, vec![0x90, 0], ProtocolError),
        ("UNSUBACK", V3, vec![0xb0, 0], ProtocolError),
        ("PINGRESP", V3, vec![0xd0, 0], ProtocolError),
        ("AUTH", V5, vec![0xf0, 0], ProtocolError),
        ("flags of CONNECT", V3, vec![0x11, 0], MalformedPacket),
        ("flags of PUBREL", V3, vec![0x60, 2, 0, 1], MalformedPacket),
        ("flags of SUBSCRIBE", V3, vec![0x80, 2, 0, 1], MalformedPacket),
        ("flags of UNSUBSCRIBE", V5, vec![0xa0, 2, 0, 1], MalformedPacket),
        ("flags of PINGREQ", V3, vec![0xc1, 0], MalformedPacket),
        ("flags of DISCONNECT", V3, vec![0xe2, 0], MalformedPacket),
        ("length of 5 bytes", V3, vec![0x30, 0x80, 0x80, 0x80, 0x80, 1], MalformedPacket),
        ("length with idle bytes", V3, vec![0xc0, 0x80, 0], MalformedPacket),
        ("PINGREQ with a body", V3, vec![0xc0, 1, 0], MalformedPacket),
        ("DISCONNECT with a body in 3.1.1", V3, vec![0xe0, 1, 0], MalformedPacket),
        ("MQTT 3.1", V3, packet(0x10, b"\0\x06MQIsdp\x03\x02\0\x0a\0\x01c"), UnsupportedProtocolVersion),
        ("MQTT 6", V5, packet(0x10, b"\0\x04MQTT\x06\x02\0\x0a\0\0\x01c"), UnsupportedProtocolVersion),
        ("another protocol", V5, packet(0x10, b"\0\x04HTTP\x05\x02\0\x0a\0\0\x01c"), MalformedPacket),
        ("reserved flag of CONNECT", V3, connect(V3, 0x03, &[]), MalformedPacket),
        ("will QoS 3", V5, connect(V5, 0x1e, &[0, 0, 1, b't', 0, 0]), MalformedPacket),
        ("will QoS without will", V3, connect(V3, 0x0a, &[]), MalformedPacket),
        ("will retain without will", V3, connect(V3, 0x22, &[]), MalformedPacket),
        ("will topic with a wildcard", V3, connect(V3, 0x06, &[0, 1, b'#', 0, 0]), TopicNameInvalid),
        ("will topic that is empty", V3, connect(V3, 0x06, &[0, 0, 0, 0]), ProtocolError),
        ("will cut off", V3, connect(V3, 0x06, &[0, 9, b't']), MalformedPacket),
        ("password without user name", V3, connect(V3, 0x42, &[0, 1, b'p']), MalformedPacket),
        ("user name that is not there", V5, connect(V5, 0x82, &[]), MalformedPacket),
        ("bytes behind CONNECT", V3, connect(V3, 0x02, &[0]), MalformedPacket),
        ("client id with U+0000", V3, packet(0x10, b"\0\x04MQTT\x04\x02\0\x0a\0\x01\0"), MalformedPacket),
        ("client id that is not UTF-8", V3, packet(0x10, b"\0\x04MQTT\x04\x02\0\x0a\0\x01\xff"), MalformedPacket),
        ("client id with a surrogate", V3, packet(0x10, b"\0\x04MQTT\x04\x02\0\x0a\0\x03\xed\xa0\x80"), MalformedPacket),
        ("receive maximum 0", V5, packet(0x10, b"\0\x04MQTT\x05\x02\0\x0a\x03\x21\0\0\0\x01c"), ProtocolError),
        ("maximum packet size 0", V5, packet(0x10, b"\0\x04MQTT\x05\x02\0\x0a\x05\x27\0\0\0\0\0\x01c"), ProtocolError),
        ("request problem information 2", V5, packet(0x10, b"\0\x04MQTT\x05\x02\0\x0a\x02\x17\x02\0\x01c"), ProtocolError),
        ("session expiry twice", V5, packet(0x10, b"\0\x04MQTT\x05\x02\0\x0a\x0a\x11\0\0\0\0\x11\0\0\0\0\0\x01c"), ProtocolError),
        ("a property of PUBLISH in CONNECT", V5, packet(0x10, b"\0\x04MQTT\x05\x02\0\x0a\x03\x23\0\x01\0\x01c"), ProtocolError),
        ("authentication method", V5, packet(0x10, b"\0\x04MQTT\x05\x02\0\x0a\x04\x15\0\x01x\0\x01c"), BadAuthenticationMethod),
        ("authentication data alone", V5, packet(0x10, b"\0\x04MQTT\x05\x02\0\x0a\x04\x16\0\x01x\0\x01c"), ProtocolError),
        ("properties cut off", V5, packet(0x10, b"\0\x04MQTT\x05\x02\0\x0a\x09\x11\0"), MalformedPacket),
        ("QoS 3", V3, publish(0x36, b"\0\x01t\0\x01"), MalformedPacket),
        ("DUP with QoS 0", V3, publish(0x38, b"\0\x01t"), MalformedPacket),
        ("packet id 0", V3, publish(0x32, b"\0\x01t\0\0"), ProtocolError),
        ("packet id 0 with QoS 2", V5, publish(0x34, b"\0\x01t\0\0\0"), ProtocolError),
        ("no packet id", V3, publish(0x32, b"\0\x01t"), MalformedPacket),
        ("empty topic", V3, publish(0x30, b"\0\0"), ProtocolError),
        ("empty topic without alias", V5, publish(0x30, b"\0\0\0"), ProtocolError),
        ("topic with #", V3, publish(0x30, b"\0\x03a/#"), TopicNameInvalid),
        ("topic with +", V5, publish(0x30, b"\0\x03a/+\0"), TopicNameInvalid),
        ("topic with U+0000", V3, publish(0x30, b"\0\x03a\0b"), MalformedPacket),
        ("topic that is not UTF-8", V3, publish(0x30, b"\0\x02a\xc0"), MalformedPacket),
        ("topic beyond its packet", V3, publish(0x30, b"\0\x09a"), MalformedPacket),
        ("alias 0", V5, property(0x30, &[3, 0x23, 0, 0]), TopicAliasInvalid),
        ("alias twice", V5, property(0x30, &[6, 0x23, 0, 1, 0x23, 0, 1]), ProtocolError),
        ("subscription identifier from a client", V5, property(0x30, &[2, 0x0b, 1]), ProtocolError),
        ("payload format 2", V5, property(0x30, &[2, 0x01, 2]), ProtocolError),
        ("response topic with a wildcard", V5, property(0x30, &[4, 0x08, 0, 1, b'#']), ProtocolError),
        ("unknown property", V5, property(0x30, &[2, 0x7e, 1]), MalformedPacket),
        ("properties beyond the packet", V5, property(0x30, &[5, 0x01]), MalformedPacket),
        ("PUBACK with id 0", V3, packet(0x40, &[0, 0]), ProtocolError),
        ("PUBACK with more in 3.1.1", V3, packet(0x40, &[0, 1, 0]), MalformedPacket),
        ("PUBREL with id 0", V5, packet(0x62, &[0, 0]), ProtocolError),
        ("PUBREC", V5, packet(0x50, &[0, 1]), ProtocolError),
        ("PUBCOMP", V3, packet(0x70, &[0, 1]), ProtocolError),
        ("SUBSCRIBE with id 0", V3, packet(0x82, b"\0\0\0\x01t\0"), ProtocolError),
        ("SUBSCRIBE without filter", V3, packet(0x82, &[0, 1]), ProtocolError),
        ("SUBSCRIBE with QoS 3", V3, packet(0x82, b"\0\x01\0\x01t\x03"), MalformedPacket),
        ("SUBSCRIBE with options in 3.1.1", V3, packet(0x82, b"\0\x01\0\x01t\x04"), ProtocolError),
        ("SUBSCRIBE with reserved options", V5, packet(0x82, b"\0\x01\0\0\x01t\x40"), ProtocolError),
        ("SUBSCRIBE with retain handling 3", V5, packet(0x82, b"\0\x01\0\0\x01t\x30"), ProtocolError),
        ("SUBSCRIBE without options", V3, packet(0x82, b"\0\x01\0\x01t"), MalformedPacket),
        ("empty filter", V3, packet(0x82, b"\0\x01\0\0\0"), MalformedPacket),
        ("filter a#", V3, packet(0x82, b"\0\x01\0\x02a#\0"), MalformedPacket),
        ("filter #/a", V3, packet(0x82, b"\0\x01\0\x03#/a\0"), MalformedPacket),
        ("filter a/b+/c", V3, packet(0x82, b"\0\x01\0\x06a/b+/c\0"), MalformedPacket),
        ("subscription identifier 0", V5, packet(0x82, b"\0\x01\x02\x0b\0\0\x01t\0"), ProtocolError),
        ("UNSUBSCRIBE without filter", V5, packet(0xa2, &[0, 1, 0]), ProtocolError),
        ("UNSUBSCRIBE cut off", V3, packet(0xa2, b"\0\x01\0\x02t"), MalformedPacket),
    ];
    for (what, version, bytes, reason) in cases {
        let refused = read(version, &bytes).map_err(|error| error.reason);
        assert_eq!(refused, Err(reason), "{what}");
    }
}

#[test]
fn what_is_too_large_is_refused_by_its_header_alone() {
    assert_eq!(frame(&[0x30, 0x7f], 129), Ok(Some(129)));
    let refused = frame(&[0x30, 0x7f], 128).map_err(|error| error.reason);
    assert_eq!(refused, Err(Reason::PacketTooLarge));
    assert_eq!(frame(&[0x30, 0xff, 0xff, 0xff], 128), Ok(None));
    let refused = frame(&[0x30, 0xff, 0xff, 0xff, 0x7f], 1 << 20).map_err(|error| error.reason);
    assert_eq!(refused, Err(Reason::PacketTooLarge));
    let topic = format!("\0\0{}", "t".repeat(TOPIC_BYTES_MAX + 1));
    let mut long = topic.into_bytes();
    let length = u16::try_from(long.len() - 2).unwrap().to_be_bytes();
    long[..2].copy_from_slice(&length);
    let bytes = [&[0x30, 0x83, 0x08][..], &long].concat();
    assert_eq!(read(V3, &bytes).map_err(|error| error.reason), Err(Reason::TopicNameInvalid));
}

#[test]
fn a_connect_says_all_that_it_says() {
    let mut bytes = BytesMut::new();
    let mut connect = v5::v5::Connect {
        keep_alive: 20,
        client_id: "meter-1".into(),
        clean_start: true,
        properties: Some(v5::v5::ConnectProperties::new()),
    };
    if let Some(properties) = &mut connect.properties {
        properties.session_expiry_interval = Some(3600);
        properties.receive_maximum = Some(7);
        properties.max_packet_size = Some(2000);
        properties.user_properties = vec![("a".into(), "b".into())];
    }
    let mut will = v5::v5::LastWill::new("gone", "meter-1", v5::QoS::AtLeastOnce, true, None);
    will.properties = Some(v5::v5::LastWillProperties {
        delay_interval: Some(9),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    });
    let login = v5::v5::Login { username: "u".into(), password: "p".into() };
    connect.write(&Some(will), &Some(login), &mut bytes).expect("writes");
    let Ok(Packet::Connect(read)) = read(V5, &bytes) else { panic!("no CONNECT") };
    assert_eq!((read.version, read.clean, read.keep_alive_s, read.client_id), (V5, true, 20, "meter-1"));
    assert_eq!((read.session_expiry_s, read.receive_maximum, read.maximum_packet_bytes), (3600, 7, 2000));
    assert_eq!((read.user, read.password), (Some("u"), Some(&b"p"[..])));
    let will = read.will.expect("a will");
    assert_eq!((will.delay_s, will.publish.topic, will.publish.payload), (9, "gone", &b"meter-1"[..]));
    assert!(will.publish.retain && will.publish.qos == Qos::AtLeastOnce);
}

#[test]
fn a_disconnect_with_a_reason_keeps_the_will() {
    let with_will = |bytes: &[u8]| match read(V5, bytes) {
        Ok(Packet::Disconnect(disconnect)) => (disconnect.with_will, disconnect.session_expiry_s),
        other => panic!("{other:?}"),
    };
    assert_eq!(with_will(&[0xe0, 0]), (false, None));
    assert_eq!(with_will(&[0xe0, 1, 0]), (false, None));
    assert_eq!(with_will(&[0xe0, 1, 4]), (true, None));
    assert_eq!(with_will(&[0xe0, 7, 0, 5, 0x11, 0, 0, 0, 9]), (false, Some(9)));
}

#[test]
fn connack_suback_and_the_others_are_what_clients_read() {
    let mut out = BytesMut::new();
    let ack = ConnAck {
        session_present: true,
        session_expiry_s: Some(60),
        receive_maximum: 50,
        maximum_packet_bytes: 4096,
        assigned_client_id: Some("given"),
        alias_maximum: 8,
        server_keep_alive_s: Some(30),
    };
    connack(&mut out, V5, Ok(&ack));
    connack(&mut out, V5, Err(Reason::NotAuthorized));
    suback(&mut out, V5, 7, &[Reason::GrantedQos1, Reason::SharedSubscriptionsNotSupported]);
    puback(&mut out, V5, 8, Reason::QuotaExceeded);
    pingresp(&mut out);
    let mut packets = std::iter::from_fn(|| v5::v5::Packet::read(&mut out, None).ok());
    let Some(v5::v5::Packet::ConnAck(accepted)) = packets.next() else { panic!("no CONNACK") };
    let properties = accepted.properties.expect("properties");
    assert!(accepted.session_present);
    assert_eq!(properties.assigned_client_identifier.as_deref(), Some("given"));
    assert_eq!((properties.receive_max, properties.max_packet_size), (Some(50), Some(4096)));
    assert_eq!((properties.server_keep_alive, properties.session_expiry_interval), (Some(30), Some(60)));
    assert_eq!((properties.topic_alias_max, properties.shared_subscription_available), (Some(8), Some(0)));
    let Some(v5::v5::Packet::ConnAck(refused)) = packets.next() else { panic!("no CONNACK") };
    assert_eq!(refused.code, v5::v5::ConnectReturnCode::NotAuthorized);
    let Some(v5::v5::Packet::SubAck(granted)) = packets.next() else { panic!("no SUBACK") };
    let codes = [
        v5::v5::SubscribeReasonCode::Success(v5::QoS::AtLeastOnce),
        v5::v5::SubscribeReasonCode::SharedSubscriptionsNotSupported,
    ];
    assert_eq!((granted.pkid, &granted.return_codes[..]), (7, &codes[..]));
    let Some(v5::v5::Packet::PubAck(ack)) = packets.next() else { panic!("no PUBACK") };
    assert_eq!((ack.pkid, ack.reason), (8, v5::v5::PubAckReason::QuotaExceeded));
    assert!(matches!(packets.next(), Some(v5::v5::Packet::PingResp(_))));
    assert!(packets.next().is_none());
    // What 3.1.1 has no word for.
    for (reason, expected) in
        [(Reason::BadUserNameOrPassword, &[0x20, 2, 0, 4][..]), (Reason::MalformedPacket, &[])]
    {
        let mut out = BytesMut::new();
        connack(&mut out, V3, Err(reason));
        assert_eq!(out, expected);
    }
    let mut out = BytesMut::new();
    suback(&mut out, V3, 1, &[Reason::Success, Reason::QuotaExceeded]);
    unsuback(&mut out, V3, 2, &[Reason::Success]);
    disconnect(&mut out, V3, Reason::MalformedPacket);
    assert_eq!(out[..], [0x90, 4, 0, 1, 0, 0x80, 0xb0, 2, 0, 2]);
}

/// A PUBLISH as rumqttc writes it.
fn published(version: MqttVersion, topic: &str, qos: u8, payload: &[u8], properties: bool) -> BytesMut {
    let mut bytes = BytesMut::new();
    if version == V3 {
        let qos = v3::qos(qos).expect("a QoS");
        let mut publish = v3::v4::Publish::new(topic, qos, payload);
        publish.pkid = 9;
        publish.write(&mut bytes).expect("writes");
    } else {
        let qos = v5::qos(qos).expect("a QoS");
        let properties = properties.then(|| v5::v5::PublishProperties {
            payload_format_indicator: Some(1),
            message_expiry_interval: Some(60),
            topic_alias: Some(2),
            response_topic: Some("answers".into()),
            correlation_data: Some("x".into()),
            user_properties: vec![("unit".into(), "K".into()), ("unit".into(), "C".into())],
            subscription_identifiers: Vec::new(),
            content_type: Some("text/plain".into()),
        });
        let mut publish = v5::v5::Publish::new(topic, qos, payload.to_vec(), properties);
        publish.pkid = 9;
        publish.write(&mut bytes).expect("writes");
    }
    bytes
}

#[test]
fn user_properties_of_a_publish_are_all_there_and_in_order() {
    let bytes = published(V5, "t", 1, b"p", true);
    let Ok(Packet::Publish(publish)) = read(V5, &bytes) else { panic!("no PUBLISH") };
    let user = publish.properties.iter().filter_map(|property| match property.value {
        Value::Pair(name, value) => Some((name, value)),
        _ => None,
    });
    assert_eq!(user.collect::<Vec<_>>(), [("unit", "K"), ("unit", "C")]);
    assert_eq!(publish.alias, Some(2));
    assert_eq!(publish.properties.number(Property::MESSAGE_EXPIRY), Some(60));
}

fn versions() -> impl Strategy<Value = MqttVersion> {
    prop_oneof![Just(V3), Just(V5)]
}

proptest! {
    #[test]
    fn a_publish_is_read_as_it_was_written_by_others_and_by_us(
        version in versions(),
        topic in "[a-z/$ä]{1,30}",
        qos in 0_u8..3,
        payload in prop::collection::vec(any::<u8>(), 0..300),
        properties in any::<bool>(),
    ) {
        let bytes = published(version, &topic, qos, &payload, properties);
        let Ok(Packet::Publish(publish)) = read(version, &bytes) else { panic!("no PUBLISH") };
        prop_assert_eq!((publish.topic, publish.payload), (&topic[..], &payload[..]));
        prop_assert_eq!(publish.packet_id, if qos == 0 { 0 } else { 9 });
        let raw: Vec<u8> = publish.properties.iter().flat_map(|property| property.raw.to_vec()).collect();
        let outgoing = Outgoing {
            dup: publish.dup,
            qos: publish.qos,
            retain: publish.retain,
            topic: publish.topic,
            packet_id: publish.packet_id,
            expiry_s: None,
            properties: &raw,
            payload: publish.payload,
        };
        let mut written = BytesMut::new();
        super::publish(&mut written, version, &outgoing);
        prop_assert_eq!(written.len(), outgoing.size_bytes(version));
        prop_assert_eq!(read(version, &written), Ok(Packet::Publish(publish)));
    }

    #[test]
    fn a_part_of_a_packet_is_no_packet_and_the_size_is_known_from_its_header(
        version in versions(),
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = published(version, "a/b", 1, &payload, false);
        for end in 0..bytes.len() {
            let size_bytes = frame(&bytes[..end], 1000).expect("a packet");
            prop_assert!(size_bytes.is_none_or(|size_bytes| size_bytes == bytes.len()));
        }
    }

    #[test]
    fn mutated_packets_are_packets_or_errors_and_never_panic(
        version in versions(),
        qos in 0_u8..3,
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        which in 0..4,
    ) {
        let mut bytes = match which {
            0 => published(version, "a/b", qos, b"payload", true).to_vec(),
            1 => packet(0x10, &connect_body(version, 0xee, b"\0\0\x01t\0\x01p\0\x01u\0\x01p")),
            2 => packet(0x82, b"\0\x01\0\0\x03a/#\x01\0\x03+/b\x02"),
            _ => packet(0xe0, &[4, 5, 0x11, 0, 0, 0, 9]),
        };
        for (index, byte) in mutations {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let first = u8::from(version == V5);
        super::super::fuzz::listener(&[&[first][..], &bytes].concat());
    }
}
